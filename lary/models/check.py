"""``lary check-model``: a model on generated frames on this machine, the first thing an author runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.configs import CheckModelConfig
from lary.models.preprocess import prepare
from lary.models.running import MEDIA, LoadedEncoder, build
from lary.models.spec import ModelContext, ModelSpec, locate_weights, with_latent
from lary.runtime import pick_devices
from lary.types import LaryError, Latents, Media

if TYPE_CHECKING:
    import torch

FRAME_SIZE = 200
BATCH = 3
REPEATS = 3


@dataclass
class Report:
    """Lines to print, and what is wrong with the model."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def tell(self, name: str, text: str) -> None:
        self.lines.append(f"  {name:24} {text}")

    def text(self) -> str:
        """Everything that was found, problems last."""
        verdict = [f"  PROBLEM: {problem}" for problem in self.problems] or ["  everything as it should be"]
        return "\n".join([*self.lines, *verdict])


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


def check_model(spec: ModelSpec, config: CheckModelConfig, settings: Mapping[str, str]) -> Report:
    """Run a model on pairs and clips: shapes, range, determinism, use of the second frame, time.

    Raises:
        UsageError, LaryError: its weights aren't there or don't fit.
    """
    spec = with_latent(spec, config.latent)
    device = pick_devices(config.gpus, config.device)[0]
    weights = locate_weights(spec, dict(settings), config.weights)
    context = ModelContext(device, config.protocol, weights, config.revision, config.seed, settings)
    started = time.perf_counter()
    encoder = build(spec, context, precision=config.precision, compiled=config.compile)
    report = Report([f"{spec.name} on {device}, {config.precision}, protocol {config.protocol}"])
    report.tell("ready after", f"{time.perf_counter() - started:.1f} s")
    for frames, media in MEDIA.items():
        check_media(Trial(encoder, spec, config, device, media, frames), report)
    return report


@dataclass(frozen=True)
class Trial:
    """A model and one kind of sample."""

    encoder: LoadedEncoder
    spec: ModelSpec
    config: CheckModelConfig
    device: str
    media: Media
    frames: int

    def clip(self, seed: int) -> npt.NDArray[np.uint8]:
        return moving_square(self.frames, self.config.seed + seed)

    def encode(self, *clips: npt.NDArray[np.uint8]) -> Latents:
        """Latents of a batch of decoded clips."""
        import torch

        preprocess = self.spec.preprocessing(self.config.protocol, self.media)
        batch = torch.from_numpy(np.stack([prepare(clip, preprocess) for clip in clips])).to(self.device)
        with torch.inference_mode():
            latents = self.encoder.encode(batch)
            if self.device.startswith("cuda"):
                torch.cuda.synchronize()
        return latents


def check_media(trial: Trial, report: Report) -> None:
    """All checks on image pairs or on clips."""
    name = trial.media
    clips = [trial.clip(seed) for seed in range(BATCH)]
    try:
        batch = trial.encode(*clips)
    except LaryError as error:
        report.problems.append(f"{name}: {error}")
        return
    tokens = batch.tokens.float().cpu()
    shape = tuple(tokens.shape[1:])
    report.tell(f"{name}: tokens", f"{' x '.join(map(str, shape))}, {batch.tokens.dtype}".replace("torch.", ""))
    if batch.codes is not None:
        used, total = len(set(batch.codes.flatten().tolist())), batch.codes.numel()
        report.tell(f"{name}: codes", f"{tuple(batch.codes.shape[1:])}, {used} different ones in {total}")
    finite = bool(tokens.isfinite().all())
    if not finite:
        share = float((~tokens.isfinite()).float().mean())
        report.problems.append(
            f"{name}: tokens are not finite ({share:.0%} NaN or infinite); extraction skips such rows"
        )
        return
    low, mean, high = float(tokens.min()), float(tokens.mean()), float(tokens.max())
    report.tell(f"{name}: range", f"{low:.3g} to {high:.3g}, mean {mean:.3g}, std {float(tokens.std()):.3g}")
    check_determinism(trial, clips, tokens, report)
    check_second_frame(trial, clips[0], tokens[0], report)
    report.tell(f"{name}: time", f"{1000 * seconds_per_sample(trial, clips[0]):.1f} ms, alone in its batch")


def check_determinism(trial: Trial, clips: list[Any], tokens: torch.Tensor, report: Report) -> None:
    """The same sample again, and alone instead of in a batch."""
    again = trial.encode(*clips).tokens.float().cpu()
    alone = trial.encode(clips[0]).tokens.float().cpu()[0]
    repeated = float((again - tokens).abs().max())
    batched = float((alone - tokens[0]).abs().max())
    report.tell(f"{trial.media}: again", "same bits" if repeated == 0 else f"differs by up to {repeated:.2g}")
    report.tell(f"{trial.media}: alone", "same bits" if batched == 0 else f"differs by up to {batched:.2g}")
    scale = max(float(tokens.abs().max()), 1e-12)
    if trial.config.protocol == "corrected" and max(repeated, batched) > 1e-3 * scale:
        report.problems.append(f"{trial.media}: tokens depend on chance or on the batch that a sample is in")


def check_second_frame(trial: Trial, clip: npt.NDArray[np.uint8], tokens: torch.Tensor, report: Report) -> None:
    """Whether another last frame gives other tokens, and another sample does."""
    changed = clip.copy()
    changed[-1] = moving_square(1, trial.config.seed + 99)[0]
    difference = float((trial.encode(changed).tokens.float().cpu()[0] - tokens).abs().max())
    report.tell(f"{trial.media}: last frame", "is seen" if difference > 0 else "is NOT seen")
    if difference == 0 and trial.config.protocol == "corrected":
        report.problems.append(f"{trial.media}: tokens don't depend on the last frame, so they can't hold an action")


def seconds_per_sample(trial: Trial, clip: npt.NDArray[np.uint8]) -> float:
    """Median time of `encode` on one sample, preprocessing included."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        trial.encode(clip)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]
