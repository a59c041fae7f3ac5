"""Latents as the probes read them: changed for the controls, kept in memory, checked, and read ahead in batches.

Static pairs and shuffled orders act on the axis P, and so only on latents with one step per frame; for others the
frames themselves are changed (`lary.runs.changed`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lary.probes.outcome import Floats, Ints
from lary.probes.session import ALONE, Team
from lary.runtime import memory_bytes
from lary.types import LaryError, LatentSource, UsageError

Rows = Sequence[int] | Ints
Tokens = npt.NDArray[np.floating]

MEMORY_SHARE = 0.125
"""Latents of one split are kept in memory when they take no more than this share of it."""

CHUNK = 256
"""Rows that are read at once where all of a split are read in order."""

AHEAD = 2
"""Batches that are read ahead of the one in work."""

SCALED_BY = 2048


class ChangedSource:
    """Latents that `change` makes of the tokens (B, ...) of another source and their rows; `shape` is that of one."""

    def __init__(
        self, source: LatentSource, change: Callable[[Tokens, Ints], Tokens], shape: tuple[int, ...] | None = None
    ) -> None:
        self._source, self._change = source, change
        self.shape = source.shape if shape is None else shape

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Rows) -> Tokens:
        return self._change(self._source.read(rows), np.asarray(rows, dtype=np.int64))


def named(source: LatentSource, name: Callable[[int], str]) -> LatentSource:
    """Latents that are refused by the name of their sample where one isn't finite; `name` gives it by row."""

    def check(tokens: Tokens, rows: Ints) -> Tokens:
        if (bad := first_not_finite(tokens)) is not None:
            raise LaryError(
                f"The latents of {name(int(rows[bad]))} hold NaN or infinity: check the model with "
                "'lary check-model', and extract this split again."
            )
        return tokens

    return ChangedSource(source, check)


def static_pair(source: LatentSource) -> LatentSource:
    """Latents (P, N, D) whose steps are all the first one: what is left is read off the source frame."""
    _check_steps(source, "static-pair")
    return ChangedSource(source, lambda tokens, _: np.repeat(tokens[:, :1], tokens.shape[1], axis=1))


def shuffled_order(source: LatentSource, seed: int) -> LatentSource:
    """Latents (P, N, D) with their steps in a random order, drawn once per sample: a pair is turned half the time."""
    _check_steps(source, "shuffled-order")
    steps = np.arange(source.shape[0])
    order = np.random.default_rng(seed).permuted(np.tile(steps, (len(source), 1)), axis=1)
    return ChangedSource(source, lambda tokens, rows: np.take_along_axis(tokens, order[rows][:, :, None, None], axis=1))


def _check_steps(source: LatentSource, control: str) -> None:
    if len(source.shape) != 3:
        raise UsageError(
            f"--control {control}: it needs latents with an axis of steps, (P, N, D); these have shape {source.shape}."
        )


def projected(source: LatentSource, size: int, seed: int) -> LatentSource:
    """Latents whose channels are projected, (..., D) -> (..., size), by one Gaussian matrix drawn from the seed.

    Lengths and angles survive in expectation (Johnson and Lindenstrauss 1984).
    """
    dim = source.shape[-1]
    if size < 1 or size >= dim:
        raise UsageError(f"--project {size}: must be from 1 to {dim - 1}, since the latents have dimension {dim}.")
    draw = np.random.default_rng(seed).standard_normal((dim, size))
    matrix = (draw / np.sqrt(size)).astype(np.float32)
    return ChangedSource(
        source, lambda tokens, _: np.asarray(tokens @ matrix, dtype=np.float32), (*source.shape[:-1], size)
    )


def standardised(source: LatentSource, mean: Floats, std: Floats) -> LatentSource:
    """Latents (x - mean) / std by channel; `mean` and `std` (D,) float32."""
    return ChangedSource(source, lambda tokens, _: (tokens - mean) / std)


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


class CachedSource:
    """The latents of a split, read once and kept in memory in the precision that the source has."""

    def __init__(self, source: LatentSource) -> None:
        starts = range(0, len(source), CHUNK)
        parts = (source.read(np.arange(start, min(start + CHUNK, len(source)))) for start in starts)
        for start, part in zip(starts, parts, strict=True):
            if not start:
                self._tokens = np.empty((len(source), *source.shape), dtype=part.dtype)
            self._tokens[start : start + len(part)] = part
        self.shape = source.shape

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, rows: Rows) -> Tokens:
        return self._tokens[np.asarray(rows, dtype=np.int64)]


def keep_in_memory(source: LatentSource, processes: int = 1) -> LatentSource:
    """`source` itself, or a copy in memory where that is small against what there is for each of `processes`."""
    size = 4 * len(source) * int(np.prod(source.shape))
    return CachedSource(source) if size <= MEMORY_SHARE * memory_bytes() / processes else source


def read_finite(source: LatentSource, rows: Ints) -> Tokens:
    """Tokens (B, ...) of `rows`. Raises LaryError if one isn't finite."""
    tokens = source.read(rows)
    if (bad := first_not_finite(tokens)) is not None:
        raise LaryError(
            f"The latents of row {rows[bad]} hold values that are not finite: check the model and extract this split "
            "again."
        )
    return tokens


def first_not_finite(tokens: Tokens) -> int | None:
    """Position of the first sample (B, ...) that holds NaN or infinity; None if there is none."""
    if tokens.dtype == np.float16:  # numpy's arithmetic on it is slow: compare the bits of the exponents
        fine = (tokens.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00
    else:  # one fast pass; a sum may overflow though every token is finite
        with np.errstate(all="ignore"):
            fine = np.isfinite(tokens.sum())
    if fine:
        return None
    bad = ~np.isfinite(tokens).reshape(len(tokens), -1).all(axis=1)
    return int(np.argmax(bad)) if bad.any() else None


def read_batches(
    source: LatentSource, rows: Ints, size: int, device: str, team: Team = ALONE
) -> Iterator[tuple[Ints, Tensor, int]]:
    """Batches of `size` rows, read ahead by a thread; the last may be small.

    Yields of every batch the rows that are this process's share, their tokens (B, *shape) as float32 on `device`, and
    how many rows the whole batch has.

    Raises:
        LaryError: a token is not finite.
    """
    batches = deque(rows[start : start + size] for start in range(0, len(rows), size))
    pending: deque[tuple[Ints, int, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        while batches or pending:
            while batches and len(pending) <= AHEAD:
                batch = batches.popleft()
                share = batch[team.share(len(batch))]
                pending.append((share, len(batch), pool.submit(_read, source, share, device)))
            share, count, future = pending.popleft()
            # Half precision is widened on the device: half as many bytes are copied to it.
            yield share, future.result().to(device, non_blocking=True).float(), count


def _read(source: LatentSource, rows: Ints, device: str) -> Tensor:
    if not len(rows):
        return torch.empty((0, *source.shape))
    tensor = torch.from_numpy(np.require(read_finite(source, rows), requirements=["C", "W"]))
    return tensor.pin_memory() if device.startswith("cuda") else tensor
