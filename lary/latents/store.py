"""Latents on disk in the published layout: one ``.npz`` per sample with the arrays ``tokens`` and ``indices``.

Each file carries in its zip comment, which other readers pass over, the id of its sample and the identity of the
store (model, weights, protocol, preprocessing). Resuming and mixing are decided by these, never by file names.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.arrays import read_npz
from lary.fileio import digest, open_regular, read_object, write_bytes, write_json
from lary.types import LaryError, MediaError, UsageError

MANIFEST = "store.json"
FORMAT = 1


@dataclass(frozen=True)
class StoreIdentity:
    """What the latents of one folder have in common. Two identities never share a folder."""

    model: str
    dataset: str
    split: str
    protocol: str
    record: str
    weights: str
    seed: int

    @property
    def key(self) -> str:
        """A digest of all fields."""
        return digest(json.dumps([FORMAT, asdict(self)], sort_keys=True))


@dataclass(frozen=True)
class Stamp:
    """The zip comment of one file."""

    sample: str
    store: str
    model: str


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
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return Stamp(**json.loads(archive.comment)) if archive.comment else None
    except (OSError, ValueError, TypeError, RecursionError, zipfile.BadZipFile):
        return None


def read_latents(path: Path) -> npt.NDArray[np.float32]:
    """The tokens of one sample, float32.

    Raises:
        MediaError: the file is missing, torn, or holds no numeric array ``tokens``.
    """
    try:
        (tokens,) = read_npz(path, "tokens")
        if tokens.dtype.kind not in "fiub":
            raise ValueError(f"its tokens are of type {tokens.dtype}")
        return np.asarray(tokens, dtype=np.float32)
    except FileNotFoundError:
        raise MediaError(f"The latents {path} do not exist: extract them again.") from None
    except (OSError, ValueError, KeyError) as error:
        raise MediaError(f"The latents {path} can't be read ({error}): extract them again.") from error


def open_store(folder: Path, identity: StoreIdentity, details: dict[str, Any], *, overwrite: bool) -> None:
    """Claim a folder for latents of one identity.

    Raises:
        UsageError: the folder holds latents of another identity and `overwrite` is off.
    """
    manifest = folder / MANIFEST
    if manifest.exists():
        found = read_object(manifest, "store manifest")
        if found.get("key") == identity.key:
            return
        if not overwrite:
            before, wanted = found.get("identity", {}), asdict(identity)
            differing = ", ".join(
                f"{name} {before.get(name)!r} instead of {value!r}"
                for name, value in wanted.items()
                if before.get(name) != value
            )
            raise UsageError(
                f"{folder} holds latents of another extraction ({differing}). Pass --overwrite to replace them."
            )
    write_json(manifest, {"format": FORMAT, "key": identity.key, "identity": asdict(identity), **details})


class NpzSource:
    """A ``LatentSource`` over ``.npz`` files, one per sample."""

    def __init__(self, files: Sequence[Path]) -> None:
        if not files:
            raise LaryError("There are no latents to read.")
        self.files = tuple(files)
        self.shape = tuple(read_latents(self.files[0]).shape)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
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
