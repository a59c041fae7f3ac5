"""What the tables of a data set tell about its splits: what they share, what they lack, and what is odd in a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from lary.data.spec import LabelSpace
from lary.data.tables import (
    ACTION_FOLDER,
    IMAGE_FOLDER,
    INDEX_COLUMN,
    MEDIA_COLUMNS,
    TARGET_COLUMN,
    SampleTable,
    embodiment_column,
    group_name,
    usual_place,
)

Severity = Literal["leak", "warning", "note"]

UNEVEN = 0.1
"""Share of rows that would have to change their class before two splits count as unlike (total variation)."""
MOMENT = re.compile(r"(\d+|start|begin|first|end|last)\.[^./]+$")
"""When a frame was taken: the number or word at the end of its name."""
WORDS = {"start": 0, "begin": 0, "first": 0, "end": 1, "last": 1}


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


class Findings(list[Finding]):
    """Findings about one split, or about two that were compared."""

    def __init__(self, *splits: str) -> None:
        super().__init__()
        self.splits = splits

    def add(
        self,
        severity: Severity,
        kind: str,
        hits: Sequence[str],
        total: int,
        text: str,
        examples: Sequence[str] | None = None,
    ) -> None:
        """Add a finding if anything was hit; the text goes on after ``3 of 20``, the first hits are the examples."""
        if hits:
            shown = tuple(hits[:3] if examples is None else examples)
            text = f"{len(hits)} of {total} {text}"
            self.append(Finding(severity, kind, self.splits, len(hits), total, text, shown))

    def note(self, kind: str, count: int, total: int, text: str, severity: Severity = "note") -> None:
        """Add a finding that is no list of hits."""
        self.append(Finding(severity, kind, self.splits, count, total, text))


@dataclass(frozen=True, eq=False)
class Part:
    """The columns of one split, with paths as they are read.

    Attributes:
        media: paths, one list per media column, under the split's root where roots differ.
        cells: the first media column as the table spells it.
        groups: episode or video of each row, under the root likewise.
        targets: class names, or paths of action files.
        embodiments: robot types, as the record reads them.
        unnamed: rows whose robot type is empty in the table.
        repaired: rows with a path that the record's rule changed, in order.
        ungrouped: rows whose path names no group.
    """

    table: SampleTable
    media: tuple[list[str], ...]
    cells: list[str]
    groups: list[str]
    targets: list[str]
    embodiments: list[str]
    unnamed: tuple[int, ...]
    repaired: tuple[int, ...]
    ungrouped: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of the split."""
        return self.table.split

    @property
    def pairs(self) -> bool:
        """Whether rows are image pairs."""
        return self.table.spec.media == "pair"

    @property
    def unit(self) -> str:
        """What a group is."""
        return "episode" if self.pairs else "video"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The record's classes; None where targets are action files."""
        target = self.table.spec.target
        return target.classes if isinstance(target, LabelSpace) else None

    @cached_property
    def group_sizes(self) -> Counter[str]:
        """Rows per group."""
        return Counter(self.groups)

    @cached_property
    def segments(self) -> Counter[str]:
        """Rows per folder of a pair; of clips nothing, since a folder holds many of them."""
        return Counter(path.rpartition("/")[0] for path in self.media[0]) if self.pairs else Counter()

    @cached_property
    def files(self) -> set[str]:
        """Every image or video, once."""
        return set().union(*self.media)

    def inputs(self) -> Sequence[tuple[str, ...]]:
        """What each row shows: its images, or its video with the frame indices."""
        columns = self.media if self.pairs else (*self.media, map(str, self.table.frame[INDEX_COLUMN].to_list()))
        return list(zip(*columns, strict=True))

    def steps(self) -> list[tuple[int, bool] | None]:
        """Target minus source of each pair, and whether it counts frames; None where the names don't tell."""
        moments = zip(*([moment(path) for path in column] for column in self.media), strict=True)
        return [
            (target[0] - source[0], source[1]) if source and target and source[1] == target[1] else None
            for source, target in moments
        ]


