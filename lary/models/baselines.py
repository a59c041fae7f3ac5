"""Baselines that need no weights: what pixels, their differences, optical flow and random features hold of an action.

All give a grid of 8 x 8 tokens. Probes treat tokens as a set, so the hand-made ones end with their cell's position:
row and column of its centre in [-1, 1].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lary.models.networks import NetworkEncoder, check_frames
from lary.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, neighbour_pairs
from lary.models.spec import ModelContext, ModelSpec, Preprocess, register_model
from lary.types import Latents, WeightsIdentity

if TYPE_CHECKING:
    import torch

GRID = 8
"""Cells per side."""
PLACE = 2
"""Values of a token's position."""
FINE = 4
"""Averages per side of a cell, in the baselines made of pixels."""


def cells(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Cut maps (..., C, 8 * side, 8 * side) into cells (..., 64, C * side * side), row by row."""
    front = maps.shape[:-3]
    grid = maps.reshape(*front, -1, GRID, side, GRID, side)
    return grid.movedim((-4, -2), (-5, -4)).reshape(*front, GRID * GRID, -1)


def with_place(tokens: torch.Tensor) -> torch.Tensor:
    """Append row and column of each cell's centre: (..., 64, D) to (..., 64, D + 2)."""
    import torch

    centres = (torch.arange(GRID, device=tokens.device, dtype=tokens.dtype) + 0.5) * (2 / GRID) - 1
    place = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).flatten(0, 1)
    return torch.cat([tokens, place.expand(*tokens.shape[:-1], PLACE)], dim=-1)


@register_model(
    ModelSpec(
        name="pixels",
        paradigm="baseline",
        dim=3 * FINE**2 + PLACE,
        pair_shape=(2, 64, 50),
        clip_shape=(9, 64, 50),
        preprocess=Preprocess(size=GRID * FINE, resize="cv2_area", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        description="Each frame averaged to 32 x 32 pixels: 8 x 8 cells of 4 x 4 colours",
    )
)
class Pixels:
    """Colours of each frame on a coarse grid: P = T, N = 64, D = 50."""

    identity = WeightsIdentity()

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        self._spec, self._device = spec, context.device

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, 32, 32) to tokens (B, T, 64, 50). Raises LaryError for frames of another size."""
        check_frames(self._spec, clips, side=self._spec.preprocess.size)
        return Latents(with_place(cells(clips.to(self._device), FINE)))


@register_model(
    ModelSpec(
        name="frame-difference",
        paradigm="baseline",
        dim=4 * FINE**2 + PLACE,
        # Differences of moving things are about a tenth of the range: divided by 0.1 they reach the probe near 1.
        pair_shape=(1, 64, 66),
        clip_shape=(8, 64, 66),
        preprocess=Preprocess(size=64, resize="cv2_area", std=(0.1, 0.1, 0.1)),
        description="Neighbouring frames: 8 x 8 cells of 4 x 4 mean signed and mean absolute differences",
    )
)
class FrameDifference:
    """What changes between neighbours: P = T - 1, N = 64, D = 66 (red, green, blue signed, grey absolute, position)."""

    identity = WeightsIdentity()

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        self._spec, self._device = spec, context.device
        self._pool = spec.preprocess.size // (GRID * FINE)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, 64, 64) to tokens (B, T - 1, 64, 66). Raises LaryError for frames of another size."""
        import torch

        check_frames(self._spec, clips, side=self._spec.preprocess.size, least=2)
        pairs = neighbour_pairs(clips.to(self._device))
        change = (pairs[:, :, 1] - pairs[:, :, 0]).flatten(0, 1)
        changes = torch.cat([change, change.abs().mean(dim=1, keepdim=True)], dim=1)
        tokens = cells(torch.nn.functional.avg_pool2d(changes, self._pool), FINE)
        return Latents(with_place(tokens.reshape(*pairs.shape[:2], *tokens.shape[1:])))


