"""Looking at a store: what it is (``lary latents info``) and whether every byte is as written (``verify``)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.configs import LatentsConfig
from lary.data.spec import DATASETS
from lary.data.splits import find_table
from lary.data.tables import SampleTable, read_table
from lary.latents.npzfile import read_arrays, read_stamp, read_tokens
from lary.latents.reader import descriptor, read_codes, read_stored
from lary.latents.ref import LatentsRef
from lary.latents.shardfile import ShardHeader, read_header
from lary.latents.shards import read_index, unit_order
from lary.latents.store import INDEX, MANIFEST, SHARDS, read_manifest
from lary.runtime import progress
from lary.settings import Settings
from lary.types import LaryError, MediaError, UsageError

NPZ = "latent_action_*.npz"
THREADS = 4


@dataclass(frozen=True)
class Held:
    """Latents of one row as a store holds them: row and sample id, file, and position in a shard."""

    row: int
    sample: str
    file: Path
    position: int | None = None


@dataclass(frozen=True)
class StoreInfo:
    """What a store is and holds.

    Attributes:
        rows: how many rows have latents.
        size: bytes of the files that hold them.
        missing: ids of the table's samples without latents; None where the table isn't here.
        problems: files that can't be read.
    """

    folder: Path
    manifest: dict[str, Any]
    kind: str
    shape: tuple[int, ...] | None
    dtype: str
    rows: int
    files: int
    size: int
    missing: tuple[str, ...] | None
    problems: tuple[str, ...]

    def text(self) -> str:
        """Lines for the terminal."""
        identity = self.manifest.get("identity") or {"origin": "made by another program: no identity to check"}
        lines = [f"{self.folder}", f"  kind        {self.kind}, {self.files} files, {self.size} bytes"]
        lines += [f"  {name:11} {value}" for name, value in identity.items() if value not in ("", None)]
        shape = " x ".join(map(str, self.shape)) if self.shape else "unknown"
        lines += [f"  rows        {self.rows}", f"  tokens      {shape} {self.dtype}"]
        if self.missing is None:
            lines.append("  missing     unknown: the table isn't here")
        else:
            shown = ", ".join(self.missing[:10]) + (", ..." if len(self.missing) > 10 else "")
            lines.append(f"  missing     {len(self.missing)}" + (f": {shown}" if shown else ""))
        return "\n".join(lines + [f"  damaged     {problem}" for problem in self.problems])


def folder_of(settings: Settings, config: LatentsConfig) -> Path:
    """The folder of a store. Raises UsageError if there is none, or for unknown names."""
    DATASETS.get(config.dataset).split(config.split)
    folder = LatentsRef.of(config).folder(settings)
    if not folder.is_dir():
        raise UsageError(
            f"There are no latents of '{config.model}' for {config.dataset} {config.split}: {folder} does not exist."
        )
    return folder


def headers_of(folder: Path, key: str | None) -> tuple[dict[str, ShardHeader], list[str]]:
    """Headers of a folder's shards by name, from the oldest of a unit to its newest, and what is wrong with others."""
    found: dict[str, ShardHeader] = {}
    problems = []
    for file in sorted(folder.glob(SHARDS), key=unit_order):
        try:
            header = read_header(file)
        except LaryError as error:
            problems.append(str(error))
            continue
        if key is not None and header.store != key:
            problems.append(f"{file} belongs to another store.")
            continue
        found[file.name] = header
    return found, problems


def held_in(folder: Path, kind: str, headers: dict[str, ShardHeader]) -> Iterator[Held]:
    """What a store holds, row by row; of a row that is there twice, the newest."""
    if kind == "npz":
        files = sorted(folder.glob(NPZ))
        with ThreadPoolExecutor(THREADS) as pool:
            for file, stamp in zip(files, pool.map(read_stamp, files), strict=True):
                digits = file.stem.rpartition("_")[2]
                if digits.isascii() and digits.isdigit():
                    yield Held(int(digits), stamp.sample if stamp else "", file)
        return
    newest: dict[int, Held] = {}
    for header in headers.values():
        for position, (row, sample) in enumerate(zip(header.rows.tolist(), header.samples, strict=True)):
            newest[row] = Held(row, sample, header.path, position)
    yield from (newest[row] for row in sorted(newest))


def kind_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The kind of a store and its manifest; without a manifest it holds ``.npz`` files of another program."""
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    kind = manifest.get("store", "npz")
    if kind not in ("npz", "shards"):
        raise LaryError(f"{folder / MANIFEST} names the kind {kind!r}, which this lary doesn't know: update lary.")
    return kind, manifest


def table_of(settings: Settings, config: LatentsConfig) -> SampleTable | None:
    """The table of the split, or None where it isn't here."""
    dataset = DATASETS.get(config.dataset)
    try:
        source = find_table(dataset, config.split, settings.path("LARY_ROOT"))
        return read_table(dataset, config.split, path=source, data_dir=Path())
    except LaryError:
        return None


