"""The lists and the check of models: ``lary models`` and ``lary check-model``."""

from __future__ import annotations

import csv
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import lary
from lary.configs import CheckModelConfig
from lary.models.choices import CHOICES, LATER, with_choices
from lary.models.spec import MODELS, ModelContext, ModelSpec, builtin_tables, locate_weights, remedy
from lary.registry import aligned
from lary.types import LaryError, Media, UsageError, as_path

if TYPE_CHECKING:
    from lary.arrays import Pixels
    from lary.models.running import LoadedEncoder
    from lary.types import Latents

REFERENCE = Path(lary.__file__).parent / "results" / "reference"
"""Tables of the benchmark's paper."""


def weights_state(spec: ModelSpec, values: Mapping[str, str]) -> tuple[bool, str]:
    """Whether a model's weights are here, and where or what is missing."""
    if not spec.weights:
        return True, "needs none"
    try:
        place = locate_weights(spec, values)
    except UsageError as error:
        return False, str(error)
    if place and as_path(place).exists():
        return True, f"here: {place}"
    return False, f"would be fetched from the hub: {place}. {remedy(spec, 'them')}"


def shape_text(shape: tuple[int, ...]) -> str:
    """``2 x 256 x 1024``, or a dash where the record doesn't say."""
    return " x ".join(map(str, shape)) if shape else "-"


def models_table(values: Mapping[str, str]) -> str:
    rows: list[tuple[str, ...]] = [("key", "paradigm", "D", "pair", "clip", "params (M)", "weights", "licence")]
    for spec in MODELS:
        here, _ = weights_state(spec, values)
        state = "none needed" if not spec.weights else "here" if here else "missing"
        parameters = f"{spec.parameters_m:.2f}" if spec.parameters_m is not None else "-"
        shapes = map(shape_text, (spec.pair_shape, spec.clip_shape))
        rows.append((spec.name, spec.paradigm, str(spec.dim or "-"), *shapes, parameters, state, spec.licence or "-"))
    return "\n".join(aligned(rows))


def model_text(spec: ModelSpec, values: Mapping[str, str]) -> str:
    here, state = weights_state(spec, values)
    if here and spec.dim is None:  # a network of hf:
        from lary.models.running import build

        context = ModelContext("cpu", "corrected", locate_weights(spec, values), None, 0, values)
        spec = replace(spec, parameters_m=build(spec, context).parameters_m)
    rows = [*facts(spec), ("weights", state)]
    if spec.backbone:
        _, state = weights_state(replace(spec, weights=spec.backbone, backbone=None), values)
        rows.append(("backbone", f"needed where the weights hold none; {state}"))
    return "\n".join([spec.name, *(f"  {name:12} {text}" for name, text in rows)])


def facts(spec: ModelSpec) -> list[tuple[str, str]]:
    frames = spec.preprocess
    resize = f"{frames.size} x {frames.size}"
    if frames.short_side:
        resize = f"short side {frames.short_side}, then centre {frames.size}"
    later = [(name, getattr(frames, name)) for name in LATER]
    own = [f", {name} {value}" for name, value in later if value != LATER[name]]
    return [
        ("what", spec.description),
        ("paradigm", spec.paradigm),
        ("tokens", f"{shape_text(spec.pair_shape)} per pair, {shape_text(spec.clip_shape)} per clip of nine frames"),
        ("parameters", f"{spec.parameters_m:.2f} million" if spec.parameters_m is not None else "-"),
        ("frames", f"{resize}, {frames.resize}{''.join(own)}"),
        ("pixels", f"/ {frames.scale:g}, mean {frames.mean}, std {frames.std}"),
        ("reference", spec.reference or "-"),
        ("licence", spec.licence or "-"),
        *(("published", numbers) for numbers in published_numbers(spec)),
        *(("paper", difference) for difference in spec.paper_differences),
        *(("known", note) for note in spec.notes),
    ]


def published_numbers(spec: ModelSpec) -> list[str]:
    """A model's numbers in the paper's tables, one line per table."""
    network, paper = spec.options.get("network", {}), builtin_tables()["paper"]
    titles, sizes = paper["titles"].items(), {name: str(network.get(field)) for name, field in paper["ablated"].items()}
    found = {title: row for table, title in titles for row in paper_rows(table) if row["model"] == spec.name}
    # Shared settings of ablations are repeated, with the same numbers.
    for row in paper_rows("lam_ablation"):
        if sizes.items() <= row.items():
            found["ablations"] = row
    if not found and spec.weights:
        return ["the paper's tables have no numbers of this model"]
    return [
        f"{title}: " + ", ".join(f"{name} {value}" for name, value in row.items() if name not in paper["facts"])
        for title, row in found.items()
    ]


