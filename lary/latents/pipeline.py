"""The stages of an extraction: read, encode, write. They overlap, and memory is a few batches.

Units of rows come one by one; their rows are read by processes (`lary.latents.reading`),
encoded here, and written by threads. A row's latents must depend on nothing but the row, since
kernels round differently for batches of different sizes. On a CPU, where batches gain nothing,
rows are encoded one by one. Elsewhere a batch always has the same number of positions, a row
always the same one of them, and a row that isn't there leaves its position black. So a resumed
extraction is bit-identical to an undisturbed one.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.configs import ExtractConfig
from lary.data.tables import INDEX_COLUMN, SampleTable
from lary.latents.reading import Batch, idle_readers
from lary.latents.store import LatentStore, Write, pooled_latents, token_shape
from lary.models.preprocess import DeviceNormaliser, normalise
from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess, with_latent
from lary.runtime import usable_cores
from lary.types import Failure, LaryError, Latents, MediaError

if TYPE_CHECKING:
    import torch

MOST_WORKERS = 8
WRITERS = 3
"""Threads that write: one may be waiting for the disk to have a whole unit."""
BYTES_TOGETHER = 1 << 20
"""Latents that a thread is handed at once: waking it costs as much as writing a small row."""
WAITING = 16
"""Writes that wait for a thread, before the encoder has to."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Advance = Callable[[int], None]
Row = tuple[int, npt.NDArray[np.float32], "npt.NDArray[Any] | None"]
"""Index in the batch, tokens (P, N, D) or (N, D) and codes (P, N) of one row."""


@dataclass(frozen=True)
class Unit:
    """What is left to do of the rows ``[number * unit_rows, (number + 1) * unit_rows)``."""

    number: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class UnitReport:
    """How many rows of a committed unit have latents now, and which ones failed."""

    done: int
    failures: tuple[Failure, ...]


class Interrupted(LaryError):
    """The user stopped the run: what was begun is finished and kept. Exit code 130, as in shells."""

    exit_code = 130


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


