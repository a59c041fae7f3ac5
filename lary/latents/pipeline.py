"""The stages of an extraction: read, encode and write, all at the same time.

Memory holds a few batches. A resumed extraction is bit-identical: a row's
latents must not depend on others, yet kernels round by the size of a batch. On
a CPU, rows are encoded one by one. Elsewhere every batch has the same number of
positions, and a row always the same one; a missing one is black.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.arrays import Array, Floats
from lary.configs import ExtractConfig
from lary.data.tables import INDEX_COLUMN, SampleTable
from lary.latents.reading import Batch, idle_readers
from lary.latents.store import LatentStore, pooled_latents, token_shape
from lary.models.choices import chosen_model
from lary.models.preprocess import DeviceNormaliser, normalise
from lary.models.running import LoadedEncoder, build
from lary.models.spec import ModelContext, ModelSpec, Preprocess
from lary.runtime import leave_devices, pinned, timed, usable_cores, within_memory
from lary.types import Failure, LaryError, MediaError, Sample

if TYPE_CHECKING:
    import torch

MOST_WORKERS, MOST_BESIDE = 8, 32
"""Most processes that read; beside an accelerator."""
WRITERS = 3
"""Least threads that write: one may wait for the disk to commit a unit."""
ROWS_REPEATED = 2
"""Rows that a CPU encodes twice, to see whether tokens stay the same."""
BYTES_TOGETHER = 1 << 20
"""Bytes handed to a thread at once: waking it costs as much as a small row."""
WAITING = 16
"""Pending writes before the encoder waits for one."""

Advance = Callable[[int], None]
Row = tuple[int, Floats, Array | None]
"""Index in the batch, tokens (P, N, D) or (N, D) and codes (P, N) of one row."""


@dataclass(frozen=True)
class Unit:
    """Pending rows in ``[number * unit_rows, (number + 1) * unit_rows)``."""

    number: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class UnitReport:
    """How many rows of a committed unit got latents, and the others."""

    done: int
    failures: tuple[Failure, ...]


class Interrupted(LaryError):
    """The user stopped the run; what was begun is kept. Exit code 130, as in shells."""

    exit_code = 130


@dataclass(frozen=True)
class Job:
    """One extraction with everything that a worker process needs.

    Attributes:
        pending: rows to be done, by all workers together.
        processes: how many share this machine's cores.
        threads: of torch; their number decides how products round on a CPU.
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


KeptEncoder = dict[str, LoadedEncoder]  # at most one, by its options


def make_encoder(job: Job, model: ModelSpec, device: str, held: KeptEncoder | None = None) -> LoadedEncoder:
    config, held = job.config, {} if held is None else held
    context = ModelContext(device, config.protocol, job.weights, config.revision, config.seed, job.variables)
    key = repr((model, context, config.precision, config.compile, job.plugins))
    if key not in held:
        leave_devices(held)
        held[key] = build(model, context, precision=config.precision, compiled=config.compile)
    return held[key]


