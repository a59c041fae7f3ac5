"""What can be wrong with a table before any file is opened: columns, cells, labels, order of frames."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lary.data.spec import DatasetSpec, LabelSpace
from lary.data.tables import INDEX_COLUMN, INDICES, MEDIA_COLUMNS, TARGET_COLUMN, line_of

FRAME = re.compile(r"frame_(\d+)\.[^./]+$")
ACTIONS = re.compile(r"action_(\d+)to(\d+)\.[^./]+$")
"""File names of the published pairs: two frames, and the first and last action between them."""

Cells = Mapping[str, Sequence[str]]
Problem = tuple[str, int, str]


def table_problems(spec: DatasetSpec, path: Path, cells: Cells) -> Iterator[Problem]:
    """Column, number of rows and reason of every kind of problem; the reason names the first row that has it."""
    needed = [*MEDIA_COLUMNS[spec.media], TARGET_COLUMN, *([INDEX_COLUMN] if spec.media == "clip" else [])]
    for name in needed:
        if name not in cells:
            yield name, 1, f"there is no column '{name}'; the table has: {', '.join(cells)}"
    present = [name for name in needed if name in cells]
    for name in present:
        yield from _those(path, name, cells[name], lambda cell: not cell.strip(), lambda _: "the cell is empty")
    if isinstance(spec.target, LabelSpace) and TARGET_COLUMN in cells:
        known = frozenset(spec.target.classes)
        yield from _those(
            path, TARGET_COLUMN, cells[TARGET_COLUMN],
            lambda cell: bool(cell.strip()) and cell not in known, lambda cell: f"'{cell}' is no class of {spec.name}",
        )  # fmt: skip
    if INDEX_COLUMN in present:
        yield from _those(
            path, INDEX_COLUMN, cells[INDEX_COLUMN],
            lambda cell: bool(cell.strip()) and not INDICES.fullmatch(cell),
            lambda cell: f"'{cell}' is no list of frame numbers",
        )  # fmt: skip
    if spec.stride is not None and len(present) == len(needed):
        yield from _those(path, "tgt_img", _steps(spec.stride, cells), bool, str)


def _steps(stride: int, cells: Cells) -> list[str]:
    """What is wrong with the order of each row's frames and actions, where their names tell it."""
    found = []
    for source, target, action in zip(*(cells[name] for name in (*MEDIA_COLUMNS["pair"], TARGET_COLUMN)), strict=True):
        first, second, chunk = FRAME.search(source), FRAME.search(target), ACTIONS.search(action)
        text = ""
        if first and second:
            start, stop = int(first[1]), int(second[1])
            if stop - start != stride:
                text = f"frame {stop} is not {stride} frames after frame {start}: are the columns swapped?"
            elif chunk and (int(chunk[1]), int(chunk[2])) != (start, stop - 1):
                text = f"actions {int(chunk[1])} to {int(chunk[2])} do not lie between frames {start} and {stop}"
        found.append(text)
    return found


def _those(
    path: Path, column: str, cells: Sequence[str], wrong: Callable[[str], bool], reason: Callable[[str], str]
) -> Iterator[Problem]:
    rows = [row for row, cell in enumerate(cells) if wrong(cell)]
    if rows:
        more = f", and {len(rows) - 1} more rows" if len(rows) > 1 else ""
        yield column, len(rows), f"row {rows[0] + 1} (line {line_of(path, rows[0])}): {reason(cells[rows[0]])}{more}"
