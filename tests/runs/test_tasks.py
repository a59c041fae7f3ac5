"""Wrong requests and wrong data of a probe run: each is refused in a sentence that says what to do."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary import runtime
from lary.configs import ClassifyConfig, ControlsConfig, ExtractConfig, RegressConfig, RunConfig
from lary.data.spec import DATASETS
from lary.results import figures
from lary.runs.controls import run_controls
from lary.runs.extract import extract
from lary.runs.probe import classify, regress
from lary.runs.run import probe_config
from lary.settings import Settings, load_settings
from lary.types import LaryError, UsageError
from tests.tree import make_calvin, make_robot

MODEL = "pixels"
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of pairs and clips with latents of `MODEL`."""
    root = tmp_path_factory.mktemp("wrong")
    make_calvin(root, {"train": 6, "val": 2}, pairs=2)
    make_robot(root, {"train": 12, "val": 4})
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            extract(ExtractConfig(model=MODEL, dataset=dataset, split=split, workers=1), settings_of(root))
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The tree, to be spoilt."""
    shutil.copytree(made, tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds each and have tests of their own."""
    for name in ("trajectory_figure", "trajectory_book", "confusion_figure"):
        monkeypatch.setattr(figures, name, lambda *_: b"")


def settings_of(root: Path) -> Settings:
    names = {"LARY_ROOT": "", "DATA_DIR": "data", "LARY_LA_DIR": "latents", "LARY_LOG_DIR": "logs"}
    return load_settings({name: str(root / folder) for name, folder in names.items()}, environment={})


def run_classify(place: Path, **options: Any) -> tuple[str, ...]:
    """The warnings of a short run."""
    config = ClassifyConfig(model=MODEL, dataset="robot_1st", **{"probe_preset": "demo", "epochs": 1, **options})
    return classify(config, settings_of(place)).result.warnings


def run_regress(place: Path, **options: Any) -> tuple[str, ...]:
    config = RegressConfig(model=MODEL, dataset="calvin", **{"probe_preset": "demo", "epochs": 1, **options})
    return regress(config, settings_of(place)).result.warnings


