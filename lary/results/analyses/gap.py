"""F1 of people minus F1 of robots on the classes that both data sets have, for every model with a run on each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.data.spec import DATASETS
from lary.results.analyses.base import (
    Analysis,
    Context,
    FinishedRun,
    NotPossible,
    grouped,
    settings_text,
    slug,
    write_analysis,
)
from lary.results.figures import new_figure
from lary.results.tables import dataset_title
from lary.types import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 16
"""With more classes the cells carry no numbers."""


@dataclass(frozen=True)
class Pair:
    """A model's runs on both data sets."""

    human: FinishedRun
    robot: FinishedRun


def analyse(context: Context) -> Analysis:
    """One heatmap per settings that any model has runs of on both data sets.

    Raises:
        UsageError: no model has both, or the data sets share no class.
    """
    names = (context.config.human, context.config.robot)
    if names[0] == names[1]:
        raise UsageError(f"--human and --robot are both {names[0]}: a gap is between two data sets.")
    shared = sorted(set(DATASETS.get(names[0]).labels.classes) & set(DATASETS.get(names[1]).labels.classes))
    if not shared:
        raise NotPossible(f"{names[0]} and {names[1]} share no class.")
    sides = [
        grouped([run for run in context.runs if run.result.dataset.name == name], lambda run: run.settings)
        for name in names
    ]
    files: list[Any] = []
    left_out: list[str] = []
    for key in sides[0]:
        robots = {run.result.label: run for run in sides[1].get(key, [])}
        pairs = [Pair(run, robots[run.result.label]) for run in sides[0][key] if run.result.label in robots]
        if not pairs:
            continue
        alone = {run.result.label for run in sides[0][key]} ^ set(robots)
        left_out += [f"gap: {label} has a run on one of the two data sets only" for label in sorted(alone)]
        classes, gaps = gap_table(pairs, shared)
        if not classes:
            left_out.append(f"gap: none of the {len(shared)} shared classes has validation samples in both data sets")
            continue
        facts = {
            "analysis": "gap", "human": names[0], "robot": names[1], "protocol": pairs[0].human.result.protocol,
            "preset": pairs[0].human.result.preset, "shared_classes": shared, "classes_shown": classes,
            "mean_gap": {
                pair.human.result.label: mean_of(row) for pair, row in zip(pairs, gaps, strict=True)
            },
        }  # fmt: skip
        files += write_analysis(
            context.out, f"gap_{slug(names[0])}_{slug(names[1])}{pairs[0].human.suffix}",
            lambda pairs=pairs, classes=classes, gaps=gaps: drawn(pairs, classes, gaps),  # type: ignore[misc]
            rows_of(pairs, classes), facts,
        )  # fmt: skip
    if not files and not left_out:
        raise NotPossible(
            f"no model has finished runs on both {names[0]} and {names[1]} under the same settings: classify on both"
        )
    return Analysis(tuple(files), tuple(left_out))


def scores(run: FinishedRun) -> dict[str, float]:
    """F1 of the classes that occur in validation."""
    return {row.name: row.f1 for row in run.result.classes if row.true}


def gap_table(pairs: Sequence[Pair], shared: Sequence[str]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Shared classes that some model has F1 of in both data sets, by rising mean gap; gaps (M, C), NaN where absent."""
    table = np.full((len(pairs), len(shared)), np.nan)
    for row, pair in zip(table, pairs, strict=True):
        human, robot = scores(pair.human), scores(pair.robot)
        for place, name in enumerate(shared):
            if name in human and name in robot:
                row[place] = human[name] - robot[name]
    there: list[int] = np.flatnonzero(~np.isnan(table).all(axis=0)).tolist()
    order = sorted(there, key=lambda place: (mean_of(table[:, place]), shared[place]))
    return [shared[place] for place in order], table[:, order]


def mean_of(values: npt.NDArray[np.float64]) -> float:
    """The mean of the values that are there."""
    return float(np.nanmean(values))


def rows_of(pairs: Sequence[Pair], classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row per model and class."""
    rows = []
    for pair in pairs:
        human, robot = scores(pair.human), scores(pair.robot)
        rows += [
            {
                "model": pair.human.result.label, "class": name, "f1_human": human.get(name),
                "f1_robot": robot.get(name),
                "gap": human[name] - robot[name] if name in human and name in robot else None,
            }
            for name in classes
        ]  # fmt: skip
    return rows


@contextmanager
def drawn(pairs: Sequence[Pair], classes: Sequence[str], gaps: npt.NDArray[np.float64]) -> Iterator[Figure]:
    """Models in rows with their mean gap, classes in columns; orange where people are told apart better."""
    reach = max(0.05, float(np.nanmax(np.abs(gaps))))
    longest = max(len(pair.human.result.label) for pair in pairs) + 8
    numbered = len(classes) <= NUMBERED
    width = 1.5 + 0.075 * longest + (0.46 if numbered else 0.21) * len(classes)
    height = 1.3 + 0.3 * len(pairs) + 0.07 * max(map(len, classes))
    with new_figure(max(width, 6.0), height) as figure:
        axes = figure.subplots()
        axes.set_facecolor("#eeeeee")  # a class that one of the data sets has no samples of
        image = axes.imshow(gaps, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(len(classes)), list(classes), rotation=90, fontsize=8)
        labels = [f"{pair.human.result.label}  {mean_of(row):+.2f}" for pair, row in zip(pairs, gaps, strict=True)]
        axes.set_yticks(range(len(pairs)), labels)
        axes.tick_params(length=0)
        axes.set_ylabel("model, mean gap")
        if numbered:
            for (row, column), value in np.ndenumerate(gaps):
                if not np.isnan(value):
                    colour = "white" if abs(value) > 0.62 * reach else "black"
                    axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=7, color=colour)
        first = pairs[0]
        sides = [dataset_title(run.result) for run in (first.human, first.robot)]
        axes.set_title(
            f"F1 on {sides[0]} minus F1 on {sides[1]}\n{settings_text(first.human)}", fontsize=9.5, fontweight="normal"
        )
        figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, label="F1 gap")
        yield figure
