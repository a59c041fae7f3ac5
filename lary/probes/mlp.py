"""The MLP probe of action regression: flattened tokens to a flattened action chunk, with the published keys."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WHOLE = slice(None)

ROWS_AT_ONCE = 64
"""Rows of the first layer's weights that its backward pass works on at once, so that no second copy of them is made."""


class NormedLinear(torch.autograd.Function):
    """``linear(layer_norm(x))`` of an input (B, F) that needs no gradient, as latents don't.

    The gradients of the norm's weights follow from the product that the linear layer's own gradient is made of, so the
    backward pass has one matrix product where autograd has two. For the published width that is a third of all work.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
        """Tokens (B, F), norm's weights (F,) twice, linear's weights (H, F) and (H,) -> (B, H)."""
        normed, mean, deviation = torch.native_layer_norm(x, (x.shape[1],), scale, shift, eps)
        ctx.save_for_backward(x, mean, deviation, scale, shift, weight)
        return F.linear(normed, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With y = W (s * z + t) + b and dy (B, H): dW = (dy' z) * s + db t', ds = sum(W * (dy' z)), dt = db W."""
        x, mean, deviation, scale, shift, weight = ctx.saved_tensors
        (given,) = gradients
        bias = given.sum(dim=0)
        product = given.T @ ((x - mean) * deviation)
        of_scale = torch.zeros_like(scale)
        for start in range(0, len(product), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            of_scale += (product[rows] * weight[rows]).sum(dim=0)
            product[rows].mul_(scale).addr_(bias[rows], shift)
        return None, of_scale, bias @ weight, None, product, bias


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)  # type: ignore[no-any-return]


class ResidualMlp(nn.Module):
    """LayerNorm, Linear, ReLU, residual blocks, LayerNorm, Linear: (B, input_dim) -> (B, output_dim)."""

    def __init__(self, input_dim: int, output_dim: int, hidden_dim: int, num_blocks: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden_dim) for _ in range(num_blocks))
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        norm, first = self.layer_norm1, self.fc1
        if x.requires_grad:
            x = F.relu(first(norm(x)))
        else:
            x = F.relu(NormedLinear.apply(x, norm.weight, norm.bias, norm.eps, first.weight, first.bias))  # type: ignore[no-untyped-call]
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))  # type: ignore[no-any-return]


class ActionExpertMLP(nn.Module):
    """Tokens (B, ...), every axis flattened in storage order -> normalised chunk (B, K * A), step-major."""

    def __init__(
        self, input_dim: int, action_dim: int, action_steps: int, hidden_dim: int = 4096, num_blocks: int = 2
    ) -> None:
        super().__init__()
        self.model = ResidualMlp(input_dim, action_dim * action_steps, hidden_dim, num_blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens.flatten(1))  # type: ignore[no-any-return]

    def loss(self, tokens: Tensor, target: Tensor, count: int | None = None, share: slice = WHOLE) -> Tensor:
        """Huber loss of the predicted chunk against `target` (B, K * A): the sum over the size of the whole batch.

        `tokens` and `target` are the `share` of a batch of `count` samples.
        """
        count = len(tokens) if count is None else count
        return F.huber_loss(self(tokens), target, reduction="sum") / (count * target.shape[1])

    def predict(self, tokens: Tensor) -> Tensor:
        """The predicted chunk (B, K * A)."""
        return self(tokens)  # type: ignore[no-any-return]
