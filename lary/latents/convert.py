"""Latents in another form: a store of the other kind or number format, or one file for other tools."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lary.configs import LatentDtype, LatentsConfig, StoreKind
from lary.data.tables import SampleTable, read_table
from lary.files import LARGEST_FAILURES, atomic_write, path_problem, read_limited, refuse_link, write_bytes, write_text
from lary.latents.inspection import NPZ, folder_of, headers_of, held_in, kind_of
from lary.latents.ref import LatentsRef, SplitLatents, find_latent_table, open_latents
from lary.latents.store import LatentStore, StoreIdentity, check_format, open_store
from lary.locks import locked
from lary.runtime import progress
from lary.settings import Settings
from lary.types import LaryError, MediaError, UsageError

CHUNK = 64
"""Rows in memory at a time."""

FORMATS = (".npy", ".npz", ".parquet", ".safetensors")
KEPT = ("failures.csv", "extraction.json")
"""Files of an extraction that a converted store keeps."""
LARGEST_IDS = 1 << 28
"""Bytes of a file of sample ids."""


def opened(config: LatentsConfig, settings: Settings) -> SplitLatents:
    """The latents of a split as its table names them."""
    return open_latents(settings, LatentsRef.of(config))


def convert(
    config: LatentsConfig, settings: Settings, *, kind: StoreKind, dtype: LatentDtype | None = None,
    shard_rows: int = 1024,
) -> tuple[Path, int]:  # fmt: skip
    """Turn a store into one of another kind or number format, in its place; its table names the new files then.

    The new store grows beside the old one, which is removed once the new one is whole; started again after it was
    stopped, it goes on.

    Returns:
        The folder, and how many rows it holds.

    Raises:
        UsageError: no such store, one without identity, a number format that the kind can't hold.
        LaryError: latents that can't be read, or that are too large for the number format; a full disk; another process
            that writes the same latents.
    """
    if shard_rows < 1:
        raise UsageError(f"--shard-rows {shard_rows}: must be at least 1.")
    folder = recovered(config, settings)
    staging, old = beside(folder)
    with locked(folder):
        before_kind, manifest = kind_of(folder)
        identity = identity_of(folder, manifest)
        wanted = replace(identity, dtype=dtype or identity.dtype)
        check_format(kind, wanted.dtype)
        if (before_kind, identity.key) != (kind, wanted.key):
            check_complete(config, settings, folder, before_kind, manifest)
            latents = opened(config, settings)
            details = {name: value for name, value in manifest.items() if name not in STORE_FIELDS}
            store = open_store(staging, wanted, details, overwrite=True, kind=kind, unit_rows=shard_rows)
            fill(store, latents)
            keep_files(folder, staging)
            folder.rename(old)
            staging.rename(folder)
    with locked(folder):  # the lock before it has moved away with the old folder
        kept = open_store(folder, wanted, {}, overwrite=False, kind=kind)
        rows = rewrite_table(config, settings, kept)
        for leftover in (old, staging):
            shutil.rmtree(leftover, ignore_errors=True)
    return folder, rows


def keep_files(folder: Path, staging: Path) -> None:
    """Copy what an extraction left beside its latents; links, pipes and devices are no such files."""
    for name in KEPT:
        file = folder / name
        if file.is_file() and not file.is_symlink():
            write_bytes(staging / name, read_limited(file, LARGEST_FAILURES))


STORE_FIELDS = ("format", "key", "identity", "store", "unit_rows", "batch_size", "table")


def beside(folder: Path) -> tuple[Path, Path]:
    """Where the new store grows, and where the old one waits for its end. Raises LaryError for links."""
    places = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for place in places:
        refuse_link(place)
    return places


def recovered(config: LatentsConfig, settings: Settings) -> Path:
    """The folder of the store, put back in its place if a conversion was stopped while it exchanged folders."""
    try:
        return folder_of(settings, config)
    except UsageError:
        folder = LatentsRef.of(config).folder(settings)
        staging, old = beside(folder)
        if not (old.is_dir() and staging.is_dir()):
            raise
        with locked(old):  # by a conversion that is still at work
            staging.rename(folder)  # it was whole before the old one was moved away
        return folder


def identity_of(folder: Path, manifest: dict[str, Any]) -> StoreIdentity:
    """The identity that a manifest states. Raises UsageError where it states none."""
    found = manifest.get("identity", {})
    try:
        return StoreIdentity(
            **{field.name: found[field.name] for field in fields(StoreIdentity) if field.name in found}
        )
    except TypeError:
        raise UsageError(
            f"{folder} has no identity: another program made its latents. Extract them again with --store shards, or "
            "use 'lary latents export'."
        ) from None


def check_complete(
    config: LatentsConfig, settings: Settings, folder: Path, kind: str, manifest: dict[str, Any]
) -> None:
    """Refuse to convert latents that the table doesn't name: they would be lost. Raises UsageError."""
    file, table = latent_table(config, settings)
    headers, _ = headers_of(folder, manifest.get("key"))
    named = sum(bool(entry) for entry in table.frame["la_path"])
    held = len(list(folder.glob(NPZ))) if kind == "npz" else sum(1 for _ in held_in(folder, kind, headers))
    if held > named:
        raise UsageError(
            f"{folder} holds latents of {held} rows, but {file} names {named}. Run 'lary extract' without --limit "
            "first, so that none is lost."
        )


