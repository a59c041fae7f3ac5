"""Pictures are written, but nothing is drawn on them: that takes seconds each."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.figure
import pytest


@pytest.fixture(scope="package", autouse=True)
def blank_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "draw", lambda *_: None)
        yield
