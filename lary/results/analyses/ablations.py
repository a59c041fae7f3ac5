"""Ablations over finished runs: the score by stride of the data set, and by the settings of ablated models.

Where the paper has a number for the same model and data set, it stands beside ours as an open mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.data.spec import DATASETS
from lary.models.spec import MODELS
from lary.results.analyses.base import (
    COLOURS,
    MARKERS,
    Analysis,
    Context,
    FinishedRun,
    NotPossible,
    grouped,
    settings_text,
    slug,
    write_analysis,
)
from lary.results.figures import GRID, MUTED, new_figure
from lary.results.markup import metric_name
from lary.results.record import Metric
from lary.results.tables import dataset_title, published_score, read_reference
from lary.types import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED_ABLATION = "lam_ablation"
COLUMNS = {"codebook size": "codebook_size", "sequence length": "sequence_length", "latent dimension": "latent_dim"}
"""Names of the settings in the table of the paper's ablations."""


@dataclass(frozen=True)
class Point:
    """A run at one value of a setting; `published` is the paper's number on the same scale as the score."""

    at: float
    run: FinishedRun
    published: float | None

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


def stride(context: Context) -> Analysis:
    """The score of each model by stride, a figure per series of data sets.

    Raises:
        NotPossible: no model has runs at two strides of a series.
    """
    placed = [run for run in context.runs if run.result.dataset.stride is not None]
    files: list[Any] = []
    for (series, *_), runs in by_series(placed).items():
        labels = dict.fromkeys(run.result.label for run in runs)
        lines = []
        for label in labels:
            own = sorted((run for run in runs if run.result.label == label), key=stride_of)
            points = [Point(stride_of(run), run, paper_score(run)) for run in own]
            if len({point.at for point in points}) > 1:
                lines.append(Line(label, tuple(points)))
        if lines:
            first = lines[0].points[0].run
            stem = f"stride_{slug(series)}{first.suffix}"
            files += write(context, stem, [Panel("stride [frames]", tuple(lines))], f"{series}: score by stride")
    if not files:
        raise NotPossible(
            "no model has finished runs at two strides: run 'lary regress' on data sets whose records share a "
            "stride_series, such as vlabench, vlabench_15 and vlabench_30"
        )
    return Analysis(tuple(files))


def stride_of(run: FinishedRun) -> float:
    """Frames between source and target."""
    return float(run.result.dataset.stride or 0)


def by_series(runs: Sequence[FinishedRun]) -> dict[tuple[str, ...], list[FinishedRun]]:
    """Runs by series of data sets and settings; per model and stride the latest."""
    names: dict[str, str] = {}
    for name in {run.result.dataset.name for run in runs}:
        known = name in DATASETS.names()  # the plug-in that made a data set may be absent
        names[name] = (DATASETS.get(name).stride_series if known else "") or name
    found: dict[tuple[str, ...], list[FinishedRun]] = {}
    each = grouped(runs, lambda run: (names[run.result.dataset.name], *run.settings, str(run.result.dataset.stride)))
    for key, group in each.items():
        found.setdefault(key[:-1], []).extend(group)
    return found


def paper_score(run: FinishedRun) -> float | None:
    """The paper's number for this model and data set, where it has one."""
    found = published_score(run.result)
    return None if found is None else found.value


def codebook(context: Context) -> Analysis:
    """The score of ablated models by each of their settings, a figure per data set and settings.

    Raises:
        NotPossible: no runs of models whose records name an ablation, or none that differ in one setting alone.
    """
    settings = {run.result.model.name: ablation_of(run) for run in context.runs}
    runs = [run for run in context.runs if settings[run.result.model.name]]
    if not runs:
        raise NotPossible(
            "there is no finished run of an ablated model, such as dinov3-cs64_sl49_dim256_lr1e-4: see 'lary models'"
        )
    files: list[Any] = []
    left_out = []
    for (dataset, *_), group in grouped(runs, lambda run: (run.result.dataset.name, *run.settings)).items():
        panels = [
            Panel(name, lines)
            for name in dict.fromkeys(name for own in settings.values() for name in own)
            if (lines := ablation_lines(name, group, settings))
        ]
        if not panels:
            left_out.append(f"codebook: no two runs on {dataset} differ in one setting alone")
            continue
        title = f"{dataset_title(group[0].result)}: ablated models"
        files += write(context, f"codebook_{slug(dataset)}{group[0].suffix}", panels, title)
    if not files:
        raise NotPossible("; ".join(reason.removeprefix("codebook: ") for reason in left_out))
    return Analysis(tuple(files), tuple(left_out))


def ablation_of(run: FinishedRun) -> Mapping[str, float]:
    """What an ablation varies in the record of a run's model; empty for other models and unknown ones."""
    try:
        return MODELS.get(run.result.model.name).ablation
    except UsageError:  # the plug-in that made a model may be absent
        return {}


def ablation_lines(
    name: str, runs: Sequence[FinishedRun], settings: Mapping[str, Mapping[str, float]]
) -> tuple[Line, ...]:
    """Runs that differ in the setting `name` alone; the label of a line tells the other settings."""
    found: dict[tuple[tuple[str, float], ...], list[FinishedRun]] = {}
    for run in runs:
        own = settings[run.result.model.name]
        if name in own and run.result.label == run.result.model.name:
            others = tuple((other, value) for other, value in own.items() if other != name)
            found.setdefault(others, []).append(run)
    lines = []
    for others, group in found.items():
        points = sorted(
            (
                Point(settings[run.result.model.name][name], run, published_ablation(run, settings))
                for run in group
            ),
            key=lambda point: point.at,
        )  # fmt: skip
        if len({point.at for point in points}) > 1:
            lines.append(Line(", ".join(f"{other} {value:g}" for other, value in others), tuple(points)))
    return tuple(lines)


