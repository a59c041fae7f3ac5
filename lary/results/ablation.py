"""Analyses of ablations beside the paper's numbers: strides, settings of models, trainings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from lary.data.spec import DATASETS
from lary.files import write_text
from lary.models.overview import paper_rows
from lary.models.spec import MODELS
from lary.results.figures import BLUE, LIGHT, Context, Files, Found, finish, grouped, panels, slug
from lary.results.folder import FinishedRun
from lary.results.report import dataset_title, metric_name, published_score
from lary.types import RANDOM, JsonDict

COLUMNS = {"codebook size": "codebook_size", "sequence length": "sequence_length", "latent dimension": "latent_dim"}
"""Names of the settings in the table of the paper's ablations."""
KEYS = dict(zip(COLUMNS, ("cs", "sl", "dim"), strict=True))
NUMBERS = ("score", "low", "high", "published")


def _row(run: FinishedRun, setting: str, line: str, value: float, published: float | None) -> JsonDict:
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
        **result.score.model_dump(include={"low", "high"}),
        "published": published,
    }


def stride_ablation(context: Context) -> Found:
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
        files += _write_ablation(context, f"stride_{slug(series)}", rows, runs[0], f"{series}: score by stride")
    yield from files or [
        "no model has finished runs at two strides: run 'lary regress' on data sets whose records share a "
        "stride_series, such as vlabench and vlabench_15"
    ]


def codebook_ablation(context: Context) -> Found:
    runs = [run for run in context.runs if _ablation_of(run) and run.result.label == run.result.model.name]
    if not runs:
        yield "there is no finished run of an ablated model, such as dinov3-cs64_sl49_dim256_lr1e-4: see 'lary models'"
    yield from _by_setting(context, runs, "codebook", "ablated models")


def training_ablation(context: Context) -> Found:
    found = [run for run in context.runs if _sizes_of(run) and run.result.model.revision != RANDOM]
    runs = [run for group in grouped(found).values() for run in group]
    if not runs:
        yield "there is no finished run of a trained model: 'lary sweep examples/ablation.yaml' trains and probes them"
    else:
        yield from _by_setting(context, runs, "ablation", "trained models")
        for setting in COLUMNS:
            yield from _write_tables(context, setting, runs)


def _by_setting(context: Context, runs: Sequence[FinishedRun], stem: str, what: str) -> Found:
    for (dataset, *_), group in grouped(runs).items():
        rows = []
        for run in group:
            own = _sizes_of(run) or _ablation_of(run)
            rows += [_row(run, name, _others(run, name), own[name], _published(run, own)) for name in own]
        first = group[0]
        title = f"{dataset_title(first.result)}: {what}"
        written = _write_ablation(context, f"{stem}_{slug(dataset)}", rows, first, title)
        yield from written or [f"no two runs on {dataset} differ in one setting alone"]


def _ablation_of(run: FinishedRun) -> Mapping[str, float]:
    """What an ablation varies in a model's record; else empty."""
    name = run.result.model.name  # the plug-in that made a model may be absent
    return MODELS.get(name).ablation if name in MODELS.names() else {}


def _sizes_of(run: FinishedRun) -> Mapping[str, float]:
    """What the paper varies, of a trained model with a whole record."""
    training = run.result.model.training
    fields = ("codebook_size", "code_seq_len", "quant_dim")
    try:
        float(training["signals"]["loss_noise"] + training["signals"]["used_share"])
        return {name: training["sizes"][field] + 0 for name, field in zip(COLUMNS, fields, strict=True)}
    except (LookupError, TypeError):
        return {}


def _others(run: FinishedRun, setting: str) -> str:
    """The other settings of a run."""
    if _sizes_of(run):
        return re.sub(rf"(?<=[-_]){KEYS[setting]}\d+", f"{KEYS[setting]}*", run.result.label).replace("_", ", ")
    return ", ".join(f"{name} {value:g}" for name, value in _ablation_of(run).items() if name != setting)


def _published(run: FinishedRun, settings: Mapping[str, float]) -> float | None:
    """The paper's number for an ablated model, on our scale."""
    column = _column(run)
    for row in paper_rows("lam_ablation") if run.result.action_mode != "relative" else ():
        if column in row and all(float(row[key]) == settings.get(name) for name, key in COLUMNS.items()):
            return float(row[column]) / run.result.score.scale
    return None


def _write_ablation(context: Context, stem: str, rows: Sequence[JsonDict], run: FinishedRun, title: str) -> Files:
    """Write a panel per line of runs that differ in one setting, others in grey; all have the settings of `run`."""
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
    score = run.result.score
    scale = score.scale
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


def _write_tables(context: Context, setting: str, runs: Sequence[FinishedRun]) -> Found:
    """The table of a setting in the paper's columns, as CSV, Markdown and LaTeX."""
    from pandas import DataFrame

    ours: dict[tuple[str, float], JsonDict] = {}
    for run in runs:
        sizes = _sizes_of(run)
        signals = run.result.model.training["signals"]
        score = run.result.score
        others = _others(run, setting)
        row = ours.setdefault((others, sizes[setting]), {"source": others})
        row |= {COLUMNS[name]: value for name, value in sizes.items()}
        row["reconstruction_loss"] = signals["loss_noise"]
        row["codebook_utilization_percent"] = 100 * signals["used_share"]
        row[_column(run) + run.suffix] = score.value * score.scale
    lines = [others for others, _ in ours]
    kept = [row for (others, _), row in ours.items() if lines.count(others) > 1]
    if not kept:
        yield f"no two trainings differ in {setting} alone"
        return
    paper = [{"source": "paper", **row} for row in paper_rows("lam_ablation") if row["ablation"] == setting]
    table = DataFrame([*kept, *paper]).drop(columns="ablation").set_index("source").astype(float)
    table = table.sort_values(COLUMNS[setting], kind="stable").reset_index()
    cells = table.map(lambda cell: cell if isinstance(cell, str) else f"{cell:.4g}").replace("nan", "-")
    head = list(cells.columns)
    rows = cells.to_numpy().tolist()
    texts = {"csv": table.to_csv(index=False), "tex": cells.to_latex(index=False, escape=True)}
    texts["md"] = "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))
    for kind, text in texts.items():
        file = context.out / f"ablation_{slug(setting)}.{kind}"
        write_text(file, text)
        yield file


def _column(run: FinishedRun) -> str:
    return f"{run.result.dataset.name}_{'accuracy' if run.result.score.unit == 'fraction' else 'mse'}"
