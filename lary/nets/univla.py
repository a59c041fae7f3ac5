"""UniVLA's latent action network on DINOv2 features (Bu et al. 2025, arXiv 2505.06111), without its training decoder.

Modules carry the names of the published state dict, so `state_dict` keys are the file's keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 768
"""Width of the features that enter, whatever `model_dim` is: that of DINOv2 ViT-B."""
CODES = 4
"""Latent actions of each kind: controllable ones first, then uncontrollable ones, then the patches."""
UNCONTROLLABLE_ROWS = 16
"""Rows of the codebook of uncontrollable actions, whatever `num_latents` is."""


@dataclass(frozen=True)
class UniVLAConfig:
    """Fields of the published configuration, with the values of the released weights.

    `in_dim` and `patch_size` describe the pixels and are the backbone's business; `dec_blocks` concerns the training
    decoder alone (see `training_shapes`); `dropout` acts in training alone.
    """

    in_dim: int = 3
    model_dim: int = 768
    latent_dim: int = 128
    num_latents: int = 16
    patch_size: int = 14
    enc_blocks: int = 12
    dec_blocks: int = 12
    num_heads: int = 12
    dropout: float = 0.0


class UniVLAActions(NamedTuple):
    """The latents of B pairs: continuous ones and their codebook rows, (B, 4, D) each, and their ids (B, 4) int64."""

    latent: Tensor
    tokens: Tensor
    codes: Tensor


def nearest_rows(latent: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The codebook's row (R, D) nearest to each latent (..., D) by Euclidean distance, and its id (...) int64.

    The published sum latent + (row - latent) equals the row up to rounding. As there, a latent that isn't finite
    shows: it stays what it is.
    """
    distances = torch.cdist(
        latent.flatten(0, -2).float(), codebook.float(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    codes = distances.argmin(dim=-1).reshape(latent.shape[:-1])
    rows = codebook[codes]
    if latent.requires_grad:
        rows = rows + (latent - latent.detach())  # adds zero: gradients pass straight through to the latent
    return rows.where(latent.isfinite(), latent.to(rows)), codes


def sinusoid(count: int, dim: int) -> Tensor:
    """Position code (N, D) float32: sine at even columns, cosine at odd ones, frequencies 10000^(-2i/D)."""
    frequencies = torch.exp(torch.arange(0, dim, 2).float() * -(math.log(10000.0) / dim))
    angles = torch.arange(count).float()[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[:, :dim]


class Codebook(nn.Module):
    """Rows to choose from."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(rows, dim)

    def forward(self, latent: Tensor) -> UniVLAActions:
        """The row nearest to each latent (B, 4, D)."""
        return UniVLAActions(latent, *nearest_rows(latent, self.codebook.weight))


class UniVLAAttention(nn.Module):
    """Self-attention whose projections in have no bias."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """(B, N, D) to the same shape."""
        q, k, v = (to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


class UniVLASpaceTimeBlock(nn.Module):
    """Attention among the tokens of a frame, then causally among the frames of a token, then a feed-forward part."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.spatial_attn = UniVLAAttention(dim, heads, dropout)
        self.temporal_attn = UniVLAAttention(dim, heads, dropout)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim))
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, N, D) to the same shape."""
        batch, frames, count, _ = x.shape
        x = x + self.spatial_attn(self.norm1(x).flatten(0, 1)).unflatten(0, (batch, frames))
        over_time = self.norm2(x).transpose(1, 2).flatten(0, 1)
        x = x + self.temporal_attn(over_time, causal=True).unflatten(0, (batch, count)).transpose(1, 2)
        out: Tensor = x + self.ffn(self.norm3(x))
        return out


class SpaceTimeTransformer(nn.Module):
    """Projection of the features, position code, blocks; no final norm."""

    def __init__(self, config: UniVLAConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.ffn = nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, dim), nn.LayerNorm(dim))
        self.transformer_blocks = nn.ModuleList(
            UniVLASpaceTimeBlock(dim, config.num_heads, config.dropout) for _ in range(config.enc_blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, N, 768) to (B, T, N, model_dim)."""
        x = self.ffn(x)
        x = x + sinusoid(x.shape[2], x.shape[3]).to(x)
        for block in self.transformer_blocks:
            x = block(x)
        return x


class UniVLANetwork(nn.Module):
    """Latent actions between two frames, from the patch features of both."""

    def __init__(self, config: UniVLAConfig) -> None:
        super().__init__()
        self.action_latent = nn.Parameter(torch.zeros(1, 1, CODES, FEATURES))
        self.action_latent_controllable = nn.Parameter(torch.zeros(1, 1, CODES, FEATURES))
        self.encoder = SpaceTimeTransformer(config)
        self.to_codebook = nn.Linear(config.model_dim, config.latent_dim)
        self.to_codebook_uncontrol = nn.Linear(config.model_dim, config.latent_dim)
        self.vq = Codebook(UNCONTROLLABLE_ROWS, config.latent_dim)
        self.vq_action = Codebook(config.num_latents, config.latent_dim)

    def encode(self, features: Tensor) -> Tensor:
        """Patch features of pairs (B, 2, N, 768) to the encoder's output at the 8 latents, (B, 2, 8, model_dim)."""
        latents = torch.cat([self.action_latent_controllable, self.action_latent], dim=2)
        x = torch.cat([latents.expand(*features.shape[:2], -1, -1).to(features), features], dim=2)
        encoded: Tensor = self.encoder(x)
        return encoded[:, :, : 2 * CODES]

    def controllable(self, encoded: Tensor) -> UniVLAActions:
        """What the benchmark stores, from the second frame's output of `encode`."""
        actions: UniVLAActions = self.vq_action(self.to_codebook(encoded[:, 1, :CODES]))
        return actions

    def uncontrollable(self, encoded: Tensor) -> UniVLAActions:
        """The other half: what changes between the frames for other reasons than the robot's action."""
        actions: UniVLAActions = self.vq(self.to_codebook_uncontrol(encoded[:, 1, CODES:]))
        return actions

    def forward(self, features: Tensor) -> UniVLAActions:
        """Patch features of pairs (B, 2, N, 768) to the controllable latent actions."""
        return self.controllable(self.encode(features))
