"""The arithmetic of a forward pass: full precision, autocast, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lary.configs import Precision
from lary.models.tensors import first_line
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
    """The encoder's `encode`, compiled when it is first called. It raises LaryError if torch can't compile here."""
    import torch
    from torch._dynamo.exc import BackendCompilerFailed

    compiled = torch.compile(encoder.encode)

    def encode(clips: torch.Tensor) -> Latents:
        try:
            return compiled(clips)
        except BackendCompilerFailed as error:
            reason = first_line(error.inner_exception)
            raise LaryError(
                f"--compile: torch can't compile the network for {device} ({reason}). Install a C++ "
                "compiler such as g++, or leave the option out."
            ) from error

    return encode


def in_precision(encoder: Encoder, device: str, precision: Precision, compiled: bool = False) -> Encoder:
    """The encoder itself, or one around it that runs in another precision or compiled."""
    if precision == "fp32" and not compiled:
        return encoder
    return _InPrecision(encoder, device, precision, compiled)