def change(table: Path, edit: Callable[[Rows], Any]) -> None:
    """Edit the rows of a table in place."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0])
    edit(rows)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def clips_of(place: Path, split: str) -> Path:
    return place / "data" / f"{split}_la_robot_1st_{MODEL}.csv"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "1,1"}, "--gpus 1,1: expected numbers from 0, each once, such as 0"),
        ({"gpus": "-1"}, "--gpus -1: expected numbers from 0"),
        ({"seeds": "0,a"}, "--seeds '0,a': expected numbers such as 0,1,2"),
        ({"seeds": "3,3"}, "--seeds 3,3: a seed stands there twice; name each once"),
        ({"seeds": "0,-1"}, "--seeds -1: a seed is a number from 0 to 4294967295"),
        ({"seed": 2**32}, "--seed 4294967296: a seed is a number from 0 to 4294967295"),
        ({"epochs": 0}, "--epochs 0: must be at least 1, or leave the option out"),
        ({"probe_batch_size": -4}, "--probe-batch-size -4: must be at least 1, or leave"),
    ],
)
def test_wrong_options_are_told_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:  # fmt: skip
    for run in (run_classify, run_regress):
        with pytest.raises(UsageError, match=message):
            run(tmp_path, **options)
    with pytest.raises(UsageError, match=message):
        probe_config(RunConfig(model=MODEL, dataset="calvin", **options), DATASETS.get("calvin"))


def test_controls_check_their_options_before_they_extract(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--epochs -3: must be at least 1"):
        run_controls(ControlsConfig(model=MODEL, dataset="calvin", epochs=-3), settings_of(tmp_path))


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (run_classify, {"dim": 32}, "--dim 32: the latents have dimension 50; leave the option out"),
        (run_classify, {"classes": 123}, "--classes 123: data set 'robot_1st' has 54 classes; leave the option out"),
        (run_regress, {"stride": 6}, "--stride 6: data set 'calvin' has stride 5; leave the option out"),
        (run_regress, {"project": 50}, "--project 50: must be from 1 to 49, since the latents have dimension 50"),
        (
            run_classify,
            {"protocol": "paper"},
            "protocol 'corrected', asked for is 'paper': extract with --protocol pap",
        ),
    ],
)
def test_options_that_contradict_the_data_are_refused(
    made: Path, run: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(made, **options)


def test_a_gpu_that_was_asked_for_and_is_absent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runtime.log, "info", told.append)
    runtime.tell_once.cache_clear()
    for _ in range(2):
        assert runtime.pick_devices("2") == ["cpu"]
        assert runtime.pick_devices(None) == ["cpu"]
    first, second = told  # each once
    assert first.startswith("--gpus 2: torch finds no CUDA device here: one process on the CPU; to use one, install")
    assert second == "no CUDA device here: one process on the CPU"


def test_labels_outside_the_space_name_row_and_line(place: Path) -> None:
    change(clips_of(place, "val"), lambda rows: rows[2].update(action="juggle"))
    with pytest.raises(UsageError, match=r"row 3 \(line 4\): 'juggle' is no class of robot_1st. Known: "):
        run_classify(place)


def test_one_class_only_is_refused(place: Path) -> None:
    change(clips_of(place, "train"), lambda rows: [row.update(action="pick") for row in rows])
    with pytest.raises(UsageError, match=r"All 12 training samples are of the class 'pick'.*Extract more"):
        run_classify(place)


def test_fewer_samples_than_classes_are_told(place: Path) -> None:
    assert any("classes are in the validation split" in told for told in run_classify_of(place, 8, "pick", "place"))
    change(clips_of(place, "train"), lambda rows: rows.__setitem__(slice(2, None), []))
    with pytest.raises(UsageError, match=r"2 samples of 2 episodes or videos: none can be held out.*Give more data"):
        run_classify(place, overwrite=True)


def run_classify_of(place: Path, count: int, *verbs: str) -> tuple[str, ...]:
    """Warnings of a run on `count` training samples of these verbs alone."""
    change(
        clips_of(place, "train"),
        lambda rows: rows.__setitem__(slice(None), [row for row in rows if row["action"] in verbs][:count]),
    )
    return run_classify(place)


def spoil(file: Path) -> None:
    """Put a NaN into the latents of a file."""
    with np.load(file) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    found["tokens"][0, 0, 0] = np.nan
    np.savez(file, **found)


@pytest.mark.parametrize("probe", ["mlp", "ridge"])
def test_latents_that_are_not_finite_name_their_sample(place: Path, probe: str) -> None:
    spoil(place / "latents" / "calvin" / "val" / MODEL / "latent_action_00000001.npz")
    options = {"model_type": probe, "epochs": None if probe == "ridge" else 1}
    with pytest.raises(LaryError, match=r"latents of sample \w+ \(images/ep_0/frame_.*\) hold NaN or infinity: check"):
        run_regress(place, **options)


def shift(rows: Rows) -> None:
    """Give every row the latents of the next one."""
    for row, name in zip(rows, [other["la_path"] for other in (*rows[1:], rows[0])], strict=True):
        row["la_path"] = name


def borrow(rows: Rows) -> None:
    """Give rows the latents of another split."""
    for row in rows:
        row["la_path"] = row["la_path"].replace("/val/", "/train/")


def test_latents_of_two_extractions_are_refused(place: Path) -> None:
    change(clips_of(place, "val"), lambda rows: borrow(rows[-1:]))
    with pytest.raises(LaryError, match=r"row \d+: .*\.npz was made by another extraction than the rows before"):
        run_classify(place)


@pytest.mark.parametrize(("split", "edit"), [("train", shift), ("val", borrow)])
def test_latents_of_another_sample_are_refused(place: Path, split: str, edit: Callable[[Rows], None]) -> None:
    change(clips_of(place, split), edit)
    with pytest.raises(LaryError, match=r"row 1: .*\.npz holds the latents of sample \w+ \(.*mp4\), not of sample"):
        run_classify(place)


def test_corrected_labels_keep_their_latents(place: Path) -> None:
    change(clips_of(place, "train"), lambda rows: rows[0].update(action="pour"))
    run_classify(place)


@pytest.mark.parametrize("size", [7, 16])
def test_relative_statistics_of_another_data_set_are_refused(place: Path, size: int) -> None:
    file = place / "data" / "regression_relative" / "calvin" / "relative_action_stats_calvin.json"
    file.parent.mkdir(parents=True)
    numbers = {"mean": [0.0] * size, "std": [1.0] * size}
    file.write_text(json.dumps(numbers if size != 7 else {"G1": numbers}))
    words = "are not 7 finite means and deviations, but 16, as another data set has" if size == 16 else "have no mean"
    with pytest.raises(LaryError, match=rf"relative_action_stats_calvin.json {words}.*Make them with: "):
        run_regress(place, action_mode="relative")
