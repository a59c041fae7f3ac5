"""The reading stage: samples decoded and resized by worker processes, straight into memory that all of them share.

The memory is a ring of batches; nothing grows with the data set. A file that hangs a decoder or crashes it costs its
sample only. The processes stay for the next extraction of the same process.
"""

from __future__ import annotations

import atexit
import mmap
import os
import queue
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lary.latents.reading_worker import setup
from lary.models.spec import Preprocess
from lary.types import Failure, LaryError, Sample
from lary.workers import Hung, NoAnswer, Question, Worker

COMMAND = (sys.executable, "-m", "lary.latents.reading_worker")
CHUNK = 8
"""Most samples that a worker gets at once: few messages, and still work for all."""
AHEAD = 3
"""Samples read ahead per worker, and at least two batches."""
AT_WORK = 2
"""Batches whose memory the encoder holds: the one in hand, and the one before it whose copy may still go on."""
SECONDS_TO_STOP = 5.0


@dataclass(eq=False)
class Batch:
    """Rows that go through the network together.

    Attributes:
        unit: the unit of work that they belong to.
        places: the place of every row in the batch.
        lengths: frames T of every row.
        clips: (B, T, 3, H, W) uint8, B places and the largest T; black where nothing could be read.
        problems: why rows could not be read.
    """

    unit: int
    rows: Sequence[int]
    places: Sequence[int]
    samples: Sequence[Sample]
    questions: Sequence[Question]
    lengths: Sequence[int]
    clips: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    problems: dict[int, str] = field(default_factory=dict)
    slot: int = -1
    left: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, index: int, problem: str) -> None:
        """One row was read, or could not be."""
        if problem:
            self.clips[self.places[index]] = 0
        with self.lock:
            if problem:
                self.problems[self.rows[index]] = problem
            self.left -= 1
            if not self.left:
                self.done.set()

    def failures(self) -> list[Failure]:
        """The rows that could not be read, with the file that the reason names, or else the first."""
        found = []
        for row, sample, question in zip(self.rows, self.samples, self.questions, strict=True):
            if reason := self.problems.get(row):
                named = (name for name, path in zip(sample.media, question["paths"], strict=True) if path in reason)
                found.append(Failure(row, next(named, sample.media[0]), reason))
        return found


@dataclass
class _Chunk:
    """Some rows of a batch, for one worker."""

    batch: Batch
    indices: Sequence[int]
    told: Question
    seconds: float


class Ring:
    """Memory for a few batches, shared with the workers; only its descriptor is inherited, nothing has a name."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("lary-reading")  # not bounded by the size of /dev/shm
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        self.size = 0
        self._memory: mmap.mmap | None = None

    def slots(self, count: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """The memory as (count, *shape) uint8; it grows when it has to. Raises LaryError."""
        size = count * int(np.prod(shape, dtype=np.int64))
        if size > self.size:
            try:
                os.ftruncate(self.descriptor, size)
                self._memory = mmap.mmap(self.descriptor, size)
            except (OSError, ValueError, OverflowError) as error:
                raise LaryError(
                    f"There is no memory for {count} batches of {size / count / 1e6:.0f} MB: lower --batch-size."
                ) from error
            self.size = size
        assert self._memory is not None
        return np.ndarray((count, *shape), np.uint8, self._memory)


class ReadingPool:
    """Worker processes, each looked after by a thread. They start when there is work for them."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self.ring = Ring()
        self.error: LaryError | None = None
        self._command = command
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._dropping = False
        self._at_work = 0
        self._changed = threading.Condition()

    def grow(self, workers: int) -> None:
        """Have at least so many workers."""
        while len(self._workers) < workers:
            worker = Worker((*self._command, str(self.ring.descriptor)), (self.ring.descriptor,))
            self._workers.append(worker)
            self._threads.append(threading.Thread(target=self._look_after, args=(worker,), daemon=True))
            self._threads[-1].start()

    def submit(self, chunk: _Chunk) -> None:
        """Have some rows read by whoever is free first."""
        with self._changed:
            self._at_work += 1
        self._chunks.put(chunk)

    def settle(self) -> None:
        """Drop what nobody waits for any more; workers that are at something are killed. The pool stays usable."""
        with self._changed:
            if self._at_work:
                self._dropping = True
                for worker in self._workers:
                    worker.kill()
                self._changed.wait_for(lambda: not self._at_work, SECONDS_TO_STOP)
                self._dropping = False
            self.error = None

    def close(self) -> None:
        """End all workers for good."""
        self._dropping = True
        for worker in self._workers:
            self._chunks.put(None)
            worker.kill()
        for thread in self._threads:
            thread.join(SECONDS_TO_STOP)

    def _look_after(self, worker: Worker) -> None:
        told: tuple[int, Question] | None = None
        while (chunk := self._chunks.get()) is not None:
            try:
                told = self._read(worker, chunk, told)
            except LaryError as error:
                self.error = error
                chunk.batch.done.set()
            finally:
                with self._changed:
                    self._at_work -= 1
                    self._changed.notify_all()
        worker.stop()

    def _read(self, worker: Worker, chunk: _Chunk, told: tuple[int, Question] | None) -> tuple[int, Question] | None:
        """Have a chunk read; returns what the worker, counted by its starts, has been told."""
        batch, todo, crashed = chunk.batch, deque(chunk.indices), -1
        while todo and not self._dropping and self.error is None:
            try:
                worker.start()
                if told != (worker.starts, chunk.told):
                    worker.tell([chunk.told])
                    told = (worker.starts, chunk.told)
                worker.tell([batch.questions[index] for index in todo])
                while todo:
                    found = worker.answer(chunk.seconds)
                    batch.finish(todo.popleft(), found.get("error", ""))
            except NoAnswer as error:
                told = None
                # A process may also be killed from outside, say for memory; one that hung would hang again.
                if self._dropping or (crashed != todo[0] and not isinstance(error, Hung)):
                    crashed = todo[0]
                else:
                    index = todo.popleft()
                    batch.finish(index, f"{batch.questions[index]['paths'][0]} can't be read: {error}.")
        return told


