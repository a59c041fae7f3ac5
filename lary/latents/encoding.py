"""The encoding stage: from the frames of a batch to the latents of its rows.

A row's result must depend on nothing but the row: kernels round differently for batches of different sizes. On a CPU,
where batches gain nothing, rows are encoded one by one. Elsewhere a batch always has the same number of places, a row
always the same one, and a row that isn't there leaves its place black.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.latents.reading import Batch
from lary.latents.store import pooled_latents, token_shape
from lary.models.preprocess import DeviceNormaliser, normalise
from lary.models.running import LoadedEncoder
from lary.models.spec import Preprocess
from lary.runtime import log
from lary.types import Latents

if TYPE_CHECKING:
    import torch

Row = tuple[int, npt.NDArray[np.float32], "npt.NDArray[Any] | None"]
"""Index in the batch, tokens (P, N, D) or (N, D) and codes (P, N) of one row."""


@dataclass
class _Part:
    """What an accelerator was asked to compute: rows of a batch that have the same number of frames."""

    indices: Sequence[int]
    tokens: torch.Tensor
    codes: torch.Tensor | None


class Encoding:
    """An encoder with the arithmetic in front of it and the pooling behind it, on one device."""

    def __init__(self, encoder: LoadedEncoder, preprocess: Preprocess, device: str, pool: str) -> None:
        self._encoder = encoder
        self._preprocess = preprocess
        self._device = device
        self._pool = pool
        self._normalise = None if device == "cpu" else DeviceNormaliser(preprocess, device)

    def stream(
        self, batches: Iterable[Batch], release: Callable[[Batch], None]
    ) -> Iterator[tuple[Batch, Iterable[Row]]]:
        """The rows of every batch that could be read, in order.

        Args:
            release: called when the frames of a batch are needed no more.
        """
        if self._normalise is None:
            for batch in batches:
                yield batch, self._one_by_one(batch)
                release(batch)
            return
        before: tuple[Batch, list[_Part], Any] | None = None
        for following in chain(batches, (None,)):
            running = None if following is None else (following, *self._launch(following))
            if before is not None:  # fetched while the accelerator works on the batch behind it
                yield before[0], self._fetch(*before)
                release(before[0])
            before = running

    def _one_by_one(self, batch: Batch) -> Iterator[Row]:
        import torch

        buffers: dict[int, npt.NDArray[np.float32]] = {}
        for index, (row, place, length) in enumerate(zip(batch.rows, batch.places, batch.lengths, strict=True)):
            if row in batch.problems:
                continue
            frames = batch.clips[place : place + 1, :length]
            clip = buffers[length] = normalise(frames, self._preprocess, buffers.get(length))
            with torch.inference_mode():
                latents = self._encoded(torch.from_numpy(clip))
            tokens = latents.tokens.numpy()
            if np.may_share_memory(tokens, clip):
                tokens = tokens.copy()
            yield index, tokens[0], None if latents.codes is None else latents.codes.numpy()[0]

    def _launch(self, batch: Batch) -> tuple[list[_Part], Any]:
        """Ask the accelerator for a batch without waiting for it."""
        import torch

        assert self._normalise is not None
        lengths: dict[int, list[int]] = {}
        for index, (row, length) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
            if row not in batch.problems:
                lengths.setdefault(length, []).append(index)
        parts = []
        with torch.inference_mode():
            for length, indices in lengths.items():
                planes = torch.from_numpy(batch.clips[:, :length]).to(self._device, non_blocking=True)
                latents = self._encoded(self._normalise(planes))
                codes = None if latents.codes is None else self._to_host(latents.codes)
                parts.append(_Part(indices, self._to_host(latents.tokens), codes))
        event = None
        if self._device.startswith("cuda"):
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
        return parts, event

    def _encoded(self, clips: torch.Tensor) -> Latents:
        """Pooled latents of clips, float32, with the axes that a store has."""
        latents = self._encoder.encode(clips)
        tokens = latents.tokens
        tokens = tokens.reshape(len(tokens), *token_shape(tuple(tokens.shape[1:]))).float()
        return pooled_latents(replace(latents, tokens=tokens), self._pool)

    def _to_host(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        if not self._device.startswith("cuda"):
            return values.cpu()
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)

    def _fetch(self, batch: Batch, parts: Sequence[_Part], event: Any) -> Iterator[Row]:
        if event is not None:
            event.synchronize()
        for part in parts:
            tokens = part.tokens.numpy()
            codes = None if part.codes is None else part.codes.numpy()
            for index in part.indices:
                place = batch.places[index]
                yield index, tokens[place], None if codes is None else codes[place]

    @contextmanager
    def fast_memory(self, memory: npt.NDArray[np.uint8]) -> Iterator[None]:
        """Pin the memory that frames come in, so that CUDA copies from it while it computes."""
        if not self._device.startswith("cuda"):
            yield
            return
        import torch

        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device):
            pinned = int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)) == 0
        if not pinned:
            log.info("the memory for frames can't be pinned here: copies to the device wait for each other")
        try:
            yield
        finally:
            if pinned:
                torch.cuda.synchronize(self._device)
                runtime.cudaHostUnregister(memory.ctypes.data)
