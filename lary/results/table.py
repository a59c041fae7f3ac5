"""``lary table``: finished runs as tables of a paper.

There is one for each kind of probe, with a row per model and a column per data
set. The best of a column is bold; rows of arXiv 2604.11689 join on request.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lary.configs import TableFormat
from lary.files import csv_text
from lary.results.figures import no_formula
from lary.results.folder import NO_RUN, FinishedRun, find_results
from lary.results.record import Metric
from lary.results.report import column_title, metric_name, paper_scores, settings_of
from lary.types import UsageError

CSV_HEAD = ["table", "model", "dataset", "value", "low", "high"]
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass
class Board:
    """One table, its `cells` by row and column."""

    caption: str
    columns: list[str] = field(default_factory=list)
    cells: dict[str, dict[str, Metric]] = field(default_factory=dict)

    def add(self, row: str, column: str, metric: Metric) -> None:
        if column not in self.columns:
            self.columns.append(column)
        self.cells.setdefault(row, {})[column] = metric

    def is_best(self, row: str, column: str) -> bool:
        found = [cells[column].rank for cells in self.cells.values() if column in cells]
        return column in self.cells[row] and self.cells[row][column].rank == min(found)


def table_text(folder: Path, kind: TableFormat, *, published: bool = False) -> str:
    """All runs below a folder as text of a format. Raises UsageError where there is none."""
    if not (runs := find_results(folder)[0]):
        raise UsageError(NO_RUN.format(folder))
    boards = boards_of(runs, published)
    if kind == "csv":
        return csv_text([CSV_HEAD, *(row for board in boards for row in separated(board))])
    write = {"latex": latex, "markdown": markdown, "html": markup}[kind]
    return "\n".join(map(write, boards))


def boards_of(runs: Sequence[FinishedRun], published: bool) -> list[Board]:
    """The tables of runs: those of one kind and metric share one."""
    found: dict[tuple[str, str], Board] = {}
    results = sorted((run.result for run in runs), key=lambda result: (result.label, settings_of(result)))
    for result in results:
        score = result.score
        name = metric_name(result.primary)
        unit = " in per cent" if score.unit == "fraction" else ""
        caption = f"{name}{unit}, {score.better} is better, 95 % intervals ({result.kind})"
        board = found.setdefault((result.kind, result.primary), Board(caption))
        column, row = column_title(result), result.label
        if column in board.cells.get(row, {}):
            row = f"{row} ({settings_of(result)})"
        board.add(row, column, score)
        if published and not (result.action_mode == "relative" or result.dataset.split_set or result.folds):
            for name, metric in paper_scores(result).items():
                board.add(f"{name} (published)", column, metric)
    return list(found.values())


# Formats


def _rows(board: Board, bold: Callable[[str], str], clean: Callable[[str], str]) -> list[list[str]]:
    """Head and rows of a table as text, the best value of each column bold."""
    rows = [["Model", *map(clean, board.columns)]]
    for name, cells in board.cells.items():
        row = [clean(name)]
        for column in board.columns:
            text = clean(cells[column].text(reason=False)) if column in cells else "-"
            value, _, bounds = text.partition(" ")
            row.append(f"{bold(value) if board.is_best(name, column) else value} {bounds}".rstrip())
        rows.append(row)
    return rows


def markdown(board: Board) -> str:
    head, *rows = _rows(board, "**{}**".format, lambda text: re.sub(r"([|*_`<\\])", r"\\\1", text))
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([board.caption, "", *lines, ""])


def latex(board: Board) -> str:
    head, *rows = _rows(board, r"\textbf{{{}}}".format, _latex_text)
    lines = [f"    {' & '.join(row)} \\\\" for row in (head, *rows)]
    parts = [
        r"\begin{table}",
        rf"  \caption{{{_latex_text(board.caption)}}}",
        rf"  \begin{{tabular}}{{{'l' * len(head)}}}",
        r"    \toprule",
        lines[0],
        r"    \midrule",
        *lines[1:],
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(parts)


def _latex_text(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda found: LATEX.get(found[0], f"\\{found[0]}"), text)


def markup(board: Board) -> str:
    head, *rows = _rows(board, "<b>{}</b>".format, html.escape)
    lines = [f"<tr><th>{'</th><th>'.join(head)}</th></tr>"]
    lines += [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows]
    return "\n".join(["<table>", f"<caption>{html.escape(board.caption)}</caption>", *lines, "</table>", ""])


def separated(board: Board) -> Iterator[list[str]]:
    """Lines of CSV below `CSV_HEAD`, unrounded, fractions as such."""
    for name, cells in board.cells.items():
        for column, metric in cells.items():
            ends = ("" if end is None else str(end) for end in (metric.low, metric.high))
            yield [*map(no_formula, (board.caption, name, column)), str(metric.value), *ends]
