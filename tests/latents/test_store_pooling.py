"""Pooling of tokens: class tokens, and cells of a grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from lary.latents.store import parse_pool, pooled_latents, pooled_tokens
from lary.types import Latents, UsageError


def test_class_tokens_of_an_encoder() -> None:
    cls = torch.arange(12.0).reshape(2, 2, 3)
    found = pooled_latents(Latents(torch.zeros(2, 2, 5, 3), cls=cls), "cls")
    assert torch.equal(found.tokens, cls[:, :, None])
    with pytest.raises(UsageError, match="no class token"):
        pooled_latents(Latents(torch.zeros(2, 2, 5, 3)), "cls")


@given(side=st.integers(1, 7), cells=st.integers(1, 7), steps=st.sampled_from([(), (3,)]))
@limits(max_examples=30, deadline=None)
def test_grid_cells_are_means_of_their_tokens(side: int, cells: int, steps: tuple[int, ...]) -> None:
    tokens = torch.randn(2, *steps, side * side, 3, generator=torch.Generator().manual_seed(0))
    if cells > side:
        with pytest.raises(UsageError):
            pooled_tokens(tokens, parse_pool(f"grid:{cells}"))
        return
    found = pooled_tokens(tokens, parse_pool(f"grid:{cells}")).unflatten(-2, (cells, cells))
    grid = tokens.unflatten(-2, (side, side))
    for row in range(cells):
        for column in range(cells):
            top, bottom = row * side // cells, -(-(row + 1) * side // cells)
            left, right = column * side // cells, -(-(column + 1) * side // cells)
            expected = grid[..., top:bottom, left:right, :].mean((-3, -2))
            torch.testing.assert_close(found[..., row, column, :], expected)
