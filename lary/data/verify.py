"""The integrity checker: are the files that the tables name there, whole, and of the shape that the record says.

Images, videos and arrays are decoded in full by worker processes (`verify_pool`). A journal beside the report lets
a killed run continue; a manifest of digests lets a later run compare instead of decode. The text report has the
published layout; ``depth="headers"`` looks only at what the published checker looks at.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lary.data.spec import DATASETS, ActionSpace, DatasetSpec
from lary.data.splits import find_table
from lary.data.tables import ACTION_FOLDER, IMAGE_FOLDER, MEDIA_COLUMNS, TARGET_COLUMN, places
from lary.data.tables import read_csv as read_rows
from lary.data.verify_pool import WORKER, ask_all
from lary.data.verify_records import Journal, Manifest
from lary.data.verify_table import table_problems
from lary.files import digest, file_digest, inside, write_json, write_text
from lary.registry import suggest
from lary.runtime import log, progress
from lary.types import UsageError

Depth = Literal["decode", "headers"]
Kind = Literal["video", "image", "npy", "table"]

METHODS: dict[Depth, str] = {
    "decode": "decode images, videos and arrays in full; hold arrays, pairs and tables against the data set's record",
    "headers": "open image with Pillow's verify; open video with FFmpeg; check npy existence",
}
JSON_VERSION = 1
PER_CORE, FILES_PER_WORKER = 4, 64


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """What to check.

    Attributes:
        data_root: ``$DATA_DIR``.
        table_root: ``$LARY_ROOT``, whose ``data/`` holds the tables.
        groups: names of the report, or data set keys; empty: all with a table, and the published ones.
        output: text report; the JSON report takes its name with ``.json``.
        workers: processes, at most four per core.
        timeout: seconds per file.
        depth: decode, or headers.
        manifest: file of digests to verify by and to add to.
        restart: forget what an interrupted run found.
        command: of a worker process.
    """

    data_root: Path
    table_root: Path
    groups: tuple[str, ...] = ()
    output: Path = Path("dataset_integrity_report.txt")
    workers: int = 64
    timeout: float = 5.0
    depth: Depth = "decode"
    manifest: Path | None = None
    restart: bool = False
    command: tuple[str, ...] = WORKER


@dataclass(slots=True)
class Reference:
    """A file that tables name: where it may lie, by which column of which table first, and by how many rows."""

    kind: Kind
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
        self.status, self.reason = status, " ".join(reason.split()).rstrip(".")


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
    def all(self) -> list[Reference]:
        return [*self.files.values(), *self.problems]

    @property
    def issues(self) -> list[Reference]:
        return [item for item in self.all if item.status != "ok"]


@dataclass(frozen=True)
class VerifyReport:
    """The checked groups, how many files were verified by the manifest alone, and the report files."""

    groups: tuple[Checked, ...]
    by_manifest: int
    output: Path
    json: Path

    @property
    def issues(self) -> int:
        return sum(len(group.issues) for group in self.groups)

    @property
    def files(self) -> int:
        return sum(len(group.files) for group in self.groups)


def verify(request: VerifyRequest) -> VerifyReport:
    """Check the files of all tables of some groups and write both reports.

    Raises:
        UsageError: unknown group, no table at all, or options that contradict each other.
    """
    if request.workers < 1 or request.timeout <= 0:
        raise UsageError("--workers must be at least 1 and --timeout above 0 seconds.")
    if request.manifest is not None and request.depth == "headers":
        raise UsageError("--manifest holds digests of files that were decoded: leave out --depth headers.")
    if not request.data_root.is_dir():
        raise UsageError(f"--data-root {request.data_root} is no folder.")
    groups = choose_groups(request)
    digests = [read_group(group, request) for group in groups]
    if not any(rows is not None for group in groups for _, rows in group.tables):
        names = ", ".join(name for group in groups for name, _ in group.tables)
        raise UsageError(f"There is no table in {request.table_root / 'data'} to check (looked for {names}). Set LARY_ROOT.")  # fmt: skip # noqa: E501
    by_manifest = check_files(request, groups, digests)
    for group in groups:
        compare_pairs(group)
    report = VerifyReport(tuple(groups), by_manifest, request.output, request.output.with_suffix(".json"))
    write_text(report.output, text_report(request, groups))
    write_json(report.json, json_report(request, report))
    return report


def choose_groups(request: VerifyRequest) -> list[Checked]:
    """The groups that were asked for, by name. Raises UsageError for an unknown one."""
    found: dict[str, list[DatasetSpec]] = {}
    claimed: set[Path] = set()
    wanted = {name.lower() for name in request.groups}
    known = []
    for spec in DATASETS:
        name = spec.integrity_group or spec.name
        known += [name, spec.name]
        tables = {path for split in spec.splits if (path := table_of(spec, split, request)) is not None}
        if wanted:
            chosen = bool(wanted & {name.lower(), spec.name.lower()})
        else:  # tables that another data set has already are checked once
            chosen = bool(spec.integrity_group) or bool(tables - claimed)
        if chosen:
            claimed |= tables
            found.setdefault(name, []).append(spec)
    for name in request.groups:
        if name.lower() not in {entry.lower() for entry in known}:
            raise UsageError(f"There is no group '{name}'.{suggest(name, list(dict.fromkeys(known)))}")
    return [Checked(name, tuple(found[name])) for name in sorted(found)]


def table_of(spec: DatasetSpec, split: str, request: VerifyRequest) -> Path | None:
    """The table of a split, or None."""
    try:
        return find_table(spec, split, request.table_root)
    except UsageError:
        return None


def read_group(group: Checked, request: VerifyRequest) -> str:
    """Collect the files that the tables of a group name; returns the tables' digests."""
    digests = []
    for spec in group.specs:
        for split in spec.splits:
            path = table_of(spec, split, request)
            if path is None:
                group.tables.append((spec.table_name(split), None))
                continue
            digests.append(file_digest(path))
            try:
                columns, rows = read_rows(path)
            except UsageError as error:
                group.tables.append((path.name, 0))
                group.problems.append(problem(path, "", 1, str(error)))
                continue
            group.tables.append((path.name, len(rows)))
            cells = dict(zip(columns, zip(*rows, strict=True), strict=True))
            collect(group, spec, path, cells, request.data_root.absolute() / spec.split(split).root)
            if request.depth == "decode":
                group.problems += [problem(path, *found) for found in table_problems(spec, path, cells)]
    return digest(*digests)


