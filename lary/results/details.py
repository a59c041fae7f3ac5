"""Tables of one run's card beside its main ones: margins over controls, seeds, robot types, orientations."""

from __future__ import annotations

from lary.results import markup
from lary.results.markup import Cell, Column, Direction, Row, text
from lary.results.measure import reading
from lary.results.record import Metric
from lary.results.tables import Entry

READINGS = {"": "", "even": "not told apart", "better": "a clear gain", "worse": "clearly worse"}


def verdict(gain: Metric, p: float | None = None) -> str:
    """What a difference says, in words; empty without an interval."""
    return READINGS[reading(gain, p)]


def difference_cell(gain: Metric) -> Cell:
    """A difference with its sign and interval."""
    shown = markup.number(gain.value, gain.unit)
    interval = f'<small class="ci">{markup.bounds(gain)}</small>' if markup.bounds(gain) else ""
    sign = "+" if gain.value > 0 else ""
    return Cell(f'<span class="value">{sign}{shown}</span>{interval}', gain.value)


def margins_table(entry: Entry) -> str:
    """The run against its controls: those without a representation, and those that ``lary controls`` ran."""
    result = entry.result
    name = markup.metric_name(result.primary)
    first: Direction = "desc" if result.score.higher_is_better else "asc"
    sign = " %" if result.score.unit == "fraction" else ""
    columns = [
        Column("Control", numeric=False, first="asc"),
        Column(f"{name}{sign}", first=first),
        Column("Difference", hint="This run minus the control on the same samples, with its 95 % interval"),
        Column("p", first="asc", hint="Two-sided, corrected by Holm for all runs in this table"),
        Column("Reading", numeric=False, first="asc"),
    ]
    rows = []
    for label, control in result.controls.items():
        value = control.metrics.get(result.primary)
        cells = (markup.text_cell(label.replace("_", " ")), markup.metric_cell(value), difference_cell(control.gain))
        rows.append(Row((*cells, Cell(markup.MISSING), markup.text_cell(verdict(control.gain))), "control"))
    for margin in sorted(result.margins, key=lambda each: abs(each.gain.value)):
        p = Cell(markup.MISSING) if margin.p is None else Cell(f"{margin.p:.2g}", margin.p)
        shown = markup.number_cell(margin.value, result.score.unit)
        cells = (markup.text_cell(margin.name), shown, difference_cell(margin.gain))
        rows.append(Row((*cells, p, markup.text_cell(verdict(margin.gain, margin.p)))))
    better = "higher" if result.score.higher_is_better else "lower"
    unit = " in points" if result.score.unit == "fraction" else ""
    caption = f"What this run has to be held against; {better} is better, differences{unit} are paired by sample."
    if not rows:
        return ""
    missing = "Static pairs, shuffled frames and targets, baselines: <code>lary controls</code> runs them."
    hint = "" if result.margins else f'<p class="note">{missing}</p>'
    return f"<h4>Controls</h4>{markup.table(f'{entry.anchor}-margins', caption, columns, rows)}{hint}"


def seeds_table(entry: Entry) -> str:
    """The probes one by one where several were trained."""
    result = entry.result
    if not result.per_seed:
        return ""
    known = result.selections[result.headline].metrics
    names = [name for name in known if all(name in row.metrics for row in result.per_seed)]
    columns = [Column("Seed", numeric=False, first="asc"), Column("Epoch"), Column("Head")]
    columns += [Column(f"{markup.metric_name(name)}{markup.unit_sign(known[name])}") for name in names]
    rows = [
        Row(
            (
                Cell(str(row.seed), row.seed),
                Cell(str(row.epoch), row.epoch),
                Cell(markup.MISSING) if row.head is None else Cell(str(row.head + 1), row.head),
                *(markup.number_cell(row.metrics[name], known[name].unit) for name in names),
            )
        )
        for row in result.per_seed
    ]
    caption = f"{len(rows)} probes that differ in their seed alone; the metrics of the run are their means."
    return f"<h4>Seeds</h4>{markup.table(f'{entry.anchor}-seeds', caption, columns, rows)}"


def robots_table(entry: Entry) -> str:
    """Errors by robot type, in physical units where the dimensions of a group share one."""
    rows_of = entry.result.robots
    if not rows_of:
        return ""
    groups = list(dict.fromkeys(name for row in rows_of for name in row.physical))
    turns = any(row.degrees for row in rows_of)
    columns = [Column("Robot type", numeric=False, first="asc"), Column("Split", numeric=False, first="asc")]
    columns += [Column("Samples"), Column("Episodes"), Column("MSE", first="asc", hint="Normalised"), Column("R²")]
    columns += [Column(f"RMSE, {name}", first="asc", hint="In physical units") for name in groups]
    columns += [Column("Angle °", first="asc", hint="Mean angular error of orientations")] if turns else []
    rows = []
    for row in rows_of:
        cells = [markup.text_cell(row.name), markup.text_cell(row.split)]
        cells += [Cell(str(row.rows), row.rows), Cell(str(row.groups), row.groups), markup.metric_cell(row.mse)]
        cells += [markup.number_cell(row.r2)]
        for name in groups:
            found = row.physical.get(name)
            cells.append(Cell(markup.MISSING) if found is None else rmse_cell(found.mse.value, found.unit))
        cells += [markup.metric_cell(row.degrees)] if turns else []
        rows.append(Row(tuple(cells)))
    return f"<h4>Robot types</h4>{markup.table(f'{entry.anchor}-robots', 'Errors by robot type.', columns, rows)}"


def rmse_cell(squared: float, unit: str) -> Cell:
    """The root of a mean squared error with its unit."""
    root = max(squared, 0.0) ** 0.5
    return Cell(f'{markup.number(root)}<span class="unit">{text(unit)}</span>', root)


def orientations_table(entry: Entry) -> str:
    """Angular errors."""
    found = entry.result.orientations
    if not found:
        return ""
    columns = [Column("Orientation", numeric=False, first="asc"), Column("Split", numeric=False, first="asc")]
    columns += [Column("Angle °", first="asc", hint="Mean angle between predicted and true orientation")]
    columns += [Column("Convention", numeric=False, first="asc")]
    rows = [
        Row(
            (
                markup.text_cell(row.name), markup.text_cell(row.split), markup.metric_cell(row.degrees),
                markup.text_cell(row.convention.replace("_", " ")),
            )
        )
        for row in found
    ]  # fmt: skip
    caption = "Mean angle between predicted and true orientation, over samples and steps."
    return f"<h4>Angular errors</h4>{markup.table(f'{entry.anchor}-angles', caption, columns, rows)}"


def details(entry: Entry) -> str:
    """All of these tables."""
    return margins_table(entry) + seeds_table(entry) + robots_table(entry) + orientations_table(entry)