def info(config: LatentsConfig, settings: Settings) -> StoreInfo:
    """What a store is, what it holds, and what of its table is missing.

    Raises:
        UsageError: there is no such store.
        LaryError: its manifest can't be read.
    """
    folder = folder_of(settings, config)
    kind, manifest = kind_of(folder)
    headers, problems = headers_of(folder, manifest.get("key"))
    held = list(held_in(folder, kind, headers))
    shape, dtype = describe(held, headers, problems)
    table = table_of(settings, config)
    missing = None
    if table is not None:
        by_row = {item.row: item.sample for item in held}
        missing = tuple(
            sample.id for sample in table if sample.row not in by_row or by_row[sample.row] not in ("", sample.id)
        )  # fmt: skip
    files = {item.file for item in held}
    size = sum(file.stat().st_size for file in files)
    return StoreInfo(folder, manifest, kind, shape, dtype, len(held), len(files), size, missing, tuple(problems))


def describe(
    held: list[Held], headers: dict[str, ShardHeader], problems: list[str]
) -> tuple[tuple[int, ...] | None, str]:
    """Shape and number format of the first row; a file that can't be read joins `problems`."""
    if not held:
        return None, "unknown"
    if (header := headers.get(held[0].file.name)) is not None:
        return header.shape, header.dtype
    try:
        tokens = read_tokens(held[0].file)
    except MediaError as error:
        problems.append(str(error))
        return None, "unknown"
    return tokens.shape, str(tokens.dtype)


def verify(config: LatentsConfig, settings: Settings) -> tuple[int, list[str]]:
    """Read every row of a store: checksums, number formats, finite values, stamps, and the index.

    Returns:
        How many rows were read, and a sentence for everything that is wrong.

    Raises:
        UsageError: there is no such store.
        LaryError: its manifest can't be read.
    """
    folder = folder_of(settings, config)
    kind, manifest = kind_of(folder)
    key = manifest.get("key")
    headers, problems = headers_of(folder, key) if kind == "shards" else ({}, [])
    if kind == "shards":
        problems += index_problems(folder, headers)
        units: list[Callable[[], list[str]]] = [shard_check(header) for header in headers.values()]
        counts = [len(header) for header in headers.values()]
    else:
        files = sorted(folder.glob(NPZ))
        units, counts = [npz_check(file, key) for file in files], [1] * len(files)
    with progress(sum(counts), f"verifying {folder.name}") as bar, ThreadPoolExecutor(THREADS) as pool:
        for count, found in zip(counts, pool.map(lambda check: check(), units), strict=True):
            problems += found
            bar.advance(count)
    return sum(counts), problems


def index_problems(folder: Path, headers: dict[str, ShardHeader]) -> list[str]:
    """What is wrong with the index of a store of shards."""
    if not (folder / INDEX).exists() and not (folder / INDEX).is_symlink():
        return [f"{folder / INDEX} is missing: 'lary extract' writes it again."]
    try:
        listed = read_index(folder, headers)
    except LaryError as error:
        return [str(error)]
    lacking = {row for header in headers.values() for row in header.rows.tolist()} - {row for row, _ in listed}
    return [f"{folder / INDEX} lacks {len(lacking)} rows: 'lary extract' writes it again."] if lacking else []


def shard_check(header: ShardHeader) -> Callable[[], list[str]]:
    """A check of all rows of one shard."""

    def check() -> list[str]:
        try:
            with descriptor(header) as handle:
                return list(row_problems(header, handle))
        except LaryError as error:
            return [str(error)]

    return check


def row_problems(header: ShardHeader, handle: int) -> Iterator[str]:
    """What is wrong with the rows of a shard."""
    for position, sample in enumerate(header.samples):
        stored = read_stored(header, handle, position)
        checksum = zlib.crc32(stored.reshape(-1).data.cast("B"))
        if header.codes is not None:
            codes = read_codes(header, handle, position)
            checksum = zlib.crc32(codes.reshape(-1).data.cast("B"), checksum)
        where = f"{header.path}, row {position} (row {header.rows[position] + 1} of the table, sample {sample})"
        if checksum != int(header.checksums[position]):
            yield f"{where}: its bytes are not those that were written."
        elif not all_finite(stored, header.dtype):
            yield f"{where}: it holds values that are not finite."


def npz_check(file: Path, key: str | None) -> Callable[[], list[str]]:
    """A check of one ``.npz`` file; its checksums are those of the archive."""

    def check() -> list[str]:
        try:
            tokens, _ = read_arrays(file, "tokens", "indices")
        except MediaError as error:
            return [str(error)]
        if tokens is None or tokens.ndim < 2:
            return [f"{file} has no array 'tokens' (P, N, D) or (N, D)."]
        if not all_finite(tokens, str(tokens.dtype)):
            return [f"{file} holds values that are not finite."]
        stamp = read_stamp(file)
        if key is not None and (stamp is None or stamp.store != key):
            return [f"{file} belongs to another store."]
        return []

    return check


def all_finite(stored: npt.NDArray[Any], dtype: str) -> bool:
    """Whether all numbers are finite; bfloat16 comes as its bits."""
    if dtype == "bfloat16":
        return bool(((stored & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(stored).all())
