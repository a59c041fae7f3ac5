"""Latent action models of the LAQ family (LAPA, Ye et al. 2024, arXiv 2410.11758), over pixels or frame features.

Names of parameters are those of the published checkpoints. Noise substitution instead of a straight-through gradient
is from Vali and Bäckström 2022 (NSVQ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lary.nets import CODE_STACKS

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
    """Norm, gated hidden layer of int(4 * 2/3 * D), projection back; index 3 is the dropout of training."""
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
    """Attention bias from the distance of two positions on a grid, through a small network."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(2, dim), nn.LeakyReLU(0.1)),
            nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(0.1)),
            nn.Linear(dim, heads),
        )

    def forward(self, rows: int, columns: int) -> Tensor:
        """The bias (heads, H * W, H * W) between all positions of a grid of H rows and W columns."""
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


class LaqTransformer(nn.Module):
    """Layers of place convolution, attention and feed-forward, each added to its input, and a final norm.

    Args:
        cross_attention: declare the decoder's cross attention (index 2 of a layer). The benchmark runs no decoder.
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
        """Sequences (S, N, D), cut from a video of B, T, H, W = `grid` positions, to the same shape."""
        for layer in self.layers:
            x = layer["0"](x, grid) + x  # type: ignore[index]
            x = layer["1"](x, bias) + x  # type: ignore[index]
            x = layer["3"](x) + x  # type: ignore[index]
        out: Tensor = self.norm_out(x)
        return out


class DifferenceQuantizer(nn.Module):
    """Codes of what changed between two frames.

    Args:
        dim: D of the tokens.
        quant_dim: Q, width of a code row.
        codebook_size: rows of the codebook.
        grid: rows and columns of the tokens.
        code_seq_len: which stack of convolutions shrinks the grid; a key of `CODE_STACKS`.

    Raises:
        ValueError: there is no stack for this code length.
    """

    def __init__(self, dim: int, quant_dim: int, codebook_size: int, grid: int, code_seq_len: int) -> None:
        super().__init__()
        if code_seq_len not in CODE_STACKS:
            raise ValueError(f"code length {code_seq_len}: there is one of {', '.join(map(str, CODE_STACKS))}")
        self.grid = grid
        self.codebooks = nn.Parameter(torch.randn(codebook_size, quant_dim))
        self.project_in = nn.Linear(dim, quant_dim)
        self.project_out = nn.Linear(quant_dim, dim)
        self.cnn_encoder = nn.Sequential()
        for place, (kernel, stride, padding) in enumerate(CODE_STACKS[code_seq_len]):
            if place:
                self.cnn_encoder.append(nn.ReLU())
            self.cnn_encoder.append(nn.Conv2d(quant_dim, quant_dim, kernel, stride=stride, padding=padding))

    def latent(self, first: Tensor, last: Tensor) -> Tensor:
        """Tokens (B, H * W, D) of two frames to the continuous latent (B, N, Q)."""
        return self._rows(last) - self._rows(first)

    def _rows(self, tokens: Tensor) -> Tensor:
        projected = self.project_in(tokens).transpose(1, 2)
        maps = projected.reshape(*projected.shape[:2], self.grid, self.grid)
        rows: Tensor = self.cnn_encoder(maps).flatten(2).transpose(1, 2)
        return rows

    def codes(self, latent: Tensor) -> Tensor:
        """The nearest codebook row of each latent row: (B, N, Q) to int64 (B, N)."""
        book = self.codebooks
        distances = latent.square().sum(-1, keepdim=True) - 2 * latent @ book.T + book.square().sum(-1)
        return distances.argmin(dim=-1)

    def quantized(self, codes: Tensor) -> Tensor:
        """Codebook rows (B, N, Q) of codes (B, N)."""
        return self.codebooks[codes]

    def with_noise(self, latent: Tensor, codes: Tensor, draw: Tensor) -> Tensor:
        """Latent rows moved by their quantization error in the direction of a standard-normal `draw`, all (B, N, Q)."""
        error = (latent - self.quantized(codes)).norm(dim=-1, keepdim=True)
        moved: Tensor = latent + (error / draw.norm(dim=-1, keepdim=True) + 1e-12) * draw
        return moved

    def tokens(self, rows: Tensor) -> Tensor:
        """Rows (B, N, Q) of a latent, quantized or not, to tokens (B, N, D).

        The buffer of a sample is re-read as (Q, N) and transposed, which is not how it was flattened: every token
        mixes entries of several rows. The published weights were trained with it.
        """
        batch, count, width = rows.shape
        mixed = rows.reshape(batch, width, count).transpose(1, 2)
        out: Tensor = self.project_out(mixed)
        return out


@dataclass(frozen=True)
class LaqConfig:
    """Sizes of a model, under the names of the published code.

    Attributes:
        dim: D of tokens. quant_dim, codebook_size, code_seq_len: see `DifferenceQuantizer`.
        image_size, patch_size: in pixels; the grid has image_size // patch_size rows and columns.
        spatial_depth: layers over the positions of a frame, in encoder and decoder. temporal_depth: layers over time.
        heads, dim_head: of every attention.
        patch_input: the model embeds patches of pixels itself, instead of taking features of an encoder.
        pixel_output: the decoder ends in pixels of a patch (it is stored, the benchmark doesn't run it).
    """

    dim: int
    quant_dim: int
    codebook_size: int
    image_size: int
    patch_size: int
    spatial_depth: int
    temporal_depth: int
    dim_head: int
    heads: int
    code_seq_len: int
    patch_input: bool = False
    pixel_output: bool = False

    @property
    def grid(self) -> int:
        return int(self.image_size / self.patch_size)


class PixelPatches(nn.Sequential):
    """Square patches with features ordered (colour, row, column), normed, projected to D and normed again."""

    def __init__(self, patch: int, dim: int) -> None:
        features = 3 * patch**2
        super().__init__(nn.Identity(), nn.LayerNorm(features), nn.Linear(features, dim), nn.LayerNorm(dim))
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W') to tokens (B, H, W, D)."""
        side = self.patch
        batch, colours, height, width = images.shape
        cut = images.reshape(batch, colours, height // side, side, width // side, side)
        tokens = cut.permute(0, 2, 4, 1, 3, 5).flatten(3)
        for layer in self:
            tokens = layer(tokens)
        return tokens


class PatchTokens(nn.Module):
    """A backbone of transformers as an embedding: the patch tokens of its last layer, after its final norm, on a grid.

    Args:
        leading: tokens before those of the patches.
        grid: rows and columns of patches.
    """

    def __init__(self, backbone: nn.Module, leading: int, grid: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.leading = leading
        self.grid = grid

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W') to tokens (B, H, W, D)."""
        output: Any = self.backbone(pixel_values=images)
        tokens: Tensor = output.last_hidden_state[:, self.leading :]
        return tokens.reshape(len(images), self.grid, self.grid, -1)


class LatentActionModel(nn.Module):
    """Encoder and quantizer of a LAQ model; its decoder is declared, since checkpoints hold it, and never runs.

    Attributes:
        features: the encoder of frames, images (B, 3, H', W') to tokens (B, H, W, D); set once this model's own
            weights are loaded. None for a model with its own patch embedding.
    """

    DECODER = ("dec_spatial_transformer", "to_pixels_first_frame")

    def __init__(self, config: LaqConfig) -> None:
        super().__init__()
        dim, sizes = config.dim, (config.heads, config.dim_head)
        self.config = config
        self.features: nn.Module | None = None
        if config.patch_input:
            self.to_patch_emb_first_frame = PixelPatches(config.patch_size, dim)
        self.spatial_rel_pos_bias = GridBias(dim, config.heads)
        self.enc_spatial_transformer = LaqTransformer(dim, config.spatial_depth, *sizes)
        self.enc_temporal_transformer = LaqTransformer(dim, config.temporal_depth, *sizes)
        self.vq = DifferenceQuantizer(
            dim, config.quant_dim, config.codebook_size, config.grid, config.code_seq_len
        )  # fmt: skip
        self.dec_spatial_transformer = LaqTransformer(dim, config.spatial_depth, *sizes, cross_attention=True)
        if config.pixel_output:
            self.to_pixels_first_frame = nn.Sequential(nn.Linear(dim, 3 * config.patch_size**2))

    def drop_decoder(self) -> None:
        """Free the weights that encoding doesn't need."""
        for name in self.DECODER:
            if hasattr(self, name):
                delattr(self, name)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W'), each by itself, to tokens (B, H, W, D)."""
        embedding = self.to_patch_emb_first_frame if self.config.patch_input else self.features
        assert embedding is not None, "the encoder of frames was not set"
        tokens: Tensor = embedding(images)
        return tokens

    def encode(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded pairs (B, 2, H, W, D) to tokens (B, H * W, D) of the first and of the last frame."""
        batch, frames, rows, columns, dim = embedded.shape
        grid = (batch, frames, rows, columns)
        x = self.enc_spatial_transformer(
            embedded.reshape(batch * frames, rows * columns, dim), grid, self.spatial_rel_pos_bias(rows, columns)
        )
        x = x.reshape(batch, frames, -1, dim).transpose(1, 2)  # (B, H * W, T, D)
        x = self.enc_temporal_transformer(x.reshape(-1, frames, dim), grid)
        first, last = x.reshape(batch, -1, frames, dim).unbind(dim=2)
        return first, last

    def latent(self, embedded: Tensor) -> Tensor:
        """Embedded pairs (B, 2, H, W, D) to the continuous latent (B, N, Q)."""
        return self.vq.latent(*self.encode(embedded))
