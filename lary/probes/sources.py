"""Latents as the controls change them: other targets, other frames, fewer dimensions.

Static pairs and shuffled orders act on the axis P, and so only on latents with one step per frame; for others the
frames themselves are changed (`lary.runs.changed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lary.probes.fit import first_not_finite
from lary.probes.outcome import Floats
from lary.types import LaryError, LatentSource, UsageError

Rows = Sequence[int] | npt.NDArray[np.int64]


class NamedSource:
    """Latents that are refused by the name of the sample where one isn't finite; `name` tells it by row."""

    def __init__(self, source: LatentSource, name: Callable[[int], str]) -> None:
        self._source, self._name = source, name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._source.shape

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Rows) -> Floats:
        tokens: Floats = self._source.read(rows)
        if (bad := first_not_finite(tokens)) is not None:
            raise LaryError(
                f"The latents of {self._name(int(rows[bad]))} hold NaN or infinity: check the model with "
                "'lary check-model', and extract this split again."
            )
        return tokens


class StaticSource:
    """Latents (P, N, D) whose steps are all the first one: what is left is read off the source frame."""

    def __init__(self, source: LatentSource) -> None:
        self._source = source

    @property
    def shape(self) -> tuple[int, ...]:
        return self._source.shape

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Rows) -> Floats:
        tokens: Floats = self._source.read(rows)
        return np.repeat(tokens[:, :1], tokens.shape[1], axis=1)


class ShuffledOrderSource:
    """Latents (P, N, D) whose steps stand in a random order, drawn once per sample: a pair is turned half the time."""

    def __init__(self, source: LatentSource, seed: int) -> None:
        self._source = source
        steps = np.arange(source.shape[0])
        self._order = np.random.default_rng(seed).permuted(np.tile(steps, (len(source), 1)), axis=1)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._source.shape

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Rows) -> Floats:
        order = self._order[np.asarray(rows, dtype=np.int64)]
        return np.take_along_axis(self._source.read(rows), order[:, :, None, None], axis=1)


class ProjectedSource:
    """Latents whose channels are projected, (..., D) -> (..., k), by one Gaussian matrix drawn from the seed.

    Lengths and angles survive in expectation (Johnson and Lindenstrauss 1984).
    """

    def __init__(self, source: LatentSource, size: int, seed: int) -> None:
        if size < 1 or size >= source.shape[-1]:
            raise UsageError(
                f"--project {size}: must be from 1 to {source.shape[-1] - 1}, since the latents have dimension "
                f"{source.shape[-1]}."
            )
        self._source = source
        draw = np.random.default_rng(seed).standard_normal((source.shape[-1], size))
        self._matrix = (draw / np.sqrt(size)).astype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self._source.shape[:-1], self._matrix.shape[1])

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Rows) -> Floats:
        return np.asarray(self._source.read(rows) @ self._matrix, dtype=np.float32)
