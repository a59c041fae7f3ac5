"""``lary sweep``: many runs from a file, here and on Ray, what is left of them, and files that are refused."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pydantic import TypeAdapter

from lary.configs import RunConfig, SweepConfig
from lary.data.spec import DATASETS, DatasetSpec
from lary.files import write_text
from lary.latents.pipeline import Interrupted
from lary.runs import sweep as sweeps
from lary.runs.engines import _with_gpus, check_resources
from lary.types import LaryError
from tests.helpers import Done, contents, fails, lary

pytestmark = pytest.mark.usefixtures("no_figures")
SWEEP = """
options: {probe_preset: demo, workers: 1, model-type: mlp, epochs: 1}
grid:
  model: [pixels, frame-difference]
  dataset: [calvin]
  project: [null, 4]
runs:
  - {model: pixels, dataset: calvin, seed: 7, epochs: 2}
"""
ON_RAY = """
options: {probe_preset: demo, workers: 1}
runs:
  - {model: pixels, dataset: calvin, epochs: 1}
  - {model: pixels, dataset: robot_1st, pool: cls}
"""


def sweep(root: Path, text: str, *words: str) -> Done:
    (root / "sweep.yaml").write_text(text)
    return lary("sweep", root / "sweep.yaml", *words, root=root)


def test_a_sweep_does_what_is_left_and_continues_after_a_failure(place: Path) -> None:
    plan = sweep(place, SWEEP, "--dry-run")
    assert (plan.code, plan.out.count("to do"), contents(place, "result.json")) == (0, 5, {})
    broken = "logs/regression/logs/calvin_5_frame-difference_mlp_absolute/result.json"
    write_text(place / broken, "{}")
    first = sweep(place, SWEEP)
    words = ("5 runs: 4 done now, 0 before, 1 failed", "failed: frame-difference on calvin", "schema_version")
    assert (first.code, [part for part in words if part not in first.out]) == (1, [])
    before = contents(place, "result.json")
    (own,) = (json.loads(file) for folder, file in before.items() if "epochs=2,seed=7" in folder)
    assert (own["seed"], own["options"]["epochs"]) == (7, 2), "a run's own options count"
    (place / broken).unlink()
    second = sweep(place, SWEEP)
    assert (second.code, second.out.count("result there")) == (0, 4)
    assert "5 runs: 1 done now, 4 before, 0 failed" in second.out
    assert "pixels, project 4" in second.out.split("better")[1], "a table of all runs"
    after = contents(place, "result.json")
    assert after.pop(broken) != before.pop(broken)
    assert after == before


def test_the_plan_says_what_a_run_lacks(place: Path) -> None:
    runs = "".join(
        f"  - {{model: {model}, dataset: {data}, probe_preset: demo}}\n"
        for model, data in (
            ("pixels", "calvin"),
            ("magvit2", "calvin"),
            ("pixels", "vlabench"),
            ("optical-flow", "robot_1st"),
        )
    )
    done = sweep(place, f"runs:\n{runs}", "--dry-run")
    states = [line.split("  ")[-1].strip() for line in done.out.splitlines()[1:]]
    assert (done.code, states[0], states[1][:34]) == (1, "to do", "lacks: Weights of 'magvit2' are no")
    assert "lacks: There is no table of vlabench" in states[2]
    assert states[3] == "to do"
    shutil.rmtree(place / "data" / "classification")
    assert "media that" in sweep(place, f"runs:\n{runs}", "--dry-run").out


def test_a_sweep_knows_the_records_of_its_root(place: Path) -> None:
    """A data set of one's own, whose record is in LARY_ROOT/data and nowhere else."""
    record = replace(DATASETS.get("calvin"), name="own", title="own")
    (place / "data" / "own_dataset.json").write_bytes(TypeAdapter(DatasetSpec).dump_json(record))
    for split in ("train", "val"):
        shutil.copy(place / "data" / f"calvin_metadata_{split}.csv", place / "data" / f"own_metadata_{split}.csv")
    runs = "[{model: pixels, dataset: own, probe_preset: demo, model_type: ridge, workers: 1}]"
    assert "1 runs: 1 done now" in sweep(place, f"runs: {runs}").out


@pytest.mark.parametrize("named", ["5", "{a: b}", "[3]"])
def test_plug_ins_that_are_no_files_are_refused(place: Path, named: str) -> None:
    done = sweep(place, f"plugins: {named}\nruns: [{{model: pixels, dataset: calvin}}]", "--dry-run")
    assert (done.code, "plug-ins are named as one Python file or a list" in done.err) == (2, True), done.err
    (place / "lary.yaml").write_text(f"PLUGIN: {named}\n")
    assert "plug-ins are named as" in lary("models", "--config", place / "lary.yaml").err


