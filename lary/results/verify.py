"""``lary verify``: the metrics and digests of a finished run once more, from its folder alone.

Metrics are those of scikit-learn and angles those of SciPy, never those of
this package.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from sklearn import metrics

from lary.arrays import read_npz
from lary.locks import LOCK, WITHOUT_FLOCK
from lary.registry import aligned
from lary.results.folder import FinishedRun, finished_run
from lary.results.record import FILE_NAME, OrientationRow, seal_holds
from lary.types import JsonDict, LaryError

ROUNDING = 1e-6
SMALLEST_NORM = 1e-8
OLDER = "This older result lacks"
HOLDS = "All digests hold, and the folder has no other file."
NOT_CHECKED = """\
Not checked: latents, media, tables and action files, which are not in the folder.
Not recomputed: intervals, p values, losses, controls, rows by class, dimension and robot type, figures.
"""


def verify_run(place: Path) -> tuple[str, list[str]]:
    """The metrics of a finished run and what was found, for a terminal; and what of it is wrong.

    Raises UsageError without a run, LaryError for an unreadable result.
    """
    run = finished_run(place)
    data = (run.folder / FILE_NAME).read_bytes()
    wrong = [*_wrong_files(run)]
    lacks = []
    table = [("metric", "recorded", "recomputed", "")]
    try:
        for name, old, new in _metrics(run):
            same = math.isclose(old, new, rel_tol=ROUNDING, abs_tol=ROUNDING**2)
            table.append((name, f"{old:.8g}", f"{new:.8g}", "ok" if same else "DIFFERS"))
            wrong += [] if same else [f"{name} is not what was recorded."]
    except KeyError:
        lacks.append(f"{OLDER} the arrays that metrics are recomputed from.")
    except (IndexError, ValueError, LaryError) as error:
        wrong.append(f"The metrics can't be recomputed: {error}")
    if b'"seal"' not in data:
        lacks.append(f"{OLDER} a digest of result.json itself.")
    elif not seal_holds(data):
        wrong.append("result.json was changed after it was written: its digest differs.")
    if not any(run.result.files.values()):
        lacks.append(f"{OLDER} digests of the other files.")
    return "\n".join([str(run.folder), *aligned(table), *([*wrong, *lacks] or [HOLDS]), NOT_CHECKED]), wrong


def _wrong_files(run: FinishedRun) -> Iterator[str]:
    """Sentences about files that are missing, changed, or not of the run."""
    named = run.result.files
    for name in named:
        try:
            run.file(name)
        except LaryError as error:
            yield str(error)
    there = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if not path.is_dir()}
    for name in there - {*named, FILE_NAME, LOCK, WITHOUT_FLOCK} if any(named.values()) else ():
        yield f"{run.folder / name} does not belong to the run: result.json names no such file."


def _metrics(run: FinishedRun) -> Iterator[tuple[str, float, float]]:
    """Recorded and recomputed values by name. Raises KeyError."""
    result = run.result
    scores = _class_scores if result.task == "classification" else _action_scores
    for name, selection in result.selections.items():
        seeds = scores(run, name)
        for metric, own in selection.metrics.items():
            yield f"{name} {metric}", own.value, sum(seed[metric] for seed in seeds) / len(seeds)
        for row, seed in zip(result.per_seed if name == result.headline else (), seeds, strict=False):
            for metric, value in row.metrics.items():
                yield f"seed {row.seed} {metric}", value, seed[metric]
    for each in result.orientations:
        yield f"{each.split} angle of {each.name}", each.degrees.value, _degrees(run, each)


def _class_scores(run: FinishedRun, selection: str) -> list[JsonDict]:
    names = "classes", "seen_labels", f"seen_best_{selection}"
    classes, labels, seeds = read_npz(run.file("predictions.npz"), *names)
    found = []
    for best in seeds:
        guess = best[:, 0]
        chosen = np.zeros((len(labels), len(classes)))
        np.put_along_axis(chosen, best, 1, axis=1)
        scores = {
            "top1": metrics.accuracy_score(labels, guess),
            "macro_recall": metrics.recall_score(labels, guess, labels=np.unique(labels), average="macro"),
            "macro_f1": metrics.f1_score(labels, guess, average="macro"),
        }
        if len(classes) > 5:
            scores["top5"] = metrics.top_k_accuracy_score(labels, chosen, k=5, labels=range(len(classes)))
        found.append(scores)
    return found


def _action_scores(run: FinishedRun, selection: str) -> list[JsonDict]:
    found: list[JsonDict] = [{} for _ in run.result.seeds]
    for role in {row.split for row in run.result.dimensions}:
        targets, values, *_ = _actions(run, role, selection)
        truth = targets.reshape(-1, targets.shape[-1])
        middle = truth.mean(axis=0)
        for scores, own in zip(found, values.reshape(-1, *truth.shape), strict=True):
            scores[f"{role}_mse"] = metrics.mean_squared_error(truth, own)
            scores[f"{role}_r2"] = metrics.r2_score((truth - middle).ravel(), (own - middle).ravel())
    return found


def _degrees(run: FinishedRun, row: OrientationRow) -> float:
    targets, values, mean, std = (own[..., row.dims] for own in _actions(run, row.split, run.result.headline))
    every = np.stack([targets, *values]) * std[:, None] + mean[:, None]
    unknown = (np.linalg.norm(every[0], axis=-1) <= SMALLEST_NORM) & (row.convention != "euler_xyz")
    every[..., -1] += 1e-12  # a zero quaternion that is predicted is no rotation
    flat = every.reshape(len(every), -1, len(row.dims))
    turn = partial(Rotation.from_euler, "xyz") if len(row.dims) == 3 else Rotation.from_quat
    true, *turns = map(turn, flat)
    angles = (np.degrees((turn.inv() * true).magnitude()).reshape(unknown.shape) for turn in turns)
    return float(np.mean([np.ma.array(own, mask=unknown).mean(axis=1).mean() for own in angles]))


def _actions(run: FinishedRun, role: str, selection: str) -> list[Any]:
    """Targets, predictions, mean and std of a split, in 64 bits."""
    names = "targets", f"normalised_{selection}", "mean", "std"
    found = read_npz(run.file("actions.npz"), *(f"{role}_{name}" for name in names))
    return [own.astype(np.float64) for own in found]