def problem(path: Path, column: str, refs: int, reason: str) -> Reference:
    """A finding about a table itself."""
    item = Reference("table", (str(path),), path.name, column, refs=refs)
    item.settle("corrupt", reason)
    return item


def collect(group: Checked, spec: DatasetSpec, path: Path, cells: dict[str, tuple[str, ...]], root: Path) -> None:
    """Add a table's files, each once: column by column, the most frequent first; empty cells are passed over."""
    space = spec.target if isinstance(spec.target, ActionSpace) else None
    columns: list[tuple[str, Kind, str, tuple[int, int] | None]] = [
        (name, "video" if spec.media == "clip" else "image", IMAGE_FOLDER, None) for name in MEDIA_COLUMNS[spec.media]
    ]
    if space is not None:
        columns.append((TARGET_COLUMN, "npy", ACTION_FOLDER, (space.horizon, len(space.dims))))
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
            if spec.media == "pair":
                by_cell[name, cell] = item
    if spec.media == "pair" and all(name in cells for name in MEDIA_COLUMNS["pair"]):
        first, second = MEDIA_COLUMNS["pair"]
        for source, target in zip(cells[first], cells[second], strict=True):
            if (first, source) in by_cell and (second, target) in by_cell:
                group.pairs.append((by_cell[first, source], by_cell[second, target]))