def test_a_sweep_names_its_plug_ins(place: Path) -> None:
    (place / "own.py").write_text((Path(__file__).parents[2] / "examples" / "my_encoder.py").read_text())
    text = "plugins: [own.py]\nruns: [{model: colour-grid, dataset: calvin, probe_preset: demo, model_type: ridge}]\n"
    assert "1 runs: 1 done now" in sweep(place, text).out
    assert "none.py is not a Python file" in sweep(place, text.replace("own", "none"), "--dry-run").err


def test_ctrl_c_stops_a_sweep_and_is_no_failure_of_a_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stopped(config: RunConfig, *_: Any) -> None:
        asked.append(config)
        raise Interrupted("Stopped: 3 of 24 rows are still to be done.")

    monkeypatch.setattr(sweeps, "run", stopped)
    assert (sweep(place, SWEEP).code, len(asked)) == (130, 1), "no run is started after it"


def test_parts_of_a_sweep_are_the_whole(place: Path) -> None:
    whole = (picture := next((place / "data/regression/calvin").rglob("*.png"))).read_bytes()
    picture.write_bytes(b"")
    part = sweep(place, SWEEP, "--part", "2/2")
    assert (part.code, "2 runs: 2 done now" in part.out) == (1, True), "a row of theirs can't be read"
    assert "put the old ones back" in sweep(place, SWEEP, "--part", "1/2").out, "these have latents of the old one"
    picture.write_bytes(whole)
    assert "3 runs: 3 done now" in sweep(place, SWEEP, "--part", "1/2").out
    assert sweep(place, SWEEP, "--part", "3/2").code == 2


def test_sweep_on_a_ray_cluster(place: Path) -> None:
    """Same results as here; a run that fails leaves the others alone. Ray alone takes seconds to start."""
    ray = pytest.importorskip("ray", reason="needs the extra lary[ray]")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        done = sweep(place, ON_RAY, "--engine", "ray", "--cpus-per-run", "0.5")
    finally:
        ray.shutdown()
    assert (done.code, "2 runs: 1 done now, 0 before, 1 failed" in done.out) == (1, True)
    assert "cls" in done.out.split("failed:")[1]
    on_ray = [json.loads(found)["selections"] for found in contents(place, "result.json").values()]
    shutil.rmtree(place / "logs")
    assert (sweep(place, ON_RAY).code, len(on_ray)) == (1, 1)
    assert on_ray == [json.loads(found)["selections"] for found in contents(place, "result.json").values()]


def test_a_sweep_without_a_cluster_or_on_a_small_one_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs the extra lary[ray]")
    done = sweep(place, ON_RAY, "--engine", "ray", "--address", "127.0.0.1:1")
    assert (done.code, "there is no Ray cluster" in done.err, "RAY_AUTH_MODE" in done.err) == (2, True, True)
    check_resources({"CPU": 4.0, "GPU": 1.0}, SweepConfig(gpus_per_run=0.5, cpus_per_run=4))
    words = "--gpus-per-run 1: the Ray cluster has 0 GPUs"
    fails(LaryError, words, check_resources, {"CPU": 4.0}, SweepConfig(gpus_per_run=1))
    monkeypatch.setitem(sys.modules, "ray", Mock(get_gpu_ids=lambda: [5, 7]))
    assert _with_gpus(lambda *given: given, "group") == ("group", "0,1"), "of those that Ray lets it see"
    fails(LaryError, "--cpus-per-run 8", check_resources, {"CPU": 4.0}, SweepConfig(cpus_per_run=8))


@pytest.mark.parametrize(("runs", "words"), [
    ("[{weights: a.pt}, {weights: b.pt}]", "with weights a.pt and b.pt: these share a folder"),
    ("[{weights: a.pt}, {}]", "with weights a.pt and None: these share a folder"),
    ("[{seeds: '0,1'}, {seeds: '0_1'}]", "runs 1 and 2 differ, but would share"),
    ("[{tracker: none, epochs: 2}, {epochs: 3}, {epochs: 2, tracker: wandb}]", ""),
    ("[{weights: random}, {}]", ""),
])  # fmt: skip
def test_no_two_runs_share_a_folder(place: Path, runs: str, words: str) -> None:
    options = "options: {model: pixels, dataset: calvin, probe_preset: demo}"
    done = sweep(place, f"{options}\nruns: {runs}", "--dry-run")
    assert (done.code == 2, words in done.err, "Traceback" in done.err) == (bool(words), True, False), done.err


def test_long_options_have_a_folder_each(place: Path) -> None:
    seeds = [",".join(map(str, range(first, first + 90))) for first in (0, 1, 0)]
    text = "options: {model: pixels, dataset: calvin}\nruns:\n" + "".join(
        f"- {{seeds: '{own}', epochs: {epochs}}}\n" for own, epochs in zip(seeds, (1, 1, 2), strict=True)
    )
    (place / "sweep.yaml").write_text(text)
    names = [each.own for each in sweeps.read_plan(place / "sweep.yaml")]
    assert (len(set(names)), max(map(len, names)) < 256) == (3, True)
