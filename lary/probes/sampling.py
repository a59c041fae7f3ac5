"""Which rows a probe trains on, in which order, and with which learning rate and weight decay at every update."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lary.probes.outcome import Ints
from lary.probes.presets import HeadSettings
from lary.types import BenchmarkProtocol, UsageError

HELD_OUT_SHARE = 0.1


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


def learning_rate(head: HeadSettings, step: int, total: int, per_epoch: int) -> float:
    """Learning rate of update number `step`, counted from 1, of `total` updates with `per_epoch` in an epoch.

    A linear rise over ``head.warmup`` epochs, then a half cosine that reaches ``final_lr`` with the very last update.
    """
    rise = int(head.warmup * per_epoch)
    if step < rise:
        start = head.lr if head.start_lr is None else head.start_lr
        return start + step / max(1, rise) * (head.lr - start)
    share = (step - rise) / max(1, total - rise)
    return max(head.final_lr, _cosine(head.lr, head.final_lr, share))


def weight_decay(head: HeadSettings, step: int, total: int) -> float:
    """Weight decay of update number `step`, counted from 1: a half cosine from reference to final value."""
    final = head.weight_decay if head.final_weight_decay is None else head.final_weight_decay
    value = _cosine(head.weight_decay, final, step / total)
    return max(final, value) if final <= head.weight_decay else min(final, value)


def warmup_factor(update: int, total: int, warmup: float) -> float:
    """Factor on the regression probe's learning rate for update number `update`, counted from 0; the first is 0."""
    rise = int(total * warmup)
    return update / rise if update < rise else 1.0


def _cosine(start: float, final: float, share: float) -> float:
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * share))
