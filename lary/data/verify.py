"""The integrity checker: are the files that the tables name there, whole, and of the shape that the record says.

Images, videos and arrays are decoded in full by worker processes (`verify_files`). A journal beside the report lets a
killed run resume; a manifest of digests lets a later run compare instead of decode. The text report has the published
layout; ``depth="headers"`` inspects only what the published checker inspects.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lary.data.configs import CheckConfig
from lary.data.spec import DATASETS, ActionSpace, DatasetSpec, LabelSpace
from lary.data.splits import find_table
from lary.data.tables import (
    ACTION_FOLDER,
    IMAGE_FOLDER,
    INDEX_COLUMN,
    INDICES,
    MEDIA_COLUMNS,
    TARGET_COLUMN,
    line_of,
    places,
    read_csv,
)
from lary.data.verify_files import JOURNAL_VERSION, Manifest, ask_all, read_journal
from lary.files import digest, file_digest, inside, write_json, write_text
from lary.registry import suggest
from lary.runtime import log, progress
from lary.settings import Settings
from lary.types import UsageError
from lary.workers import Answer, Question

METHODS = {
    "decode": "decode images, videos and arrays in full; hold arrays, pairs and tables against the data set's record",
    "headers": "open image with Pillow's verify; open video with FFmpeg; check npy existence",
}
JSON_VERSION = 1
PER_CORE, FILES_PER_WORKER = 4, 64
FRAME = re.compile(r"frame_(\d+)\.[^./]+$")
ACTIONS = re.compile(r"action_(\d+)to(\d+)\.[^./]+$")
"""File names of the published pairs: two frames, and the first and last action between them."""


@dataclass(slots=True)
class Reference:
    """A file that tables name (video, image or npy, or a table itself): its paths, and which column names it first."""

    kind: str
    places: tuple[str, ...]
    table: str
    column: str
    shape: tuple[int, int] | None = None
    refs: int = 0
    status: str = ""
    reason: str = ""
    found: list[int] | None = None

    @property
    def key(self) -> str:
        """What an answer about the file depends on, but for its content."""
        return json.dumps([self.kind, *self.places, self.shape])

    def settle(self, status: str, reason: str) -> None:
        """Note what is known of the file."""
        self.status, self.reason = status, " ".join(reason.split()).rstrip(".")

    def fields(self) -> dict[str, Any]:
        """What the reports say of it."""
        return {
            "status": self.status, "kind": self.kind, "refs": self.refs, "table": self.table, "column": self.column,
            "path": self.places[0], "reason": self.reason,
        }  # fmt: skip


@dataclass
class Checked:
    """A group of the report: its tables (name, rows or None if missing), files, image pairs, and table problems."""

    name: str
    specs: tuple[DatasetSpec, ...]
    tables: list[tuple[str, int | None]] = field(default_factory=list)
    files: dict[tuple[str, str], Reference] = field(default_factory=dict)
    pairs: list[tuple[Reference, Reference]] = field(default_factory=list)
    problems: list[Reference] = field(default_factory=list)

    @property
    def issues(self) -> list[Reference]:
        """All that is not as it should be."""
        return [item for item in (*self.files.values(), *self.problems) if item.status != "ok"]

    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of files by kind and status; tables only where something is wrong with one."""
        kinds = ("video", "image", "npy", *(("table",) if self.problems else ()))
        found = Counter((item.kind, item.status) for item in (*self.files.values(), *self.problems))
        by_status = {kind: {name: found[kind, name] for name in ("ok", "missing", "corrupt")} for kind in kinds}
        return {kind: {"total": sum(numbers.values()), **numbers} for kind, numbers in by_status.items()}


@dataclass(frozen=True)
class VerifyReport:
    """The checked groups, how many files were verified by the manifest alone, and the text report."""

    groups: tuple[Checked, ...]
    by_manifest: int
    output: Path

    @property
    def issues(self) -> int:
        return sum(len(group.issues) for group in self.groups)

    @property
    def files(self) -> int:
        return sum(len(group.files) for group in self.groups)


