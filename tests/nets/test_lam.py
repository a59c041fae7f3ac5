"""Parts of the LAQ networks against the long way of computing the same."""

from __future__ import annotations

import pytest
import torch

from lary.nets import code_rows
from lary.nets.lam import DifferenceQuantizer, GridBias, PlaceConvolution
from lary.nets.univla import nearest_rows


def test_noise_has_the_length_of_the_quantization_error() -> None:
    torch.manual_seed(0)
    quantizer = DifferenceQuantizer(dim=6, quant_dim=8, codebook_size=5, grid=14, code_seq_len=16)
    latent, draw = torch.randn(2, 4, 16, 8).unbind()
    codes = quantizer.codes(latent)
    error = latent - quantizer.quantized(codes)
    moved = quantizer.with_noise(latent, codes, draw) - latent
    torch.testing.assert_close(moved.norm(dim=-1), error.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(moved, draw, dim=-1), torch.ones(4, 16))
    assert torch.equal(codes, torch.cdist(latent, quantizer.codebooks.expand(4, -1, -1)).argmin(dim=-1))


@pytest.mark.parametrize(
    ("length", "grid", "rows"),
    [(1, 7, 1), (2, 7, 2), (4, 7, 4), (16, 14, 16), (49, 14, 49), (64, 14, 64), (16, 16, 16), (64, 16, 81),
     (1, 14, 16), (2, 14, 20), (4, 14, 25), (256, 14, 49)],
)  # fmt: skip
def test_rows_of_a_code_follow_from_its_length_and_the_grid(length: int, grid: int, rows: int) -> None:
    quantizer = DifferenceQuantizer(dim=6, quant_dim=4, codebook_size=5, grid=grid, code_seq_len=length)
    first, last = torch.randn(2, 1, grid**2, 6).unbind()
    assert quantizer.latent(first, last).shape == (1, rows, 4)
    assert code_rows(length, grid) == rows


def test_place_convolution_is_the_causal_three_dimensional_one() -> None:
    torch.manual_seed(0)
    layer = PlaceConvolution(6)
    video = torch.randn(2, 4, 5, 3, 6)
    padded = torch.nn.functional.pad(video.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))
    wanted = layer.dsconv(padded).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(layer(video.reshape(8, 15, 6), (2, 4, 5, 3)), wanted.reshape(8, 15, 6))


def test_grid_bias_depends_on_the_offset_of_two_places() -> None:
    torch.manual_seed(0)
    bias = GridBias(6, heads=2)
    found = bias(3, 4)
    assert found.shape == (2, 12, 12)
    for one, other in ((0, 0), (1, 6), (11, 2)):
        offset = torch.tensor([one // 4 - other // 4, one % 4 - other % 4], dtype=torch.float32)
        torch.testing.assert_close(found[:, one, other], bias.net(offset.sign() * torch.log(offset.abs() + 1)))


def test_nearest_rows_are_those_of_the_codebook_and_pass_gradients() -> None:
    torch.manual_seed(0)
    latent, book = torch.randn(2, 4, 3), torch.randn(5, 3)
    rows, codes = nearest_rows(latent, book)
    assert torch.equal(rows, book[codes])
    assert torch.equal(codes, torch.cdist(latent, book.expand(2, -1, -1)).argmin(dim=-1))
    latent[0, 0, 0] = torch.inf  # what isn't finite shows
    assert not nearest_rows(latent, book)[0][0, 0].isfinite().all()
    traced = torch.randn(2, 4, 3, requires_grad=True)
    out, codes = nearest_rows(traced, book)
    assert torch.equal(out, book[codes])
    out.sum().backward()
    assert torch.equal(traced.grad, torch.ones(2, 4, 3))
