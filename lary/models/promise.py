"""What a model returns, held against what its record says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lary.models.spec import ModelSpec
from lary.types import BenchmarkProtocol, Encoder, LaryError, Latents, Media

if TYPE_CHECKING:
    import torch

MEDIA: dict[int, Media] = {2: "pair", 9: "clip"}
"""By the number of frames for which records say a shape."""


def broken_promise(
    spec: ModelSpec, protocol: BenchmarkProtocol, encoder: object, latents: object, *, batch: int, frames: int
) -> str | None:
    """What is wrong with an answer to `batch` clips of `frames` frames, as the rest of a sentence; None if nothing.

    An encoder whose weights have another D than the record says so by its attribute `dim`: that is the D it has to
    give then, and the record's tokens are none of its.
    """
    tokens = getattr(latents, "tokens", None)
    if tokens is None or not hasattr(tokens, "is_floating_point"):
        return f"returned {type(latents).__name__}, expected Latents(tokens) with a tensor"
    shape = tuple(tokens.shape)
    if len(shape) not in (3, 4) or shape[0] != batch:
        return f"returned tokens of shape {shape} for {batch} samples, expected (B, P, N, D), or (B, N, D)"
    if not tokens.is_floating_point():
        return f"returned tokens of {str(tokens.dtype).removeprefix('torch.')}, expected floating-point numbers"
    dim = getattr(encoder, "dim", None) or spec.dim
    if dim is not None and shape[-1] != dim:
        return f"returned tokens of latent dimension {shape[-1]}, its record says {dim}"
    media = MEDIA.get(frames)
    wanted = spec.shape(protocol, media) if media and dim == spec.dim else ()
    if wanted and shape[1:] != wanted:
        return f"returned tokens of shape {shape[1:]} for a {media}, its record says {wanted}"
    codes = getattr(latents, "codes", None)
    if codes is not None and (codes.is_floating_point() or len(codes) != batch):
        return f"returned codes of shape {tuple(codes.shape)} and {codes.dtype}, expected whole numbers (B, ...)"
    return None


class _HeldToRecord:
    """An encoder whose answers are checked; what it tells of itself stays."""

    def __init__(self, encoder: Encoder, spec: ModelSpec, protocol: BenchmarkProtocol) -> None:
        self._encoder, self._spec, self._protocol = encoder, spec, protocol
        self.weights_digest = getattr(encoder, "weights_digest", None)
        self.weights_revision = getattr(encoder, "weights_revision", None)
        self.dim = getattr(encoder, "dim", None)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Encode clips (B, T, 3, H, W). Raises LaryError if the answer isn't what the record says."""
        latents = self._encoder.encode(clips)
        batch, frames = clips.shape[:2]
        if wrong := broken_promise(self._spec, self._protocol, self._encoder, latents, batch=batch, frames=frames):
            raise LaryError(
                f"Model '{self._spec.name}' {wrong}. Correct its encode or its record; `lary check-model` shows both."
            )
        return latents


def held_to_record(encoder: Encoder, spec: ModelSpec, protocol: BenchmarkProtocol) -> Encoder:
    """An encoder around this one that stops where an answer has another shape than the record says."""
    return _HeldToRecord(encoder, spec, protocol)
