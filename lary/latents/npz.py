"""Latents in the published layout: one ``.npz`` per sample with the arrays ``tokens`` and ``indices``.

Each file carries in its zip comment, which other readers pass over, the id of its sample and the identity of the
store (model, weights, protocol, preprocessing).
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary import paths
from lary.fileio import write_bytes
from lary.latents.store import Floats, StoreIdentity, narrow
from lary.types import LaryError, MediaError

if TYPE_CHECKING:
    from lary.data.samples import SampleTable


@dataclass(frozen=True)
class Stamp:
    """The zip comment of one file."""

    sample: str
    store: str
    model: str


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
            stamp = read_stamp(self.folder / paths.latent_name(row))
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
        names = [paths.latent_name(row) for row in range(len(table))]
        return [
            f"{relative}/{name}" if name in there and row not in failed else "" for row, name in enumerate(names)
        ]  # fmt: skip

    def finish(self, table: SampleTable) -> None:
        """The files are all there is."""


@dataclass(frozen=True)
class NpzWriter:
    """Writes rows of an `NpzStore`."""

    store: NpzStore

    def add(self, row: int, sample: str, tokens: Floats, codes: npt.NDArray[Any] | None) -> None:
        """Write one row. Raises MediaError for tokens that aren't finite in the store's number format."""
        identity = self.store.identity
        stamp = Stamp(sample, identity.key, identity.model)
        write_latents(self.store.folder / paths.latent_name(row), narrow(tokens, identity.dtype), codes, stamp)


def write_latents(path: Path, tokens: npt.NDArray[Any], codes: npt.NDArray[Any] | None, stamp: Stamp) -> None:
    """Write one sample: `tokens` (P, N, D) or (N, D), `codes` (P, N) or None, stored as an empty array."""
    buffer = io.BytesIO()
    np.savez(buffer, tokens=tokens, indices=np.array([]) if codes is None else codes)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = json.dumps(asdict(stamp)).encode()
    write_bytes(path, buffer.getvalue())


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None if there is no such file, it is torn, or another program wrote it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return Stamp(**json.loads(archive.comment)) if archive.comment else None
    except (OSError, ValueError, TypeError, zipfile.BadZipFile):
        return None


def read_latents(path: Path) -> Floats:
    """The tokens of one sample, float32.

    Raises:
        MediaError: the file is missing, torn, or holds no numeric array ``tokens``.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            tokens = file["tokens"]
            return np.asarray(tokens, dtype=np.float32)
    except FileNotFoundError:
        raise MediaError(f"The latents {path} do not exist: extract them again.") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise MediaError(f"The latents {path} can't be read ({error}): extract them again.") from error


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
        found: list[npt.NDArray[Any] | None] = []
        for row in rows:
            with np.load(self.files[row], allow_pickle=False) as file:
                indices = file["indices"] if "indices" in file.files else np.array([])
            found.append(indices if indices.size else None)
        return found
