"""The stages of an extraction: read, encode, write. They overlap, and memory is a few batches.

Units of rows come one by one; their rows are read by processes (`lary.latents.reading`), encoded here, and written by
threads. A row has a fixed place in a fixed batch of its unit, so that a resumed extraction is bit-identical to an
undisturbed one.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lary.configs import ExtractConfig
from lary.data.tables import INDEX_COLUMN, SampleTable
from lary.latents.encoding import Encoding
from lary.latents.reading import Batch, Reading, idle_readers
from lary.latents.store import LatentStore, Write
from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext, ModelSpec, with_latent
from lary.runtime import usable_cores
from lary.types import Failure, LaryError, MediaError

MOST_WORKERS = 8
WRITERS = 2
BYTES_IN_FLIGHT = 64_000_000
"""Latents that wait for a writer; more than one row only."""
BYTES_TOGETHER = 1 << 20
"""Latents that a writer is handed at once."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Advance = Callable[[int], None]
_Row = tuple[int, str, str, npt.NDArray[Any], "npt.NDArray[Any] | None"]
"""Number, sample id, first medium, tokens and codes."""


@dataclass(frozen=True)
class Unit:
    """What is left to do of the rows ``[number * unit_rows, (number + 1) * unit_rows)``."""

    number: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class UnitReport:
    """A unit that is committed: how many of its rows have latents now, and which ones failed."""

    number: int
    done: int
    failures: tuple[Failure, ...]


class Interrupted(LaryError):
    """The user stopped the run: what was begun is finished and kept. Exit code 130, as shells have it."""

    exit_code = 130


