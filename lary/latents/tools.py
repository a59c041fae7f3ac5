"""What is done with stores after extraction: inspect, verify, convert to another kind or number format."""

from __future__ import annotations

import itertools
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.configs import LatentDtype, LatentsConfig, StoreKind
from lary.data.spec import DATASETS
from lary.data.splits import find_table
from lary.data.tables import SampleTable, read_table
from lary.files import LARGEST_FAILURES, read_limited, refuse_link, write_bytes, write_text
from lary.latents.npz import NPZ, read_array, read_stamp, read_stamps, read_tokens, row_of
from lary.latents.ref import LatentsRef, SplitLatents, check_format, find_latent_table, open_latents, open_store
from lary.latents.shardfile import OpenShard, ShardHeader, scan_shards
from lary.latents.shards import index_problems
from lary.latents.store import MANIFEST, LatentStore, StoreIdentity, read_manifest
from lary.locks import locked
from lary.runtime import progress
from lary.settings import Settings
from lary.types import LaryError, MediaError, UsageError

THREADS = 4
CHUNK = 64
"""Rows in memory at a time."""
KEPT = ("failures.csv", "extraction.json")
"""Files of an extraction that a converted store keeps."""
STORE_FIELDS = ("format", "key", "identity", "store", "unit_rows", "batch_size", "table")


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


@dataclass(frozen=True)
class _Found:
    """A store on the disk: its kind, its manifest, its shards, and what is wrong with others."""

    folder: Path
    kind: str
    manifest: dict[str, Any]
    headers: list[ShardHeader]
    problems: list[str]

    def held(self) -> dict[int, tuple[str, Path]]:
        """Sample id and file by row; of a row that is there twice, the newest."""
        if self.kind == "npz":
            files = {row: file for file in self.folder.glob(NPZ) if (row := row_of(file.name)) is not None}
            stamps = read_stamps(files[row] for row in sorted(files))
            return {row: (stamp.sample if stamp else "", files[row]) for row, stamp in zip(sorted(files), stamps)}  # noqa: B905
        found: dict[int, tuple[str, Path]] = {}
        for header in self.headers:
            found |= {row: (sample, header.path) for row, sample in zip(header.rows.tolist(), header.samples)}  # noqa: B905
        return dict(sorted(found.items()))


def _found(settings: Settings, config: LatentsConfig) -> _Found:
    """The store of a split. Raises UsageError if there is none or for unknown names, LaryError for its manifest.

    Without a manifest it holds ``.npz`` files of another program.
    """
    DATASETS.get(config.dataset).split(config.split)
    folder = LatentsRef.of(config).folder(settings)
    if not folder.is_dir():
        raise UsageError(
            f"There are no latents of '{config.model}' for {config.dataset} {config.split}: {folder} does not exist."
        )
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    kind = manifest.get("store", "npz")
    if kind not in ("npz", "shards"):
        raise LaryError(f"{folder / MANIFEST} names the kind {kind!r}, which this lary doesn't know: update lary.")
    headers, problems = scan_shards(folder, manifest.get("key")) if kind == "shards" else ([], [])
    return _Found(folder, kind, manifest, headers, problems)


def store_info(config: LatentsConfig, settings: Settings) -> StoreInfo:
    """What a store is, what it holds, and what of its table is missing.

    Raises:
        UsageError: there is no such store.
        LaryError: its manifest can't be read.
    """
    store = _found(settings, config)
    held, problems = store.held(), list(store.problems)
    shape, dtype = None, "unknown"
    if store.headers and held:
        shape, dtype = store.headers[0].shape, store.headers[0].dtype
    elif held:
        try:
            tokens = read_tokens(next(iter(held.values()))[1])
            shape, dtype = tokens.shape, str(tokens.dtype)
        except MediaError as error:
            problems.append(str(error))
    missing = None
    try:
        dataset = DATASETS.get(config.dataset)
        source = find_table(dataset, config.split, settings.path("LARY_ROOT"))
        table = read_table(dataset, config.split, path=source, data_dir=Path())
        missing = tuple(
            sample.id for sample in table if sample.row not in held or held[sample.row][0] not in ("", sample.id)
        )
    except LaryError:
        pass  # the table isn't here
    files = {file for _, file in held.values()}
    size = sum(file.stat().st_size for file in files)
    return StoreInfo(
        store.folder, store.manifest, store.kind, shape, dtype, len(held), len(files), size, missing, tuple(problems)
    )  # fmt: skip


