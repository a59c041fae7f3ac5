"""Latents of a split as probes see them: its samples and random access to their tokens.

Reads the tables that ``lary extract`` writes and those of an earlier extraction by the published code, whose
``la_path`` may be a bare file name and whose media paths may lack ``images/`` and ``actions/``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lary import paths
from lary.data.spec import DatasetSpec
from lary.data.tables import SampleTable, read_table
from lary.files import inside
from lary.latents.npz import NpzSource
from lary.latents.npzfile import read_stamp
from lary.latents.pack import packed
from lary.latents.pooling import NONE, PooledSource, parse_pool
from lary.latents.reader import LARY_READ, ShardSource, read_mode
from lary.latents.shardfile import read_header
from lary.latents.store import MANIFEST, SHARD_MARK, StoredLatents, read_manifest
from lary.runtime import log
from lary.settings import Settings
from lary.types import BenchmarkProtocol, LaryError, UsageError


@dataclass(frozen=True)
class SplitLatents:
    """The samples of one split that have latents, in table order, and their tokens.

    Attributes:
        store: the manifest of the store, or a note that another program made the latents.
        left_out: how many rows of the table have no latents, or were taken out.
        folder: of the store.
    """

    table: SampleTable
    source: StoredLatents
    store: dict[str, Any]
    left_out: int
    folder: Path

    def take(self, positions: Sequence[int]) -> SplitLatents:
        """Some of the samples; the others count as left out."""
        left_out = self.left_out + len(self.table) - len(positions)
        return replace(
            self, table=self.table.take(positions), source=self.source.take(positions), left_out=left_out
        )  # fmt: skip


def find_latent_table(
    settings: Settings, dataset: DatasetSpec, split: str, model: str, protocol: BenchmarkProtocol, latent: str | None,
    weights: str | None = None, pool: str | None = None,
) -> Path | None:  # fmt: skip
    """The table of an extraction, or None. Under ``paper`` the published file name is taken too.

    Where pooled latents are asked for and weren't stored, the table of all tokens is taken.
    """
    tags = [paths.tagged(model, protocol, latent, weights, pool)]
    if pool is not None:
        tags.append(paths.tagged(model, protocol, latent, weights))
    if protocol == "paper" and not latent and not weights:
        tags.append(model)
    for tag in tags:
        path = paths.latent_table(settings, dataset.name, split, dataset.media, dataset.stride, tag)
        if path.is_file():
            return path
    return None


def open_latents(
    settings: Settings,
    dataset: DatasetSpec,
    split: str,
    model: str,
    protocol: BenchmarkProtocol,
    latent: str | None = None,
    weights: str | None = None,
    pool: str | None = None,
    pack_above: int | None = None,
) -> SplitLatents:
    """Open the latents of a split.

    Args:
        pool: take the latents that were pooled so when they were stored, or else pool them here.
        pack_above: latents in many ``.npz`` files that take more than this many bytes in memory are packed first.

    Raises:
        UsageError: there is no table, or its latents belong to another model, protocol or pooling.
        LaryError: a latent file that the table names is missing or torn, or no row has latents.
    """
    if pool is not None:
        parse_pool(pool)
    tag = paths.tagged(model, protocol, latent, weights, pool)
    file = find_latent_table(settings, dataset, split, model, protocol, latent, weights, pool)
    wanted = paths.latent_table(settings, dataset.name, split, dataset.media, dataset.stride, tag)
    if file is None:
        option = "" if protocol == "corrected" else f" --protocol {protocol}"
        option += f" --latent {latent}" if latent else ""
        option += f" --weights {weights}" if weights else ""
        raise UsageError(
            f"There are no latents of '{model}' for {dataset.name} {split}: {wanted} does not exist. Run "
            f"'lary extract --model {model} --dataset {dataset.name} --split {split}{option}' first."
        )
    stored_pool = NONE if pool is None or file != wanted else pool
    if stored_pool == NONE:
        tag = paths.tagged(model, protocol, latent, weights)
    table = read_table(dataset, split, path=file, data_dir=settings.path("DATA_DIR"))
    if "la_path" not in table.frame.columns:
        raise UsageError(f"{file} has no column la_path: it is no table of an extraction.")
    entries = table.frame["la_path"].tolist()
    rows = [row for row, entry in enumerate(entries) if entry]
    if not rows:
        raise LaryError(f"No row of {file} has latents: look at the failures file of the extraction.")
    if len(rows) < len(entries):
        left_out = len(entries) - len(rows)
        log.warning("%s: %d of %d rows have no latents and are left out", file.name, left_out, len(entries))
    kept = table.take(rows)
    source, store, folder = open_entries(settings, kept, tag, [entries[row] for row in rows], pack_above)
    check_origin(store, file, model, protocol, stored_pool)
    if pool is not None and stored_pool != pool:
        source = PooledSource(source, pool)
    return SplitLatents(kept, source, store, len(entries) - len(rows), folder)


def open_entries(
    settings: Settings, table: SampleTable, tag: str, entries: list[str], pack_above: int | None
) -> tuple[StoredLatents, dict[str, Any], Path]:
    """The latents that ``la_path`` cells name, what is known of their store, and its folder.

    The one place where kinds of stores are told apart for reading.
    """
    sharded = [SHARD_MARK in entry for entry in entries]
    if any(sharded):
        if not all(sharded):
            raise UsageError(f"{table.path}: la_path names shards in some rows and files in others; extract again.")
        return open_shards(settings, table, tag, entries)
    files = [resolve_latents(settings, table.spec, table.split, tag, entry, table.path) for entry in entries]
    check_present(files, table.path)
    store = npz_origin(files[0])
    source: StoredLatents = NpzSource(files)
    if pack_above is not None and 4 * len(files) * math.prod(source.shape) > pack_above:
        source = packed(NpzSource(files), files[0].parent, read_mode(files[0].parent, settings.get(LARY_READ)))
    return source, store, files[0].parent


def open_shards(
    settings: Settings, table: SampleTable, tag: str, entries: list[str]
) -> tuple[StoredLatents, dict[str, Any], Path]:
    """Latents in shards, every row checked against the id of its sample.

    Raises:
        UsageError: a cell names no row of a shard, or leaves its root.
        LaryError: a shard is missing, torn or of another store, or has another sample in a row.
    """
    number: dict[str, int] = {}
    places = np.empty((2, len(entries)), dtype=np.int64)
    for at, entry in enumerate(entries):
        name, _, position = entry.rpartition(SHARD_MARK)
        if not (position.isascii() and position.isdigit() and len(position) < 10):
            raise UsageError(f"{table.path}: la_path '{entry}' names no row of a shard.")
        places[:, at] = number.setdefault(name, len(number)), int(position)
    files = [resolve_latents(settings, table.spec, table.split, tag, name, table.path) for name in number]
    check_present(files, table.path)
    headers = [read_header(file) for file in files]
    folder = files[0].parent
    source = ShardSource(headers, places[0], places[1], read_mode(folder, settings.get(LARY_READ)))
    for at, sample in enumerate(table):
        header, place = headers[places[0, at]], int(places[1, at])
        if header.samples[place] != sample.id:
            raise LaryError(
                f"{table.path}, row {sample.row + 1}: {header.path} has the latents of another sample in row "
                f"{place}. Extract this split again; what is done is kept."
            )
    store = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    if store and store.get("key") != headers[0].store:
        raise LaryError(f"{headers[0].path} belongs to another store than {folder / MANIFEST}: extract again.")
    stamp = {"store": headers[0].store, "model": headers[0].model}
    return source, {"origin": "lary extract", "stamp": stamp, **store}, folder


def resolve_latents(settings: Settings, dataset: DatasetSpec, split: str, tag: str, entry: str, table: Path) -> Path:
    """The file that a ``la_path`` cell names: under LARY_LA_DIR, or a bare name in the model's folder.

    Raises:
        UsageError: the path leaves LARY_LA_DIR, or names the folder of another model.
    """
    root = settings.path("LARY_LA_DIR")
    path = inside(root, entry)
    parts = PurePosixPath(entry).parts
    if len(parts) > 1:
        if tag not in parts[:-1] and tag.split("@")[0] not in parts[:-1]:
            raise UsageError(f"{table}: la_path '{entry}' holds latents of another model than '{tag}'.")
        return path
    folders = dict.fromkeys((tag, tag.split("@")[0]))
    for folder in folders:
        for place in (
            root / dataset.name / split / folder, root / dataset.name / f"stride_{dataset.stride}" / split / folder
        ):  # fmt: skip
            if (place / entry).exists():
                return place / entry
    return paths.latent_folder(settings, dataset.name, split, tag) / entry


def check_present(files: list[Path], table: Path) -> None:
    """Raise LaryError with the first missing files, and how many there are."""
    absent = [file for file in files if not file.exists()]
    if absent:
        listed = "\n  ".join(str(file) for file in absent[:10])
        raise LaryError(
            f"{len(absent)} of {len(files)} latent files of {table} are missing; extract again. "
            f"The first are\n  {listed}"
        )


def npz_origin(file: Path) -> dict[str, Any]:
    """Who made latents in ``.npz`` files: the manifest of their store, or a note that another program did."""
    stamp = read_stamp(file)
    if stamp is None:
        return {"origin": "made by another program: no identity to check"}
    manifest = read_manifest(file.parent) if (file.parent / MANIFEST).exists() else {}
    return {"origin": "lary extract", "stamp": asdict(stamp), **manifest}


def check_origin(store: dict[str, Any], table: Path, model: str, protocol: BenchmarkProtocol, pool: str) -> None:
    """Hold what is known of a store against what was asked for.

    Raises:
        UsageError: the stamp or the manifest names another model, protocol or pooling.
    """
    if "stamp" not in store:
        return
    made_by = store["stamp"]["model"]
    if made_by != model:
        raise UsageError(f"{table} holds latents of '{made_by}', not of '{model}': extract '{model}' again.")
    identity = store.get("identity", {})
    if identity.get("protocol", protocol) != protocol:
        raise UsageError(
            f"{table} holds latents of protocol '{identity['protocol']}', asked for is '{protocol}': "
            f"extract with --protocol {protocol}."
        )
    if identity.get("pool", NONE) != pool:
        raise UsageError(f"{table} holds latents of --pool {identity['pool']}, not {pool}: extract again.")
