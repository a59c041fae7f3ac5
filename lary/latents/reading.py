"""The reading stage: worker processes decode and resize into shared memory.

The memory is a ring of batches; nothing grows with the data set. A file that
hangs or crashes a decoder costs its sample only. Processes are used again.
"""

import atexit
import errno
import math
import mmap
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from lary.arrays import Pixels
from lary.files import media_facts
from lary.latents.choice import read_chosen
from lary.models.preprocess import to_planes
from lary.models.spec import Preprocess, with_tuples
from lary.types import Failure, LaryError, Sample
from lary.workers import Answer, Answers, NoAnswer, Pool, Question

SETUP = f"{__name__}:reader"
CHUNK = 8
"""Most samples that a worker gets at once: few messages, work for all."""
AHEAD = 3
"""Samples read ahead per worker, and at least two batches."""


@dataclass(eq=False)
class Batch:
    """Rows that go through the network together.

    Attributes:
        places: the position of every row in the batch, in [0, B).
        clips: (B, T, 3, H, W) uint8 for the largest T; black where nothing
            could be read. `Readers` own the memory and reuse it.
        problems: why rows could not be read.
        media, shapes: `media_facts` and (T, H, W) of the others.
    """

    unit: int
    rows: Sequence[int]
    places: Sequence[int]
    samples: Sequence[Sample]
    paths: Sequence[Sequence[str]]
    clips: Pixels = field(default_factory=lambda: np.empty(0, np.uint8))
    problems: dict[int, str] = field(default_factory=dict)
    media: dict[str, str] = field(default_factory=dict)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    slot: int = -1
    answers: list[Future[Answers]] = field(default_factory=list)

    def clip(self, row: int) -> Pixels:
        """The frames of a row that could be read, (T, 3, H, W) uint8."""
        frames, height, width = self.shapes[row]
        shape = (frames, 3, height, width)
        place = self.places[self.rows.index(row)]
        memory: Pixels = self.clips[place].reshape(-1)
        return memory[: math.prod(shape)].reshape(shape)

    def all_places(self, shape: tuple[int, ...]) -> Pixels:
        """The clips (B, T, 3, H, W) of this shape, in their places.

        Others are black, or not to be used.
        """
        frames, *size = shape
        if tuple(size) == self.clips.shape[3:]:
            return self.clips[:, :frames]
        found = np.zeros((len(self.clips), frames, 3, *size), np.uint8)
        for row, place in zip(self.rows, self.places, strict=True):
            if self.shapes.get(row) == shape:
                found[place] = self.clip(row)
        return found

    def wait(self) -> None:
        """Wait until rows are read or given up. Raises LaryError."""
        found = [answer for future in self.answers for answer in future.result()]
        for row, place, paths, answer in zip(self.rows, self.places, self.paths, found, strict=True):
            problem = f"{paths[0]} can't be read: {answer}." if isinstance(answer, NoAnswer) else answer.get("error")
            if problem:
                self.problems[row] = problem
                self.clips[place] = 0
            else:
                self.media |= zip(paths, answer["media"], strict=True)  # type: ignore[index]
                self.shapes[row] = tuple(answer["shape"])  # type: ignore[index]

    def failures(self) -> list[Failure]:
        """The rows that could not be read, with the file at fault or the first."""
        found = []
        for row, sample, paths in zip(self.rows, self.samples, self.paths, strict=True):
            if reason := self.problems.get(row):
                named = (name for name, path in zip(sample.media, paths, strict=True) if path in reason)
                found.append(Failure(row, next(named, sample.media[0]), reason))
        return found


