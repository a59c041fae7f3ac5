"""The attentive probe: a projector, self-attention, one learned query that attends to all tokens, a linear layer.

Keys of the state dict, arithmetic and initialisation are those of the published probe (arXiv 2604.11689, appendix on
classification probing), which follows the attentive classifier of V-JEPA 2 (arXiv 2506.09985).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02

SHORT = 256
"""Keys up to which plain products beat torch's fused attention in bfloat16 on a CPU, by 3 to 8 times."""


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, D) -> (B, heads, S, D / heads)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of (B, heads, Q, E) to (B, heads, S, E)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT:
        return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens, (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(_attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SelfAttentionBlock(nn.Module):
    """Pre-norm attention and MLP with residuals, (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Queries (B, Q, D) attend to tokens (B, S, D); there is no projection of the output."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q = _split_heads(self.q(queries), self.heads)
        k, v = (_split_heads(part, self.heads) for part in self.kv(tokens).chunk(2, dim=-1))
        return _attend(q, k, v).transpose(1, 2).flatten(2)


class CrossAttentionBlock(nn.Module):
    """Cross-attention and MLP with residuals on the queries, which enter the attention without a norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.xattn = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))  # type: ignore[no-any-return]


class AttentivePooler(nn.Module):
    """``depth - 1`` self-attention blocks, then one query pools the tokens: (B, S, D) -> (B, 1, D)."""

    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, dim))
        self.cross_attention_block = CrossAttentionBlock(dim, heads)
        self.blocks = nn.ModuleList(SelfAttentionBlock(dim, heads) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.cross_attention_block(self.query_tokens.expand(len(x), -1, -1), x)  # type: ignore[no-any-return]


class AttentiveClassifier(nn.Module):
    """Projected tokens (B, P, N, D) or (B, N, D) -> logits (B, L).

    Only tokens with the axis P get the temporal embedding of their step; nothing tells places in N apart.
    """

    def __init__(self, dim: int, classes: int, heads: int, depth: int, max_temporal_len: int) -> None:
        super().__init__()
        self.temporal_embed = nn.Parameter(torch.zeros(1, max_temporal_len, 1, dim))
        self.pooler = AttentivePooler(dim, heads, depth)
        self.linear = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = (x + self._steps(x.shape[1])).flatten(1, 2)
        return self.linear(self.pooler(x).squeeze(1))  # type: ignore[no-any-return]

    def _steps(self, count: int) -> Tensor:
        """Embedding of the first `count` steps (1, P, 1, D), stretched where there are more steps than it has."""
        table = self.temporal_embed
        if count <= table.shape[1]:
            return table[:, :count]
        stretched = F.interpolate(table.permute(0, 3, 1, 2), size=(count, 1), mode="bilinear", align_corners=False)
        return stretched.permute(0, 2, 3, 1)


class AttentiveProbe(nn.Module):
    """One head: tokens (B, P, N, input_dim) or (B, N, input_dim) -> logits (B, L)."""

    def __init__(
        self,
        input_dim: int,
        num_classes: int,
        model_dim: int = 768,
        num_heads: int = 16,
        depth: int = 4,
        max_temporal_len: int = 128,
    ) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(input_dim, model_dim), nn.LayerNorm(model_dim), nn.GELU())
        self.classifier = AttentiveClassifier(model_dim, num_classes, num_heads, depth, max_temporal_len)
        self._initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(self.projector(tokens))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _initialise(self) -> None:
        """Truncated normal weights, residual branches scaled down with depth; the last layer keeps torch's default."""
        pooler = self.classifier.pooler
        for part in (self.projector, pooler):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-2.0, b=2.0)
                    nn.init.zeros_(module.bias)
        for parameter in (pooler.query_tokens, self.classifier.temporal_embed):
            nn.init.trunc_normal_(parameter, std=INIT_STD, a=-2.0, b=2.0)
        for index, block in enumerate(pooler.blocks):
            assert isinstance(block, SelfAttentionBlock)
            block.attn.proj.weight.div_(math.sqrt(2 * (index + 1)))
            block.mlp.fc2.weight.div_(math.sqrt(2 * (index + 1)))
        pooler.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2 * max(1, len(pooler.blocks))))
