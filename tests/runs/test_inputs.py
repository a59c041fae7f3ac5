"""Probes on splits drawn by episode and on relative motion in either frame: what runs, what results say."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lary.cli import main
from lary.configs import ClassifyConfig, ControlsConfig, ExtractConfig, RegressConfig
from lary.data.configs import RelativeConfig
from lary.data.normalisation import write_relative
from lary.data.spec import DATASETS
from lary.models.spec import MODELS
from lary.results import figures
from lary.results.compare import compare_results
from lary.results.record import EvalResult, read_result
from lary.results.report import Entry, contests_of, published_score
from lary.runs.controls import run_one, splits_of
from lary.runs.extract import extract
from lary.runs.probe import classify, regress
from lary.settings import Settings, load_settings
from lary.types import LaryError, UsageError
from tests.helpers import lary
from tests.tree import frame, make_calvin, write_image, write_table

EPISODES, PAIRS = 24, 4
PARTS = ("train", "val", "train_by_episode", "val_by_episode")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "trajectory_figure", lambda *_: b"")
    monkeypatch.setattr(figures, "trajectory_book", lambda *_: b"")


def settings_of(root: Path, logs: Path) -> Settings:
    given = {
        "LARY_ROOT": str(root), "DATA_DIR": str(root / "data"), "LARY_LA_DIR": str(root / "latents"),
        "LARY_LOG_DIR": str(logs),
    }  # fmt: skip
    return load_settings(given, environment={})


def make_vlabench(root: Path) -> None:
    """Episodes whose hand turns as it moves, split by row as the published tables are."""
    rng, folder = np.random.default_rng(3), root / "data" / "regression" / "vlabench"
    tables: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for episode in range(EPISODES):
        path = np.cumsum(rng.normal(0, 0.04, (PAIRS * 5 + 1, 6)), axis=0) + np.array([0.5, 0.5, 0.3, 3.1, 0, 0])
        path[:, 3:] = Rotation.from_euler("xyz", path[:, 3:]).as_euler("xyz")  # jumps at half a turn
        steps = np.c_[path, np.ones(len(path))].astype(np.float32)
        start = episode * 100
        for pair in range(PAIRS + 1):
            picture = frame(*np.clip(path[5 * pair, :2], 0, 1), (250, 9 * episode, 60))
            write_image(folder / "images" / f"ep_{episode}" / f"frame_{start + 5 * pair:06d}.png", picture)
        for pair in range(PAIRS):
            first = start + 5 * pair
            name = f"actions/ep_{episode}/action_{first:06d}to{first + 4:06d}.npy"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / name, steps[5 * pair : 5 * pair + 5])
            images = [f"images/ep_{episode}/frame_{at:06d}.png" for at in (first, first + 5)]
            row = {"dataset": "VLABench", "src_img": images[0], "tgt_img": images[1], "action": name}
            tables["val" if pair == 1 else "train"].append(row)
    for split, rows in tables.items():
        write_table(root / "data" / f"vlabench_metadata_{split}.csv", rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vlabench")
    make_vlabench(root)
    for split in PARTS:
        extract(ExtractConfig(model="pixels", dataset="vlabench", split=split, workers=1), settings_of(root, root))
    return root


def run(place: Path, logs: Path, **options: Any) -> tuple[Path, EvalResult]:
    config = RegressConfig(model="pixels", dataset="vlabench", model_type="ridge", probe_preset="demo", **options)
    done = regress(config, settings_of(place, logs))
    assert read_result(done.folder / "result.json") == done.result
    return done.folder, done.result


# Splits by episode


def test_extraction_takes_drawn_splits(place: Path) -> None:
    rows = {}
    for part in PARTS:
        lines = (place / "data" / f"{part}_la_vlabench_5_pixels.csv").read_text().splitlines()[1:]
        rows[part] = {line.rpartition(",")[0] for line in lines}
    assert rows["train_by_episode"] | rows["val_by_episode"] == rows["train"] | rows["val"]
    assert not rows["train_by_episode"] & rows["val_by_episode"]
    folders = {part: {line.split("/")[1] for line in found} for part, found in rows.items()}
    assert folders["train"] == folders["val"], "the published form: every episode on both sides"
    assert not folders["train_by_episode"] & folders["val_by_episode"]


def test_probes_take_splits_by_episode(place: Path, tmp_path: Path) -> None:
    folder, result = run(place, tmp_path, splits="by-episode")
    assert folder.name == "vlabench_5_pixels@by-episode_ridge_absolute"
    assert result.dataset.split_set == "by-episode"
    assert set(result.dataset.splits) == {"train_by_episode", "val_by_episode"}
    assert result.warnings == ()
    sizes = result.dataset.splits
    assert sum(size.groups for size in sizes.values()) == EPISODES
    assert sizes["val_by_episode"].rows == PAIRS * sizes["val_by_episode"].groups


def test_published_splits_that_share_episodes_say_so(place: Path, tmp_path: Path) -> None:
    folder, result = run(place, tmp_path)
    assert folder.name == "vlabench_5_pixels_ridge_absolute"
    assert result.dataset.split_set == ""
    (warning,) = result.warnings
    assert warning.startswith("24 of the 24 episodes or videos of val are in train as well")
    assert "'--splits by-episode' keeps them apart" in warning


def test_splits_are_ranked_and_compared_apart(place: Path, tmp_path: Path) -> None:
    (first, one), (second, other) = run(place, tmp_path), run(place, tmp_path, splits="by-episode")
    boards = contests_of([Entry(first, "a", one), Entry(second, "b", other)])
    assert [board.name for board in boards] == ["VLABench (vlabench)", "VLABench (vlabench) (splits by-episode)"]
    with pytest.raises(UsageError, match="their choice of splits is published and by-episode"):
        compare_results([first, second])
    moved = {"model": one.model.model_copy(update={"name": "dinov3-origin", "revision": ""}), "probe": "mlp"}
    assert published_score(one.model_copy(update=moved)) is not None
    assert published_score(other.model_copy(update=moved)) is None


def test_controls_run_on_the_same_splits(place: Path, tmp_path: Path) -> None:
    config = ControlsConfig(
        model="pixels", dataset="vlabench", splits="by-episode", model_type="ridge", probe_preset="demo",
        action_mode="absolute",
    )  # fmt: skip
    settings, dataset = settings_of(place, tmp_path), DATASETS.get("vlabench")
    assert splits_of(dataset, settings, config) == ["train_by_episode", "val_by_episode"]
    done = run_one(config, settings, dataset, MODELS.get("pixels"), (), control="shuffled-targets")
    assert done.folder.name == "vlabench_5_pixels@by-episode@shuffled-targets_ridge_absolute"
    assert done.result.dataset.split_set == "by-episode"


def test_missing_latents_of_a_drawn_split_name_the_command(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dataset vlabench --split train_by_episode' first"):
        regress(
            RegressConfig(model="frame-difference", dataset="vlabench", splits="by-episode"),
            settings_of(place, tmp_path),
        )


@pytest.mark.parametrize(
    ("dataset", "words"),
    [("vlabench", "it has: by-episode"), ("calvin", "only the published ones")],
)
def test_unknown_splits_are_refused(place: Path, tmp_path: Path, dataset: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        regress(RegressConfig(model="pixels", dataset=dataset, splits="by-segment"), settings_of(place, tmp_path))


def test_every_drawn_split_belongs_to_a_set() -> None:
    for spec in DATASETS:
        named = {name for chosen in spec.split_sets for name in list(spec.roles(chosen).values())[:2]}
        assert named == set(spec.drawn)
    assert DATASETS.get("libero").split_sets == ("by-episode", "by-segment")
    assert DATASETS.get("robocoin").roles() == {"train": "seen_train", "seen": "seen_val", "unseen": "unseen"}


def test_classification_takes_splits_by_episode(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(5), []
    for demo in range(20):
        folder = f"libero_goal_clean/open_the_drawer_demo/demo_{demo}/action_00"
        x = 0.1 + 0.3 * rng.random()
        for name, at in (("start", x), ("end", x + 0.4)):
            picture = frame(at, 0.5, (250, 200, 60))
            write_image(tmp_path / "data" / "classification" / "LIBERO" / folder / f"action_{name}.png", picture)
        ends = [f"{folder}/action_start.png", f"{folder}/action_end.png"]
        rows += [{"src_img": ends[0], "tgt_img": ends[1], "action": "Left"},
                 {"src_img": ends[1], "tgt_img": ends[0], "action": "Right"}]  # fmt: skip
    for split, part in (("train", rows[::2] + rows[1:21:2]), ("val", rows[21::2])):
        write_table(tmp_path / "data" / f"libero_metadata_{split}.csv", part)
    settings = settings_of(tmp_path, tmp_path / "logs")
    for split in DATASETS.get("libero").roles("by-episode").values():
        extract(ExtractConfig(model="pixels", dataset="libero", split=split, workers=1), settings)
    config = ClassifyConfig(model="pixels", dataset="libero", splits="by-episode", probe_preset="demo", epochs=1)
    done = classify(config, settings)
    assert done.folder.name == "pixels@by-episode"
    assert sum(size.groups for size in done.result.dataset.splits.values()) == 20
    assert not any("as well" in warning for warning in done.result.warnings)


# Relative motion in either frame


def test_local_motion_is_read_or_computed(place: Path, tmp_path: Path) -> None:
    """The statistics come from the tool; its files and motion computed from the chunks are the same targets."""
    spec, data = DATASETS.get("vlabench"), place / "data"
    with pytest.raises(LaryError, match=r"regression_relative_local/.*do not exist.*--frame local"):
        run(place, tmp_path / "none", action_mode="relative", relative_frame="local")
    tables = (data / "vlabench_metadata_train.csv", data / "vlabench_metadata_val.csv")
    for kind in ("world", "local"):
        write_relative(RelativeConfig(dataset=spec.name, csv=tables, frame=kind, workers=1), settings_of(place, place))
    options = {"action_mode": "relative", "relative_frame": "local"}
    folder, read = run(place, tmp_path / "read", **options)
    assert folder.name == "vlabench_5_pixels_ridge_relative_local"
    assert (read.action_mode, read.relative_frame) == ("relative", "local")
    for path in (data / "regression_relative_local").rglob("*.npy"):
        path.unlink()
    _, computed = run(place, tmp_path / "computed", **options)
    assert computed.examples == read.examples
    assert computed.selections == read.selections
    turns = np.array([np.abs(example.true[0])[3:6].max() for example in read.examples])
    assert turns.max() < 1, "no jump at half a turn"
    assert read.orientations, "a turn is an orientation, with its error in degrees"

    folder, world = run(place, tmp_path / "world", action_mode="relative")
    assert folder.name == "vlabench_5_pixels_ridge_relative"
    assert world.relative_frame == "world"
    assert world.orientations == ()
    assert world.score.value != read.score.value
    moved = json.loads((data / "regression_relative/vlabench/relative_action_stats_vlabench.json").read_text())
    assert moved["std"][3] > 1, "the published difference jumps"
    with pytest.raises(UsageError, match="their frame of motion is local and world"):
        compare_results([tmp_path / "read/regression/logs/vlabench_5_pixels_ridge_relative_local", folder])


def test_a_frame_needs_relative_actions(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs --action-mode relative"):
        run(place, tmp_path, relative_frame="local")


def test_commands_take_both_options(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("ROOT", place), ("LA_DIR", place / "latents"), ("LOG_DIR", tmp_path)):
        monkeypatch.setenv(f"LARY_{name}", str(value))
    monkeypatch.setenv("DATA_DIR", str(place / "data"))
    asked = ["regress", "--model", "pixels", "--dataset", "vlabench", "--model-type", "ridge", "--probe-preset", "demo"]
    with pytest.raises(SystemExit) as stop:
        main([*asked, "--splits", "by-episode"])
    assert stop.value.code == 0
    assert "vlabench_5_pixels@by-episode_ridge_absolute" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([*asked, "--relative-frame", "local"])
    assert stop.value.code == 2


@pytest.mark.parametrize("shape", [(2, 4, 6), (4, 6), (6,), (2, 2, 2, 6)])
def test_latents_of_a_model_without_a_record_are_probed(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """As the benchmark's description promises: another program's table and files, with tokens of any shape alone."""
    make_calvin(tmp_path, {"train": 8, "val": 5})
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        rows = list(csv.DictReader((tmp_path / "data" / f"calvin_metadata_{split}.csv").read_text().splitlines()))
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
