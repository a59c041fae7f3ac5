"""The arithmetic of a forward pass: full precision, autocast, compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lary.configs import Precision
from lary.types import Encoder, Latents

if TYPE_CHECKING:
    import torch


class _InPrecision:
    """An encoder whose forward pass runs under autocast or compiled; what it tells of itself stays."""

    def __init__(self, encoder: Encoder, device: str, precision: Precision, compiled: bool) -> None:
        import torch

        self._encode = torch.compile(encoder.encode) if compiled else encoder.encode
        self._device = torch.device(device).type
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.weights_digest = getattr(encoder, "weights_digest", None)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Encode clips (B, T, 3, H, W)."""
        import torch

        if self._dtype is None:
            return self._encode(clips)
        with torch.autocast(self._device, dtype=self._dtype):
            return self._encode(clips)


def in_precision(encoder: Encoder, device: str, precision: Precision, compiled: bool = False) -> Encoder:
    """The encoder itself, or one around it that runs in another precision or compiled."""
    if precision == "fp32" and not compiled:
        return encoder
    return _InPrecision(encoder, device, precision, compiled)
