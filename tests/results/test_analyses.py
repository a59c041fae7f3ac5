"""Analyses of finished runs: numbers by hand and of the paper, the files, what is left out and why; ablations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.data.spec import DATASETS
from lary.types import LaryError
from tests.fake_results import SUFFIXES, add_classification, add_regression, analysed
from tests.helpers import contents, fails, printed, rows_of


def test_frequency_orders_classes_and_averages_their_f1(tmp_path: Path) -> None:
    classes = DATASETS.get("libero").labels.classes
    train = np.arange(len(classes))[::-1] * 10  # the last class has no training sample
    add_classification(tmp_path, "siglip2", "libero", 2.0, train=train)
    add_classification(tmp_path, "siglip2", "libero", 2.0, created="2025-01-02T03:04:05+00:00")  # the older one
    table, _ = analysed(tmp_path, "frequency", "frequency_libero", window=5)
    assert [row["class"] for row in table] == list(classes)
    rising = table[::-1][1:]
    values = [float(row["f1"]) for row in rising]
    assert float(rising[2]["moving_average"]) == pytest.approx(np.mean(values[:5]))
    assert float(rising[10]["moving_average"]) == pytest.approx(np.mean(values[8:13]))
    assert rising[1]["moving_average"] == table[-1]["moving_average"] == ""
    fails(LaryError, "--window 400: libero has 27 classes", analysed, tmp_path, "frequency", window=400)
    add_classification(tmp_path, "siglip2", "libero", 2.0, train=7)
    fails(LaryError, "all classes of libero have 7 training samples", analysed, tmp_path, "frequency")


def test_gap_is_f1_of_people_minus_f1_of_robots_on_shared_classes(tmp_path: Path) -> None:
    runs = {
        (model, data): add_classification(tmp_path, model, data, skill, seed=seed, preset="demo")
        for model, seed in (("lapa", 1), ("dinov3", 2))
        for data, skill in (("human_1st", 4.0), ("robot_1st", 1.0))
    }
    add_classification(tmp_path, "vjepa2", "human_1st", 3.0, preset="demo")
    table, left_out = analysed(tmp_path, "gap", "gap_human_1st_robot_1st_demo")
    assert left_out == "gap: vjepa2 has a run on one of human_1st and robot_1st only"
    human, robot = (set(DATASETS.get(name).labels.classes) for name in ("human_1st", "robot_1st"))
    assert {row["class"] for row in table} <= human & robot
    truth = {
        key: {row["name"]: row["f1"] for row in json.loads(path.read_text())["classes"] if row["true"]}
        for key, path in runs.items()
    }
    missing = {(row["model"], row["class"]) for row in table if not row["gap"]}
    assert missing == {(row["model"], row["class"]) for row in table if any(
        row["class"] not in truth[row["model"], side] for side in ("human_1st", "robot_1st")
    )}  # fmt: skip
    assert missing, "a class without samples has no F1"
    for row in (table := [row for row in table if row["gap"]]):
        wanted = [truth[row["model"], side][row["class"]] for side in ("human_1st", "robot_1st")]
        assert float(row["gap"]) == pytest.approx(wanted[0] - wanted[1])
    facts = json.loads((tmp_path / "logs" / "analysis" / "gap_human_1st_robot_1st_demo.json").read_text())
    mean = np.mean([float(row["gap"]) for row in table if row["model"] == "lapa"])
    assert (facts["mean_gap"]["lapa"], mean > 0.2) == (pytest.approx(mean), True)
    gaps = [[float(row["gap"]) for row in table if row["class"] == name] for name in facts["classes_shown"]]
    assert (means := [np.mean(own) for own in gaps]) == sorted(means)


def test_all_makes_what_the_runs_allow_and_says_the_rest(tmp_path: Path) -> None:
    add_classification(tmp_path, "lapa", "libero", 2.0)
    add_regression(tmp_path, "lapa", "calvin", 0.1, chunks=True)
    add_classification(tmp_path, "lapa", "libero", 9.0, control="shuffled-targets")
    asked = ("analyze", "--out", tmp_path / "out", "--count=1")
    kinds = ("gap", "stride", "codebook", "attention")
    printed(*asked, root=tmp_path, has=[*(f"left out: {kind}: " for kind in kinds), "doesn't tell the options"])
    first = contents(tmp_path / "out")
    stems = ("frequency_libero", "trajectories_calvin_lapa")
    assert set(first) == {f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES}
    table = rows_of(tmp_path / "out" / "frequency_libero.csv")
    assert max(float(row["f1"]) for row in table) < 0.99, "controls are left out"
    printed(*asked, root=tmp_path)
    assert contents(tmp_path / "out") == first


def test_wrong_requests_name_the_remedy(tmp_path: Path) -> None:
    def refused(kind: str, message: str, **options: Any) -> None:
        fails(LaryError, message, analysed, tmp_path, kind, **options)

    refused("all", "There is no folder")
    (tmp_path / "logs").mkdir()
    refused("all", r"no finished run below .*: run 'lary classify' or 'lary regress' first")
    add_regression(tmp_path, "dinov3", "vlabench", 0.1)
    refused("stride", r"--model dinov: no run below .* has it\. Did you mean dinov3", model=("dinov",))
    refused("trajectories", "--count 0: must be at least 1", count=0)
    refused("frequency", "--window 0: must be at least 1", window=0)
    refused("frequency", "frequency: there is no finished classification run: run 'lary classify'")
    refused("frequency", "no finished classification run of the chosen models and data sets: run", model=("dinov3",))
    refused("all", "No analysis can be made of these runs:\n  frequency: ")
    add_classification(tmp_path, "lapa", "human_1st", 3.0)
    add_classification(tmp_path, "lapa", "robot_1st", 3.0, preset="demo")
    refused("gap", "lapa has a run on one of human_1st and robot_1st only")
    refused("gap", "are both human_1st", robot="human_1st")
    refused("gap", "Did you mean human_1st", human="human_first")
    add_classification(tmp_path, "dinov3", "libero", 3.0)
    refused("all", "has both the --model and the --dataset", model=("dinov3",), dataset=("human_1st",))


def test_stride_takes_data_sets_of_one_series_beside_the_paper(tmp_path: Path) -> None:
    for dataset, error in (("vlabench", 0.1), ("vlabench_15", 0.2), ("vlabench_30", 0.4)):
        add_regression(tmp_path, "dinov3", dataset, error)
    add_regression(tmp_path, "lapa", "vlabench", 0.5)
    table, _ = analysed(tmp_path, "stride", "stride_VLABench")
    assert [(row["model"], float(row["value"]), float(row["published"])) for row in table] == [
        ("dinov3", 5, 0.25), ("dinov3", 15, 0.20), ("dinov3", 30, 0.26)
    ]  # fmt: skip
    assert float(table[0]["low"]) < float(table[0]["score"]) < float(table[0]["high"])
    models = ("lapa", "dinov2", "siglip2", "flux2", "vjepa2")
    for model in models:
        for dataset in ("vlabench", "vlabench_30"):
            add_regression(tmp_path, model, dataset, 0.3)
    analysed(tmp_path, "stride", "stride_VLABench")
    picture = (tmp_path / "logs" / "analysis" / "stride_VLABench.svg").read_text()
    assert all(f">{model}<" in picture for model in models), "every model has a panel"


def test_codebook_holds_all_settings_but_one(tmp_path: Path) -> None:
    add_regression(tmp_path / "none", "dinov3", "vlabench", 0.1)
    for kind, message in (("stride", "model has finished runs at two strides"), ("codebook", "of an ablated model")):
        fails(LaryError, message, analysed, tmp_path / "none", kind)
    add_regression(tmp_path / "none", "dinov3-cs8_sl49_dim256_lr1e-4", "vlabench", 0.1)
    fails(LaryError, "no two runs on vlabench differ in one setting alone", analysed, tmp_path / "none", "codebook")
    for codebook, length, width in ((8, 49, 256), (64, 49, 256), (64, 16, 256), (32, 4, 16)):
        add_classification(tmp_path, f"dinov3-cs{codebook}_sl{length}_dim{width}_lr1e-4", "robot_1st", 2.0)
    add_classification(tmp_path, "dinov3", "robot_1st", 2.0)
    table, _ = analysed(tmp_path, "codebook", "codebook_robot_1st")
    assert [(row["setting"], float(row["value"]), round(float(row["published"]), 4)) for row in table] == [
        ("codebook size", 8, 0.6489), ("codebook size", 64, 0.6404),
        ("sequence length", 16, 0.6333), ("sequence length", 49, 0.6404),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["../../../X", "/X", "$\\frac{$", "=HYPERLINK(1)", "@x", "n" * 250, "Ж" * 120, "a/../../X"]
)
def test_names_out_of_results_stay_names(tmp_path: Path, name: str) -> None:
    """In figures, tables and the names of files, which stay below --out."""
    folder = tmp_path / "a/b/c/d"
    path = add_classification(folder, "pixels", "libero", 2.0)
    data = json.loads(path.read_text())
    data |= {"probe": name, "preset": name, "model": data["model"] | {"name": name}}
    path.write_text(json.dumps(data))
    before = set(contents(tmp_path))
    printed("analyze", "frequency", root=folder)
    files = set(contents(tmp_path)) - before
    assert {Path(file).parent.as_posix() for file in files} == {"a/b/c/d/logs/analysis"}
    assert {Path(file).suffix for file in files} == set(SUFFIXES)
    table = rows_of(tmp_path / next(file for file in files if file.endswith(".csv")))
    assert {row["model"].startswith(("=", "@", "+", "-")) for row in table} == {False}
    assert {float(row["f1"]) >= 0 for row in table} == {True}
