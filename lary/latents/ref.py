"""Names, tables and folders of extractions; opening stores and their latents.

What differs from the default (the ``paper`` protocol, another latent, random
weights, pooled tokens) is appended to the model's name in files and folders,
as in ``lapa@paper``, so that numbers never mix. Defaults have published names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lary.arrays import Array, Floats, Ints
from lary.configs import LatentDtype, StoreKind
from lary.data.spec import DATASETS, DatasetSpec
from lary.data.tables import SampleTable, read_table
from lary.files import inside, write_json
from lary.latents.sources import NpzSource, ShardSource, read_shard, read_stamp
from lary.latents.store import (
    FORMAT,
    LATER_FIELDS,
    MANIFEST,
    MEDIA,
    NONE,
    NPZ,
    SHARD_MARK,
    SHARDS,
    LatentStore,
    StoreIdentity,
    parse_pool,
    pooled_tokens,
    read_manifest,
)
from lary.latents.writers import NpzStore, ShardStore
from lary.registry import loaded_plugins
from lary.runtime import log
from lary.settings import Settings
from lary.types import RANDOM, BenchmarkProtocol, JsonDict, LaryError, UsageError

TABLE_FOLDER = "data"
BATCHES = 8
"""Batches per unit of a store of ``.npz``, where a unit is no file."""
MOST_ROWS = 1 << 20
"""Rows per unit that a manifest may claim."""
KINDS: dict[StoreKind, type[LatentStore]] = {"npz": NpzStore, "shards": ShardStore}


@dataclass(frozen=True, kw_only=True)
class LatentsRef:
    """The latents of one split, as one extraction makes them.

    Attributes:
        latent: kind of latent, None for the model's default.
        layer, size: of a model that has a choice of them.
        name: short name in place of the model's key.
        weights: ``random`` for random weights; others don't change names.
        pool: pooling of the tokens; None and ``none`` keep all.
        control: the control whose changed frames were encoded, or None.
    """

    model: str
    dataset: str
    split: str
    protocol: BenchmarkProtocol = "corrected"
    latent: str | None = None
    weights: str | None = None
    pool: str | None = None
    control: str | None = None
    layer: int | None = None
    size: int | None = None
    name: str | None = None

    @classmethod
    def of(cls, config: Any, split: str | None = None) -> LatentsRef:
        """The latents that options name, of `split` if it is given."""
        names = cls.__dataclass_fields__.keys() - {"split", "control"}
        given: JsonDict = {name: getattr(config, name, None) for name in names}
        return cls(split=config.split if split is None else split, **given)

    @property
    def spec(self) -> DatasetSpec:
        return DATASETS.get(self.dataset)

    @property
    def title(self) -> str:
        return self.name or self.model

    @property
    def pooling(self) -> str:
        """The pooling as on the command line, ``none`` for all tokens."""
        return self.pool or "none"

    @property
    def tag(self) -> str:
        """The model's name in file names, without slashes and colons."""
        name = re.sub(r"[^\w.@+-]+", "_", self.title)
        differences = (
            self.protocol if self.protocol != "corrected" else None,
            self.latent,
            f"layer{self.layer}" if self.layer is not None else None,
            f"size{self.size}" if self.size is not None else None,
            self.weights if self.weights == RANDOM else None,
            f"pool-{self.pooling.replace(':', '')}" if self.pooling != "none" else None,
        )
        return "@".join([name, *filter(None, differences)])

    def latent_root(self, settings: Settings) -> Path:
        """The folder that ``la_path`` cells are relative to."""
        root = settings.path("LARY_LA_DIR")
        return root / "controls" / self.control if self.control else root

    def folder(self, settings: Settings) -> Path:
        return self.latent_root(settings) / self.spec.name / self.split / self.tag

    def table(self, settings: Settings) -> Path:
        """The table of the extraction: the input's columns plus ``la_path``."""
        spec = self.spec
        middle = f"_{spec.stride}" if spec.media == "pair" and spec.stride is not None else ""
        root = self.latent_root(settings) if self.control else settings.path("LARY_ROOT")
        return root / TABLE_FOLDER / f"{self.split}_la_{spec.name}{middle}_{self.tag}.csv"


def find_latent_table(settings: Settings, ref: LatentsRef) -> Path | None:
    """The table of an extraction, or None where there is none.

    Pooled latents that weren't stored are found in the table of all tokens,
    and those of ``paper`` under the published name, which has no protocol.
    """
    refs = [ref, replace(ref, pool=None)]
    if ref.protocol == "paper" and not ref.latent and not ref.weights:
        refs.append(replace(ref, protocol="corrected", pool=None))
    return next((file for each in refs if (file := each.table(settings)).is_file()), None)


