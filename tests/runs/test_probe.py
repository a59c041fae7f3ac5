"""Probe runs from tables and latents to results: kinds of probes and targets, seeds, controls, comparisons."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from cyclopts import App

from lary.cli import benchmark as cli_run
from lary.configs import ClassifyConfig, ExtractConfig, RegressConfig
from lary.results import figures
from lary.results.published import read_scores
from lary.results.record import EvalResult, read_result
from lary.results.summarise import regression_result
from lary.runs import inputs
from lary.runs.extract import extract
from lary.runs.inputs import shown
from lary.runs.probe import classify, regress, summary
from lary.settings import Settings, load_settings
from lary.types import LaryError, Sample, UsageError
from tests.fake_results import action_outcome, facts
from tests.tree import make_calvin, make_robot

MODEL = "pixels"
"""Encodes each frame by itself, without weights."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of pairs and clips with latents of `MODEL`."""
    root = tmp_path_factory.mktemp("runs")
    make_calvin(root, {"train": 10, "val": 7})
    make_robot(root, {"train": 24, "val": 12})
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            extract(ExtractConfig(model=MODEL, dataset=dataset, split=split, workers=1), settings_of(root))
    return root


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds each and have tests of their own."""
    monkeypatch.setattr(figures, "trajectory_figure", lambda *_: b"")
    monkeypatch.setattr(figures, "trajectory_book", lambda *_: b"")


def settings_of(root: Path, logs: Path | None = None) -> Settings:
    given = {
        "LARY_ROOT": str(root), "DATA_DIR": str(root / "data"), "LARY_LA_DIR": str(root / "latents"),
        "LARY_LOG_DIR": str(logs or root / "logs"),
    }  # fmt: skip
    return load_settings(given, environment={})


def run(place: Path, logs: Path, **options: Any) -> tuple[Path, EvalResult]:
    asked = {"model": MODEL, "dataset": "calvin", "probe_preset": "demo", "epochs": 2, **options}
    if asked.get("model_type") == "ridge":
        del asked["epochs"]
    done = regress(RegressConfig(**asked), settings_of(place, logs))
    assert read_result(done.folder / "result.json") == done.result
    return done.folder, done.result


def write_relative_statistics(place: Path) -> None:
    folder = place / "data" / "regression_relative" / "calvin"
    folder.mkdir(parents=True, exist_ok=True)
    stats = {"mean": [0.0] * 7, "std": [0.5, 0.5, *([1.0] * 5)]}
    (folder / "relative_action_stats_calvin.json").write_text(json.dumps(stats))


def test_relative_targets_are_the_motion(place: Path, tmp_path: Path) -> None:
    with pytest.raises(LaryError, match=r"relative_action_stats_calvin.json do not exist.*prepare_relative_actions"):
        run(place, tmp_path / "none", action_mode="relative")
    write_relative_statistics(place)
    folder, result = run(place, tmp_path, action_mode="relative")
    assert folder.name == "calvin_5_pixels_mlp_relative"
    assert result.action_mode == "relative"
    assert result.orientations == ()
    example = result.examples[0]
    assert np.shape(example.true) == (1, 7)
    sources = sorted((place / "data/regression/calvin/val_stride5/actions").rglob("*.npy"))
    moves = np.stack([chunk[-1] - chunk[0] for chunk in map(np.load, sources)])
    assert np.abs(moves - np.array(example.true[0])).max(axis=1).min() < 1e-4


def test_relative_files_are_read_where_they_are(place: Path, tmp_path: Path) -> None:
    """Files with other values than the chunks' own motion show which ones were read."""
    write_relative_statistics(place)
    made = []
    for split in ("train", "val"):
        root = place / "data" / "regression" / "calvin" / f"{split}_stride5" / "actions"
        for source in root.rglob("*.npy"):
            target = place / "data" / "regression_relative" / source.relative_to(place / "data" / "regression")
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(target, np.arange(7, dtype=np.float32))
            made.append(target)
    _, result = run(place, tmp_path, action_mode="relative")
    for target in made:
        target.unlink()
    np.testing.assert_allclose(result.examples[0].true, [np.arange(7)], atol=1e-4)