def verify(config: CheckConfig, settings: Settings) -> VerifyReport:
    """Check the files of all tables of some groups and write both reports.

    Raises:
        UsageError: unknown group, no table at all, or options that contradict each other.
    """
    root, data_dir = settings.path("LARY_ROOT"), settings.path("DATA_DIR")
    if config.workers < 1 or config.timeout <= 0:
        raise UsageError("--workers must be at least 1 and --timeout above 0 seconds.")
    if config.manifest is not None and config.depth == "headers":
        raise UsageError("--manifest holds digests of files that were decoded: leave out --depth headers.")
    if not data_dir.is_dir():
        raise UsageError(f"DATA_DIR {data_dir} is no folder.")
    groups = choose_groups(config.groups, root)
    digests = [read_group(group, root, data_dir, whole=config.depth == "decode") for group in groups]
    if not any(rows is not None for group in groups for _, rows in group.tables):
        names = ", ".join(name for group in groups for name, _ in group.tables)
        raise UsageError(f"There is no table in {root / 'data'} to check (looked for {names}). Set LARY_ROOT.")
    by_manifest = check_files(config, data_dir, groups, digests)
    for group in groups:
        compare_pairs(group)
    report = json_report(config, data_dir, groups, by_manifest)
    write_text(config.output, text_report(report))
    write_json(config.output.with_suffix(".json"), report)
    return VerifyReport(tuple(groups), by_manifest, config.output)


# Tables


def choose_groups(names: Sequence[str], root: Path) -> list[Checked]:
    """The groups that were asked for, by name of the report or of a data set; without names all with a table.

    Raises:
        UsageError: an unknown name.
    """
    found: dict[str, list[DatasetSpec]] = {}
    claimed: set[Path] = set()
    wanted, known = {name.lower() for name in names}, []
    for spec in DATASETS:
        name = spec.integrity_group or spec.name
        known += [name, spec.name]
        tables = {path for split in spec.splits if (path := table_of(spec, split, root)) is not None}
        if wanted:
            chosen = bool(wanted & {name.lower(), spec.name.lower()})
        else:  # tables that another data set has already are checked once
            chosen = bool(spec.integrity_group) or bool(tables - claimed)
        if chosen:
            claimed |= tables
            found.setdefault(name, []).append(spec)
    for name in names:
        if name.lower() not in {entry.lower() for entry in known}:
            raise UsageError(f"There is no group '{name}'.{suggest(name, list(dict.fromkeys(known)))}")
    return [Checked(name, tuple(found[name])) for name in sorted(found)]


def table_of(spec: DatasetSpec, split: str, root: Path) -> Path | None:
    """The table of a split, or None."""
    try:
        return find_table(spec, split, root)
    except UsageError:
        return None


def read_group(group: Checked, root: Path, data_dir: Path, *, whole: bool) -> str:
    """Collect the files that the tables of a group name, and with `whole` what is wrong with the tables themselves.

    Returns:
        A digest of the tables.
    """
    digests = []
    for spec in group.specs:
        for split in spec.splits:
            path = table_of(spec, split, root)
            if path is None:
                group.tables.append((spec.table_name(split), None))
                continue
            digests.append(file_digest(path))
            problems: list[tuple[str, int, str]] = []
            try:
                columns, rows = read_csv(path)
            except UsageError as error:
                group.tables.append((path.name, 0))
                problems.append(("", 1, str(error)))
            else:
                group.tables.append((path.name, len(rows)))
                cells = dict(zip(columns, zip(*rows, strict=True), strict=True))
                collect(group, spec, path, cells, data_dir.absolute() / spec.split(split).root)
                if whole:
                    problems += table_problems(spec, path, cells)
            for column, count, reason in problems:
                group.problems.append(Reference("table", (str(path),), path.name, column, refs=count))
                group.problems[-1].settle("corrupt", reason)
    return digest(*digests)


