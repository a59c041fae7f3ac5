"""The audit of a data set: what its splits share, what they lack, and what is odd in them.

The tables alone tell most of it. Frames are decoded where that is asked for. A leak is a
file, an episode or video, a segment or a picture that is in two splits; everything else is
a warning or a note. Splits that are drawn from others (`DatasetSpec.drawn`) are audited
when they are named.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas

from lary.data.configs import AuditConfig
from lary.data.frames import read_frames
from lary.data.spec import DatasetSpec, LabelSpace
from lary.data.splits import find_table
from lary.data.tables import (
    MEDIA_COLUMNS,
    SampleTable,
    embodiment_column,
    read_table,
)
from lary.runtime import in_threads, progress
from lary.settings import Settings
from lary.types import MediaError, UsageError

MOMENT = re.compile(r"(\d+|start|begin|first|end|last)\.[^./]+$")
"""When a frame was taken: the number or word at the end of its name."""
WORDS = {"start": 0, "begin": 0, "first": 0, "end": 1, "last": 1}

KINDS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
"""Severity and text of all findings by name; names stay the same, for programs."""
ORDER = ("leak", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found in one split, or in two that were compared.

    Attributes:
        kind: one of `KINDS`.
        count, total: how many of how many.
        examples: a few of them.
    """

    severity: str
    kind: str
    splits: tuple[str, ...]
    count: int
    total: int
    text: str
    examples: tuple[str, ...] = ()


class Findings(list[Finding]):
    """Findings about one split, or about two that were compared."""

    def __init__(self, *parts: Part) -> None:
        super().__init__()
        one, other = parts[0], parts[-1]
        self.splits, self.rows = tuple(part.name for part in parts), len(other.rows)
        self.facts: dict[str, object] = {"one": one.name, "other": other.name, "unit": other.unit, "rows": self.rows}

    def add(self, kind: str, hits: Sequence[str], total: int | None = None, **facts: object) -> None:
        """Add a finding if anything was hit, of all rows or of `total`."""
        if hits:
            severity, text = KINDS[kind]
            total = self.rows if total is None else total
            text = f"{len(hits)} of {total} {text.format(**self.facts, **facts)}"
            examples = tuple(filter(None, hits[:3]))
            self.append(Finding(severity, kind, self.splits, len(hits), total, text, examples))


@dataclass(frozen=True)
class AuditReport:
    """The splits in numbers, and what was found, leaks first."""

    dataset: str
    splits: tuple[dict[str, Any], ...]
    findings: tuple[Finding, ...]

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """The findings that make a comparison of splits worthless."""
        return tuple(finding for finding in self.findings if finding.severity == "leak")

    def json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {"version": 1, **asdict(self), "leaks": len(self.leaks)}

    def text(self) -> str:
        """The report for people."""
        lines = [f"{self.dataset}: {', '.join(facts['split'] for facts in self.splits)}"]
        for facts in self.splits:
            robots = sum(map(bool, facts["embodiments"]))
            line = f"  {facts['split']}: {facts['rows']} rows, {facts['groups']} groups, {robots} robot types"
            if facts["classes"]:
                line += f", {len(facts['classes'])} classes"
            lines.append(f"{line} ({facts['table']})")
        for finding in self.findings:
            line = f"{finding.severity:8}{' and '.join(finding.splits)}: {finding.text}"
            if finding.examples:
                line += f", such as {', '.join(finding.examples)}"
            lines.append(line)
        number = Counter(finding.severity for finding in self.findings)
        lines.append(", ".join(f"{number[name]} {name}s" for name in ORDER))
        return "\n".join(lines)


