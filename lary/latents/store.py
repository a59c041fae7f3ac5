"""The latent store: its identity, what all its kinds have in common, number formats, pooling.

A store holds the latents of one split and one identity (model, weights, protocol,
preprocessing, data set revision, pooling, number format) in one folder, described by
``store.json``. Two kinds write them differently: ``npz`` one file per sample,
``shards`` one safetensors file per unit of rows. Sample ids and the identity's key
decide about resuming and mixing, not file names.

Pooling over the N tokens of each step saves bytes on disk, or tokens for the probe: ``mean`` averages all,
``cls`` takes the encoder's class token, ``grid:K`` averages a square grid of tokens down to K x K cells.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lary.arrays import Array, Floats
from lary.configs import LatentDtype
from lary.files import digest, read_json, remove_torn, write_json, write_text
from lary.models.spec import MODELS, ModelSpec
from lary.types import JsonDict, LaryError, Latents, MediaError, UsageError

if TYPE_CHECKING:
    import torch

    from lary.data.tables import SampleTable

MANIFEST = "store.json"
NPZ, SHARDS = "latent_action_*.npz", "shard_*.safetensors"
INDEX = "index.parquet"
"""A list of the rows that version 0.1 wrote beside shards."""
SHARD_MARK = "#"
"""Between a shard and a row in it, in ``la_path``."""
NONE = "none"
"""The pooling that keeps all tokens."""
FORMAT = 1
LATER_FIELDS = {"revision": "", "pool": NONE, "dtype": "float32"}
"""Fields that identities of the first format lack; a key doesn't change where they are so."""


def token_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes (P, N, D) or (N, D) under which one sample's tokens of any shape are stored.

    (D,) is one token, and all axes between the first and the last are tokens: (9, 2, 2, 24) is (9, 4, 24).
    """
    if len(shape) == 1:
        return (1, *shape)
    return shape if len(shape) <= 3 else (shape[0], math.prod(shape[1:-1]), shape[-1])


@dataclass(frozen=True)
class StoreIdentity:
    """What the latents of one folder have in common. Two identities never share a folder.

    Attributes:
        record: digest of the model's preprocessing, options and precision.
        weights: digest of the weights.
        revision: of the data set.
        pool: pooling of the tokens when they were written.
        dtype: number format of the tokens on disk.
    """

    model: str
    dataset: str
    split: str
    protocol: str
    record: str
    weights: str
    seed: int
    revision: str = ""
    pool: str = NONE
    dtype: LatentDtype = "float32"

    @property
    def key(self) -> str:
        """A digest of all fields."""
        fields = {name: value for name, value in asdict(self).items() if LATER_FIELDS.get(name) != value}
        return digest(json.dumps([FORMAT, fields], sort_keys=True))


Write = Callable[[int, str, Floats, Array | None], None]
"""Takes a row, its sample's id, its tokens (P, N, D) or (N, D) float32, and its codes (P, N).