def check_files(request: VerifyRequest, groups: Sequence[Checked], digests: Sequence[str]) -> int:
    """Settle every file, by the journal, the manifest's digests or decoding; returns how many digests sufficed."""
    manifest = Manifest.read(request.manifest, request.data_root)
    identity = digest(str(request.data_root.absolute()), request.depth, manifest.digest, *digests)
    journal = Journal(request.output.with_name(f".{request.output.name}.journal"), identity, fresh=request.restart)
    waiting: list[Reference] = []
    for item in (item for group in groups for item in group.files.values() if not item.status):
        known = journal.known.get(item.key)
        if known is None:
            waiting.append(item)
        else:
            take_answer(item, known, manifest)
    done = sum(len(group.files) for group in groups) - len(waiting)
    if journal.known:
        log.info("going on after %d files that an interrupted run found whole", len(journal.known))
    # More processes than these cost memory and the time to start them, and gain nothing.
    workers = min(request.workers, PER_CORE * (os.cpu_count() or 1), len(waiting) // FILES_PER_WORKER + 1)
    compared = 0
    try:
        with progress(done + len(waiting), "checking", "file", done=done) as bar:
            ask = ask_all(
                lambda position: question(waiting[position], request, manifest),
                len(waiting), workers, request.timeout, request.command,
            )  # fmt: skip
            for position, answer in ask:
                item = waiting[position]
                known_digest = manifest.digest_of(item.places[0], item.kind, item.shape)
                compared += answer["status"] == "ok" and known_digest is not None
                take_answer(item, answer, manifest)
                journal.add(item.key, answer)
                bar.advance()
    finally:
        journal.close()
    manifest.write()
    journal.remove()
    return compared


def question(item: Reference, request: VerifyRequest, manifest: Manifest) -> dict[str, Any]:
    """What a worker is asked about a file."""
    return {
        "places": item.places, "media": item.kind, "depth": request.depth, "shape": item.shape,
        "hash": request.manifest is not None, "sha256": manifest.digest_of(item.places[0], item.kind, item.shape),
    }  # fmt: skip


def take_answer(item: Reference, answer: dict[str, Any], manifest: Manifest) -> None:
    """Settle a file as a worker's answer says; a whole one joins the manifest."""
    item.settle(answer["status"], answer["reason"])
    if item.status == "ok":
        item.found = answer["shape"] or manifest.shape_of(item.places[0])
        if answer["sha256"]:
            manifest.add(item.places[0], answer["sha256"], answer["size"], item.kind, item.found)


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


def text_report(request: VerifyRequest, groups: Sequence[Checked]) -> str:
    """The report in the published layout; fields of an issue are separated by tabs."""
    lines = ["LARYBench Dataset Integrity Report", f"Data root: {request.data_root}"]
    lines += [f"Check method: {METHODS[request.depth]}", "", "Metadata CSVs", ""]
    for group in groups:
        lines.append(f"[{group.name}]")
        lines += [
            f"  {name}: {'missing' if rows is None else 'exists'}, rows={rows or 0}" for name, rows in group.tables
        ]
        lines.append("")
    lines += ["Summary", ""]
    for group in groups:
        lines += [f"[{group.name}]", *(f"  {kind}: {counted(group, kind)}" for kind in kinds(group)), ""]
    lines += ["Issues", ""]
    for group in groups:
        lines.append(f"[{group.name}] issue_count={len(group.issues)}")
        for item in group.issues:
            fields = [item.status, item.kind, f"refs={item.refs}", f"csv={item.table}", f"column={item.column}"]
            lines.append("  " + "\t".join([*fields, f"path={item.places[0]}", f"reason={item.reason}"]))
        lines.append("")
    return "\n".join(lines)


def kinds(group: Checked) -> tuple[Kind, ...]:
    """The kinds of files that the report counts; tables only where something is wrong with one."""
    return ("video", "image", "npy", "table") if group.problems else ("video", "image", "npy")


def counts(group: Checked, kind: Kind) -> dict[str, int]:
    """Numbers of files of a kind by status."""
    statuses = Counter(item.status for item in group.all if item.kind == kind)
    return {"total": statuses.total(), **{status: statuses[status] for status in ("ok", "missing", "corrupt")}}


def counted(group: Checked, kind: Kind) -> str:
    return " ".join(f"{name}={number}" for name, number in counts(group, kind).items())


def json_report(request: VerifyRequest, report: VerifyReport) -> dict[str, Any]:
    """The same as JSON, with the decoded shapes left out."""
    text: Callable[[Reference], dict[str, Any]] = lambda item: {  # noqa: E731
        "status": item.status, "kind": item.kind, "refs": item.refs, "table": item.table, "column": item.column,
        "path": item.places[0], "reason": item.reason,
    }  # fmt: skip
    return {
        "version": JSON_VERSION,
        "data_root": str(request.data_root),
        "depth": request.depth,
        "verified_by_manifest": report.by_manifest,
        "groups": {
            group.name: {
                "tables": [
                    {"name": name, "exists": rows is not None, "rows": rows or 0} for name, rows in group.tables
                ],
                "summary": {kind: counts(group, kind) for kind in kinds(group)},
                "issues": [text(item) for item in group.issues],
            }
            for group in report.groups
        },
    }