class PooledSource:
    """A `LatentSource` that pools the tokens of another as they are read."""

    def __init__(self, source: NpzSource | ShardSource, pool: str) -> None:
        self._source, self._pool_name = source, pool
        self.shape = self._pool(np.zeros((1, *source.shape), np.float32)).shape[1:]

    def __len__(self) -> int:
        return len(self._source)

    def take(self, positions: Collection[int]) -> PooledSource:
        return PooledSource(self._source.take(positions), self._pool_name)

    def read(self, rows: Sequence[int] | Ints) -> Floats:
        return self._pool(self._source.read(rows))

    def codes(self, rows: Collection[int]) -> list[Array | None]:
        return self._source.codes(rows)

    def _pool(self, tokens: Floats) -> Floats:
        import torch

        return pooled_tokens(torch.from_numpy(tokens), self._pool_name).contiguous().numpy()


@dataclass(frozen=True)
class SplitLatents:
    """Samples of a split that have latents, in table order, and their tokens.

    Attributes:
        store: its manifest and stamp, or a note that another program made it.
        left_out: how many rows have no latents, or were taken out.
    """

    table: SampleTable
    source: NpzSource | ShardSource | PooledSource
    store: JsonDict
    left_out: int
    folder: Path

    @property
    def frames(self) -> int:
        return len(self.table[0].frame_index) or len(self.table[0].media)

    def on(self, device: str) -> SplitLatents:
        """The split for a device: CUDA widens float16, and bfloat16, which is read as its bits in uint16."""
        kind = {"float16": np.float16, "bfloat16": np.uint16}.get(getattr(self.source, "dtype", ""))
        if kind is None or not device.startswith("cuda"):
            return self
        source = copy(self.source)
        source.kind = kind  # type: ignore[union-attr]
        return replace(self, source=source)

    def take(self, positions: Sequence[int]) -> SplitLatents:
        """The samples at some positions; the others count as left out."""
        left_out = self.left_out + len(self.table) - len(positions)
        table, source = self.table.take(positions), self.source.take(positions)
        return replace(self, table=table, source=source, left_out=left_out)


def open_latents(settings: Settings, ref: LatentsRef) -> SplitLatents:
    """Open the latents of a split, pooled as stored or as they are read; the model needs no record.

    Raises:
        UsageError: no table, or one of another model, protocol or pooling.
        LaryError: a latent file is missing or torn, or no row has latents.
    """
    parse_pool(ref.pooling)
    file = find_latent_table(settings, ref)
    if file is None:
        given = [
            f"--{name} {value}"
            for name, value in vars(ref).items()
            if name not in ("pool", "control") and value not in (None, "corrected")
        ]
        given += [f"--plugin {plugin}" for plugin in loaded_plugins()]
        raise UsageError(
            f"There are no latents of '{ref.model}' for {ref.dataset} {ref.split}: {ref.table(settings)} does not "
            f"exist. Run 'lary extract {' '.join(given)}' first."
        )
    stored = ref if file == ref.table(settings) else replace(ref, pool=None)
    table = read_table(ref.spec, ref.split, path=file, data_dir=settings.path("DATA_DIR"))
    if "la_path" not in table.frame.columns:
        raise UsageError(f"{file} has no column la_path: it is no table of an extraction.")
    entries = table.frame["la_path"].tolist()
    rows = [row for row, entry in enumerate(entries) if entry]
    if not rows:
        raise LaryError(f"No row of {file} has latents: the failures file of the extraction names the reasons.")
    if left_out := len(entries) - len(rows):
        log.warning("%s: %d of %d rows have no latents and are left out", file.name, left_out, len(entries))
    kept = table.take(rows)
    opened = open_shards if any(SHARD_MARK in entry for entry in entries) else open_files
    whole, stamp, folder = opened(settings, kept, stored, [entries[row] for row in rows])
    store: JsonDict = {"origin": "made by another program: no identity to check", "files": getattr(whole, "files", ())}
    if stamp:
        store = {"origin": "lary extract", "stamp": stamp, **read_manifest(folder)}
        check_origin(store, file, stored)
    source = whole if stored.pooling == ref.pooling else PooledSource(whole, ref.pooling)
    return SplitLatents(kept, source, store, left_out, folder)


Opened = tuple[NpzSource | ShardSource, dict[str, str] | None, Path]
"""Latents, the stamp of the first file, the folder."""


def open_files(settings: Settings, table: SampleTable, ref: LatentsRef, entries: list[str]) -> Opened:
    files = resolve_latents(settings, ref, entries, table.path)
    stamp = read_stamp(files[0])
    return NpzSource(files), None if stamp is None else asdict(stamp), files[0].parent


def open_shards(settings: Settings, table: SampleTable, ref: LatentsRef, entries: list[str]) -> Opened:
    """Open latents in shards, and check every row against its sample's id."""
    number: dict[str, int] = {}
    places = np.empty((2, len(entries)), dtype=np.int64)
    for at, entry in enumerate(entries):
        name, _, position = entry.rpartition(SHARD_MARK)
        if not (position.isascii() and position.isdigit() and len(position) < 10):
            raise UsageError(f"{table.path}: la_path '{entry}' names no row of a shard.")
        places[:, at] = number.setdefault(name, len(number)), int(position)
    headers = [read_shard(file) for file in resolve_latents(settings, ref, list(number), table.path)]
    source, first = ShardSource(headers, *places), headers[0]
    for row, name, shard, place in zip(table.rows, table.ids, *places.tolist(), strict=True):
        if headers[shard].samples[place] != name:
            raise LaryError(
                f"{table.path}, row {row + 1}: {headers[shard].path} has the latents of another sample in row "
                f"{place}. Extract this split again; what is done is kept."
            )
    return source, {"store": first.store, "model": first.model}, first.path.parent