It may be called from several threads and in any order. It raises MediaError for tokens that aren't finite in the
store's number format, which costs this row alone, and LaryError for a row of another unit or shape, or a full
disk.
"""


@dataclass(frozen=True)
class LatentStore:
    """The latents of one split and one identity in one folder. Stores can be pickled.

    Attributes:
        unit_rows: a unit of work is the rows ``[k * unit_rows, (k + 1) * unit_rows)``.
    """

    folder: Path
    identity: StoreIdentity
    unit_rows: int

    def held(self, table: SampleTable, *, check: bool = True) -> dict[int, str]:
        """Rows of the table whose latents are there, with their names in the folder.

        Args:
            check: leave out what is torn, or is of another sample or store.
        """
        raise NotImplementedError

    def writer(self, unit: int) -> AbstractContextManager[Write]:
        """A function that writes rows of a unit. No two may be in use for one unit at once.

        Leaving the block commits the rows for good, unless an exception gives them up.
        """
        raise NotImplementedError

    def missing(self, table: SampleTable) -> list[int]:
        """Rows of the table, in order, that have to be extracted."""
        there = self.held(table)
        return [row for row in range(len(table)) if row not in there]

    def entries(self, table: SampleTable, root: Path, failed: Collection[int | None] = ()) -> list[str]:
        """The ``la_path`` of every row, relative to `root`; empty where it has no latents."""
        relative = self.folder.relative_to(root).as_posix()
        found = [""] * len(table)
        for row, name in self.held(table, check=False).items():
            found[row] = "" if row in failed else f"{relative}/{name}"
        return found

    def write_table(self, table: SampleTable, path: Path, root: Path, failed: Collection[int | None]) -> None:
        """Write a table with the column ``la_path``."""
        frame = table.frame.copy()
        frame["la_path"] = self.entries(table, root, failed)
        write_text(path, str(frame.to_csv(index=False, lineterminator="\n")))

    def finish(self, table: SampleTable) -> None:
        """Bring what lists the latents up to date, and remove what killed writers have left.

        The manifest notes the last table extracted from; the samples' ids decide, not
        this.
        """
        remove_torn(self.folder)
        (self.folder / INDEX).unlink(missing_ok=True)
        facts = {"path": table.path.name, "digest": table.digest, "rows": len(table)}
        found = read_manifest(self.folder)
        if found.get("table") != facts:
            write_json(self.folder / MANIFEST, found | {"table": facts})


def read_manifest(folder: Path) -> JsonDict:
    """The manifest of a store, empty where there is none. Raises LaryError for an odd or newer one."""
    file = folder / MANIFEST
    if not file.exists():
        return {}
    found = read_json(file, "store manifest")
    if not isinstance(found, dict) or not isinstance(found.get("identity", {}), dict):
        raise LaryError(f"{file} is no manifest of a latent store.")
    if isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise LaryError(f"{file} was written by a newer lary (format {found['format']}): update lary.")
    return found


# Number formats

LARGEST: dict[LatentDtype, float] = {"float32": np.inf, "float16": 65520.0, "bfloat16": 255.5 * 2.0**120}
"""What is rounded to infinity: half a step above the largest number of the format."""

PIECE = 32768
"""Numbers per conversion: as many as torch leaves to one thread. More threads would wait for each other longer
than the conversion takes."""


def narrow(tokens: Floats, dtype: LatentDtype) -> Array:
    """Tokens in the store's number format, rounded to nearest; bfloat16 as its bits in uint16.

    Raises:
        MediaError: a value is not finite, or too large for the format.
    """
    values = np.ascontiguousarray(tokens, dtype=np.float32)
    largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
    if not np.isfinite(largest):
        raise MediaError("The model gave tokens that are not finite.")
    if largest >= LARGEST[dtype]:
        raise MediaError(
            f"A token of {largest:.4g} is too large for {dtype}: extract with --dtype bfloat16 or float32."
        )
    if dtype == "float32":
        return values
    import torch

    narrowed = torch.empty(values.shape, dtype=getattr(torch, dtype))
    copy_numbers(torch.from_numpy(values.reshape(-1)), narrowed.view(-1))
    return narrowed.view(torch.uint16).numpy() if dtype == "bfloat16" else narrowed.numpy()


def copy_numbers(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy numbers (n,) into another number format, in this thread alone."""
    if len(source) <= PIECE:  # a slice costs as much as a small copy
        target.copy_(source)
        return
    for start in range(0, len(source), PIECE):
        target[start : start + PIECE].copy_(source[start : start + PIECE])


# Pooling


def parse_pool(text: str) -> tuple[str, int]:
    """Kind of a pooling, and cells per side of a grid. Raises UsageError."""
    if text in (NONE, "mean", "cls"):
        return text, 0
    if found := re.fullmatch(r"grid:([1-9]\d{0,2})", text):
        return "grid", int(found[1])
    raise UsageError(f"--pool {text}: expected none, mean, cls or grid:K such as grid:4.")


def check_pool(model: ModelSpec, text: str) -> None:
    """Refuse a pooling that isn't one, or that the model's record can't offer."""
    if parse_pool(text)[0] == "cls" and not model.class_token:
        offered = ", ".join(other.name for other in MODELS if other.class_token)
        raise UsageError(f"--pool cls: '{model.name}' gives no class token; these models do: {offered}.")


def pooled_latents(latents: Latents, pool: str) -> Latents:
    """Latents as a store has them: tokens (B, P, N, D) or (B, N, D) float32, codes as they are.

    Raises UsageError for ``cls`` without a class token, or a grid that the tokens don't
    have.
    """
    if pool == NONE:
        return latents
    if pool != "cls":
        return Latents(pooled_tokens(latents.tokens.float(), pool), latents.codes)
    if latents.cls is None:
        raise UsageError("--pool cls: this model gives no class token; use --pool mean.")
    return Latents(latents.cls.float().unsqueeze(-2), latents.codes)


def pooled_tokens(tokens: torch.Tensor, pool: str) -> torch.Tensor:
    """Tokens (..., N, D) pooled by ``mean`` or ``grid``, (..., 1 or K * K, D)."""
    import torch

    kind, cells = parse_pool(pool)
    if kind == "cls":
        raise UsageError("--pool cls: class tokens aren't among the stored tokens; extract with --pool cls.")
    if kind == "mean":
        return tokens.mean(dim=-2, keepdim=True)
    *outer, count, dim = tokens.shape
    side = math.isqrt(count)
    if side * side != count or cells > side:
        grid = f"a grid of {side} x {side}" if side * side == count else "which is no square grid"
        raise UsageError(f"--pool {pool}: the model gives {count} tokens per step, {grid}; use --pool mean.")
    planes = tokens.reshape(-1, side, side, dim).permute(0, 3, 1, 2)
    averaged = torch.nn.functional.adaptive_avg_pool2d(planes, cells)
    return averaged.permute(0, 2, 3, 1).reshape(*outer, cells**2, dim)
