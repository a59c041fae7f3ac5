"""Regression targets as the published code computes them, read through tables and files of its layout.

One difference is meant: for a robot type without statistics, or an empty cell, the published code takes mean 0 and
std 1 without a word. Here it is an error; the numbers of such rows are checked by saying so, with `IDENTITY`.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.data.normalisation import Normaliser, Statistics, load_normaliser, load_targets, relative_stats_file
from lary.data.spec import DATASETS
from lary.data.tables import SampleTable, read_table
from lary.types import LaryError
from tests.parity.conftest import Case, case_names, load_case
from tests.parity.fill import uniform

pytestmark = pytest.mark.skipif(not case_names("regression_targets*"), reason="no such cases in LARY_PARITY_DIR")


def identity(size: int) -> Normaliser:
    """Mean 0 and std 1, asked for by name."""
    return Normaliser("the test", shared=Statistics(np.zeros(size), np.ones(size)))


def lay_out(folder: Path, entry: dict[str, Any]) -> SampleTable:
    """Write the action files, the statistics and the table of a case; returns the table."""
    spec = DATASETS.get(entry["dataset"])
    root = folder / spec.split(spec.train).root
    (root / "actions").mkdir(parents=True)
    robots = entry["robot_types"]
    for row in range(len(robots)):
        values = uniform(f"{entry['draw']}/{row}", tuple(entry["shape"]))
        np.save(root / "actions" / f"{row}.npy", (values * 4 - 2).astype(np.float32))
    if "stats" in entry:
        rule = spec.actions.normalisation
        name = relative_stats_file(spec) if entry["mode"] == "relative" else rule.stats_file
        assert name is not None
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(entry["stats"]))
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["src_img", "tgt_img", "action", "robot_type"])
        writer.writerows(
            [f"ep_0/{row}.png", f"ep_0/{row}.png", f"{row}.npy", robot or ""] for row, robot in enumerate(robots)
        )
    return read_table(spec, spec.train, path=path, data_dir=folder)


@pytest.mark.parametrize("name", case_names("regression_targets*"))
def test_targets(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    for key, entry in case.about["input"].items():
        check(case, key, entry, tmp_path / key)


def check(case: Case, key: str, entry: dict[str, Any], folder: Path) -> None:
    table = lay_out(folder, entry)
    normaliser = load_normaliser(table.spec, folder, entry["mode"])
    known = [row for row, robot in enumerate(table.embodiments()) if normaliser.shared or robot in normaliser.robots]
    unknown = [row for row in range(len(table)) if row not in known]
    expected = case.arrays[key]
    found = np.empty_like(expected)
    for rows, chosen in ((known, normaliser), (unknown, identity(len(table.spec.actions.dims)))):
        if rows:
            targets = load_targets(table.take(rows), chosen, mode=entry["mode"])
            assert not targets.failures
            assert targets.readable.all()
            found[rows] = targets.values.reshape(len(rows), -1)
    case.check(key, found)
    if unknown:
        with pytest.raises(LaryError, match=f"row {unknown[0] + 1} "):
            load_targets(table, normaliser, mode=entry["mode"])
