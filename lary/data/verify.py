"""The integrity checker: are the files of the tables there, whole, and of the right shape.

Worker processes decode the files, which can hang or crash a decoder. A
manifest of digests lets a later run compare instead. The text report has the
published layout, and ``depth="headers"`` inspects as the published checker.
"""

import itertools
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lary.data import tables
from lary.data.actions import read_chunk
from lary.data.configs import CheckConfig
from lary.data.frames import decode_video
from lary.data.images import read_image
from lary.data.spec import DATASETS, ActionSpace, DatasetSpec
from lary.data.splits import find_table
from lary.files import file_digest, inside, write_json, write_text
from lary.registry import suggest
from lary.runtime import log, progress, usable_cores
from lary.settings import Settings
from lary.types import JsonDict, MediaError, UsageError
from lary.workers import Answer, NoAnswer, Pool, Question

METHODS = {
    "decode": "decode images, videos and arrays in full; hold arrays, pairs and tables against the data set's record",
    "headers": "open image with Pillow's verify; open video with FFmpeg; check npy existence",
}
STATUSES = ("ok", "missing", "corrupt")
VERSION = 1
"""Version of the report in JSON, and of manifests."""
PER_CORE, FILES_PER_WORKER = 4, 64
"""More worker processes cost memory and time to start, and gain nothing."""
PATIENCE = 4
"""How many times longer a second try may take."""


@dataclass(slots=True, eq=False)
class CheckedFile:
    """A file that tables name, or a table, and the first column that names it.

    The first of `places` that exists counts; `shape` is the record's (K, A),
    `found` the decoded one.
    """

    kind: str
    places: tuple[str, ...]
    table: str
    column: str
    shape: tuple[int, int] | None = None
    refs: int = 0
    status: str = ""
    reason: str = ""
    found: list[int] | None = None


@dataclass
class CheckedGroup:
    """A group of the report.

    `frames` has by table its path, and each row's clip and frame numbers.
    """

    tables: list[JsonDict] = field(default_factory=list)
    files: dict[tuple[str, str], CheckedFile] = field(default_factory=dict)
    pairs: list[tuple[CheckedFile, CheckedFile]] = field(default_factory=list)
    frames: list[tuple[Path, list[CheckedFile | None], list[str]]] = field(default_factory=list)
    problems: list[CheckedFile] = field(default_factory=list)

    def report(self) -> JsonDict:
        """Plain values; tables are counted only where one is wrong."""
        every = [*self.files.values(), *self.problems]
        counts = Counter((item.kind, item.status) for item in every)
        summary, names = {}, ("status", "kind", "refs", "table", "column")
        for kind in ("video", "image", "npy", *(("table",) if self.problems else ())):
            numbers = {status: counts[kind, status] for status in STATUSES}
            summary[kind] = {"total": sum(numbers.values()), **numbers}
        issues = [
            {**{name: getattr(item, name) for name in names}, "path": item.places[0], "reason": item.reason}
            for item in every
            if item.status != "ok"
        ]
        return {"tables": self.tables, "summary": summary, "issues": issues}


class VerifyReport(NamedTuple):
    files: int
    issues: int
    by_manifest: int
    output: Path


def verify(config: CheckConfig, settings: Settings) -> VerifyReport:
    """Check the files of some groups and write both reports. Raises UsageError."""
    root, data_dir = settings.path("LARY_ROOT"), settings.path("DATA_DIR").absolute()
    config.check_counts("workers")
    if config.timeout <= 0:
        raise UsageError("--timeout must be above 0 seconds.")
    if config.manifest and config.depth == "headers":
        raise UsageError("--manifest is of files that were decoded: leave out --depth headers.")
    if not data_dir.is_dir():
        raise UsageError(f"DATA_DIR {data_dir} is no folder.")
    groups = read_groups(config, root, data_dir)
    files = [item for group in groups.values() for item in group.files.values()]
    by_manifest = check_files(config, data_dir, files)
    for group in groups.values():
        for source, target in group.pairs:
            if source.found and target.found and source.found != target.found:
                sizes = [f"{width}x{height}" for height, width in (target.found, source.found)]
                target.status, target.found = "corrupt", None
                target.reason = f"{sizes[0]} pixels, its source image {source.places[0]} has {sizes[1]}"
        check_frame_numbers(group)
    found = {name: group.report() for name, group in groups.items()}
    report = {
        "version": VERSION,
        "data_root": str(settings.path("DATA_DIR")),
        "depth": config.depth,
        "verified_by_manifest": by_manifest,
        "groups": found,
    }
    write_text(config.output, text_report(report))
    write_json(config.output.with_suffix(".json"), report)
    issues = sum(len(group["issues"]) for group in found.values())
    return VerifyReport(len(files), issues, by_manifest, config.output)