def test_the_dit_probe_runs_and_says_what_its_sampler_keeps_out(place: Path, tmp_path: Path) -> None:
    folder, result = run(place, tmp_path, model_type="dit", sampler_steps=3)
    assert folder.name == "calvin_5_pixels_dit_absolute"
    assert result.options["sampler_steps"] == 3
    assert "one standard deviation" in result.warnings[0]
    assert result.label == "pixels (dit probe)"
    mean, std = (np.array(values) for values in zip(*_normalisation(), strict=True))
    for example in result.examples:
        assert (np.abs((np.array(example.predicted) - mean) / std) < 1.001).all()


def _normalisation() -> list[tuple[float, float]]:
    from lary.data.spec import DATASETS

    rule = DATASETS.get("calvin").actions.normalisation
    return list(zip(rule.mean, rule.std, strict=True))


def test_ridge_is_the_fast_reference(place: Path, tmp_path: Path) -> None:
    folder, result = run(place, tmp_path, model_type="ridge")
    assert folder.name == "calvin_5_pixels_ridge_absolute"
    assert result.score.value < result.controls["mean_action"].metrics["seen_mse"].value
    assert [row["shrinkage"] for row in result.history] == sorted(row["shrinkage"] for row in result.history)
    with pytest.raises(UsageError, match="--sampler-steps 5: the ridge probe is not trained"):
        run(place, tmp_path / "other", model_type="ridge", sampler_steps=5)
    with pytest.raises(UsageError, match="only the probe dit draws samples"):
        run(place, tmp_path / "other", sampler_steps=5)
    with pytest.raises(UsageError, match="from 1 to 1000"):
        run(place, tmp_path / "other", model_type="dit", sampler_steps=0)


def test_several_seeds_make_one_result(place: Path, tmp_path: Path) -> None:
    folder, result = run(place, tmp_path / "all", seeds="3,1")
    alone = [run(place, tmp_path / str(seed), seed=seed)[1] for seed in (3, 1)]
    assert result.seeds == (3, 1)
    assert [row.seed for row in result.per_seed] == [3, 1]
    for name, value in result.selections[result.headline].metrics.items():
        values = [one.selections[one.headline].metrics[name].value for one in alone]
        assert [row.metrics[name] for row in result.per_seed] == pytest.approx(values)
        assert value.value == pytest.approx(np.mean(values))
    assert result.score.low is not None
    assert alone[0].score.low is not None
    assert read_scores(folder, result).scores.shape == (2, 21)
    assert (folder / "seed_1" / "best_model.pth").is_file()
    again = regress(
        RegressConfig(model=MODEL, dataset="calvin", probe_preset="demo", epochs=2, seeds="3,1"),
        settings_of(place, tmp_path / "all"),
    )
    assert not again.new
    for wrong in ("1,1", "a", ""):
        with pytest.raises(UsageError, match="--seeds"):
            run(place, tmp_path / "wrong", seeds=wrong)


def test_scores_of_samples_average_to_the_metric(place: Path, tmp_path: Path) -> None:
    folder, result = run(place, tmp_path)
    found = read_scores(folder, result)
    assert found.scores.mean() == pytest.approx(result.score.value, rel=1e-5)
    assert len(set(found.ids)) == 21
    assert len(set(found.groups)) == 7
    with pytest.raises(LaryError, match="no scores of the split 'unseen'"):
        read_scores(folder, result, "unseen")
    (folder / "predictions.npz").write_bytes(b"PK")
    with pytest.raises(LaryError, match="is not the file that the run wrote"):
        read_scores(folder, result)


