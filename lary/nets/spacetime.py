"""Latent action encoders of UniVLA and villa-X, without training decoders.

UniVLA: Bu et al. 2025, arXiv 2505.06111. villa-X: Chen et al. 2025, arXiv
2507.23682. Modules carry the names of the published state dicts.
"""

import math
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from lary.nets import each_frame, sliced_attention
from lary.nets.lam import Gated, split_heads

FEATURES = 768
"""Width of the DINOv2 ViT-B features that UniVLA takes, whatever `model_dim` is."""
CODES = 4
"""Tokens of each kind in UniVLA: controllable, then uncontrollable, then patches."""
UNCONTROLLABLE_ROWS = 16
"""Rows of UniVLA's codebook of uncontrollable actions, whatever `num_latents` is."""
SHORT = 256
"""Keys up to which products in bfloat16 on a CPU beat fused attention, 3 to 8 times."""
COLOURS = 3
"""Channels that villa-X takes; `in_channels` is what its decoder returns."""


def nearest_rows(latent: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codebook row (R, D) of latents (..., D), and its id (...).

    The published sum latent + (row - latent) equals the row up to rounding. As
    there, a latent that isn't finite stays what it is, so that it is noticed.
    """
    # Above 25 latents, torch would use a matrix product: other rounding.
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(latent.flatten(0, -2).float(), codebook.float(), compute_mode=exact)
    codes = distances.argmin(-1).reshape(latent.shape[:-1])
    rows = codebook[codes]
    if latent.requires_grad:
        rows = rows + (latent - latent.detach())  # adds zero: gradients pass straight through
    return rows.where(latent.isfinite(), latent.to(rows)), codes


def attend_heads(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Attention of queries (B, heads, M, D / heads) to N keys and values: (B, M, D)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT and not causal:
        found = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1).to(v.dtype) @ v
    else:
        found = sliced_attention(q, k, v, is_causal=causal)
    return found.transpose(1, 2).flatten(2)


def among_frames(attention: nn.Module, x: Tensor) -> Tensor:
    """Causal attention over frames of a token: (B, T, N, D) to the same shape."""
    x = x.transpose(1, 2)
    return each_frame(partial(attention, causal=True), x).transpose(1, 2)


def gelu_mlp(dim: int, hidden: int, approximate: str = "none") -> nn.Sequential:
    """Linear, GELU, Linear."""
    first, second = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
    return nn.Sequential(OrderedDict(fc1=first, act=nn.GELU(approximate), fc2=second))


def sinusoid(count: int, dim: int, device: Any) -> Tensor:
    """Positions (N, D): sine and cosine in turn, frequencies 10000^(-2i/D)."""
    frequencies = torch.exp(torch.arange(0, dim, 2, device=device).float() * -(math.log(10000.0) / dim))
    angles = torch.arange(count, device=device).float()[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[:, :dim]


class UniVLAAttention(nn.Module):
    """Self-attention whose input projections have no bias."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in "qkv")
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        q, k, v = (split_heads(to(x), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        return self.to_out(attend_heads(q, k, v, causal))


class UniVLABlock(nn.Module):
    """Attention within frames, then causally over frames, then feed-forward."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.spatial_attn = UniVLAAttention(dim, heads, dropout)
        self.temporal_attn = UniVLAAttention(dim, heads, dropout)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, N, D) to the same shape."""
        x = x + each_frame(self.spatial_attn, self.norm1(x))
        x = x + among_frames(self.temporal_attn, self.norm2(x))
        return x + self.ffn(self.norm3(x))


class SpaceTimeTransformer(nn.Module):
    """UniVLA's encoder: projection, position code, blocks, no final norm."""

    def __init__(self, dim: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, dim), nn.LayerNorm(dim))
        self.transformer_blocks = nn.Sequential(*(UniVLABlock(dim, heads, dropout) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, N, 768) to (B, T, N, D)."""
        x = self.ffn(x)
        return self.transformer_blocks(x + sinusoid(x.shape[2], x.shape[3], x.device).to(x))


class UniVLANetwork(nn.Module):
    """Latent actions between two frames, from the patch features of both.

    Arguments are fields of the published configuration. `others`, of the
    backbone and the decoder of training, are ignored.
    """

    def __init__(
        self,
        *,
        model_dim: int,
        latent_dim: int,
        num_latents: int,
        enc_blocks: int,
        num_heads: int,
        dropout: float = 0.0,
        **others: int,
    ) -> None:
        super().__init__()
        self.action_latent = nn.Parameter(torch.zeros(1, 1, CODES, FEATURES))
        self.action_latent_controllable = nn.Parameter(torch.zeros(1, 1, CODES, FEATURES))
        self.encoder = SpaceTimeTransformer(model_dim, enc_blocks, num_heads, dropout)
        self.to_codebook = nn.Linear(model_dim, latent_dim)
        self.to_codebook_uncontrol = nn.Linear(model_dim, latent_dim)
        self.vq = nn.ModuleDict({"codebook": nn.Embedding(UNCONTROLLABLE_ROWS, latent_dim)})
        self.vq_action = nn.ModuleDict({"codebook": nn.Embedding(num_latents, latent_dim)})

    def encode(self, features: Tensor) -> Tensor:
        """Patch features (B, 2, N, 768) to 8 encoded latents (B, 2, 8, model_dim)."""
        # The same 8 learned tokens precede the patches of every frame.
        latents = torch.cat([self.action_latent_controllable, self.action_latent], 2)
        x = torch.cat([latents.expand(*features.shape[:2], -1, -1).to(features), features], 2)
        return self.encoder(x)[:, :, : 2 * CODES]

    def latent(self, encoded: Tensor) -> Tensor:
        """Controllable latents (B, 4, D), from the second frame's output of `encode`."""
        return self.to_codebook(encoded[:, 1, :CODES])

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features of pairs (B, 2, N, 768) to controllable rows, and ids (B, 4)."""
        weight: Any = self.vq_action["codebook"].weight
        return nearest_rows(self.latent(self.encode(features)), weight)


class VillaConfig(BaseModel, strict=True, frozen=True, extra="allow"):
    """Fields of the published ``model_config.json`` with their defaults.

    Augmentation, `use_xformers` (another kernel of the same attention),
    `use_qk_norm` and the decoder's fields don't change what is encoded.
    """

    resolution: PositiveInt = 224
    patch_size: PositiveInt = 14
    in_channels: PositiveInt = 3
    d_t: PositiveInt = 8
    augment_type: Any = "resize_crop"
    augment_level: Any = "clip"
    random_crop_scale: Any = (0.8, 1.0)
    random_crop_ratio: Any = (0.75, 4 / 3)
    mlp_ratio: PositiveFloat = 4.0
    use_xformers: bool | None = None
    encoder_depth: PositiveInt = 12
    encoder_embed_dim: PositiveInt = 768
    encoder_n_heads: PositiveInt = 8
    action_latent_dim: PositiveInt = 128
    st_use_qk_norm: bool = True
    num_learned_tokens: PositiveInt = 4
    map_heads: PositiveInt = 24
    decoder_depth: PositiveInt = 8
    decoder_embed_dim: PositiveInt = 768
    decoder_n_heads: PositiveInt = 16
    use_qk_norm: bool = True
    n_codes: PositiveInt = 32


class VillaRMSNorm(nn.Module):
    """Division by the root mean square, times a gain."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return x / rms.clamp(min=1e-8) * self.g


class SelfAttention(nn.Module):
    """Self-attention whose queries and keys may be normed per head."""

    def __init__(self, dim: int, heads: int, norms: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = (nn.LayerNorm(dim // heads) if norms else nn.Identity() for _ in "qk")
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """(B, N, D) to the same shape."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        return self.proj(attend_heads(self.q_norm(q), self.k_norm(k), v, causal))


class VillaBlock(nn.Module):
    """Attention within frames, then causally over frames, then feed-forward.

    Shifts, scales and gates are learned constants. As published, attention
    over time takes its input without a norm, and has the gate of the attention
    within a frame.
    """

    def __init__(self, config: VillaConfig) -> None:
        super().__init__()
        dim = config.encoder_embed_dim
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim))
        self.attn = SelfAttention(dim, config.encoder_n_heads, config.st_use_qk_norm)
        self.mlp = gelu_mlp(dim, int(dim * config.mlp_ratio), "tanh")
        self.attn_temp = SelfAttention(dim, config.encoder_n_heads, config.st_use_qk_norm)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """(B, T, N, D) to the same; `time` (T, 1, D) enters attention over time."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.scale_shift_table
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        x = x + gate * each_frame(self.attn, normed)
        x = x + gate * among_frames(self.attn_temp, x if time is None else x + time)
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_mlp) + shift_mlp
        return x + gate_mlp * self.mlp(normed)


class QueryAttention(nn.Module):
    """Queries (B, M, D) attend to tokens (B, N, D); the output is projected on request."""

    def __init__(self, dim: int, heads: int, projects: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim) if projects else nn.Identity()

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = self._heads(queries, tokens)
        return self.proj(attend_heads(q, k, v))

    def weights(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Softmax weights (B, heads, M, N) of the queries on the tokens."""
        q, k, _ = self._heads(queries, tokens)
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1)

    def _heads(self, queries: Tensor, tokens: Tensor) -> list[Tensor]:
        return [split_heads(part, self.heads) for part in (self.q(queries), *self.kv(tokens).chunk(2, -1))]


class AttentionPool(nn.Module):
    """Pooling of a transition's patches by learned queries, with post-norms."""

    def __init__(self, config: VillaConfig) -> None:
        super().__init__()
        dim, hidden = config.encoder_embed_dim, int(config.mlp_ratio * config.encoder_embed_dim)
        self.latents = nn.Parameter(torch.zeros(config.num_learned_tokens, dim))
        self.pre_projection = nn.Linear(dim, dim)
        self.attn_norm = VillaRMSNorm(dim)
        self.attn = QueryAttention(dim, config.map_heads, projects=True)
        self.mlp_norm = VillaRMSNorm(dim)
        gated = OrderedDict(project=nn.Linear(dim, 2 * hidden), gate=Gated(nn.SiLU()))
        self.mlp = nn.Sequential(nn.Sequential(gated), nn.Linear(hidden, dim))
        self.final_proj = nn.Sequential(nn.Linear(dim, config.action_latent_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, width) of B transitions to latents (B, learned tokens, D)."""
        queries = self.latents.expand(len(x), -1, -1).to(x)
        queries = self.attn_norm(queries + self.attn(queries, self.pre_projection(x)))
        queries = self.mlp_norm(queries + self.mlp(queries))
        return self.final_proj(queries)


class VillaEncoder(nn.Module):
    """villa-X's encoder: patch tokens of frames, and latents of neighbouring frames."""

    def __init__(self, config: VillaConfig) -> None:
        super().__init__()
        dim, patch = config.encoder_embed_dim, config.patch_size
        count = (config.resolution // patch) ** 2
        self.pe_spatial = nn.Parameter(torch.zeros(1, count, dim), requires_grad=False)
        self.pe_temporal = nn.Parameter(torch.zeros(1, config.d_t, dim), requires_grad=False)
        self.embed = nn.ModuleDict({"proj": nn.Conv2d(COLOURS, dim, patch, stride=patch)})
        self.layers = nn.ModuleList(VillaBlock(config) for _ in range(config.encoder_depth))
        self.norm = VillaRMSNorm(dim)
        self.map_block = AttentionPool(config)

    def patches(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) to patches (B, T, N, width) with their positions."""
        maps = self.embed["proj"](clips.flatten(0, 1))
        return (maps.flatten(2).transpose(1, 2) + self.pe_spatial).unflatten(0, clips.shape[:2])

    def tokens(self, patches: Tensor) -> Tensor:
        """Encode the patches (B, T, N, width) of one window, T at most `d_t`."""
        x = patches
        # As published, positions in time enter the first block alone.
        for index, layer in enumerate(self.layers):
            x = layer(x, self.pe_temporal[0, : x.shape[1], None] if index == 0 else None)
        return self.norm(x)

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, N, width) to latents (B, T - 1, learned tokens, D)."""
        between = (tokens[:, 1:] + tokens[:, :-1]) / 2
        return each_frame(self.map_block, between)


class VillaNetwork(nn.Module):
    def __init__(self, config: VillaConfig) -> None:
        super().__init__()
        self.window = config.d_t
        self.encoder = VillaEncoder(config)
        self.vq = nn.ModuleDict({"embedding": nn.Embedding(config.n_codes, config.action_latent_dim)})

    def latents(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) to latents (B, T - 1, learned tokens, D).

        Clips are normalised, T is at least 2. Above `d_t` frames, windows
        slide by one frame: the first gives all its transitions, a later one
        its last.
        """
        patches = self.encoder.patches(clips)
        count = patches.shape[1] - self.window + 1
        if count <= 1:
            return self.encoder.pool(self.encoder.tokens(patches))
        windows = patches.unfold(1, self.window, 1).movedim(-1, 2).contiguous()  # (B, windows, d_t, N, width)
        tokens = self.encoder.tokens(windows.flatten(0, 1)).unflatten(0, (-1, count))
        first, last = self.encoder.pool(tokens[:, 0]), self.encoder.pool(tokens[:, 1:, -2:].flatten(0, 1))
        return torch.cat([first, last.flatten(0, 1).unflatten(0, (len(clips), -1))], 1)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised clips (B, T, 3, H, W) to codebook rows as `latents`, and ids."""
        weight: Any = self.vq["embedding"].weight
        return nearest_rows(self.latents(clips), weight)