class Reading:
    """The reading stage of one extraction.

    Args:
        places: B of every batch.
        frames: the largest T of all samples.
        seconds: after which a sample is given up.
    """

    def __init__(
        self, pool: ReadingPool, preprocess: Preprocess, places: int, frames: int, workers: int, seconds: float
    ) -> None:
        count = AT_WORK + max(2, -(-AHEAD * workers // places))
        size = preprocess.size
        self.memory = pool.ring.slots(count, (places, frames, 3, size, size))
        self._pool = pool
        self._told = setup(preprocess, pool.ring.size)
        self._workers, self._seconds = workers, seconds
        self._free = deque(range(count))

    def read(self, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
        """Batches in their order, read ahead; each has to be given back with `release` once its clips were used.

        Raises:
            LaryError: no worker process starts.
        """
        self._pool.grow(self._workers)
        waiting = iter(batches)
        ahead: deque[Batch] = deque()
        try:
            while True:
                while self._free and (batch := next(waiting, None)) is not None:
                    self._start(batch)
                    ahead.append(batch)
                if not ahead:
                    return
                ahead[0].done.wait()
                if self._pool.error is not None:
                    raise self._pool.error
                yield ahead.popleft()
        finally:
            self._pool.settle()

    def release(self, batch: Batch) -> None:
        """Give the memory of a batch back."""
        self._free.append(batch.slot)

    def _start(self, batch: Batch) -> None:
        batch.slot = self._free.popleft()
        batch.clips = self.memory[batch.slot]
        for place in set(range(len(batch.clips))).difference(batch.places):
            batch.clips[place] = 0
        batch.left = len(batch.rows)
        start, step = batch.clips.ctypes.data - self.memory.ctypes.data, batch.clips.strides[0]
        for question, place in zip(batch.questions, batch.places, strict=True):
            question["at"] = start + place * step
        share = min(CHUNK, max(1, -(-len(batch.rows) // self._workers)))
        for first in range(0, len(batch.rows), share):
            indices = range(first, min(first + share, len(batch.rows)))
            self._pool.submit(_Chunk(batch, indices, self._told, self._seconds))


_pools: list[ReadingPool] = []
_pools_lock = threading.Lock()


def borrow_pool() -> ReadingPool:
    """A pool of this process that nobody uses; `give_back` it."""
    with _pools_lock:
        return _pools.pop() if _pools else ReadingPool()


def give_back(pool: ReadingPool) -> None:
    """Keep a pool for the next extraction of this process."""
    with _pools_lock:
        _pools.append(pool)


@atexit.register
def close_pools() -> None:
    """End the workers of all pools that nobody uses."""
    with _pools_lock:
        while _pools:
            _pools.pop().close()
