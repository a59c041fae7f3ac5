"""The audit of a data set: what its splits share, what they lack, and what is odd in a table.

The tables alone tell most of it. Action files and frames are opened where that is asked for (`audit_files`). A leak
is a file, an episode or video, a segment or a picture that stands in two splits; everything else is a warning or a
note. Splits that are drawn from others (`DatasetSpec.drawn`) are audited when they are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from lary.data.audit_part import Part, listed, read_part, share
from lary.data.spec import DatasetSpec, LabelSpace
from lary.data.splits import find_table
from lary.data.tables import read_table
from lary.types import UsageError

Severity = Literal["leak", "warning", "note"]

UNEVEN = 0.1
"""Share of rows that would have to change their class before two splits count as unlike (total variation)."""


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What to audit.

    Attributes:
        spec: the data set.
        table_root: ``$LARY_ROOT``.
        data_dir: ``$DATA_DIR``.
        splits: by name; empty takes training, validation and unseen, those that have a table.
        tables: tables in place of the usual ones, by split.
        actions: open action files: dimensions that never change, pairs without motion.
        frames: decode and hash frames: equal or alike pictures under other names.
        distance: bits of 256 in which the hashes of alike pictures differ at most (0 to 7).
        still: largest change of any action dimension within a pair that counts as no motion, in the set's units.
        workers: threads that read files.
        cache: SQLite file that keeps hashes of frames.
    """

    spec: DatasetSpec
    table_root: Path
    data_dir: Path
    splits: tuple[str, ...] = ()
    tables: Mapping[str, Path] = field(default_factory=dict)
    actions: bool = False
    frames: bool = False
    distance: int = 4
    still: float = 1e-4
    workers: int = 4
    cache: Path | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: a name that stays the same, for programs.
        splits: where: one split, or the two that were compared.
        count, total: how many of how many.
        text: the same for people, a sentence without its end.
        examples: a few of them.
    """

    severity: Severity
    kind: str
    splits: tuple[str, ...]
    count: int
    total: int
    text: str
    examples: tuple[str, ...] = ()


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
        """What must not be."""
        return tuple(finding for finding in self.findings if finding.severity == "leak")

    def json(self) -> dict[str, Any]:
        """The report as plain values."""
        from dataclasses import asdict

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
            lines.append(
                f"{finding.severity:8}{' and '.join(finding.splits)}: {finding.text}{listed(finding.examples)}"
            )
        counts = Counter(finding.severity for finding in self.findings)
        lines.append(", ".join(f"{counts[name]} {name}s" for name in ("leak", "warning", "note")))
        return "\n".join(lines)


def audit(request: AuditRequest) -> AuditReport:
    """Audit the splits of a data set.

    Raises:
        UsageError: an unknown split, a table that is missing or wrong, or no table at all.
    """
    parts = open_parts(request)
    findings = [finding for part in parts for finding in look_at(part)]
    for one, other in combinations(parts, 2):
        findings += compare(one, other)
    if request.actions or request.frames:
        from lary.data.audit_files import look_into_actions, look_into_frames

        if request.actions and not isinstance(request.spec.target, LabelSpace):
            findings += [finding for part in parts for finding in look_into_actions(part, request)]
        if request.frames:
            findings += look_into_frames(parts, request)
    order = {"leak": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return AuditReport(request.spec.name, tuple(facts_of(part) for part in parts), tuple(findings))


def open_parts(request: AuditRequest) -> list[Part]:
    """Read the tables. Raises UsageError."""
    spec = request.spec
    usual = [name for name in (spec.train, spec.validation, spec.unseen) if name in {*spec.splits, *spec.drawn}]
    names = list(dict.fromkeys((*(request.splits or usual), *request.tables)))
    tables, missing = [], ""
    for name in names:
        try:
            path = find_table(spec, name, request.table_root, request.tables.get(name))
        except UsageError as error:
            if name in request.splits or name in request.tables:
                raise
            missing = str(error)
            continue
        tables.append(read_table(spec, name, path=path, data_dir=request.data_dir))
    if not tables:
        raise UsageError(f"There is nothing to audit. {missing}")
    roots = [spec.split(table.split).root for table in tables]
    several = len(set(roots)) > 1
    return [read_part(table, f"{root}/" if several else "") for table, root in zip(tables, roots, strict=True)]


def facts_of(part: Part) -> AuditedSplit:
    """Numbers of a split."""
    classes = Counter(part.targets) if part.classes is not None else Counter[str]()
    return AuditedSplit(
        part.name, str(part.table.path), len(part.table), len(part.group_sizes), dict(sorted(classes.items())),
        dict(sorted(Counter(part.embodiments).items())),
    )  # fmt: skip


def look_at(part: Part) -> list[Finding]:
    """What a split's own table says."""
    found = [*look_at_rows(part), *look_at_balance(part)]
    if part.table.spec.media == "pair":
        found += look_at_pairs(part)
    return found