def collect(group: Checked, spec: DatasetSpec, path: Path, cells: Mapping[str, Sequence[str]], root: Path) -> None:
    """Add a table's files, each once: column by column, the most frequent first; empty cells are passed over."""
    columns: list[tuple[str, str, str, tuple[int, int] | None]] = [
        (name, "video" if spec.media == "clip" else "image", IMAGE_FOLDER, None) for name in MEDIA_COLUMNS[spec.media]
    ]
    if isinstance(spec.target, ActionSpace):
        columns.append((TARGET_COLUMN, "npy", ACTION_FOLDER, (spec.target.horizon, len(spec.target.dims))))
    by_cell: dict[tuple[str, str], Reference] = {}
    for name, kind, folder, shape in columns:
        for cell, count in Counter(cells.get(name, ())).most_common():
            if not cell.strip():
                continue
            item = Reference(kind, (), path.name, name, shape)
            try:
                item.places = tuple(str(inside(root, place)) for place in places(spec, cell, folder))
            except UsageError:
                item.places = (cell,)
                item.settle("corrupt", f"the path leaves its root {root}")
            item = group.files.setdefault((kind, item.places[0]), item)
            item.refs += count
            by_cell[name, cell] = item
    if spec.media == "pair" and all(name in cells for name in MEDIA_COLUMNS["pair"]):
        first, second = MEDIA_COLUMNS["pair"]
        for source, target in zip(cells[first], cells[second], strict=True):
            if (first, source) in by_cell and (second, target) in by_cell:
                group.pairs.append((by_cell[first, source], by_cell[second, target]))


def table_problems(spec: DatasetSpec, path: Path, cells: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, int, str]]:
    """Column, number of rows and reason of every kind of problem; the reason names the first row that has it."""

    def those(column: str, reasons: Sequence[str]) -> Iterator[tuple[str, int, str]]:
        rows = [row for row, reason in enumerate(reasons) if reason]
        if rows:
            more = f", and {len(rows) - 1} more rows" if len(rows) > 1 else ""
            yield column, len(rows), f"row {rows[0] + 1} (line {line_of(path, rows[0])}): {reasons[rows[0]]}{more}"

    needed = [*MEDIA_COLUMNS[spec.media], TARGET_COLUMN, *([INDEX_COLUMN] if spec.media == "clip" else [])]
    for name in needed:
        if name not in cells:
            yield name, 1, f"there is no column '{name}'; the table has: {', '.join(cells)}"
        else:
            yield from those(name, ["" if cell.strip() else "the cell is empty" for cell in cells[name]])
    if isinstance(spec.target, LabelSpace):
        known, text = frozenset(spec.target.classes), f"is no class of {spec.name}"
        found = cells.get(TARGET_COLUMN, ())
        yield from those(
            TARGET_COLUMN, ["" if cell in known or not cell.strip() else f"'{cell}' {text}" for cell in found]
        )
    if spec.media == "clip":
        yield from those(INDEX_COLUMN, [
            "" if INDICES.fullmatch(cell) or not cell.strip() else f"'{cell}' is no list of frame numbers"
            for cell in cells.get(INDEX_COLUMN, ())
        ])  # fmt: skip
    if spec.stride is not None and all(name in cells for name in needed):
        rows = zip(*(cells[name] for name in needed), strict=True)
        yield from those("tgt_img", [order_problem(spec.stride, *row) for row in rows])


def order_problem(stride: int, source: str, target: str, action: str) -> str:
    """What is wrong with the order of a row's frames and actions, where their names give it."""
    first, second, chunk = FRAME.search(source), FRAME.search(target), ACTIONS.search(action)
    if first is None or second is None:
        return ""
    start, stop = int(first[1]), int(second[1])
    if stop - start != stride:
        return f"frame {stop} is not {stride} frames after frame {start}: are the columns swapped?"
    if chunk and (int(chunk[1]), int(chunk[2])) != (start, stop - 1):
        return f"actions {int(chunk[1])} to {int(chunk[2])} do not lie between frames {start} and {stop}"
    return ""


# Files


