"""Latents without a store: encoded from the frames when a probe reads them, kept in memory as far as there is room.

The rows go through the stages of an extraction, each in its own place of a batch, so that a probe sees the same bits as
from a store. The first pass finds the rows that can't be read, and keeps the latents of the first rows that fit; the
others are encoded again whenever they are read: those that are asked for together share batches.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.data.samples import SampleTable
from lary.latents.pipeline import encode_units, make_encoder
from lary.latents.ref import SplitLatents
from lary.latents.store import BATCHES, Floats, StoreIdentity, narrow
from lary.latents.units import plan_units
from lary.runs.extract import Run
from lary.runtime import progress
from lary.types import Encoder, Failure, LaryError

NO_STORE = "none: latents were encoded from the frames while the probe was trained"

Sink = Callable[[int, Floats], None]


@dataclass(frozen=True)
class _Sink:
    """A `LatentStore` that hands the tokens of every row on and puts nothing on a disk."""

    folder: Path
    identity: StoreIdentity
    unit_rows: int
    take: Sink

    def missing(self, table: SampleTable) -> list[int]:
        """Every row."""
        return list(range(len(table)))

    @contextmanager
    def writer(self, unit: int) -> Iterator[_Sink]:
        """Itself: there is nothing to commit."""
        yield self

    def add(self, row: int, sample: str, tokens: Floats, codes: npt.NDArray[Any] | None) -> None:
        """Hand on one row, rounded as a store would. Raises MediaError for tokens that aren't finite."""
        self.take(row, np.asarray(narrow(tokens, self.identity.dtype), dtype=np.float32))

    def entries(self, table: SampleTable, root: Path, failed: Collection[int] = ()) -> list[str]:
        """No row has a file."""
        return [""] * len(table)

    def finish(self, table: SampleTable) -> None:
        """There is nothing that lists the latents."""


