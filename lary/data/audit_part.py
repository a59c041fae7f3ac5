"""One split as the audit sees it: its columns with paths as they are read, and what can be told from names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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

MOMENT = re.compile(r"(\d+|start|begin|first|end|last)\.[^./]+$")
"""When a frame was taken: the number or word at the end of its name."""

WORDS = {"start": 0, "begin": 0, "first": 0, "end": 1, "last": 1}


@dataclass(frozen=True, eq=False)
class Part:
    """A split's columns.

    Attributes:
        media: paths as they are read, one list per media column, under the split's root where roots differ.
        cells: the first media column as the table spells it.
        groups: episode or video of each row, under the root likewise.
        targets: class names, or paths of action files.
        embodiments: robot types, as the record reads them.
        unnamed: rows whose robot type is empty in the table.
        repaired: rows whose first path the record's rule changed.
        ungrouped: rows whose path names no group.
    """

    table: SampleTable
    media: tuple[list[str], ...]
    cells: list[str]
    groups: list[str]
    targets: list[str]
    embodiments: list[str]
    unnamed: tuple[int, ...]
    repaired: frozenset[int]
    ungrouped: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the split."""
        return self.table.split

    @property
    def unit(self) -> str:
        """What a group is."""
        return "episode" if self.table.spec.media == "pair" else "video"

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
        return Counter(path.rpartition("/")[0] for path in self.media[0] if self.table.spec.media == "pair")

    @cached_property
    def files(self) -> set[str]:
        """Every image or video, once."""
        return set().union(*self.media)

    def inputs(self) -> Sequence[tuple[str, ...]]:
        """What each row shows: its images, or its video with the frame indices."""
        if self.table.spec.media == "pair":
            return list(zip(*self.media, strict=True))
        indices = self.table.frame[INDEX_COLUMN].to_list()
        return list(zip(self.media[0], map(str, indices), strict=True))

    def steps(self) -> list[tuple[int, bool] | None]:
        """Target minus source of each pair, and whether it counts frames; None where the names don't tell."""
        found: list[tuple[int, bool] | None] = []
        for pair in zip(*self.media, strict=True):
            source, target = (moment(path) for path in pair)
            told = source is not None and target is not None and source[1] == target[1]
            found.append((target[0] - source[0], source[1]) if told and source and target else None)
        return found


def read_part(table: SampleTable, prefix: str = "") -> Part:
    """A split as the audit sees it.

    Args:
        prefix: put before paths and groups, so that equal names under different roots stay apart.
    """
    spec = table.spec
    cells = [[str(cell) for cell in table.frame[name]] for name in MEDIA_COLUMNS[spec.media]]
    media = [[usual_place(spec, cell, IMAGE_FOLDER) for cell in column] for column in cells]
    groups = [group_name(spec, place) for place in media[0]]
    # Without a match the path itself is the group; a pattern that wants just that is fine.
    alone = [row for row, group in enumerate(groups) if media[0][row].endswith(group)]
    ungrouped = tuple(row for row in alone if re.search(spec.group_pattern, groups[row]) is None)
    repaired = frozenset[int]()
    if spec.path_repair is not None:
        rule = re.compile(spec.path_repair[0])
        repaired = frozenset(row for column in cells for row, cell in enumerate(column) if rule.search(cell))
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
        repaired=repaired,
        ungrouped=ungrouped,
    )


def moment(path: str) -> tuple[int, bool] | None:
    """When a frame was taken as its name has it, and whether that is a frame number; None if it doesn't say."""
    found = MOMENT.search(path)
    if found is None:
        return None
    word = found[1]
    return (WORDS[word], False) if word in WORDS else (int(word), True)


def share(count: int, total: int, what: str) -> str:
    """``'3 of 20 rows'``."""
    return f"{count} of {total} {what}"


def listed(examples: Sequence[str]) -> str:
    """``', such as a, b'``, or nothing."""
    return f", such as {', '.join(examples)}" if examples else ""
