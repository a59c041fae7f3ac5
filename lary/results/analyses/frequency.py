"""F1 of each class against how often the class occurs in training, with a moving average over the classes.

Classes are ordered by their training samples; a point of the average is the mean F1 of `window` neighbouring classes,
drawn at the geometric mean of their counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.results.analyses.base import (
    LIGHT,
    Analysis,
    Context,
    FinishedRun,
    NotPossible,
    grouped,
    settings_text,
    slug,
    write_analysis,
)
from lary.results.figures import BLUE, GRID, VERMILION, new_figure
from lary.results.record import EvalResult
from lary.results.tables import dataset_title
from lary.types import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Doubles = npt.NDArray[np.float64]
LEAST = 3
"""Classes that an average spans at least."""


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


def analyse(context: Context) -> Analysis:
    """One figure per data set and settings.

    Raises:
        UsageError: no classification run, a window that doesn't fit, or classes that are all equally frequent.
    """
    runs = context.of_task("classification", "classify")
    files, left_out = [], []
    for (dataset, *_), group in grouped(runs, lambda run: (run.result.dataset.name, *run.settings)).items():
        shown = sum(row.true > 0 and row.train > 0 for row in group[0].result.classes)
        window = context.config.window or max(LEAST, round(shown / 10))
        if not 1 <= window <= shown:
            reason = f"{dataset} has {shown} classes with training and validation samples, the moving average spans"
            if context.config.window:
                raise UsageError(f"--window {window}: {reason} from 1 to {shown} of them.")
            left_out.append(f"frequency: {reason} at least {window}")
            continue
        if len({row.train for row in group[0].result.classes if row.true and row.train}) == 1:
            left_out.append(f"frequency: all classes of {dataset} occur equally often in training")
            continue
        curves = [curve(run.result, window) for run in group]
        rows, facts = table(group, curves, window)
        files += write_analysis(
            context.out,
            f"frequency_{slug(dataset)}{group[0].suffix}",
            lambda curves=curves, first=group[0], window=window: drawn(curves, first, window),  # type: ignore[misc]
            rows,
            facts,
        )
    if not files:
        raise NotPossible("; ".join(reason.removeprefix("frequency: ") for reason in left_out))
    return Analysis(tuple(files), tuple(left_out))


def curve(result: EvalResult, window: int) -> Curve:
    """Classes that occur in training and validation by rising frequency, names deciding ties, with their average."""
    from scipy.stats import spearmanr

    rows = sorted((row for row in result.classes if row.true and row.train), key=lambda row: (row.train, row.name))
    train = np.array([row.train for row in rows], dtype=np.float64)
    f1 = np.array([row.f1 for row in rows], dtype=np.float64)
    varied = len(set(train)) > 1 and len(set(f1)) > 1
    return Curve(
        result.label, tuple(row.name for row in rows), train, f1,
        centres=np.exp(moving_average(np.log(train), window)), average=moving_average(f1, window),
        correlation=float(spearmanr(train, f1).statistic) if varied else None,
    )  # fmt: skip


def moving_average(values: Doubles, window: int) -> Doubles:
    """Means of `window` neighbouring values (C,), (C - window + 1,): whole windows only."""
    means: Doubles = np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=1)
    return means


def table(
    group: Sequence[FinishedRun], curves: Sequence[Curve], window: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The data of a figure: a row per model and class, and facts per model."""
    rows = []
    for run, own in zip(group, curves, strict=True):
        places = {name: place for place, name in enumerate(own.names)}
        before = (window - 1) // 2
        for row in run.result.classes:
            middle = places.get(row.name, -1) - before
            average = float(own.average[middle]) if row.name in places and 0 <= middle < len(own.average) else None
            rows.append(
                {
                    "model": own.label, "class": row.name, "train": row.train, "validation": row.true,
                    "precision": row.precision, "recall": row.recall.value if row.recall else None, "f1": row.f1,
                    "moving_average": average,
                }
            )  # fmt: skip
    first = group[0].result
    models = {own.label: {"spearman": own.correlation} for own in curves}
    facts = {
        "analysis": "frequency", "dataset": first.dataset.name, "protocol": first.protocol, "preset": first.preset,
        "window": window, "models": models,
    }  # fmt: skip
    return rows, facts


@contextmanager
def drawn(curves: Sequence[Curve], first: FinishedRun, window: int) -> Iterator[Figure]:
    """A panel per model: its classes and average, with the averages of the others in grey."""
    columns = min(len(curves), 4)
    lines = -(-len(curves) // columns)
    with new_figure(max(2.6 * columns, 4.2), 1.25 + 2.1 * lines) as figure:
        panels = np.asarray(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)).ravel()
        for axes, own in zip(panels, curves, strict=False):
            for other in curves:
                if other is not own:
                    axes.plot(other.centres, other.average, color=LIGHT, linewidth=0.9, zorder=1)
            dots = axes.scatter(own.train, own.f1, s=9, color=BLUE, alpha=0.55, linewidths=0, zorder=2)
            line = axes.plot(own.centres, own.average, color=VERMILION, linewidth=1.8, zorder=3)[0]
            axes.set_xscale("log")
            axes.set_ylim(-0.03, 1.03)
            axes.grid(color=GRID, linewidth=0.5)
            axes.set_axisbelow(True)
            told = "" if own.correlation is None else f"\nSpearman {own.correlation:+.2f}"
            axes.set_title(f"{own.label}{told}", fontsize=8.5, fontweight="normal")
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        for index, axes in enumerate(panels[: len(curves)]):
            axes.tick_params(labelbottom=index + columns >= len(curves), labelsize=8)
            if index + columns >= len(curves):
                axes.set_xlabel("training samples of the class", fontsize=8)
            if index % columns == 0:
                axes.set_ylabel("F1", fontsize=8)
            axes.minorticks_off()
            plain_ticks(axes, curves)
        names = ["class", f"mean of {window} classes", "means of the other models"]
        marks = [dots, line, *([plot_line(LIGHT)] if len(curves) > 1 else [])]
        figure.legend(marks, names[: len(marks)], loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        figure.suptitle(f"{dataset_title(first.result)}: F1 by class frequency\n{settings_text(first)}", fontsize=9.5)
        yield figure


def plain_ticks(axes: Any, curves: Sequence[Curve]) -> None:
    """Ticks in plain numbers; a range within one power of ten gets its ends and middle, since it has no power."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

    low, high = min(own.train.min() for own in curves), max(own.train.max() for own in curves)
    if high / low < 100:
        places = np.unique(np.geomspace(low, high, 4 if high / low > 2 else 3).round())
        axes.xaxis.set_major_locator(FixedLocator(places.tolist()))
    else:
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def plot_line(colour: str) -> Any:
    """A line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour)