class Part:
    """One split: its table, and its rows with paths as they are read.

    The columns of ``rows``: ``first`` and ``last``, paths of the images or twice that of
    the clip; ``shown``, both or the clip and its frame indices; ``group``, the episode or
    video; ``target``, the class or the path of the action file; ``robot``.
    """

    def __init__(self, table: SampleTable) -> None:
        self.table, self.name, self.labelled = table, table.split, isinstance(table.spec.target, LabelSpace)
        prefix = f"{table.spec.split(self.name).root}/"  # keeps equal names under different roots apart
        lines = []
        for sample in table:
            media = [prefix + path for path in sample.media]
            target = sample.target if self.labelled else prefix + sample.target
            shown = (*media, *map(str, sample.frame_index))
            lines.append((media[0], media[-1], shown, prefix + sample.group, target, sample.embodiment))
        columns = ["first", "last", "shown", "group", "target", "robot"]
        self.rows = pandas.DataFrame(lines, columns=columns)
        self.unit = "episode" if table.spec.media == "pair" else "video"

    def facts(self) -> dict[str, Any]:
        """The split in numbers."""
        classes = Counter(self.rows["target"] if self.labelled else ())
        return {
            "split": self.name,
            "table": str(self.table.path),
            "rows": len(self.rows),
            "groups": self.rows["group"].nunique(),
            "classes": dict(sorted(classes.items())),
            "embodiments": dict(sorted(Counter(self.rows["robot"]).items())),
        }

    def counts(self) -> dict[str, Counter[str]]:
        """Rows per group, and per segment, which is the folder of a pair."""
        folders = self.rows["first"].str.rpartition("/")[0] if self.unit == "episode" else ()
        return {"same_group": Counter(self.rows["group"]), "same_segment": Counter(folders)}


def audit(spec: DatasetSpec, config: AuditConfig, settings: Settings) -> AuditReport:
    """Audit the splits of a data set. Raises UsageError."""
    parts = open_parts(spec, config, settings)
    findings: list[Finding] = []
    contents, splits = [], []
    for part in parts:
        findings += inspect_table(part)
        contents.append(digest_frames(part, config.workers, findings) if config.frames else {})
        splits.append(part.facts())
    for (one, mine), (other, theirs) in combinations(zip(parts, contents, strict=True), 2):
        findings += compare_tables(one, other)
        found = Findings(one, other)
        first = {digest: name for name, digests in reversed(mine.items()) for digest in digests}
        twins = {name: first[digest] for name, digests in theirs.items() for digest in digests if digest in first}
        renamed = [f"{name} = {twin}" for name, twin in twins.items() if name not in mine]
        found.add("same_frame_content", renamed, len(theirs))
        findings += found
    findings.sort(key=lambda finding: ORDER.index(finding.severity))
    return AuditReport(spec.name, tuple(splits), tuple(findings))


def open_parts(spec: DatasetSpec, config: AuditConfig, settings: Settings) -> list[Part]:
    """Read the tables. Raises UsageError."""
    tables: dict[str, Path] = {}
    for entry in config.table:
        name, _, file = entry.partition("=")
        if not file:
            raise UsageError(f"--table {entry}: expected SPLIT=FILE.")
        tables[name] = Path(file)
    # Without files to open, paths are only compared.
    data_dir = settings.path("DATA_DIR") if config.frames else Path()
    usual = [name for name in (spec.train, spec.validation, spec.unseen) if name in {*spec.splits, *spec.drawn}]
    found, missing = [], ""
    for name in dict.fromkeys((*(config.splits or usual), *tables)):
        try:
            path = find_table(spec, name, settings.path("LARY_ROOT"), tables.get(name))
        except UsageError as error:
            if name in config.splits or name in tables:
                raise
            missing = str(error)
            continue
        found.append(Part(read_table(spec, name, path=path, data_dir=data_dir)))
    if not found:
        raise UsageError(f"There is nothing to audit. {missing}")
    return found


# One split


def inspect_table(part: Part) -> Findings:
    """What a split's own table says: its rows, classes, robot types and pairs."""
    found, rows, spec, frame = Findings(part), part.rows, part.table.spec, part.table.frame
    first = rows["first"]
    if spec.path_repair is not None:
        cells = zip(frame[MEDIA_COLUMNS[spec.media][0]], first, strict=True)
        lost = [f"{cell} (read as {path})" for cell, path in cells if re.search(spec.path_repair[0], cell)]
        found.add("lost_folder", lost)
    # Without a match the path itself is the group; a pattern that wants just that is fine.
    pairs = zip(first, part.table.groups(), strict=True)
    alone = [path for path, group in pairs if path.endswith(group) and re.search(spec.group_pattern, group) is None]
    found.add("no_group", alone)
    column = embodiment_column(spec, list(frame.columns))
    if column is not None:
        unnamed = (frame[column].str.strip() == "").to_numpy(bool)
        found.add("empty_robot_type", list(first[unnamed]), known=(rows["robot"][unnamed] != "").sum())
    again, equal = rows.duplicated("shown"), rows.duplicated(["shown", "target"])
    found.add("repeated_row", list(first[equal]))
    found.add("contradiction", list(first[again & ~equal]))
    if part.labelled:
        there, classes = set(rows["target"]), spec.labels.classes
        found.add("absent_class", [name for name in classes if name not in there], len(classes))
    if part.unit == "episode":
        inspect_pairs(part, found)
    return found


