"""Ablations over finished runs: the score by stride of the data set, and by the settings of ablated models.

Where the paper has a number for the same model and data set, it is beside ours as an open
mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lary.data.spec import DATASETS
from lary.models.spec import MODELS
from lary.results.figures import BLUE, LIGHT, Context, Files, Found, finish, grouped, panels, slug
from lary.results.folder import FinishedRun
from lary.results.report import dataset_title, metric_name, published_score, read_reference

PUBLISHED_ABLATION = "lam_ablation"
COLUMNS = {
    "codebook size": "codebook_size",
    "sequence length": "sequence_length",
    "latent dimension": "latent_dim",
}
"""Names of the settings in the table of the paper's ablations."""
NUMBERS = ("score", "low", "high", "published")


def _row(run: FinishedRun, setting: str, line: str, value: float, published: float | None) -> dict[str, Any]:
    """A run at one value of a setting; runs of one `line` differ in it alone."""
    result = run.result
    return {
        "setting": setting,
        "value": value,
        "line": line,
        "model": result.model.name,
        "label": result.label,
        "dataset": result.dataset.name,
        "metric": result.primary,
        "score": result.score.value,
        "low": result.score.low,
        "high": result.score.high,
        "published": published,
    }


def stride_ablation(context: Context) -> Found:
    """The score of each model by stride, a figure per series of data sets."""
    found: dict[tuple[str, ...], list[FinishedRun]] = {}
    strided = [run for run in context.runs if run.result.dataset.stride]
    for (dataset, *settings), runs in grouped(strided).items():
        # The plug-in that made a data set may be absent.
        known = dataset in DATASETS.names()
        series = (DATASETS.get(dataset).stride_series if known else "") or dataset
        found.setdefault((series, *settings), []).extend(runs)
    files: Files = []
    for (series, *_), runs in found.items():
        rows = []
        for run in runs:
            paper = published_score(run.result)
            value = float(run.result.dataset.stride or 0)
            rows.append(_row(run, "stride [frames]", run.result.label, value, paper.value if paper else None))
        files += _write(context, f"stride_{slug(series)}", rows, runs[0], f"{series}: score by stride")
    yield from files or [
        "no model has finished runs at two strides: run 'lary regress' on data sets whose records share a "
        "stride_series, such as vlabench, vlabench_15 and vlabench_30"
    ]


def codebook_ablation(context: Context) -> Found:
    """The score of ablated models by each of their settings, a figure per data set."""
    runs = [run for run in context.runs if _ablation_of(run) and run.result.label == run.result.model.name]
    if not runs:
        yield "there is no finished run of an ablated model, such as dinov3-cs64_sl49_dim256_lr1e-4: see 'lary models'"
    for (dataset, *_), group in grouped(runs).items():
        rows = []
        for run in group:
            own = _ablation_of(run)
            for name, value in own.items():
                fixed = (f"{other} {number:g}" for other, number in own.items() if other != name)
                rows.append(_row(run, name, ", ".join(fixed), value, _published(run, own)))
        title = f"{dataset_title(group[0].result)}: ablated models"
        written = _write(context, f"codebook_{slug(dataset)}", rows, group[0], title)
        yield from written or [f"no two runs on {dataset} differ in one setting alone"]


def _ablation_of(run: FinishedRun) -> Mapping[str, float]:
    """What an ablation varies in the record of a run's model; empty for other models."""
    name = run.result.model.name  # the plug-in that made a model may be absent
    return MODELS.get(name).ablation if name in MODELS.names() else {}


def _published(run: FinishedRun, settings: Mapping[str, float]) -> float | None:
    """The paper's number for an ablated model on this data set, on the scale of our score."""
    result = run.result
    column = f"{result.dataset.name}_{'accuracy' if result.score.unit == 'fraction' else 'mse'}"
    for row in read_reference(PUBLISHED_ABLATION) if result.action_mode != "relative" else ():
        if column in row and all(float(row[key]) == settings.get(name) for name, key in COLUMNS.items()):
            return float(row[column]) / result.score.scale
    return None


def _write(context: Context, stem: str, rows: Sequence[dict[str, Any]], run: FinishedRun, title: str) -> Files:
    """Write a panel per line of runs that differ in one setting, the others in grey; nothing without any.

    `run` is one of those in the rows, which all have its settings.
    """
    from pandas import DataFrame, concat

    # Objects, since whole numbers among the settings stay whole.
    table = DataFrame(rows, dtype=object).astype(dict.fromkeys(NUMBERS, float))
    lines = [
        (setting, line, own)
        for setting, part in table.groupby("setting", sort=False)
        for line, own in part.sort_values("value", kind="stable").groupby("line", sort=False)
        if own["value"].nunique() > 1
    ]
    if not lines:
        return []
    table = concat([own for *_, own in lines])
    score, scale = run.result.score, run.result.score.scale
    unit = {"fraction": " [%]", "normalised": ", normalised"}.get(score.unit, "")
    titles = [str(line).replace(", ", "\n") for _, line, _ in lines]
    with panels(titles, up=f"{metric_name(run.result.primary)}{unit}") as (figure, grid):
        for axes, (setting, _, own) in zip(grid, lines, strict=True):
            values = np.unique(table["value"][table["setting"] == setting])
            for other, _, part in lines:
                if other == setting:
                    places = np.searchsorted(values, part["value"])
                    colour = BLUE if part is own else LIGHT
                    axes.plot(places, part["score"] * scale, "o-", markersize=4, color=colour)
            places = np.searchsorted(values, own["value"])
            axes.vlines(places, own["low"] * scale, own["high"] * scale, color=BLUE)
            axes.plot(places, own["published"] * scale, "o", color=BLUE, markerfacecolor="white")
            axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
            axes.set_xlabel(setting, fontsize=8)
        marks = "; open marks: paper" if table["published"].notna().any() else ""
        finish(figure, axes, f"{title}\n{run.about}, 95 % intervals; {score.better} is better{marks}")
        facts = {"metric": run.result.primary, "higher_is_better": score.higher_is_better}
        return context.write(f"{stem}{run.suffix}", figure, table, run, **facts)
