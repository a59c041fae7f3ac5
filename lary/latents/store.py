"""The latent store: identity, interface, number formats and pooling.

A store is the folder of one split and one identity, described by ``store.json``.
Pooling over the tokens of each step: ``mean``, the class token ``cls``, or
``grid:K`` x K cells.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lary.arrays import Array, Floats, Ints
from lary.configs import LatentDtype
from lary.files import (
    atomic_write,
    digest,
    file_digest,
    inside,
    media_facts,
    parsed,
    read_json,
    read_limited,
    remove_torn,
    write_json,
    write_text,
)
from lary.models.spec import MODELS, ModelSpec
from lary.runtime import in_threads
from lary.types import JsonDict, LaryError, Latents, MediaError, UsageError

if TYPE_CHECKING:
    import torch

    from lary.data.tables import SampleTable

MANIFEST = "store.json"
NPZ, SHARDS = "latent_action_*.npz", "shard_*.safetensors"
INDEX = "index.parquet"
"""A list of the rows that version 0.1 wrote beside shards."""
MEDIA = "media*.txt"
"""The record of media: what units added, after what a comparison found."""
SHARD_MARK = "#"
"""Between the file of a shard and the row in it, in ``la_path``."""
NONE = "none"
"""The pooling that keeps all tokens."""
FORMAT = 1
LATER_FIELDS = {"revision": "", "pool": NONE, "dtype": "float32", "arithmetic": ""}
"""Fields that early identities lack, with the value that this means. A key
leaves them out where they have it, so that old stores keep their keys.
"""


def token_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (P, N, D) or (N, D) in which tokens of any shape are stored.

    (D,) is one token, and all axes between the first and the last are tokens:
    (9, 2, 2, 24) becomes (9, 4, 24).
    """
    if len(shape) == 1:
        return (1, *shape)
    return shape if len(shape) <= 3 else (shape[0], math.prod(shape[1:-1]), shape[-1])


@dataclass(frozen=True)
class StoreIdentity:
    """What the latents of one folder have in common; another needs its own.

    Attributes:
        record: digest of preprocessing, options and precision.
        weights: digest of the weights.
        revision: of the data set.
        pool: pooling before tokens are written.
        dtype: of the tokens on disk.
        arithmetic: as `lary.runtime.set_arithmetic` names it.
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
    arithmetic: str = ""

    @property
    def key(self) -> str:
        """A digest of all fields, which names the store in its files."""
        fields = {name: value for name, value in asdict(self).items() if LATER_FIELDS.get(name) != value}
        return digest(json.dumps([FORMAT, fields], sort_keys=True))


Write = Callable[[int, str, Floats, Array | None], None]
"""Takes a row, its sample id, tokens (P, N, D) or (N, D) float32, codes (P,
N).