def test_controls_stand_beside_the_run(place: Path, tmp_path: Path) -> None:
    _, own = run(place, tmp_path, model_type="ridge")
    results = {
        control: run(place, tmp_path, model_type="ridge", control=control)
        for control in ("static-pair", "shuffled-order", "shuffled-targets")
    }
    for control, (folder, result) in results.items():
        assert folder.name == f"calvin_5_pixels@{control}_ridge_absolute"
        assert result.control == control
        assert result.score.value > own.score.value
    folder, small = run(place, tmp_path, model_type="ridge", project=2)
    assert folder.name == "calvin_5_pixels@project2_ridge_absolute"
    assert small.options["tokens"][-1] == 2
    for size in (0, 10_000):
        with pytest.raises(UsageError, match=f"--project {size}: must be from 1 to"):
            run(place, tmp_path / "wrong", model_type="ridge", project=size)


def test_classification_has_seeds_and_controls(place: Path, tmp_path: Path) -> None:
    config = ClassifyConfig(model=MODEL, dataset="robot_1st", probe_preset="demo", epochs=1, seeds="0,1")
    done = classify(config, settings_of(place, tmp_path))
    values = [row.metrics["top1"] for row in done.result.per_seed]
    assert done.result.score.value == pytest.approx(np.mean(values))
    assert read_scores(done.folder, done.result).scores.mean(axis=1) == pytest.approx(values)
    control = classify(replace(config, control="shuffled-targets"), settings_of(place, tmp_path))
    assert control.folder.name == "pixels@shuffled-targets"
    assert control.result.label == "pixels (shuffled targets)"


