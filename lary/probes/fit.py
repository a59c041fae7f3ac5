"""What the trainings of all probes share: latents in memory or read ahead, precision, and checkpoints."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lary.configs import ProbePrecision
from lary.files import atomic_write
from lary.probes.outcome import Floats, Ints
from lary.probes.parallel import Team
from lary.types import LaryError, LatentSource

MEMORY_SHARE = 0.125
"""Latents of one split are kept in memory when they take no more than this share of it."""

CHUNK = 256
AHEAD = 2
SCALED_BY = 2048


class CachedSource:
    """The latents of a split, read once and kept in memory as float32."""

    def __init__(self, source: LatentSource) -> None:
        self._tokens: Floats = np.empty((len(source), *source.shape), dtype=np.float32)
        for start in range(0, len(source), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(source)), dtype=np.int64)
            self._tokens[rows] = source.read(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._tokens.shape[1:]

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        return self._tokens[np.asarray(rows, dtype=np.int64)]


class ScaledSource:
    """Latents (x - mean) / std by channel; `mean` and `std` (D,) float32."""

    def __init__(self, source: LatentSource, mean: Floats, std: Floats) -> None:
        self._source, self._mean, self._std = source, mean, std

    @property
    def shape(self) -> tuple[int, ...]:
        return self._source.shape

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        return (self._source.read(rows) - self._mean) / self._std


def channel_statistics(source: LatentSource, rows: Ints) -> tuple[Floats, Floats]:
    """Mean and standard deviation (D,) float32 of each channel over `rows`, or over 2,048 evenly spaced ones of many.

    A channel that never changes gets the standard deviation 1.
    """
    rows = rows[:: -(-len(rows) // SCALED_BY)]
    count, total, squares = 0, np.zeros(source.shape[-1]), np.zeros(source.shape[-1])
    for start in range(0, len(rows), CHUNK):
        tokens = source.read(rows[start : start + CHUNK]).reshape(-1, source.shape[-1]).astype(np.float64)
        count += len(tokens)
        total += tokens.sum(axis=0)
        squares += np.square(tokens).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    std[std < 1e-6 * np.maximum(1.0, np.abs(mean))] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def memory_bytes() -> int:
    """Memory of this machine, or of the container that this process runs in, in bytes."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits, default=4 << 30)


def keep_in_memory(source: LatentSource, processes: int = 1) -> LatentSource:
    """`source` itself, or a copy in memory where that is small against what there is for each of `processes`."""
    size = 4 * len(source) * int(np.prod(source.shape))
    return CachedSource(source) if size <= MEMORY_SHARE * memory_bytes() / processes else source


def read_batches(source: LatentSource, rows: Ints, size: int, device: str) -> Iterator[tuple[Ints, Tensor]]:
    """Rows and their tokens (B, *shape) float32 on `device`, in batches read ahead by a thread; the last may be small.

    Raises:
        LaryError: a token is not finite.
    """
    return _read_ahead(source, [rows[start : start + size] for start in range(0, len(rows), size)], device)


def team_batches(
    source: LatentSource, rows: Ints, size: int, device: str, team: Team
) -> Iterator[tuple[Ints, Tensor, int]]:
    """As `read_batches`, of every batch this process's share, and how many samples the whole batch has."""
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    shares = _read_ahead(source, [batch[team.share(len(batch))] for batch in batches], device)
    for batch, (part, tokens) in zip(batches, shares, strict=True):
        yield part, tokens, len(batch)


def _read_ahead(source: LatentSource, batches: Sequence[Ints], device: str) -> Iterator[tuple[Ints, Tensor]]:
    parts = deque(batches)
    pending: deque[tuple[Ints, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        while parts or pending:
            while parts and len(pending) <= AHEAD:
                part = parts.popleft()
                pending.append((part, pool.submit(_read, source, part, device)))
            part, future = pending.popleft()
            yield part, future.result().to(device, non_blocking=True)


def _read(source: LatentSource, rows: Ints, device: str) -> Tensor:
    if not len(rows):
        return torch.empty((0, *source.shape))
    tokens = source.read(rows)
    if (bad := first_not_finite(tokens)) is not None:
        raise LaryError(
            f"The latents of row {rows[bad]} hold values that are not finite: check the model and extract this split "
            "again."
        )
    tensor = torch.from_numpy(np.require(tokens, np.float32, ["C", "W"]))
    return tensor.pin_memory() if device.startswith("cuda") else tensor


def first_not_finite(tokens: Floats) -> int | None:
    """Position of the first sample (B, ...) that holds NaN or infinity; None if there is none."""
    with np.errstate(all="ignore"):
        if np.isfinite(tokens.sum()):  # one pass; a sum may overflow though every token is finite
            return None
    bad = ~np.isfinite(tokens).reshape(len(tokens), -1).all(axis=1)
    return int(np.argmax(bad)) if bad.any() else None


def in_bfloat16(preset: bool, precision: ProbePrecision | None, device: str) -> bool:
    """Whether a probe is trained in bfloat16: what was asked for, else what its preset has where the device has it."""
    return preset and has_bfloat16(device) if precision is None else precision == "bf16"


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 itself; others emulate it, slower than float32."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    # Older torch doesn't tell.
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device == "cpu" else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def training_precision(device: str, bfloat16: bool) -> AbstractContextManager[Any]:
    """bfloat16 autocast, or none."""
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16) if bfloat16 else nullcontext()


def adamw(network: torch.nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with torch's defaults over every parameter; biases and norms decay too, as in the published code."""
    return torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def weights_of(network: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state dict on the CPU, which later updates leave alone."""
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}


def save_checkpoint(path: Path, value: dict[str, Any]) -> None:
    """Write tensors and plain values so that ``torch.load(..., weights_only=True)`` reads them.

    Raises:
        LaryError: the file can't be written, such as on a full disk.
    """
    try:
        with atomic_write(path) as stream:
            torch.save(value, stream)
    except LaryError:
        raise
    except (OSError, RuntimeError) as error:
        raise LaryError(f"Cannot write {path}: {error}. Check the space left there.") from error
