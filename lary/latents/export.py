"""Tokens of a store in one file for other tools: ``lary latents export``."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from lary.configs import LatentsConfig
from lary.data.tables import SampleTable
from lary.files import atomic_write, path_problem, read_limited, write_text
from lary.latents.ref import LatentsRef, open_latents
from lary.latents.shards import header_bytes
from lary.runtime import progress
from lary.settings import Settings
from lary.types import UsageError

CHUNK = 64
"""Rows in memory at a time."""
LARGEST_IDS = 1 << 28
"""Bytes of a file of sample ids."""


@dataclass(frozen=True)
class _Export:
    """What goes into an exported file: rows of the table, from 1, sample ids, shape of one, and blocks of tokens."""

    rows: list[int]
    samples: list[str]
    shape: tuple[int, ...]
    store: str
    blocks: Iterator[npt.NDArray[np.float32]]


def export_latents(
    config: LatentsConfig, settings: Settings, out: Path, *, rows: str | None = None, ids: str | None = None
) -> int:  # fmt: skip
    """Write tokens as float32 to one file for other tools; returns how many samples.

    ``.npy``: (n, *shape), and beside it ``<name>.csv`` with row and sample id. ``.npz``: arrays ``tokens``, ``rows``
    (from 0), ``samples``. ``.safetensors``: the tensor ``tokens``, the ids in the metadata. ``.parquet``: columns
    ``sample``, ``row`` and ``tokens``, flat lists whose shape is in the metadata.

    Args:
        rows: rows of the table from 1, such as 1-100,205.
        ids: sample ids with commas, or a text file with one in each line.

    Raises:
        UsageError: another ending, rows or ids that aren't there.
    """
    if out.suffix not in WRITERS:
        raise UsageError(f"{out}: expected a file that ends in {', '.join(WRITERS)}.")
    latents = open_latents(settings, LatentsRef.of(config))
    chosen = latents.take(_selected(latents.table, rows, ids)) if rows or ids else latents
    samples, source = list(chosen.table), chosen.source
    with progress(len(samples), f"writing {out.name}") as bar:

        def blocks() -> Iterator[npt.NDArray[np.float32]]:
            for start in range(0, len(samples), CHUNK):
                block = source.read(range(start, min(start + CHUNK, len(samples))))
                yield np.ascontiguousarray(block, dtype="<f4")
                bar.advance(len(block))

        numbers, names = [sample.row + 1 for sample in samples], [sample.id for sample in samples]
        what = _Export(numbers, names, source.shape, str(chosen.store.get("key", "")), blocks())
        with atomic_write(out) as stream:
            WRITERS[out.suffix](stream, what)
        if out.suffix == ".npy":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([("row", "sample"), *zip(numbers, names, strict=True)])
            write_text(out.with_suffix(".csv"), text.getvalue())
    return len(samples)


def _selected(table: SampleTable, rows: str | None, ids: str | None) -> list[int]:
    """Positions of the samples that were asked for, in table order. Raises UsageError."""
    samples = list(table)
    found = set(range(len(samples)))
    if rows is not None:
        there = {sample.row + 1: position for position, sample in enumerate(samples)}
        asked = set()
        for number in itertools.chain.from_iterable(_span(part) for part in rows.split(",")):
            if number not in there:  # refused at once: a range may have a thousand million rows
                raise UsageError(f"--rows {rows[:80]}: row {number} has no latents.")
            asked.add(there[number])
        found &= asked
    if ids is not None:
        words = _words_of(ids)
        known = {sample.id: position for position, sample in enumerate(samples)}
        if absent := [word for word in words if word not in known]:
            raise UsageError(f"--ids: there are no latents of the sample '{absent[0][:80]}'.")
        found &= {known[word] for word in words}
    if not found:
        raise UsageError("No sample is left by --rows and --ids together.")
    return sorted(found)


def _words_of(ids: str) -> list[str]:
    """Ids with commas, or those in a text file. Raises UsageError for a file that can't be read."""
    if path_problem(ids) or not Path(ids).is_file():  # many ids are too long for a path
        return ids.split(",")
    try:
        return read_limited(Path(ids), LARGEST_IDS).decode().split()
    except (OSError, ValueError) as error:
        raise UsageError(f"--ids {ids}: the file can't be read: {error}.") from None


def _span(text: str) -> range:
    """A row or a range of rows. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", text)
    if match is None:
        raise UsageError(f"--rows: '{text[:80]}' is no row or range such as 1-100.")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _write_npy(stream: IO[bytes], what: _Export) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(what.rows), *what.shape)}
    np.lib.format.write_array_header_1_0(stream, header)
    for block in what.blocks:
        stream.write(block.reshape(-1).data.cast("B"))


def _write_npz(stream: IO[bytes], what: _Export) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("tokens.npy", "w", force_zip64=True) as member:
            _write_npy(member, what)
        for name, array in (("rows", np.array(what.rows) - 1), ("samples", np.array(what.samples))):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_safetensors(stream: IO[bytes], what: _Export) -> None:
    facts = {"store": what.store, "rows": ",".join(map(str, what.rows)), "samples": ",".join(what.samples)}
    size = 4 * len(what.rows) * math.prod(what.shape)
    stream.write(header_bytes(facts, {"tokens": ("F32", (len(what.rows), *what.shape), size)}))
    for block in what.blocks:
        stream.write(block.reshape(-1).data.cast("B"))


def _write_parquet(stream: IO[bytes], what: _Export) -> None:
    import pyarrow.parquet

    size = math.prod(what.shape)
    schema = pyarrow.schema(
        [("sample", pyarrow.string()), ("row", pyarrow.int64()), ("tokens", pyarrow.list_(pyarrow.float32(), size))],
        metadata={"shape": ",".join(map(str, what.shape))},
    )
    rows, samples = iter(what.rows), iter(what.samples)
    with pyarrow.parquet.ParquetWriter(stream, schema) as writer:
        for block in what.blocks:
            tokens = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.reshape(-1)), size)
            names, numbers = (list(itertools.islice(each, len(block))) for each in (samples, rows))
            columns = [pyarrow.array(names), pyarrow.array(numbers), tokens]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))


WRITERS: dict[str, Callable[[IO[bytes], _Export], None]] = {
    ".npy": _write_npy, ".npz": _write_npz, ".parquet": _write_parquet, ".safetensors": _write_safetensors,
}  # fmt: skip
