"""``lary check-model``: a model on generated frames on this machine, the first thing an author runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lary.configs import CheckModelConfig
from lary.models.running import MEDIA, LoadedEncoder, build
from lary.models.spec import ModelContext, ModelSpec, locate_weights, with_latent
from lary.runtime import pick_devices
from lary.types import LaryError, Latents, Media

if TYPE_CHECKING:
    import torch

FRAME_SIZE = 200
BATCH = 3
REPEATS = 3
DIFFERENT = 1e-3
"""Share of the largest token by which tokens of the same sample may differ."""


def moving_square(frames: int, seed: int) -> npt.NDArray[np.uint8]:
    """A clip (T, H, W, 3) of a textured square that moves over a noisy ground; another seed, another clip."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(60, 120, (FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)
    square = rng.integers(120, 255, (50, 50, 3), dtype=np.uint8)
    start, step = rng.integers(10, 60, 2), rng.integers(4, 10, 2)
    clip = np.repeat(ground[None], frames, axis=0)
    for index in range(frames):
        row, column = start + step * index
        clip[index, row : row + 50, column : column + 50] = square
    return clip


class ModelCheck:
    """A model run on pairs and clips: shapes, range, determinism, use of the last frame, time.

    Attributes:
        lines: what was measured, to print.
        problems: what is wrong with the model.

    Raises:
        UsageError, LaryError: its weights aren't there or don't fit.
    """

    def __init__(self, spec: ModelSpec, config: CheckModelConfig, settings: Mapping[str, str]) -> None:
        spec = with_latent(spec, config.latent)
        device = pick_devices(config.gpus, config.device)[0]
        weights = locate_weights(spec, dict(settings), config.weights)
        context = ModelContext(device, config.protocol, weights, config.revision, config.seed, settings)
        started = time.perf_counter()
        self.encoder: LoadedEncoder = build(spec, context, precision=config.precision, compiled=config.compile)
        self.config = config
        self.lines = [f"{spec.name} on {device}, {config.precision}, protocol {config.protocol}"]
        self.problems: list[str] = []
        self.note("ready after", f"{time.perf_counter() - started:.1f} s")
        for frames, media in MEDIA.items():
            try:
                self.check_media(media, frames)
            except LaryError as error:
                self.problems.append(f"{media}: {error}")

    def note(self, name: str, text: str) -> None:
        self.lines.append(f"  {name:24} {text}")

    def text(self) -> str:
        """Everything that was found, problems last."""
        verdict = [f"  PROBLEM: {problem}" for problem in self.problems] or ["  everything as it should be"]
        return "\n".join([*self.lines, *verdict])

    def encode(self, *clips: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, Latents]:
        """Tokens of a batch of decoded clips in float32 on the CPU, and the latents as the model gives them."""
        import torch

        with torch.inference_mode():
            latents = self.encoder.encode(torch.from_numpy(np.stack(clips)))
            if self.encoder.device.startswith("cuda"):
                torch.cuda.synchronize()
        return latents.tokens.float().cpu(), latents

    def check_media(self, media: Media, frames: int) -> None:
        """All checks on image pairs or on clips. Raises LaryError for an answer that contradicts the record."""
        seed, strict = self.config.seed, self.config.protocol == "corrected"
        clips = [moving_square(frames, seed + number) for number in range(BATCH)]
        tokens, latents = self.encode(*clips)
        shape = " x ".join(map(str, tokens.shape[1:]))
        self.note(f"{media}: tokens", f"{shape}, {latents.tokens.dtype}".replace("torch.", ""))
        if latents.codes is not None:
            used, total = len(set(latents.codes.flatten().tolist())), latents.codes.numel()
            self.note(f"{media}: codes", f"{tuple(latents.codes.shape[1:])}, {used} different ones in {total}")
        if share := float((~tokens.isfinite()).float().mean()):
            self.problems.append(f"{media}: tokens are not finite ({share:.0%} NaN or infinite); extraction skips them")
            return
        low, mean, high = float(tokens.min()), float(tokens.mean()), float(tokens.max())
        self.note(f"{media}: range", f"{low:.3g} to {high:.3g}, mean {mean:.3g}, std {float(tokens.std()):.3g}")

        repeated = float((self.encode(*clips)[0] - tokens).abs().max())
        alone = float((self.encode(clips[0])[0][0] - tokens[0]).abs().max())
        for name, difference in (("again", repeated), ("alone", alone)):
            self.note(f"{media}: {name}", f"differs by up to {difference:.2g}" if difference else "bit-identical")
        if strict and max(repeated, alone) > DIFFERENT * max(float(tokens.abs().max()), 1e-12):
            self.problems.append(f"{media}: tokens depend on chance or on the batch that a sample is in")

        changed = clips[0].copy()
        changed[-1] = moving_square(1, seed + 99)[0]
        seen = float((self.encode(changed)[0][0] - tokens[0]).abs().max()) > 0
        self.note(f"{media}: last frame", "is seen" if seen else "is NOT seen")
        if strict and not seen:
            self.problems.append(f"{media}: tokens don't depend on the last frame, so they can't hold an action")

        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            self.encode(clips[0])
            times.append(time.perf_counter() - started)
        self.note(f"{media}: time", f"{1000 * sorted(times)[len(times) // 2]:.1f} ms, alone in its batch")
