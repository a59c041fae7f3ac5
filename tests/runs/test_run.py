"""``lary run`` and ``lary sweep``: both parts in one go, many of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lary.cli import main
from lary.configs import ClassifyConfig, RegressConfig, RunConfig
from lary.latents.pipeline import Interrupted
from lary.results.record import EvalResult
from lary.runs import sweep as sweeps
from lary.runs.run import run
from lary.settings import Settings, load_settings
from lary.types import LaryError, UsageError
from tests.tree import make_calvin, make_robot

pytestmark = pytest.mark.usefixtures("no_figures")


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


def settings_of(root: Path, logs: str = "logs") -> Settings:
    given = {"LARY_ROOT": str(root), "DATA_DIR": str(root / "data"), "LARY_LOG_DIR": str(root / logs)}
    return load_settings(given, environment={})


def ask(dataset: str = "calvin", **options: Any) -> RunConfig:
    return RunConfig(
        **{"model": "pixels", "dataset": dataset, "probe_preset": "demo", "epochs": 2, "workers": 1, **options}
    )


def numbers(result: EvalResult) -> dict[str, Any]:
    """What a result says but for when, how long, by which command and from which place."""
    own = ("created", "timings", "provenance", "identity", "options", "options_given")
    found = result.model_dump(mode="json", exclude=set(own))
    found["dataset"].pop("tables")
    return found


def test_command_line_of_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--model", "pixels", "--dataset", "calvin", "--probe-preset", "demo", "--model-type", "ridge",
             "--workers", "1", "--lary-root", str(root), "--data-dir", str(root / "data")]  # fmt: skip
    for told in (
        "39 samples extracted now; the probe was run now",
        "0 samples extracted now; the probe was done before",
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert told in capsys.readouterr().out
    (next((root / "latent_actions" / "calvin" / "val").rglob("*_00000003.npz"))).unlink()
    (root / "logs" / "regression" / "logs" / "calvin_5_pixels_ridge_absolute" / "result.json").unlink()
    with pytest.raises(SystemExit):
        main(words)
    assert "1 samples extracted now; the probe was run now" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "words"), [
    ({"dataset": "robot_1st", "model_type": "ridge"}, "--model-type: data set 'robot_1st' is one of classes"),
    ({"splits": "by-episodes"}, "--splits by-episodes: data set 'calvin' has"),
    ({"probe_precision": "bf16"}, "--probe-precision"),
    ({"model": "pixel"}, "Did you mean pixels"),
    ({"dataset": "calvinn"}, "Did you mean calvin"),
])  # fmt: skip
def test_wrong_runs_are_refused_before_anything_is_written(root: Path, options: dict[str, Any], words: str) -> None:
    asked = {"dataset": "calvin", "epochs": None, **options}
    before = sorted(root.rglob("*"))
    with pytest.raises(UsageError, match=words):
        run(ask(**asked), settings_of(root))
    assert sorted(root.rglob("*")) == before


def test_options_of_run_are_those_of_its_parts() -> None:
    """A new option of the extraction or of a probe has to be given to ``lary run`` too, or be named here."""
    from dataclasses import fields

    from lary.configs import ExtractConfig

    own = {field.name for field in fields(RunConfig)}
    left_out = {"split", "input", "retry_failed", "dry_run"}
    assert {field.name for field in fields(ExtractConfig)} - own == left_out
    for part in (ClassifyConfig, RegressConfig):
        assert {field.name for field in fields(part)} - own <= {"dim", "classes"}


# Sweeps

SWEEP = """
options: {probe_preset: demo, workers: 1, model-type: mlp, epochs: 1}
grid:
  model: [pixels, frame-difference]
  dataset: [calvin]
  project: [null, 4]
runs:
  - {model: pixels, dataset: calvin, seed: 7}
