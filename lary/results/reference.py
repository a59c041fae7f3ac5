"""The tables of the paper, which ship with the package, and the numbers in them for a run of ours."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lary.results.record import EvalResult, Metric

REFERENCE = Path(__file__).parent / "reference"


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper; its columns are keys of data sets, but for those that `columns` names by key."""

    file: str
    title: str
    about: str
    higher_is_better: bool | None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows by column name."""
        return read_reference(self.file)


PUBLISHED = (
    PublishedTable("leaderboard_classification", "Action classification", "Top-1 accuracy in per cent.", True),
    PublishedTable(
        "leaderboard_regression", "Action regression", "Mean squared error, normalised; lower is better.", False
    ),
    PublishedTable(
        "leaderboard_vlabench_stride",
        "Regression by stride",
        "VLABench, mean squared error; lower is better.",
        False,
        {"vlabench_15": "stride_15", "vlabench_30": "stride_30"},
    ),
    PublishedTable(
        "lam_ablation", "Ablation of a latent action model", "Accuracies in per cent, errors normalised.", None
    ),
)


@lru_cache
def read_reference(name: str) -> list[dict[str, str]]:
    """Rows of a table that ships with the package."""
    with (REFERENCE / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def published_score(result: EvalResult) -> Metric | None:
    """The paper's number for the same model, data set and kind of probe, where it has one."""
    if result.action_mode == "relative" or result.dataset.split_set or result.label != result.model.name:
        return None
    for source in PUBLISHED:
        column = source.columns.get(result.dataset.name, result.dataset.name)
        for row in source.rows if source.higher_is_better is result.score.higher_is_better else ():
            if row["model"] == result.model.name and column in row:
                return Metric(value=float(row[column]) / result.score.scale, unit=result.score.unit)
    return None
