"""One run on the report's page: its outcome, its figures, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lary.files import inside
from lary.results import charts, markup
from lary.results.details import details, rmse_cell, verdict
from lary.results.markup import Cell, Column, Row, text
from lary.results.record import EvalResult, Example
from lary.results.tables import Entry, dataset_title, model_badge
from lary.types import UsageError

SELECTION_NAMES = {
    "held_out": "picked on held-out training data",
    "best_on_validation": "picked on validation itself",
}
QUANTILE_NAMES = {0.0: "The smallest error", 0.5: "The median error", 1.0: "The largest error"}
CONFUSIONS = 6


def run_card(entry: Entry, opened: bool = False) -> str:
    """One run as a part of the page that opens and closes."""
    result = entry.result
    name = markup.metric_name(result.primary)
    score = f'<span class="score">{text(name)} {markup.sentence_value(result.score)}</span>'
    title = f"<h3>{text(result.label)}{model_badge(result)}</h3>"
    data = f'<span class="set">{text(dataset_title(result))}</span>'
    body = "".join(
        (_story(result), _warnings(result), _selections(entry), details(entry), _outcome(entry), _making(entry))
    )
    state = " open" if opened else ""
    return (
        f'<details class="run card" id="{entry.anchor}"{state}><summary>{title}{data}{score}</summary>'
        f'<div class="inside">{body}</div></details>'
    )


def _story(result: EvalResult) -> str:
    """The outcome in sentences."""
    parts = [f"{markup.metric_name(result.primary)} is {markup.sentence_value(result.score)}."]
    for name, control in result.controls.items():
        if (value := control.metrics.get(result.primary)) is None:
            continue
        parts.append(f"The control <em>{text(name.replace('_', ' '))}</em> has {markup.sentence_value(value)};")
        reading = f", {verdict(control.gain)}" if verdict(control.gain) else ""
        parts.append(f"the difference is {markup.difference(control.gain)}{reading}.")
    return f"<p>{' '.join(parts)}</p><p class=note>{text(result.interval)}</p>"


def _warnings(result: EvalResult) -> str:
    lines = [*result.protocol_notes, *result.warnings]
    if result.status == "incomplete":
        lines.insert(0, "Samples of the split are missing from this evaluation.")
    if result.failures:
        lines.append(f"{result.failures} samples were left out because their media or latents could not be read.")
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f'<div class="warnings"><ul>{items}</ul></div>' if items else ""


def _selections(entry: Entry) -> str:
    result = entry.result
    names = list(dict.fromkeys(metric for chosen in result.selections.values() for metric in chosen.metrics))
    columns = [Column("Head and epoch", numeric=False, first="asc"), Column("Epoch"), Column("Head")]
    for name in names:
        metric = next(chosen.metrics[name] for chosen in result.selections.values() if name in chosen.metrics)
        columns.append(Column(f"{markup.metric_name(name)}{markup.unit_sign(metric)}"))
    rows = []
    for selection, chosen in result.selections.items():
        mark = markup.badge("reported", "model") if selection == result.headline else ""
        cells = [Cell(text(SELECTION_NAMES[selection]) + mark, selection), Cell(str(chosen.epoch), chosen.epoch)]
        cells.append(Cell(markup.MISSING) if chosen.head is None else Cell(str(chosen.head + 1), chosen.head))
        rows.append(Row((*cells, *(markup.metric_cell(chosen.metrics.get(name)) for name in names))))
    for name, control in result.controls.items():
        title = f"{text(name.replace('_', ' '))}{markup.badge('control', 'control')}"
        cells = [Cell(title, name), Cell(markup.MISSING), Cell(markup.MISSING)]
        rows.append(Row((*cells, *(markup.metric_cell(control.metrics.get(metric)) for metric in names)), "control"))
    return markup.table(f"{entry.anchor}-selections", "The same training, read in different ways.", columns, rows)


def _outcome(entry: Entry) -> str:
    return _classes(entry) if entry.result.classes else _dimensions(entry) + _trajectories(entry)


def _classes(entry: Entry) -> str:
    result = entry.result
    columns = [
        Column("Class", numeric=False, first="asc"),
        Column("Recall %", hint="Correct over true, with its 95 % interval"),
        Column("Precision %"),
        Column("F1 %"),
        Column("Samples", hint="In the validation split"),
        Column("Training"),
    ]
    shown = sorted(result.classes, key=lambda row: (-(row.recall.value if row.recall else -1), row.name))
    rows = [
        Row(
            (
                markup.text_cell(row.name),
                markup.metric_cell(row.recall, 1.0),
                markup.number_cell(row.precision, "fraction"),
                markup.number_cell(row.f1, "fraction"),
                Cell(str(row.true), row.true),
                Cell(str(row.train), row.train),
            )
        )
        for row in shown
    ]
    table = markup.table(f"{entry.anchor}-classes", "Every class, best recall first.", columns, rows, "tall")
    names = [row.name for row in result.classes]
    if len(result.confusion) != len(names) or any(len(row) != len(names) for row in result.confusion):
        return f"<h4>Classes</h4>{table}"
    label = f"Confusion matrix of {result.model.name} on {result.dataset.name}"
    chart = charts.confusion_chart(result.confusion, names, label)
    caption = '<p class="note">Columns are true, rows predicted classes; colour is the share of the true class.</p>'
    matrix = f"<h4>Confusion matrix</h4>{chart}{caption}{_confusions(result)}"
    return f'<div class="two wider"><div><h4>Classes</h4>{table}</div><div>{matrix}</div></div>'


def _confusions(result: EvalResult) -> str:
    """The most frequent mistakes in words."""
    names = [row.name for row in result.classes]
    pairs = [
        (count, names[true], names[predicted])
        for predicted, row in enumerate(result.confusion)
        for true, count in enumerate(row)
        if predicted != true and count
    ]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:CONFUSIONS]
    items = ", ".join(f"{text(true)} → {text(predicted)} ({count})" for count, true, predicted in worst)
    return f'<p class="note">Most frequent mistakes, true → predicted: {items}.</p>' if items else ""


def _dimensions(entry: Entry) -> str:
    result = entry.result
    limit = max([1.0, *(row.mse.high or row.mse.value for row in result.dimensions)])
    parts = [
        f"<div><h4>Dimensions, {text(split)} split</h4>{_dimension_table(entry, split, limit)}</div>"
        for split in dict.fromkeys(row.split for row in result.dimensions)
    ]
    return f'<div class="two">{"".join(parts)}</div>' if len(parts) > 1 else "".join(parts)


def _dimension_table(entry: Entry, split: str, limit: float) -> str:
    """Dimensions of one split, then their groups."""
    columns = [
        Column("Dimension", numeric=False, first="asc"),
        Column("MSE", first="asc", hint="Normalised, with its 95 % interval"),
        Column("R²"),
        Column("RMSE", first="asc", hint="In physical units"),
    ]
    rows = []
    for row in entry.result.dimensions:
        if row.split == split:
            cells = (markup.text_cell(row.name), markup.metric_cell(row.mse, limit), markup.number_cell(row.r2))
            rows.append(Row((*cells, rmse_cell(row.rmse**2, row.unit))))
    for group in entry.result.dimension_groups:
        if group.split == split:
            name = Cell(text(f"all of {group.name}"), f"~{group.name}")
            physical = group.physical_mse
            error = Cell(markup.MISSING) if physical is None else rmse_cell(physical.value, group.unit)
            values = (markup.metric_cell(group.mse, limit), markup.number_cell(group.r2), error)
            rows.append(Row((name, *values), "group"))
    caption = "Error of every dimension, and of the groups of dimensions."
    return markup.table(f"{entry.anchor}-{split}", caption, columns, rows)


def _trajectories(entry: Entry) -> str:
    result = entry.result
    dims = list(dict.fromkeys(row.name for row in result.dimensions))
    shown = "".join(_example(entry, example, dims) for example in result.examples)
    if not shown:
        return ""
    legend = '<p class="legend">true<b>predicted</b></p>'
    about = (
        '<p class="note">Samples are chosen by the rank of their error, not by hand. Each panel is one dimension over '
        "the steps of the chunk, in physical units.</p>"
    )
    return f"<h4>Predicted and true action chunks</h4>{about}{legend}{shown}"


def _example(entry: Entry, example: Example, dims: Sequence[str]) -> str:
    panels = charts.trajectory_chart(example, dims, entry.result.dataset.units)
    if not panels:
        return ""
    name = QUANTILE_NAMES.get(example.quantile, f"Better than {100 * (1 - example.quantile):.0f} % of the samples")
    frames = ""
    for part, file in zip(("source", "target"), example.pictures, strict=False):
        try:
            address = charts.picture(inside(entry.path.parent, file))
        except UsageError:
            address = None
        if address:
            image = f'<img src="{address}" alt="{part} frame" loading="lazy">'
            frames += f"<figure>{image}<figcaption>{part}</figcaption></figure>"
    title = f"<strong>{text(name)}</strong>: MSE {markup.number(example.mse)} · <code>{text(example.group)}</code>"
    return (
        f'<div class="example"><p>{title}</p><div class="frames">{frames}</div><div class="panels">{panels}</div></div>'
    )


def _making(entry: Entry) -> str:
    result = entry.result
    source, data, model = result.provenance, result.dataset, result.model
    versions = ", ".join(f"{name} {version}" for name, version in source.versions.items())
    machine = ", ".join(f"{name} {value}" for name, value in source.machine.items())
    commit = f"{source.commit}{' with local changes' if source.dirty else ''}" if source.commit else ""
    splits = "; ".join(
        f"{name} {size.rows} samples of {size.groups} episodes or videos" for name, size in data.splits.items()
    )
    times = ", ".join(f"{stage} {markup.seconds(value)}" for stage, value in result.timings.items())
    tables = ", ".join(f"{name} {value}" for name, value in data.tables.items())
    pairs = [
        ("Command", _code(" ".join(source.command))),
        ("Data set", text(" ".join(part for part in (data.name, data.revision) if part))),
        ("Splits", text(splits)),
        ("Tables", _code(tables)),
        ("Tokens", text(" × ".join(map(str, model.shape)))),
        ("Parameters", text(f"{model.parameters_m:g} M") if model.parameters_m else ""),
        ("Weights", _code(" ".join(part for part in (model.revision, model.weights) if part))),
        (
            "Probe",
            text(", ".join(part for part in (result.probe, f"preset {result.preset}", result.action_mode) if part)),
        ),
        ("Protocol, seeds", text(f"{result.protocol}, {', '.join(map(str, result.seeds or (result.seed,)))}")),
        ("Time", text(times)),
        ("Machine", text(machine)),
        ("Versions", text(versions)),
        ("Commit", _code(commit)),
        ("Made", text(result.created)),
        ("Options", _code(json.dumps(result.options, ensure_ascii=False, default=str)) if result.options else ""),
        (
            "File",
            _code(entry.path.name if entry.path.parent.name == "" else f"{entry.path.parent.name}/{entry.path.name}"),
        ),
    ]
    return f"<h4>How it was made</h4>{markup.facts(pairs)}"


def _code(value: str) -> str:
    return f"<code>{text(value)}</code>" if value else ""
