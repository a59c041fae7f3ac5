"""Latent action models of the LAQ family (LAPA, Ye et al. 2024, arXiv 2410.11758), over pixels or frame features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lary.nets.attention import GridBias, Transformer
from lary.nets.quantize import DifferenceQuantizer


@dataclass(frozen=True)
class LaqConfig:
    """Sizes of a model, under the names of the published code.

    Attributes:
        dim: D of tokens. quant_dim, codebook_size, code_seq_len: see `DifferenceQuantizer`.
        image_size, patch_size: in pixels; the grid has image_size // patch_size rows and columns.
        spatial_depth: layers over the places of a frame, in encoder and decoder. temporal_depth: layers over time.
        heads, dim_head: of every attention.
        patch_input: the model embeds patches of pixels itself, instead of taking features of an encoder.
        pixel_output: the decoder ends in pixels of a patch (it is stored, the benchmark doesn't run it).
    """

    dim: int
    quant_dim: int
    codebook_size: int
    image_size: int
    patch_size: int
    spatial_depth: int
    temporal_depth: int
    dim_head: int
    heads: int
    code_seq_len: int
    patch_input: bool = False
    pixel_output: bool = False

    @property
    def grid(self) -> int:
        return int(self.image_size / self.patch_size)


class PatchEmbedding(nn.Sequential):
    """Square patches with features ordered (colour, row, column), normed, projected to D and normed again."""

    def __init__(self, patch: int, dim: int) -> None:
        features = 3 * patch**2
        super().__init__(nn.Identity(), nn.LayerNorm(features), nn.Linear(features, dim), nn.LayerNorm(dim))
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W') to tokens (B, H, W, D)."""
        side = self.patch
        batch, colours, height, width = images.shape
        cut = images.reshape(batch, colours, height // side, side, width // side, side)
        tokens = cut.permute(0, 2, 4, 1, 3, 5).flatten(3)
        for layer in self:
            tokens = layer(tokens)
        return tokens


class PatchTokens(nn.Module):
    """A backbone of transformers as an embedding: the patch tokens of its last layer, after its final norm, on a grid.

    Args:
        leading: tokens before those of the patches.
        grid: rows and columns of patches.
    """

    def __init__(self, backbone: nn.Module, leading: int, grid: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.leading = leading
        self.grid = grid

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W') to tokens (B, H, W, D)."""
        output: Any = self.backbone(pixel_values=images)
        tokens: Tensor = output.last_hidden_state[:, self.leading :]
        return tokens.reshape(len(images), self.grid, self.grid, -1)


class LatentActionModel(nn.Module):
    """Encoder and quantizer of a LAQ model; its decoder is declared, since checkpoints hold it, and never runs.

    Attributes:
        features: the encoder of frames, images (B, 3, H', W') to tokens (B, H, W, D); set once this model's own
            weights are loaded. None for a model with its own patch embedding.
    """

    DECODER = ("dec_spatial_transformer", "to_pixels_first_frame")

    def __init__(self, config: LaqConfig) -> None:
        super().__init__()
        dim, sizes = config.dim, (config.heads, config.dim_head)
        self.config = config
        self.features: nn.Module | None = None
        if config.patch_input:
            self.to_patch_emb_first_frame = PatchEmbedding(config.patch_size, dim)
        self.spatial_rel_pos_bias = GridBias(dim, config.heads)
        self.enc_spatial_transformer = Transformer(dim, config.spatial_depth, *sizes)
        self.enc_temporal_transformer = Transformer(dim, config.temporal_depth, *sizes)
        self.vq = DifferenceQuantizer(
            dim, config.quant_dim, config.codebook_size, config.grid, config.code_seq_len
        )  # fmt: skip
        self.dec_spatial_transformer = Transformer(dim, config.spatial_depth, *sizes, cross_attention=True)
        if config.pixel_output:
            self.to_pixels_first_frame = nn.Sequential(nn.Linear(dim, 3 * config.patch_size**2))

    def drop_decoder(self) -> None:
        """Free the weights that encoding doesn't need."""
        for name in self.DECODER:
            if hasattr(self, name):
                delattr(self, name)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H', W'), each by itself, to tokens (B, H, W, D)."""
        embedding = self.to_patch_emb_first_frame if self.config.patch_input else self.features
        assert embedding is not None, "the encoder of frames was not set"
        tokens: Tensor = embedding(images)
        return tokens

    def encode(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded pairs (B, 2, H, W, D) to tokens (B, H * W, D) of the first and of the last frame."""
        batch, frames, rows, columns, dim = embedded.shape
        grid = (batch, frames, rows, columns)
        x = self.enc_spatial_transformer(
            embedded.reshape(batch * frames, rows * columns, dim), grid, self.spatial_rel_pos_bias(rows, columns)
        )
        x = x.reshape(batch, frames, -1, dim).transpose(1, 2)  # (B, H * W, T, D)
        x = self.enc_temporal_transformer(x.reshape(-1, frames, dim), grid)
        first, last = x.reshape(batch, -1, frames, dim).unbind(dim=2)
        return first, last

    def latent(self, embedded: Tensor) -> Tensor:
        """Embedded pairs (B, 2, H, W, D) to the continuous latent (B, N, Q)."""
        return self.vq.latent(*self.encode(embedded))
