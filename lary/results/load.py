"""Results and samples as tables for notebooks: ``lary.load_results`` and ``lary.load_samples``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.results.compare import open_scored
from lary.results.folder import run_file
from lary.results.report import find_results
from lary.types import LaryError

if TYPE_CHECKING:
    from pandas import DataFrame

CASES = "case.txt"


def load_results(folder: str | Path) -> DataFrame:
    """One row per run below a folder and way of choosing head and epoch.

    Each metric has three columns: its value, and with ``_low`` and ``_high`` the ends of its 95 % interval; a metric
    that a run doesn't have is NaN. Files that can't be read are left out with a warning.

    Raises:
        UsageError: there is no such folder.
    """
    from pandas import DataFrame

    rows = []
    for entry in find_results(Path(folder))[0]:
        result = entry.result
        for name, selection in result.selections.items():
            row: dict[str, Any] = {
                "folder": str(entry.path.parent), "task": result.task, "dataset": result.dataset.name,
                "split_set": result.dataset.split_set, "model": result.model.name, "label": result.label,
                "paradigm": result.model.paradigm, "probe": result.probe, "action_mode": result.action_mode,
                "relative_frame": result.relative_frame, "protocol": result.protocol, "preset": result.preset,
                "control": result.control, "project": result.project, "seeds": result.seeds or (result.seed,),
                "status": result.status, "selection": name, "headline": name == result.headline,
                "primary": result.primary, "epoch": selection.epoch, "head": selection.head,
            }  # fmt: skip
            for metric, found in selection.metrics.items():
                row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
            rows.append(row)
    return DataFrame(rows)


def load_samples(run: str | Path) -> DataFrame:
    """One row per evaluated sample of a run, which is named by its folder or its ``result.json``.

    ``score`` is the mean over the seeds, whose own scores are in ``score_<seed>``: 1 for a right and 0 for a wrong
    answer, or the normalised squared error. A classification also has ``media``, ``predicted`` and ``true``.

    Raises:
        UsageError: there is no such run.
        LaryError: a file of the run is missing or another one than it wrote.
    """
    from pandas import DataFrame, concat

    tables = []
    for role in ("seen", "unseen"):
        try:
            found = open_scored(Path(run), role)
        except LaryError:
            if role == "seen":
                raise
            continue
        result, scores = found.result, found.scores
        values = {"score": scores.scores.mean(axis=0, dtype=np.float64)}
        values |= {f"score_{seed}": own for seed, own in zip(result.seeds, scores.scores, strict=True)}
        columns: dict[str, Any] = {"split": role, "sample": scores.ids, "group": scores.groups, **values}
        if result.task == "classification":
            lines = run_file(found.folder, result, CASES).read_text(encoding="utf-8").splitlines()
            parts = zip(*(line.rsplit("\t", 2) for line in lines), strict=True)
            columns |= dict(zip(("media", "predicted", "true"), parts, strict=True))
        tables.append(DataFrame(columns))
    return concat(tables, ignore_index=True)
