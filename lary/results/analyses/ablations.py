"""Ablations over finished runs: the score by stride of the data set, and by the settings of ablated models.

Where the paper has a number for the same model and data set, it is beside ours as an open mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.data.spec import DATASETS
from lary.files import read_json
from lary.latents.ref import LatentsRef
from lary.models.spec import MODELS
from lary.results.analyses.base import Analysis, Context, FinishedRun, NotPossible, grouped, made, slug
from lary.results.diagnostics import diagnosis_file
from lary.results.figures import BLUE, LIGHT, MUTED, new_figure, panel_grid
from lary.results.record import Metric
from lary.results.report import dataset_title, metric_name, published_score, read_reference
from lary.types import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED_ABLATION = "lam_ablation"
COLUMNS = {"codebook size": "codebook_size", "sequence length": "sequence_length", "latent dimension": "latent_dim"}
"""Names of the settings in the table of the paper's ablations."""
MOST_COLUMNS = 4


@dataclass(frozen=True)
class Point:
    """A run at one value of a setting, the paper's number on the scale of its score, the share of its codes in use."""

    at: float
    run: FinishedRun
    published: float | None
    codes_used: float | None = None

    @property
    def score(self) -> Metric:
        """The score of the run."""
        return self.run.result.score


@dataclass(frozen=True)
class Line:
    """Runs that differ in one setting alone, by rising value of it."""

    setting: str
    label: str
    points: tuple[Point, ...]


def setting_line(setting: str, label: str, points: Sequence[Point]) -> list[Line]:
    """The line through some points; none where they are all at one value."""
    rising = tuple(sorted(points, key=lambda point: point.at))
    return [Line(setting, label, rising)] if len({point.at for point in rising}) > 1 else []


def stride_ablation(context: Context) -> Analysis:
    """The score of each model by stride, a figure per series of data sets.

    Raises:
        NotPossible: no model has runs at two strides of a series.
    """
    files: list[Path] = []
    for (series, *_), runs in by_series(context.runs).items():
        lines = []
        for label in dict.fromkeys(run.result.label for run in runs):
            points = []
            for run in (run for run in runs if run.result.label == label):
                paper = published_score(run.result)
                points.append(Point(float(run.result.dataset.stride or 0), run, paper.value if paper else None))
            lines += setting_line("stride [frames]", label, points)
        if lines:
            files += write(context, f"stride_{slug(series)}", lines, f"{series}: score by stride")
    if not files:
        raise NotPossible(
            "no model has finished runs at two strides: run 'lary regress' on data sets whose records share a "
            "stride_series, such as vlabench, vlabench_15 and vlabench_30"
        )
    return Analysis(tuple(files))


def by_series(runs: Sequence[FinishedRun]) -> dict[tuple[str, ...], list[FinishedRun]]:
    """Runs with a stride by series of data sets and settings; per model and stride the latest."""

    def series_of(name: str) -> str:
        known = name in DATASETS.names()  # the plug-in that made a data set may be absent
        return (DATASETS.get(name).stride_series if known else "") or name

    placed = [run for run in runs if run.result.dataset.stride is not None]
    found: dict[tuple[str, ...], list[FinishedRun]] = {}
    each = grouped(placed, lambda run: (series_of(run.result.dataset.name), *run.settings, run.result.dataset.stride))
    for key, group in each.items():
        found.setdefault(key[:-1], []).extend(group)
    return found


def codebook_ablation(context: Context) -> Analysis:
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
    files: list[Path] = []
    left_out = []
    names = list(dict.fromkeys(name for own in settings.values() for name in own))
    for (dataset, *_), group in grouped(runs, lambda run: (run.result.dataset.name, *run.settings)).items():
        lines = [line for name in names for line in ablation_lines(name, group, settings, context)]
        if lines:
            title = f"{dataset_title(group[0].result)}: ablated models"
            files += write(context, f"codebook_{slug(dataset)}", lines, title)
        else:
            left_out.append(f"no two runs on {dataset} differ in one setting alone")
    return made(files, left_out)


def ablation_of(run: FinishedRun) -> Mapping[str, float]:
    """What an ablation varies in the record of a run's model; empty for other models and unknown ones."""
    try:
        return MODELS.get(run.result.model.name).ablation
    except UsageError:  # the plug-in that made a model may be absent
        return {}


def ablation_lines(
    name: str, runs: Sequence[FinishedRun], settings: Mapping[str, Mapping[str, float]], context: Context
) -> list[Line]:
    """Runs that differ in the setting `name` alone; the label of a line names the other settings."""
    found: dict[str, list[Point]] = {}
    for run in runs:
        own = settings[run.result.model.name]
        if name in own and run.result.label == run.result.model.name:
            others = ", ".join(f"{other} {value:g}" for other, value in own.items() if other != name)
            point = Point(own[name], run, published_ablation(run, own), codes_used(run, context))
            found.setdefault(others, []).append(point)
    return [line for others, points in found.items() for line in setting_line(name, others, points)]