@register_model(
    ModelSpec(
        name="optical-flow",
        paradigm="baseline",
        dim=4 + PLACE,
        pair_shape=(1, 64, 6),
        clip_shape=(8, 64, 6),
        preprocess=Preprocess(size=128, resize="cv2_area", scale=1.0),
        reference="Kroeger et al. 2016, arXiv 1603.03590",
        description="Dense inverse search flow between neighbouring frames: 8 x 8 cells of mean and spread",
    )
)
class OpticalFlow:
    """Motion between neighbours: P = T - 1, N = 64, D = 6 (mean and standard deviation of right and down, position).

    Flow is in pixels of the 128 x 128 frame, computed on grey levels by OpenCV's DISOpticalFlow, on the CPU.
    """

    identity = WeightsIdentity()

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import cv2

        self._spec, self._device = spec, context.device
        self._cell = spec.preprocess.size // GRID
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, 128, 128) in grey levels 0 to 255 to tokens (B, T - 1, 64, 6).

        Raises:
            LaryError: frames of another size, or only one.
        """
        import numpy as np
        import torch

        check_frames(self._spec, clips, side=self._spec.preprocess.size, least=2)
        calculate: Any = self._flow.calc  # OpenCV's types don't know that it makes its own output
        red, green, blue = clips.cpu().unbind(dim=2)
        grey = (red * 0.299 + green * 0.587 + blue * 0.114).round().byte()  # ITU-R BT.601, as OpenCV converts
        pairs = neighbour_pairs(grey[:, :, None])
        flow = np.stack([calculate(*pair, None) for pair in pairs.flatten(0, 1).squeeze(2).numpy()])
        field = torch.from_numpy(flow).to(self._device).movedim(-1, 1)  # (B * P, 2, H, W)
        blocks = cells(field, self._cell).reshape(*pairs.shape[:2], GRID * GRID, 2, -1)
        return Latents(with_place(torch.cat([blocks.mean(dim=-1), blocks.std(dim=-1, correction=0)], dim=-1)))


@register_model(
    ModelSpec(
        name="random-vit",
        paradigm="baseline",
        dim=192,
        pair_shape=(2, 64, 192),
        clip_shape=(9, 64, 192),
        preprocess=Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        options={"patch": 28, "layers": 4, "heads": 3},
        parameters_m=2.24,
        description="A small vision transformer with random weights drawn from the seed, patch tokens of each frame",
    )
)
class RandomViT(NetworkEncoder):
    """A transformer that was never trained: P = T, N = 64, D = 192.

    Weights are drawn from ``context.seed`` on the CPU, so they are the same on every device.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import torch

        # The seed, which is part of the identity of latents, decides the weights.
        super().__init__(spec, context, WeightsIdentity(random=True))
        self._model = _vision_transformer(spec, torch.Generator().manual_seed(context.seed)).to(context.device)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, 224, 224) to tokens (B, T, 64, 192). Raises LaryError for frames of another size."""
        check_frames(self._spec, clips, side=self._spec.preprocess.size)
        return Latents(self.run_alone(clips))

    def run(self, clips: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self._model(clips.flatten(0, 1))
        return tokens.reshape(*clips.shape[:2], *tokens.shape[1:])


def _vision_transformer(spec: ModelSpec, generator: torch.Generator) -> torch.nn.Module:
    """Patch and position embedding, pre-norm blocks and a final norm; matrices keep the size of what passes them."""
    import torch
    from torch import nn

    class VisionTransformer(nn.Module):
        def __init__(self, dim: int, size: int, patch: int, layers: int, heads: int) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, dim, patch, stride=patch)
            self.place = nn.Parameter(torch.empty(1, (size // patch) ** 2, dim))
            block = nn.TransformerEncoderLayer(
                dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.blocks(self.embed(images).flatten(2).transpose(1, 2) + self.place)
            return tokens

    dim = spec.dim or 0
    with torch.random.fork_rng(devices=[]):  # modules draw their own start, which the caller's generator mustn't feel
        model = VisionTransformer(dim, spec.preprocess.size, **spec.options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                fan_in = 1 if parameter is model.place else parameter[0].numel()
                parameter.normal_(0, 1 / math.sqrt(fan_in), generator=generator)
    return model.eval()
