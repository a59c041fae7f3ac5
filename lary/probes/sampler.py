"""Which rows a probe sees, in which order, and which ones it never trains on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lary.probes.outcome import Ints
from lary.types import UsageError

HELD_OUT_SHARE = 0.1


def class_weights(labels: Ints) -> npt.NDArray[np.float64]:
    """Probability of drawing each sample (n,), the same in sum for every class that occurs; they sum to 1."""
    _, positions, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (counts[positions] * len(counts)), dtype=np.float64)


def balanced_indices(
    weights: npt.NDArray[np.float64], epoch: int, seed: int = 0, processes: int = 1, rank: int = 0
) -> Ints:
    """Positions that process `rank` trains on in an epoch (from 0): as many draws as samples, with replacement.

    The draws are rounded up to a multiple of `processes` and dealt out in turn.
    """
    total = -(-len(weights) // processes) * processes
    chances = weights / weights.sum()
    draws = np.random.default_rng(seed + epoch).choice(len(weights), size=total, p=chances, replace=True)
    return draws[rank::processes].astype(np.int64)


def validation_indices(count: int, processes: int = 1, rank: int = 0) -> Ints:
    """The order in which the published code visits its validation samples: one permutation, seed 0, for every epoch.

    Padded by repeating the first ones up to a multiple of `processes`; those count twice in its accuracy.
    """
    import torch

    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    total = -(-count // processes) * processes
    return np.resize(order, total)[rank::processes].astype(np.int64)


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
