"""The latent action encoder of villa-X (Chen et al. 2025, arXiv 2507.23682), without its training decoder.

Modules carry the names of the published state dict, so `state_dict` keys are the file's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lary.nets.univla import nearest_rows

RMS_FLOOR = 1e-8
"""Smallest root mean square that divides."""
COLOURS = 3
"""What the patch embedding takes; `in_channels` is what the training decoder gives back."""


@dataclass(frozen=True)
class VillaConfig:
    """Fields of the published ``model_config.json`` with their defaults.

    The augmentation, `use_xformers` (another kernel for the same attention), the decoder's fields and `use_qk_norm`
    do not change what is encoded.
    """

    resolution: int = 224
    patch_size: int = 14
    in_channels: int = 3
    d_t: int = 8
    augment_type: str = "resize_crop"
    augment_level: str = "clip"
    random_crop_scale: Sequence[float] = (0.8, 1.0)
    random_crop_ratio: Sequence[float] = (0.75, 4 / 3)
    mlp_ratio: float = 4.0
    use_xformers: bool | None = None
    encoder_depth: int = 12
    encoder_embed_dim: int = 768
    encoder_n_heads: int = 8
    action_latent_dim: int = 128
    st_use_qk_norm: bool = True
    num_learned_tokens: int = 4
    map_heads: int = 24
    decoder_depth: int = 8
    decoder_embed_dim: int = 768
    decoder_n_heads: int = 16
    use_qk_norm: bool = True
    n_codes: int = 32

    @property
    def embed_tokens(self) -> int:
        """Patches per frame, N."""
        return (self.resolution // self.patch_size) ** 2

    @staticmethod
    def multiples() -> tuple[tuple[str, str], ...]:
        """Pairs of fields of which the first has to be a multiple of the second."""
        return (
            ("resolution", "patch_size"),
            ("encoder_embed_dim", "encoder_n_heads"),
            ("encoder_embed_dim", "map_heads"),
            ("decoder_embed_dim", "decoder_n_heads"),
        )


class VillaRMSNorm(nn.Module):
    """Division by the root mean square, times a gain."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        root_mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        out: Tensor = x / root_mean_square.clamp(min=RMS_FLOOR) * self.g
        return out


