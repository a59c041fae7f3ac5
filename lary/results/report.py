"""``lary report``: every result below a folder as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template

from lary import __version__
from lary.files import write_text
from lary.results import markup, tables
from lary.results.cards import run_card
from lary.results.leaderboard import leaderboard
from lary.results.markup import text
from lary.results.record import FILE_NAME, read_result
from lary.results.tables import Entry
from lary.runtime import log
from lary.types import LaryError, UsageError

PAGE = Path(__file__).parent / "page"
REPORT_NAME = "report.html"

Broken = tuple[Path, str]


def find_results(folder: Path) -> tuple[list[Entry], list[Broken]]:
    """Every result below a folder, and the files that can't be read with the reason.

    Raises:
        UsageError: the folder doesn't exist.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}: name the folder that holds the runs, such as $LARY_LOG_DIR.")
    entries: list[Entry] = []
    broken: list[Broken] = []
    for path in sorted(folder.rglob(FILE_NAME)):
        try:
            place = path.relative_to(folder).as_posix()
            entries.append(Entry(path, place, f"run-{len(entries) + 1}", read_result(path)))
        except LaryError as error:
            log.warning("left out of the report: %s", error)
            broken.append((path.relative_to(folder), str(error).replace(str(path), path.name)))
    return entries, broken


def write_report(folder: Path, target: Path | None = None) -> Path:
    """Write the report of all results below `folder`, to ``report.html`` in it or to `target`; returns where.

    Raises:
        UsageError: the folder doesn't exist, or holds no result.
    """
    entries, broken = find_results(folder)
    if not entries and not broken:
        raise UsageError(f"No {FILE_NAME} below {folder}: run 'lary classify' or 'lary regress' first.")
    path = target or folder / REPORT_NAME
    write_text(path, build_page(entries, broken))
    return path


def build_page(entries: Sequence[Entry], broken: Sequence[Broken] = ()) -> str:
    """The page as text. The same results give the same page."""
    comparisons = tables.series(entries)
    sections = {
        "problems": ("Unreadable files", _problems(broken)),
        "leaderboards": ("Leaderboards", _leaderboards(comparisons)),
        "runs": ("Runs", _runs(comparisons)),
        "published": ("Published results", _published()),
        "method": ("How to read this", f'<div class="card">{_part("method.html")}</div>'),
    }
    shown = {name: part for name, part in sections.items() if part[1]}
    button = '<button type="button" id="open-all" hidden>Open all</button>'
    return Template(_part("report.html")).substitute(
        version=text(__version__),
        title="LARY report",
        style=_part("report.css"),
        script=_part("report.js"),
        summary=_summary(entries),
        navigation="".join(f'<a href="#{name}">{text(title)}</a>' for name, (title, _) in shown.items()),
        sections="".join(
            f'<section id="{name}"><div class="section-head"><h2>{text(title)}</h2>'
            f"{button if name == 'runs' else ''}</div>{body}</section>"
            for name, (title, body) in shown.items()
        ),
    )


def _part(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _summary(entries: Sequence[Entry]) -> str:
    results = [entry.result for entry in entries]
    spent = sum(sum(result.timings.values()) for result in results)
    pairs = [
        ("Runs", str(len(results))),
        ("Models", str(len({result.model.name for result in results}))),
        ("Data sets", str(len({result.dataset.name for result in results}))),
        ("Time of all stages", markup.seconds(spent) if spent else ""),
        ("Latest run", max((result.created for result in results), default="")[:16].replace("T", " ")),
    ]
    return "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs if value)


def _problems(broken: Sequence[Broken]) -> str:
    if not broken:
        return ""
    items = "".join(f"<li><code>{text(path)}</code>: {text(reason)}</li>" for path, reason in broken)
    return f'<div class="card"><p>These files are not part of the tables below.</p><ul>{items}</ul></div>'


def _leaderboards(comparisons: dict[str, list[Entry]]) -> str:
    parts = []
    if len(comparisons) > 1:
        parts.append(
            f'<div class="card"><div class="head"><h3>At a glance</h3></div>{tables.overview(comparisons)}</div>'
        )
    for index, (name, group) in enumerate(comparisons.items(), start=1):
        board = leaderboard(f"board-{index}", group, _caption(group))
        models = [entry for entry in group if not entry.result.is_control]
        heat = f"<h4>{_heat_title(group[0])}</h4>{tables.heat_table(f'heat-{index}', models)}" if models[1:] else ""
        title = f'<div class="head"><h3>{text(name)}</h3><span class="about">{text(_kind(group[0]))}</span></div>'
        parts.append(f'<div class="card">{title}{board}{heat}</div>')
    return "".join(parts)


def _kind(entry: Entry) -> str:
    result = entry.result
    if result.task == "classification":
        return f"which of {len(result.classes)} classes?"
    dims = len({row.name for row in result.dimensions})
    steps = len(result.examples[0].true) if result.examples else result.dataset.stride
    return (
        f"which {result.action_mode or ''} actions? {f'{steps} steps of ' if steps else ''}{dims} dimensions".replace(
            "  ", " "
        )
    )


def _heat_title(entry: Entry) -> str:
    return "Class by class" if entry.result.task == "classification" else "Dimension by dimension"


def _caption(group: Sequence[Entry]) -> str:
    better = "higher is better" if group[0].result.score.higher_is_better else "lower is better"
    settings = {(entry.result.protocol, entry.result.preset) for entry in group}
    mixed = " Rows with different protocols or presets are not to be compared." if len(settings) > 1 else ""
    notes = {entry.result.interval for entry in group}
    interval = text(notes.pop()) if len(notes) == 1 else "Intervals are for 95 %."
    return f"{markup.metric_name(group[0].result.primary)}, {better}. {interval}{mixed}"


def _runs(comparisons: dict[str, list[Entry]]) -> str:
    """A card per run; the best of each comparison is open."""
    return "".join(run_card(entry, index == 0) for group in comparisons.values() for index, entry in enumerate(group))


def _published() -> str:
    about = (
        '<p class="about">From the paper (<a href="https://arxiv.org/abs/2604.11689">arXiv 2604.11689</a>), on its '
        "own data and with the published probes. For orientation: numbers above that come from other data, another "
        " preset or another protocol can't be compared with them.</p>"
    )
    return about + "".join(f'<div class="card">{tables.published_table(source)}</div>' for source in tables.PUBLISHED)
