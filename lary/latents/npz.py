"""The store in the published layout: one ``.npz`` per sample with the arrays ``tokens`` and ``indices``.

Each file carries in its zip comment, which other readers pass over, the id of its sample and the identity of the store
(model, weights, protocol, preprocessing). Files of other programs are untrusted input: only the two arrays are opened,
their headers are compared with the archive's sizes before memory is allocated, and nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.arrays import read_npz
from lary.files import atomic_write, open_regular
from lary.latents.store import Floats, LatentStore, Write, narrow, token_shape
from lary.types import LaryError, MediaError

if TYPE_CHECKING:
    from lary.data.tables import SampleTable

MOST_BYTES = 1 << 30
"""Most bytes of one sample's array; the largest of the benchmark has 19 MB."""
LONGEST_STAMP = 4096
END = struct.Struct("<4s4H2LH")
"""The last record of a zip archive (APPNOTE.TXT 4.3.16): signature, four counts, size and place of the directory."""
NPZ = "latent_action_*.npz"
THREADS = 8


def latent_name(row: int) -> str:
    """File name of the latents of a row."""
    return f"latent_action_{row:08d}.npz"


def row_of(name: str) -> int | None:
    """The row whose latents a file of this name holds; None for another name."""
    digits = name.removeprefix("latent_action_").removesuffix(".npz")
    return int(digits) if digits.isascii() and digits.isdigit() else None


@dataclass(frozen=True)
class Stamp:
    """The zip comment of one file."""

    sample: str
    store: str
    model: str


def write_latents(path: Path, tokens: npt.NDArray[Any], codes: npt.NDArray[Any] | None, stamp: Stamp) -> None:
    """Write one sample: `tokens` (P, N, D) or (N, D), `codes` (P, N) or None, stored as an empty array.

    Raises:
        LaryError: the tokens are larger than what can be read again, or can't be written.
    """
    if tokens.nbytes > MOST_BYTES:
        raise LaryError(
            f"Tokens of {'x'.join(map(str, tokens.shape))} take {tokens.nbytes / 1e9:.1f} GB per sample, more than the "
            f"{MOST_BYTES / 1e9:.1f} GB that {path.name} may hold: extract with --pool mean or --pool grid:4."
        )
    arrays = {"tokens": tokens, "indices": np.array([]) if codes is None else codes}
    with atomic_write(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.comment = json.dumps(asdict(stamp)).encode()
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # of 1 January 1980: the same latents give the same bytes
            info.file_size = array.nbytes
            with archive.open(info, "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None if there is no such file, it is torn, or another program wrote it.

    Only the end of the file is read, since a restart reads a million of them: the comment has to fill it exactly, and
    the directory to be before it.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END.size - LONGEST_STAMP))
            tail = file.read()
        place = tail.rfind(b"PK\x05\x06")
        if place < 0:
            return None
        *_, directory, start, length = END.unpack_from(tail, place)
        if place + END.size + length != len(tail) or start + directory + len(tail) - place != size or not length:
            return None
        return Stamp(**json.loads(tail[place + END.size :]))
    except (OSError, ValueError, TypeError, struct.error, RecursionError):
        return None


def read_stamps(files: Iterable[Path]) -> Iterator[Stamp | None]:
    """Stamps of files, in their order."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(read_stamp, files)


def read_array(path: Path, name: str) -> npt.NDArray[Any] | None:
    """A numeric array of a file, None if it isn't there.

    Raises:
        MediaError: the file is missing, torn, no archive, or the array is none of numbers, or larger than it may be.
    """
    try:
        (array,) = read_npz(path, name, largest=MOST_BYTES)
    except FileNotFoundError:
        raise MediaError(f"The latents {path} do not exist: extract them again.") from None
    except KeyError:
        return None
    except (OSError, ValueError) as error:
        raise MediaError(f"The latents {path} can't be read ({error}): extract them again.") from error
    if array.dtype.kind not in "fiu":
        raise MediaError(
            f"The latents {path} can't be read ('{name}' holds {array.dtype}, not numbers): extract again."
        )
    return array


def read_tokens(path: Path) -> npt.NDArray[Any]:
    """The tokens of one sample in the file's number format, with the axes that `token_shape` makes of any others.

    Raises:
        MediaError: as `read_array`, or there are no tokens.
    """
    tokens = read_array(path, "tokens")
    if tokens is None:
        raise MediaError(f"The latents {path} can't be read (no array 'tokens'): extract them again.")
    if not tokens.ndim or not tokens.size:
        raise MediaError(f"The latents {path} have the shape {tokens.shape}, not (P, N, D), (N, D) or (D,).")
    return tokens.reshape(token_shape(tokens.shape))


class NpzStore(LatentStore):
    """A store of ``.npz`` files. Every row is on disk as soon as it was written; there is nothing to commit."""

    def held(self, table: SampleTable, *, check: bool = True) -> dict[int, str]:
        """Rows whose file is there, from one listing of the folder, since millions of others may be missing."""
        names = [entry.name for entry in os.scandir(self.folder)] if self.folder.is_dir() else []
        rows = {row: name for name in names if (row := row_of(name)) is not None and name == latent_name(row)}
        found = {row: rows[row] for row in sorted(rows) if row < len(table)}
        if not check:
            return found
        stamps = zip(found.items(), read_stamps(self.folder / name for name in found.values()), strict=True)
        key = self.identity.key
        return {row: name for (row, name), own in stamps if own and own.store == key and own.sample == table[row].id}

    @contextmanager
    def writer(self, unit: int) -> Iterator[Write]:
        identity = self.identity

        def write(row: int, sample: str, tokens: Floats, codes: npt.NDArray[Any] | None) -> None:
            stamp = Stamp(sample, identity.key, identity.model)
            write_latents(self.folder / latent_name(row), narrow(tokens, identity.dtype), codes, stamp)

        yield write


class NpzSource:
    """A `StoredLatents` over ``.npz`` files, one per sample."""

    def __init__(self, files: Sequence[Path]) -> None:
        if not files:
            raise LaryError("There are no latents to read.")
        self.files = tuple(files)
        self.shape = tuple(read_tokens(self.files[0]).shape)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        """Tokens of the samples at `rows`, (B, *shape) float32."""
        out = np.empty((len(rows), *self.shape), dtype=np.float32)
        for position, row in enumerate(rows):
            tokens = read_tokens(self.files[row])
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
        found = [read_array(self.files[row], "indices") for row in rows]
        return [codes if codes is not None and codes.size else None for codes in found]
