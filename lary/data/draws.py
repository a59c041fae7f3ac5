"""Splits that are drawn from the tables of others, so that no episode or segment is in both parts.

Under the ``corrected`` protocol, data sets whose published split is by row are offered in this form as well. The
table of a drawn split is written beside those it comes from when it is first asked for.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lary.data.columns import read_csv
from lary.data.samples import IMAGE_FOLDER, MEDIA_COLUMNS, find_table, group_name, usual_place
from lary.data.spec import DatasetSpec
from lary.files import digest, write_text
from lary.types import UsageError


def draw_table(spec: DatasetSpec, split: str, root: Path) -> Path:
    """Write the table of a drawn split under ``root/data``, unless it is there.

    Raises:
        UsageError: a source is missing or has other columns, or a table of that name holds something else.
    """
    path = root / "data" / spec.table_name(split)
    missing = [name for name in spec.drawn[split].sources if not _has_table(spec, name, root)]
    if missing and path.is_file():
        return path  # it was drawn elsewhere
    text = draw(spec, split, root)
    if not path.is_file():
        write_text(path, text)
    elif path.read_bytes() != text.encode():
        raise UsageError(
            f"The table {path} is not what the tables of {' and '.join(spec.drawn[split].sources)} give: remove it to "
            "have it drawn again, or pass it with --input to use it as it is."
        )
    return path


def draw(spec: DatasetSpec, split: str, root: Path) -> str:
    """The text of a drawn table: the rows of its groups in the order of the sources. Raises UsageError."""
    rule = spec.drawn[split]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    header: list[str] = []
    for name in rule.sources:
        source = find_table(spec, name, root)
        columns, rows = read_csv(source)
        first = MEDIA_COLUMNS[spec.media][0]
        if first not in columns or (header and columns != header):
            raise UsageError(f"{source} has the columns {', '.join(columns)}; expected {', '.join(header or [first])}.")
        if not header:
            writer.writerow(columns)
        header, at = columns, columns.index(first)
        for row in rows:
            group = group_name(spec, usual_place(spec, row[at], IMAGE_FOLDER), rule.pattern)
            if validates(group, rule.share) == rule.validates:
                writer.writerow(row)
    return text.getvalue()


def validates(group: str, share: float) -> bool:
    """Whether a group is among the `share` of all groups that validate: a hash of its name decides."""
    return int(digest(group, length=8), 16) < share * 16**8


def _has_table(spec: DatasetSpec, split: str, root: Path) -> bool:
    try:
        find_table(spec, split, root)
    except UsageError:
        return False
    return True
