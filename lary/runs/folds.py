"""Cross-validation (``--folds K``), where few episodes or videos validate.

The samples of the training and the validation split are pooled and cut into K
folds by episode or video, balanced by class as far as these allow. Each of K
probes is trained without one fold and predicts it; the predictions of all
folds are scored like those of one split.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lary.arrays import Array, Ints
from lary.probes.outcome import SampleColumns
from lary.probes.sources import LatentView, wide
from lary.types import LatentSource, UsageError


def fold_rows(count: int, groups: Sequence[str] | Array, labels: Ints | None) -> list[Ints]:
    """The rows of each fold, the same for all models and seeds. Raises UsageError."""
    from sklearn.model_selection import StratifiedGroupKFold

    if count > (total := len(set(groups))):
        both = f"training and validation split have {total} episodes or videos together"
        raise UsageError(f"--folds {count}: {both}; take at most that many.")
    kinds = np.zeros(len(groups), dtype=np.int64)
    if labels is not None and np.bincount(labels).max() >= count:  # else scikit-learn refuses
        kinds = labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are rarer than the folds
        return [held for _, held in StratifiedGroupKFold(count).split(kinds, kinds, groups)]


def joined_latents(first: LatentSource, second: LatentSource, chosen: Ints) -> LatentSource:
    """Rows `chosen` (m,) of two sources, counted on from the first to the second."""
    size = len(first)

    def read(rows: Ints) -> Array:
        asked = chosen[rows]
        tokens = np.empty((len(asked), *first.shape), dtype=np.float32)
        for source, at, start in ((first, asked < size, 0), (second, asked >= size, size)):
            if at.any():
                tokens[at] = wide(source.read(asked[at] - start))
        return tokens

    return LatentView(first, read, count=len(chosen))


def joined(parts: Sequence[Any]) -> Any:
    """The outcomes of folds as one: samples one behind another, all else of the first."""
    first = parts[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, SampleColumns):
        return SampleColumns(*(sum(own, ()) for own in zip(*(vars(part).values() for part in parts), strict=True)))
    if isinstance(first, Mapping):
        return {name: joined([part[name] for part in parts]) for name in first}
    if hasattr(first, "__dataclass_fields__"):
        return replace(first, **{name: joined([getattr(part, name) for part in parts]) for name in vars(first)})
    return first
