"""Ablations over finished runs: the score by stride of the data set, and by the settings of ablated models.

Where the paper has a number for the same model and data set, it stands beside ours as an open mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lary.data.spec import DATASETS
from lary.files import read_json
from lary.latents.ref import LatentsRef
from lary.models.spec import MODELS
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
from lary.results.analyses.lines import Line, Panel, Point, drawn
from lary.results.diagnostics import diagnosis_file
from lary.results.tables import dataset_title, published_score, read_reference
from lary.types import UsageError

PUBLISHED_ABLATION = "lam_ablation"
COLUMNS = {"codebook size": "codebook_size", "sequence length": "sequence_length", "latent dimension": "latent_dim"}
"""Names of the settings in the table of the paper's ablations."""


def stride(context: Context) -> Analysis:
    """The score of each model by stride, a figure per series of data sets.

    Raises:
        NotPossible: no model has runs at two strides of a series.
    """
    placed = [run for run in context.runs if run.result.dataset.stride is not None]
    files: list[Path] = []
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
    files: list[Path] = []
    left_out = []
    for (dataset, *_), group in grouped(runs, lambda run: (run.result.dataset.name, *run.settings)).items():
        panels = [
            Panel(name, lines)
            for name in dict.fromkeys(name for own in settings.values() for name in own)
            if (lines := ablation_lines(name, group, settings, context))
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
    name: str, runs: Sequence[FinishedRun], settings: Mapping[str, Mapping[str, float]], context: Context
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
                Point(
                    settings[run.result.model.name][name], run, published_ablation(run, settings),
                    codes_used(run, context),
                )
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


def write(context: Context, stem: str, panels: Sequence[Panel], title: str) -> list[Path]:
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
                        "codes_used": point.codes_used,
                    }
                )  # fmt: skip
    facts = {
        "analysis": stem.split("_", 1)[0], "protocol": first.result.protocol, "preset": first.result.preset,
        "metric": first.result.primary, "higher_is_better": first.result.score.higher_is_better,
    }  # fmt: skip
    about = f"{title}\n{settings_text(first)}, 95 % intervals"
    return write_analysis(context.out, stem, lambda: drawn(panels, first, about), rows, facts)
