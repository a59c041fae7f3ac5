"""Pooling over the N tokens of each latent step: fewer bytes on disk, fewer tokens for the probe.

``mean`` averages all tokens, ``cls`` takes the encoder's class token, ``grid:K`` averages a square grid of tokens
down to K x K cells (adaptive average pooling, cells as in ``torch.nn.functional.adaptive_avg_pool2d``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.latents.store import Floats, StoredLatents
from lary.models.spec import MODELS, ModelSpec
from lary.types import Latents, UsageError

if TYPE_CHECKING:
    import torch

NONE = "none"


@dataclass(frozen=True)
class Pooling:
    """A pooling: its kind, and for ``grid`` its cells per side."""

    kind: str
    cells: int = 0


def parse_pool(text: str) -> Pooling:
    """The pooling that ``--pool`` names. Raises UsageError for any other word."""
    if text in (NONE, "mean", "cls"):
        return Pooling(text)
    if found := re.fullmatch(r"grid:([1-9]\d{0,2})", text):
        return Pooling("grid", int(found[1]))
    raise UsageError(f"--pool {text}: expected none, mean, cls or grid:K such as grid:4.")


def check_pool(model: ModelSpec, text: str) -> None:
    """Refuse a pooling that isn't one, or that the model's record can't offer. Raises UsageError."""
    if parse_pool(text).kind == "cls" and not model.class_token:
        offered = ", ".join(other.name for other in MODELS if other.class_token)
        raise UsageError(f"--pool cls: '{model.name}' gives no class token; these models do: {offered}.")


def pooled_latents(latents: Latents, pool: str) -> Latents:
    """Latents as they are stored under a pooling: tokens (B, P, N, D) or (B, N, D) float32, codes as they are.

    Raises:
        UsageError: ``cls`` and the encoder gives no class token, or a grid that the tokens don't have.
    """
    pooling = parse_pool(pool)
    if pooling.kind == NONE:
        return latents
    if pooling.kind == "cls":
        if latents.cls is None:
            raise UsageError("--pool cls: this model gives no class token; use --pool mean.")
        return Latents(latents.cls.float().unsqueeze(-2), latents.codes)
    return Latents(pooled_tokens(latents.tokens.float(), pooling), latents.codes)


def pooled_tokens(tokens: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Tokens (..., N, D) pooled by ``mean`` or ``grid``, (..., 1 or K * K, D). Raises UsageError, as above."""
    import torch

    if pooling.kind == "cls":
        raise UsageError("--pool cls: class tokens aren't among the stored tokens; extract with --pool cls.")
    if pooling.kind == "mean":
        return tokens.mean(dim=-2, keepdim=True)
    *outer, count, dim = tokens.shape
    side = math.isqrt(count)
    if side * side != count or pooling.cells > side:
        raise UsageError(
            f"--pool grid:{pooling.cells}: the model gives {count} tokens per step, "
            + (f"a grid of {side} x {side}." if side * side == count else "which is no square grid; use --pool mean.")
        )
    planes = tokens.reshape(-1, side, side, dim).permute(0, 3, 1, 2)
    cells = torch.nn.functional.adaptive_avg_pool2d(planes, pooling.cells)
    return cells.permute(0, 2, 3, 1).reshape(*outer, pooling.cells**2, dim)


class PooledSource:
    """A `StoredLatents` of all tokens, pooled as they are read."""

    def __init__(self, source: StoredLatents, pool: str) -> None:
        self._source, self._pool_name = source, pool
        self._shape = tuple(self._pool(np.zeros((1, *source.shape), np.float32)).shape[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def __len__(self) -> int:
        return len(self._source)

    def take(self, positions: Collection[int]) -> PooledSource:
        """Some of the samples."""
        return PooledSource(self._source.take(positions), self._pool_name)

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        """Pooled tokens (B, *shape) float32."""
        return self._pool(self._source.read(rows))

    def codes(self, rows: Collection[int]) -> list[npt.NDArray[Any] | None]:
        """Codes of samples, of all tokens."""
        return self._source.codes(rows)

    def _pool(self, tokens: Floats) -> Floats:
        import torch

        pooled = pooled_tokens(torch.from_numpy(tokens), parse_pool(self._pool_name))
        found: Floats = pooled.contiguous().numpy()
        return found
