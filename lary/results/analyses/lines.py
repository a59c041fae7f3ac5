"""Scores over a setting as lines: a panel per setting, or per line where there are many lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.results.analyses.base import COLOURS, LIGHT, MARKERS, FinishedRun, fitted
from lary.results.figures import BLUE, GRID, MUTED, new_figure
from lary.results.markup import metric_name
from lary.results.record import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOGETHER = 5
"""More lines than this get a panel each, with the others in grey."""
COLUMNS = 4


@dataclass(frozen=True)
class Point:
    """A run at one value of a setting, the paper's number on the scale of its score, the share of its codes in use."""

    at: float
    run: FinishedRun
    published: float | None
    codes_used: float | None = None

    @property
    def score(self) -> Metric:
        return self.run.result.score


@dataclass(frozen=True)
class Line:
    """Runs that differ in one setting alone, by rising value of it."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """Lines over one setting."""

    setting: str
    lines: tuple[Line, ...]


@contextmanager
def drawn(panels: Sequence[Panel], first: FinishedRun, title: str) -> Iterator[Figure]:
    """Lines with 95 % intervals; numbers of the paper are open marks on dotted lines."""
    score = first.result.score
    scale = 100.0 if score.unit == "fraction" else 1.0
    unit = {"fraction": " [%]", "normalised": ", normalised"}.get(score.unit, "")
    label = f"{metric_name(first.result.primary)}{unit}"
    about = f"{title}; {'higher' if score.higher_is_better else 'lower'} is better"
    if any(point.published is not None for panel in panels for line in panel.lines for point in line.points):
        about += "; open marks: paper"
    draw = multiples if len(panels) == 1 and len(panels[0].lines) > TOGETHER else side_by_side
    with draw(panels, scale, label) as figure:
        figure.suptitle(fitted(about, figure.get_figwidth()), fontsize=9.5)
        yield figure


@contextmanager
def side_by_side(panels: Sequence[Panel], scale: float, label: str) -> Iterator[Figure]:
    """A panel per setting."""
    longest = max(len(line.label) for panel in panels for line in panel.lines)
    beside = len(panels) == 1 and longest < 40
    entries = max(len(panel.lines) for panel in panels)
    width = max(3.4 * len(panels) + (1.0 + 0.075 * longest if beside else 0.8), 6.4)
    with new_figure(width, 3.2 if beside else 3.2 + 0.45 * entries) as figure:
        columns = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, panel in zip(columns, panels, strict=True):
            places = places_of(panel)
            for number, line in enumerate(panel.lines):
                count = len(panel.lines)
                aside = 0.0 if count == 1 else 0.2 * (number / (count - 1) - 0.5)
                draw_line(axes, line, places, scale, COLOURS[number], MARKERS[number], aside)
            prepare(axes, places, panel.setting)
            where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "fontsize": 8}
            if not beside:
                where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "fontsize": 7, "title_fontsize": 7}
                where["title"] = "with"
            marks, names = axes.get_legend_handles_labels()
            axes.legend(
                marks, names if beside else [name.replace(", ", "\n") for name in names], frameon=False, **where
            )
        columns[0].set_ylabel(label)
        yield figure


@contextmanager
def multiples(panels: Sequence[Panel], scale: float, label: str) -> Iterator[Figure]:
    """A panel per line, with the other lines in grey."""
    panel = panels[0]
    places = places_of(panel)
    rows = -(-len(panel.lines) // COLUMNS)
    with new_figure(2.4 * COLUMNS, 1.0 + 1.9 * rows) as figure:
        grid = np.asarray(figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True)).ravel()
        for number, (axes, line) in enumerate(zip(grid, panel.lines, strict=False)):
            for other in panel.lines:
                if other is not line:
                    at = [places.index(point.at) for point in other.points]
                    axes.plot(at, [point.score.value * scale for point in other.points], color=LIGHT, linewidth=0.9)
            draw_line(axes, line, places, scale, BLUE, "o", 0.0)
            last = number + COLUMNS >= len(panel.lines)
            prepare(axes, places, panel.setting if last else "")
            axes.tick_params(labelbottom=last, labelsize=8)
            axes.set_title(line.label, fontsize=8.5, fontweight="normal")
            if number % COLUMNS == 0:
                axes.set_ylabel(label, fontsize=8)
        for axes in grid[len(panel.lines) :]:
            axes.set_visible(False)
        yield figure


def places_of(panel: Panel) -> list[float]:
    """All values of the setting, rising: their ranks are the places along the axis."""
    return sorted({point.at for line in panel.lines for point in line.points})


def prepare(axes: Any, places: Sequence[float], setting: str) -> None:
    """Ticks at the values of the setting, a light grid."""
    axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    axes.set_xlabel(setting, fontsize=8.5)
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)


def draw_line(
    axes: Any, line: Line, places: Sequence[float], scale: float, colour: str, marker: str, aside: float
) -> None:
    """One line with its intervals, what the paper has of it, and the share of codes in use where it is known."""
    at = np.array([places.index(point.at) for point in line.points]) + aside
    values = np.array([point.score.value for point in line.points]) * scale
    reach = []
    for point in line.points:
        low, high = point.score.low, point.score.high
        known = low is not None and high is not None
        reach.append((point.score.value - low, high - point.score.value) if known else (0.0, 0.0))  # type: ignore[operator]
    axes.errorbar(
        at, values, yerr=np.maximum(np.array(reach), 0).T * scale, color=colour, marker=marker, markersize=4.5,
        linewidth=1.3, elinewidth=0.9, capsize=2, label=line.label,
    )  # fmt: skip
    paper = [(place, point.published) for place, point in zip(at, line.points, strict=True)]
    there = [(place, value * scale) for place, value in paper if value is not None]
    if there:
        axes.plot(
            *zip(*there, strict=True), color=colour, marker=marker, markersize=5, linestyle=":", linewidth=1,
            markerfacecolor="white",
        )  # fmt: skip
    for place, value, point in zip(at, values, line.points, strict=True):
        if point.codes_used is not None:
            axes.annotate(
                f"{100 * point.codes_used:.0f} % of codes", (place, value), xytext=(0, -22), ha="center",
                textcoords="offset points", fontsize=6, color=MUTED, zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
            )  # fmt: skip
