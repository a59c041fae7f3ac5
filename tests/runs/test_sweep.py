"""``lary sweep``: many runs from a file, here and on Ray, what is left of them, and files that are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lary.configs import RunConfig, SweepConfig
from lary.latents.pipeline import Interrupted
from lary.runs import sweep as sweeps
from lary.runs.engines import check_resources
from lary.types import LaryError
from tests.helpers import Done, lary
from tests.tree import make_calvin, make_robot

pytestmark = pytest.mark.usefixtures("no_figures")
SWEEP = """
options: {probe_preset: demo, workers: 1, model-type: mlp, epochs: 1}
grid:
  model: [pixels, frame-difference]
  dataset: [calvin]
  project: [null, 4]
runs:
  - {model: pixels, dataset: calvin, seed: 7}
"""
ON_RAY = """
options: {probe_preset: demo, workers: 1}
runs:
  - {model: pixels, dataset: calvin, epochs: 1}
  - {model: pixels, dataset: robot_1st, pool: cls}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    make_calvin(root, {"train": 8, "val": 5})
    make_robot(root, {"train": 16, "val": 8})
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "root")
    return tmp_path / "root"


def sweep(root: Path, text: str, *words: str) -> Done:
    (root / "sweep.yaml").write_text(text)
    return lary("sweep", root / "sweep.yaml", *words, root=root)


def results(root: Path) -> dict[str, bytes]:
    return {path.parent.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("result.json")}


def test_a_sweep_does_what_is_left_and_continues_after_a_failure(root: Path) -> None:
    plan = sweep(root, SWEEP, "--dry-run")
    assert (plan.code, plan.out.count("to do"), results(root)) == (0, 5, {})
    broken = "logs/regression/logs/calvin_5_frame-difference_mlp_absolute"
    (root / broken).mkdir(parents=True)
    (root / broken / "result.json").write_text("{}")
    first = sweep(root, SWEEP)
    assert first.code == 1
    for words in ("5 runs: 4 done now, 0 before, 1 failed", "failed: frame-difference on calvin", "schema_version"):
        assert words in first.out
    before = results(root)
    assert any("seed=7" in folder for folder in before)
    (root / broken / "result.json").unlink()
    second = sweep(root, SWEEP)
    assert (second.code, second.out.count("result there")) == (0, 4)
    assert "5 runs: 1 done now, 4 before, 0 failed" in second.out
    assert "pixels, project 4" in second.out.split("better")[1], "a table of all runs"
    after = results(root)
    assert after.pop(broken) != before.pop(broken)
    assert after == before


def test_ctrl_c_stops_a_sweep_and_is_no_failure_of_a_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stopped(config: RunConfig, *_: Any) -> None:
        asked.append(config)
        raise Interrupted("Stopped: 3 of 24 rows are still to be done.")

    monkeypatch.setattr(sweeps, "run", stopped)
    assert sweep(root, SWEEP).code == 130
    assert len(asked) == 1, "no run is started after it"


def test_parts_of_a_sweep_are_the_whole(root: Path) -> None:
    assert "2 runs: 2 done now" in sweep(root, SWEEP, "--part", "2/2").out
    assert "3 runs: 3 done now" in sweep(root, SWEEP, "--part", "1/2").out
    assert sweep(root, SWEEP, "--part", "3/2").code == 2


@pytest.mark.parametrize(("text", "words"), [
    ("grid: {modle: [pixels]}", "there is no option 'modle'. Did you mean mod"),
    ("grids: {}", "has to hold the keys options, grid, runs"),
    ("grid: {model: pixels, dataset: [calvin]}", "grid NAME: [values]"),
    ("grid: {model: [pixel], dataset: [calvin]}", "Did you mean pixels"),
    ("grid: {model: [pixels], dataset: [calvinn]}", "Did you mean calvin"),
    ("grid: {model: [pixels]}", "there is no value for dataset"),
    ("runs: [{model: pixels, dataset: calvin, epochs: many}]", "epochs 'many'"),
    ("runs: [{model: pixels, dataset: calvin, protocol: papers}]", "protocol 'papers'"),
    ("runs: [{model: pixels, dataset: calvin, probe_preset: dem}]", "Did you mean demo"),
    ("runs: [{model: pixels, dataset: robot_1st, model_type: dit}]", "one of classes"),
    ("runs: [{model: pixels, dataset: calvin}, {model: pixels, dataset: calvin}]", "same run as number 1"),
    ("runs: [{model: pixels, dataset: calvin, splits: valley}]", "valley"),
    ("runs: [{model: pixels, dataset: calvin}, {model: pixels, dataset: calvin, precision: bf16}]", "share a folder"),
    ("runs: {model: pixels}", "runs a list of options"),
    ("options: [a]", "options hold NAME: value"),
    ("[]", "has to hold the keys"),
    ("grid: {}", "asks for no run"),
    ("grid: !!python/object/apply:os.system ['touch executed']", "the tag"),
    ("a: &a [1]\ngrid: {model: *a}", "anchors and aliases"),
    ("grid: " + "[" * 5000, "nested too deeply"),
    (f"grid: {{model: [pixels], dataset: [calvin], seed: {[*range(200)]}, epochs: {[*range(1, 200)]}}}", "10000"),
])  # fmt: skip
def test_wrong_sweeps_are_refused_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sweep(tmp_path, text)
    assert (done.code, words in done.err, "Traceback" in done.err) == (2, True, False), done.err
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_sweep_on_a_ray_cluster(root: Path) -> None:
    """Same results as here; a run that fails leaves the others alone. Ray alone takes seconds to start."""
    ray = pytest.importorskip("ray", reason="needs the extra lary[ray]")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        done = sweep(root, ON_RAY, "--engine", "ray", "--cpus-per-run", "0.5")
    finally:
        ray.shutdown()
    assert done.code == 1
    assert "2 runs: 1 done now, 0 before, 1 failed" in done.out
    assert "cls" in done.out.split("failed:")[1]
    on_ray = {name: json.loads(found)["selections"] for name, found in results(root).items()}
    shutil.rmtree(root / "logs")
    assert sweep(root, ON_RAY).code == 1
    assert on_ray == {name: json.loads(found)["selections"] for name, found in results(root).items()}
    assert len(on_ray) == 1


def test_a_sweep_without_a_cluster_or_on_a_small_one_is_refused(root: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra lary[ray]")
    done = sweep(root, ON_RAY, "--engine", "ray", "--address", "127.0.0.1:1")
    assert done.code == 2
    assert "there is no Ray cluster" in done.err
    assert "RAY_AUTH_MODE" in done.err
    check_resources({"CPU": 4.0, "GPU": 1.0}, SweepConfig(gpus_per_run=0.5, cpus_per_run=4))
    for config, words in ((SweepConfig(gpus_per_run=1), "--gpus-per-run 1: the Ray cluster has 0 GPUs"),
                          (SweepConfig(cpus_per_run=8), "--cpus-per-run 8")):  # fmt: skip
        with pytest.raises(LaryError, match=words):
            check_resources({"CPU": 4.0}, config)