def check_files(config: CheckConfig, data_dir: Path, groups: Sequence[Checked], digests: Sequence[str]) -> int:
    """Settle every file, by the journal, the manifest's digests or decoding; returns how many digests sufficed."""
    manifest = Manifest(config.manifest, data_dir)
    request = digest(str(data_dir.absolute()), config.depth, manifest.digest, *digests)
    journal = config.output.with_name(f".{config.output.name}.journal")
    known = {} if config.restart else read_journal(journal, request)
    if known:
        log.info("resuming after %d files that an interrupted run found whole", len(known))
    lines = [
        json.dumps({"version": JOURNAL_VERSION, "request": request}),
        *(json.dumps(list(i)) for i in known.items()),
    ]
    write_text(journal, "\n".join(lines) + "\n")
    waiting = []
    for item in (item for group in groups for item in group.files.values() if not item.status):
        if item.key in known:
            take(item, known[item.key], manifest)
        else:
            waiting.append(item)
    sha256 = [manifest.digest_of(item.places[0], item.kind, item.shape) for item in waiting]
    questions: list[Question] = [
        {
            "places": item.places, "media": item.kind, "depth": config.depth, "shape": item.shape,
            "hash": config.manifest is not None, "sha256": expected,
        }
        for item, expected in zip(waiting, sha256, strict=True)
    ]  # fmt: skip
    # More processes than these cost memory and the time to start them, and gain nothing.
    workers = min(config.workers, PER_CORE * (os.cpu_count() or 1), len(waiting) // FILES_PER_WORKER + 1)
    total, compared = sum(len(group.files) for group in groups), 0
    with (
        journal.open("a", encoding="utf-8") as file,
        progress(total, "checking", "file", done=total - len(waiting)) as bar,
    ):
        for position, answer in ask_all(questions, workers, config.timeout):
            item = waiting[position]
            take(item, answer, manifest)
            if item.status == "ok":  # others are inspected again by the next run
                compared += sha256[position] is not None
                file.write(json.dumps([item.key, answer]) + "\n")
                file.flush()
            bar.advance()
    manifest.write()
    journal.unlink(missing_ok=True)
    return compared


def take(item: Reference, answer: Answer, manifest: Manifest) -> None:
    """Settle a file as a worker's answer says; a whole one joins the manifest."""
    item.settle(answer["status"], answer["reason"])
    if item.status == "ok":
        item.found = manifest.add(item.places[0], item.kind, answer)


def compare_pairs(group: Checked) -> None:
    """Find pairs whose images differ in size."""
    for source, target in group.pairs:
        if source.status == target.status == "ok" and source.found and target.found and source.found != target.found:
            (height, width), (source_height, source_width) = target.found, source.found
            target.settle(
                "corrupt",
                f"{width}x{height} pixels, its source image {source.places[0]} has {source_width}x{source_height}",
            )


# Reports


def json_report(config: CheckConfig, data_dir: Path, groups: Sequence[Checked], by_manifest: int) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "version": JSON_VERSION,
        "data_root": str(data_dir),
        "depth": config.depth,
        "verified_by_manifest": by_manifest,
        "groups": {
            group.name: {
                "tables": [
                    {"name": name, "exists": rows is not None, "rows": rows or 0} for name, rows in group.tables
                ],
                "summary": group.counts(),
                "issues": [item.fields() for item in group.issues],
            }
            for group in groups
        },
    }


def text_report(report: Mapping[str, Any]) -> str:
    """The same in the published layout; fields of an issue are separated by tabs."""
    lines = ["LARYBench Dataset Integrity Report", f"Data root: {report['data_root']}"]
    lines += [f"Check method: {METHODS[report['depth']]}", "", "Metadata CSVs", ""]
    for name, group in report["groups"].items():
        there = [(table, "exists" if table["exists"] else "missing") for table in group["tables"]]
        lines += [f"[{name}]", *(f"  {table['name']}: {word}, rows={table['rows']}" for table, word in there), ""]
    lines += ["Summary", ""]
    for name, group in report["groups"].items():
        counts = {
            kind: " ".join(f"{n}={count}" for n, count in found.items()) for kind, found in group["summary"].items()
        }
        lines += [f"[{name}]", *(f"  {kind}: {text}" for kind, text in counts.items()), ""]
    lines += ["Issues", ""]
    issue = "  {status}\t{kind}\trefs={refs}\tcsv={table}\tcolumn={column}\tpath={path}\treason={reason}"
    for name, group in report["groups"].items():
        lines += [f"[{name}] issue_count={len(group['issues'])}", *(issue.format(**i) for i in group["issues"]), ""]
    return "\n".join(lines)
