"""``actions.npz`` beside a regression's result: predicted and true chunk of every evaluated sample, in physical units.

For each role (``seen``, ``unseen``) it holds ``<role>_ids``, ``<role>_groups`` and ``<role>_media`` (the source
frame), (n,) text, and ``<role>_predicted`` and ``<role>_true``, (n, K, A) float32, of the headline selection and the
first seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lary.arrays import read_npz
from lary.files import atomic_write
from lary.probes.outcome import Floats, RegressionOutcome
from lary.results.measure import headline
from lary.types import LaryError

FILE_NAME = "actions.npz"


@dataclass(frozen=True)
class Chunks:
    """Chunks of the samples of one split: n names each, `predicted` and `true` (n, K, A) float32, physical units."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    media: tuple[str, ...]
    predicted: Floats
    true: Floats


def write_chunks(folder: Path, outcome: RegressionOutcome) -> str:
    """Write the chunks of all evaluated splits into a run's folder; returns the file's name."""
    name = headline(outcome.splits["seen"].selections)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for role, split in outcome.splits.items():
        samples, mean, std = split.samples, split.mean[:, None], split.std[:, None]
        arrays |= {f"{role}_ids": np.array(samples.ids), f"{role}_groups": np.array(samples.groups)}
        arrays[f"{role}_media"] = np.array([media[0] for media in samples.media])
        arrays[f"{role}_predicted"] = split.selections[name].values * std + mean
        arrays[f"{role}_true"] = split.targets * std + mean
    with atomic_write(folder / FILE_NAME) as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return FILE_NAME


def read_chunks(folder: Path, role: str = "seen") -> Chunks:
    """The chunks of one role.

    Raises:
        LaryError: there is no such file, it is torn, or the run has no such split.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise LaryError(f"{file} does not exist: run the probe again with --overwrite, then it is written.")
    try:
        parts = read_npz(file, *(f"{role}_{part}" for part in ("ids", "groups", "media", "predicted", "true")))
    except KeyError:
        raise LaryError(f"{file} has no chunks of the split '{role}'.") from None
    except (OSError, ValueError) as error:
        raise LaryError(f"{file} can't be read: {error}. Run the probe again with --overwrite.") from error
    ids, groups, media = (tuple(map(str, part)) for part in parts[:3])
    return Chunks(ids, groups, media, parts[3].astype(np.float32), parts[4].astype(np.float32))
