"""Networks with the weights that were found for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lary.models.randomly import draw
from lary.models.released import Checkpoint
from lary.models.spec import ModelSpec
from lary.models.tensors import fill
from lary.runtime import log

if TYPE_CHECKING:
    import torch


def with_weights(network: Any, found: Checkpoint, read: Callable[[], Mapping[str, torch.Tensor]], device: str) -> Any:
    """A network, which is without memory yet, with its weights, on its device and ready to run.

    Args:
        found: names the file; or says that weights are random.
        read: gives the file's tensors under the network's names; not called for random ones.

    Raises:
        LaryError: the tensors don't fit.
    """
    if found.seed is None:
        fill(network, read(), found.file)
    else:
        draw(network, found.seed)
    return network.eval().to(device)


def tell_dim(spec: ModelSpec, dim: int, origin: object) -> None:
    """Say so where weights have another latent dimension than the record."""
    if spec.dim is not None and dim != spec.dim:
        log.info("%s: the weights in %s have D = %d, not %d as in its record", spec.name, origin, dim, spec.dim)
