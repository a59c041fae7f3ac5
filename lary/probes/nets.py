"""Networks of the attentive probe and, for regression, the MLP probe.

Keys, arithmetic and initialisation are those of the published probes (arXiv
2604.11689, appendix on probing). The attentive one follows V-JEPA 2 (arXiv
2506.09985): a projector, self-attention, a learned query that attends to all
S tokens, a linear layer.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lary.arrays import Floats, Ints
from lary.files import reason_of
from lary.nets.spacetime import QueryAttention, SelfAttention, gelu_mlp
from lary.probes.sources import standardised
from lary.types import JsonDict, LaryError, LatentSource

INIT_STD = 0.02
# Rows of weights per step of a backward pass, to copy few at once.
ROWS_AT_ONCE = 64


class SelfBlock(nn.Module):
    """Pre-norm attention and MLP with residuals, (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, heads: int, gelu: str = "none", **norm: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **norm)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, **norm)
        self.mlp = gelu_mlp(dim, 4 * dim, gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Pooler(nn.Module):
    """Self-attention blocks, then pooling by one query: (B, S, D) -> (B, D).

    The query enters the attention without a norm.
    """

    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, dim))
        self.cross_attention_block = nn.ModuleDict(
            {
                "norm1": nn.LayerNorm(dim),
                "xattn": QueryAttention(dim, heads),
                "norm2": nn.LayerNorm(dim),
                "mlp": gelu_mlp(dim, 4 * dim),
            }
        )
        self.blocks = nn.ModuleList(SelfBlock(dim, heads) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        cross, query = self.cross_attention_block, self.query_tokens.expand(len(x), -1, -1)
        query = query + cross["xattn"](query, cross["norm1"](x))
        return (query + cross["mlp"](cross["norm2"](query))).squeeze(1)


class _AttentiveClassifier(nn.Module):
    """Projected tokens (B, P, N, D), (B, N, D) or (B, D) -> logits (B, L).

    Only tokens with the axis P get a temporal embedding, interpolated for more
    steps than it has. As published, the order within a step is not embedded.
    """

    def __init__(self, dim: int, classes: int, heads: int, depth: int, max_temporal_len: int) -> None:
        super().__init__()
        self.temporal_embed = nn.Parameter(torch.zeros(1, max_temporal_len, 1, dim))
        self.pooler = _Pooler(dim, heads, depth)
        self.linear = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            table: Tensor = self.temporal_embed
            count = x.shape[1]
            if count > table.shape[1]:
                channels_first = table.permute(0, 3, 1, 2)
                table = F.interpolate(channels_first, size=(count, 1), mode="bilinear").permute(0, 2, 3, 1)
            x = (x + table[:, :count]).flatten(1, 2)
        elif x.ndim == 2:
            x = x[:, None]
        return self.linear(self.pooler(x))


class AttentiveProbe(nn.Module):
    """One head: tokens (B, P, N, D), (B, N, D) or (B, D) -> logits (B, L)."""

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
        self.classifier = _AttentiveClassifier(model_dim, num_classes, num_heads, depth, max_temporal_len)
        self._initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(self.projector(tokens))

    @torch.no_grad()
    def _initialise(self) -> None:
        """As published: normal weights, smaller with depth, not in the last layer."""
        pooler: Any = self.classifier.pooler
        # The bounds are absolute, 100 deviations:
        # in effect nothing is truncated.
        for part in (self.projector, pooler):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-2.0, b=2.0)
                    nn.init.zeros_(module.bias)
        for parameter in (pooler.query_tokens, self.classifier.temporal_embed):
            nn.init.trunc_normal_(parameter, std=INIT_STD, a=-2.0, b=2.0)
        for index, block in enumerate(pooler.blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * index))
            block.mlp.fc2.weight.div_(math.sqrt(2 * index))
        pooler.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2 * max(1, len(pooler.blocks))))


SelectedHeads = tuple[list[AttentiveProbe], tuple[Floats, Floats] | None]
"""The reported heads; mean and std (D,) to standardise latents."""