def resolve_latents(settings: Settings, ref: LatentsRef, entries: list[str], table: Path) -> list[Path]:
    """The files that ``la_path`` cells name, relative to the latent root.

    Published tables may hold bare names of files in the model's folders.
    Raises UsageError for other paths, LaryError for missing files.
    """
    root, spec, tag = ref.latent_root(settings), ref.spec, ref.tag
    # Published folders have the plain name.
    folders = dict.fromkeys((tag, tag.split("@")[0]))
    layouts = [root / spec.name, root / spec.name / f"stride_{spec.stride}"]
    usual = [layout / ref.split / folder for folder in folders for layout in layouts]
    files = []
    for entry in entries:
        file = inside(root, entry)
        parts = PurePosixPath(entry).parts
        if len(parts) == 1:
            file = next((place / entry for place in usual if (place / entry).exists()), usual[0] / entry)
        elif not folders.keys() & set(parts[:-1]):
            raise UsageError(f"{table}: la_path '{entry}' holds latents of another model than '{tag}'.")
        files.append(file)
    if absent := [file for file in files if not file.exists()]:
        listed = "\n  ".join(str(file) for file in absent[:10])
        missing = f"{len(absent)} of {len(files)} latent files of {table} are missing"
        raise LaryError(f"{missing}; extract again. The first are\n  {listed}")
    return files


def check_origin(store: JsonDict, table: Path, ref: LatentsRef) -> None:
    """Raise UsageError for latents of another request, by stamp and manifest."""
    stamp, identity = store["stamp"], store.get("identity", {})
    if store.get("key", stamp["store"]) != stamp["store"]:
        raise UsageError(f"{table} names latents of another store than {MANIFEST} beside them: extract again.")
    for name, found, asked in (
        ("model", stamp["model"], ref.title),
        ("dataset", identity.get("dataset", ref.dataset), ref.dataset),
        ("protocol", identity.get("protocol", ref.protocol), ref.protocol),
        ("pool", identity.get("pool", NONE), ref.pooling),
    ):
        if found != asked:
            raise UsageError(f"{table} holds latents of --{name} {found}: extract with --{name} {asked} again.")


def check_format(kind: StoreKind, dtype: LatentDtype) -> None:
    """Raise UsageError for a number format that a kind of store can't hold."""
    if kind == "npz" and dtype == "bfloat16":
        raise UsageError("--dtype bfloat16: .npz files can't hold it; pass --store shards, or --dtype float16.")


def open_store(
    folder: Path,
    identity: StoreIdentity,
    details: JsonDict,
    *,
    overwrite: bool,
    kind: StoreKind = "npz",
    unit_rows: int = 1024,
    batch_size: int = 1,
) -> LatentStore:
    """Claim a folder for latents of one identity, or resume what it holds.

    `unit_rows` of a new store of shards are rounded up to whole batches.
    Raises UsageError where, without `overwrite`, the folder holds another one,
    kind or size of units; LaryError for a wrong manifest.
    """
    make = KINDS[kind]
    unit_rows = -(-unit_rows // batch_size) * batch_size if kind == "shards" else BATCHES * batch_size
    found = read_manifest(folder)
    known = found.get("store", "npz")
    if found.get("key") == identity.key and (known == kind or not overwrite):
        if known != kind:
            raise UsageError(f"{folder} is a store of kind {known}: pass --store {known}, or --overwrite.")
        if kind == "shards":
            unit_rows = found.get("unit_rows", 0)
            if not isinstance(unit_rows, int) or not 0 < unit_rows <= MOST_ROWS:
                raise LaryError(f"{folder / MANIFEST} names {unit_rows!r} rows per shard: it is no manifest of shards.")
        if unit_rows % batch_size:
            raise UsageError(
                f"--batch-size {batch_size}: the shards of {folder} hold {unit_rows} rows; pass a batch size that "
                f"divides this, such as {found.get('batch_size', 1)}."
            )
        return make(folder, identity, unit_rows)
    if found and not overwrite:
        before = LATER_FIELDS | found.get("identity", {})
        differences = ", ".join(
            f"{name} {before.get(name)!r} instead of {value!r}"
            for name, value in asdict(identity).items()
            if before.get(name) != value
        )
        raise UsageError(f"{folder} holds latents of another extraction ({differences}). Pass --overwrite.")
    # A store of ``.npz`` replaces its old files one by one.
    patterns = [SHARDS, MEDIA, NPZ] if kind == "shards" else [SHARDS, MEDIA]
    for file in [file for pattern in patterns for file in folder.glob(pattern)] if found else ():
        file.unlink()
    facts: JsonDict = {"format": FORMAT, "key": identity.key, "identity": asdict(identity), "store": kind}
    facts |= {"unit_rows": unit_rows} if kind == "shards" else {}
    write_json(folder / MANIFEST, facts | details)
    return make(folder, identity, unit_rows)
