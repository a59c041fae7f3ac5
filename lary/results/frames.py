"""Finished runs as pandas tables, for notebooks: one row per run and selection, or one row per sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.results.published import read_scores
from lary.results.record import FILE_NAME, EvalResult, read_result
from lary.runtime import log
from lary.types import LaryError, UsageError, as_path

if TYPE_CHECKING:
    import pandas

FACTS = ("task", "probe", "action_mode", "relative_frame", "protocol", "preset", "control", "project", "seed", "status",
         "failures", "created", "identity")  # fmt: skip
"""Fields of a result that are columns as they are."""


def load_results(folder: str | Path) -> pandas.DataFrame:
    """All finished runs below a folder as a table.

    One row per run and selection. The columns of a metric are its name for the value, and ``NAME_low`` and
    ``NAME_high`` for the 95 % interval; ``headline`` marks the selection that is reported first. A result that can't be
    read is left out with a warning in the log.

    Raises:
        UsageError: there is no such folder.
    """
    import pandas

    root = as_path(folder)
    if not root.is_dir():
        raise UsageError(f"There is no folder {root}: name the folder of results, LARY_LOG_DIR.")
    rows: list[dict[str, Any]] = []
    for file in sorted(root.rglob(FILE_NAME)):
        try:
            rows += rows_of(file.parent, read_result(file))
        except LaryError as error:
            log.warning("%s", error)
    return pandas.DataFrame(rows)


def rows_of(folder: Path, result: EvalResult) -> list[dict[str, Any]]:
    """The selections of one run."""
    shared = {
        "folder": str(folder), "dataset": result.dataset.name, "split_set": result.dataset.split_set,
        "model": result.model.name, "label": result.label, "paradigm": result.model.paradigm, "dim": result.model.dim,
        **{name: getattr(result, name) for name in FACTS},
    }  # fmt: skip
    rows = []
    for name, selection in result.selections.items():
        row = {**shared, "selection": name, "headline": name == result.headline, "epoch": selection.epoch}
        for metric, found in selection.metrics.items():
            row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
        rows.append(row)
    return rows


def load_samples(run: str | Path) -> pandas.DataFrame:
    """The evaluated samples of one run as a table.

    One row per sample: ``split`` (seen or unseen), ``id``, ``group`` (episode or video), ``score`` as the mean over the
    seeds, and ``score_SEED`` for each of several. The score is that of the headline selection: 1 or 0 for a right or
    wrong class, the normalised squared error for actions.

    Args:
        run: folder of the run, or its result.json.

    Raises:
        LaryError: there is no finished run, or its scores can't be read.
    """
    import pandas

    place = as_path(run)
    folder = place.parent if place.name == FILE_NAME else place
    result = read_result(folder / FILE_NAME)
    parts = []
    for role in ("seen", "unseen"):
        try:
            found = read_scores(folder, result, role)
        except LaryError:
            if role == "seen":
                raise
            continue  # the run has no unseen split
        part = pandas.DataFrame({"split": role, "id": found.ids, "group": found.groups})
        part["score"] = found.scores.mean(axis=0)
        if len(result.seeds) > 1:
            part = part.assign(**{f"score_{seed}": row for seed, row in zip(result.seeds, found.scores, strict=True)})
        parts.append(part)
    return pandas.concat(parts, ignore_index=True)