def verify_store(config: LatentsConfig, settings: Settings) -> tuple[int, list[str]]:
    """Read every row of a store: checksums, number formats, finite values, stamps, and the index.

    Returns:
        How many rows were read, and a sentence for everything that is wrong.

    Raises:
        UsageError: there is no such store.
        LaryError: its manifest can't be read.
    """
    store = _found(settings, config)
    key, problems = store.manifest.get("key"), list(store.problems)
    checks: list[tuple[int, Callable[[], list[str]]]] = []
    if store.kind == "shards":
        problems += index_problems(store.folder, store.headers)
        checks = [(len(header), partial(_shard_problems, header)) for header in store.headers]
    else:
        files = sorted(store.folder.glob(NPZ))
        checks = [(1, partial(_npz_problems, file, key)) for file in files]
    total = sum(count for count, _ in checks)
    with progress(total, f"verifying {store.folder.name}") as bar, ThreadPoolExecutor(THREADS) as pool:
        for (count, _), found in zip(checks, pool.map(lambda check: check[1](), checks), strict=True):
            problems += found
            bar.advance(count)
    return total, problems


def _shard_problems(header: ShardHeader) -> list[str]:
    """What is wrong with the rows of a shard."""
    found = []
    try:
        shard = OpenShard(header)
        for position, sample in enumerate(header.samples):
            stored, codes = shard.tokens(position), shard.codes(position)
            checksum = zlib.crc32(stored.reshape(-1).data.cast("B"))
            checksum = checksum if codes is None else zlib.crc32(codes.reshape(-1).data.cast("B"), checksum)
            where = f"{header.path}, row {position} (row {header.rows[position] + 1} of the table, sample {sample})"
            if checksum != int(header.checksums[position]):
                found.append(f"{where}: its bytes are not those that were written.")
            elif not _all_finite(stored, header.dtype):
                found.append(f"{where}: it holds values that are not finite.")
    except LaryError as error:
        found.append(str(error))
    return found


def _npz_problems(file: Path, key: str | None) -> list[str]:
    """What is wrong with one ``.npz`` file, whose checksums are those of the archive."""
    try:
        tokens, _ = read_tokens(file), read_array(file, "indices")
    except MediaError as error:
        return [str(error)]
    if not _all_finite(tokens, str(tokens.dtype)):
        return [f"{file} holds values that are not finite."]
    stamp = read_stamp(file)
    other = key is not None and (stamp is None or stamp.store != key)
    return [f"{file} belongs to another store."] if other else []


def _all_finite(stored: npt.NDArray[Any], dtype: str) -> bool:
    """Whether all numbers are finite; bfloat16 comes as its bits, whose exponent is all ones in others."""
    return bool(((stored & 0x7F80) != 0x7F80).all() if dtype == "bfloat16" else np.isfinite(stored).all())