def read_groups(config: CheckConfig, root: Path, data_dir: Path) -> dict[str, CheckedGroup]:
    """The named groups, or the published ones and all with a table."""
    wanted, known = {name.lower() for name in config.groups}, list[str]()
    found: dict[str, CheckedGroup] = {}
    claimed = set[Path]()
    for spec in DATASETS:
        names = [spec.integrity_group or spec.name, spec.name]
        known += names
        paths = {}
        for split in spec.splits:
            with suppress(UsageError):
                paths[split] = find_table(spec, split, root)
        # By default a table that another record has already is checked once.
        usual = spec.integrity_group or not claimed.issuperset(paths.values())
        if wanted.intersection(map(str.lower, names)) if wanted else usual:
            claimed.update(paths.values())
            group = found.setdefault(names[0], CheckedGroup())
            for split in spec.splits:
                read_split(group, spec, split, paths.get(split), data_dir)
            if config.depth == "headers":
                group.problems.clear()
    for name in config.groups:
        if name.lower() not in map(str.lower, known):
            raise UsageError(f"There is no group '{name}'.{suggest(name, known)}")
    if not any(table["exists"] for group in found.values() for table in group.tables):
        raise UsageError(f"{root / 'data'} has no table of what is to be checked. Set LARY_ROOT.")
    return dict(sorted(found.items()))


def read_split(group: CheckedGroup, spec: DatasetSpec, split: str, path: Path | None, data_dir: Path) -> None:
    """Collect the files that a table names, and what is wrong with it."""
    name = path.name if path else spec.table_name(split)
    entry = {"name": name, "exists": path is not None, "rows": 0}
    group.tables.append(entry)
    if not path:
        return
    try:
        frame = tables.read_frame(path)
    except UsageError as error:
        return group.problems.append(table_problem(path, "", 1, str(error)))
    entry["rows"] = len(frame)
    root, media = data_dir / spec.split(split).root, tables.MEDIA_COLUMNS[spec.media]
    by_cell: dict[str, dict[str, CheckedFile]] = {}
    for column in tables.needed_columns(spec):
        if column not in frame:
            reason = f"there is no column '{column}'; the table has: {', '.join(frame.columns)}"
            group.problems.append(table_problem(path, column, 1, reason))
            continue
        kind, shape = "video" if spec.media == "clip" else "image", None
        if column == tables.TARGET_COLUMN and isinstance(spec.target, ActionSpace):
            kind, shape = "npy", (spec.target.horizon, len(spec.target.dims))
        wrong, here = dict[str, str](), by_cell.setdefault(column, {})
        cells = frame[column].tolist()
        for cell, count in Counter(cells).most_common():
            try:
                if reason := tables.cell_problem(spec, column, cell):
                    raise UsageError(reason)
                if column in media or kind == "npy":
                    places = tables.places(spec, cell, column)
                    full = tuple(str(inside(root, place)) for place in places)
                    new = CheckedFile(kind, full, name, column, shape)
                    here[cell] = group.files.setdefault((kind, full[0]), new)
                    here[cell].refs += count
            except UsageError as error:
                wrong[cell] = str(error).rstrip(".")
        rows = [row for row, cell in enumerate(cells) if cell in wrong]
        if rows:
            group.problems.append(rows_problem(path, column, rows, wrong[cells[rows[0]]]))
    if spec.media == "pair" and by_cell.keys() >= set(media):
        sources, targets = (map(by_cell[column].get, frame[column]) for column in media)
        group.pairs += [(one, other) for one, other in zip(sources, targets, strict=True) if one and other]
    if spec.media == "clip" and by_cell.keys() >= {media[0], tables.INDEX_COLUMN}:
        clips = [by_cell[media[0]].get(cell) for cell in frame[media[0]]]
        group.frames.append((path, clips, frame[tables.INDEX_COLUMN].tolist()))


