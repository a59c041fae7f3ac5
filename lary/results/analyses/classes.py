"""Analyses of classes: F1 against how often a class occurs in training, and F1 of people minus F1 of robots.

For the first, classes are ordered by their training samples; a point of the average is the mean F1 of `window`
neighbouring classes, drawn at the geometric mean of their counts. Where all classes are equally frequent they are drawn
by name instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.data.spec import DATASETS
from lary.results.analyses.base import Analysis, Context, FinishedRun, NotPossible, grouped, made, slug
from lary.results.figures import BLUE, LIGHT, VERMILION, new_figure, panel_grid
from lary.results.record import EvalResult
from lary.results.report import dataset_title
from lary.types import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Doubles = npt.NDArray[np.float64]
LEAST = 3
"""Classes that an average spans at least."""
NUMBERED = 16
"""With more classes the cells of a gap carry no numbers."""


@dataclass(frozen=True)
class Curve:
    """The classes of one run by rising frequency: names, training samples and F1 (C,), and the average (C - w + 1,)."""

    label: str
    names: tuple[str, ...]
    train: Doubles
    f1: Doubles
    centres: Doubles
    average: Doubles
    correlation: float | None

    @property
    def drawn(self) -> tuple[Doubles, Doubles]:
        """Places and heights of the average: one point per place, since equally frequent classes have no order."""
        places, groups = np.unique(self.centres, return_inverse=True)
        return places, np.bincount(groups, self.average) / np.bincount(groups)


def class_frequency(context: Context) -> Analysis:
    """One figure of F1 by class frequency per data set and settings.

    Raises:
        UsageError: no classification run, or a window that doesn't fit.
    """
    runs = context.of_task("classification", "classify")
    files, left_out = [], []
    for (dataset, *_), group in grouped(runs, lambda run: (run.result.dataset.name, *run.settings)).items():
        shown = sum(row.true > 0 and row.train > 0 for row in group[0].result.classes)
        even = len({row.train for run in group for row in run.result.classes if row.true and row.train}) == 1
        window = context.config.window or max(LEAST, round(shown / 10))
        if not even and not 1 <= window <= shown:
            reason = f"{dataset} has {shown} classes with training and validation samples, the moving average spans"
            if context.config.window:
                raise UsageError(f"--window {window}: {reason} from 1 to {shown} of them.")
            left_out.append(f"{reason} at least {window}")
            continue
        span = None if even else window
        curves = [curve_of(run.result, span) for run in group]
        figure = name_figure(curves, group[0]) if even else frequency_figure(curves, group[0], window)
        stem = f"frequency_{slug(dataset)}{group[0].suffix}"
        files += context.write(stem, figure, *frequency_table(group, curves, span))
    return made(files, left_out)


def curve_of(result: EvalResult, window: int | None) -> Curve:
    """Classes that occur in training and validation by rising frequency, names deciding ties, with their average.

    A `window` of None makes no average: classes that are all equally frequent have no order.
    """
    from scipy.stats import spearmanr

    rows = sorted((row for row in result.classes if row.true and row.train), key=lambda row: (row.train, row.name))
    train = np.array([row.train for row in rows], dtype=np.float64)
    f1 = np.array([row.f1 for row in rows], dtype=np.float64)

    def averaged(values: Doubles) -> Doubles:
        if window is None:
            return np.empty(0)
        means: Doubles = np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=1)
        return means

    varied = len(set(train)) > 1 and len(set(f1)) > 1
    correlation = float(spearmanr(train, f1).statistic) if varied else None
    names = tuple(row.name for row in rows)
    return Curve(result.label, names, train, f1, np.exp(averaged(np.log(train))), averaged(f1), correlation)


def frequency_table(
    group: Sequence[FinishedRun], curves: Sequence[Curve], window: int | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The data of a figure: a row per model and class, and facts per model."""
    rows = []
    before = (window - 1) // 2 if window else 0
    for run, own in zip(group, curves, strict=True):
        places = {name: place - before for place, name in enumerate(own.names)}
        for row in run.result.classes:
            middle = places.get(row.name, -1)
            rows.append(
                {
                    "model": own.label, "class": row.name, "train": row.train, "validation": row.true,
                    "precision": row.precision, "recall": row.recall.value if row.recall else None, "f1": row.f1,
                    "moving_average": float(own.average[middle]) if 0 <= middle < len(own.average) else None,
                }
            )  # fmt: skip
    first = group[0].result
    facts = {
        "analysis": "frequency", "dataset": first.dataset.name, "protocol": first.protocol, "preset": first.preset,
        "window": window, "models": {own.label: {"spearman": own.correlation} for own in curves},
    }  # fmt: skip
    return rows, facts


