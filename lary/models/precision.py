"""The arithmetic of a forward pass: full precision, autocast, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lary.configs import Precision
from lary.models.network import compiled_networks
from lary.models.tensors import first_line
from lary.runtime import log
from lary.types import Encoder, LaryError, Latents

if TYPE_CHECKING:
    import torch


class _InPrecision:
    """An encoder whose forward pass runs under autocast or compiled; what it tells of itself stays."""

    def __init__(self, encoder: Encoder, device: str, precision: Precision, compiled: bool) -> None:
        import torch

        self._encode = compiled_encode(encoder, device) if compiled else encoder.encode
        self._device = torch.device(device).type
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.weights_digest = getattr(encoder, "weights_digest", None)
        self.weights_revision = getattr(encoder, "weights_revision", None)
        self.dim = getattr(encoder, "dim", None)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Encode clips (B, T, 3, H, W)."""
        import torch

        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None):
            return self._encode(clips)


def compiled_encode(encoder: Encoder, device: str) -> Callable[[torch.Tensor], Latents]:
    """The encoder's `encode`, whose networks are compiled when it is first called.

    What `run_alone` runs is compiled; of an encoder that doesn't run its network so, the modules that it holds are.
    The function raises LaryError if torch can't compile here.
    """
    from torch._dynamo.exc import TorchDynamoException

    modules_asked = False

    def encode(clips: torch.Tensor) -> Latents:
        nonlocal modules_asked
        try:
            with compiled_networks() as asked:
                latents = encoder.encode(clips)
            if asked.used or modules_asked:
                return latents
            modules_asked = True
            return encoder.encode(clips) if compile_modules(encoder) else latents
        except TorchDynamoException as error:
            reason = first_line(getattr(error, "inner_exception", error))
            raise LaryError(
                f"--compile: torch can't compile the network for {device} ({reason}). Leave the option out, or, where "
                "a compiler is missing, install one, such as g++."
            ) from error

    return encode


def compile_modules(encoder: Encoder) -> bool:
    """Compile the modules that an encoder holds as its attributes, in place; whether there is one."""
    from torch import nn

    modules = [value for value in vars(encoder).values() if isinstance(value, nn.Module)]
    for module in modules:
        module.compile()
    if not modules:
        log.info("--compile changes nothing: %s holds no network", type(encoder).__name__)
    return bool(modules)


def in_precision(encoder: Encoder, device: str, precision: Precision, compiled: bool = False) -> Encoder:
    """The encoder itself, or one around it that runs in another precision or compiled."""
    if precision == "fp32" and not compiled:
        return encoder
    return _InPrecision(encoder, device, precision, compiled)