def latent_table(config: LatentsConfig, settings: Settings) -> tuple[Path, SampleTable]:
    """The table that names the latents of a split. Raises UsageError if there is none."""
    ref = LatentsRef.of(config)
    file = find_latent_table(settings, ref)
    if file is None:
        raise UsageError(f"There is no table with the latents of '{ref.model}' for {ref.dataset} {ref.split}.")
    return file, read_table(ref.spec, ref.split, path=file, data_dir=Path())


def fill(store: LatentStore, latents: SplitLatents) -> None:
    """Write the rows that a store lacks."""
    table, source = latents.table, latents.source
    numbers = [sample.row for sample in table]
    whole = RowsOf(table)
    lacking = set(store.missing(whole))  # type: ignore[arg-type]
    units: dict[int, list[int]] = {}
    for position, row in enumerate(numbers):
        if row in lacking:
            units.setdefault(row // store.unit_rows, []).append(position)
    with progress(
        len(table), f"converting {latents.folder.name}", done=len(table) - sum(map(len, units.values()))
    ) as bar:
        for unit, positions in sorted(units.items()):
            with store.writer(unit) as writer:
                for part in parts(positions):
                    codes = source.codes(part)
                    for at, tokens in enumerate(source.read(part)):
                        sample = table[part[at]]
                        try:
                            writer.add(sample.row, sample.id, tokens, codes[at])
                        except MediaError as error:
                            raise LaryError(f"Row {sample.row + 1} of {table.path}: {error}") from error
                    bar.advance(len(part))
    store.finish(whole)  # type: ignore[arg-type]


class RowsOf:
    """A table by row numbers: rows that have no latents have a sample that is never found."""

    def __init__(self, table: SampleTable) -> None:
        self._position = {sample.row: position for position, sample in enumerate(table)}
        self._table, self.path, self.digest = table, table.path, table.digest

    def __len__(self) -> int:
        return max(self._position, default=-1) + 1

    def __getitem__(self, row: int) -> Any:
        return self._table[self._position[row]] if row in self._position else NOBODY


class Nobody:
    """The sample of a row without latents."""

    id = "-"


NOBODY = Nobody()


def parts(positions: list[int]) -> Iterator[list[int]]:
    """Positions, a few at a time."""
    return (positions[start : start + CHUNK] for start in range(0, len(positions), CHUNK))


def rewrite_table(config: LatentsConfig, settings: Settings, store: LatentStore) -> int:
    """Let the table name the files of a store; returns how many rows have latents."""
    file, table = latent_table(config, settings)
    entries = store.entries(table, settings.path("LARY_LA_DIR"))
    frame = table.frame.copy()
    frame["la_path"] = entries
    write_text(file, str(frame.to_csv(index=False, lineterminator="\n")))
    return sum(map(bool, entries))


def export(
    config: LatentsConfig, settings: Settings, out: Path, *, rows: str | None = None, ids: str | None = None
) -> int:  # fmt: skip
    """Write tokens as float32 to one file for other tools; returns how many samples.

    ``.npy``: (n, *shape), and beside it ``<name>.csv`` with row and sample id. ``.npz``: arrays ``tokens``, ``rows``,
    ``samples``. ``.safetensors``: the tensor ``tokens``, the ids in the metadata. ``.parquet``: columns ``sample``,
    ``row`` and ``tokens``, flat lists whose shape stands in the metadata.

    Args:
        rows: rows of the table from 1, such as 1-100,205.
        ids: sample ids with commas, or a text file with one in each line.

    Raises:
        UsageError: another ending, rows or ids that aren't there.
    """
    if out.suffix not in FORMATS:
        raise UsageError(f"{out}: expected a file that ends in {', '.join(FORMATS)}.")
    latents = opened(config, settings)
    chosen = latents.take(selected(latents.table, rows, ids)) if rows or ids else latents
    with progress(len(chosen.table), f"writing {out.name}") as bar:
        blocks = read_blocks(chosen, bar.advance)
        WRITERS[out.suffix](out, chosen, blocks)
    return len(chosen.table)


def selected(table: SampleTable, rows: str | None, ids: str | None) -> list[int]:
    """Positions of the samples that were asked for, in table order. Raises UsageError."""
    samples = list(table)
    found = set(range(len(samples)))
    if rows is not None:
        there = {sample.row + 1: position for position, sample in enumerate(samples)}
        asked = set()
        for number in itertools.chain.from_iterable(span(part) for part in rows.split(",")):
            if number not in there:  # said at once: a range may have a thousand million rows
                raise UsageError(f"--rows {rows[:80]}: row {number} has no latents.")
            asked.add(there[number])
        found &= asked
    if ids is not None:
        words = words_of(ids)
        known = {sample.id: position for position, sample in enumerate(samples)}
        if absent_ids := [word for word in words if word not in known]:
            raise UsageError(f"--ids: there are no latents of the sample '{absent_ids[0][:80]}'.")
        found &= {known[word] for word in words}
    if not found:
        raise UsageError("No sample is left by --rows and --ids together.")
    return sorted(found)


def words_of(ids: str) -> list[str]:
    """Ids with commas, or those that stand in a text file. Raises UsageError for a file that can't be read."""
    if path_problem(ids) or not Path(ids).is_file():  # many ids are too long for a path
        return ids.split(",")
    try:
        return read_limited(Path(ids), LARGEST_IDS).decode().split()
    except (OSError, ValueError) as error:
        raise UsageError(f"--ids {ids}: the file can't be read: {error}.") from None


def span(text: str) -> range:
    """A row or a range of rows. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", text)
    if match is None:
        raise UsageError(f"--rows: '{text[:80]}' is no row or range such as 1-100.")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def read_blocks(latents: SplitLatents, told: Any) -> Iterator[npt.NDArray[np.float32]]:
    """Tokens in table order, some rows at a time."""
    for start in range(0, len(latents.table), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(latents.table)), dtype=np.int64)
        yield latents.source.read(rows)
        told(len(rows))


Blocks = Iterator[npt.NDArray[np.float32]]


def write_array(stream: IO[bytes], shape: tuple[int, ...], blocks: Blocks) -> None:
    """A ``.npy`` block by block."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    for block in blocks:
        stream.write(np.ascontiguousarray(block, dtype="<f4").reshape(-1).data.cast("B"))


def ids_of(latents: SplitLatents) -> tuple[list[int], list[str]]:
    """Rows, from 0, and sample ids."""
    samples = list(latents.table)
    return [sample.row for sample in samples], [sample.id for sample in samples]


def write_npy(out: Path, latents: SplitLatents, blocks: Blocks) -> None:
    with atomic_write(out) as stream:
        write_array(stream, (len(latents.table), *latents.source.shape), blocks)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "sample"])
    writer.writerows((row + 1, sample) for row, sample in zip(*ids_of(latents), strict=True))
    write_text(out.with_suffix(".csv"), text.getvalue())


