"""Commands of probes on extracted latents: what a result records, files of another model, damaged action files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.helpers import lary, rows_of
from tests.tree import make_calvin

pytestmark = pytest.mark.usefixtures("no_figures")
ASK = ("--model", "pixels", "--dataset", "calvin")
REGRESS = ("regress", *ASK, "--probe-preset", "demo", "--epochs", "2")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    make_calvin(folder, {"train": 12, "val": 4})
    for split in ("train", "val"):
        assert lary("extract", *ASK, "--split", split, root=folder).code == 0
    return folder


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "root")
    return tmp_path / "root"


def result_of(root: Path) -> Path:
    return next((root / "logs" / "regression").rglob("result.json"))


def test_result_records_what_was_run_and_is_not_overwritten(root: Path) -> None:
    assert lary(*REGRESS, root=root).code == 0
    first = (file := result_of(root)).read_bytes()
    result = json.loads(first)
    assert (result["preset"], result["protocol"], result["headline"]) == ("demo", "corrected", "held_out")
    assert set(result["selections"]) == {"held_out", "best_on_validation"}
    assert "mean_action" in result["controls"]
    assert result["dataset"]["splits"] == {"train": {"rows": 36, "groups": 12}, "val": {"rows": 12, "groups": 4}}
    assert result["timings"]["probe"] > 0
    assert lary(*REGRESS, root=root).code == 0
    assert file.read_bytes() == first
    assert lary(*REGRESS, "--seed", "3", root=root).code == 2
    assert file.read_bytes() == first
    assert lary(*REGRESS, "--seed", "3", "--overwrite", root=root).code == 0
    assert json.loads(file.read_bytes())["seed"] == 3


def test_stamp_tells_another_model_behind_a_bare_name(root: Path) -> None:
    for split in ("train", "val"):
        rows = rows_of(root / "data" / f"{split}_la_calvin_5_pixels.csv")
        folder = root / "latent_actions" / "calvin" / split
        shutil.copytree(folder / "pixels", folder / "random-vit")
        for row in rows:
            row["la_path"] = Path(row["la_path"]).name
        with (root / "data" / f"{split}_la_calvin_5_random-vit.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    done = lary(*REGRESS[:2], "random-vit", *REGRESS[3:], root=root)
    assert (done.code, "holds latents of 'pixels', not of 'random-vit'" in done.err) == (2, True)


def test_bad_action_file_costs_its_row(root: Path) -> None:
    rows = rows_of(root / "data" / "calvin_metadata_val.csv")
    (root / "data" / "regression" / "calvin" / "val_stride5" / rows[3]["action"]).write_bytes(b"torn")
    assert lary(*REGRESS, root=root).code == 1
    result = json.loads(result_of(root).read_text())
    assert (result["status"], result["failures"]) == ("incomplete", 1)
    assert [row["row"] for row in rows_of(result_of(root).parent / "failures.csv")] == ["4"]
