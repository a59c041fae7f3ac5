"""What a probe trains on: the latents as they are read, and the rows that are drawn in an epoch or held out.

Latents are changed for the controls, kept in memory, checked, and read ahead in batches.

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
from lary.types import BenchmarkProtocol, LaryError, LatentSource, UsageError

Rows = Sequence[int] | Ints
Tokens = npt.NDArray[np.floating]

MEMORY_SHARE = 0.125
"""Latents of one split are kept in memory when they take no more than this share of it."""

CHUNK = 256
"""Rows that are read at once where all of a split are read in order."""

AHEAD = 2
"""Batches that are read ahead of the one in work."""

SCALED_BY = 2048
HELD_OUT_SHARE = 0.1


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


# --- rows ---


def class_weights(labels: Ints) -> npt.NDArray[np.float64]:
    """Probability of drawing each sample (n,), the same in sum for every class that occurs; they sum to 1."""
    _, positions, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (counts[positions] * len(counts)), dtype=np.float64)


def balanced_indices(weights: npt.NDArray[np.float64], epoch: int, seed: int = 0) -> Ints:
    """Row indices of an epoch, counted from 0: as many draws as there are rows, with replacement."""
    chances = weights / weights.sum()
    draws = np.random.default_rng(seed + epoch).choice(len(weights), size=len(weights), p=chances, replace=True)
    return draws.astype(np.int64)


def split_training_rows(
    protocol: BenchmarkProtocol, groups: Sequence[str], labels: Ints | None = None, *, seed: int
) -> tuple[Ints, Ints]:
    """Rows to fit on and rows held out; the published protocol fits on all of them. Raises UsageError."""
    if protocol == "paper":
        return np.arange(len(groups), dtype=np.int64), np.empty(0, dtype=np.int64)
    return hold_out(groups, labels, seed=seed)


def hold_out(
    groups: Sequence[str], labels: Ints | None = None, *, seed: int, share: float = HELD_OUT_SHARE
) -> tuple[Ints, Ints]:
    """Split rows into those to fit on and those held out, whole groups at a time; both ascending.

    About `share` of the rows, and of each class as far as whole groups allow, is held out; a class is never taken
    out of the rows to fit on entirely. The order of the rows has no influence on which groups are chosen.

    Raises:
        UsageError: no group can be held out.
    """
    kinds = np.zeros(len(groups), dtype=np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    names, members = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    chosen = _choose_groups(_group_contents(members, kinds), np.bincount(kinds), seed=seed, share=share)
    if not chosen:
        raise UsageError(
            f"The training split has {len(groups)} samples of {len(names)} episodes or videos: none can be held out to "
            "choose head and epoch without losing a class. Give more data, or use the protocol 'paper'."
        )
    held = np.isin(members, chosen)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _group_contents(members: Ints, kinds: Ints) -> list[list[tuple[int, int]]]:
    """For every group, how many samples of which class it holds: pairs (class, count)."""
    contents: list[list[tuple[int, int]]] = [[] for _ in range(int(members.max(initial=-1)) + 1)]
    if len(members):
        cells, counts = np.unique(np.stack([members, kinds], axis=1), axis=0, return_counts=True)
        for (group, kind), count in zip(cells.tolist(), counts.tolist(), strict=True):
            contents[group].append((kind, count))
    return contents


def _choose_groups(contents: list[list[tuple[int, int]]], totals: Ints, *, seed: int, share: float) -> list[int]:
    """Go through the groups in random order and take each one that brings the counts nearer to their share.

    The distance is the squared deviation from the share, relative to the total, summed over the classes and the whole.
    Where no group brings it nearer, the one that harms least is taken.
    """
    sizes = totals.tolist()
    whole = sum(sizes)
    taken = [0] * len(sizes)
    taken_whole = 0
    chosen: list[int] = []
    harm: list[tuple[float, int]] = []
    for group in np.random.default_rng(seed).permutation(len(contents)).tolist():
        content = contents[group]
        if any(taken[kind] + count >= sizes[kind] for kind, count in content):
            continue
        size = sum(count for _, count in content)
        change = size * (size + 2 * taken_whole - 2 * share * whole) / whole
        for kind, count in content:
            change += count * (count + 2 * taken[kind] - 2 * share * sizes[kind]) / sizes[kind]
        if change < 0:
            chosen.append(group)
            taken_whole += size
            for kind, count in content:
                taken[kind] += count
        else:
            harm.append((change, group))
    return chosen or [group for _, group in sorted(harm)[:1]]