def write_npz(out: Path, latents: SplitLatents, blocks: Blocks) -> None:
    rows, samples = ids_of(latents)
    with atomic_write(out) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("tokens.npy", "w", force_zip64=True) as member:
            write_array(member, (len(rows), *latents.source.shape), blocks)
        for name, array in (("rows", np.array(rows)), ("samples", np.array(samples))):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def write_safetensors(out: Path, latents: SplitLatents, blocks: Blocks) -> None:
    from lary.latents.shardfile import header_bytes

    rows, samples = ids_of(latents)
    shape = latents.source.shape
    facts = {
        "store": str(latents.store.get("key", "")), "rows": ",".join(str(row + 1) for row in rows),
        "samples": ",".join(samples),
    }  # fmt: skip
    with atomic_write(out) as stream:
        stream.write(header_bytes(facts, {"tokens": ("F32", (len(rows), *shape), 4 * len(rows) * math.prod(shape))}))
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype="<f4").reshape(-1).data.cast("B"))


def write_parquet(out: Path, latents: SplitLatents, blocks: Blocks) -> None:
    import pyarrow
    import pyarrow.parquet

    rows, samples = ids_of(latents)
    size = math.prod(latents.source.shape)
    schema = pyarrow.schema(
        [("sample", pyarrow.string()), ("row", pyarrow.int64()), ("tokens", pyarrow.list_(pyarrow.float32(), size))],
        metadata={"shape": ",".join(map(str, latents.source.shape))},
    )
    with atomic_write(out) as stream, pyarrow.parquet.ParquetWriter(stream, schema) as writer:
        start = 0
        for block in blocks:
            part = slice(start, start + len(block))
            tokens = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.reshape(-1)), size)
            columns = [pyarrow.array(samples[part]), pyarrow.array([row + 1 for row in rows[part]]), tokens]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            start += len(block)


WRITERS = {".npy": write_npy, ".npz": write_npz, ".safetensors": write_safetensors, ".parquet": write_parquet}