def encode_units(
    job: Job,
    table: SampleTable,
    units: Iterable[Unit],
    device: str,
    encoder: LoadedEncoder,
    *,
    advance: Advance = lambda rows: None,
    stopped: Callable[[], bool] = lambda: False,
    waits: list[float] | None = None,
) -> Iterator[UnitReport]:
    """Read, encode and write units of rows; yields each once it is committed.

    Units are taken one at a time, and none once `stopped`; `advance` gets the number of completed
    rows, `waits` the seconds of waits for batches. Raises LaryError for no worker, a full disk, or
    an encoder's wrong output.
    """
    assert job.store is not None
    config = job.config
    model = chosen_model(config)
    preprocess = model.preprocessing(config.protocol, table.spec.media)
    if config.protocol == "corrected":  # not in the record, whose digest identifies stored latents
        preprocess = replace(preprocess, clamp=False)
    singly = device == "cpu" and not config.cpu_batch
    encoding = Encoding(encoder, preprocess, device, config.pool, singly=singly, dtype=config.dtype)
    cores, most = usable_cores() // job.processes, MOST_WORKERS if device == "cpu" else MOST_BESIDE
    workers, writers = config.workers or max(1, min(most, cores)), max(WRITERS, min(MOST_WORKERS, cores // 4))
    planned = plan_batches(table, units, job.store.unit_rows, config.batch_size)
    pair, pending = table.spec.media == "pair", job.pending
    frames = preprocess.frames or (2 if pair else 1 + int(table.frame[INDEX_COLUMN].str.count(",").max()))
    commits: deque[Future[UnitReport]] = deque()
    memory = within_memory(device, "lower --batch-size")
    with memory, idle_readers(workers) as readers, ThreadPoolExecutor(writers) as threads:
        batches = readers.read(planned, preprocess, config.batch_size, frames, config.read_timeout)
        waited = timed(batches, [] if waits is None else waits)
        # Draws are what ``--latent noisy`` asks for, and what some models are under ``paper``.
        drawn = config.protocol != "corrected" or config.latent == "noisy"
        checked = waited if drawn else map(encoding.check_repeats, waited)
        with closing(batches):
            for begun, (number, group) in enumerate(groupby(encoding.stream(checked), lambda found: found[0].unit)):
                if begun and stopped():
                    break
                with OpenUnit(job.store, number, threads) as unit:
                    for batch, rows in group:
                        job.store.note_media(number, table.root, batch.media)
                        for index, tokens, codes in rows:
                            if pending:  # the first row shows how large all are
                                check_space(job.store, tokens, codes, pending)
                                pending = 0
                            unit.add(batch.rows[index], batch.samples[index], tokens, codes)
                        unit.hand_over()  # at the latest now: a kill costs no more
                        unit.failures += batch.failures()
                        advance(len(batch.rows))
                        while commits and commits[0].done():
                            yield commits.popleft().result()
                # Tasks begin in order: no commit waits for writes behind it.
                commits.append(threads.submit(unit.commit))
        for commit in commits:
            yield commit.result()


def plan_batches(table: SampleTable, units: Iterable[Unit], unit_rows: int, size: int) -> Iterator[Batch]:
    """Batches of units in order; a row's position counts from its unit's first row."""
    for unit in units:
        first, own = unit.number * unit_rows, table.take(unit.rows)  # as Python's texts, a whole table fills memory
        members = zip(unit.rows, own, strict=True)
        for _, group in groupby(members, lambda member: (member[0] - first) // size):  # noqa: B023 (used at once)
            rows, samples = map(list, zip(*group, strict=True))
            paths = [[str(path) for path in own.media_path(sample)] for sample in samples]
            yield Batch(unit.number, rows, [(row - first) % size for row in rows], samples, paths)


class Encoding:
    """An encoder on a device, with normalisation before and pooling after it.

    It encodes rows one by one (`singly`), or for `dtype`, the store's number format.
    """

    def __init__(
        self, encoder: LoadedEncoder, preprocess: Preprocess, device: str, pool: str, *, singly: bool, dtype: Any = None
    ) -> None:
        self._encoder, self._preprocess, self._device, self._pool = encoder, preprocess, device, pool
        self._dtype: str = dtype or "float32"
        self._cuda = device.startswith("cuda")
        self._normalise = None if singly else DeviceNormaliser(preprocess, device)

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Iterable[Row]]]:
        """Encode batches; yields each with its rows that could be read."""
        before: tuple[Batch, Iterator[Row]] | None = None
        for batch in batches:
            if self._normalise is None:
                yield batch, self._one_by_one(batch)
                continue
            launched = self._launch(batch, self._normalise)
            if before is not None:  # fetched while the accelerator works on the next batch
                yield before
            before = batch, launched
        if before is not None:
            yield before

    def check_repeats(self, batch: Batch) -> Batch:
        """Once for each encoder, encode the first rows twice, among other ones.

        Both passes have one size, which decides how kernels round.
        Raises LaryError where tokens change by chance or with the batch.
        """
        import torch

        shapes = list(batch.shapes.values())
        if self._encoder.checked or not shapes:
            return batch
        rows = [row for row, shape in batch.shapes.items() if shape == shapes[0]]
        most = ROWS_REPEATED if self._normalise is None else max(1, len(batch.clips) - 1)
        planes = np.stack([batch.clip(row) for row in rows[:most]])
        passes = (np.concatenate([planes, np.zeros_like(planes[:1])]), np.concatenate([255 - planes[:1], planes]))
        found = []
        for each in passes:
            with torch.inference_mode():
                tokens = self._encoder.encode(torch.from_numpy(normalise(each, self._preprocess))).tokens
            found.append(tokens.float().cpu().nan_to_num(0.0, 0.0, 0.0))  # such rows fail later
        first, second = found[0][:-1], found[1][1:]
        largest = float((first - second).abs().max())
        if largest > self._encoder.different * float(first.abs().max()):
            raise LaryError(
                f"Tokens of '{self._encoder.spec.name}' depend on chance or on the batch that a sample is in: in two "
                f"passes, the same rows differ by {largest:.2g}. Switch off what draws or mixes samples, such as "
                "dropout, masking or batch statistics."
            )
        self._encoder.checked = True
        return batch

    def _one_by_one(self, batch: Batch) -> Iterator[Row]:
        import torch

        spare: dict[tuple[int, ...], Array] = {}  # fresh pages cost as much as the arithmetic
        for index, row in enumerate(batch.rows):
            if shape := batch.shapes.get(row):
                clip = spare[shape] = normalise(batch.clip(row)[None], self._preprocess, spare.get(shape))
                tokens, codes = self._encoded(torch.from_numpy(clip))
                found = tokens[0].numpy()
                # It may be a view of the input, which is overwritten next.
                found = found.copy() if np.may_share_memory(found, clip) else found
                yield index, found, None if codes is None else codes[0].numpy()

    def _launch(self, batch: Batch, normaliser: DeviceNormaliser) -> Iterator[Row]:
        """Start a batch on the accelerator, which the rows wait for."""
        import torch

        groups: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(batch.rows):
            if shape := batch.shapes.get(row):
                groups.setdefault(shape, []).append(index)
        parts = []
        for shape, indices in groups.items():
            # All positions: a batch's size decides how kernels round.
            planes = torch.from_numpy(batch.all_places(shape))
            planes = pinned(planes.pin_memory, lambda: planes, self._device)  # noqa: B023 (used at once)
            with torch.inference_mode():
                clips = normaliser(planes.to(self._device, non_blocking=True))
            parts.append((indices, *self._encoded(clips)))
        event = torch.cuda.Event() if self._cuda else None
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

    def _encoded(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pooled tokens of clips in the store's numbers, and codes, on the host."""
        import torch

        with torch.inference_mode():
            latents = self._encoder.encode(clips)
            tokens = latents.tokens
            tokens = tokens.reshape(len(tokens), *token_shape(tuple(tokens.shape[1:]))).float()
            found = pooled_latents(replace(latents, tokens=tokens), self._pool)
            tokens = found.tokens
            if self._normalise:  # half as many bytes go to the host, which rounds none
                tokens = tokens.to(getattr(torch, self._dtype))
            if tokens.dtype == torch.bfloat16:
                tokens = tokens.view(torch.uint16)
            return self._to_host(tokens), None if found.codes is None else self._to_host(found.codes)

    def _to_host(self, values: torch.Tensor) -> torch.Tensor:
        # Not to wait for it, torch makes pinned memory.
        return pinned(lambda: values.to("cpu", non_blocking=True), values.cpu, self._device)


class OpenUnit:
    """A unit whose rows threads write; an exception in its block discards it."""

    def __init__(self, store: LatentStore, number: int, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._stack = ExitStack()
        self._write = self._stack.enter_context(store.writer(number))
        self._rows: list[tuple[int, Sample, Any, Any]] = []
        self._bytes = self._handed = 0
        self._writes: list[Future[None]] = []
        self._unwritten: list[Failure] = []
        self.failures: list[Failure] = []

    def __enter__(self) -> OpenUnit:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            for write in self._writes:
                write.cancel()
            wait(self._writes)  # they write to the file that is closed next
            self._stack.__exit__(kind, error, trace)

    def add(self, row: int, sample: Sample, tokens: Any, codes: Any) -> None:
        """Have a row written. Raises what an earlier write raised."""
        self._rows.append((row, sample, tokens, codes))
        self._bytes += tokens.nbytes
        if self._bytes >= BYTES_TOGETHER:
            self.hand_over()

    def hand_over(self) -> None:
        """Have the gathered rows written; waits for too many pending writes."""
        self._writes.append(self._threads.submit(self._write_all, self._rows))
        self._handed += len(self._rows)
        self._rows, self._bytes = [], 0
        if len(self._writes) > WAITING:
            self._writes[-WAITING].result()

    def _write_all(self, rows: list[tuple[int, Sample, Any, Any]]) -> None:
        for row, sample, tokens, codes in rows:
            try:
                self._write(row, sample.id, tokens, codes)
            except MediaError as error:
                self._unwritten.append(Failure(row, sample.media[0], str(error)))

    def commit(self) -> UnitReport:
        with self._stack:
            for write in self._writes:
                write.result()
        failures = sorted(self.failures + self._unwritten, key=lambda item: item.row or 0)
        return UnitReport(self._handed - len(self._unwritten), tuple(failures))


def check_space(store: LatentStore, tokens: Array, codes: Array | None, rows: int) -> None:
    """Raise LaryError without disk space for so many rows like this one."""
    dtype, folder = store.identity.dtype, store.folder
    # The little that a container adds is left out.
    size = tokens.size * (4 if dtype == "float32" else 2)
    need = rows * (size + (0 if codes is None else codes.nbytes))
    free = shutil.disk_usage(folder).free
    if need > free:
        shape = "x".join(map(str, tokens.shape))
        raise LaryError(
            f"{rows} rows of {shape} {dtype} need {need / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left: "
            "free some, choose --dtype or --pool, or another LARY_LA_DIR."
        )