@contextmanager
def frequency_figure(curves: Sequence[Curve], first: FinishedRun, window: int) -> Iterator[Figure]:
    """A panel per model: its classes and average, with the averages of the others in grey."""
    columns = min(len(curves), 4)
    with new_figure(max(2.6 * columns, 4.2), 1.25 + 2.1 * -(-len(curves) // columns)) as figure:
        notes = ["" if own.correlation is None else f"\nSpearman {own.correlation:+.2f}" for own in curves]
        titles = [own.label + more for own, more in zip(curves, notes, strict=True)]
        low, high = min(own.train.min() for own in curves), max(own.train.max() for own in curves)
        ticks = np.unique(np.geomspace(low, high, 4 if high / low > 2 else 3).round())  # a decade may hold no power
        for axes, own in zip(
            panel_grid(figure, titles, columns, "training samples of the class", "F1"), curves, strict=True
        ):
            for other in curves:
                if other is not own:
                    axes.plot(*other.drawn, color=LIGHT, linewidth=0.9, zorder=1, label="means of the other models")
            axes.scatter(own.train, own.f1, s=9, color=BLUE, alpha=0.55, linewidths=0, zorder=2, label="class")
            axes.plot(*own.drawn, color=VERMILION, linewidth=1.8, zorder=3, label=f"mean of {window} classes")
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
            axes.minorticks_off()
            axes.set_ylim(-0.03, 1.03)
        add_legend(figure, axes, f"{dataset_title(first.result)}: F1 by class frequency\n{first.about}")
        yield figure


@contextmanager
def name_figure(curves: Sequence[Curve], first: FinishedRun) -> Iterator[Figure]:
    """A panel per model: its F1 of every class, the classes by their mean F1, with those of the others in grey."""
    found = [dict(zip(own.names, own.f1.tolist(), strict=True)) for own in curves]
    names = {name for values in found for name in values}
    order = sorted(names, key=lambda name: (np.mean([own[name] for own in found if name in own]), name))
    columns = min(len(curves), 4)
    height = 1.25 + -(-len(curves) // columns) * (0.6 + 0.17 * len(order))
    places = np.arange(len(order))
    with new_figure(max(1.6 + 1.7 * columns, 4.2), height) as figure:
        for index, axes in enumerate(panel_grid(figure, [own.label for own in curves], columns, "F1")):
            for number, own in enumerate(found):
                same = number == index
                axes.scatter(
                    [own.get(name, np.nan) for name in order], places, s=16 if same else 9, linewidths=0,
                    color=BLUE if same else LIGHT, zorder=3 if same else 1,
                    label="class" if same else "the other models",
                )  # fmt: skip
            mean = float(curves[index].f1.mean())
            axes.axvline(mean, color=VERMILION, linewidth=1.2, zorder=2, label="mean of the classes")
            axes.set(xlim=(-0.03, 1.03), xticks=(0, 0.5, 1))
            axes.set_yticks(places, order, fontsize=7.5)
        about = f"F1 by class, each with {curves[0].train[0]:,.0f} training samples"
        add_legend(figure, axes, f"{dataset_title(first.result)}\n{about}\n{first.about}")
        yield figure


def add_legend(figure: Figure, axes: Any, title: str) -> None:
    """A title over the panels and a legend below, from the marks of one panel."""
    marks = {name: mark for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9.5, wrap=True)


# --- people and robots ---

Pair = tuple[FinishedRun, FinishedRun]
"""A model's runs on both data sets: of people, and of robots."""


def human_robot_gap(context: Context) -> Analysis:
    """F1 of people minus F1 of robots on the classes that both data sets have: a heatmap per settings.

    Raises:
        UsageError: no model has runs on both data sets, or these share no class.
    """
    human, robot = context.config.human, context.config.robot
    if human == robot:
        raise UsageError(f"--human and --robot are both {human}: a gap is between two data sets.")
    shared = sorted(set(DATASETS.get(human).labels.classes) & set(DATASETS.get(robot).labels.classes))
    if not shared:
        raise NotPossible(f"{human} and {robot} share no class.")
    sides = [
        grouped([run for run in context.runs if run.result.dataset.name == name], lambda run: run.settings)
        for name in (human, robot)
    ]
    files: list[Path] = []
    left_out: list[str] = []
    for key in sides[0]:
        robots = {run.result.label: run for run in sides[1].get(key, [])}
        pairs = [(run, robots[run.result.label]) for run in sides[0][key] if run.result.label in robots]
        if not pairs:
            continue
        alone = {run.result.label for run in sides[0][key]} ^ set(robots)
        left_out += [f"{label} has a run on one of the two data sets only" for label in sorted(alone)]
        classes, gaps = gaps_of(pairs, shared)
        if not classes:
            left_out.append(f"none of the {len(shared)} shared classes has validation samples in both data sets")
            continue
        first = pairs[0][0]
        facts = {
            "analysis": "gap", "human": human, "robot": robot, "protocol": first.result.protocol,
            "preset": first.result.preset, "shared_classes": shared, "classes_shown": classes,
            "mean_gap": {run.result.label: float(np.nanmean(own)) for (run, _), own in zip(pairs, gaps, strict=True)},
        }  # fmt: skip
        rows = [
            {
                "model": run.result.label, "class": name, "f1_human": f1_of(run).get(name),
                "f1_robot": f1_of(other).get(name), "gap": None if np.isnan(gap) else float(gap),
            }
            for (run, other), own in zip(pairs, gaps, strict=True)
            for name, gap in zip(classes, own, strict=True)
        ]  # fmt: skip
        stem = f"gap_{slug(human)}_{slug(robot)}{first.suffix}"
        files += context.write(stem, gap_figure(pairs, classes, gaps), rows, facts)
    if not files and not left_out:
        raise NotPossible(
            f"no model has finished runs on both {human} and {robot} under the same settings: classify on both"
        )
    return Analysis(tuple(files), tuple(left_out))


def f1_of(run: FinishedRun) -> dict[str, float]:
    """F1 of the classes that occur in validation."""
    return {row.name: row.f1 for row in run.result.classes if row.true}


def gaps_of(pairs: Sequence[Pair], shared: Sequence[str]) -> tuple[list[str], Doubles]:
    """Shared classes that some model has F1 of in both data sets, by rising mean gap; gaps (M, C), NaN where absent."""
    table = np.array(
        [[f1_of(run).get(name, np.nan) - f1_of(other).get(name, np.nan) for name in shared] for run, other in pairs]
    )
    there: list[int] = np.flatnonzero(~np.isnan(table).all(axis=0)).tolist()
    order = sorted(there, key=lambda column: (float(np.nanmean(table[:, column])), shared[column]))
    return [shared[column] for column in order], table[:, order]


@contextmanager
def gap_figure(pairs: Sequence[Pair], classes: Sequence[str], gaps: Doubles) -> Iterator[Figure]:
    """Models in rows with their mean gap, classes in columns; orange where people have the higher F1."""
    reach = max(0.05, float(np.nanmax(np.abs(gaps))))
    numbered = len(classes) <= NUMBERED
    labels = [f"{run.result.label}  {np.nanmean(row):+.2f}" for (run, _), row in zip(pairs, gaps, strict=True)]
    width = 1.5 + 0.075 * max(map(len, labels)) + (0.46 if numbered else 0.21) * len(classes)
    with new_figure(max(width, 6.0), 1.3 + 0.3 * len(pairs) + 0.07 * max(map(len, classes))) as figure:
        axes = figure.subplots()
        axes.set_facecolor("#eeeeee")  # a class that one of the data sets has no samples of
        image = axes.imshow(gaps, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(len(classes)), list(classes), rotation=90, fontsize=8)
        axes.set_yticks(range(len(pairs)), labels)
        axes.tick_params(length=0)
        axes.set_ylabel("model, mean gap")
        for row, column in np.argwhere(~np.isnan(gaps)) if numbered else ():
            value = gaps[row, column]
            colour = "white" if abs(value) > 0.62 * reach else "black"
            axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=7, color=colour)
        human, robot = (dataset_title(run.result) for run in pairs[0])
        axes.set_title(f"F1 on {human} minus F1 on {robot}\n{pairs[0][0].about}", fontsize=9.5, fontweight="normal")
        figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, label="F1 gap")
        yield figure
