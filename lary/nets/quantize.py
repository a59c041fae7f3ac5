"""Quantizer of the LAQ family: the difference of two frames as rows of a code, and the way back to tokens.

Noise substitution instead of a straight-through gradient is from Vali and Bäckström 2022 (NSVQ).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lary.nets.codes import CODE_STACKS


class DifferenceQuantizer(nn.Module):
    """Codes of what changed between two frames.

    Args:
        dim: D of the tokens.
        quant_dim: Q, width of a code row.
        codebook_size: rows of the codebook.
        grid: rows and columns of the tokens.
        code_seq_len: which stack of convolutions shrinks the grid; a key of `CODE_STACKS`.

    Raises:
        ValueError: there is no stack for this code length.
    """

    def __init__(self, dim: int, quant_dim: int, codebook_size: int, grid: int, code_seq_len: int) -> None:
        super().__init__()
        if code_seq_len not in CODE_STACKS:
            raise ValueError(f"code length {code_seq_len}: there is one of {', '.join(map(str, CODE_STACKS))}")
        self.grid = grid
        self.codebooks = nn.Parameter(torch.randn(codebook_size, quant_dim))
        self.project_in = nn.Linear(dim, quant_dim)
        self.project_out = nn.Linear(quant_dim, dim)
        self.cnn_encoder = nn.Sequential()
        for place, (kernel, stride, padding) in enumerate(CODE_STACKS[code_seq_len]):
            if place:
                self.cnn_encoder.append(nn.ReLU())
            self.cnn_encoder.append(nn.Conv2d(quant_dim, quant_dim, kernel, stride=stride, padding=padding))

    def latent(self, first: Tensor, last: Tensor) -> Tensor:
        """Tokens (B, H * W, D) of two frames to the continuous latent (B, N, Q)."""
        return self._rows(last) - self._rows(first)

    def _rows(self, tokens: Tensor) -> Tensor:
        projected = self.project_in(tokens).transpose(1, 2)
        maps = projected.reshape(*projected.shape[:2], self.grid, self.grid)
        rows: Tensor = self.cnn_encoder(maps).flatten(2).transpose(1, 2)
        return rows

    def codes(self, latent: Tensor) -> Tensor:
        """The nearest codebook row of each latent row: (B, N, Q) to int64 (B, N)."""
        book = self.codebooks
        distances = latent.square().sum(-1, keepdim=True) - 2 * latent @ book.T + book.square().sum(-1)
        return distances.argmin(dim=-1)

    def quantized(self, codes: Tensor) -> Tensor:
        """Codebook rows (B, N, Q) of codes (B, N)."""
        return self.codebooks[codes]

    def with_noise(self, latent: Tensor, codes: Tensor, draw: Tensor) -> Tensor:
        """Latent rows moved by their quantization error in the direction of a standard-normal `draw`, all (B, N, Q)."""
        error = (latent - self.quantized(codes)).norm(dim=-1, keepdim=True)
        moved: Tensor = latent + (error / draw.norm(dim=-1, keepdim=True) + 1e-12) * draw
        return moved

    def tokens(self, rows: Tensor) -> Tensor:
        """Rows (B, N, Q) of a latent, quantized or not, to tokens (B, N, D).

        The buffer of a sample is re-read as (Q, N) and transposed, which is not how it was flattened: every token
        mixes entries of several rows. The published weights were trained with it.
        """
        batch, count, width = rows.shape
        mixed = rows.reshape(batch, width, count).transpose(1, 2)
        out: Tensor = self.project_out(mixed)
        return out
