"""Tables of samples: reading and validating CSV, and finding the files of rows.

Both published path forms are read: with the folders ``images/`` and
``actions/``, and without them. Messages count rows from 1, and name the line of
the file.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lary.arrays import Ints
from lary.data.spec import DatasetSpec, LabelSpace, evaluate
from lary.files import csv_text, digest, file_digest, inside, open_regular, path_problem, write_text
from lary.registry import suggest
from lary.runtime import in_threads
from lary.types import Media, Sample, UsageError

if TYPE_CHECKING:
    import pandas

MEDIA_COLUMNS: dict[Media, tuple[str, ...]] = {"pair": ("src_img", "tgt_img"), "clip": ("video_path",)}
INDEX_COLUMN = "sample_indices"
TARGET_COLUMN = "action"
EMBODIMENT_COLUMN = "embodiment"
IMAGE_FOLDER, ACTION_FOLDER = "images", "actions"
INDICES = re.compile(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*)*")
UNSAFE_PATH = re.compile(r"[/\\]|[^/\\]*:|(.*[/\\])?\.\.([/\\]|$)")
"""Paths that leave their root."""
SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.,()+ -]*"
PLAIN = {INDEX_COLUMN: r"^[0-9]{1,9}(,[0-9]{1,9})*$", "path": rf"^{SEGMENT}(/{SEGMENT})*$"}
"""Surely valid cells (RE2, by column); others are examined."""
PLAIN_PATH = re.compile(rf"{SEGMENT}(/{SEGMENT})*(?<! )")
REVERSED = re.compile(r"(?:_rev)?\.[^./]+$")
"""Ends of paths that leave the group of a clip alone: it keeps its reversal."""
SHORT = 255
"""Letters of paths without a part that is too long."""
LONGEST_CELL = 4096
"""Letters of a cell, such as a thousand frame numbers."""
MOST_COLUMNS = 4096
LONGEST_LINE = 1 << 22
"""Bytes of a row, which bound the parser's memory."""
SLICE = 1 << 16
"""Rows whose ids are made at once, which bounds the memory for it."""
THREADS = 16
"""Small reads on network file systems mostly wait."""


def read_frame(path: Path, limit: int | None = None, needed: Sequence[str] = ()) -> pandas.DataFrame:
    """The columns of a CSV in UTF-8 as strings, without byte order mark and blank lines.

    Raises UsageError where rows, cells, or `needed` columns are missing or too
    many.
    """
    import pandas
    import pyarrow as pa
    from pyarrow import csv as arrow

    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1.")
    reading = arrow.ReadOptions(block_size=LONGEST_LINE, use_threads=False)  # threads don't number the rows
    parsing = arrow.ParseOptions(newlines_in_values=True)
    try:
        with open_regular(path) as file:
            if file.read(2) in (b"PK", b"\xff\xfe", b"\xfe\xff"):
                raise ValueError("it is a spreadsheet or UTF-16; save it as CSV in UTF-8")
        header = arrow.open_csv(path, reading, parsing).schema.names
        names = list(map(str.strip, header))
        if len(names) > MOST_COLUMNS:
            raise ValueError(f"it names {len(names)} columns, more than the {MOST_COLUMNS} allowed")
        if len(set(names)) < len(names):
            raise ValueError(f"it names a column twice: {', '.join(names)[:400]}")
        texts = arrow.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)
        table = arrow.read_csv(path, reading, parsing, texts)
        if not table.num_rows:
            raise ValueError("Empty CSV file")
    except FileNotFoundError:
        raise UsageError(f"The table {path} does not exist.") from None
    except (OSError, ValueError) as error:  # errors of the parser are ValueErrors
        problem = str(error).splitlines()[0].rstrip(".")[:500]
        if wrong := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", problem):
            row = int(wrong[1]) - 1  # the header counts, too
            cells = f"{wrong[3]} cells under {wrong[2]} column names"
            problem = f"row {row} (line {line_of(path, row - 1)}): {cells}; quote cells that hold a comma"
        elif "straddling" in problem or ("Empty CSV" in problem and path.stat().st_size > LONGEST_LINE):
            problem = f"a row has more than {LONGEST_LINE} letters"  # it fits into no block
        elif "Empty CSV" in problem:
            problem = "it is empty: it needs a line of column names, and rows"
        raise UsageError(f"The table {path} can't be read as CSV in UTF-8: {problem}.") from None
    advice = " Separate cells by commas." if len(names) == 1 else ""
    for name in needed:
        if name not in names:
            raise UsageError(f"{path} has no column '{name}'; it has: {', '.join(names)[:400]}.{advice}")
    frame: pandas.DataFrame = table.slice(0, limit).to_pandas(types_mapper=pandas.ArrowDtype)
    return frame.set_axis(names, axis=1)


