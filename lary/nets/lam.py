"""Latent action models of the LAQ family, and the tokenizer of one of them.

The family is from LAPA (Ye et al. 2024, arXiv 2410.11758), its noise
substitution from Vali and Bäckström 2022 (NSVQ), the tokenizer is Open-MAGVIT2
(Luo et al. 2024, arXiv 2409.04410). Parameters have the names of the published
checkpoints. Encoding needs no decoder: it is in `lary.lam.network`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lary.nets import CODE_STACKS, sliced_attention

LOGIT_SCALE = 8.0
"""Factor of cosine similarities, not 1 / sqrt(width of a head)."""
GROUPS = 32


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) to (B, heads, N, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class ShiftNorm(nn.Module):
    """Layer norm (eps 1e-5) with weight ``gamma`` and a stored shift ``beta``."""

    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class CosineAttention(nn.Module):
    """Attention over unit queries and keys, of which `learned` precede the others.

    As published, only queries are made of the normed input.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, learned: int = 0) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        # Keys and values in turn. Self-attention has none, nor uses its
        # `context_norm`, but both are in every checkpoint.
        self.null_kv = nn.Parameter(torch.randn(heads, 2 * learned, dim_head))
        self.context_norm = ShiftNorm(dim)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.norm = ShiftNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Sequences (S, N, D) to their shape; logits get `bias` (heads, N, N).

        Keys and values are those of `context` (S, M, D), or else of `x`
        itself.
        """
        source = x if context is None else self.context_norm(context)
        parts = (self.to_q(self.norm(x)), *self.to_kv(source).chunk(2, dim=-1))
        q, k, v = (split_heads(part, self.heads) for part in parts)
        if self.null_kv.shape[1]:
            own = self.null_kv.expand(len(x), -1, -1, -1)
            k, v = torch.cat([own[:, :, ::2], k], 2), torch.cat([own[:, :, 1::2], v], 2)
        q = F.normalize(q, dim=-1) * self.q_scale
        k = F.normalize(k, dim=-1) * self.k_scale
        mixed = sliced_attention(q, k, v, attn_mask=bias, scale=LOGIT_SCALE)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Gated(nn.Sequential):
    """First half times an activation of the second: (..., 2 M) to (..., M)."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * super().forward(gate)


def feed_forward(dim: int) -> nn.Sequential:
    """Norm, gated layer of int(4 * 2/3 * D), dropout in training, projection to D."""
    inner = int(4 * (2 / 3) * dim)
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, 2 * inner, bias=False),
        Gated(nn.GELU()),
        nn.Identity(),
        nn.Linear(inner, dim, bias=False),
    )


class PlaceConvolution(nn.Module):
    """Position code: a depthwise 3 x 3 x 3 convolution, causal, zero-padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int, int, int]) -> Tensor:
        """Convolve x (..., D), re-read in memory order as (*grid, D).

        `grid` is (B, T, H, W). Sequences over time hold their values in
        another order than it. The published code re-reads the buffer all the
        same, and the weights of its temporal transformer were trained so.
        """
        batch, frames, rows, columns = grid
        maps = x.reshape(batch * frames, rows, columns, -1).permute(0, 3, 1, 2)
        # One two-dimensional convolution per step back in time: the
        # three-dimensional one is slow where D is large.
        kernels = self.dsconv.weight.unbind(2)
        channels = maps.shape[1]
        out = F.conv2d(maps, kernels[-1], self.dsconv.bias, padding=1, groups=channels).unflatten(0, (batch, frames))
        for back in range(1, min(len(kernels), frames)):
            earlier = maps.reshape(out.shape)[:, :-back].flatten(0, 1)
            added = F.conv2d(earlier, kernels[-1 - back], padding=1, groups=channels)
            out[:, back:] += added.unflatten(0, (batch, -1))
        return out.permute(0, 1, 3, 4, 2).reshape(x.shape)


class GridBias(nn.Module):
    """Attention bias from signed log distances on a grid, by a small network."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(2, dim), nn.LeakyReLU(0.1)),
            nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(0.1)),
            nn.Linear(dim, heads),
        )

    def forward(self, side: int) -> Tensor:
        """The bias (heads, N, N) of all pairs among N = side * side positions."""
        weight = next(self.parameters())
        # N * N pairs have few offsets: the network sees each once.
        steps = torch.arange(1 - side, side, device=weight.device)
        offsets = torch.cartesian_prod(steps, steps)
        table = self.net((offsets.sign() * torch.log(offsets.abs() + 1.0)).to(weight.dtype))
        sides = torch.arange(side, device=weight.device)
        position = torch.cartesian_prod(sides, sides)
        down, right = (position[:, None] - position + side - 1).unbind(-1)
        return table[down * (2 * side - 1) + right].permute(2, 0, 1).contiguous()