def look_at_rows(part: Part) -> list[Finding]:
    """Lost folders, empty robot types, rows that come twice or contradict each other."""
    rows, found = len(part.table), []

    def add(severity: Severity, kind: str, hits: Sequence[int], text: str, examples: Sequence[str]) -> None:
        if hits:
            found.append(Finding(severity, kind, (part.name,), len(hits), rows, text, tuple(examples[:3])))

    lost = sorted(part.repaired)
    add(
        "warning", "lost_folder", lost,
        f"{share(len(lost), rows, 'rows')} lost the folder of their {part.unit}; the record's rule puts it back",
        [f"{part.cells[row]} (read as {part.media[0][row]})" for row in lost],
    )  # fmt: skip
    add(
        "warning", "no_group", part.ungrouped,
        f"{share(len(part.ungrouped), rows, 'rows')} name no {part.unit}, so each counts as one of its own",
        [part.media[0][row] for row in part.ungrouped],
    )  # fmt: skip
    folders = dict.fromkeys(part.media[0][row].split("/")[0] for row in part.unnamed)
    nameless = sum(not part.embodiments[row] for row in part.unnamed)
    named = sorted({part.embodiments[row] for row in part.unnamed} - {""})
    told = [f"the record knows {len(part.unnamed) - nameless} of them as {', '.join(named)}"] if named else []
    told += [f"{nameless} have no statistics to be normalised with"] if nameless else []
    add(
        "warning", "empty_robot_type", part.unnamed,
        f"{share(len(part.unnamed), rows, 'rows')} have an empty robot type, in {len(folders)} folders: "
        + "; ".join(told),
        list(folders),
    )  # fmt: skip
    first: dict[tuple[str, ...], int] = {}
    again: list[int] = []
    against: list[int] = []
    for row, key in enumerate(part.inputs()):
        known = first.setdefault(key, row)
        if known != row:
            (again if part.targets[known] == part.targets[row] else against).append(row)
    add("warning", "repeated_row", again, f"{share(len(again), rows, 'rows')} repeat another row",
        [part.media[0][row] for row in again])  # fmt: skip
    add("warning", "contradiction", against,
        f"{share(len(against), rows, 'rows')} show what another row shows, with another target",
        [part.media[0][row] for row in against])  # fmt: skip
    return found


def look_at_balance(part: Part) -> list[Finding]:
    """Classes without a row, and how even classes and robot types are."""
    found, rows = [], len(part.table)
    if part.classes is not None:
        counts = Counter(part.targets)
        if absent := [name for name in part.classes if not counts[name]]:
            text = f"{share(len(absent), len(part.classes), 'classes')} have no row"
            found.append(Finding("warning", "absent_class", (part.name,), len(absent), len(part.classes), text,
                                 tuple(absent[:3])))  # fmt: skip
        ranked = counts.most_common()
        text = (
            f"the classes have {ranked[-1][1]} ({ranked[-1][0]}) to {ranked[0][1]} ({ranked[0][0]}) rows; always "
            f"guessing the largest scores {ranked[0][1] / rows:.1%}"
        )
        found.append(Finding("note", "class_balance", (part.name,), ranked[0][1], rows, text))
    robots = Counter(part.embodiments).most_common()
    if len(robots) > 1:
        text = "rows per robot type: " + ", ".join(f"{name or '(empty)'} {count}" for name, count in robots)
        found.append(Finding("note", "robot_balance", (part.name,), robots[0][1], rows, text))
    return found


