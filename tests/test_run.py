"""``lary run`` and ``lary sweep``: both parts in one go, without a store, many of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.cli import main
from lary.configs import ClassifyConfig, RegressConfig, RunConfig
from lary.latents.units import Interrupted
from lary.results.record import EvalResult
from lary.runs import on_demand
from lary.runs import sweep as sweeps
from lary.runs.run import FRAME_FAILURES, run
from lary.settings import Settings, load_settings
from lary.types import LaryError, Latents, UsageError
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


@pytest.mark.parametrize("dataset", ["calvin", "robot_1st"])
@pytest.mark.parametrize("room", ["all fits", "little fits"])
def test_no_store_gives_the_same_bits(root: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, room: str) -> None:
    """Also with a row that can't be read, and where most rows are encoded again whenever they are read."""
    media = sorted((root / "data").rglob("train*/**/*.png" if dataset == "calvin" else "train/*.mp4"))
    media[3].write_bytes(b"torn")
    stored = run(ask(dataset), settings_of(root))
    latents = root / "latent_actions"
    assert len(list(latents.rglob("*.npz"))) == stored.extracted > 0
    shutil.rmtree(latents)
    tables = sorted(path.name for path in (root / "data").glob("*_la_*"))

    from lary import runtime

    memory = 1 << 33 if room == "all fits" else 3 * 4 * stored.probe.result.model.dim * 64 * 9 * 8
    monkeypatch.setattr(runtime, "memory_bytes", lambda: memory)
    again = run(ask(dataset, no_store=True), settings_of(root, "other"))
    assert not latents.exists(), "no store is left"
    assert sorted(path.name for path in (root / "data").glob("*_la_*")) == tables
    assert numbers(again.probe.result) == numbers(stored.probe.result)
    for name in stored.probe.result.files:
        if name.endswith((".csv", ".pt", ".pth", ".txt", ".npz")):
            assert (again.probe.folder / name).read_bytes() == (stored.probe.folder / name).read_bytes(), name
    assert again.probe.result.options["store"] == on_demand.NO_STORE
    assert "store" not in stored.probe.result.options
    assert again.failures == stored.failures > 0
    assert (again.probe.folder / FRAME_FAILURES).is_file()
    before = (again.probe.folder / "result.json").stat().st_mtime_ns
    third = run(ask(dataset, no_store=True), settings_of(root, "other"))
    assert (third.probe.new, third.extracted) == (False, 0), "nothing is encoded to find that all is done"
    assert (again.probe.folder / "result.json").stat().st_mtime_ns == before


def test_little_memory_really_keeps_little(root: Path) -> None:
    from lary.runs.extract import prepare_run
    from lary.runs.run import extract_config

    prepared = prepare_run(extract_config(ask(), "val"), settings_of(root), ())
    all_of_it = on_demand.FrameLatents(prepared, 1 << 30)
    little = on_demand.FrameLatents(prepared, 5 * 4 * int(np.prod(all_of_it.shape)))
    assert little._kept.shape == (5, *all_of_it.shape)
    rows = np.array([14, 2, 7, 2, 0], dtype=np.int64)
    assert np.array_equal(little.read(rows), all_of_it.read(rows))
    assert np.array_equal(little.read(rows[:0]), all_of_it.read(rows[:0]))


class Uneven:
    """An encoder whose results depend on the place in the batch, as if kernels rounded differently; counts passes."""

    def __init__(self) -> None:
        self.passes = 0

    def encode(self, clips: torch.Tensor) -> Latents:
        self.passes += 1
        places = torch.arange(len(clips)).reshape(-1, 1)
        return Latents((clips.mean((1, 3, 4)) + 1000 * places).unsqueeze(1))