class Readers:
    """Reading processes, and memory that they share by its descriptor.

    The memory has no name in any folder: a killed process leaves nothing.
    """

    def __init__(self, workers: int) -> None:
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("lary-reading")  # not bounded by /dev/shm
        else:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        self._size = 0
        self._memory: mmap.mmap | None = None
        self.pool = Pool(SETUP, workers, arguments=(str(self._descriptor),), pass_fds=(self._descriptor,))

    def read(
        self, batches: Iterable[Batch], preprocess: Preprocess, places: int, frames: int, seconds: float
    ) -> Generator[Batch, None, None]:
        """Read batches ahead; clips are valid until the next one is asked for.

        Batches have B `places` and at most T `frames`; a sample is given up after `seconds`.
        Raises LaryError where memory is short, or no worker process starts.
        """
        workers = len(self.pool.workers)
        # One more than is read ahead: the batch that the caller works on.
        count = 1 + max(2, -(-AHEAD * workers // places))
        memory = self._slots(count, (places, frames, 3, preprocess.size, preprocess.size))
        common = {"preprocess": asdict(preprocess), "size": self._size}
        free, ahead, waiting = deque(range(count)), deque[Batch](), iter(batches)
        try:
            while True:
                while free and (batch := next(waiting, None)) is not None:
                    batch.slot = free.popleft()
                    batch.clips = memory[batch.slot]
                    for place in set(range(places)).difference(batch.places):
                        batch.clips[place] = 0
                    start, step = batch.clips.ctypes.data - memory.ctypes.data, batch.clips.strides[0]
                    questions = [
                        {**common, "paths": paths, "index": list(sample.frame_index), "at": start + place * step}
                        for sample, paths, place in zip(batch.samples, batch.paths, batch.places, strict=True)
                    ]
                    share = min(CHUNK, max(1, -(-len(questions) // workers)))
                    for first in range(0, len(questions), share):
                        batch.answers.append(self.pool.submit(questions[first : first + share], seconds))
                    ahead.append(batch)
                if not ahead:
                    return
                batch = ahead.popleft()
                batch.wait()
                yield batch
                free.append(batch.slot)
        finally:
            self.pool.settle()

    def _slots(self, count: int, shape: tuple[int, ...]) -> Pixels:
        """The memory as (count, *shape) uint8; it grows when it has to."""
        size = count * int(np.prod(shape, dtype=np.int64))
        if size > self._size:
            try:
                os.ftruncate(self._descriptor, size)
                self._memory = mmap.mmap(self._descriptor, size)
            except (OSError, ValueError, OverflowError) as error:
                why = f"There is no memory for {count} batches of {size / count / 1e6:.0f} MB: lower --batch-size."
                if getattr(error, "errno", 0) == errno.EFBIG:
                    need = f"{size / 1e6:.1f} MB of {count} batches"
                    why = f"The limit of a file's size (ulimit -f) is below {need}."
                raise LaryError(why) from error
            self._size = size
        assert self._memory is not None
        return np.ndarray((count, *shape), np.uint8, self._memory)


idle: list[Readers] = []
"""Readers of this process that no extraction uses now."""
_idle_lock = threading.Lock()


@contextmanager
def idle_readers(workers: int) -> Iterator[Readers]:
    """Readers with at least `workers` processes, which stay for the next extraction."""
    with _idle_lock:
        enough = [each for each in idle if len(each.pool.workers) >= workers]
        if enough:
            idle.remove(enough[0])
    readers = enough[0] if enough else Readers(workers)
    try:
        yield readers
    finally:
        with _idle_lock:
            idle.append(readers)


@atexit.register
def _close_readers() -> None:
    while idle:
        idle.pop().pool.close()


def reader(descriptor: str) -> Callable[[Question], Answer]:
    """Make the function that puts a sample into the memory of a descriptor."""
    import av
    import cv2
    from PIL import Image

    Image.init()
    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)
    memory, known, preprocess = mmap.mmap(-1, 1), None, Preprocess()

    def answer(question: Question) -> Answer:
        """Read one sample; the answer has its ``media`` facts, or the ``error``."""
        nonlocal memory, known, preprocess
        if known != (common := (question["size"], question["preprocess"])):
            memory = mmap.mmap(int(descriptor), question["size"])
            preprocess = Preprocess(**with_tuples(question["preprocess"]))
            known = common
        try:
            paths = [Path(path) for path in question["paths"]]
            media = list(map(media_facts, paths))  # first, so that a change meanwhile is noticed
            frames = read_chosen(paths, question["index"], preprocess)
            count, (height, width, _) = len(frames), frames[0].shape
            shape = (count, 3, height, width)
            to_planes(frames, np.ndarray(shape, np.uint8, memory, question["at"]))
            return {"media": media, "shape": [count, height, width]}
        except LaryError as error:
            return {"error": str(error)}
        except MemoryError:
            return {"error": "It does not fit into memory."}
        except Exception as error:  # whatever a decoder raises concerns this file alone
            return {"error": f"{type(error).__name__}: {error}"}

    return answer
