"""Made pairs and tiny trainings on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lary.lam.configs import TrainLamConfig
from lary.lam.network import FrozenBackbone
from lary.lam.training import LamTraining
from lary.models.spec import MODELS, Preprocess
from lary.probes.training import Session
from lary.types import WeightsIdentity

SIZES: dict[str, Any] = {
    "dim": 16, "quant_dim": 8, "codebook_size": 8, "image_size": 16, "patch_size": 2, "spatial_depth": 1,
    "temporal_depth": 1, "dim_head": 8, "heads": 2, "code_seq_len": 4, "patch_input": True, "pixel_output": True,
}  # fmt: skip
"""Of a network of pixels, 16 x 16."""
FEATURES = {"dim": 12, "patch_input": False, "pixel_output": False}
"""What is other in one of features."""


class MadePairs:
    """A bright square on a drawn background, which moves by up to four pixels."""

    def __init__(self, *, still: bool = False, features: bool = False, broken: Sequence[int] = ()) -> None:
        self.still, self.features, self.broken = still, features, broken

    def pair(self, number: int) -> np.ndarray:
        draw = np.random.default_rng([7, number])
        frames = np.repeat(draw.integers(0, 120, (1, 3, 4, 4), np.uint8), 2, axis=0).repeat(4, 2).repeat(4, 3)
        place = draw.integers(4, 9, 2)
        for frame, shift in zip(frames, (0, 0 if self.still else draw.integers(-4, 5, 2)), strict=True):
            top, left = place + shift
            frame[:, top : top + 4, left : left + 4] = 255
        return frames

    def batch(self, step: int, numbers: Sequence[int]) -> Tensor:
        found = torch.from_numpy(np.stack([self.pair(number) for number in numbers]))
        if self.features:  # as a cache gives them: (B, 2, 8, 8, 12)
            found = F.pixel_unshuffle(found / 255, 2).movedim(2, -1)
            found[[number in self.broken for number in numbers]] = torch.nan
        return found

    def ids(self, numbers: Sequence[int]) -> list[str]:
        return [f"made/{number}" for number in numbers]

    def heldout(self, count: int) -> Tensor:
        return self.batch(0, range(10**6, 10**6 + count))

    def manifest(self) -> dict[str, Any]:
        return {"made": self.still}


def made_training(
    *, folder: Path | None = None, pairs: MadePairs | None = None, session: dict[str, Any] | None = None,
    sizes: dict[str, Any] | None = None, **options: Any,
) -> LamTraining:  # fmt: skip
    """A tiny training of pixels, of which options, sizes and surroundings may be others."""
    given = {"steps": 20, "batch_size": 6, "lr": 1e-3, "monitor_pairs": 16, "validate_every": 10, **options}
    config = TrainLamConfig(backbone="lapa", dataset=("made",), out=folder or Path(), **given)
    frames = Preprocess(size=16)
    backbone = FrozenBackbone(MODELS.get("lapa"), {**SIZES, **(sizes or {})}, frames, WeightsIdentity())
    own = Session(protocol=config.recipe, seed=config.seed, folder=folder, **(session or {}))
    return LamTraining(config, backbone, pairs or MadePairs(), own)


def losses(training: LamTraining) -> list[float]:
    """The losses of the curve, one for ten steps."""
    return [row["loss"] for row in training.curves["train"]]
