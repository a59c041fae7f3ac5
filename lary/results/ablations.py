"""Ablations over finished runs: the score by stride of the data set, and by the settings of ablated models.

Where the paper has a number for the same model and data set, it is beside ours as an open
mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lary.data.spec import DATASETS
from lary.models.spec import MODELS
from lary.results.figures import BLUE, LIGHT, Analysis, Context, NotPossible, finish, grouped, made, panels, slug
from lary.results.folder import FinishedRun
from lary.results.record import Metric
from lary.results.report import dataset_title, metric_name, published_score, read_reference
from lary.types import UsageError

PUBLISHED_ABLATION = "lam_ablation"
COLUMNS = {"codebook size": "codebook_size", "sequence length": "sequence_length", "latent dimension": "latent_dim"}
"""Names of the settings in the table of the paper's ablations."""


@dataclass(frozen=True)
class Point:
    """A run at one value of a setting, and the paper's number on the scale of its score."""

    value: float
    run: FinishedRun
    published: float | None

    @property
    def score(self) -> Metric:
        """The score of the run."""
        return self.run.result.score


@dataclass(frozen=True)
class Line:
    """Runs that differ in one setting alone, by rising value of it."""

    setting: str
    label: str
    points: Sequence[Point]


def _lines(setting: str, points: Mapping[str, Sequence[Point]]) -> list[Line]:
    """The lines through points by label, but for those at one value alone."""
    found = []
    for label, own in points.items():
        if len({point.value for point in own}) > 1:
            found.append(Line(setting, label, sorted(own, key=lambda point: point.value)))
    return found


def stride_ablation(context: Context) -> Analysis:
    """The score of each model by stride, a figure per series of data sets.

    Raises:
        NotPossible: no model has runs at two strides of a series.
    """

    def place(run: FinishedRun) -> tuple[object, ...]:
        data = run.result.dataset
        known = data.name in DATASETS.names()  # the plug-in that made a data set may be absent
        series = (DATASETS.get(data.name).stride_series if known else "") or data.name
        return (series, *run.settings, data.stride)

    found: dict[tuple[object, ...], dict[str, list[Point]]] = {}
    for key, group in grouped([run for run in context.runs if run.result.dataset.stride], place).items():
        for run in group:
            paper = published_score(run.result)
            point = Point(float(run.result.dataset.stride or 0), run, paper.value if paper else None)
            found.setdefault(key[:-1], {}).setdefault(run.result.label, []).append(point)
    files: list[Path] = []
    for (series, *_), points in found.items():
        if lines := _lines("stride [frames]", points):
            files += _write(context, f"stride_{slug(str(series))}", lines, f"{series}: score by stride")
    if not files:
        raise NotPossible(
            "no model has finished runs at two strides: run 'lary regress' on data sets whose records share a "
            "stride_series, such as vlabench, vlabench_15 and vlabench_30"
        )
    return Analysis(tuple(files))


def codebook_ablation(context: Context) -> Analysis:
    """The score of ablated models by each of their settings, a figure per data set and settings.

    Raises:
        NotPossible: no runs of models whose records name an ablation, or none that differ
            in one setting alone.
    """
    runs = [run for run in context.runs if _ablation_of(run) and run.result.label == run.result.model.name]
    if not runs:
        raise NotPossible(
            "there is no finished run of an ablated model, such as dinov3-cs64_sl49_dim256_lr1e-4: see 'lary models'"
        )
    files: list[Path] = []
    left_out = []
    names = dict.fromkeys(name for run in runs for name in _ablation_of(run))
    for (dataset, *_), group in grouped(runs, lambda run: (run.result.dataset.name, *run.settings)).items():
        lines = []
        for name in names:
            points: dict[str, list[Point]] = {}
            for run in group:
                own = _ablation_of(run)
                if name in own:
                    others = ", ".join(f"{other} {value:g}" for other, value in own.items() if other != name)
                    points.setdefault(others, []).append(Point(own[name], run, _published(run, own)))
            lines += _lines(name, points)
        if lines:
            title = f"{dataset_title(group[0].result)}: ablated models"
            files += _write(context, f"codebook_{slug(dataset)}", lines, title)
        else:
            left_out.append(f"no two runs on {dataset} differ in one setting alone")
    return made(files, left_out)


def _ablation_of(run: FinishedRun) -> Mapping[str, float]:
    """What an ablation varies in the record of a run's model; empty for other models and unknown ones."""
    try:
        return MODELS.get(run.result.model.name).ablation
    except UsageError:  # the plug-in that made a model may be absent
        return {}


def _published(run: FinishedRun, settings: Mapping[str, float]) -> float | None:
    """The paper's number for an ablated model on this data set, on the scale of our score."""
    result = run.result
    column = f"{result.dataset.name}_{'accuracy' if result.score.unit == 'fraction' else 'mse'}"
    for row in read_reference(PUBLISHED_ABLATION) if result.action_mode != "relative" else ():
        if column in row and all(float(row[key]) == settings.get(name) for name, key in COLUMNS.items()):
            return float(row[column]) / result.score.scale
    return None


def _write(context: Context, stem: str, lines: Sequence[Line], title: str) -> list[Path]:
    """Draw a panel per line, with the other lines over the same setting in grey, and write it with its data."""
    first = lines[0].points[0].run
    score, scale = first.result.score, first.result.score.scale
    rows = [
        {
            "setting": line.setting,
            "value": point.value,
            "line": line.label,
            "model": point.run.result.model.name,
            "label": point.run.result.label,
            "dataset": point.run.result.dataset.name,
            "metric": point.run.result.primary,
            "score": point.score.value,
            "low": point.score.low,
            "high": point.score.high,
            "published": point.published,
        }
        for line in lines
        for point in line.points
    ]
    unit = {"fraction": " [%]", "normalised": ", normalised"}.get(score.unit, "")
    titles = [line.label.replace(", ", "\n") for line in lines]
    with panels(titles, up=f"{metric_name(first.result.primary)}{unit}") as (figure, grid):
        for axes, line in zip(grid, lines, strict=True):
            values = sorted({p.value for other in lines if other.setting == line.setting for p in other.points})
            for other in lines:
                at = [values.index(point.value) for point in other.points if other.setting == line.setting]
                heights = [point.score.value * scale for point in other.points][: len(at)]
                if other is not line:
                    axes.plot(at, heights, color=LIGHT, linewidth=0.9)
                    continue
                for place, point in zip(at, line.points, strict=True):
                    if point.score.low is not None and point.score.high is not None:
                        axes.vlines(place, point.score.low * scale, point.score.high * scale, color=BLUE)
                    if point.published is not None:
                        axes.plot(place, point.published * scale, "o", color=BLUE, markerfacecolor="white")
                axes.plot(at, heights, "o-", color=BLUE, markersize=4.5, linewidth=1.3)
            axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
            axes.set_xlabel(line.setting, fontsize=8)
        better = "higher" if score.higher_is_better else "lower"
        marks = "; open marks: paper" if any(row["published"] is not None for row in rows) else ""
        finish(figure, axes, f"{title}\n{first.about}, 95 % intervals; {better} is better{marks}")
        facts = {"metric": first.result.primary, "higher_is_better": score.higher_is_better}
        return context.write(f"{stem}{first.suffix}", figure, rows, first, **facts)
