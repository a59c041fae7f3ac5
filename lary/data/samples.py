"""Tables of samples: finding, reading and checking the CSV of a split, and the files that its rows name.

Both published path forms are read: with the folders ``images/`` and ``actions/``, and without them. Rows are counted
from 1 in messages, and the line of the file stands beside them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lary.data.columns import BLOCK, read_frame
from lary.data.columns import line_of as line_of
from lary.data.columns import read_csv as read_csv
from lary.data.columns import write_csv as write_csv
from lary.data.spec import DatasetSpec, LabelSpace
from lary.files import digest, inside, path_problem
from lary.registry import suggest
from lary.types import Media, Sample, UsageError

if TYPE_CHECKING:
    import pandas

MEDIA_COLUMNS: dict[Media, tuple[str, ...]] = {"pair": ("src_img", "tgt_img"), "clip": ("video_path",)}
INDEX_COLUMN = "sample_indices"
TARGET_COLUMN = "action"
EMBODIMENT_COLUMN = "embodiment"
IMAGE_FOLDER, ACTION_FOLDER = "images", "actions"

INDICES = re.compile(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*)*")
LONG_NUMBER = re.compile(r"[0-9]{10}")
UNSAFE_PATH = re.compile(r"[/\\]|[^/\\]*:|(.*[/\\])?\.\.([/\\]|$)")
"""What no path of a table may start with: a root, a drive, or a way upwards (`inside` checks again)."""

NOT_PLAIN = ("..", ":", "\\", "\n/", "\n\n", "\n ", "\x7f", *map(chr, {*range(32)} - {10}))
"""What a path in lines of ASCII must not hold to be certainly safe and not empty."""

LONGEST_CELL = 4096
"""Letters of a cell that is used: the longest path of common systems, or a thousand frame numbers."""

SHORT = 255
"""Letters within which no name of a path can be too long."""

THREADS = 16
"""For many small reads: on network file systems the wait is what costs."""


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The samples of one split, in the order of its table; memory-light, each `Sample` is made when asked for.

    Attributes:
        path: the CSV.
        frame: all its columns as strings, as they stand in the file; its index is the row in the file, from 0.
        root: the folder that the paths in the table start from.
        digest: of the file's bytes.
    """

    spec: DatasetSpec
    split: str
    path: Path
    frame: pandas.DataFrame
    root: Path
    digest: str

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position of this table; its ``row`` is the row in the file."""
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        cells = [str(self._columns[name][position]) for name in MEDIA_COLUMNS[self.spec.media]]
        media = tuple(self._place(cell, IMAGE_FOLDER) for cell in cells)
        target = str(self._columns[TARGET_COLUMN][position])
        if not isinstance(self.spec.target, LabelSpace):
            target = self._place(target, ACTION_FOLDER)
        frame_index: tuple[int, ...] = ()
        if self.spec.media == "clip":
            frame_index = tuple(int(part) for part in str(self._columns[INDEX_COLUMN][position]).split(","))
        return Sample(
            id=digest(*media, ",".join(map(str, frame_index)), target),
            row=int(self._rows[position]),
            media=media,
            frame_index=frame_index,
            target=target,
            group=self._group(media[0]),
            embodiment=self._embodiment(position),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def take(self, positions: Sequence[int]) -> SampleTable:
        """The table of some of the samples, which keep their ``row``."""
        return SampleTable(self.spec, self.split, self.path, self.frame.iloc[list(positions)], self.root, self.digest)

    def labels(self) -> npt.NDArray[np.int64]:
        """Labels (n,) int64: positions in the record's classes. Raises UsageError for a regression data set."""
        position = {name: label for label, name in enumerate(self.spec.labels.classes)}
        return np.array([position[name] for name in self._columns[TARGET_COLUMN]], dtype=np.int64)

    def groups(self) -> tuple[str, ...]:
        """The episode or video of every sample, n names."""
        column = self._columns[MEDIA_COLUMNS[self.spec.media][0]]
        return tuple(self._group(self._place(str(cell), IMAGE_FOLDER)) for cell in column)

    def embodiments(self) -> tuple[str, ...]:
        """The robot type of every sample, n names; empty where the cell is, unless the record's rule names it."""
        return tuple(self._embodiment(position) for position in range(len(self)))

    def media_path(self, sample: Sample) -> tuple[Path, ...]:
        """Absolute paths of a sample's images or clip. Raises UsageError for a path that leaves the root."""
        return self._media_at(self._position[sample.row])

    def action_path(self, sample: Sample) -> Path:
        """Absolute path of a sample's action file. Raises UsageError for a classification data set."""
        _ = self.spec.actions
        return self._locate(self._position[sample.row], TARGET_COLUMN, ACTION_FOLDER)

    def _media_at(self, position: int) -> tuple[Path, ...]:
        return tuple(self._locate(position, column, IMAGE_FOLDER) for column in MEDIA_COLUMNS[self.spec.media])

    @cached_property
    def _columns(self) -> dict[str, npt.NDArray[np.object_]]:
        return {name: self.frame[name].to_numpy(dtype=object) for name in self.frame.columns}

    @cached_property
    def _rows(self) -> npt.NDArray[np.int64]:
        return self.frame.index.to_numpy(dtype=np.int64)

    @cached_property
    def _position(self) -> dict[int, int]:
        return {int(row): position for position, row in enumerate(self._rows)}

    def _place(self, cell: str, folder: str) -> str:
        return usual_place(self.spec, cell, folder)

    def _group(self, first: str) -> str:
        return group_name(self.spec, first)

    def _embodiment(self, position: int) -> str:
        column = self._embodiment_column
        if column is None:
            return self.spec.embodiment
        first = self._columns[MEDIA_COLUMNS[self.spec.media][0]][position]
        return robot_type(self.spec, str(self._columns[column][position]), str(first))

    @cached_property
    def _embodiment_column(self) -> str | None:
        return embodiment_column(self.spec, list(self.frame.columns))

    def _locate(self, position: int, column: str, folder: str) -> Path:
        """The file at the usual place, or the one that the table literally names where only that exists."""
        usual, *others = (
            inside(self.root, place) for place in places(self.spec, str(self._columns[column][position]), folder)
        )
        if not others or usual.exists():
            return usual
        return next((path for path in others if path.exists()), usual)