It may be called from several threads and in any order. It raises MediaError
for tokens that aren't finite in the store's number format, which costs this
row alone, and LaryError for a row of another unit or shape, or a full disk.
"""


Held = tuple[Sequence[int] | Ints, Iterable[str]]
"""Rows of a table, and the names of their latents."""


@dataclass(frozen=True)
class LatentStore:
    """The latents of one split and one identity in a folder, in units of `unit_rows`; can be pickled."""

    folder: Path
    identity: StoreIdentity
    unit_rows: int

    def held(self, table: SampleTable, *, check: bool = True) -> Iterator[Held]:
        """Rows of the table whose latents exist, and their names in the folder; the last name of a row counts.

        With `check`, what is torn or of another sample or store is left out.
        """
        raise NotImplementedError

    def writer(self, unit: int) -> AbstractContextManager[Write]:
        """A context with a function that writes rows of a unit, one at a time.

        Leaving the block commits the rows, unless an exception discards them.
        """
        raise NotImplementedError

    def missing(self, table: SampleTable) -> list[int]:
        lacking = np.ones(len(table), dtype=bool)
        for rows, _ in self.held(table):
            lacking[rows] = False
        return np.flatnonzero(lacking).tolist()

    def entries(self, table: SampleTable, root: Path, failed: Collection[int] = ()) -> list[str]:
        """The ``la_path`` of every row, relative to `root`; empty without latents."""
        relative = self.folder.relative_to(root).as_posix()
        found = [""] * len(table)
        for rows, names in self.held(table, check=False):
            for row, name in zip(rows, names, strict=True):
                found[row] = f"{relative}/{name}"
        for row in failed:
            found[row] = ""
        return found

    def write_table(
        self, table: SampleTable, path: Path, root: Path, failed: Collection[int], *, new: bool = True
    ) -> None:
        """Write a table with ``la_path``, if it is `new` or not as it was written. Raises LaryError."""
        found, about = read_manifest(self.folder), [table.digest, len(table)]
        if not new and path.is_file() and found.get("written") == [*about, file_digest(path)]:
            return
        frame = table.frame.assign(la_path=self.entries(table, root, failed))
        with atomic_write(path) as stream:
            frame.to_csv(stream, index=False, lineterminator="\n")
        written = [*about, file_digest(path)]
        write_json(self.folder / MANIFEST, found | {"written": written})

    def note_media(self, unit: int, root: Path, media: Mapping[str, str]) -> None:
        """Record the files of a unit's rows before these are written. Raises OSError."""
        with (self.folder / f"media_{unit:05d}.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"\n{facts}\t{path.removeprefix(f'{root}{os.sep}')}" for path, facts in media.items())

    def check_replaced(self, table: SampleTable, *, overwrite: bool) -> bool:
        """Whether there is a record of the files of rows, of which none may have been replaced.

        A file is the same with its size and time, or else its content, and where it is gone.
        Raises UsageError for another one; with `overwrite`, all latents are removed.
        """
        known = read_media(self.folder)

        def now(path: str) -> tuple[str, str]:
            facts = known[path]
            with suppress(OSError):
                about = os.stat(f"{table.root}/{path}")
                if not facts.endswith(f" {about.st_size:016d} {about.st_mtime_ns:020d}"):
                    facts = media_facts(inside(table.root, path))
            return path, facts

        found = dict(in_threads(now, list(known), 16, batch=256))
        replaced = [path for path in known if found[path][:33] != known[path][:33]]
        if replaced and not overwrite:
            raise UsageError(
                f"{len(replaced)} media files were replaced after their rows were extracted, such as "
                f"{table.root / replaced[0]}: put the old ones back, or pass --overwrite to extract the split again."
            )
        for file in (*self.folder.glob(NPZ), *self.folder.glob(SHARDS)) if replaced else ():
            file.unlink()
        if found != known:
            write_text(self.folder / "media.txt", "".join(f"\n{facts}\t{path}" for path, facts in found.items()))
        return bool(known)

    def finish(self, table: SampleTable) -> None:
        """Update the manifest, and remove what killed writers have left.

        The table noted there is for readers: sample ids decide what is done.
        """
        remove_torn(self.folder)
        (self.folder / INDEX).unlink(missing_ok=True)
        facts = {"path": table.path.name, "digest": table.digest, "rows": len(table)}
        found = read_manifest(self.folder)
        if found.get("table") != facts:
            write_json(self.folder / MANIFEST, found | {"table": facts})


def read_manifest(folder: Path) -> JsonDict:
    """The manifest of a store, empty without one; LaryError if it is wrong or newer."""
    file = folder / MANIFEST
    if not file.exists():
        return {}
    found = read_json(file, "store manifest")
    if not isinstance(found, dict) or not isinstance(found.get("identity", {}), dict):
        raise LaryError(f"{file} is no manifest of a latent store.")
    if found.get("identity"):
        parsed(StoreIdentity, found["identity"], f"The identity in {file}")
    if isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise LaryError(f"{file} was written by a newer lary (format {found['format']}): update lary.")
    return found


def read_media(folder: Path) -> dict[str, str]:
    """The `media_facts` of the files of a store's rows, by path."""
    found: dict[str, str] = {}
    for file in sorted(folder.glob(MEDIA)):
        for line in read_limited(file, 1 << 30).decode("utf-8", "replace").split("\n")[1:]:
            facts, _, path = line.partition("\t")
            if path:  # a line may be torn
                found.setdefault(path, facts)
    return found


# Number formats

LARGEST: dict[LatentDtype, float] = {"float32": np.inf, "float16": 65520.0, "bfloat16": 255.5 * 2.0**120}
"""From here on numbers round to infinity."""

PIECE = 32768
"""Numbers per conversion: torch's grain size, up to which it uses one thread.
More threads would wait for each other longer than the conversion takes.
"""


def narrow(tokens: Array, dtype: LatentDtype) -> Array:
    """Round tokens to a number format; bfloat16 comes as its bits in uint16.

    Raises MediaError for a value that is not finite, or too large for the format.
    """
    if tokens.dtype in (np.float16, np.uint16):  # of a device: too large is infinite
        exponent = 0x7C00 if dtype == "float16" else 0x7F80
        if ((tokens.view(np.uint16) & exponent) == exponent).any():
            raise MediaError(f"A token is not finite, or too large for {dtype}.")
        return tokens
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
    """Kind of a pooling, and K of ``grid:K`` or 0. Raises UsageError."""
    if text in (NONE, "mean", "cls"):
        return text, 0
    if found := re.fullmatch(r"grid:([1-9]\d{0,2})", text):
        return "grid", int(found[1])
    raise UsageError(f"--pool {text}: expected none, mean, cls or grid:K such as grid:4.")


def check_pool(model: ModelSpec, text: str) -> None:
    """Raise UsageError for no pooling, or one that the model can't offer."""
    if parse_pool(text)[0] == "cls" and not model.class_token:
        offered = ", ".join(other.name for other in MODELS if other.class_token)
        raise UsageError(f"--pool cls: '{model.name}' gives no class token; these models do: {offered}.")


def pooled_latents(latents: Latents, pool: str) -> Latents:
    """Pool tokens to (B, P, N, D) or (B, N, D) float32; codes stay.

    Raises UsageError for a missing class token or grid.
    """
    if pool == NONE:
        return latents
    if pool != "cls":
        return Latents(pooled_tokens(latents.tokens.float(), pool), latents.codes)
    if latents.cls is None:
        raise UsageError("--pool cls: this model gives no class token; use --pool mean.")
    return Latents(latents.cls.float().unsqueeze(-2), latents.codes)


def pooled_tokens(tokens: torch.Tensor, pool: str) -> torch.Tensor:
    """Pool tokens (..., N, D) to (..., 1, D), or (..., K * K, D). Raises UsageError."""
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