def plan_units(pending: Iterable[int], unit_rows: int) -> list[Unit]:
    """The units that hold the pending rows, which are ascending."""
    return [Unit(number, tuple(rows)) for number, rows in groupby(pending, lambda row: row // unit_rows)]


@dataclass(frozen=True)
class Job:
    """One extraction with everything looked up: what a worker process needs.

    Attributes:
        pending: how many rows are to be done, by all workers together.
        processes: how many share this machine's cores.
        threads: of torch: their number decides the last bits of a product on a CPU.
    """

    config: ExtractConfig
    data_dir: Path
    table: Path
    weights: str | None
    variables: dict[str, str]
    plugins: tuple[Path, ...]
    store: LatentStore | None = None
    pending: int = 0
    processes: int = 1
    threads: int = 1


def model_of(config: ExtractConfig) -> ModelSpec:
    """The record of the model with the kind of latent that was asked for."""
    return with_latent(MODELS.get(config.model), config.latent)


def make_encoder(job: Job, model: ModelSpec, device: str) -> LoadedEncoder:
    """The model on its device, in the arithmetic that was asked for."""
    config = job.config
    context = ModelContext(device, config.protocol, job.weights, config.revision, config.seed, job.variables)
    return build(model, context, precision=config.precision, compiled=config.compile)


def reading_workers(job: Job) -> int:
    """Processes that read for one encoder: what was asked for, or this machine's cores shared by all encoders."""
    return job.config.workers or max(1, min(MOST_WORKERS, usable_cores() // job.processes))


def encode_units(
    job: Job, table: SampleTable, units: Iterable[Unit], device: str, encoder: LoadedEncoder | None,
    *, advance: Advance, stopped: Callable[[], bool] = lambda: False,
) -> Iterator[UnitReport]:  # fmt: skip
    """Read, encode and write units of rows; each is reported once it is committed.

    Args:
        units: taken one at a time, the next one while the last one is still encoded.
        advance: called with the number of rows that are completed.
        stopped: whether to end after the current unit.

    Raises:
        LaryError: a worker that doesn't start, a full disk, an encoder that returns something else than latents.
    """
    assert job.store is not None
    model = model_of(job.config)
    encoder = encoder or make_encoder(job, model, device)
    preprocess = model.preprocessing(job.config.protocol, table.spec.media)
    size = job.config.batch_size
    encoding = Encoding(encoder, preprocess, device, job.config.pool)
    with ExitStack() as stack:
        reading = Reading(
            stack.enter_context(idle_readers()), preprocess, size, most_frames(table), reading_workers(job),
            job.config.read_timeout,
        )  # fmt: skip
        stack.enter_context(encoding.fast_memory(reading.memory))
        writing = stack.enter_context(Writing(job.store, job.pending))
        batches = reading.read(plan_batches(table, units, job.store.unit_rows, size))
        stack.callback(batches.close)
        for batch, rows in encoding.stream(batches, reading.release):
            if batch.unit != writing.unit:
                if writing.unit is not None and stopped():
                    break
                writing.begin(batch.unit)
            for index, tokens, codes in rows:
                writing.add(batch.rows[index], batch.samples[index].id, batch.samples[index].media[0], tokens, codes)
            writing.hand_over()
            writing.fail(batch.failures())
            advance(len(batch.rows))
            yield from writing.committed()
        writing.begin(None)
        yield from writing.committed(wait=True)


def most_frames(table: SampleTable) -> int:
    """The largest T of a table's samples."""
    if table.spec.media == "pair":
        return 2
    return 1 + max(str(cell).count(",") for cell in table.frame[INDEX_COLUMN])


def plan_batches(table: SampleTable, units: Iterable[Unit], unit_rows: int, size: int) -> Iterator[Batch]:
    """The batches of units, in order; rows are counted from the first one of their unit."""
    for unit in units:
        first = unit.number * unit_rows
        groups: dict[int, list[int]] = {}
        for row in unit.rows:
            groups.setdefault((row - first) // size, []).append(row)
        for rows in groups.values():
            samples = [table[row] for row in rows]
            questions = [
                {"paths": [str(path) for path in table.media_path(sample)], "index": list(sample.frame_index)}
                for sample in samples
            ]
            lengths = [len(sample.frame_index) or len(sample.media) for sample in samples]
            yield Batch(unit.number, rows, [(row - first) % size for row in rows], samples, questions, lengths)


@dataclass
class _OpenUnit:
    """A unit whose rows are being written."""

    number: int
    write: Write
    stack: ExitStack
    rows: int = 0
    writes: list[Future[list[Failure]]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Writing:
    """The writing stage: rows are written by a few threads, units committed by another one, in their order.

    Small rows are handed over together: waking a thread costs as much as writing one of them.
    """

    def __init__(self, store: LatentStore, pending: int) -> None:
        self._store = store
        self._pending = pending
        self._unit: _OpenUnit | None = None
        self._gathered: list[_Row] = []
        self._gathered_bytes = 0
        self._threads = ThreadPoolExecutor(WRITERS)
        self._committer = ThreadPoolExecutor(1)
        self._commits: list[Future[UnitReport]] = []
        self._room = threading.Condition()
        self._bytes = 0
        self._error: BaseException | None = None

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._threads.shutdown(cancel_futures=error is not None)
        if error is not None and self._unit is not None:
            self._unit.stack.__exit__(kind, error, trace)
        self._committer.shutdown()

    @property
    def unit(self) -> int | None:
        """The number of the unit that rows are added to."""
        return None if self._unit is None else self._unit.number

    def begin(self, number: int | None) -> None:
        """Commit the unit before, in the background, and open another one."""
        if self._unit is not None:
            self.hand_over()
            self._commits.append(self._committer.submit(_commit, self._unit))
        self._unit = None
        if number is not None:
            stack = ExitStack()
            self._unit = _OpenUnit(number, stack.enter_context(self._store.writer(number)), stack)

    def add(self, row: int, sample: str, name: str, tokens: Any, codes: Any) -> None:
        """Have a row written; waits where too many are on their way. Raises what a write before it raised."""
        assert self._unit is not None
        if self._error is not None:
            raise self._error
        if self._pending:
            check_space(self._store, tokens, codes, self._pending)
            self._pending = 0
        self._unit.rows += 1
        self._gathered.append((row, sample, name, tokens, codes))
        self._gathered_bytes += tokens.nbytes
        if self._gathered_bytes >= BYTES_TOGETHER:
            self.hand_over()

    def hand_over(self) -> None:
        """Have the rows written that were gathered: at the end of a batch, so that a kill costs no more."""
        rows, size = self._gathered, self._gathered_bytes
        self._gathered, self._gathered_bytes = [], 0
        if not rows:
            return
        assert self._unit is not None
        with self._room:
            self._room.wait_for(lambda: not self._bytes or self._bytes + size <= BYTES_IN_FLIGHT)
            self._bytes += size
        self._unit.writes.append(self._threads.submit(self._write, self._unit.write, rows, size))

    def fail(self, failures: list[Failure]) -> None:
        """Count rows of this unit that have no latents."""
        assert self._unit is not None
        self._unit.failures += failures

    def committed(self, *, wait: bool = False) -> Iterator[UnitReport]:
        """Reports of the units that were committed since the last call."""
        while self._commits and (wait or self._commits[0].done()):
            yield self._commits.pop(0).result()

    def _write(self, write: Write, rows: list[_Row], size: int) -> list[Failure]:
        failures = []
        try:
            for row, sample, name, tokens, codes in rows:
                try:
                    write(row, sample, tokens, codes)
                except MediaError as error:
                    failures.append(Failure(row, name, str(error)))
        except BaseException as error:
            self._error = error
            raise
        finally:
            with self._room:
                self._bytes -= size
                self._room.notify()
        return failures


def _commit(unit: _OpenUnit) -> UnitReport:
    with unit.stack:
        unwritten = [failure for write in unit.writes for failure in write.result()]
    failures = sorted(unit.failures + unwritten, key=lambda item: item.row or 0)
    return UnitReport(unit.number, unit.rows - len(unwritten), tuple(failures))


def check_space(store: LatentStore, tokens: npt.NDArray[Any], codes: npt.NDArray[Any] | None, rows: int) -> None:
    """Refuse to start what the disk has no free space for. Raises LaryError."""
    row_bytes = tokens.size * ITEM_BYTES[store.identity.dtype] + (0 if codes is None else codes.nbytes)
    need = rows * row_bytes  # without what their container adds
    free = shutil.disk_usage(store.folder).free
    if need > free:
        raise LaryError(
            f"{rows} rows of {'x'.join(map(str, tokens.shape))} {store.identity.dtype} need {need / 1e9:.1f} GB, and "
            f"{store.folder} has {free / 1e9:.1f} GB left: free some, choose --dtype or --pool, or another LARY_LA_DIR."
        )