def look_at_pairs(part: Part) -> list[Finding]:
    """Pairs against the flow of time, and pairs that don't span the record's stride."""
    found, rows, stride = [], len(part.table), part.table.spec.stride
    steps = part.steps()
    backward = [row for row, step in enumerate(steps) if step is not None and step[0] < 0]
    still = [row for row, step in enumerate(steps) if step is not None and step[0] == 0]
    if backward:
        forward = sum(step is not None and step[0] > 0 for step in steps)
        seen = Counter(frozenset(pair) for pair in zip(*part.media, strict=True))
        both = sum(count > 1 for count in seen.values())
        text = f"{share(len(backward), rows, 'pairs')} run from end to start, {forward} from start to end"
        found.append(Finding("note", "reversed_pair", (part.name,), len(backward), rows, text,
                             tuple(part.media[0][row] for row in backward[:3])))  # fmt: skip
        halved = 0 < both < len(seen)  # turned round to augment, then split by row
        others = ", the others in one" if both < len(seen) else ""
        text = f"{share(both, len(seen), 'segments')} are here in both directions{others}"
        kind: Severity = "warning" if halved else "note"
        found.append(Finding(kind, "both_directions", (part.name,), both, len(seen), text))
    if still:
        text = f"{share(len(still), rows, 'pairs')} end with the frame that they start with"
        found.append(Finding("warning", "same_frame", (part.name,), len(still), rows, text,
                             tuple(part.media[0][row] for row in still[:3])))  # fmt: skip
    if stride is not None:
        odd = [row for row, step in enumerate(steps) if step is not None and step[1] and abs(step[0]) != stride]
        if odd:
            text = f"{share(len(odd), rows, 'pairs')} do not span {stride} frames, the stride of the record"
            examples = tuple(f"{part.media[0][row]} to {part.media[1][row]}" for row in odd[:3])
            found.append(Finding("warning", "other_stride", (part.name,), len(odd), rows, text, examples))
    return found


def compare(one: Part, other: Part) -> list[Finding]:
    """What two splits share; `one` is the earlier, as a rule the one that trains."""
    names, found = (one.name, other.name), []

    def leak(kind: str, hits: Sequence[str], total: int, what: str, extra: str = "") -> None:
        if hits:
            text = f"{share(len(hits), total, what)} of {other.name} are in {one.name} too{extra}"
            found.append(Finding("leak", kind, names, len(hits), total, text, tuple(hits[:3])))

    files = sorted(one.files & other.files)
    leak("same_file", files, len(other.files), "images" if other.table.spec.media == "pair" else "clips")
    if files:
        inputs = {frozenset(key) for key in one.inputs()}
        shared = [key[0] for key in other.inputs() if frozenset(key) in inputs]
        leak("same_sample", shared, len(other.table), "samples", ", in this or the other direction")
    units = [("same_group", one.group_sizes, other.group_sizes, f"{other.unit}s")]
    if any(len(part.segments) > len(part.group_sizes) for part in (one, other)):
        units.append(("same_segment", one.segments, other.segments, "segments"))
    for kind, mine, theirs, what in units:
        # Repaired names are counted apart: the table itself spells them otherwise.
        mended = {other.groups[row] for row in other.repaired} if kind == "same_group" else set[str]()
        hits = [name for name in theirs if name in mine]
        rows = sum(theirs[name] for name in hits)
        later = [name for name in hits if name in mended]
        extra = f" ({share(rows, len(other.table), 'rows')})"
        if later:
            extra += f", and {len(later)} whose folder the table lost ({', '.join(later[:3])})"
        leak(kind, [name for name in hits if name not in mended], len(theirs.keys() - mended), what, extra)
    if one.classes is None:
        targets = set(one.targets)
        leak("same_action_file", [name for name in other.targets if name in targets], len(other.table), "action files")
    return found + compare_balance(one, other)


def compare_balance(one: Part, other: Part) -> list[Finding]:
    """Classes and robot types of a split that the earlier one lacks, and shares that differ."""
    names, found = (one.name, other.name), []
    columns = [("class", "classes", one.targets, other.targets)] if one.classes is not None else []
    for kind, what, mine, theirs in (*columns, ("robot", "robot types", one.embodiments, other.embodiments)):
        known, new = Counter(mine), Counter(theirs)
        if absent := [name for name in sorted(new) if name not in known]:
            text = f"{share(len(absent), len(new), what)} of {other.name} are not in {one.name}"
            examples = tuple(name or "(empty)" for name in absent[:3])
            found.append(Finding("warning", f"{kind}_not_in_training", names, len(absent), len(new), text, examples))
        apart = sum(abs(known[name] / len(mine) - new[name] / len(theirs)) for name in known | new) / 2
        if apart > UNEVEN:
            text = f"the shares of {what} differ: {apart:.1%} of the rows would have to change theirs"
            found.append(Finding("note", f"{kind}_shares", names, round(apart * len(theirs)), len(theirs), text))
    return found