def group_name(spec: DatasetSpec, first: str, pattern: str | None = None) -> str:
    """The group of a sample from its first path, as `usual_place` gives it; one that doesn't match is alone.

    Args:
        pattern: in place of the record's.
    """
    short = without_images(first) if spec.media_depth is not None else first
    found = re.search(pattern or spec.group_pattern, short)
    if found is None:
        return short
    return found[1] if found.re.groups and found[1] is not None else found[0]


def without_images(path: str) -> str:
    """A path without its first folder of that name, by string methods: tables have a million of them."""
    if path.startswith(f"{IMAGE_FOLDER}/"):
        return path[len(IMAGE_FOLDER) + 1 :]
    return path.replace(f"/{IMAGE_FOLDER}/", "/", 1)


def usual_place(spec: DatasetSpec, cell: str, folder: str) -> str:
    """A path of a table below its root, repaired and with its folder, as the record says."""
    if spec.path_repair is not None and re.search(spec.path_repair[0], cell):
        cell = re.sub(*spec.path_repair, cell)
    return placed(cell, folder, spec.media_depth)


def places(spec: DatasetSpec, cell: str, folder: str) -> tuple[str, ...]:
    """Where the file of a cell may lie below its root: the usual place first, then what the table literally says."""
    usual = usual_place(spec, cell, folder)
    if cell == usual:
        return (usual,)
    return tuple(dict.fromkeys((usual, placed(cell, folder, None), placed(cell, folder, 0))))


