"""Videos without loss: x264 decides differently from run to run, and what is decoded would differ with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import lerobot_files, tree


def write_video(path: Path, frames: Sequence[np.ndarray], *_: object) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(10), options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module", autouse=True)
def lossless_videos() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (tree, lerobot_files):
            patch.setattr(module, "write_video", write_video)
        yield