def published_ablation(run: FinishedRun, settings: Mapping[str, float]) -> float | None:
    """The paper's number for an ablated model on this data set, on the scale of our score."""
    result = run.result
    column = f"{result.dataset.name}_{'accuracy' if result.score.unit == 'fraction' else 'mse'}"
    for row in read_reference(PUBLISHED_ABLATION) if result.action_mode != "relative" else ():
        if column in row and all(float(row[key]) == settings.get(name) for name, key in COLUMNS.items()):
            return float(row[column]) / result.score.scale
    return None


def codes_used(run: FinishedRun, context: Context) -> float | None:
    """Share of the codebook in use, 0 to 1, from what 'lary diagnose' wrote of the latents; None where it didn't."""
    result = run.result
    given = {name: result.options_given.get(name) for name in ("latent", "weights")}
    try:
        ref = LatentsRef(
            model=result.model.name, dataset=result.dataset.name, protocol=result.protocol,
            split=DATASETS.get(result.dataset.name).validation, **given,
        )  # fmt: skip
        file = diagnosis_file(context.settings, ref)
        codes = read_json(file, "diagnosis")["codes"] if file.is_file() else None
    except UsageError:  # the plug-in that made a data set may be absent
        return None
    return codes["used"] / codes["size"] if codes and codes["size"] else None


def write(context: Context, stem: str, lines: Sequence[Line], title: str) -> list[Path]:
    """The figure and the data of some lines."""
    first = lines[0].points[0].run
    rows = []
    for line in lines:
        for point in line.points:
            result, score = point.run.result, point.score
            rows.append(
                {
                    "setting": line.setting, "value": point.at, "line": line.label, "model": result.model.name,
                    "label": result.label, "dataset": result.dataset.name, "metric": result.primary,
                    "score": score.value, "low": score.low, "high": score.high, "published": point.published,
                    "codes_used": point.codes_used,
                }
            )  # fmt: skip
    facts = {
        "analysis": stem.split("_", 1)[0], "protocol": first.result.protocol, "preset": first.result.preset,
        "metric": first.result.primary, "higher_is_better": first.result.score.higher_is_better,
    }  # fmt: skip
    about = f"{title}\n{first.about}, 95 % intervals"
    return context.write(f"{stem}{first.suffix}", line_figure(lines, first, about), rows, facts)


@contextmanager
def line_figure(lines: Sequence[Line], first: FinishedRun, title: str) -> Iterator[Figure]:
    """A panel per line, with the other lines over the same setting in grey; numbers of the paper are open marks."""
    score = first.result.score
    unit = {"fraction": " [%]", "normalised": ", normalised"}.get(score.unit, "")
    title += f"; {'higher' if score.higher_is_better else 'lower'} is better"
    if any(point.published is not None for line in lines for point in line.points):
        title += "; open marks: paper"
    columns = min(len(lines), MOST_COLUMNS)
    height = 1.1 + 2.3 * -(-len(lines) // columns)
    with new_figure(max(2.6 * columns, 5.2), height) as figure:
        grid = panel_grid(
            figure,
            [line.label.replace(", ", "\n") for line in lines],
            columns,
            up=f"{metric_name(first.result.primary)}{unit}",
        )
        places = {line.setting: list[float]() for line in lines}
        for line in lines:
            own = places[line.setting]
            own[:] = sorted({*own, *(point.at for point in line.points)})
        for axes, line in zip(grid, lines, strict=True):
            own = places[line.setting]
            for other in lines:
                if other is not line and other.setting == line.setting:
                    values = [point.score.value * score.scale for point in other.points]
                    axes.plot([own.index(point.at) for point in other.points], values, color=LIGHT, linewidth=0.9)
            draw_line(axes, line, own, score.scale)
        figure.suptitle(title, fontsize=9.5, wrap=True)
        yield figure


def draw_line(axes: Any, line: Line, places: Sequence[float], scale: float) -> None:
    """One line with its intervals, what the paper has of it, and the share of codes in use where it is known."""
    at = [places.index(point.at) for point in line.points]
    values = np.array([point.score.value for point in line.points]) * scale
    ends = [[point.score.value if end is None else end for end in (point.score.low, point.score.high)]
            for point in line.points]  # fmt: skip
    reach = np.abs(np.array(ends).T * scale - values)
    axes.errorbar(at, values, yerr=reach, color=BLUE, marker="o", markersize=4.5, linewidth=1.3, capsize=2)
    paper = [(place, point.published * scale) for place, point in zip(at, line.points, strict=True) if point.published]
    if paper:
        axes.plot(
            *zip(*paper, strict=True), color=BLUE, marker="o", linestyle=":", linewidth=1, markerfacecolor="white"
        )
    for place, value, point in zip(at, values, line.points, strict=True):
        if point.codes_used is not None:
            axes.annotate(
                f"{100 * point.codes_used:.0f} % of codes", (place, value), xytext=(0, -22), ha="center",
                textcoords="offset points", fontsize=6, color=MUTED,
            )  # fmt: skip
    axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    axes.set_xlabel(line.setting, fontsize=8)
    axes.set_xlim(-0.4, len(places) - 0.6)