def placed(cell: str, folder: str, depth: int | None) -> str:
    """A path of a table with forward slashes and, unless `depth` is None, with `folder` behind `depth` folders."""
    named = depth is None or cell.startswith(f"{folder}/") or f"/{folder}/" in cell
    plain = cell[:1].isalnum() and cell[-1].isalnum() and "\\" not in cell and "//" not in cell and "/." not in cell
    if named and plain:
        return cell  # nearly all of them
    parts = [part for part in cell.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    if depth is not None and folder not in parts[:-1]:
        parts.insert(min(depth, max(len(parts) - 1, 0)), folder)
    return "/".join(parts)


def robot_type(spec: DatasetSpec, cell: str, first: str) -> str:
    """The robot type of a row: its cell, or for an empty one what the record's rule says of its first media path."""
    name = cell.strip()
    if not name and spec.unnamed_robot is not None:
        pattern, robot = spec.unnamed_robot
        return robot if re.search(pattern, usual_place(spec, first, IMAGE_FOLDER)) else ""
    return name


def embodiment_column(spec: DatasetSpec, columns: Sequence[str]) -> str | None:
    """The column with the robot type: the record's, or one called ``embodiment`` where the table has it."""
    if spec.embodiment_column is not None:
        return spec.embodiment_column
    return EMBODIMENT_COLUMN if EMBODIMENT_COLUMN in columns else None


def find_table(spec: DatasetSpec, split: str, root: Path, explicit: Path | None = None) -> Path:
    """The CSV of a split: `explicit`, or else under ``root/data`` by the published names; a drawn one is drawn.

    Args:
        root: ``$LARY_ROOT``.

    Raises:
        UsageError: unknown split, or no table; names every place that was looked at.
    """
    names = dict.fromkeys(
        (spec.table_name(split), f"{spec.name}_metadata_{split}.csv", f"{spec.name}_{split}.csv"),
    )
    tried = [explicit] if explicit is not None else [root / "data" / name for name in names]
    if explicit is None and split in spec.drawn:
        from lary.data.draws import draw_table

        return draw_table(spec, split, root)
    for path in tried:
        if path.is_file():
            return path
    listed = " nor ".join(str(path) for path in tried)
    hint = "Check the path" if explicit is not None else "Set LARY_ROOT to the folder above data/, or pass --input"
    if explicit is None and spec.repository:
        hint += f"; 'lary data download --include {spec.name}' fetches it"
    raise UsageError(f"There is no table of {spec.name} {split}: neither {listed} exists. {hint}." if len(tried) > 1
                     else f"There is no table of {spec.name} {split}: {listed} does not exist. {hint}.")  # fmt: skip


def read_table(spec: DatasetSpec, split: str, *, path: Path, data_dir: Path, limit: int | None = None) -> SampleTable:
    """Read and check the table of a split; nothing but the CSV is opened.

    Args:
        data_dir: ``$DATA_DIR``, the split's media root is below it.
        limit: read this many rows at most.

    Raises:
        UsageError: the file is missing, empty or no CSV; a column is missing; a cell is empty or holds an unknown
            class, a path that leaves its root, or frame indices that can't be read.
    """
    root = data_dir / spec.split(split).root
    frame = read_frame(path, limit)
    columns = list(frame.columns)
    needed = [*MEDIA_COLUMNS[spec.media], TARGET_COLUMN]
    if spec.media == "clip":
        needed.insert(1, INDEX_COLUMN)
    embodiment = embodiment_column(spec, columns)
    for name in [*needed, *([embodiment] if embodiment else [])]:
        if name not in columns:
            found = ", ".join(columns)[:400]
            raise UsageError(f"{path} has no column '{name}', which {spec.name} needs; it has: {found}.")
    check_cells(spec, path, {name: frame[name].tolist() for name in needed})
    return SampleTable(spec, split, path, frame, root.absolute(), file_digest(path))


def check_cells(spec: DatasetSpec, path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Hold every cell that is used against what it must be. Raises UsageError with the row and line of the first."""
    classes = spec.target.classes if isinstance(spec.target, LabelSpace) else None
    known = frozenset(classes or ())
    for name, cells in columns.items():
        if plainly_right(name, cells, known):
            continue
        for row, cell in enumerate(cells):
            if not cell or cell.isspace():
                problem = f"column '{name}' is empty"
            elif len(cell) > LONGEST_CELL:
                problem = f"column '{name}' holds {len(cell)} letters, more than the {LONGEST_CELL} allowed"
            elif name == INDEX_COLUMN:
                if INDICES.fullmatch(cell):
                    continue
                problem = f"column '{name}' holds '{cell}', which is no list of frame numbers such as '3,9,20'"
            elif name == TARGET_COLUMN and classes is not None:
                if cell in known:
                    continue
                problem = f"'{cell}' is no class of {spec.name}.{suggest(cell, classes)}"
            elif reason := path_problem(cell.strip()):
                problem = f"column '{name}' holds {cell[:60]!r}, which is no path: {reason}"
            elif UNSAFE_PATH.match(cell.lstrip()):
                problem = f"the path '{cell}' leaves its root: paths in tables are relative and inside it"
            else:
                continue
            raise UsageError(f"{path}, row {row + 1} (line {line_of(path, row)}): {problem.rstrip('.')}.")


def plainly_right(name: str, cells: Sequence[str], classes: frozenset[str]) -> bool:
    """Whether a whole column passes a quick look; if not, `check_cells` looks at every cell."""
    if name == TARGET_COLUMN and classes:
        return classes.issuperset(cells)
    for start in range(0, len(cells), BLOCK):
        part = cells[start : start + BLOCK]
        text = "\n" + "\n".join(part) + "\n"
        if max(map(len, part)) > SHORT or text.count("\n") > len(part) + 1:
            return False
        if not text.isascii() or any(mark in text for mark in NOT_PLAIN):
            return False
        if name == INDEX_COLUMN and (
            LONG_NUMBER.search(text)
            or text.encode().translate(None, b"0123456789,\n")
            or any(mark in text for mark in (",,", "\n,", ",\n"))
        ):
            return False
    return True


def file_digest(path: Path) -> str:
    """A hexadecimal SHA-256 prefix of a file's bytes."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()[:16]


def check_media(table: SampleTable, positions: Sequence[int] | None = None) -> list[Path]:
    """The media files that are missing, in table order, each once; files are looked for but not opened.

    Args:
        positions: which samples to look at; all of them by default.
    """
    chosen = range(len(table)) if positions is None else positions
    wanted = list(dict.fromkeys(path for position in chosen for path in table._media_at(position)))
    parts = [wanted[start : start + 256] for start in range(0, len(wanted), 256)]
    with ThreadPoolExecutor(THREADS) as pool:
        missing = pool.map(lambda part: [path for path in part if not os.path.isfile(path)], parts)
        return [path for part in missing for path in part]
