"""Pieces of the report: text, numbers, bars and sortable tables as HTML. Whatever comes from a file is escaped here."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lary.results.record import Metric

MISSING = '<span class="none" title="not available">–</span>'

METRIC_NAMES = {
    "top1": "Top-1",
    "top5": "Top-5",
    "macro_recall": "Mean recall",
    "macro_f1": "Macro F1",
    "seen_mse": "MSE",
    "seen_r2": "R²",
    "unseen_mse": "MSE, unseen",
    "unseen_r2": "R², unseen",
}


Direction = Literal["asc", "desc"]


@dataclass(frozen=True)
class Column:
    """A column of a table; `first` is the direction in which it is sorted first, numbers stand to the right."""

    label: str
    numeric: bool = True
    first: Direction = "desc"
    hint: str = ""


@dataclass(frozen=True)
class Cell:
    """HTML of a cell, what it is sorted by (None stands last), and the depth of its colour in a heat table, 0 to 1."""

    html: str
    key: float | str | None = None
    shade: float | None = None


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns; the first one names the row."""

    cells: tuple[Cell, ...]
    kind: str = ""


def text(value: object) -> str:
    """A value as escaped text."""
    return html.escape(str(value), quote=True)


def metric_name(name: str) -> str:
    """Name of a metric for people."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def number(value: float, unit: str = "none") -> str:
    """A number as it is printed: one decimal for per cent and degrees, else three decimals or digits."""
    if unit in ("fraction", "degrees"):
        return f"{100 * value if unit == 'fraction' else value:.1f}"
    return f"{value:.3f}" if 0.0005 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def unit_sign(metric: Metric) -> str:
    """`` %`` for fractions, else nothing."""
    return " %" if metric.unit == "fraction" else ""


def bounds(metric: Metric) -> str:
    """The interval as ``[low, high]``, or nothing."""
    if metric.low is None or metric.high is None:
        return ""
    return f"[{number(metric.low, metric.unit)}, {number(metric.high, metric.unit)}]"


def sentence_value(metric: Metric) -> str:
    """A metric inside a sentence: value, unit, interval."""
    return f"<strong>{number(metric.value, metric.unit)}{unit_sign(metric)}</strong>{_small_bounds(metric)}"


def difference(metric: Metric) -> str:
    """A difference inside a sentence, with its sign; between percentages it is in points."""
    sign = "+" if metric.value > 0 else ""
    unit = " points" if metric.unit == "fraction" else ""
    return f"<strong>{sign}{number(metric.value, metric.unit)}{unit}</strong>{_small_bounds(metric)}"


def _small_bounds(metric: Metric) -> str:
    return f" <small>{bounds(metric)}</small>" if bounds(metric) else ""


def bar(metric: Metric, limit: float) -> str:
    """A small bar from zero to the value with its interval as a whisker, on a scale from zero to `limit`."""

    def place(value: float) -> float:
        return round(100 * min(max(value / limit, 0.0), 1.0), 1) if limit > 0 else 0.0

    whisker = ""
    if metric.low is not None and metric.high is not None:
        left, right = place(metric.low), place(metric.high)
        whisker = f'<i style="left:{left}%;width:{round(max(right - left, 0.8), 1)}%"></i>'
    return f'<span class="bar" aria-hidden="true"><b style="width:{place(metric.value)}%"></b>{whisker}</span>'


def metric_cell(metric: Metric | None, limit: float | None = None) -> Cell:
    """A metric with its interval, and with a bar where there is a scale for it."""
    if metric is None:
        return Cell(MISSING)
    interval = f'<small class="ci">{bounds(metric)}</small>' if bounds(metric) else ""
    shown = f'<span class="value">{number(metric.value, metric.unit)}</span>{interval}'
    return Cell(f'{bar(metric, limit)}<span class="with-bar">{shown}</span>' if limit else shown, metric.value)


def number_cell(value: float | None, unit: str = "none") -> Cell:
    """A plain number."""
    return Cell(MISSING) if value is None else Cell(number(value, unit), value)


def text_cell(value: object) -> Cell:
    """Plain text, sorted without regard to case."""
    return Cell(text(value), str(value).casefold())


def badge(label: str, kind: str = "") -> str:
    """A small label; `kind` is a class of the style sheet."""
    return f'<span class="badge {text(kind)}">{text(label)}</span>'


def table(name: str, caption: str, columns: Sequence[Column], rows: Sequence[Row], kind: str = "") -> str:
    """A table that is sorted by its header buttons. `name` must be unique on the page; `caption` is HTML."""
    head = "".join(_head(column) for column in columns)
    body = "".join(_row(row, columns) for row in rows)
    return (
        f'<div class="scroll {text(kind)}" tabindex="0" role="region" aria-labelledby="{text(name)}-caption">'
        f'<table id="{text(name)}" class="sortable"><caption id="{text(name)}-caption"><span>{caption}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _head(column: Column) -> str:
    marks = " class=num" if column.numeric else ""
    hint = f' title="{text(column.hint)}"' if column.hint else ""
    button = f'<button type="button"{hint}>{text(column.label)}<span class=arrow aria-hidden=true></span></button>'
    return f'<th scope="col" aria-sort="none"{marks} data-first="{column.first}">{button}</th>'


def _row(row: Row, columns: Sequence[Column]) -> str:
    cells = []
    for index, (cell, column) in enumerate(zip(row.cells, columns, strict=True)):
        marks = " class=num" if column.numeric else ""
        marks += "" if cell.key is None else f' data-key="{text(cell.key)}"'
        marks += "" if cell.shade is None else f' style="--s:{cell.shade:.2f}"'
        cells.append(f'<th scope="row"{marks}>{cell.html}</th>' if index == 0 else f"<td{marks}>{cell.html}</td>")
    kind = f' class="{text(row.kind)}"' if row.kind else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of names and values; the values are HTML. Empty values are left out."""
    return (
        "<dl>"
        + "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in pairs if value)
        + "</dl>"
    )


def seconds(value: float) -> str:
    """A time as people read it."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