def published_ablation(run: FinishedRun, settings: Mapping[str, Mapping[str, float]]) -> float | None:
    """The paper's number for an ablated model on this data set, on the scale of our score."""
    own, result = settings[run.result.model.name], run.result
    if result.action_mode == "relative":
        return None
    accuracy = result.score.unit == "fraction"
    column = f"{result.dataset.name}_{'accuracy' if accuracy else 'mse'}"
    for row in read_reference(PUBLISHED_ABLATION):
        if column in row and all(float(row[place]) == own.get(name) for name, place in COLUMNS.items()):
            return float(row[column]) / (100 if accuracy else 1)
    return None


def write(context: Context, stem: str, panels: Sequence[Panel], title: str) -> list[Any]:
    """The figure and the data of some panels."""
    first = panels[0].lines[0].points[0].run
    rows = []
    for panel in panels:
        for line in panel.lines:
            for point in line.points:
                result, score = point.run.result, point.score
                rows.append(
                    {
                        "setting": panel.setting, "value": point.at, "line": line.label, "model": result.model.name,
                        "label": result.label, "dataset": result.dataset.name, "metric": result.primary,
                        "score": score.value, "low": score.low, "high": score.high, "published": point.published,
                    }
                )  # fmt: skip
    facts = {
        "analysis": stem.split("_", 1)[0], "protocol": first.result.protocol, "preset": first.result.preset,
        "metric": first.result.primary, "higher_is_better": first.result.score.higher_is_better,
    }  # fmt: skip
    about = f"{title}\n{settings_text(first)}, 95 % intervals"
    return write_analysis(context.out, stem, lambda: drawn(panels, first, about), rows, facts)


@contextmanager
def drawn(panels: Sequence[Panel], first: FinishedRun, title: str) -> Iterator[Figure]:
    """A panel per setting; lines with intervals, the paper's numbers as open marks on dotted lines."""
    score = first.result.score
    scale, sign = (100.0, " [%]") if score.unit == "fraction" else (1.0, "")
    unit = ", normalised" if score.unit == "normalised" else sign
    arrow = "higher is better" if score.higher_is_better else "lower is better"
    entries = max(len(panel.lines) for panel in panels) + 1
    longest = max(len(line.label) for panel in panels for line in panel.lines)
    beside = len(panels) == 1 and longest < 40
    width = 3.4 * len(panels) + (1.0 + 0.075 * longest if beside else 0.8)
    height = max(3.0, 0.6 + 0.2 * entries) if beside else 3.1 + 0.17 * entries
    with new_figure(width, height) as figure:
        columns = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        paper = False
        for axes, panel in zip(columns, panels, strict=True):
            places = sorted({point.at for line in panel.lines for point in line.points})
            for number, line in enumerate(panel.lines):
                paper |= draw_line(axes, line, number, places, len(panel.lines), scale)
            axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
            axes.set_xlabel(panel.setting)
            axes.set_xlim(-0.4, len(places) - 0.6)
            axes.grid(color=GRID, linewidth=0.5)
            axes.set_axisbelow(True)
            marks, names = axes.get_legend_handles_labels()
            if not beside:
                axes.legend(
                    marks, [name.replace(", ", "\n") for name in names], fontsize=6.5, frameon=False,
                    loc="upper center", bbox_to_anchor=(0.5, -0.2), title="others fixed at", title_fontsize=7,
                )  # fmt: skip
        columns[0].set_ylabel(f"{metric_name(first.result.primary)}{unit}, {arrow}")
        if beside:
            if paper:
                columns[0].plot([], [], color=MUTED, marker="o", linestyle=":", markerfacecolor="white", label="paper")
            columns[0].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
        elif paper:
            title += "; open marks: paper"
        figure.suptitle(title, fontsize=9.5)
        yield figure


def draw_line(axes: Any, line: Line, number: int, places: Sequence[float], count: int, scale: float) -> bool:
    """One line at its places along the axis, moved a little aside from the others; returns whether the paper has it."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
    aside = 0.0 if count == 1 else 0.24 * (number / (count - 1) - 0.5)
    at = np.array([places.index(point.at) for point in line.points]) + aside
    values = np.array([point.score.value for point in line.points]) * scale
    reach = np.array(
        [
            (point.score.value - point.score.low, point.score.high - point.score.value)
            if point.score.low is not None and point.score.high is not None
            else (0.0, 0.0)
            for point in line.points
        ]
    )
    bars = np.maximum(reach, 0).T * scale
    axes.errorbar(
        at, values, yerr=bars, color=colour, marker=marker, markersize=4.5, linewidth=1.3, elinewidth=0.9, capsize=2,
        label=line.label,
    )  # fmt: skip
    known = [(place, point.published * scale) for place, point in zip(at, line.points, strict=True)
             if point.published is not None]  # fmt: skip
    if known:
        axes.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=5, linestyle=":", linewidth=1,
                  markerfacecolor="white")  # fmt: skip
    return bool(known)
