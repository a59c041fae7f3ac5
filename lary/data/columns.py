"""CSV files as columns or rows of text, read strictly and written whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lary.files import write_text
from lary.types import UsageError

if TYPE_CHECKING:
    import pandas

BLOCK = 4096
"""Rows of a table that are held as lists at a time."""
MOST_COLUMNS = 4096
LONGEST_LINE = 1 << 22
"""Letters; what is longer is no table of samples, and is refused before it is split into cells."""


def read_csv(path: Path, limit: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV, UTF-8 with or without byte order mark, any line ends; blank lines are skipped.

    Raises:
        UsageError: the file can't be read, has no header or no rows, or a row has another number of cells.
    """
    blocks = read_blocks(path, limit)
    (header,) = next(blocks)
    return header, [row for block in blocks for row in block]


def read_frame(path: Path, limit: int | None = None) -> pandas.DataFrame:
    """The columns of a CSV as text, read as `read_csv` does but several times as fast and never held as rows.

    Raises:
        UsageError: as `read_csv`.
    """
    import pandas

    # The header and the first row are read strictly: the fast parser makes an index of what that row has too much,
    # which takes minutes where it has millions of cells.
    (header,), _ = read_blocks(path, 1 if limit is None else min(limit, 1))
    try:
        frame = pandas.read_csv(
            path, dtype=object, na_filter=False, encoding="utf-8-sig", header=0, names=header, nrows=limit
        )
    except ValueError:  # among them errors of parsing and decoding
        frame = pandas.DataFrame()
    # The fast parser fills short rows with empty cells and makes an index of what a first long row has too much.
    if len(frame) and isinstance(frame.index, pandas.RangeIndex) and not (frame[header[-1]] == "").any():
        return frame
    columns = zip(header, zip(*read_csv(path, limit)[1], strict=True), strict=True)
    return pandas.DataFrame(dict(columns), dtype=object)


def read_blocks(path: Path, limit: int | None = None) -> Iterator[list[list[str]]]:
    """A CSV in blocks of rows; the first block is the header alone. Raises UsageError, see `read_csv`."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1.")
    count = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(lines_of(file))
            header = [name.strip() for name in next(reader, [])]
            if not any(header):
                raise UsageError(f"The table {path} is empty: its first line names the columns.")
            if len(header) > MOST_COLUMNS:
                raise UsageError(f"The table {path} names {len(header)} columns, more than the {MOST_COLUMNS} allowed.")
            if len(set(header)) < len(header):
                raise UsageError(f"The table {path} names a column twice: {', '.join(header)[:400]}.")
            yield [header]
            filled = islice(filter(None, reader), limit)
            while block := list(islice(filled, BLOCK)):
                if set(map(len, block)) != {len(header)}:
                    row = next(row for row, cells in enumerate(block) if len(cells) != len(header))
                    raise UsageError(
                        f"{path}, row {count + row + 1} (line {line_of(path, count + row)}): {len(block[row])} cells "
                        f"under {len(header)} column names; quote cells that hold a comma."
                    )
                count += len(block)
                yield block
    except FileNotFoundError:
        raise UsageError(f"The table {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"The table {path} can't be read as CSV in UTF-8: {error}.") from error
    if not count:
        raise UsageError(f"The table {path} holds column names but no rows.")


def lines_of(file: IO[str]) -> Iterator[str]:
    """The lines of a table. Raises csv.Error for one of absurd length, before it fills the memory, and for NUL."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise csv.Error(f"a line has more than {LONGEST_LINE} letters")
        if "\0" in line:
            raise csv.Error("it holds the letter NUL, so it is no text")
        yield line


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a whole CSV atomically."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def line_of(path: Path, row: int) -> int:
    """The line on which a row (from 0) of a CSV ends; cells may hold line ends, so lines are not rows."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        count = -2
        with suppress(csv.Error):  # a cell too long for this reader: it stands on this line
            for cells in reader:
                count += bool(cells)
                if count == row:
                    break
        return reader.line_num