def convert_store(
    config: LatentsConfig, settings: Settings, *, kind: StoreKind, dtype: LatentDtype | None = None,
    shard_rows: int = 1024,
) -> tuple[Path, int]:  # fmt: skip
    """Turn a store into one of another kind or number format, in its place; its table names the new files then.

    The new store grows beside the old one, which is removed once the new one is whole; started again after it was
    stopped, it resumes.

    Returns:
        The folder, and how many rows it holds.

    Raises:
        UsageError: no such store, one without identity, a number format that the kind can't hold.
        LaryError: latents that can't be read, or that are too large for the number format; a full disk; another process
            that writes the same latents.
    """
    if shard_rows < 1:
        raise UsageError(f"--shard-rows {shard_rows}: must be at least 1.")
    ref = LatentsRef.of(config)
    folder = ref.folder(settings)
    staging, old = _beside(folder)
    if not folder.is_dir() and old.is_dir() and staging.is_dir():  # stopped while it exchanged the folders
        with locked(old):  # by a conversion that is still running
            staging.rename(folder)  # it was whole before the old one was moved away
    with locked(_found(settings, config).folder):
        store = _found(settings, config)
        identity = _identity_of(store)
        wanted = replace(identity, dtype=dtype or identity.dtype)
        check_format(kind, wanted.dtype)
        if (store.kind, identity.key) != (kind, wanted.key):
            file, table = _latent_table(ref, settings)
            named = sum(bool(entry) for entry in table.frame["la_path"])
            if (held := len(list(folder.glob(NPZ))) if store.kind == "npz" else len(store.held())) > named:
                raise UsageError(
                    f"{folder} holds latents of {held} rows, but {file} names {named}. Run 'lary extract' without "
                    "--limit first, so that none is lost."
                )
            details = {name: value for name, value in store.manifest.items() if name not in STORE_FIELDS}
            new = open_store(staging, wanted, details, overwrite=True, kind=kind, unit_rows=shard_rows)
            _fill(new, table, open_latents(settings, ref))
            for kept in (folder / name for name in KEPT):
                if kept.is_file() and not kept.is_symlink():
                    write_bytes(staging / kept.name, read_limited(kept, LARGEST_FAILURES))
            folder.rename(old)
            staging.rename(folder)
    with locked(folder):  # the lock before it has moved away with the old folder
        file, table = _latent_table(ref, settings)
        new = open_store(folder, wanted, {}, overwrite=False, kind=kind)
        entries = new.entries(table, ref.latent_root(settings))
        frame = table.frame.copy()
        frame["la_path"] = entries
        write_text(file, str(frame.to_csv(index=False, lineterminator="\n")))
        for leftover in (old, staging):
            shutil.rmtree(leftover, ignore_errors=True)
    return folder, sum(map(bool, entries))


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where the new store grows, and where the old one waits for its end. Raises LaryError for links."""
    places = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for place in places:
        refuse_link(place)
    return places


def _identity_of(store: _Found) -> StoreIdentity:
    """The identity that a manifest states. Raises UsageError where it states none."""
    found = store.manifest.get("identity", {})
    try:
        return StoreIdentity(
            **{field.name: found[field.name] for field in fields(StoreIdentity) if field.name in found}
        )
    except TypeError:
        raise UsageError(
            f"{store.folder} has no identity: another program made its latents. Extract them again with --store "
            "shards, or use 'lary latents export'."
        ) from None


def _latent_table(ref: LatentsRef, settings: Settings) -> tuple[Path, SampleTable]:
    """The table that names the latents of a split. Raises UsageError if there is none."""
    file = find_latent_table(settings, ref)
    if file is None:
        raise UsageError(f"There is no table with the latents of '{ref.model}' for {ref.dataset} {ref.split}.")
    return file, read_table(ref.spec, ref.split, path=file, data_dir=Path())


def _fill(store: LatentStore, whole: SampleTable, latents: SplitLatents) -> None:
    """Write the rows that a store lacks; `whole` is the table of all rows, also of those without latents."""
    table = latents.table
    lacking = set(store.missing(whole))
    positions = [position for position, sample in enumerate(table) if sample.row in lacking]
    units = itertools.groupby(positions, lambda position: table[position].row // store.unit_rows)
    with progress(len(table), f"converting {latents.folder.name}", done=len(table) - len(positions)) as bar:
        for unit, members in units:
            with store.writer(unit) as write:
                while part := list(itertools.islice(members, CHUNK)):
                    codes = latents.source.codes(part)
                    for at, tokens in enumerate(latents.source.read(part)):
                        sample = table[part[at]]
                        try:
                            write(sample.row, sample.id, tokens, codes[at])
                        except MediaError as error:
                            raise LaryError(f"Row {sample.row + 1} of {table.path}: {error}") from error
                    bar.advance(len(part))
    store.finish(whole)
