"""Transformer of the LAQ family: cosine attention, a convolution that tells places apart, gated feed-forward.

Names of parameters are those of the published checkpoints (LAPA, Ye et al. 2024, arXiv 2410.11758).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOGIT_SCALE = 8.0
"""Fixed factor of the cosine similarities, whatever the width of a head."""
NULL_ROWS = 4
"""Rows of learned keys and values in cross attention, which only the decoder has."""


class ShiftNorm(nn.Module):
    """Layer norm (eps 1e-5) whose weight is called ``gamma`` and whose shift ``beta`` is stored but not learned."""

    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class CosineAttention(nn.Module):
    """Attention over unit queries and keys; keys and values come from the input before its norm, as published.

    Args:
        null_rows: learned keys and values in front of the others; self-attention stores them with length 0.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, null_rows: int = 0) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.null_kv = nn.Parameter(torch.randn(heads, null_rows, dim_head))
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.norm = ShiftNorm(dim)
        self.context_norm = ShiftNorm(dim)  # stored in every checkpoint; self-attention has no context
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Self-attention over sequences (S, N, D), with `bias` (heads, N, N) added to the logits."""
        k, v = self.to_kv(x).chunk(2, dim=-1)
        q, k, v = (
            part.reshape(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (self.to_q(self.norm(x)), k, v)
        )  # fmt: skip
        q = F.normalize(q, dim=-1) * self.q_scale
        k = F.normalize(k, dim=-1) * self.k_scale
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=LOGIT_SCALE)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


class GatedGelu(nn.Module):
    """First half times the exact GELU of the second half: (..., 2 * inner) to (..., inner)."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


def feed_forward(dim: int) -> nn.Sequential:
    """Norm, gated hidden layer of int(4 * 2/3 * D), projection back; place 3 is the dropout of training."""
    inner = int(4 * (2 / 3) * dim)
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, 2 * inner, bias=False),
        GatedGelu(),
        nn.Identity(),
        nn.Linear(inner, dim, bias=False),
    )


class PlaceConvolution(nn.Module):
    """Depthwise 3 x 3 x 3 convolution over time, rows and columns, causal in time and zero-padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int, int, int]) -> Tensor:
        """Convolve x (..., D), read in memory order as (B, T, H, W, D) = (*grid, D).

        Sequences over time hold their values in another order than the grid. The published code re-reads the
        buffer all the same, and its weights were trained so: the temporal transformer depends on it.
        """
        batch, frames, rows, columns = grid
        maps = x.reshape(batch * frames, rows, columns, -1).permute(0, 3, 1, 2)
        # One two-dimensional convolution per step back in time: the three-dimensional one is slow where D is large.
        kernels = self.dsconv.weight.unbind(dim=2)
        channels = maps.shape[1]
        out = F.conv2d(maps, kernels[-1], self.dsconv.bias, padding=1, groups=channels)
        out = out.reshape(batch, frames, *maps.shape[1:])
        for back in range(1, min(len(kernels), frames)):
            earlier = maps.reshape(out.shape)[:, :-back].flatten(0, 1)
            added = F.conv2d(earlier, kernels[-1 - back], padding=1, groups=channels)
            out[:, back:] += added.reshape(batch, -1, *maps.shape[1:])
        return out.permute(0, 1, 3, 4, 2).reshape(x.shape)


class GridBias(nn.Module):
    """Attention bias from the distance of two places on a grid, through a small network."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(2, dim), nn.LeakyReLU(0.1)),
            nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(0.1)),
            nn.Linear(dim, heads),
        )

    def forward(self, rows: int, columns: int) -> Tensor:
        """The bias (heads, H * W, H * W) between all places of a grid of H rows and W columns."""
        weight = self.net[2].weight
        assert isinstance(weight, Tensor)
        device = weight.device
        # Only (2H - 1)(2W - 1) different offsets occur among the (H * W)^2 pairs: the network sees each once.
        steps = [torch.arange(1 - side, side, device=device) for side in (rows, columns)]
        offsets = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1).flatten(0, 1)
        table = self.net((offsets.sign() * torch.log(offsets.abs() + 1.0)).to(weight.dtype))
        place = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
        down, right = (place[:, None] - place[None, :]).unbind(dim=-1)
        index = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
        bias: Tensor = table[index].permute(2, 0, 1).contiguous()
        return bias


class Transformer(nn.Module):
    """Layers of place convolution, attention and feed-forward, each added to its input, and a final norm.

    Args:
        cross_attention: declare the decoder's cross attention (place 2 of a layer). The benchmark runs no decoder.
    """

    def __init__(self, dim: int, depth: int, heads: int, dim_head: int, *, cross_attention: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            layer = nn.ModuleDict({"0": PlaceConvolution(dim), "1": CosineAttention(dim, heads, dim_head)})
            if cross_attention:
                layer["2"] = CosineAttention(dim, heads, dim_head, NULL_ROWS)
            layer["3"] = feed_forward(dim)
            self.layers.append(layer)
        self.norm_out = ShiftNorm(dim)

    def forward(self, x: Tensor, grid: tuple[int, int, int, int], bias: Tensor | None = None) -> Tensor:
        """Sequences (S, N, D), cut from a video of B, T, H, W = `grid` places, to the same shape."""
        for layer in self.layers:
            x = layer["0"](x, grid) + x  # type: ignore[index]
            x = layer["1"](x, bias) + x  # type: ignore[index]
            x = layer["3"](x) + x  # type: ignore[index]
        out: Tensor = self.norm_out(x)
        return out