def test_the_controls_command_states_margins(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = App()
    app.command(cli_run.controls)
    folders = ["--lary-root", str(place), "--data-dir", str(place / "data"), "--lary-la-dir", str(place / "latents")]
    command = ["controls", "--model", MODEL, "--dataset", "calvin", "--model-type", "ridge", "--probe-preset", "demo"]
    command += ["--project", "2", *folders, "--lary-log-dir", str(tmp_path)]
    assert app(command, result_action="return_value") == 0
    printed = capsys.readouterr().out
    result = read_result(tmp_path / "regression" / "logs" / "calvin_5_pixels_ridge_absolute" / "result.json")
    names = [margin.name for margin in result.margins]
    own = [f"pixels (ridge probe, {name})" for name in ("shuffled targets", "static pair", "shuffled order")]
    assert names[:4] == [*own, "pixels (ridge probe, 2 random dimensions)"]
    assert {"frame-difference (ridge probe)", "optical-flow (ridge probe)"} <= set(names)
    for margin in result.margins:
        assert margin.gain.value == pytest.approx(result.score.value - margin.value, abs=1e-5)
        assert margin.name in printed
    targets = result.margins[0]
    assert targets.gain.high is not None
    assert targets.gain.high < 0, "the model beats targets of other samples"
    before = (tmp_path / "regression" / "logs" / "calvin_5_pixels_ridge_absolute" / "result.json").read_bytes()
    assert app(command, result_action="return_value") == 0
    after = (tmp_path / "regression" / "logs" / "calvin_5_pixels_ridge_absolute" / "result.json").read_bytes()
    assert before == after


def test_plug_ins_reach_the_workers_of_the_extractions(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes know nothing of plug-ins that this one has loaded."""
    plugin = tmp_path / "nothing.py"
    plugin.write_text("")
    given = []

    def seen(config: ExtractConfig, settings: Settings, *, plugins: tuple[Path, ...] = ()) -> None:
        given.append(plugins)
        raise UsageError("far enough")

    monkeypatch.setattr("lary.runs.run.extract", seen)
    app = App()
    app.command(cli_run.controls)
    with pytest.raises(UsageError, match="far enough"):
        app(
            ["controls", "--model", MODEL, "--dataset", "calvin", "--plugin", str(plugin), "--lary-root", str(place)],
            result_action="return_value", exit_on_error=False,
        )  # fmt: skip
    assert given == [(plugin,)]


def test_training_and_validation_go_through_the_same_projection() -> None:
    from types import SimpleNamespace
    from typing import cast

    from lary.configs import RegressConfig
    from lary.latents.ref import SplitLatents

    tokens = np.random.default_rng(0).standard_normal((6, 2, 4, 8)).astype(np.float32)

    class Source:
        shape = tokens.shape[1:]

        def __len__(self) -> int:
            return len(tokens)

        def read(self, rows: Any) -> Any:
            return tokens[np.asarray(rows)]

    split = cast("SplitLatents", SimpleNamespace(source=Source(), store={}))
    config = RegressConfig(model="m", dataset="d", project=3)
    train, validation = (shown(split, config, 5, training=training).read(range(6)) for training in (True, False))
    assert train.shape == (6, 2, 4, 3)
    np.testing.assert_array_equal(train, validation)


KILLS = """
import os, signal, sys, torch
import matplotlib.figure, pandas, scipy.stats, lary.probes.classify, lary.probes.regress
from pathlib import Path
from lary import files as fileio
from lary.probes import session
from lary.results import figures
from lary.runs import inputs
from lary.runs.probe import classify, regress
from lary.configs import ClassifyConfig, RegressConfig
from tests.runs.test_probe import settings_of
torch.set_num_threads(1)
session.STATE_SHARE = float("inf")
figures.trajectory_figure = figures.trajectory_book = lambda *_: b""
root, logs, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
options = dict(model="pixels", probe_preset="demo", epochs=4, resume=True)
left = 0
def step(name, arguments):
    global left
    if name != "os.rename":  # a file takes its name, as audit hooks of Python see it
        return
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
def run(folder):
    if kind == "classify":
        return classify(ClassifyConfig(dataset="robot_1st", **options), settings_of(root, folder)).folder
    return regress(RegressConfig(dataset="calvin", model_type=kind, **options), settings_of(root, folder)).folder
def child(kill, folder):
    global left
    pid = os.fork()
    if not pid:
        left = kill
        sys.addaudithook(step)
        run(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
kinds = [child(kill, logs / "killed") for kill in map(int, sys.argv[4:])]
assert kinds == [-signal.SIGKILL] * len(kinds), kinds
assert child(-1, logs / "killed") == 0
assert child(-1, logs / "whole") == 0
"""


def run_killed(root: Path, logs: Path, kind: str, kills: tuple[int, ...]) -> None:
    """Run a probe that is killed when so many files were written, then again; and once undisturbed."""
    command = [sys.executable, "-c", KILLS, str(root), str(logs), kind, *map(str, kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def shown_of(folder: Path) -> dict[str, Any]:
    """A result without the times and the place of its making."""
    found = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in found.items() if name not in ("created", "timings", "provenance")}


@pytest.mark.parametrize(
    ("kind", "kills", "folder", "weights"),
    [
        ("classify", (3, 6, 3), "classification/robot_1st/pixels", "latest.pt"),
        ("mlp", (2, 5), "regression/logs/calvin_5_pixels_mlp_absolute", "best_model.pth"),
    ],
)
def test_a_killed_run_started_again_ends_like_an_undisturbed_one(
    place: Path, tmp_path: Path, kind: str, kills: tuple[int, ...], folder: str, weights: str
) -> None:
    run_killed(place, tmp_path, kind, kills)
    killed, whole = tmp_path / "killed" / folder, tmp_path / "whole" / folder
    assert shown_of(killed) == shown_of(whole)
    for name in (weights, "predictions.npz"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    names = [sorted(path.name for path in place.iterdir()) for place in (killed, whole)]
    assert names[0] == names[1]
    assert "training_state.pt" not in names[0]


def test_every_device_of_a_list_trains(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes leave one result, whose numbers are those of one process."""
    monkeypatch.setattr("lary.runs.probe.pick_devices", lambda gpus, *_, **__: ["cpu"] * len(gpus.split(",")))
    alone, pair = (run(place, tmp_path / gpus[-1], gpus=gpus)[1] for gpus in ("0", "0,1"))
    assert pair.options["device"] == "cpu"
    assert pair.score.value == pytest.approx(alone.score.value, rel=1e-3)
    assert pair.dataset.splits == alone.dataset.splits
    for one, two in zip(alone.history, pair.history, strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_a_tracked_run_is_the_same_run(place: Path, tmp_path: Path) -> None:
    folder, result = run(place, tmp_path, tracker="tensorboard")
    assert list((folder / "tensorboard").iterdir())
    again = regress(
        RegressConfig(model=MODEL, dataset="calvin", probe_preset="demo", epochs=2), settings_of(place, tmp_path)
    )
    assert not again.new
    assert again.result == result


def test_latents_of_another_data_set_are_refused(place: Path, tmp_path: Path) -> None:
    split = SimpleNamespace(
        store={"identity": {"dataset": "robot_1st", "split": "val", "model": MODEL}},
        table=SimpleNamespace(path=Path("train_la.csv"), split="train", spec=SimpleNamespace(name="calvin")),
    )
    with pytest.raises(UsageError, match=r"latents of 'robot_1st', not of 'calvin': run .* --split train' again"):
        inputs.check_samples(settings_of(place, tmp_path), {"train": cast("Any", split)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "one"}, "--gpus 'one': expected device numbers such as 0 or 0,1,2,3"),
        ({"latent": "quantized"}, "--latent quantized: model 'pixels' has one kind of latent; leave the option out"),
        ({"protocol": "paper"}, "There are no latents|holds latents of protocol 'corrected'"),
    ],
)
def test_requests_that_contradict_the_latents_are_refused(
    place: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(place, tmp_path, **options)


def test_a_folder_that_can_not_be_written_to_stops_a_probe_before_its_training(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("lary.probes.regress.train_regressor", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(
        LaryError, match=r"Cannot write .*regression.*: Permission denied. Check the folder and its permissions"
    ):
        run(place, tmp_path)


def test_a_device_that_is_not_there_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="--gpus 0,5: this machine has CUDA devices 0 to 1, not 5"):
        run(place, tmp_path, gpus="0,5")


def test_latents_that_are_gone_are_counted(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "latents", tmp_path / "latents")
    gone = sorted((tmp_path / "latents" / "calvin" / "val" / MODEL).glob("latent_action_*.npz"))[2]
    gone.unlink()
    settings = load_settings(
        {
            "LARY_ROOT": str(place), "DATA_DIR": str(place / "data"), "LARY_LA_DIR": str(tmp_path / "latents"),
            "LARY_LOG_DIR": str(tmp_path),
        },
        environment={},
    )  # fmt: skip
    with pytest.raises(LaryError, match=rf"(?s)1 of 21 latent files .* are missing; extract again.*{gone.name}"):
        regress(RegressConfig(model=MODEL, dataset="calvin", probe_preset="demo", epochs=1), settings)


def test_latents_that_are_not_finite_name_their_sample() -> None:
    tokens = np.zeros((3, 2, 4, 8), np.float32)
    tokens[1, 0, 0, 0] = np.nan
    source = SimpleNamespace(shape=tokens.shape[1:], read=lambda rows: tokens[np.asarray(rows)])
    samples = [Sample(f"id{row}", row, (f"v{row}.mp4",), (), "push", "v", "arm") for row in range(3)]
    split = cast("Any", SimpleNamespace(source=source, table=samples, store={}))
    for control in (None, "static-pair"):
        shown_as = shown(split, ClassifyConfig(model="m", dataset="d", control=control), 0, training=True)
        with pytest.raises(LaryError, match=r"sample id1 \(v1.mp4\) hold NaN or infinity"):
            shown_as.read([0, 1])


def test_the_summary_shows_the_unseen_split() -> None:
    result = regression_result(action_outcome(0.4), facts("pixels", "simarm"))
    lines = summary(result).splitlines()
    (seen,) = [line for line in lines if line.endswith("<- headline")]
    unseen = lines[lines.index(seen) + 1]
    value = result.selections[result.headline].metrics["unseen_mse"].text()
    assert unseen.split() == ["unseen_mse", *value.split()]
    assert "unseen" not in summary(regression_result(action_outcome(0.4, unseen=False), facts("pixels", "calvin")))
