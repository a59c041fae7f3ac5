"""Features of a frozen backbone in a file, for all trainings that see the same frames."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lary.files import cannot_write, digest
from lary.lam.data import PairMixture
from lary.models.preprocess import DeviceNormaliser
from lary.types import UsageError


class FeaturePairs:
    """The pairs of a mixture as features (2, H, W, D) float32, each encoded once. Raises WriteError, UsageError."""

    def __init__(self, mixture: PairMixture, backbone: Any, folder: Path, device: str) -> None:
        sizes = backbone.sizes
        self._mixture = mixture
        self._backbone = backbone
        self._device = device
        if backbone.encode is None or sizes.get("pixel_output"):
            raise UsageError(f"--cache-features: '{backbone.spec.name}' predicts pixels; leave it out.")
        self._normalise = DeviceNormaliser(backbone.preprocess, device)
        self._first: dict[tuple[str, str], int] = {}
        frames = 0
        side = int(sizes["image_size"] / sizes["patch_size"])
        for part in mixture.parts:
            for unit in map(part.unit, range(part.count)):
                self._first[part.name, unit.id] = frames
                frames += unit.frames or 2
        inputs = repr(backbone.preprocess), repr(self._first)
        # The number tells files apart from those of features that weren't normed.
        name = digest("2", backbone.spec.name, backbone.identity.digest, *inputs)
        file = folder / f"features_{name}"
        self._rows = _mapped(file.with_suffix(".f32"), (frames, side, side, sizes["dim"]), np.float32)
        self._known = _mapped(file.with_suffix(".known"), (frames,), np.bool_)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mixture, name)

    def batch(self, step: int, numbers: Sequence[int]) -> Tensor:
        """Features (B, 2, H, W, D) of samples."""
        return self._features(numbers, lambda: self._mixture.batch(step, numbers))

    def heldout(self, pairs: int) -> Tensor:
        """Features of the held-out pairs."""
        return self._features(range(pairs), lambda: self._mixture.heldout(pairs), heldout=True)

    @torch.no_grad()
    def _features(self, numbers: Sequence[int], read: Callable[[], Tensor], **where: bool) -> Tensor:
        picked = [self._mixture.pick(number, **where) for number in numbers]
        rows = np.array([np.add(pair, self._first[part.name, unit.id]) for part, unit, pair in picked])
        new = ~self._known[rows]
        if new.any():
            parts = (self._normalise(some.to(self._device)) for some in read().split(32))
            found = torch.cat([self._backbone.encode(part).float().cpu() for part in parts])
            self._rows[rows[new]] = found.numpy()[new]
            self._known[rows] = True  # afterwards, as the process may be killed
        return torch.from_numpy(self._rows[rows])


def _mapped(file: Path, shape: tuple[int, ...], kind: type) -> Any:
    """A file as an array, its space reserved."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            os.posix_fallocate(stream.fileno(), 0, math.prod(shape) * np.dtype(kind).itemsize)
    except OSError as error:
        raise cannot_write(file, error) from error
    return np.memmap(file, kind, "r+", shape=shape)
