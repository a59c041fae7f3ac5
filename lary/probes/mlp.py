"""The MLP probe of action regression: flattened tokens to a flattened action chunk, with the published keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
        x = F.relu(self.fc1(self.layer_norm1(x)))
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

    def loss(self, tokens: Tensor, target: Tensor) -> Tensor:
        """Huber loss of the predicted chunk against `target` (B, K * A)."""
        return F.huber_loss(self(tokens), target)

    def predict(self, tokens: Tensor) -> Tensor:
        """The predicted chunk (B, K * A)."""
        return self(tokens)  # type: ignore[no-any-return]
