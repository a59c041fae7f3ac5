"""The audit of a data set: what its splits share, what they lack, and what is odd in their tables and files.

The tables alone tell most of it (`audit_tables`). Action files and frames are opened where that is asked for. A leak is
a file, an episode or video, a segment or a picture that is in two splits; everything else is a warning or a note.
Splits that are drawn from others (`DatasetSpec.drawn`) are audited when they are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lary.data.actions import Floats, read_actions
from lary.data.audit_tables import Finding, Findings, Part, compare_tables, inspect_table, read_part
from lary.data.configs import AuditConfig
from lary.data.hashing import FARTHEST, FrameHash, FrameSource, Hashes, hash_sources, nearest
from lary.data.spec import DatasetSpec
from lary.data.splits import find_table
from lary.data.tables import read_table
from lary.runtime import progress
from lary.settings import Settings
from lary.types import Failure, UsageError

CONSTANT = 1e-6
"""Range of an action dimension over a whole split at which it counts as constant."""


@dataclass(frozen=True)
class AuditedSplit:
    """A split in numbers: rows, groups (episodes or videos), rows per class and per robot type."""

    split: str
    table: str
    rows: int
    groups: int
    classes: dict[str, int]
    embodiments: dict[str, int]


@dataclass(frozen=True)
class AuditReport:
    """What an audit found, leaks first."""

    dataset: str
    splits: tuple[AuditedSplit, ...]
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
        lines = [f"{self.dataset}: {', '.join(facts.split for facts in self.splits)}"]
        for facts in self.splits:
            robots = sum(bool(name) for name in facts.embodiments)
            kinds = [f"{facts.rows} rows", f"{facts.groups} groups", f"{robots} robot types"]
            if facts.classes:
                kinds.append(f"{len(facts.classes)} classes")
            lines.append(f"  {facts.split}: {', '.join(kinds)} ({facts.table})")
        for finding in self.findings:
            examples = f", such as {', '.join(finding.examples)}" if finding.examples else ""
            lines.append(f"{finding.severity:8}{' and '.join(finding.splits)}: {finding.text}{examples}")
        counts = Counter(finding.severity for finding in self.findings)
        lines.append(", ".join(f"{counts[name]} {name}s" for name in ("leak", "warning", "note")))
        return "\n".join(lines)


def audit(spec: DatasetSpec, config: AuditConfig, settings: Settings) -> AuditReport:
    """Audit the splits of a data set.

    Raises:
        UsageError: an unknown split, a table that is missing or wrong, or no table at all.
    """
    if not 0 <= config.distance <= FARTHEST:
        raise UsageError(f"--distance {config.distance}: expected 0 to {FARTHEST} bits.")
    parts = open_parts(spec, config, settings)
    findings = [finding for part in parts for finding in inspect_table(part)]
    for one, other in combinations(parts, 2):
        findings += compare_tables(one, other)
    if config.actions:
        for part in parts:
            if part.classes is None:
                findings += inspect_actions(part, config.still)
    if config.frames:
        frames = []
        for part in parts:
            frames.append(Frames(part, config))
            findings += frames[-1].findings
        for before, after in combinations(frames, 2):
            findings += compare_frames(before, after, config.distance)
    order = {"leak": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return AuditReport(spec.name, tuple(facts_of(part) for part in parts), tuple(findings))


def open_parts(spec: DatasetSpec, config: AuditConfig, settings: Settings) -> list[Part]:
    """Read the tables. Raises UsageError."""
    tables: dict[str, Path] = {}
    for entry in config.table:
        name, equals, file = entry.partition("=")
        if not equals or not file:
            raise UsageError(f"--table {entry}: expected SPLIT=FILE.")
        tables[name] = Path(file)
    # Without files to open, paths are only compared.
    data_dir = settings.path("DATA_DIR") if config.actions or config.frames else Path()
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
        found.append(read_table(spec, name, path=path, data_dir=data_dir))
    if not found:
        raise UsageError(f"There is nothing to audit. {missing}")
    roots = [spec.split(table.split).root for table in found]
    several = len(set(roots)) > 1
    return [read_part(table, f"{root}/" if several else "") for table, root in zip(found, roots, strict=True)]


def facts_of(part: Part) -> AuditedSplit:
    """Numbers of a split."""
    classes = Counter(part.targets) if part.classes is not None else Counter[str]()
    return AuditedSplit(
        part.name,
        str(part.table.path),
        len(part.table),
        len(part.group_sizes),
        dict(sorted(classes.items())),
        dict(sorted(Counter(part.embodiments).items())),
    )


# Actions


def inspect_actions(part: Part, motion: float) -> list[Finding]:
    """Dimensions that never change, per robot type; pairs in which nothing moves; files that can't be read.

    Args:
        motion: largest change of an action within a pair that counts as none.
    """
    found, space, rows = Findings(part.name), part.table.spec.actions, len(part.table)
    ranges: dict[str, tuple[Floats, Floats]] = {}
    still: list[str] = []
    failures: list[str] = []
    with progress(rows, f"actions of {part.name}", "file") as bar:
        for row, chunk in enumerate(read_actions(part.table)):
            bar.advance()
            if isinstance(chunk, Failure):
                failures.append(chunk.reason)
                continue
            low, high = chunk.min(axis=0), chunk.max(axis=0)
            if (high - low <= motion).all():
                still.append(part.media[0][row])
            known = ranges.get(part.embodiments[row], (low, high))
            ranges[part.embodiments[row]] = np.minimum(known[0], low), np.maximum(known[1], high)
    found.add("warning", "unreadable", failures, rows, "action files can't be read and are not audited")
    for robot, (low, high) in sorted(ranges.items()):
        names = [space.dims[index] for index in np.flatnonzero(high - low <= CONSTANT)]
        text = f"action dimensions of {robot or '(empty)'} never change"
        found.add("warning", "constant_dimension", names, len(space.dims), text, names)
    text = f"pairs show no motion: no action changes by more than {motion:g}"
    found.add("note", "no_motion", still, rows - len(failures), text)
    return found


# Frames


class Frames:
    """The hashed frames of a split and what it says by itself: images of pairs, or three sampled frames of each clip.

    Attributes:
        names, groups, hashes: file, group and hashes of each frame.
        first: one frame for each content.
    """

    def __init__(self, part: Part, config: AuditConfig) -> None:
        sources: dict[str, tuple[FrameSource, str]] = {}
        for row, group in enumerate(part.groups):
            if all(column[row] in sources for column in part.media):
                continue
            sample = part.table[row]
            index = sample.frame_index
            chosen = tuple(sorted({index[0], index[len(index) // 2], index[-1]})) if index else ()
            for column, path in zip(part.media, part.table.media_path(sample), strict=True):
                sources.setdefault(column[row], (FrameSource(path, chosen), group))
        self.split, self.findings = part.name, Findings(part.name)
        self.names: list[str] = []
        self.groups: list[str] = []
        self.hashes: list[FrameHash] = []
        self.first: dict[bytes, int] = {}
        content: dict[str, bytes] = {}
        failures: list[str] = []
        with progress(len(sources), f"frames of {part.name}", "file") as bar:
            wanted = [source for source, _ in sources.values()]
            hashed = hash_sources(wanted, workers=config.workers, cache=config.cache, progress=bar)
            for (name, (_, group)), outcome in zip(sources.items(), hashed, strict=True):
                if isinstance(outcome, Failure):
                    failures.append(outcome.reason)
                    continue
                content[name] = outcome[0].content
                for item in outcome:
                    self.first.setdefault(item.content, len(self.names))
                    self.names.append(name)
                    self.groups.append(group)
                    self.hashes.append(item)
        self.findings.add(
            "warning", "unreadable", failures, len(sources), "images or clips can't be read and are not audited"
        )
        if part.pairs:
            pairs = [pair for pair in zip(*part.media, strict=True) if all(path in content for path in pair)]
            still = [source for source, target in pairs if source != target and content[source] == content[target]]
            self.findings.add(
                "warning", "equal_images", still, len(pairs), "pairs show no motion: both images are equal"
            )
        twins = [
            (name, self.names[self.first[item.content]]) for name, item in zip(self.names, self.hashes, strict=True)
        ]
        again = [f"{name} = {twin}" for name, twin in twins if name != twin]
        self.findings.add("note", "repeated_frame", again, len(self.names), "frames are those of another file")

    def looks(self, rows: Sequence[int]) -> tuple[list[int], Hashes]:
        """The frames that show something, one for each look, and their perceptual hashes (m, 32) uint8."""
        found: dict[bytes, int] = {}
        for index in rows:
            if self.hashes[index].look:
                found.setdefault(self.hashes[index].look, index)
        return list(found.values()), np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, 32)


def compare_frames(one: Frames, other: Frames, distance: int) -> list[Finding]:
    """Pictures of the second split that the first one has: equal ones leak, alike ones are a warning."""
    found, names, groups = Findings(one.split, other.split), set(one.names), set(one.groups)
    same = {
        name: one.names[one.first[item.content]]
        for item, name in zip(other.hashes, other.names, strict=True)
        if item.content in one.first
    }
    total, renamed = len(set(other.names)), [f"{name} = {twin}" for name, twin in same.items() if name not in names]
    text = f"files of {other.split} show frames of {one.split} under another name"
    found.add("leak", "same_frame_content", renamed, total, text)
    # Neighbours within an episode look alike: what the splits share by name is reported already.
    rows = [row for row, group in enumerate(other.groups) if group not in groups and other.names[row] not in same]
    (mine, base), (theirs, queries) = one.looks(range(len(one.names))), other.looks(rows)
    near, bits = nearest(queries, base, distance)
    alike = {}
    for query in np.flatnonzero(near >= 0):
        name, twin = other.names[theirs[query]], one.names[mine[near[query]]]
        alike[name] = f"{name} ~ {twin} ({bits[query]} bits)"
    text = (
        f"files of {other.split} look like frames of {one.split}: hashes of 256 bits that differ in {distance} at most"
    )
    found.add("warning", "alike_frame", list(alike.values()), total, text)
    return found