@pytest.mark.parametrize(
    ("dataset", "rows", "passes"),
    [("calvin", [9, 0, 23, 1, 2, 3, 4, 14, 9], 2), ("robot_1st", [12, 0, 1, 2, 3, 7], 4)],
)
def test_rows_that_are_read_together_share_batches_on_an_accelerator(
    root: Path, dataset: str, rows: list[int], passes: int
) -> None:
    """Each keeps its place, so that its bits are those of an extraction; clips of other lengths have other batches."""
    from lary.runs.extract import prepare_run
    from lary.runs.run import extract_config

    if dataset == "robot_1st":  # rows 3 and 7 are shorter
        table = root / "data" / "robot_1st_metadata_train.csv"
        lines = table.read_text().splitlines()
        for row in (3, 7):
            lines[1 + row] = lines[1 + row].replace("0,1,2,4,5,7,8,10,11", "0,1,2")
        table.write_text("\n".join(lines) + "\n")
    encoder = Uneven()
    prepared = prepare_run(extract_config(ask(dataset, batch_size=4), "train"), settings_of(root), ())
    prepared = replace(prepared, devices=("cpu:0",), encoder=encoder)  # in whole batches, as on an accelerator
    wanted = on_demand.FrameLatents(prepared, 1 << 30).read(np.array(rows))
    assert [round(float(tokens.max()) / 1000) for tokens in wanted] == [row % 4 for row in rows]
    nothing_kept = on_demand.FrameLatents(prepared, 0)
    encoder.passes = 0
    assert np.array_equal(nothing_kept.read(np.array(rows)), wanted)
    assert encoder.passes == passes


def test_rows_that_vanish_after_the_first_pass_stop_the_run(root: Path) -> None:
    from lary.runs.extract import prepare_run
    from lary.runs.run import extract_config

    prepared = prepare_run(extract_config(ask(), "val"), settings_of(root), ())
    latents = on_demand.FrameLatents(prepared, 0)
    shutil.rmtree(root / "data" / "regression" / "calvin" / "val_stride5" / "images")
    with pytest.raises(LaryError, match=r"Row 2 of .* can't be read any more"):
        latents.read(np.array([1], dtype=np.int64))
    with pytest.raises(LaryError, match="can be encoded"):
        on_demand.FrameLatents(prepared, 0)


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
    ({"dataset": "robot_1st", "model_type": "mlp"}, "--model-type: data set 'robot_1st' is one of classes"),
    ({"splits": "by-episodes"}, "--splits by-episodes: data set 'calvin' has"),
    ({"probe_precision": "bf16"}, "--probe-precision"),
    ({"no_store": True, "engine": "ray"}, "--no-store"),
    ({"no_store": True, "dtype": "bfloat16"}, "bfloat16"),
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


def test_result_names_no_store_in_json(root: Path) -> None:
    done = run(ask(no_store=True, model_type="ridge", epochs=None), settings_of(root))
    found = json.loads((done.probe.folder / "result.json").read_text())
    assert found["options"]["store"].startswith("none")


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
    assert "pixels, model_type mlp, project 4" in told.split("better")[1], "a table of all runs"
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
    ("grid: {model: [pixels]}", "a run needs a dataset"),
    ("runs: [{model: pixels, dataset: calvin, epochs: many}]", "epochs 'many'"),
    ("runs: [{model: pixels, dataset: calvin, protocol: papers}]", "protocol 'papers'"),
    ("runs: [{model: pixels, dataset: calvin, probe_preset: dem}]", "Did you mean demo"),
    ("runs: [{model: pixels, dataset: robot_1st, model_type: mlp}]", "one of classes"),
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
    from lary.runs.sweep_ray import check_resources

    check_resources({"CPU": 4.0, "GPU": 1.0}, SweepConfig(gpus_per_run=0.5, cpus_per_run=4))
    with pytest.raises(LaryError, match="--gpus-per-run 1: the Ray cluster has 0 GPUs"):
        check_resources({"CPU": 4.0}, SweepConfig(gpus_per_run=1))
    with pytest.raises(LaryError, match="--cpus-per-run 8"):
        check_resources({"CPU": 4.0}, SweepConfig(cpus_per_run=8))