def inspect_pairs(part: Part, found: Findings) -> None:
    """Find pairs against the flow of time, and pairs that don't span the stride."""
    rows, stride = part.rows, part.table.spec.stride
    moments = [rows[name].str.extract(MOMENT)[0] for name in ("first", "last")]
    source, target = (pandas.to_numeric(moment, errors="coerce") for moment in moments)
    before, after = (moment.map(WORDS) for moment in moments)
    step = (target - source).fillna(after - before)  # not a number where the names don't tell
    found.add("reversed_pair", list(rows["first"][step < 0]), forward=(step > 0).sum())
    segments = Counter(map(frozenset, rows["shown"]))
    both = [""] * sum(count > 1 for count in segments.values())
    # Some turned round, others not: pairs were turned to augment, and then split by row.
    if (step < 0).any() and len(both) < len(segments):
        found.add("both_directions", both, len(segments))
    found.add("same_frame", list(rows["first"][step == 0]))
    if stride is not None:
        odd = rows[(target - source).abs().fillna(stride) != stride]
        spans = [f"{first} to {last}" for first, last in zip(odd["first"], odd["last"], strict=True)]
        found.add("other_stride", spans, stride=stride)


def digest_frames(part: Part, workers: int, findings: list[Finding]) -> dict[str, list[bytes]]:
    """Digests of the pixels of a split's images, or of three sampled frames of each clip.

    What the split says by itself joins the findings.
    """
    files: dict[str, tuple[Path, tuple[int, ...]]] = {}
    pairs = list(zip(part.rows["first"], part.rows["last"], strict=True))
    for names, sample in zip(pairs, part.table, strict=True):
        index = sample.frame_index
        few = index and (index[0], index[len(index) // 2], index[-1])
        for name, path in zip(names, part.table.media_path(sample), strict=False):  # a clip has one
            files.setdefault(name, (path, few))

    def digests(file: tuple[Path, tuple[int, ...]]) -> list[bytes] | str:
        try:
            images = read_frames([file[0]], file[1])
        except MediaError as error:
            return str(error)
        return [hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest() for image in images]

    with progress(len(files), f"frames of {part.name}", "file") as bar:
        results = list(in_threads(digests, list(files.values()), max(workers, 1), bar=bar))
    found = Findings(part)
    failures = [result for result in results if isinstance(result, str)]
    found.add("unreadable", failures, len(files))
    content = {name: result for name, result in zip(files, results, strict=True) if not isinstance(result, str)}
    known = [pair for pair in pairs if pair[0] != pair[1] and content.keys() >= {*pair}]
    still = [source for source, target in known if content[source] == content[target]]
    found.add("equal_images", still, len(known))
    findings += found
    return content


# Two splits


def compare_tables(one: Part, other: Part) -> Findings:
    """What two splits share, and what the second alone has; `one` as a rule trains."""
    found = Findings(one, other)
    mine, theirs = ({*part.rows["first"], *part.rows["last"]} for part in (one, other))
    found.add("same_file", sorted(mine & theirs), len(theirs))
    if mine & theirs:
        inputs = set(map(frozenset, one.rows["shown"]))
        found.add("same_sample", [key[0] for key in other.rows["shown"] if frozenset(key) in inputs])
    before, after = one.counts(), other.counts()
    for kind, counts in after.items():
        if kind == "same_segment" and not any(len(each[kind]) > len(each["same_group"]) for each in (before, after)):
            continue  # every group is one segment
        hits = [name for name in counts if name in before[kind]]
        shared = sum(counts[name] for name in hits)
        found.add(kind, hits, len(counts), shared=shared)
    kinds = {"same_action_file": "target", "robot_not_in_training": "robot"}
    if one.labelled:
        kinds = {"class_not_in_training": "target", "robot_not_in_training": "robot"}
    for kind, column in kinds.items():
        known, new = set(one.rows[column]), set(other.rows[column])
        named = new & known if kind == "same_action_file" else new - known
        found.add(kind, sorted(name or "(empty)" for name in named), len(new))
    return found
