"""Running networks: what every encoder of frames checks and how it feeds its network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lary.models.randomly import draw
from lary.models.released import Checkpoint
from lary.models.spec import ModelSpec
from lary.models.tensors import fill
from lary.runtime import log
from lary.types import LaryError

if TYPE_CHECKING:
    import torch


Output = TypeVar("Output", "torch.Tensor", "tuple[torch.Tensor, ...]")


@dataclass
class Compilation:
    """That networks are to be compiled; `used` once `run_alone` has compiled one."""

    used: bool = False


_compilation: ContextVar[Compilation | None] = ContextVar("compilation", default=None)


@contextmanager
def compiled_networks() -> Iterator[Compilation]:
    """In here, `run_alone` compiles what it runs."""
    asked = Compilation()
    token = _compilation.set(asked)
    try:
        yield asked
    finally:
        _compilation.reset(token)


def run_alone(network: Callable[[torch.Tensor], Output], inputs: torch.Tensor) -> Output:
    """The network's output, or outputs, for a batch (B, ...), on the CPU one item at a time.

    Convolutions and matrix products of a CPU round differently for batches of different sizes. One by one costs
    no time there, and an item's result depends on nothing but the item.
    """
    import torch

    if asked := _compilation.get():
        asked.used = True
        network = torch.compile(network)
    with torch.inference_mode():
        if inputs.device.type != "cpu":
            return network(inputs)
        parts = [network(inputs[place : place + 1]) for place in range(len(inputs))]
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts)
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def check_frames(
    spec: ModelSpec, clips: torch.Tensor, *, side: int | None = None, multiple: int = 1, least: int = 1
) -> None:
    """Refuse clips that a network can't encode.

    Args:
        side: height and width that frames need to have; None for any.
        multiple: what height and width have to be multiples of.
        least: how many frames a clip has to have.

    Raises:
        LaryError: clips aren't (B, T, 3, H, W), or have frames of another size, or too few.
    """
    if clips.ndim != 5 or clips.shape[2] != 3 or not clips.numel():
        raise LaryError(f"{spec.name} encodes clips (B, T, 3, H, W), not {list(clips.shape)}.")
    height, width = clips.shape[-2:]
    if side is not None and (height, width) != (side, side):
        raise LaryError(f"{spec.name} needs frames of {side} x {side} pixels, not {width} x {height}.")
    if height % multiple or width % multiple:
        raise LaryError(f"{spec.name} needs frames whose sides are multiples of {multiple}, not {width} x {height}.")
    if clips.shape[1] < least:
        raise LaryError(f"{spec.name} needs clips of at least {least} frames, not {clips.shape[1]}.")


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
    return network.eval().requires_grad_(False).to(device)


def tell_dim(spec: ModelSpec, dim: int, origin: object) -> None:
    """Say so where weights have another latent dimension than the record."""
    if spec.dim is not None and dim != spec.dim:
        log.info("%s: the weights in %s have D = %d, not %d as in its record", spec.name, origin, dim, spec.dim)
