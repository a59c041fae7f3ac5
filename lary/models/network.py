"""Running networks: what every encoder of frames checks and how it feeds its network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lary.models.spec import ModelSpec
from lary.runtime import log
from lary.types import LaryError

if TYPE_CHECKING:
    import torch


def run_alone(network: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """The network's output for a batch (B, ...), on the CPU one item at a time.

    Convolutions and matrix products of a CPU round differently for batches of different sizes. One by one costs
    no time there, and an item's result depends on nothing but the item.
    """
    import torch

    with torch.inference_mode():
        if inputs.device.type != "cpu":
            return network(inputs)
        return torch.cat([network(inputs[place : place + 1]) for place in range(len(inputs))])


def check_frames(spec: ModelSpec, clips: torch.Tensor, *, multiple: int) -> None:
    """Refuse clips that a network can't cut into its cells.

    Raises:
        LaryError: clips aren't (B, T, 3, H, W), or H or W is not a multiple of `multiple`.
    """
    if clips.ndim != 5 or clips.shape[2] != 3 or not clips.numel():
        raise LaryError(f"{spec.name} encodes clips (B, T, 3, H, W), not {list(clips.shape)}.")
    height, width = clips.shape[-2:]
    if height % multiple or width % multiple:
        raise LaryError(f"{spec.name} needs frames whose sides are multiples of {multiple}, not {width} x {height}.")


def tell_dim(spec: ModelSpec, dim: int, origin: object) -> None:
    """Say so where weights have another latent dimension than the record."""
    if spec.dim is not None and dim != spec.dim:
        log.info("%s: the weights in %s have D = %d, not %d as in its record", spec.name, origin, dim, spec.dim)
