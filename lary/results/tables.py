"""What runs are compared with what, and the tables beside the leaderboards: at a glance, by class, published ones."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lary.results import markup
from lary.results.markup import Cell, Column, Direction, Row, text
from lary.results.record import EvalResult, Metric

REFERENCE = Path(__file__).parent / "reference"
BASELINE = "baseline"


@dataclass(frozen=True)
class Entry:
    """One result found: its file, where that lies in the report's folder, its name on the page, its record."""

    path: Path
    place: str
    anchor: str
    result: EvalResult


@dataclass(frozen=True)
class Published:
    """A table of the paper; its columns are keys of data sets, but for those that `columns` names by key."""

    file: str
    title: str
    about: str
    higher_is_better: bool | None
    columns: Mapping[str, str] = field(default_factory=dict)


PUBLISHED = (
    Published("leaderboard_classification", "Action classification", "Top-1 accuracy in per cent.", True),
    Published("leaderboard_regression", "Action regression", "Mean squared error, normalised; lower is better.", False),
    Published(
        "leaderboard_vlabench_stride",
        "Regression by stride",
        "VLABench, mean squared error; lower is better.",
        False,
        {"vlabench_15": "stride_15", "vlabench_30": "stride_30"},
    ),
    Published("lam_ablation", "Ablation of a latent action model", "Accuracies in per cent, errors normalised.", None),
)