class VillaAttention(nn.Module):
    """Self-attention with optional norms of queries and keys per head."""

    def __init__(self, dim: int, heads: int, norms: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if norms else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if norms else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """(B, N, D) to the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, is_causal=causal)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class VillaFeedForward(nn.Module):
    """Two layers with the tanh form of GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class VillaSpaceTimeBlock(nn.Module):
    """Attention among the patches of a frame, then causally among the frames of a patch, then a feed-forward part.

    Shifts, scales and gates of the norms are learned constants; the attention over time takes its input without a
    norm and shares the gate of the attention over patches.
    """

    def __init__(self, config: VillaConfig) -> None:
        super().__init__()
        dim = config.encoder_embed_dim
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim))
        self.attn = VillaAttention(dim, config.encoder_n_heads, config.st_use_qk_norm)
        self.mlp = VillaFeedForward(dim, int(dim * config.mlp_ratio))
        self.attn_temp = VillaAttention(dim, config.encoder_n_heads, config.st_use_qk_norm)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """(B, T, N, D) to the same shape; `time` (T, 1, D) is added to what the attention over time takes."""
        batch, frames, count, dim = x.shape
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.scale_shift_table
        normed = F.layer_norm(x, (dim,), eps=1e-6) * (1 + scale) + shift
        x = x + gate * self.attn(normed.flatten(0, 1)).unflatten(0, (batch, frames))
        timed = (x if time is None else x + time).transpose(1, 2).flatten(0, 1)
        x = x + gate * self.attn_temp(timed, causal=True).unflatten(0, (batch, count)).transpose(1, 2)
        normed = F.layer_norm(x, (dim,), eps=1e-6) * (1 + scale_mlp) + shift_mlp
        out: Tensor = x + gate_mlp * self.mlp(normed)
        return out


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(dim, 2 * dim)
        self.q = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """Queries (B, M, D) and x (B, N, D) to (B, M, D)."""
        q = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class GatedUnit(nn.Module):
    """One half of a projection times SiLU of the other half."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.project(x).chunk(2, dim=-1)
        out: Tensor = value * F.silu(gate)
        return out


class AttentionPool(nn.Module):
    """Learned queries that gather the content of a transition's patches; norms come after each part."""

    def __init__(self, config: VillaConfig) -> None:
        super().__init__()
        dim, hidden = config.encoder_embed_dim, int(config.mlp_ratio * config.encoder_embed_dim)
        self.latents = nn.Parameter(torch.zeros(config.num_learned_tokens, dim))
        self.pre_projection = nn.Linear(dim, dim)
        self.attn_norm = VillaRMSNorm(dim)
        self.attn = CrossAttention(dim, config.map_heads)
        self.mlp_norm = VillaRMSNorm(dim)
        self.mlp = nn.Sequential(GatedUnit(dim, hidden), nn.Linear(hidden, dim))
        self.final_proj = nn.Sequential(nn.Linear(dim, config.action_latent_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to (B, learned tokens, D)."""
        queries = self.latents.expand(len(x), -1, -1).to(x)
        queries = self.attn_norm(queries + self.attn(queries, self.pre_projection(x)))
        queries = self.mlp_norm(queries + self.mlp(queries))
        out: Tensor = self.final_proj(queries)
        return out


class PatchEmbedding(nn.Module):
    """Patches as tokens, row by row."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(COLOURS, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, D)."""
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out


class VillaEncoder(nn.Module):
    """From frames to patch tokens that have seen the frames before, and from neighbouring frames to latents."""

    def __init__(self, config: VillaConfig) -> None:
        super().__init__()
        dim = config.encoder_embed_dim
        self.pe_spatial = nn.Parameter(torch.zeros(1, config.embed_tokens, dim), requires_grad=False)
        self.pe_temporal = nn.Parameter(torch.zeros(1, config.d_t, dim), requires_grad=False)
        self.embed = PatchEmbedding(config.patch_size, dim)
        self.layers = nn.ModuleList(VillaSpaceTimeBlock(config) for _ in range(config.encoder_depth))
        self.norm = VillaRMSNorm(dim)
        self.map_block = AttentionPool(config)

    def patches(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) to patch embeddings with their positions, (B, T, N, width)."""
        embedded: Tensor = (self.embed(clips.flatten(0, 1)) + self.pe_spatial).unflatten(0, clips.shape[:2])
        return embedded

    def tokens(self, patches: Tensor) -> Tensor:
        """Patch embeddings of one window (B, T, N, width), T at most `d_t`, to the blocks' normed output."""
        x = patches
        for index, layer in enumerate(self.layers):
            x = layer(x, self.pe_temporal[0, : x.shape[1], None] if index == 0 else None)
        out: Tensor = self.norm(x)
        return out

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, N, width) of T frames to latents (B, T - 1, learned tokens, D) of T - 1 transitions."""
        between = (tokens[:, 1:] + tokens[:, :-1]) / 2
        latent: Tensor = self.map_block(between.flatten(0, 1)).unflatten(0, between.shape[:2])
        return latent


class CodebookRows(nn.Module):
    """The codebook."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, dim)


class VillaNetwork(nn.Module):
    """Latent actions between the neighbouring frames of a clip."""

    def __init__(self, config: VillaConfig) -> None:
        super().__init__()
        self.window = config.d_t
        self.encoder = VillaEncoder(config)
        self.vq = CodebookRows(config.n_codes, config.action_latent_dim)

    def latents(self, clips: Tensor) -> Tensor:
        """Normalised clips (B, T, 3, H, W), T at least 2, to continuous latents (B, T - 1, learned tokens, D).

        Longer clips than the window: windows slide by one frame, the first gives all its transitions, every later
        one its last.
        """
        patches = self.encoder.patches(clips)
        count = patches.shape[1] - self.window + 1
        if count <= 1:
            return self.encoder.pool(self.encoder.tokens(patches))
        index = torch.arange(count)[:, None] + torch.arange(self.window)
        tokens = self.encoder.tokens(patches[:, index].flatten(0, 1))
        tokens = tokens.reshape(len(clips), count, *tokens.shape[1:])
        first, last = self.encoder.pool(tokens[:, 0]), self.encoder.pool(tokens[:, 1:, -2:].flatten(0, 1))
        return torch.cat([first, last.reshape(len(clips), count - 1, *last.shape[2:])], dim=1)

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The codebook row of each latent (..., D), and its id (...) int64."""
        return nearest_rows(latent, self.vq.embedding.weight)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised clips (B, T, 3, H, W) to tokens (B, T - 1, learned tokens, D) and their ids."""
        return self.quantize(self.latents(clips))