class FrameLatents:
    """All rows of a table, encoded on demand; at most `room` bytes of float32 tokens stay in memory.

    Raises:
        LaryError: no row can be read, or the encoder returns something else than latents.
    """

    def __init__(self, run: Run, room: int) -> None:
        self._run, self._room = run, room
        self._encoder: Encoder = run.encoder or make_encoder(run.job, run.model, run.devices[0])
        self._lock, self._keeping = threading.Lock(), threading.Lock()
        self._kept: Floats = np.empty(0, dtype=np.float32)
        self._place = np.full(len(run.table), -1, dtype=np.int64)
        self._count = 0
        self.shape: tuple[int, ...] = ()
        self.failures: list[Failure] = []
        with progress(len(run.table), f"{run.title}, without a store") as bar:
            self.failures = self._encode(run.table, range(len(run.table)), self._keep, bar.advance)
        if not self.shape:
            first = f"; the first: {self.failures[0].reason}" if self.failures else ""
            raise LaryError(f"No row of {run.table.path} can be encoded{first}")

    @property
    def readable(self) -> list[int]:
        """The rows that have latents."""
        failed = {failure.row for failure in self.failures}
        return [row for row in range(len(self._run.table)) if row not in failed]

    def read(self, rows: npt.NDArray[np.int64]) -> Floats:
        """Tokens of the rows of the table at `rows`, (B, *shape) float32."""
        out = np.empty((len(rows), *self.shape), dtype=np.float32)
        kept = self._place[rows] >= 0
        out[kept] = self._kept[self._place[rows[kept]]]
        absent = np.flatnonzero(~kept)
        if len(absent):
            wanted: dict[int, list[int]] = {}
            for position in absent.tolist():
                wanted.setdefault(int(rows[position]), []).append(position)

            table, rows_at = side_by_side(self._run.table, sorted(wanted), self._run.job.config.batch_size)

            def fill(slot: int, tokens: Floats) -> None:
                out[wanted.pop(rows_at[slot])] = tokens

            failures = self._encode(table, sorted(rows_at), fill, lambda count: None)
            if wanted:
                reason = failures[0].reason if failures else "it was given up."
                raise LaryError(f"Row {min(wanted) + 1} of {self._run.table.path} can't be read any more: {reason}")
        return out

    def _encode(
        self, table: SampleTable, rows: Sequence[int], take: Sink, advance: Callable[[int], None]
    ) -> list[Failure]:
        run, size = self._run, self._run.job.config.batch_size
        sink = _Sink(run.folder, run.identity, BATCHES * size, take)
        job = replace(run.job, store=sink)
        with self._lock:  # one encoder, one ring of memory
            reports = encode_units(
                job, table, plan_units(rows, sink.unit_rows), run.devices[0], self._encoder, advance=advance
            )  # fmt: skip
            return sorted((item for report in reports for item in report.failures), key=lambda item: item.row or 0)

    def _keep(self, row: int, tokens: Floats) -> None:
        """Called by the threads that write; rows come in any order within a batch."""
        with self._keeping:
            if not self.shape:
                self.shape = tokens.shape
                rows = min(len(self._run.table), self._room // max(tokens.nbytes, 1))
                self._kept = np.empty((rows, *tokens.shape), dtype=np.float32)
            if tokens.shape != self.shape:
                raise LaryError(f"Row {row + 1} has latents of shape {tokens.shape}, rows before it {self.shape}.")
            if self._count < len(self._kept):
                self._kept[self._count] = tokens
                self._place[row] = self._count
                self._count += 1


def side_by_side(table: SampleTable, rows: Sequence[int], size: int) -> tuple[SampleTable, dict[int, int]]:
    """A table in which rows of another one share as few batches of `size` places as they can.

    A row keeps the place that it has in an extraction, since the last bits on an accelerator may depend on it, and
    nothing else: rows of different places go into one batch. Clips of different lengths don't, as the network runs
    once per length.

    Returns:
        The table, and the row of the other one by the position here; all other positions are not to be read.
    """
    batches: dict[tuple[int, int], int] = {}
    found: Counter[tuple[int, int]] = Counter()
    rows_at: dict[int, int] = {}
    for row in rows:
        length, place = len(table[row].frame_index), row % size
        number = batches.setdefault((length, found[length, place]), len(batches))
        found[length, place] += 1
        rows_at[number * size + place] = row
    return table.take([rows_at.get(slot, rows[0]) for slot in range(max(rows_at) + 1)]), rows_at


@dataclass(frozen=True)
class FrameSource:
    """A `StoredLatents` over some rows of `FrameLatents`."""

    latents: FrameLatents
    rows: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's tokens."""
        return self.latents.shape

    @property
    def bytes_on_disk(self) -> int:
        """None at all."""
        return 0

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        """Tokens of the samples at `rows`, (B, *shape) float32."""
        return self.latents.read(self.rows[np.asarray(rows, dtype=np.int64)])

    def take(self, positions: Collection[int]) -> FrameSource:
        """Some of the samples."""
        return FrameSource(self.latents, self.rows[np.asarray(list(positions), dtype=np.int64)])

    def codes(self, rows: Collection[int]) -> list[npt.NDArray[Any] | None]:
        """None: probes read tokens alone."""
        return [None] * len(rows)


def facts_of(run: Run) -> dict[str, Any]:
    """What stands in place of a store's manifest."""
    return {"key": run.identity.key, "identity": asdict(run.identity), **run.details, "no_store": NO_STORE}


def open_frames(run: Run, room: int) -> tuple[SplitLatents, list[Failure]]:
    """The latents of a split without a store, and the rows that have none. Raises LaryError as `FrameLatents`."""
    latents = FrameLatents(run, room)
    rows = latents.readable
    source = FrameSource(latents, np.array(rows, dtype=np.int64))
    table = run.table if len(rows) == len(run.table) else run.table.take(rows)
    left_out = len(run.table) - len(rows)
    return SplitLatents(table, source, facts_of(run), left_out, run.folder / "no-store"), latents.failures


def announced(run: Run) -> SplitLatents:
    """A split whose latents nobody has asked for yet: enough to tell which run this is."""
    return SplitLatents(run.table, _Nothing(), facts_of(run), 0, run.folder / "no-store")


class _Nothing:
    """A source that must not be read."""

    shape: tuple[int, ...] = ()
    bytes_on_disk = 0

    def __len__(self) -> int:
        return 0

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        raise AssertionError("nothing was encoded yet")

    def take(self, positions: Collection[int]) -> _Nothing:
        return self

    def codes(self, rows: Collection[int]) -> list[npt.NDArray[Any] | None]:
        return []
