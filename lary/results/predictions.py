"""``predictions.npz`` beside a result: the headline score of every evaluated sample, so that runs can be compared.

For each role (``seen``, ``unseen``) it holds ``<role>_ids`` and ``<role>_groups``, (n,) text, and ``<role>_scores``,
(S, n) float32: one row per seed; a classification has 1 for a right and 0 for a wrong answer, a regression the
mean squared error of the sample, normalised. ``seeds`` (S,) int64 names the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lary.arrays import read_npz
from lary.files import atomic_write
from lary.probes.outcome import ClassificationOutcome, Floats, RegressionOutcome, SampleColumns
from lary.results.measure import headline
from lary.types import LaryError

FILE_NAME = "predictions.npz"


@dataclass(frozen=True)
class Scores:
    """Headline score of each sample of one split: ids and groups n names, scores (S, n) float32."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    scores: Floats


def class_scores(runs: Sequence[ClassificationOutcome]) -> dict[str, Scores]:
    """Right or wrong, by role, from probes of several seeds."""
    first = headline(runs[0].selections)
    right = [run.selections[first].logits.argmax(axis=1) == run.labels for run in runs]
    return {"seen": _scores(runs[0].samples, np.stack(right).astype(np.float32))}


def action_scores(runs: Sequence[RegressionOutcome]) -> dict[str, Scores]:
    """Squared error of each sample, by role, from probes of several seeds."""
    first = headline(runs[0].splits["seen"].selections)
    found = {}
    for role, split in runs[0].splits.items():
        values = [run.splits[role].selections[first].values.astype(np.float64) for run in runs]
        errors = [np.square(own - split.targets).mean(axis=(1, 2)) for own in values]
        found[role] = _scores(split.samples, np.stack(errors).astype(np.float32))
    return found


def _scores(samples: SampleColumns, scores: Floats) -> Scores:
    return Scores(samples.ids, samples.groups, scores)


def write_scores(folder: Path, scores: dict[str, Scores], seeds: Sequence[int]) -> str:
    """Write the scores of a run into its folder; returns the file's name."""
    arrays: dict[str, npt.NDArray[np.generic]] = {"seeds": np.array(seeds, dtype=np.int64)}
    for role, own in scores.items():
        arrays |= {f"{role}_ids": np.array(own.ids), f"{role}_groups": np.array(own.groups)}
        arrays[f"{role}_scores"] = own.scores
    with atomic_write(folder / FILE_NAME) as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return FILE_NAME


def read_scores(folder: Path, role: str = "seen") -> Scores:
    """The scores of one role.

    Raises:
        LaryError: there is no such file, it is torn, or the run has no such split.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise LaryError(f"{file} does not exist: run the probe again with --overwrite, then it is written.")
    try:
        ids, groups, scores = read_npz(file, *(f"{role}_{part}" for part in ("ids", "groups", "scores")))
    except KeyError:
        raise LaryError(f"{file} has no scores of the split '{role}'.") from None
    except (OSError, ValueError) as error:
        raise LaryError(f"{file} can't be read: {error}. Run the probe again with --overwrite.") from error
    return Scores(tuple(map(str, ids)), tuple(map(str, groups)), scores.astype(np.float32))
