"""Hours and terabytes of each model's whole row on one H100, computed from counted arithmetic, as a Markdown table.

    python docs/night.py

Counted here: FLOP of a pair and of a clip of nine frames in each network with random weights, the tokens that come out,
and FLOP of a training step of the five published heads on them; the arithmetic itself is left out, so that a CPU does.
Assumed: the rates below, no pauses, and reading beside the arithmetic. Nothing is measured on a GPU.
"""

import math
import sys
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lary.latents.store import token_shape
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.probes.nets import AttentiveProbe
from lary.types import RANDOM

CLIPS, PAIRS, TRAINED, FRAMES, EPOCHS, HEADS, CLASSES = 1.19e6, 0.62e6, 0.833e6, 9, 20, 5, 123
PRODUCTS, CONVOLUTIONS, FP32, PROBE = 400e12, 150e12, 45e12, 350e12
"""FLOP/s: in bfloat16 of products and of convolutions, in float32 without TF32 of both, and of the probe."""
HEAD = ("model", "TFLOP, pair", "clip", "bf16, h", "fp32, h", "probe, h", "store, TB", "read, TB")


def count(spec: ModelSpec, media: Any, encoder: Any) -> tuple[float, float, tuple[int, ...]]:
    """FLOP of products and of convolutions for one sample, and the shape of its tokens."""
    preprocess = spec.preprocessing("corrected", media)
    frames = preprocess.frames or (2 if media == "pair" else FRAMES)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, FlopCounterMode(display=False) as counter, torch.no_grad():
        tokens = encoder.encode(torch.zeros(1, frames, 3, preprocess.size, preprocess.size)).tokens
    found = counter.get_flop_counts()["Global"]
    convolutions = sum(value for name, value in found.items() if "conv" in str(name))
    return sum(found.values()) - convolutions, convolutions, token_shape(tuple(tokens.shape[1:]))


def step(shape: tuple[int, ...]) -> int:
    """FLOP of one head's forward and backward pass for one sample."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        AttentiveProbe(shape[-1], CLASSES)(torch.empty(1, *shape)).sum().backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops()


def row(spec: ModelSpec) -> str:
    """A line of the table."""
    encoder = build(spec, ModelContext("cpu", "corrected", RANDOM), precision="fp32")
    pair, clip = (count(spec, media, encoder) for media in ("pair", "clip"))
    products, convolutions = (CLIPS * clip[at] + PAIRS * pair[at] for at in (0, 1))
    sizes = math.prod(pair[2]), math.prod(clip[2])
    cells = (
        sum(pair[:2]) / 1e12,
        sum(clip[:2]) / 1e12,
        (products / PRODUCTS + convolutions / CONVOLUTIONS) / 3600,
        (products + convolutions) / FP32 / 3600,
        EPOCHS * TRAINED * HEADS * step(clip[2]) / PROBE / 3600,
        2 * (PAIRS * sizes[0] + CLIPS * sizes[1]) / 1e12,
        2 * EPOCHS * TRAINED * sizes[1] / 1e12,
    )
    return f"| {spec.name} | " + " | ".join(f"{cell:.2g}" if cell < 10 else f"{cell:.0f}" for cell in cells) + " |"


if __name__ == "__main__":
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    published = [each for each in MODELS if each.weights and not (each.ablation or each.weights.extra)]
    for each in published:
        if each.name in (sys.argv[1:] or [each.name]):
            print(row(each), flush=True)