def read_part(table: SampleTable, prefix: str = "") -> Part:
    """The columns of a table.

    Args:
        prefix: put before paths and groups, so that equal names under different roots stay apart.
    """
    spec = table.spec
    cells = [[str(cell) for cell in table.frame[name]] for name in MEDIA_COLUMNS[spec.media]]
    media = [[usual_place(spec, cell, IMAGE_FOLDER) for cell in column] for column in cells]
    groups = [group_name(spec, place) for place in media[0]]
    # Without a match the path itself is the group; a pattern that wants just that is fine.
    alone = [row for row, group in enumerate(groups) if media[0][row].endswith(group)]
    repaired: set[int] = set()
    if spec.path_repair is not None:
        rule = re.compile(spec.path_repair[0])
        repaired = {row for column in cells for row, cell in enumerate(column) if rule.search(cell)}
    targets = [str(cell) for cell in table.frame[TARGET_COLUMN]]
    if not isinstance(spec.target, LabelSpace):
        targets = [prefix + usual_place(spec, cell, ACTION_FOLDER) for cell in targets]
    column = embodiment_column(spec, list(table.frame.columns))
    robots = [] if column is None else table.frame[column].tolist()
    return Part(
        table=table,
        media=tuple([prefix + path for path in column] if prefix else column for column in media),
        cells=cells[0],
        groups=[prefix + group for group in groups] if prefix else groups,
        targets=targets,
        embodiments=list(table.embodiments()),
        unnamed=tuple(row for row, robot in enumerate(robots) if not robot or robot.isspace()),
        repaired=tuple(sorted(repaired)),
        ungrouped=tuple(row for row in alone if re.search(spec.group_pattern, groups[row]) is None),
    )


def moment(path: str) -> tuple[int, bool] | None:
    """When a frame was taken as its name has it, and whether that is a frame number; None if it doesn't say."""
    found = MOMENT.search(path)
    if found is None:
        return None
    word = found[1]
    return (WORDS[word], False) if word in WORDS else (int(word), True)


# One split


def inspect_table(part: Part) -> list[Finding]:
    """What a split's own table says: its rows, how even its classes and robot types are, the order of its pairs."""
    found, rows, first, unit = Findings(part.name), len(part.table), part.media[0], part.unit
    found.add(
        "warning",
        "lost_folder",
        [f"{part.cells[row]} (read as {first[row]})" for row in part.repaired],
        rows,
        f"rows lost the folder of their {unit}; the record's rule puts it back",
    )
    found.add(
        "warning",
        "no_group",
        [first[row] for row in part.ungrouped],
        rows,
        f"rows name no {unit}, so each counts as one of its own",
    )
    folders = list(dict.fromkeys(first[row].split("/")[0] for row in part.unnamed))
    robots = Counter(part.embodiments[row] for row in part.unnamed)
    nameless = robots.pop("", 0)
    known = [f"the record knows {robots.total()} of them as {', '.join(sorted(robots))}"] if robots else []
    known += [f"{nameless} have no statistics to be normalised with"] if nameless else []
    found.add(
        "warning",
        "empty_robot_type",
        [first[row] for row in part.unnamed],
        rows,
        f"rows have an empty robot type, in {len(folders)} folders: {'; '.join(known)}",
        folders[:3],
    )
    seen: dict[tuple[str, ...], int] = {}
    again: list[str] = []
    against: list[str] = []
    for row, key in enumerate(part.inputs()):
        earlier = seen.setdefault(key, row)
        if earlier != row:
            (again if part.targets[earlier] == part.targets[row] else against).append(first[row])
    found.add("warning", "repeated_row", again, rows, "rows repeat another row")
    found.add("warning", "contradiction", against, rows, "rows show what another row shows, with another target")
    if part.classes is not None:
        counts = Counter(part.targets)
        absent = [name for name in part.classes if not counts[name]]
        found.add("warning", "absent_class", absent, len(part.classes), "classes have no row")
        ranked = counts.most_common()
        (large, most), (small, least) = ranked[0], ranked[-1]
        text = f"the classes have {least} ({small}) to {most} ({large}) rows; always guessing the largest scores "
        found.note("class_balance", most, rows, f"{text}{most / rows:.1%}")
    by_robot = Counter(part.embodiments).most_common()
    if len(by_robot) > 1:
        text = ", ".join(f"{name or '(empty)'} {count}" for name, count in by_robot)
        found.note("robot_balance", by_robot[0][1], rows, f"rows per robot type: {text}")
    if part.pairs:
        inspect_pairs(part, found)
    return found