def read_csv(path: Path, needed: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV. Raises UsageError: see `read_frame`."""
    frame = read_frame(path, needed=needed)
    return list(frame.columns), frame.to_numpy(object).tolist()


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Write a whole CSV atomically."""
    write_text(path, csv_text([columns, *rows]))


def line_of(path: Path, row: int) -> int:
    """The line on which a row (from 0) of a CSV ends, since cells may hold line ends."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        count = -2
        with suppress(csv.Error):  # a cell too long for this reader: it is on this line
            for cells in reader:
                count += bool(cells)
                if count == row:
                    break
        return reader.line_num


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The samples of a split, in its table's order; each is made when asked for.

    `frame` has all columns as strings, by row of the file, from 0; its paths
    start from `root`.
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
        """The sample at a position; its ``row`` is the row in the file."""
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        media = tuple(self.shown(position, column) for column in self._media)
        labelled = is_class(self.spec, TARGET_COLUMN)
        target = self._columns[TARGET_COLUMN][position] if labelled else self.shown(position, TARGET_COLUMN)
        shown = self.shown(position, INDEX_COLUMN) if self.spec.media == "clip" else ""
        frame_index = tuple(map(int, shown.split(","))) if shown else ()
        name = digest(*media, shown, target)
        group = self.sources[position] or REVERSED.sub("", media[0])
        return Sample(name, self.rows[position], media, frame_index, target, group, self.embodiments[position])

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def take(self, positions: Sequence[int]) -> SampleTable:
        """The table of some of the samples, which keep their ``row``."""
        return replace(self, frame=self.frame.iloc[list(positions)])

    def shown(self, position: int, column: str) -> str:
        """A cell, as `usual_cell` gives it."""
        return usual_cell(self.spec, self._columns[column][position], column)

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all samples, n names."""
        starts = range(0, len(self), SLICE)
        return [name for at in starts for name in ids_of(self.spec, self.frame[at : at + SLICE])]

    def labels(self) -> Ints:
        """Labels (n,) int64: positions in the record's classes. Raises UsageError."""
        position = {name: label for label, name in enumerate(self.spec.labels.classes)}
        return np.array([position[name] for name in self._columns[TARGET_COLUMN]], np.int64)

    def groups(self) -> tuple[str, ...]:
        """The episode or video of every sample, n names; without one, its own."""
        first = self._media[0]
        return tuple(own or REVERSED.sub("", self.shown(at, first)) for at, own in enumerate(self.sources))

    @cached_property
    def sources(self) -> list[str]:
        """The episode or video of every sample, empty where nothing names it."""
        if self.spec.group_column:
            return list(map(str.strip, self.frame[self.spec.group_column]))
        return [matched(self.spec.group_pattern, self.shown(at, self._media[0])) for at in range(len(self))]

    @property
    def unit(self) -> str:
        """What the groups are: episodes, videos, or samples where nothing names these."""
        media = self.spec.media
        return f"{media}s" if "" in self.sources else "episodes" if media == "pair" else "videos"

    def media_path(self, sample: Sample) -> tuple[Path, ...]:
        """Paths of a sample's images or clip. Raises UsageError outside the root."""
        position = self._position[sample.row]
        return tuple(self._file(position, column) for column in self._media)

    def action_path(self, position: int) -> Path:
        """Path of the action file at a position. Raises UsageError."""
        _ = self.spec.actions
        return self._file(position, TARGET_COLUMN)

    def missing_media(self, positions: Sequence[int] | None = None) -> list[Path]:
        """The media files of some samples, or all, that do not exist, each once."""
        chosen = range(len(self)) if positions is None else positions
        wanted = list(dict.fromkeys(self._file(position, column) for position in chosen for column in self._media))
        found = in_threads(os.path.isfile, wanted, THREADS, batch=256)
        return [path for path, there in zip(wanted, found, strict=True) if not there]

    @property
    def _media(self) -> tuple[str, ...]:
        return MEDIA_COLUMNS[self.spec.media]

    @cached_property
    def _columns(self) -> dict[str, list[str]]:
        return {name: self.frame[name].tolist() for name in needed_columns(self.spec) if name in self.frame}

    @cached_property
    def rows(self) -> list[int]:
        """The rows in the file, from 0."""
        return self.frame.index.tolist()

    @cached_property
    def _position(self) -> dict[int, int]:
        return {row: position for position, row in enumerate(self.rows)}

    def robots(self, unnamed: str = "") -> list[str]:
        """The robot types of the table, with `unnamed` for empty cells."""
        column = self.spec.embodiment_column or EMBODIMENT_COLUMN
        if column not in self.frame:
            return [self.spec.embodiment] * len(self)
        return [cell.strip() or unnamed for cell in self.frame[column]]

    @cached_property
    def embodiments(self) -> tuple[str, ...]:
        """The robot type of every sample, or empty."""
        rule, names = self.spec.unnamed_robot, self.robots()
        for position, name in enumerate(names):
            if rule and not name and evaluate(rule[0], self.shown(position, self._media[0])):
                names[position] = rule[1]
        return tuple(names)

    def _file(self, position: int, column: str) -> Path:
        """The file at the usual path, or the table's where only that exists."""
        paths = [inside(self.root, place) for place in places(self.spec, self._columns[column][position], column)]
        return paths[0] if len(paths) == 1 else next(filter(Path.exists, paths), paths[0])


def read_table(
    spec: DatasetSpec, split: str, *, path: Path, data_dir: Path, limit: int | None = None, media: bool = True
) -> SampleTable:
    """Read and validate the table of a split, or its first `limit` rows.

    No other file is opened. Without `media`, it need not name images or clips.
    Raises UsageError.
    """
    root = data_dir / spec.split(split).root
    needed = needed_columns(spec) if media else (TARGET_COLUMN,)
    further = filter(None, (spec.embodiment_column, spec.group_column))
    frame = read_frame(path, limit, (*needed, *further))
    check_cells(spec, path, {name: frame[name] for name in needed})
    return SampleTable(spec, split, path, frame, root.absolute(), file_digest(path))


def needed_columns(spec: DatasetSpec) -> tuple[str, ...]:
    return *MEDIA_COLUMNS[spec.media], *([INDEX_COLUMN] if spec.media == "clip" else []), TARGET_COLUMN


def check_cells(spec: DatasetSpec, path: Path, columns: Mapping[str, pandas.Series[str]]) -> None:
    """Raise UsageError with row and line of the first wrong cell."""
    import pyarrow as pa
    from pyarrow import compute

    for name, column in columns.items():
        cells = pa.chunked_array(pa.array(column))
        if is_class(spec, name):
            valid = compute.is_in(cells, pa.array(spec.labels.classes, cells.type))
        else:
            matches = compute.match_substring_regex(cells, PLAIN.get(name, PLAIN["path"]))
            valid = compute.and_(matches, compute.less_equal(compute.binary_length(cells), SHORT))
        for row in compute.indices_nonzero(compute.invert(valid)).to_pylist():
            if problem := cell_problem(spec, name, cells[row].as_py()):
                raise UsageError(f"{path}, row {row + 1} (line {line_of(path, row)}): {problem.removesuffix('.')}")


def ids_of(spec: DatasetSpec, frame: pandas.DataFrame) -> list[str]:
    """The `Sample.id` of every row, 40 times as fast as singly."""
    import pyarrow as pa
    from pyarrow import compute

    parts = []
    for name in (*MEDIA_COLUMNS[spec.media], INDEX_COLUMN, TARGET_COLUMN):
        if name == INDEX_COLUMN and spec.media == "pair":
            parts.append(pa.scalar("0:"))  # no frames
            continue
        cells = pa.chunked_array(pa.array(frame[name])).combine_chunks()
        if not is_class(spec, name):
            odd = compute.invert(compute.match_substring_regex(cells, usual_pattern(spec, name)))
            rest = [usual_cell(spec, cell, name) for cell in cells.filter(odd).to_pylist()]
            cells = compute.replace_with_mask(cells, odd, pa.array(rest, cells.type))
        size = compute.binary_length(cells).cast(cells.type)
        join = compute.binary_join_element_wise
        parts.append(join(size, cells, ":"))
    texts = join(*parts, "").cast(pa.binary())  # what `digest` hashes
    return [hashlib.sha256(text).hexdigest()[:16] for text in texts.to_pylist()]


def usual_pattern(spec: DatasetSpec, column: str) -> str:
    """A pattern (RE2) of cells that `usual_cell` leaves alone."""
    if column == INDEX_COLUMN:
        return "^(0|[1-9][0-9]*)(,(0|[1-9][0-9]*))*$"
    if spec.path_repair:
        return "^$"
    within = "" if spec.media_depth is None else f"{folder_of(column)}/({SEGMENT}/)*"
    return rf"^({SEGMENT}/)*{within}{SEGMENT}[\w.,()+-]$"


def is_class(spec: DatasetSpec, column: str) -> bool:
    return column == TARGET_COLUMN and isinstance(spec.target, LabelSpace)


def cell_problem(spec: DatasetSpec, name: str, cell: str) -> str:
    """What is wrong with a cell, in words; empty if nothing is."""
    if not cell or cell.isspace():
        return f"column '{name}' is empty"
    if len(cell) > LONGEST_CELL:
        return f"column '{name}' holds {len(cell)} letters, more than the {LONGEST_CELL} allowed"
    if name == INDEX_COLUMN:
        wrong = f"column '{name}' holds '{cell}', which is no list of frame numbers such as '3,9,20'"
        return "" if INDICES.fullmatch(cell) else wrong
    if is_class(spec, name):
        classes = spec.labels.classes
        return "" if cell in classes else f"{cell!r} is no class of {spec.name}.{suggest(cell, classes)}"
    if reason := path_problem(cell.strip()):
        return f"column '{name}' holds {cell[:60]!r}, which is no path: {reason}"
    if UNSAFE_PATH.match(cell.lstrip()):
        return f"the path '{cell}' leaves its root"
    return ""


def folder_of(column: str) -> str:
    return ACTION_FOLDER if column == TARGET_COLUMN else IMAGE_FOLDER


def matched(pattern: str, path: str) -> str:
    """The first group, or the match, of a pattern in a path; or empty."""
    found = evaluate(pattern, f"/{path}".replace(f"/{IMAGE_FOLDER}/", "/", 1)[1:])
    return next(filter(None, (*found.groups(), found[0])), "") if found else ""


def usual_cell(spec: DatasetSpec, cell: str, column: str) -> str:
    """A path below its root, repaired and with its folder by the record; or frames."""
    if column == INDEX_COLUMN:
        return ",".join(str(int(part)) for part in cell.split(","))
    if spec.path_repair:
        cell = evaluate(spec.path_repair[0], cell, spec.path_repair[1])
    return placed(cell, folder_of(column), spec.media_depth)


def places(spec: DatasetSpec, cell: str, column: str) -> tuple[str, ...]:
    """Where a file may be below its root: the usual path, then the table's."""
    usual, folder = usual_cell(spec, cell, column), folder_of(column)
    if cell == usual:
        return (usual,)
    return tuple(dict.fromkeys((usual, placed(cell, folder, None), placed(cell, folder, 0))))


def placed(cell: str, folder: str, depth: int | None) -> str:
    """A path with forward slashes and, given a `depth`, `folder` behind so many folders."""
    named = depth is None or cell.startswith(f"{folder}/") or f"/{folder}/" in cell
    if named and PLAIN_PATH.fullmatch(cell):
        return cell  # nearly all of them
    parts = [part for part in cell.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    if depth is not None and folder not in parts[:-1]:
        parts.insert(min(depth, max(len(parts) - 1, 0)), folder)
    return "/".join(parts)
