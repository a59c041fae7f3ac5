"""Networks in training: a latent action model with its decoder, UniVLA's quantizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lary.nets import CODE_STACKS, code_rows
from lary.nets.lam import LaqTransformer, LatentActionModel
from lary.nets.spacetime import nearest_rows
from lary.types import UsageError

LEARNED = 2
"""Learned keys of each cross attention, and as many values."""
SILENT = "spatial_rel_pos_bias.net.2.bias"
"""A parameter whose gradient is rounding alone.

It is a constant under a softmax. Adam turns rounding
into full steps, so the corrected recipe freezes it.
"""


@dataclass(frozen=True)
class Forward:
    """What a forward pass computes for a batch.

    Attributes:
        latent: continuous, (B, N, Q).
        codes: of the nearest rows, int64 (B, N).
        tokens: the decoder's context, (B, N, D).
        reconstruction: as `target`, of the second frame.
        target: pixels (B, 3, H', W') in [0, 1], or
            features of the backbone (B, H, W, D).
    """

    latent: Tensor
    codes: Tensor
    tokens: Tensor
    reconstruction: Tensor
    target: Tensor

    @property
    def loss(self) -> Tensor:
        """The mean squared error over all elements."""
        return F.mse_loss(self.reconstruction.float(), self.target.float())

    @property
    def losses(self) -> Tensor:
        """The mean squared error of each pair, (B,)."""
        error = self.reconstruction.float() - self.target.float()
        return error.square().flatten(1).mean(dim=1)


class TrainableModel(LatentActionModel):
    """A latent action model with its decoder, by the published names.

    Keyword arguments are those of `LatentActionModel`. With
    ``pixel_output`` the decoder predicts pixels, else
    features. Initial values are the library's; scales
    are 1, codebook and learned keys standard-normal.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        dim, patch = sizes["dim"], sizes["patch_size"]
        shape = sizes["spatial_depth"], sizes["heads"], sizes["dim_head"]
        self.dec_spatial_transformer = LaqTransformer(dim, *shape, LEARNED)
        self.patch = patch if sizes.get("pixel_output") else 0
        if self.patch:
            linear = nn.Linear(dim, 3 * patch**2)
            self.to_pixels_first_frame = nn.Sequential(linear)

    def decode(self, first: Tensor, tokens: Tensor) -> Tensor:
        """Predict the second frame from the first one and the action.

        Args:
            first: embedded first frames (B, H, W, D),
                which get no gradient, as published.
            tokens: of the action, (B, N, D).

        Returns what `Forward.reconstruction` describes.
        """
        batch, rows, columns, _ = first.shape
        bias, grid = self.spatial_rel_pos_bias(rows), (batch, 1, rows, columns)
        x = first.detach().flatten(1, 2)
        x = self.dec_spatial_transformer(x, grid, bias, tokens)
        if not self.patch:
            return torch.unflatten(x, 1, (rows, columns))
        planes: Tensor = self.to_pixels_first_frame(x)
        planes = planes.unflatten(1, (rows, columns))
        pixels: Tensor = F.pixel_shuffle(planes.movedim(-1, 1), self.patch)
        return pixels

    def embed_pairs(self, pairs: Tensor) -> Tensor:
        """Pairs (B, 2, 3, H', W') to tokens (B, 2, H, W, D)."""
        tokens: Tensor = self.embed(pairs.flatten(0, 1))
        return torch.unflatten(tokens, 0, pairs.shape[:2])

    def forward(self, embedded: Tensor, noise: Tensor, pixels: Tensor | None = None) -> Forward:
        """Encode, quantize and decode embedded pairs.

        Args:
            embedded: (B, 2, H, W, D).
            noise: standard-normal, (B, N, Q).
            pixels: second frames (B, 3, H', W') in
                [0, 1], which only models of pixels need.
        """
        latent = self.latent(embedded).float()
        # The nearest code is no matter of bfloat16.
        with torch.autocast(latent.device.type, enabled=False):
            codes = self.vq.codes(latent.detach())
            rows = self.vq.with_noise(latent, codes, noise)
        tokens = self.vq.tokens(rows)
        target = embedded[:, 1].detach()
        if self.patch:
            assert pixels is not None
            target = pixels
        found = self.decode(embedded[:, 0], tokens)
        return Forward(latent, codes, tokens, found, target)


def build_network(sizes: Mapping[str, Any], seed: int, name: str) -> TrainableModel:
    """A network of these sizes, its initial values drawn from the seed.

    Raises UsageError, with the model's `name`, for sizes
    that the network, or its decoder, can't have.
    """
    check_length(sizes, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return TrainableModel(**sizes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"Model '{name}' can't be built: {error}.") from error


def check_length(sizes: Mapping[str, Any], name: str) -> None:
    """Refuse a code length that the decoder can't read. Raises UsageError.

    The convolutions have to leave as many rows as it says.
    """
    length, grid = sizes["code_seq_len"], int(sizes["image_size"] / sizes["patch_size"])
    rows = code_rows(length, grid)
    if rows == length:
        return
    good = ", ".join(str(each) for each in CODE_STACKS if code_rows(each, grid) == each)
    why = f"{rows} rows come out" if rows else "no convolutions are known for it"
    raise UsageError(
        f"Model '{name}': a code of length {length} can't be decoded on a grid of {grid} x {grid}, since {why}; "
        f"choose --code-length {good or 'on another --image-size'}."
    )


class StraightQuantizer(nn.Module):
    """UniVLA's quantizer (Bu et al. 2025, arXiv 2505.06111).

    Attributes:
        codebook: rows (K, Q), at first uniform in +-1 / K.
        usage: per code, samples that had it since the last
            `restart`, in evaluation too; not in checkpoints.
    """

    usage: Tensor

    def __init__(self, codebook_size: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.codebook, self.beta = nn.Embedding(codebook_size, dim), beta
        nn.init.uniform_(self.codebook.weight, -1 / codebook_size, 1 / codebook_size)
        self.register_buffer("usage", torch.zeros(codebook_size), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantize latents (B, N, Q).

        Returns:
            Rows through which the gradient passes straight, codes
            (B, N), and the losses of codebook and commitment.
        """
        # Only the loss of the codebook moves its rows.
        rows, codes = nearest_rows(x, self.codebook.weight.detach())
        chosen = self.codebook(codes)
        self.usage += F.one_hot(codes, len(self.usage)).amax(dim=1).sum(dim=0)
        return rows, codes, F.mse_loss(chosen, x.detach()), F.mse_loss(x, chosen.detach())

    def penalty(self, codebook_loss: Tensor, commitment: Tensor) -> Tensor:
        """What is added to the error of the reconstruction."""
        return codebook_loss + self.beta * commitment

    @torch.no_grad()
    def restart(self, permutation: Tensor) -> Tensor:
        """Copy rows onto codes that no sample had; returns those codes.

        As published, dead code number k gets the row
        ``permutation[k]``, be it dead itself.
        """
        dead = (self.usage < 1).nonzero().flatten()
        weight = self.codebook.weight
        weight[dead] = weight[permutation[: len(dead)]]
        self.usage.zero_()
        return dead