@functools.cache
def paper_rows(name: str) -> list[dict[str, str]]:
    """Rows of one of the paper's tables, arXiv 2604.11689."""
    with (REFERENCE / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# The check of one model

BATCH, FLIPPED = 3, 0.1
"""Clips; share of codes that may change with the batch's size."""


def moving_texture(frames: int, seed: int) -> Pixels:
    """A clip (T, 200, 200, 3) of a moving coarse texture, drawn from the seed."""
    import numpy as np

    coarse = np.random.default_rng(seed).integers(0, 256, (25, 25, 3), np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return np.stack([np.roll(picture, (5 * step, 3 * step), (0, 1)) for step in range(frames)])


@dataclass
class ModelCheck:
    """A model that is run on pairs and clips: what was measured, and what is wrong."""

    encoder: LoadedEncoder
    config: CheckModelConfig
    lines: list[str]
    problems: list[str] = field(default_factory=list)

    def note(self, name: str, text: str) -> None:
        self.lines.append(f"  {name:24} {text}")

    def text(self) -> str:
        verdict = [f"  PROBLEM: {problem}" for problem in self.problems] or ["  everything as it should be"]
        return "\n".join([*self.lines, *verdict])

    def encode(self, *clips: Pixels) -> Latents:
        """Latents of a batch of decoded clips, tokens in float32 on the CPU."""
        import numpy as np
        import torch

        with torch.inference_mode():
            latents = self.encoder.encode(torch.from_numpy(np.stack(clips)))
            return replace(latents, tokens=latents.tokens.float().cpu())

    def check_media(self, media: Media, frames: int) -> None:
        """Check shape, range, repetition, last frame, time."""
        seed, strict = self.config.seed, self.config.protocol == "corrected"
        clips = [moving_texture(frames, seed + number) for number in range(BATCH)]
        if self.encoder.spec.preprocess.resize == "native":
            clips = [clip[:, :160] for clip in clips]  # not square
        latents = self.encode(*clips)
        tokens, codes = latents.tokens, latents.codes
        self.note(f"{media}: tokens", shape_text(tokens.shape[1:]))
        if codes is not None:
            used = len(codes.unique())
            self.note(f"{media}: codes", f"{tuple(codes.shape[1:])}, {used} different ones in {codes.numel()}")
        if share := float((~tokens.isfinite()).float().mean()):
            self.problems.append(f"{media}: tokens are not finite ({share:.0%} NaN or infinite); extraction skips them")
            return
        middle = f"mean {tokens.mean():.3g}, std {tokens.std():.3g}"
        self.note(f"{media}: range", f"{tokens.min():.3g} to {tokens.max():.3g}, {middle}")

        again = self.encode(*clips)
        started = time.perf_counter()
        alone = self.encode(clips[0])
        seconds = time.perf_counter() - started
        for name, found in (("again", again), ("alone", alone)):
            own = tokens[: len(found.tokens)]
            difference, flipped = (found.tokens - own).abs(), 0
            if codes is not None and found.codes is not None and self.encoder.device != "cpu":
                # Kernels may round a code to its neighbour.
                same = (found.codes == codes[: len(own)]).cpu()
                flipped = int((~same).sum())
                if same.numel() == own[..., 0].numel():  # tokens are rows of the codebook
                    difference = difference * same.reshape(own.shape[:-1])[..., None]
                self.note(f"{media}: {name}, codes", f"{flipped} of {same.numel()} are others")
            largest = float(difference.max())
            self.note(f"{media}: {name}", f"differs by up to {largest:.2g}" if largest else "bit-identical")
            bound = self.encoder.different * max(float(tokens.abs().max()), 1e-12)
            if strict and (largest > bound or flipped > FLIPPED * own[..., 0].numel()):
                self.problems.append(f"{media}: tokens depend on chance or on the batch that a sample is in")

        changed = clips[0].copy()
        changed[-1] = moving_texture(1, seed + 99)[0, : changed.shape[1]]
        seen = bool((self.encode(changed).tokens != tokens[:1]).any())
        self.note(f"{media}: last frame", "is seen" if seen else "is NOT seen")
        if strict and not seen:
            self.problems.append(f"{media}: tokens don't depend on the last frame, so they can't hold an action")
        self.note(f"{media}: time", f"{1000 * seconds:.1f} ms, alone in its batch")


def check_model(spec: ModelSpec, config: CheckModelConfig, values: Mapping[str, str]) -> ModelCheck:
    """Run a model on generated frames: what extraction would refuse.

    Raises LaryError.
    """
    from lary.models.running import MEDIA, build
    from lary.runtime import pick_devices

    spec = with_choices(spec, **{name: getattr(config, name) for name in (*CHOICES, "name")})
    device = pick_devices(config.gpus, config.device)[0]
    weights = locate_weights(spec, values, config.weights)
    context = ModelContext(device, config.protocol, weights, config.revision, config.seed, values)
    encoder = build(spec, context, precision=config.precision, compiled=config.compile)
    check = ModelCheck(encoder, config, [f"{spec.name} on {device}, {config.precision}, protocol {config.protocol}"])
    if encoder.parameters_m is not None:
        check.note("parameters", f"{encoder.parameters_m:.2f} million")
    for frames, media in MEDIA.items():
        try:
            check.check_media(media, frames)
        except LaryError as error:
            check.problems.append(f"{media}: {error}")
    return check
