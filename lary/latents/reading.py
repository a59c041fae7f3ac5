"""The reading stage: samples decoded and resized by worker processes, straight into memory that all of them share.

The memory is a ring of batches; nothing grows with the data set. A file that hangs a decoder or crashes it costs its
sample only. The processes stay for the next extraction of the same process.
"""

from __future__ import annotations

import atexit
import mmap
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.data.frames import read_frames
from lary.models.preprocess import resize, to_planes
from lary.models.spec import Preprocess
from lary.types import Failure, LaryError, Sample
from lary.workers import Answer, NoAnswer, Pool, Question

SETUP = f"{__name__}:reader"
CHUNK = 8
"""Most samples that a worker gets at once: few messages, and still work for all."""
AHEAD = 3
"""Samples read ahead per worker, and at least two batches."""
AT_WORK = 2
"""Batches whose memory the encoder holds: the current one, and the one before it whose copy may still be running."""


@dataclass(eq=False)
class Batch:
    """Rows that go through the network together.

    Attributes:
        unit: the unit of work that they belong to.
        places: the place of every row in the batch.
        lengths: frames T of every row.
        clips: (B, T, 3, H, W) uint8, B places and the largest T; black where nothing could be read.
        problems: why rows could not be read.
        error: why none can be, since no reading process starts.
    """

    unit: int
    rows: Sequence[int]
    places: Sequence[int]
    samples: Sequence[Sample]
    questions: Sequence[Question]
    lengths: Sequence[int]
    clips: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    problems: dict[int, str] = field(default_factory=dict)
    error: LaryError | None = None
    slot: int = -1
    left: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, index: int, found: Answer | NoAnswer | LaryError) -> None:
        """Note that one row was read, or why it could not be."""
        problem = ""
        if isinstance(found, LaryError):
            self.error = found
        elif isinstance(found, NoAnswer):
            problem = f"{self.questions[index]['paths'][0]} can't be read: {found}."
        else:
            problem = found.get("error", "")
        if problem:
            self.clips[self.places[index]] = 0
        with self.lock:
            if problem:
                self.problems[self.rows[index]] = problem
            self.left -= 1
            if not self.left or self.error:
                self.done.set()

    def failures(self) -> list[Failure]:
        """The rows that could not be read, with the file that the reason names, or else the first."""
        found = []
        for row, sample, question in zip(self.rows, self.samples, self.questions, strict=True):
            if reason := self.problems.get(row):
                named = (name for name, path in zip(sample.media, question["paths"], strict=True) if path in reason)
                found.append(Failure(row, next(named, sample.media[0]), reason))
        return found


class Ring:
    """Memory for a few batches, shared with the workers by its descriptor; it has no name in any folder."""

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


class Readers:
    """Reading processes and the memory that they share with this one."""

    def __init__(self, setup: str = SETUP) -> None:
        self.ring = Ring()
        descriptor = self.ring.descriptor
        self.pool = Pool(setup, arguments=(str(descriptor),), pass_fds=(descriptor,))


_idle: list[Readers] = []
_idle_lock = threading.Lock()


@contextmanager
def idle_readers() -> Iterator[Readers]:
    """Readers of this process that nobody uses; they stay for the next extraction."""
    with _idle_lock:
        readers = _idle.pop() if _idle else Readers()
    try:
        yield readers
    finally:
        with _idle_lock:
            _idle.append(readers)


@atexit.register
def _close_readers() -> None:
    while _idle:
        _idle.pop().pool.close()


class Reading:
    """The reading stage of one extraction.

    Args:
        places: B of every batch.
        frames: the largest T of all samples.
        seconds: after which a sample is given up.
    """

    def __init__(
        self, readers: Readers, preprocess: Preprocess, places: int, frames: int, workers: int, seconds: float
    ) -> None:
        count = AT_WORK + max(2, -(-AHEAD * workers // places))
        size = preprocess.size
        self.memory = readers.ring.slots(count, (places, frames, 3, size, size))
        self._pool = readers.pool
        self._common = {"preprocess": asdict(preprocess), "size": readers.ring.size}
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
                if ahead[0].error is not None:
                    raise ahead[0].error
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
        questions = [
            {**question, **self._common, "at": start + place * step}
            for question, place in zip(batch.questions, batch.places, strict=True)
        ]
        share = min(CHUNK, max(1, -(-len(questions) // self._workers)))
        for first in range(0, len(questions), share):
            finish = partial(_finish, batch, first)
            self._pool.submit(questions[first : first + share], self._seconds, finish)


def _finish(batch: Batch, first: int, index: int, found: Answer | NoAnswer | LaryError) -> None:
    batch.finish(first + index, found)


def reader(descriptor: str) -> Callable[[Question], Answer]:
    """What a reading process answers with: it puts a sample's frames into the memory, and returns what was wrong.

    Args:
        descriptor: of the shared memory.
    """
    import av
    import cv2
    from PIL import Image

    Image.init()
    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)
    memory, known, preprocess = mmap.mmap(-1, 1), None, Preprocess()

    def answer(question: Question) -> Answer:
        """Read one sample: ``paths``, ``index`` (frames of a clip) and ``at`` (its place in the memory)."""
        nonlocal memory, known, preprocess
        if known != (common := (question["size"], question["preprocess"])):
            memory = mmap.mmap(int(descriptor), question["size"])
            preprocess = Preprocess(**{name: _tuple(value) for name, value in question["preprocess"].items()})
            known = common
        try:
            paths = [Path(path) for path in question["paths"]]
            found = read_frames(paths, question["index"], preprocess.reader, clamp=preprocess.clamp, noisy=True)
            frames = resize(found, preprocess)
            shape = (len(frames), 3, preprocess.size, preprocess.size)
            to_planes(frames, np.ndarray(shape, np.uint8, memory, question["at"]))
            return {}
        except LaryError as error:
            return {"error": str(error)}
        except MemoryError:
            return {"error": "It does not fit into memory."}
        except Exception as error:  # a reader that fails in a way of its own is a finding about the file
            return {"error": f"{type(error).__name__}: {error}"}

    return answer


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