def read_reference(name: str) -> list[dict[str, str]]:
    """Rows of a table that ships with the package."""
    with (REFERENCE / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def published_score(result: EvalResult) -> Metric | None:
    """The paper's number for the same model, data set and kind of probe, where it has one."""
    if result.action_mode == "relative" or result.dataset.split_set or result.label != result.model.name:
        return None
    for source in PUBLISHED:
        if source.higher_is_better is not result.score.higher_is_better:
            continue
        column = source.columns.get(result.dataset.name, result.dataset.name)
        for row in read_reference(source.file):
            if row["model"] == result.model.name and column in row:
                value = float(row[column])
                unit = result.score.unit
                return Metric(value=value / 100 if unit == "fraction" else value, unit=unit)
    return None


def series(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Runs that may be ranked together, by the name of their comparison: same data set, splits, task, target."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        mode = " (relative actions)" if entry.result.action_mode == "relative" else ""
        mode = " (local relative actions)" if entry.result.relative_frame == "local" else mode
        if entry.result.dataset.split_set:
            mode = f" (splits {entry.result.dataset.split_set}){mode}"
        found.setdefault(f"{dataset_title(entry.result)}{mode}", []).append(entry)
    return {name: sorted(group, key=rank) for name, group in sorted(found.items())}


def dataset_title(result: EvalResult) -> str:
    """Name of the paper and key of a data set, once where they agree."""
    data = result.dataset
    return data.name if data.title in ("", data.name) else f"{data.title} ({data.name})"


def order(metric: Metric) -> float:
    """A number that is smaller for a better value."""
    return -metric.value if metric.higher_is_better else metric.value


def rank(entry: Entry) -> tuple[float, str]:
    """Sorts runs from the best to the worst."""
    return (order(entry.result.score), entry.result.label)


def settings_of(result: EvalResult) -> str:
    """Protocol, preset and seeds in short."""
    several = f"seeds {', '.join(map(str, result.seeds))}" if len(result.seeds) > 1 else f"seed {result.seed}"
    return f"{result.protocol}, {result.preset}, {several}"


def model_badge(result: EvalResult) -> str:
    """The kind of a model as a label, or that the run is a control."""
    if result.is_control:
        return markup.badge("control", "control")
    return markup.badge(result.model.paradigm, BASELINE if result.model.paradigm == BASELINE else "model")


Setting = tuple[str, str, str]


def overview(comparisons: Mapping[str, Sequence[Entry]]) -> str:
    """One row per model, protocol and preset, one column per comparison; several runs of one are averaged."""
    found: dict[Setting, dict[str, list[EvalResult]]] = {}
    places: dict[Setting, list[float]] = {}
    for name, group in comparisons.items():
        for place, entry in enumerate(group):
            result = entry.result
            if result.is_control:
                continue
            key = (result.label, result.protocol, result.preset)
            found.setdefault(key, {}).setdefault(name, []).append(result)
            places.setdefault(key, []).append(place / len(group))
    columns = [Column("Model", numeric=False, first="asc")]
    for name, group in comparisons.items():
        score = group[0].result.score
        metric = f"{markup.metric_name(group[0].result.primary)}{markup.unit_sign(score)}"
        arrow, first = ("↑", "desc") if score.higher_is_better else ("↓", "asc")
        columns.append(Column(f"{name}: {metric} {arrow}", first="asc" if first == "asc" else "desc"))
    several = len({key[1:] for key in found}) > 1
    best_first = sorted(found, key=lambda key: (sum(places[key]) / len(places[key]), key))
    rows = [_overview_row(key, found[key], list(comparisons), several) for key in best_first]
    caption = "Headline metric of every model on every data set. ↑ higher is better, ↓ lower is better."
    return markup.table("overview", caption, columns, rows)


def _overview_row(key: Setting, found: Mapping[str, list[EvalResult]], names: Sequence[str], several: bool) -> Row:
    extra = f'<small class="ci">{text(key[1])}, {text(key[2])}</small>' if several else ""
    cells = [Cell(f"{text(key[0])}{model_badge(next(iter(found.values()))[0])}{extra}", key[0])]
    for name in names:
        results = found.get(name, [])
        if not results:
            cells.append(Cell(markup.MISSING))
            continue
        mean = sum(result.score.value for result in results) / len(results)
        seeds = f'<small class="ci">mean of {len(results)} runs</small>' if len(results) > 1 else ""
        cells.append(Cell(f'<span class="value">{markup.number(mean, results[0].score.unit)}</span>{seeds}', mean))
    return Row(tuple(cells))


def heat_table(name: str, group: Sequence[Entry]) -> str:
    """Recall by class, or error by dimension, of every run of a comparison; the deeper the colour the better."""
    first = group[0].result
    values: list[dict[str, float]] = []
    for entry in group:
        result = entry.result
        recall = {row.name: row.recall.value for row in result.classes if row.recall}
        values.append(recall or {f"{row.name} ({row.split})": row.mse.value for row in result.dimensions})
    names = list(dict.fromkeys(key for found in values for key in found))
    classification = first.score.unit == "fraction"
    kind = "Class" if classification else "Dimension (split)"
    about = "Recall in per cent by class." if classification else "Mean squared error; the mean action has about 1."
    direction: Direction = "desc" if classification else "asc"
    columns = [
        Column(kind, numeric=False, first="asc"),
        *(Column(_short(entry, group), first=direction) for entry in group),
    ]
    rows = []
    for row in names:
        cells = [markup.text_cell(row)]
        for found in values:
            value = found.get(row)
            if value is None:
                cells.append(Cell(markup.MISSING))
                continue
            shade = min(max(value if classification else 1 - value, 0.0), 1.0)
            cells.append(Cell(markup.number(value, first.score.unit), value, shade))
        rows.append(Row(tuple(cells)))
    caption = f"{about} The deeper the colour the better; columns from the best run to the worst."
    return markup.table(name, caption, columns, rows, "tall heat")


def _short(entry: Entry, group: Sequence[Entry]) -> str:
    result = entry.result
    alone = sum(other.result.label == result.label for other in group) == 1
    return result.label if alone else f"{result.label}, {settings_of(result)}"


def published_table(source: Published) -> str:
    """One table of the paper, marked as such."""
    rows = read_reference(source.file)
    names = list(rows[0])
    columns = []
    for name in names:
        numeric = _is_number(rows[0][name])
        size = name == "params_m"
        columns.append(
            Column(_label(name), numeric, "asc" if not numeric or size or source.higher_is_better is False else "desc")
        )
    table = [
        Row(
            tuple(Cell(text(row[name]), float(row[name]) if _is_number(row[name]) else row[name]) for name in names),
            "published",
        )
        for row in rows
    ]
    caption = f"<strong>{text(source.title)}</strong> (published). {text(source.about)}"
    return markup.table(f"published-{source.file}", caption, columns, table)


def _label(name: str) -> str:
    fixed = {"params_m": "parameters, M", "codebook_utilization_percent": "codebook used, %"}
    return fixed.get(name, re.sub("_(?!1st)", " ", name))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
