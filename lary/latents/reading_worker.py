"""A process that decodes and resizes samples into memory that it shares with the extraction.

``python -m lary.latents.reading_worker DESCRIPTOR`` (see `lary.workers`); the descriptor is that of the shared memory.
"""

from __future__ import annotations

import mmap
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lary.data.frames import read_frames
from lary.models.preprocess import resize, to_planes
from lary.models.spec import Preprocess
from lary.types import LaryError
from lary.workers import Answer, Question, serve


def setup(preprocess: Preprocess, size: int) -> Question:
    """What a worker is told first: the arithmetic of the frames, and how large the shared memory is."""
    return {"preprocess": asdict(preprocess), "size": size}


class Reader:
    """Answers questions: a sample's files go in, its frames lie in shared memory, and the answer is what was wrong."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory: mmap.mmap | None = None
        self._preprocess = Preprocess()

    def answer(self, question: Question) -> Answer | None:
        """Read one sample: ``paths``, ``index`` (frames of a clip) and ``at`` (where it belongs in the memory)."""
        if "size" in question:
            self._memory = mmap.mmap(self._descriptor, question["size"])
            self._preprocess = Preprocess(**{name: _tuple(value) for name, value in question["preprocess"].items()})
            return None
        try:
            self._read([Path(path) for path in question["paths"]], question["index"], question["at"])
            return {}
        except LaryError as error:
            return {"error": str(error)}
        except MemoryError:
            return {"error": "It does not fit into memory."}
        except Exception as error:  # a reader that fails in a way of its own is a finding about the file
            return {"error": f"{type(error).__name__}: {error}"}

    def _read(self, paths: list[Path], index: list[int], at: int) -> None:
        assert self._memory is not None
        how = self._preprocess
        frames = resize(read_frames(paths, index, how.reader, clamp=how.clamp, noisy=True), how)
        shape = (len(frames), 3, how.size, how.size)
        to_planes(frames, np.ndarray(shape, np.uint8, self._memory, at))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def main() -> None:
    """Answer until stdin ends."""
    import av
    import cv2
    from PIL import Image

    Image.init()
    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)
    serve(Reader(int(sys.argv[1])).answer)


if __name__ == "__main__":
    main()
