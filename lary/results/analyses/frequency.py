"""F1 of each class against how often the class occurs in training, with a moving average over the classes.

Classes are ordered by their training samples; a point of the average is the mean F1 of `window` neighbouring classes,
drawn at the geometric mean of their counts. Where all classes are equally frequent they are drawn by name instead.
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
    fitted,
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
            left_out.append(f"frequency: {reason} at least {window}")
            continue
        span = None if even else window
        curves = [curve(run.result, span) for run in group]
        rows, facts = table(group, curves, span)
        files += write_analysis(
            context.out,
            f"frequency_{slug(dataset)}{group[0].suffix}",
            lambda curves=curves, first=group[0], span=span: (  # type: ignore[misc]
                by_name(curves, first) if span is None else drawn(curves, first, span)
            ),
            rows,
            facts,
        )
    if not files:
        raise NotPossible("; ".join(reason.removeprefix("frequency: ") for reason in left_out))
    return Analysis(tuple(files), tuple(left_out))


def curve(result: EvalResult, window: int | None) -> Curve:
    """Classes that occur in training and validation by rising frequency, names deciding ties, with their average.

    A `window` of None makes no average: classes that are all equally frequent have no order.
    """
    from scipy.stats import spearmanr

    rows = sorted((row for row in result.classes if row.true and row.train), key=lambda row: (row.train, row.name))
    train = np.array([row.train for row in rows], dtype=np.float64)
    f1 = np.array([row.f1 for row in rows], dtype=np.float64)
    varied = len(set(train)) > 1 and len(set(f1)) > 1
    nothing: Doubles = np.empty(0)
    return Curve(
        result.label, tuple(row.name for row in rows), train, f1,
        centres=nothing if window is None else np.exp(moving_average(np.log(train), window)),
        average=nothing if window is None else moving_average(f1, window),
        correlation=float(spearmanr(train, f1).statistic) if varied else None,
    )  # fmt: skip


def moving_average(values: Doubles, window: int) -> Doubles:
    """Means of `window` neighbouring values (C,), (C - window + 1,): whole windows only."""
    means: Doubles = np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=1)
    return means


def line_of(own: Curve) -> tuple[Doubles, Doubles]:
    """Places and heights of the drawn average: one point per place, since equally frequent classes have no order."""
    places, groups = np.unique(own.centres, return_inverse=True)
    return places, np.bincount(groups, own.average) / np.bincount(groups)


def table(
    group: Sequence[FinishedRun], curves: Sequence[Curve], window: int | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The data of a figure: a row per model and class, and facts per model."""
    rows = []
    for run, own in zip(group, curves, strict=True):
        places = {name: place for place, name in enumerate(own.names)}
        before = (window - 1) // 2 if window else 0
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
                    axes.plot(*line_of(other), color=LIGHT, linewidth=0.9, zorder=1)
            dots = axes.scatter(own.train, own.f1, s=9, color=BLUE, alpha=0.55, linewidths=0, zorder=2)
            line = axes.plot(*line_of(own), color=VERMILION, linewidth=1.8, zorder=3)[0]
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
        title = f"{dataset_title(first.result)}: F1 by class frequency\n{settings_text(first)}"
        figure.suptitle(fitted(title, figure.get_figwidth()), fontsize=9.5)
        yield figure


@contextmanager
def by_name(curves: Sequence[Curve], first: FinishedRun) -> Iterator[Figure]:
    """A panel per model: its F1 of every class, the classes by their mean F1, with those of the others in grey."""
    found = [dict(zip(own.names, own.f1.tolist(), strict=True)) for own in curves]
    names = {name for values in found for name in values}
    order = sorted(names, key=lambda name: (np.mean([own[name] for own in found if name in own]), name))
    columns = min(len(curves), 4)
    lines = -(-len(curves) // columns)
    heights = [[own.get(name, np.nan) for name in order] for own in found]
    places = np.arange(len(order))
    with new_figure(max(1.6 + 1.7 * columns, 4.2), 1.25 + lines * (0.6 + 0.17 * len(order))) as figure:
        panels = np.asarray(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)).ravel()
        for index, (axes, own) in enumerate(zip(panels, curves, strict=False)):
            others = [values for number, values in enumerate(heights) if number != index]
            for values in others:
                rest = axes.scatter(values, places, s=9, color=LIGHT, linewidths=0, zorder=1)
            dots = axes.scatter(heights[index], places, s=16, color=BLUE, linewidths=0, zorder=3)
            line = axes.axvline(float(own.f1.mean()), color=VERMILION, linewidth=1.2, zorder=2)
            axes.set_xlim(-0.03, 1.03)
            axes.set_yticks(places, order, fontsize=7.5)
            axes.grid(color=GRID, linewidth=0.5)
            axes.set_axisbelow(True)
            axes.set_title(own.label, fontsize=8.5, fontweight="normal")
            axes.tick_params(labelbottom=index + columns >= len(curves), labelsize=8)
            if index + columns >= len(curves):
                axes.set_xlabel("F1", fontsize=8)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        marks = [dots, line, *([rest] if len(curves) > 1 else [])]
        told = ["class", "mean of the classes", "the other models"]
        figure.legend(marks, told[: len(marks)], loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        about = f"F1 by class, each with {curves[0].train[0]:,.0f} training samples"
        figure.suptitle(f"{dataset_title(first.result)}\n{about}\n{settings_text(first)}", fontsize=9.5)
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
