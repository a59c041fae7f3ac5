"""The store in the published layout: one ``.npz`` per sample with the arrays ``tokens`` and ``indices``.

Each file carries in its zip comment, which other readers pass over, the id of its sample and the identity of the
store (model, weights, protocol, preprocessing).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.files import remove_torn
from lary.latents.npzfile import Stamp, read_arrays, read_latents, read_stamp, write_latents
from lary.latents.store import Floats, StoreIdentity, narrow, record_table
from lary.types import LaryError

if TYPE_CHECKING:
    from lary.data.tables import SampleTable


def latent_name(row: int) -> str:
    """File name of the latents of a row."""
    return f"latent_action_{row:08d}.npz"


@dataclass(frozen=True)
class NpzStore:
    """A `LatentStore` of ``.npz`` files. Every row is on disk as soon as it was added."""

    folder: Path
    identity: StoreIdentity
    unit_rows: int

    def missing(self, table: SampleTable) -> list[int]:
        """Rows without a whole file of their sample and this store."""
        if not self.folder.exists():
            return list(range(len(table)))
        key = self.identity.key

        def is_missing(row: int) -> bool:
            stamp = read_stamp(self.folder / latent_name(row))
            return stamp is None or stamp.store != key or stamp.sample != table[row].id

        with ThreadPoolExecutor(8) as pool:
            return [row for row, missing in enumerate(pool.map(is_missing, range(len(table)))) if missing]

    @contextmanager
    def writer(self, unit: int) -> Iterator[NpzWriter]:
        """A writer that writes each row at once; there is nothing to commit."""
        yield NpzWriter(self)

    def entries(self, table: SampleTable, root: Path, failed: Collection[int] = ()) -> list[str]:
        """Names by row where the file is there."""
        relative = self.folder.relative_to(root).as_posix()
        there = {entry.name for entry in os.scandir(self.folder)}
        names = [latent_name(row) for row in range(len(table))]
        return [
            f"{relative}/{name}" if name in there and row not in failed else "" for row, name in enumerate(names)
        ]  # fmt: skip

    def finish(self, table: SampleTable) -> None:
        """Remove what killed writers have left; the files are all there is."""
        remove_torn(self.folder)
        record_table(self.folder, table)


@dataclass(frozen=True)
class NpzWriter:
    """Writes rows of an `NpzStore`."""

    store: NpzStore

    def add(self, row: int, sample: str, tokens: Floats, codes: npt.NDArray[Any] | None) -> None:
        """Write one row. Raises MediaError for tokens that aren't finite in the store's number format."""
        identity = self.store.identity
        stamp = Stamp(sample, identity.key, identity.model)
        write_latents(self.store.folder / latent_name(row), narrow(tokens, identity.dtype), codes, stamp)


class NpzSource:
    """A `StoredLatents` over ``.npz`` files, one per sample."""

    def __init__(self, files: Sequence[Path]) -> None:
        if not files:
            raise LaryError("There are no latents to read.")
        self.files = tuple(files)
        self.shape = tuple(read_latents(self.files[0]).shape)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def bytes_on_disk(self) -> int:
        """As if all were as long as the first."""
        return len(self.files) * self.files[0].stat().st_size

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        """Tokens of the samples at `rows`, (B, *shape) float32."""
        out = np.empty((len(rows), *self.shape), dtype=np.float32)
        for position, row in enumerate(rows):
            tokens = read_latents(self.files[row])
            if tokens.shape != self.shape:
                raise LaryError(
                    f"The latents {self.files[row]} have shape {tokens.shape}, those of {self.files[0]} {self.shape}: "
                    "one table must hold latents of one extraction."
                )
            out[position] = tokens
        return out

    def take(self, positions: Collection[int]) -> NpzSource:
        """Some of the samples."""
        return NpzSource([self.files[position] for position in positions])

    def codes(self, rows: Collection[int]) -> list[npt.NDArray[Any] | None]:
        """Codes of samples."""
        found = [read_arrays(self.files[row], "indices")[0] for row in rows]
        return [codes if codes is not None and codes.size else None for codes in found]