def plan_units(pending: Iterable[int], unit_rows: int) -> list[Unit]:
    """The units that hold the pending rows, which are ascending."""
    return [Unit(number, tuple(rows)) for number, rows in groupby(pending, lambda row: row // unit_rows)]


def model_of(config: ExtractConfig) -> ModelSpec:
    """The record of the model with the kind of latent that was asked for."""
    return with_latent(MODELS.get(config.model), config.latent)


def make_encoder(job: Job, model: ModelSpec, device: str) -> LoadedEncoder:
    """The model on its device, in the arithmetic that was asked for."""
    config = job.config
    context = ModelContext(device, config.protocol, job.weights, config.revision, config.seed, job.variables)
    return build(model, context, precision=config.precision, compiled=config.compile)


def encode_units(
    job: Job,
    table: SampleTable,
    units: Iterable[Unit],
    device: str,
    encoder: LoadedEncoder | None,
    *,
    advance: Advance,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[UnitReport]:
    """Read, encode and write units of rows; each is reported once it is committed.

    Args:
        units: taken one at a time, the next one while the last one is still encoded.
        advance: called with the number of rows that are completed.
        stopped: whether to end after the current unit.

    Raises:
        LaryError: a worker that doesn't start, a full disk, an encoder that returns something
            else than latents.
    """
    assert job.store is not None
    config = job.config
    model = model_of(config)
    encoder = encoder or make_encoder(job, model, device)
    preprocess = model.preprocessing(config.protocol, table.spec.media)
    encoding = Encoding(encoder, preprocess, device, config.pool, singly=device == "cpu")
    workers = config.workers or max(1, min(MOST_WORKERS, usable_cores() // job.processes))
    planned = plan_batches(table, units, job.store.unit_rows, config.batch_size)
    with idle_readers(workers) as readers, Writing(job.store, job.pending) as writing:
        frames = most_frames(table)
        batches = readers.read(planned, preprocess, config.batch_size, frames, config.read_timeout)
        with closing(batches):
            for number, group in groupby(encoding.stream(batches), lambda found: found[0].unit):
                if writing.begun and stopped():
                    break
                with writing.unit(number) as unit:
                    for batch, rows in group:
                        for index, tokens, codes in rows:
                            writing.add(unit, batch, index, tokens, codes)
                        writing.hand_over(unit)  # at the latest now: a kill costs no more
                        unit.failures += batch.failures()
                        advance(len(batch.rows))
                        yield from writing.committed()
        yield from writing.committed(wait=True)


def most_frames(table: SampleTable) -> int:
    """The largest T of a table's samples."""
    if table.spec.media == "pair":
        return 2
    return 1 + max(str(cell).count(",") for cell in table.frame[INDEX_COLUMN])


def plan_batches(table: SampleTable, units: Iterable[Unit], unit_rows: int, size: int) -> Iterator[Batch]:
    """The batches of units, in order; positions are counted from the first row of their unit."""
    for unit in units:
        first = unit.number * unit_rows
        for _, group in groupby(unit.rows, lambda row: (row - first) // size):  # noqa: B023 (used at once)
            rows = list(group)
            samples = [table[row] for row in rows]
            paths = [[str(path) for path in table.media_path(sample)] for sample in samples]
            yield Batch(unit.number, rows, [(row - first) % size for row in rows], samples, paths)


class Encoding:
    """An encoder with the arithmetic in front of it and the pooling behind it, on one device.

    Args:
        singly: encode rows one by one.
    """

    def __init__(self, encoder: LoadedEncoder, preprocess: Preprocess, device: str, pool: str, *, singly: bool) -> None:
        self._encoder = encoder
        self._preprocess = preprocess
        self._device = device
        self._cuda = device.startswith("cuda")
        self._pool = pool
        self._normalise = None if singly else DeviceNormaliser(preprocess, device)

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Iterable[Row]]]:
        """The rows of every batch that could be read, in order."""
        if self._normalise is None:
            for batch in batches:
                yield batch, self._one_by_one(batch)
            return
        before: tuple[Batch, Iterator[Row]] | None = None
        for batch in batches:
            launched = self._launch(batch, self._normalise)
            if before is not None:  # fetched while the accelerator works on the next batch
                yield before
            before = batch, launched
        if before is not None:
            yield before

    def _one_by_one(self, batch: Batch) -> Iterator[Row]:
        import torch

        for index, (row, place, length) in enumerate(zip(batch.rows, batch.places, batch.lengths, strict=True)):
            if row in batch.problems:
                continue
            clip = normalise(batch.clips[place : place + 1, :length], self._preprocess)
            with torch.inference_mode():
                latents = self._encoded(torch.from_numpy(clip))
            codes = None if latents.codes is None else latents.codes.numpy()[0]
            yield index, latents.tokens.numpy()[0], codes

    def _launch(self, batch: Batch, normaliser: DeviceNormaliser) -> Iterator[Row]:
        """Have the accelerator compute a batch; the rows, when asked for, wait for it."""
        import torch

        lengths: dict[int, list[int]] = {}
        for index, (row, length) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
            if row not in batch.problems:
                lengths.setdefault(length, []).append(index)
        parts = []
        with torch.inference_mode():
            for length, indices in lengths.items():
                planes = torch.from_numpy(batch.clips[:, :length])
                planes = planes.pin_memory() if self._cuda else planes  # copied while the device computes
                latents = self._encoded(normaliser(planes.to(self._device, non_blocking=True)))
                codes = None if latents.codes is None else self._to_host(latents.codes)
                parts.append((indices, self._to_host(latents.tokens), codes))
        event = torch.cuda.Event() if self._cuda else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record(torch.cuda.current_stream(self._device))

        def rows() -> Iterator[Row]:
            if event is not None:
                event.synchronize()
            for indices, tokens, codes in parts:
                for index in indices:
                    place = batch.places[index]
                    yield index, tokens[place].numpy(), None if codes is None else codes[place].numpy()

        return rows()

    def _encoded(self, clips: torch.Tensor) -> Latents:
        """Pooled latents of clips, float32, with the axes that a store has."""
        latents = self._encoder.encode(clips)
        tokens = latents.tokens
        tokens = tokens.reshape(len(tokens), *token_shape(tuple(tokens.shape[1:]))).float()
        return pooled_latents(replace(latents, tokens=tokens), self._pool)

    def _to_host(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        if not self._cuda:
            return values.cpu()
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)


@dataclass
class OpenUnit:
    """A unit whose rows are being written; closing `stack` commits it."""

    write: Write
    stack: ExitStack
    rows: int = 0
    gathered: list[tuple[Any, ...]] = field(default_factory=list)
    gathered_bytes: int = 0
    writes: list[Future[None]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unwritten: list[Failure] = field(default_factory=list)


class Writing:
    """The writing stage: a few threads write rows, and commit units in the background."""

    def __init__(self, store: LatentStore, pending: int) -> None:
        self._store = store
        self._pending = pending
        self._threads = ThreadPoolExecutor(WRITERS)
        self._waiting: deque[Future[None]] = deque()
        self._commits: deque[Future[UnitReport]] = deque()
        self.begun = False

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown()

    @contextmanager
    def unit(self, number: int) -> Iterator[OpenUnit]:
        """A unit to add rows to. It is committed in the background, or given up on an exception."""
        self.begun = True
        stack = ExitStack()
        unit = OpenUnit(stack.enter_context(self._store.writer(number)), stack)
        try:
            yield unit
        except BaseException as error:
            for future in unit.writes:
                future.cancel()
            wait(unit.writes)  # they write to the file that is closed next
            stack.__exit__(type(error), error, error.__traceback__)
            raise
        # Tasks begin in their order: all of this unit's writes have begun before its commit does.
        self._commits.append(self._threads.submit(_commit, unit))

    def add(self, unit: OpenUnit, batch: Batch, index: int, tokens: Any, codes: Any) -> None:
        """Have a row written."""
        if self._pending:
            check_space(self._store, tokens, codes, self._pending)
            self._pending = 0
        sample = batch.samples[index]
        unit.rows += 1
        unit.gathered.append((batch.rows[index], sample, tokens, codes))
        unit.gathered_bytes += tokens.nbytes
        if unit.gathered_bytes >= BYTES_TOGETHER:
            self.hand_over(unit)

    def hand_over(self, unit: OpenUnit) -> None:
        """Have the rows written that were gathered. Raises what an earlier write has raised."""
        unit.writes.append(self._threads.submit(_write, unit, unit.gathered))
        self._waiting.append(unit.writes[-1])
        unit.gathered, unit.gathered_bytes = [], 0
        while len(self._waiting) > WAITING:
            self._waiting.popleft().result()

    def committed(self, *, wait: bool = False) -> Iterator[UnitReport]:
        """Reports of the units that were committed since the last call."""
        while self._commits and (wait or self._commits[0].done()):
            yield self._commits.popleft().result()


def _write(unit: OpenUnit, rows: list[tuple[Any, ...]]) -> None:
    for row, sample, tokens, codes in rows:
        try:
            unit.write(row, sample.id, tokens, codes)
        except MediaError as error:
            unit.unwritten.append(Failure(row, sample.media[0], str(error)))


def _commit(unit: OpenUnit) -> UnitReport:
    with unit.stack:
        for write in unit.writes:
            write.result()
    failures = sorted(unit.failures + unit.unwritten, key=lambda item: item.row or 0)
    return UnitReport(unit.rows - len(unit.unwritten), tuple(failures))


def check_space(store: LatentStore, tokens: npt.NDArray[Any], codes: npt.NDArray[Any] | None, rows: int) -> None:
    """Refuse to start what the disk has no free space for. Raises LaryError."""
    dtype, folder = store.identity.dtype, store.folder
    row_bytes = tokens.size * ITEM_BYTES[dtype] + (0 if codes is None else codes.nbytes)
    need = rows * row_bytes  # without what their container adds
    free = shutil.disk_usage(folder).free
    if need > free:
        shape = "x".join(map(str, tokens.shape))
        raise LaryError(
            f"{rows} rows of {shape} {dtype} need {need / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left: "
            "free some, choose --dtype or --pool, or another LARY_LA_DIR."
        )