def inspect_pairs(part: Part, found: Findings) -> None:
    """Find pairs against the flow of time, and pairs that don't span the record's stride."""
    rows, stride, first = len(part.table), part.table.spec.stride, part.media[0]
    steps = [(row, *step) for row, step in enumerate(part.steps()) if step is not None]
    backward = [first[row] for row, step, _ in steps if step < 0]
    forward = sum(step > 0 for _, step, _ in steps)
    found.add("note", "reversed_pair", backward, rows, f"pairs run from end to start, {forward} from start to end")
    if backward:
        segments = Counter(frozenset(pair) for pair in zip(*part.media, strict=True))
        both, total = sum(count > 1 for count in segments.values()), len(segments)
        # Some turned round, others not: pairs were turned to augment, and then split by row.
        mixed = 0 < both < total
        text = f"{both} of {total} segments are here in both directions{', the others in one' if both < total else ''}"
        found.note("both_directions", both, total, text, "warning" if mixed else "note")
    still = [first[row] for row, step, _ in steps if step == 0]
    found.add("warning", "same_frame", still, rows, "pairs end with the frame that they start with")
    if stride is not None:
        odd = [f"{first[row]} to {part.media[1][row]}" for row, step, frames in steps if frames and abs(step) != stride]
        found.add("warning", "other_stride", odd, rows, f"pairs do not span {stride} frames, the stride of the record")


# Two splits


def compare_tables(one: Part, other: Part) -> list[Finding]:
    """What two splits share, and how they differ; `one` is the earlier, as a rule the one that trains."""
    found, rows = Findings(one.name, other.name), len(other.table)

    def leak(kind: str, hits: Sequence[str], total: int, what: str, extra: str = "") -> None:
        found.add("leak", kind, hits, total, f"{what} of {other.name} are in {one.name} too{extra}")

    files = sorted(one.files & other.files)
    leak("same_file", files, len(other.files), "images" if other.pairs else "clips")
    if files:
        inputs = {frozenset(key) for key in one.inputs()}
        shared = [key[0] for key in other.inputs() if frozenset(key) in inputs]
        leak("same_sample", shared, rows, "samples", ", in this or the other direction")
    units = [("same_group", one.group_sizes, other.group_sizes, f"{other.unit}s")]
    if any(len(part.segments) > len(part.group_sizes) for part in (one, other)):
        units.append(("same_segment", one.segments, other.segments, "segments"))
    for kind, mine, theirs, what in units:
        # Repaired names are counted apart: the table itself spells them otherwise.
        mended = {other.groups[row] for row in other.repaired} if kind == "same_group" else set()
        hits = [name for name in theirs if name in mine]
        later = [name for name in hits if name in mended]
        extra = f" ({sum(theirs[name] for name in hits)} of {rows} rows)"
        if later:
            extra += f", and {len(later)} whose folder the table lost ({', '.join(later[:3])})"
        leak(kind, [name for name in hits if name not in mended], len(theirs.keys() - mended), what, extra)
    if one.classes is None:
        targets = set(one.targets)
        leak("same_action_file", [name for name in other.targets if name in targets], rows, "action files")
    columns = [("class", "classes", one.targets, other.targets)] if one.classes is not None else []
    for kind, what, before, after in (*columns, ("robot", "robot types", one.embodiments, other.embodiments)):
        known, new = Counter(before), Counter(after)
        absent = [name or "(empty)" for name in sorted(new) if name not in known]
        text = f"{what} of {other.name} are not in {one.name}"
        found.add("warning", f"{kind}_not_in_training", absent, len(new), text)
        apart = sum(abs(known[name] / len(before) - new[name] / len(after)) for name in known | new) / 2
        if apart > UNEVEN:
            text = f"the shares of {what} differ: {apart:.1%} of the rows would have to change theirs"
            found.note(f"{kind}_shares", round(apart * len(after)), len(after), text)
    return found