class LaqTransformer(nn.Module):
    """Layers of place convolution, attention and feed-forward, then a final norm."""

    def __init__(self, dim: int, depth: int, heads: int, dim_head: int, learned: int | None = None) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList()
        for _ in range(depth):
            layer: dict[str, nn.Module] = {"0": PlaceConvolution(dim), "1": CosineAttention(dim, heads, dim_head)}
            if learned is not None:  # the decoder, which attends to the action
                layer["2"] = CosineAttention(dim, heads, dim_head, learned)
            self.layers.append(nn.ModuleDict(layer | {"3": feed_forward(dim)}))
        self.norm_out = ShiftNorm(dim)

    def forward(
        self, x: Tensor, grid: tuple[int, int, int, int], bias: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Sequences (S, N, D) of a video (B, T, H, W) = `grid` to the same shape.

        The layers of a decoder attend to `context` (S, M, D), too.
        """
        for layer in self.layers:
            x = layer["0"](x, grid) + x
            x = layer["1"](x, bias) + x
            if context is not None:
                x = layer["2"](x, context=context) + x
            x = layer["3"](x) + x
        return self.norm_out(x)


class DifferenceQuantizer(nn.Module):
    """Codes of what changed between two frames.

    `dim` and `quant_dim` are D and Q, of tokens and rows. Raises ValueError for a
    `code_seq_len` that `CODE_STACKS` lacks.
    """

    def __init__(self, dim: int, quant_dim: int, codebook_size: int, grid: int, code_seq_len: int) -> None:
        super().__init__()
        if code_seq_len not in CODE_STACKS:
            raise ValueError(f"code length {code_seq_len}: there is one of {', '.join(map(str, CODE_STACKS))}")
        self.grid = grid
        self.codebooks = nn.Parameter(torch.randn(codebook_size, quant_dim))
        self.project_in = nn.Linear(dim, quant_dim)
        self.project_out = nn.Linear(quant_dim, dim)
        layers: list[nn.Module] = []
        for sizes in CODE_STACKS[code_seq_len]:
            layers += nn.ReLU(), nn.Conv2d(quant_dim, quant_dim, *sizes)
        self.cnn_encoder = nn.Sequential(*layers[1:])  # ReLU only between convolutions

    def latent(self, first: Tensor, last: Tensor) -> Tensor:
        """Tokens (B, H * W, D) of two frames to the continuous latent (B, N, Q)."""
        return self._rows(last) - self._rows(first)

    def _rows(self, tokens: Tensor) -> Tensor:
        """Tokens (B, H * W, D) of one frame to rows (B, N, Q)."""
        projected = self.project_in(tokens).transpose(1, 2)
        return self.cnn_encoder(projected.unflatten(-1, (self.grid, -1))).flatten(2).transpose(1, 2)

    def codes(self, latent: Tensor) -> Tensor:
        """Ids of the codebook rows nearest to a latent (B, N, Q), int64 (B, N)."""
        book = self.codebooks
        distances = latent.square().sum(-1, keepdim=True) - 2 * latent @ book.T + book.square().sum(-1)
        return distances.argmin(-1)

    def quantized(self, codes: Tensor) -> Tensor:
        """Codebook rows (B, N, Q) of codes (B, N)."""
        return self.codebooks[codes]

    def with_noise(self, latent: Tensor, codes: Tensor, draw: Tensor) -> Tensor:
        """Move a latent by its quantization error in the direction of `draw`.

        All are (B, N, Q), `draw` is standard-normal. As published, also in
        evaluation.
        """
        error = (latent - self.quantized(codes)).norm(dim=-1, keepdim=True)
        # As published, 1e-12 is added to the ratio, not its divisor.
        return latent + (error / draw.norm(dim=-1, keepdim=True) + 1e-12) * draw

    def tokens(self, rows: Tensor) -> Tensor:
        """Rows (B, N, Q) of a latent, quantized or not, to tokens (B, N, D).

        The buffer of a sample is re-read as (Q, N) and transposed, which is
        not how it was flattened: every token mixes entries of several rows.
        The published weights were trained with it.
        """
        _, count, width = rows.shape
        return self.project_out(rows.reshape(-1, width, count).transpose(1, 2))


class PixelPatches(nn.Sequential):
    """Embedding of square patches, whose features are ordered (colour, row, column)."""

    def __init__(self, patch: int, dim: int) -> None:
        features = 3 * patch**2
        # Index 0 is the published code's cutting, which has no weights.
        super().__init__(nn.Identity(), nn.LayerNorm(features), nn.Linear(features, dim), nn.LayerNorm(dim))
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W') to tokens (B, H, W, D)."""
        return super().forward(F.pixel_unshuffle(images, self.patch).movedim(1, -1))


class PatchTokens(nn.Module):
    """The patch tokens of a transformers backbone, after its final norm.

    They follow `leading` other tokens, and form a grid of `grid` rows.
    """

    def __init__(self, backbone: nn.Module, leading: int, grid: int) -> None:
        super().__init__()
        self.backbone, self.leading, self.grid = backbone, leading, grid

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W') to tokens (B, H, W, D)."""
        return self.backbone(pixel_values=images).last_hidden_state[:, self.leading :].unflatten(1, (self.grid, -1))


class LatentActionModel(nn.Module):
    """Encoder and quantizer of a LAQ model, with the published names.

    The grid's side is `image_size` / `patch_size`, both in pixels. Without
    `patch_input`, `features` makes tokens (B, H, W, D) of images (B, 3, H', W').
    `pixel_output` is about the decoder, and ignored.
    """

    def __init__(
        self,
        *,
        dim: int,
        quant_dim: int,
        codebook_size: int,
        image_size: int,
        patch_size: int,
        spatial_depth: int,
        temporal_depth: int,
        dim_head: int,
        heads: int,
        code_seq_len: int,
        patch_input: bool = False,
        pixel_output: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.grid = dim, int(image_size / patch_size)
        self.features: nn.Module | None = None
        if patch_input:
            self.to_patch_emb_first_frame = PixelPatches(patch_size, dim)
        self.spatial_rel_pos_bias = GridBias(dim, heads)
        self.enc_spatial_transformer = LaqTransformer(dim, spatial_depth, heads, dim_head)
        self.enc_temporal_transformer = LaqTransformer(dim, temporal_depth, heads, dim_head)
        self.vq = DifferenceQuantizer(dim, quant_dim, codebook_size, self.grid, code_seq_len)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W'), each by itself, to tokens (B, H, W, D)."""
        embedding = self.to_patch_emb_first_frame if self.features is None else self.features
        return embedding(images)

    def encode(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded pairs (B, 2, H, W, D) to the tokens (B, H * W, D) of each frame."""
        batch, frames, rows, columns, dim = embedded.shape
        grid, sequences = (batch, frames, rows, columns), embedded.flatten(0, 1).flatten(1, 2)
        x = self.enc_spatial_transformer(sequences, grid, self.spatial_rel_pos_bias(rows))
        x = x.reshape(batch, frames, -1, dim).transpose(1, 2)  # (B, H * W, T, D)
        # Not in the order of `grid`, as published: see `PlaceConvolution`.
        x = self.enc_temporal_transformer(x.reshape(-1, frames, dim), grid)
        first, last = x.reshape(batch, -1, frames, dim).unbind(2)
        return first, last

    def latent(self, embedded: Tensor) -> Tensor:
        """Embedded pairs (B, 2, H, W, D) to the continuous latent (B, N, Q)."""
        return self.vq.latent(*self.encode(embedded))


class ResidualBlock(nn.Module):
    """Two normed convolutions without bias, added to the input."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, narrow, eps=1e-6)
        self.norm2 = nn.GroupNorm(GROUPS, wide, eps=1e-6)
        self.conv1 = nn.Conv2d(narrow, wide, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Identity() if narrow == wide else nn.Conv2d(narrow, wide, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.silu(self.norm1(x)))
        out = self.conv2(F.silu(self.norm2(out)))
        return self.nin_shortcut(x) + out


def residual_blocks(narrow: int, wide: int, count: int) -> nn.Sequential:
    """Blocks, the first of which changes the number of channels."""
    first = ResidualBlock(narrow, wide)
    return nn.Sequential(first, *(ResidualBlock(wide, wide) for _ in range(count - 1)))


class Tokenizer(nn.Module):
    """The encoder of Open-MAGVIT2, without quantization.

    Arguments are those of the published ``ddconfig``. A `model_type` of
    ``en512`` gives the map before the last convolution. `out_ch` and `use_ema`
    are ignored: as published, the raw weights run, not their averages.
    """

    def __init__(
        self,
        *,
        z_channels: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        in_channels: int = 3,
        model_type: str = "en18",
        out_ch: int = 3,
        use_ema: bool = True,
    ) -> None:
        super().__init__()
        widths = [ch * factor for factor in (1, *ch_mult)]
        down = nn.Sequential()
        for narrow, wide in pairwise(widths):
            level = nn.Sequential(OrderedDict(block=residual_blocks(narrow, wide, num_res_blocks)))
            if len(down) < len(ch_mult) - 1:  # all levels but the last halve the resolution
                level.add_module("downsample", nn.Conv2d(wide, wide, 3, stride=2, padding=1))
            down.append(level)
        self.encoder = nn.Sequential(
            OrderedDict(
                conv_in=nn.Conv2d(in_channels, ch, 3, padding=1, bias=False),
                down=down,
                mid_block=residual_blocks(widths[-1], widths[-1], num_res_blocks),
                norm_out=nn.GroupNorm(GROUPS, widths[-1], eps=1e-6),
                activation=nn.SiLU(),
                conv_out=nn.Conv2d(widths[-1], z_channels, 1),
            )
        )
        self.projects = model_type != "en512"

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W') to tokens (B, H, W, Z), Z = `z_channels`."""
        encoder = self.encoder if self.projects else self.encoder[:-1]
        return encoder(images).permute(0, 2, 3, 1)
