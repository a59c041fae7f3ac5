"""The leaderboard of one comparison: its runs, best first, with the controls in their places among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lary.results import markup
from lary.results.markup import Cell, Column, Direction, Row, text
from lary.results.record import EvalResult, Metric
from lary.results.tables import Entry, model_badge, order, published_score, rank, settings_of


@dataclass(frozen=True)
class Board:
    """What the rows of a leaderboard share: metrics shown, scale of the bars, which columns there are."""

    primary: str
    example: Metric
    shown: dict[str, Metric]
    limit: float
    paper: dict[str, Metric | None]
    settings: bool


def leaderboard(name: str, group: Sequence[Entry], caption: str) -> str:
    """The table of runs that may be ranked together; `name` is its name on the page, `caption` is HTML."""
    controls = _controls(group)
    board = _board(group, controls)
    rows = [(rank(entry)[0], _run_row(entry, board)) for entry in group]
    for control, metrics in controls:
        key = order(metrics[board.primary]) if board.primary in metrics else float("inf")
        rows.append((key, _control_row(control, metrics, board)))
    if not board.settings:
        caption = f"{caption} All runs: {text(settings_of(group[0].result))}."
    return markup.table(name, caption, _columns(board), [row for _, row in sorted(rows, key=lambda pair: pair[0])])


def _headline(result: EvalResult) -> dict[str, Metric]:
    return result.selections[result.headline].metrics


def _controls(group: Sequence[Entry]) -> list[tuple[str, dict[str, Metric]]]:
    """Controls of a comparison, each once: the runs of one split share them."""
    found: dict[tuple[str, str], tuple[str, dict[str, Metric]]] = {}
    for entry in group:
        for name, control in entry.result.controls.items():
            value = control.metrics.get(entry.result.primary)
            found.setdefault((name, f"{value.value:.6g}" if value else ""), (name, control.metrics))
    return list(found.values())


def _board(group: Sequence[Entry], controls: Sequence[tuple[str, dict[str, Metric]]]) -> Board:
    first = group[0].result
    shown: dict[str, Metric] = {}
    for entry in group:
        for name, metric in _headline(entry.result).items():
            shown.setdefault(name, metric)
    scores = [entry.result.score for entry in group] + [
        found[first.primary] for _, found in controls if first.primary in found
    ]
    highest = max(score.value if score.high is None else score.high for score in scores)
    return Board(
        primary=first.primary,
        example=first.score,
        shown=shown,
        limit=1.0 if first.score.unit == "fraction" else highest,
        paper={entry.anchor: published_score(entry.result) for entry in group},
        settings=len({settings_of(entry.result) for entry in group}) > 1,
    )


def _columns(board: Board) -> list[Column]:
    def first(metric: Metric) -> Direction:
        return "desc" if metric.higher_is_better else "asc"

    hint = "Head and epoch picked on the reported split itself, as the published code does"
    columns = [Column("Model", numeric=False, first="asc")]
    for name, metric in board.shown.items():
        columns.append(
            Column(f"{markup.metric_name(name)}{markup.unit_sign(metric)}", True, first(metric), "95 % interval")
        )
    columns.append(Column("Best on validation", True, first(board.example), hint))
    if any(board.paper.values()):
        columns.append(Column("Paper", True, first(board.example), "Published for this model and data set"))
    if board.settings:
        columns.append(Column("Settings", False, "asc", "Protocol, probe preset, seed"))
    return columns


def _metric_cells(metrics: dict[str, Metric], board: Board) -> list[Cell]:
    return [
        markup.metric_cell(metrics.get(name), board.limit if name == board.primary else None) for name in board.shown
    ]


def _run_row(entry: Entry, board: Board) -> Row:
    result = entry.result
    title = f'<a href="#{entry.anchor}">{text(result.label)}</a>{model_badge(result)}{_marks(result)}'
    best = result.selections.get("best_on_validation")
    cells = [Cell(title, result.label), *_metric_cells(_headline(result), board)]
    cells.append(markup.number_cell(best.metrics[board.primary].value if best else None, board.example.unit))
    if any(board.paper.values()):
        known = board.paper[entry.anchor]
        cells.append(markup.number_cell(known.value if known else None, board.example.unit))
    if board.settings:
        cells.append(markup.text_cell(settings_of(result)))
    return Row(tuple(cells), "control" if result.is_control else "")


def _control_row(name: str, metrics: dict[str, Metric], board: Board) -> Row:
    title = f"{text(name.replace('_', ' '))}{markup.badge('control', 'control')}"
    cells = [Cell(title, name), *_metric_cells(metrics, board)]
    empty = len(_columns(board)) - len(cells)
    return Row((*cells, *([Cell(markup.MISSING)] * empty)), "control")


def _marks(result: EvalResult) -> str:
    marks = markup.badge("incomplete", "warn") if result.status == "incomplete" else ""
    return marks + (markup.badge("picked on validation", "warn") if result.headline == "best_on_validation" else "")