def table_problem(path: Path, column: str, count: int, reason: str) -> CheckedFile:
    return CheckedFile("table", (str(path),), path.name, column, None, count, "corrupt", reason.rstrip("."))


def rows_problem(path: Path, column: str, rows: Sequence[int], reason: str) -> CheckedFile:
    """A problem of some rows of a table; `reason` is that of the first."""
    about = f"row {rows[0] + 1} (line {tables.line_of(path, rows[0])}): {reason}"
    if len(rows) > 1:
        about += f", and {len(rows) - 1} more rows"
    return table_problem(path, column, len(rows), about)


def check_frame_numbers(group: CheckedGroup) -> None:
    """Report frame numbers behind the end of clips that were decoded."""
    for path, clips, cells in group.frames:
        wrong = {}
        for row, (clip, cell) in enumerate(zip(clips, cells, strict=True)):
            if clip and clip.found and tables.INDICES.fullmatch(cell):
                count, last = clip.found[0], max(map(int, cell.split(",")))
                if last >= count:
                    wrong[row] = f"frame {last} is asked for, and {clip.places[0]} ends with frame {count - 1}"
        if wrong:
            group.problems.append(rows_problem(path, tables.INDEX_COLUMN, [*wrong], next(iter(wrong.values()))))


def check_files(config: CheckConfig, data_dir: Path, files: Sequence[CheckedFile]) -> int:
    """Check every file; return how many by digest.

    A killed run resumes by the manifest, or a hidden one.
    """
    path = config.manifest or config.output.with_name(f".{config.output.name}.manifest")
    entries, questions = read_digests(path), list[Question]()
    if entries and not config.manifest:
        log.info("resuming after %d files that an interrupted run found whole", len(entries))
    for item in files:
        name = Path(item.places[0]).relative_to(data_dir).as_posix()
        sha256, _, kind, shape = entries.get(name, (None,) * 4)
        known = kind == item.kind and (item.shape is None or shape == list(item.shape))
        question = {"name": name, "sha256": sha256 if known else None, "whole": config.depth == "decode"}
        questions.append(asdict(item) | question | {"strict": bool(config.manifest and name in entries)})
    workers = min(config.workers, PER_CORE * usable_cores(), len(files) // FILES_PER_WORKER + 1)
    compared = 0
    write_text(path, digests_text(entries))  # without a line that was torn
    with path.open("a", encoding="utf-8") as stream, progress(len(files), "checking", "file") as bar:
        for position, answer in ask_all(questions, workers, config.timeout):
            bar.advance()
            item, question = files[position], questions[position]
            item.status, item.reason = answer["status"], answer["reason"]
            if item.status != "ok":
                continue
            name = question["name"]
            item.found = answer["shape"] or entries.get(name, [None])[-1]
            compared += question["strict"] and question["sha256"] is not None
            entry = [answer["sha256"], answer["size"], item.kind, item.found]
            if question["whole"] and entry != entries.get(name):
                entries[name] = entry
                stream.write(json.dumps([name, *entry], ensure_ascii=False) + "\n")
                stream.flush()
    if not config.manifest:
        path.unlink()
    else:
        write_text(path, digests_text(entries))
    return compared


def digests_text(entries: dict[str, list[Any]]) -> str:
    """Lines of JSON: the version, then path, SHA-256, size, kind and shape by file."""
    lines = [{"manifest": VERSION}, *([name, *entry] for name, entry in sorted(entries.items()))]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_digests(path: Path) -> dict[str, list[Any]]:
    """The entries of a manifest by path, if it exists. Raises UsageError."""
    if not path.exists():
        return {}
    try:
        first, *lines = path.read_text("utf-8").split("\n")
        if json.loads(first) != {"manifest": VERSION}:
            raise ValueError("it is of another version, make a new one")
        # What follows the last line end was torn when a run was killed.
        return {name: [*four] for name, *four in map(json.loads, lines[:-1]) if len(four) == 4}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no manifest of 'lary data check': {error}.") from error


def ask_all(questions: Sequence[Question], workers: int, seconds: float) -> Iterator[tuple[int, Answer]]:
    """Position of every question and its answer, in order of completion.

    Files without an answer are tried again at the end with more time: a
    crowded machine accuses no good file.
    """
    left: Sequence[int] = range(len(questions))
    for processes, patience in ((workers, seconds), (2, PATIENCE * seconds)):
        asked, left = left, []
        with Pool(f"{__name__}:answers", min(processes, workers, len(asked))) as pool:
            for position, found in pool.map([questions[number] for number in asked], patience):
                if not isinstance(found, NoAnswer):
                    yield asked[position], found
                elif patience == seconds:
                    left.append(asked[position])
                else:
                    yield asked[position], {"status": "corrupt", "reason": str(found).rstrip(".")}


def answers() -> Callable[[Question], Answer]:
    """Prepare a worker process: libraries are loaded before time is measured."""
    import av  # noqa: F401
    import cv2

    cv2.setNumThreads(1)
    return answer


def answer(question: Question) -> Answer:
    """Inspect a file: ``status`` and ``reason``; if ok also ``shape``, ``size`` and ``sha256``.

    A question has ``places``, ``kind`` and ``shape``; ``whole``: decode the
    file; ``sha256``: a known digest that replaces decoding; ``strict``:
    another is wrong.
    """
    found: Answer = {"status": "ok", "reason": "", "shape": None, "sha256": None}
    try:
        places = question["places"]
        path = Path(next(filter(os.path.lexists, places), places[0]))
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise MediaError("path is not a file")
        found["size"] = about.st_size
        if question["whole"]:
            found["sha256"] = file_digest(path, 64)
            if question["sha256"] == found["sha256"]:
                return found
            if question["sha256"] and question["strict"]:
                raise MediaError("the content differs from the manifest")
        found["shape"] = inspect(path, question["kind"], question["shape"], whole=question["whole"])
        return found
    except (FileNotFoundError, NotADirectoryError):
        return {"status": "missing", "reason": "file does not exist"}
    except Exception as error:  # readers fail in ways of their own
        name = "" if isinstance(error, MediaError) else f"{type(error).__name__}: "
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
        return {"status": "corrupt", "reason": name + reason}


def inspect(path: Path, kind: str, shape: list[int] | None, *, whole: bool) -> list[int] | None:
    """Decode a file, or with `whole` unset its header; (H, W), (T, H, W) or (K, A)."""
    if kind == "image":
        if whole:
            return list(read_image(path).shape[:2])
        from PIL import Image

        with Image.open(path) as image:
            image.verify()
    if kind == "video":
        count = height = width = 0
        for frame in itertools.islice(decode_video(path), None if whole else 1):
            count, height, width = count + 1, frame.height, frame.width
        return [count, height, width] if whole else None
    if shape and whole:
        horizon, size = shape
        read_chunk(path, ActionSpace(("",) * size, horizon))
    return shape


def text_report(report: JsonDict) -> str:
    """The published layout."""
    listed, summary, issues = ["Metadata CSVs", ""], ["Summary", ""], ["Issues", ""]
    issue = "  {status}\t{kind}\trefs={refs}\tcsv={table}\tcolumn={column}\tpath={path}\treason={reason}"
    for name, group in report["groups"].items():
        listed.append(f"[{name}]")
        for table in group["tables"]:
            listed.append(f"  {table['name']}: {'exists' if table['exists'] else 'missing'}, rows={table['rows']}")
        summary.append(f"[{name}]")
        for kind, counts in group["summary"].items():
            summary.append(" ".join([f"  {kind}:", *(f"{key}={count}" for key, count in counts.items())]))
        issues.append(f"[{name}] issue_count={len(group['issues'])}")
        issues += [issue.format(**about) for about in group["issues"]]
        for section in (listed, summary, issues):
            section.append("")
    head = ["LARYBench Dataset Integrity Report", f"Data root: {report['data_root']}"]
    head += [f"Check method: {METHODS[report['depth']]}", ""]
    return "\n".join([*head, *listed, *summary, *issues])
