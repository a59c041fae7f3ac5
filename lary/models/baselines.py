"""Baselines without trained weights: pixels, differences, flow, random ViT.

They show what these alone hold of an action, on a grid of 8 x 8
tokens. Probes treat tokens as a set, so all but random features
end with their cell's position: row and column in [-1, 1].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lary.models.networks import NetworkEncoder, check_frames
from lary.models.preprocess import neighbour_pairs
from lary.models.spec import ModelContext, ModelSpec, builtin, register_model
from lary.types import Latents, WeightsIdentity

if TYPE_CHECKING:
    from torch import Tensor

GRID = 8
"""Cells per side of the grid."""
PLACE = 2
"""Values of a token's position: row and column."""
FINE = 4
"""Averages per side of a cell, in the baselines made of pixels."""


def cells(maps: Tensor, side: int) -> Tensor:
    """Cut maps (..., C, 8 * side, 8 * side) into cells (..., 64, C * side * side)."""
    front = maps.shape[:-3]
    grid = maps.reshape(*front, -1, GRID, side, GRID, side)
    return grid.movedim((-4, -2), (-5, -4)).reshape(*front, GRID * GRID, -1)


class _Weightless:
    identity = WeightsIdentity()
    least = 1
    """The fewest frames that a clip may have."""

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        self._spec, self._device, self._size = spec, context.device, spec.preprocess.size

    def encode(self, clips: Tensor) -> Latents:
        """Clips (B, T, 3, H, W) to tokens (B, P, 64, D). Raises LaryError."""
        import torch

        check_frames(self._spec, clips, side=self._size, least=self.least)
        tokens = self.measure(clips)
        centres = (torch.arange(GRID).to(tokens) + 0.5) * (2 / GRID) - 1
        place = torch.cartesian_prod(centres, centres)  # row and column of each cell's centre
        return Latents(torch.cat([tokens, place.expand(*tokens.shape[:-1], PLACE)], -1))

    def measure(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) to tokens (B, P, 64, D - 2)."""
        raise NotImplementedError


@register_model(builtin("pixels"))
class Pixels(_Weightless):
    """Colours of each frame on a coarse grid: P = T, N = 64, D = 50."""

    def measure(self, clips: Tensor) -> Tensor:
        return cells(clips.to(self._device), FINE)


@register_model(builtin("frame-difference"))
class FrameDifference(_Weightless):
    """What changes between neighbours: P = T - 1, N = 64, D = 66.

    A token holds 16 averages each of signed red, green
    and blue, and of absolute grey changes, and its
    position. Differences are about a tenth of the range:
    the record divides by 0.1, to bring them near 1.
    """

    least = 2

    def measure(self, clips: Tensor) -> Tensor:
        import torch

        pairs = neighbour_pairs(clips.to(self._device))
        change = pairs.diff(dim=2).flatten(0, 2)
        changes = torch.cat([change, change.abs().mean(1, keepdim=True)], 1)
        tokens = cells(torch.nn.functional.avg_pool2d(changes, self._size // (GRID * FINE)), FINE)
        return tokens.unflatten(0, pairs.shape[:2])


@register_model(builtin("optical-flow"))
class OpticalFlow(_Weightless):
    """Motion between neighbours: P = T - 1, N = 64, D = 6.

    A token holds means and standard deviations of right and down
    in a cell, and its position. Flow is in pixels of the 128 x 128
    frame, on grey levels, by OpenCV's DISOpticalFlow on the CPU.
    """

    least = 2

    def measure(self, clips: Tensor) -> Tensor:
        import cv2
        import numpy as np
        import torch

        # OpenCV's types don't know that it makes its own output.
        calculate: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc
        red, green, blue = clips.cpu().unbind(2)
        grey = (red * 0.299 + green * 0.587 + blue * 0.114).round().byte()  # ITU-R BT.601, as in OpenCV
        pairs = neighbour_pairs(grey[:, :, None])
        flow = np.stack([calculate(*pair, None) for pair in pairs.flatten(0, 1).squeeze(2).numpy()])
        field = torch.from_numpy(flow).to(self._device).movedim(-1, 1)  # (B * P, 2, H, W)
        blocks = cells(field, self._size // GRID).reshape(*pairs.shape[:2], GRID * GRID, 2, -1)
        return torch.cat([blocks.mean(-1), blocks.std(-1, correction=0)], -1)


@register_model(builtin("random-vit"))
class RandomViT(NetworkEncoder):
    """A transformer that was never trained: P = T, N = 64, D = 96.

    Weights are drawn from ``context.seed`` on the CPU, the same
    for every device. Matrices keep the scale of what passes them.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import torch
        from torch import nn

        # The seed decides the weights, and is part of the latents' identity.
        super().__init__(spec, context, WeightsIdentity(random=True))
        dim, patch = spec.dim or 0, spec.options["patch"]
        with torch.random.fork_rng(devices=[]):  # the caller mustn't notice that modules draw
            embed = nn.Conv2d(3, dim, patch, stride=patch)
            block = nn.TransformerEncoderLayer(
                dim, spec.options["heads"], 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            blocks = nn.TransformerEncoder(
                block, spec.options["layers"], norm=nn.LayerNorm(dim), enable_nested_tensor=False
            )
        generator = torch.Generator().manual_seed(context.seed)
        count = (spec.preprocess.size // patch) ** 2
        place = torch.empty(1, count, dim).normal_(0, 1, generator=generator)
        with torch.no_grad():
            for name, value in (*embed.named_parameters(), *blocks.named_parameters()):
                if value.ndim == 1:
                    value.fill_(1.0 if name.endswith("weight") else 0.0)
                else:
                    value.normal_(0, 1 / math.sqrt(value[0].numel()), generator=generator)
        self._place, self._embed = place.to(context.device), embed.to(context.device)
        self._blocks = blocks.eval().to(context.device)

    def run(self, clips: Tensor) -> Tensor:
        patches = self._embed(clips.flatten(0, 1)).flatten(2).transpose(1, 2)
        return self._blocks(patches + self._place).unflatten(0, clips.shape[:2])