def load_heads(file: Path, classes: int) -> SelectedHeads:
    """Load the reported heads of a ``latest.pt``. Raises LaryError."""
    if not file.is_file():
        raise LaryError(f"{file} does not exist: run the probe again with --overwrite, then it is written.")
    try:
        state: JsonDict = torch.load(file, map_location="cpu", weights_only=True)
        selected, settings, scaling = state["selected"], state["settings"], state["scaling"]
        sizes = [settings[name] for name in ("model_dim", "num_heads", "depth", "max_temporal_len")]
        # Version 0.1 keeps the weights of one head.
        own = [selected["weights"]] if "weights" in selected else [state["classifiers"][at] for at in selected["heads"]]
        networks = [AttentiveProbe(weights["projector.0.weight"].shape[1], classes, *sizes).eval() for weights in own]
        for network, weights in zip(networks, own, strict=True):
            network.load_state_dict(weights)
    except Exception as error:  # torch raises many kinds for a file that isn't its own
        raise LaryError(f"{file} holds no head that can be used ({reason_of(error)}): run the probe again.") from error
    return networks, scaling and (scaling["mean"].numpy(), scaling["std"].numpy())


@torch.no_grad()
def attend(heads: SelectedHeads, source: LatentSource, rows: Sequence[int] | Ints) -> tuple[Floats, Floats]:
    """Probabilities (B, L) and attention (B, S) of the samples at `rows`, on the CPU.

    Both are means over the heads. Attention is also that over the heads of
    softmax weights, and sums to 1 over the tokens of all steps, step by step.
    """
    networks, scaling = heads
    read = standardised(source, *scaling) if scaling else source
    tokens = torch.tensor(read.read(np.asarray(rows)), dtype=torch.float32)
    seen: list[Tensor] = []
    found = torch.zeros(())
    for network in networks:
        attention = network.classifier.pooler.cross_attention_block["xattn"]
        hook = attention.register_forward_pre_hook(lambda own, inputs: seen.append(own.weights(*inputs)))
        with hook:
            found = found + network(tokens).softmax(dim=-1)
    return (found / len(networks)).numpy(), torch.stack(seen).mean(dim=(0, 2, 3)).numpy()


class _NormedLinear(torch.autograd.Function):
    """``linear(layer_norm(x))`` of an input without gradient, such as latents.

    The gradients of both layers follow from one product, where autograd has
    two: this saves a third of all work at the published width.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
        """`x` (B, F), `scale`, `shift` (F,), `weight` (H, F), `bias` (H,) -> (B, H)."""
        normed, mean, deviation = torch.native_layer_norm(x, (x.shape[1],), scale, shift, eps)
        ctx.save_for_backward(x, mean, deviation, scale, shift, weight)
        return F.linear(normed, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y = W (s * z + t) + b from dy (B, H), for z = normed x.

        With p = dy' z: dW = p * s + db t', ds = sum of W * p over rows, dt =
        db W.
        """
        x, mean, deviation, scale, shift, weight = ctx.saved_tensors
        given = gradients[0].to(weight)  # from bfloat16 under autocast
        bias = given.sum(dim=0)
        product = given.T @ ((x - mean) * deviation)
        of_scale = torch.zeros_like(scale)
        for start in range(0, len(product), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            of_scale += (product[rows] * weight[rows]).sum(dim=0)
            product[rows].mul_(scale).addr_(bias[rows], shift)
        return None, of_scale, bias @ weight, None, product, bias


class _ResidualBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class ActionExpertMLP(nn.Module):
    """Tokens (B, ...), flattened -> normalised chunk (B, K * A), step by step."""

    def __init__(
        self, input_dim: int, action_dim: int, action_steps: int, hidden_dim: int = 4096, num_blocks: int = 2
    ) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "layer_norm1": nn.LayerNorm(input_dim),
                "fc1": nn.Linear(input_dim, hidden_dim),
                "mlp_resnet_blocks": nn.Sequential(*(_ResidualBlock(hidden_dim) for _ in range(num_blocks))),
                "layer_norm2": nn.LayerNorm(hidden_dim),
                "fc2": nn.Linear(hidden_dim, action_dim * action_steps),
            }
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x, model = tokens.flatten(1), self.model
        norm, first = model["layer_norm1"], model["fc1"]
        if x.requires_grad:
            x = first(norm(x))
        else:
            x = _NormedLinear.apply(x, norm.weight, norm.bias, norm.eps, first.weight, first.bias)
        return model["fc2"](model["layer_norm2"](model["mlp_resnet_blocks"](F.relu(x))))

    predict = forward

    def loss(self, tokens: Tensor, target: Tensor, count: int, share: slice) -> Tensor:
        """Huber loss of a share, divided by the size of the whole batch."""
        return F.huber_loss(self(tokens).float(), target, reduction="sum") / (count * target.shape[1])
