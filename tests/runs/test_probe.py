"""Probe runs from tables and latents to results: what is recorded, resumed, shared by processes, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.configs import ExtractConfig, RegressConfig
from lary.probes.training import launch
from lary.results.folder import finished_run
from lary.results.published import read_scores
from lary.results.record import EvalResult, read_result
from lary.runs.extract import extract
from lary.runs.probe import regress, run_member
from lary.types import LaryError, UsageError
from tests.helpers import lary, rows_of, settings_of
from tests.tree import make_calvin, make_robot, write_table

pytestmark = pytest.mark.usefixtures("no_figures")
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


def config_of(**options: Any) -> RegressConfig:
    return RegressConfig(**{"model": MODEL, "dataset": "calvin", "probe_preset": "demo", "epochs": 2, **options})


def run(place: Path, logs: Path, **options: Any) -> tuple[Path, EvalResult]:
    done = regress(config_of(**options), settings_of(place, LARY_LOG_DIR=logs))
    assert read_result(done.folder / "result.json") == done.result
    return done.folder, done.result


def test_a_result_records_what_was_run_and_is_not_overwritten(place: Path, tmp_path: Path) -> None:
    folder, result = run(place, tmp_path, tracker="tensorboard")
    assert list((folder / "tensorboard").iterdir())
    first = (file := folder / "result.json").read_bytes()
    assert (result.preset, result.protocol, result.headline) == ("demo", "corrected", "held_out")
    assert {name: (size.rows, size.groups) for name, size in result.dataset.splits.items()} == {
        "train": (30, 10), "val": (21, 7)
    }  # fmt: skip
    assert result.timings["probe"] > 0
    settings = settings_of(place, LARY_LOG_DIR=tmp_path)
    again = regress(config_of(), settings)  # a tracker is no part of a run's identity
    assert (again.new, again.result, file.read_bytes()) == (False, result, first)
    with pytest.raises(UsageError, match=r"another run .*--overwrite to replace it"):
        regress(config_of(seed=3), settings)
    assert file.read_bytes() == first
    assert regress(config_of(seed=3, overwrite=True), settings).result.seed == 3
    scores = read_scores(finished_run(folder))
    assert scores.scores.mean() == pytest.approx(read_result(file).score.value, rel=1e-5)
    (folder / "predictions.npz").write_bytes(b"PK")
    with pytest.raises(LaryError, match="is not the file that the run wrote"):
        read_scores(finished_run(folder))


def test_several_seeds_make_one_result(place: Path, tmp_path: Path) -> None:
    folder, whole = run(place, tmp_path / "all", seeds="3,1")
    alone = [run(place, tmp_path / str(seed), seed=seed)[1] for seed in (3, 1)]
    assert whole.seeds == tuple(row.seed for row in whole.per_seed) == (3, 1)
    for name, value in whole.selections[whole.headline].metrics.items():
        values = [one.selections[one.headline].metrics[name].value for one in alone]
        assert [row.metrics[name] for row in whole.per_seed] == pytest.approx(values)
        assert value.value == pytest.approx(np.mean(values))
    assert (folder / "seed_1" / "best_model.pth").is_file()


def test_every_device_of_a_list_trains(place: Path, tmp_path: Path) -> None:
    """Two processes leave one result, whose numbers are those of one process."""
    _, alone = run(place, tmp_path / "one")
    launch(run_member, (config_of(), settings_of(place, LARY_LOG_DIR=tmp_path / "two"), ()), ("cpu", "cpu"))
    pair = read_result(next((tmp_path / "two").rglob("result.json")))
    assert pair.score.value == pytest.approx(alone.score.value, rel=1e-3)
    assert pair.dataset.splits == alone.dataset.splits
    for one, two in zip(alone.history, pair.history, strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_relative_files_are_read_where_they_are(place: Path, tmp_path: Path) -> None:
    """Files with other values than the chunks' own motion show which ones were read."""
    folder = place / "data" / "regression_relative" / "calvin"
    folder.mkdir(parents=True)
    stats = {"mean": [0.0] * 7, "std": [0.5, 0.5, *([1.0] * 5)]}
    (folder / "relative_action_stats_calvin.json").write_text(json.dumps(stats))
    _, computed = run(place, tmp_path / "computed", action_mode="relative")
    sources = sorted((place / "data/regression/calvin/val_stride5/actions").rglob("*.npy"))
    moves = np.stack([chunk[-1] - chunk[0] for chunk in map(np.load, sources)])
    assert np.abs(moves - np.array(computed.examples[0].true[0])).max(axis=1).min() < 1e-4
    for split in ("train", "val"):
        root = place / "data" / "regression" / "calvin" / f"{split}_stride5" / "actions"
        for source in root.rglob("*.npy"):
            target = place / "data" / "regression_relative" / source.relative_to(place / "data" / "regression")
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(target, np.arange(7, dtype=np.float32))
    _, result = run(place, tmp_path / "read", action_mode="relative")
    np.testing.assert_allclose(result.examples[0].true, [np.arange(7)], atol=1e-4)


def test_a_bad_action_file_costs_its_row(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "root")
    row = rows_of(tmp_path / "root" / "data" / "calvin_metadata_val.csv")[3]
    (tmp_path / "root" / "data" / "regression" / "calvin" / "val_stride5" / row["action"]).write_bytes(b"torn")
    folder, result = run(tmp_path / "root", tmp_path)
    assert (result.status, result.failures) == ("incomplete", 1)
    assert [row["row"] for row in rows_of(folder / "failures.csv")] == ["4"]


@pytest.mark.parametrize("shape", [(2, 4, 6), (4, 6), (6,), (2, 2, 2, 6)])
def test_latents_of_a_model_without_a_record_are_probed(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """As the benchmark's description promises: another program's table and files, with tokens of any shape alone."""
    make_calvin(tmp_path, {"train": 8, "val": 5})
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        rows = rows_of(tmp_path / "data" / f"calvin_metadata_{split}.csv")
        for number, row in enumerate(rows):
            row["la_path"] = f"calvin/stride_5/{split}/my-model/latent_action_{number}.npz"
            file = tmp_path / "latent_actions" / row["la_path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, tokens=generator.normal(size=shape).astype(np.float32))
        write_table(tmp_path / "data" / f"{split}_la_calvin_5_my-model.csv", rows)
    words = ("regress", "--dataset", "calvin", "--stride", "5", "--model-type", "ridge", "--probe-preset", "demo")
    done = lary(*words, "--model", "my-model", root=tmp_path)
    assert done.code == 0, done.err
    assert "The model 'my-model' is unregistered" in done.out
    result = read_result(next((tmp_path / "logs").rglob("result.json")))
    assert (result.model.paradigm, result.model.dim) == ("unregistered", 6)
    wrong = lary(*words, "--model", "pixel", root=tmp_path)
    assert (wrong.code, "Did you mean pixels" in wrong.err) == (2, True)


def test_a_folder_that_can_not_be_written_to_stops_a_probe_before_its_training(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim, "AdamW", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "regression").touch()
    with pytest.raises(LaryError, match=r"Cannot write .*regression.*: "):
        run(place, tmp_path)
