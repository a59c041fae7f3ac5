"""The kinds of stores: who may write into a folder, and which kind writes it.

``npz`` writes one file per sample, ``shards`` one safetensors file per unit of rows.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lary.configs import LatentDtype, StoreKind
from lary.files import write_json
from lary.latents.npz import NpzStore
from lary.latents.shards import ShardStore
from lary.latents.store import FORMAT, INDEX, LATER_FIELDS, MANIFEST, SHARDS, LatentStore, StoreIdentity, read_manifest
from lary.types import LaryError, UsageError

BATCHES = 8
"""Per unit of a store whose units are nothing on disk."""
MOST_ROWS = 1 << 20


def check_format(kind: StoreKind, dtype: LatentDtype) -> None:
    """Refuse a number format that a kind of store can't hold. Raises UsageError."""
    if kind == "npz" and dtype == "bfloat16":
        raise UsageError("--dtype bfloat16: .npz files can't hold it; pass --store shards, or --dtype float16.")


def open_store(
    folder: Path, identity: StoreIdentity, details: dict[str, Any], *, overwrite: bool,
    kind: StoreKind = "npz", unit_rows: int = 1024, batch_size: int = 1,
) -> LatentStore:  # fmt: skip
    """Claim a folder for latents of one identity, or resume what it holds.

    Args:
        details: further facts for the manifest.
        unit_rows: rows per unit of a new store of shards, rounded up to a multiple of `batch_size`; units of other
            kinds are a few batches.
        batch_size: rows per forward pass; a unit holds whole batches.

    Raises:
        UsageError: the folder holds latents of another identity and `overwrite` is off, or latents of another kind
            or units that the batches don't fit into.
    """
    unit_rows = -(-unit_rows // batch_size) * batch_size if kind == "shards" else BATCHES * batch_size
    manifest = folder / MANIFEST
    if manifest.exists():
        found = read_manifest(folder)
        if found.get("key") == identity.key:
            known = found.get("store", "npz")
            if known != kind:
                raise UsageError(
                    f"{folder} is a store of kind {known}: pass --store {known}, or turn it into one of kind {kind} "
                    f"with 'lary latents convert --store {kind}'."
                )
            if kind == "shards":
                unit_rows = units_of(folder, found)
            if unit_rows % batch_size:
                raise UsageError(
                    f"--batch-size {batch_size}: the shards of {folder} hold {unit_rows} rows; pass a batch size that "
                    f"divides this, such as {found.get('batch_size', 1)}."
                )
            return store_at(folder, identity, kind, unit_rows)
        if not overwrite:
            raise UsageError(
                f"{folder} holds latents of another extraction ({differences(found, identity)}). "
                "Pass --overwrite to replace them."
            )
        clear(folder)
    facts = {"store": kind, "unit_rows": unit_rows} if kind == "shards" else {"store": kind}
    write_json(manifest, {"format": FORMAT, "key": identity.key, "identity": asdict(identity), **facts, **details})
    return store_at(folder, identity, kind, unit_rows)


def store_at(folder: Path, identity: StoreIdentity, kind: StoreKind, unit_rows: int) -> LatentStore:
    """The store of a kind; only here kinds are distinguished for writing."""
    return (ShardStore if kind == "shards" else NpzStore)(folder, identity, unit_rows)


def clear(folder: Path) -> None:
    """Remove the shards of another extraction; ``.npz`` files are replaced one by one."""
    for file in [*folder.glob(SHARDS), folder / INDEX]:
        file.unlink(missing_ok=True)


def units_of(folder: Path, manifest: dict[str, Any]) -> int:
    """Rows per unit of a store of shards. Raises LaryError for a manifest without them."""
    rows = manifest.get("unit_rows")
    if not isinstance(rows, int) or not 0 < rows <= MOST_ROWS:
        raise LaryError(f"{folder / MANIFEST} names {rows!r} rows per shard: it is no manifest of a store of shards.")
    return rows


def differences(found: dict[str, Any], identity: StoreIdentity) -> str:
    """What an identity differs in from a manifest, for a message."""
    before = LATER_FIELDS | found.get("identity", {})
    return ", ".join(
        f"{name} {before.get(name)!r} instead of {value!r}"
        for name, value in asdict(identity).items()
        if before.get(name) != value
    )