"""


def sweep(root: Path, text: str, *words: str) -> int:
    (root / "sweep.yaml").write_text(text)
    places = ["--lary-root", str(root), "--data-dir", str(root / "data")]
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(root / "sweep.yaml"), *words, *places])
    return int(stop.value.code or 0)


def results(root: Path) -> dict[str, bytes]:
    return {path.parent.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("result.json")}


def test_sweep_does_what_is_left_and_goes_on_after_a_failure(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(root, SWEEP, "--dry-run") == 0
    assert capsys.readouterr().out.count("to do") == 5
    assert results(root) == {}
    broken = root / "logs" / "regression" / "logs" / "calvin_5_frame-difference_mlp_absolute"
    broken.mkdir(parents=True)
    (broken / "result.json").write_text("{}")
    assert sweep(root, SWEEP) == 1
    told = capsys.readouterr().out
    assert "5 runs: 4 done now, 0 before, 1 failed" in told
    assert "failed: frame-difference on calvin" in told
    assert "schema_version" in told
    assert "seed=7" in str(sorted(results(root)))
    before = results(root)
    (broken / "result.json").unlink()
    assert sweep(root, SWEEP) == 0
    told = capsys.readouterr().out
    assert "5 runs: 1 done now, 4 before, 0 failed" in told
    assert told.count("result there") == 4
    assert "pixels, project 4" in told.split("better")[1], "a table of all runs"
    after = results(root)
    assert {name: after[name] for name in before if name in after and name != str(broken.relative_to(root))} == {
        name: text for name, text in before.items() if name != str(broken.relative_to(root))
    }


def test_ctrl_c_stops_a_sweep_and_is_no_failure_of_a_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stopped(config: RunConfig, *_: Any, **__: Any) -> None:
        asked.append(config)
        raise Interrupted("Stopped: 3 of 24 rows are still to be done.")

    monkeypatch.setattr(sweeps, "run", stopped)
    assert sweep(root, SWEEP) == 130
    assert len(asked) == 1, "no run is started after it"


def test_parts_of_a_sweep_are_the_whole(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(root, SWEEP, "--part", "2/2") == 0
    assert "2 runs: 2 done now" in capsys.readouterr().out
    assert sweep(root, SWEEP, "--part", "1/2") == 0
    assert "3 runs: 3 done now" in capsys.readouterr().out
    assert sweep(root, SWEEP, "--part", "3/2") == 2


@pytest.mark.parametrize(("text", "words"), [
    ("grid: {modle: [pixels]}", "there is no option 'modle'. Did you mean mod"),
    ("grids: {}", "unknown key 'grids'. Did you mean grid"),
    ("grid: {model: pixels, dataset: [calvin]}", "has to be a list"),
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
    ("runs: {model: pixels}", "expected a list of runs"),
    ("options: [a]", "NAME: value"),
    ("[]", "has to hold the keys"),
    ("grid: {}", "asks for no run"),
    ("grid: !!python/object/apply:os.system ['touch executed']", "the tag"),
    ("a: &a [1]\ngrid: {model: *a}", "anchors and aliases"),
    ("grid: " + "[" * 5000, "nested too deeply"),
    ("grid: {model: [pixels], dataset: [calvin], seed: ["
     + ", ".join(map(str, range(200))) + "], epochs: [" + ", ".join(map(str, range(1, 200))) + "]}", "more than 10000"),
])  # fmt: skip
def test_wrong_sweeps_are_refused_before_the_first_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    monkeypatch.chdir(root)
    assert sweep(root, text) == 2
    told = " ".join(capfd.readouterr().err.split())
    assert words in told
    assert "Traceback" not in told
    assert not (root / "executed").exists()
    assert not (root / "logs").exists()


ON_RAY = """
options: {probe_preset: demo, workers: 1}
runs:
  - {model: pixels, dataset: calvin, epochs: 1}
  - {model: pixels, dataset: robot_1st, pool: cls}
"""


def test_sweep_on_a_ray_cluster(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Same results as here; a run that fails leaves the others alone. Ray alone takes seconds to start."""
    ray = pytest.importorskip("ray", reason="needs the extra lary[ray]")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        assert sweep(root, ON_RAY, "--engine", "ray", "--cpus-per-run", "0.5") == 1
        told = capsys.readouterr().out
        assert "2 runs: 1 done now, 0 before, 1 failed" in told
        assert "has no class token" in told or "cls" in told.split("failed:")[1]
    finally:
        ray.shutdown()
    on_ray = {name: json.loads(found) for name, found in results(root).items()}
    shutil.rmtree(root / "logs")
    assert sweep(root, ON_RAY) == 1
    here = {name: json.loads(found) for name, found in results(root).items()}
    assert len(here) == 1
    assert on_ray.keys() == here.keys()
    for name, found in here.items():
        assert found["selections"] == on_ray[name]["selections"], name


def test_a_sweep_without_a_cluster_is_a_wrong_request(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="needs the extra lary[ray]")
    assert sweep(root, ON_RAY, "--engine", "ray", "--address", "127.0.0.1:1") == 2
    told = capsys.readouterr().err
    assert "there is no Ray cluster" in told
    assert "RAY_AUTH_MODE" in told


def test_a_cluster_that_has_too_little_is_refused() -> None:
    from lary.configs import SweepConfig
    from lary.runs.engines import check_resources

    check_resources({"CPU": 4.0, "GPU": 1.0}, SweepConfig(gpus_per_run=0.5, cpus_per_run=4))
    with pytest.raises(LaryError, match="--gpus-per-run 1: the Ray cluster has 0 GPUs"):
        check_resources({"CPU": 4.0}, SweepConfig(gpus_per_run=1))
    with pytest.raises(LaryError, match="--cpus-per-run 8"):
        check_resources({"CPU": 4.0}, SweepConfig(cpus_per_run=8))
