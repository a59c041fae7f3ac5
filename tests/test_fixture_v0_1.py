"""What version 0.1 wrote is read and taken up: `fixtures/v0_1`, made by `fixtures/make_v0_1.py`, through commands."""

from __future__ import annotations

import copy
import csv
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lary.cli import main
from lary.data.spec import DATASETS
from lary.models.spec import MODELS

FIXTURE = Path(__file__).parent / "fixtures" / "v0_1"
GRID = ("--plugin", FIXTURE / "plugins/tiny_grid.py", "--model", "tiny-grid")
OWN = ("--plugin", FIXTURE / "plugins/own_weights.py", "--model", "own-weights")
SMALL = ("--batch-size", "2", "--workers", "1")
SHARDS = ("--store", "shards", "--shard-rows", "4")
FINISHED = [
    pytest.param((*GRID, "--dataset", "calvin"), SMALL, 16, id="npz"),
    pytest.param((*GRID, "--dataset", "robot_1st"), (*SMALL, *SHARDS), 8, id="shards"),
    pytest.param((*OWN, "--dataset", "calvin"), SMALL, 16, id="plug-in with a file of weights"),
]
HALF = [
    pytest.param("pixels", (), 5, "latent_action_*.npz", id="npz"),
    pytest.param("optical-flow", SHARDS, 2, "shard_*.safetensors", id="shards"),
]
ERRORS = ("18.206", "20.783", "0.290")
"""Mean squared errors of the probes mlp, dit and ridge, as 0.1 printed them."""


@pytest.fixture(scope="module", autouse=True)
def registries() -> Iterator[None]:
    """What the plug-ins register is gone after these tests: other tests run over every record."""
    found = [vars(registry) for registry in (MODELS, DATASETS) if registry.names()]
    kept = [{name: copy.copy(value) for name, value in values.items()} for values in found]
    yield
    for values, before in zip(found, kept, strict=True):
        values.update(before)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(FIXTURE)):
            del sys.modules[name]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, as the current folder: its lary.yaml names all places."""
    shutil.copytree(FIXTURE, tmp_path / "root", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "root")
    return tmp_path / "root"


def lary(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def states(folder: Path, pattern: str) -> dict[Path, tuple[bytes, int]]:
    """Content and time of every such file."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob(pattern)}


def exported(out: Path, *words: str | Path) -> np.ndarray:
    assert lary("latents", "export", *words, "--out", out) == 0
    tokens: np.ndarray = np.load(out)["tokens"]
    return tokens


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_fixture_is_small_and_names_no_machine() -> None:
    files = [path for path in FIXTURE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1 << 20
    homes = re.compile(rb"/(?:home|opt|tmp|root|Users)/")
    assert not [path for path in files if path.name == "lock" or homes.search(path.read_bytes())]


@pytest.mark.parametrize(("which", "how", "rows"), FINISHED)
def test_finished_extraction_is_found_as_done_and_inspected(
    root: Path, which: tuple[str, ...], how: tuple[str, ...], rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, pattern = ("shards", "shard_*") if "shards" in how else ("npz", "latent_action_*")
    before = states(root / "latents", pattern)
    assert lary("extract", *which, "--split", "train", *how) == 0
    assert re.search(rf"\b{rows} rows, 0 extracted\b", capsys.readouterr().out)
    assert states(root / "latents", pattern) == before
    assert lary("latents", "info", *which, "--split", "train") == 0
    out = capsys.readouterr().out
    patterns = (which[3], kind, rf"rows\s+{rows}\b", r"\b4 x 6 float32")
    assert [told for told in patterns if not re.search(told, out)] == []
    assert lary("latents", "verify", *which, "--split", "train") == 0
    assert re.search(rf"\b{rows} rows read, 0 problems", capsys.readouterr().out)


@pytest.mark.parametrize(("model", "how", "done", "pattern"), HALF)
def test_killed_extraction_goes_on(root: Path, model: str, how: tuple[str, ...], done: int, pattern: str) -> None:
    """What was there stays as it is, what is missing is added, and the tokens are those of an undisturbed run."""
    which = ("--model", model, "--dataset", "calvin", "--split", "train", "--pool", "mean")
    folder = root / "latents" / "calvin" / "train" / f"{model}@pool-mean"
    before = states(folder, pattern)
    assert len(before) == done
    assert lary("extract", *which, *SMALL, *how) == 0
    after = states(folder, pattern)
    assert {name: after[name] for name in before} == before
    assert len(after) == (4 if how else 16)
    assert not list(folder.glob(".*.tmp"))
    found = exported(root / "found.npz", *which)
    assert lary("latents", "verify", *which) == 0
    fresh = ("--lary-la-dir", root / "fresh")
    assert lary("extract", *which, *SMALL, *how, *fresh) == 0
    expected = exported(root / "expected.npz", *which, *fresh)
    assert expected.shape == (16, *found.shape[1:])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_results_are_read_by_report_compare_and_analyze(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = root / "results" / "regression" / "logs"
    assert lary("report") == 0
    page = (root / "results/report.html").read_text()
    assert [told for told in ("tiny-grid", "robot_1st", "ridge", "dit", *ERRORS) if told not in page] == []
    capsys.readouterr()
    tags = ("tiny-grid_mlp", "tiny-grid_ridge", "tiny-grid_dit", "tiny-grid@project4_mlp")
    assert lary("compare", *(runs / f"calvin_5_{tag}_absolute" for tag in tags)) == 0
    out = capsys.readouterr().out
    assert [told for told in ("ridge", "dit", "4 random dimensions") if told not in out] == []
    assert lary("analyze", "frequency") == 0
    assert list((root / "results" / "analysis").rglob("*.csv"))


def test_a_new_probe_on_old_latents_gives_the_old_number(root: Path) -> None:
    """The closed-form probe has the same number on every machine."""
    place = "regression/logs/calvin_5_tiny-grid_ridge_absolute/best_result.csv"
    words = (*GRID, "--dataset", "calvin", "--probe-preset", "demo", "--model-type", "ridge")
    assert lary("regress", *words, "--lary-log-dir", root / "other") == 0
    (found,), (expected,) = rows_of(root / "other" / place), rows_of(root / "results" / place)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-3), name


def test_killed_training_ends_as_an_undisturbed_one(root: Path) -> None:
    """It goes on from its state, or starts over where another version can't take that up."""
    words = (*OWN, "--dataset", "calvin", "--pool", "mean", "--probe-preset", "demo", "--epochs", "40")
    scores = []
    for results in ("results", "undisturbed"):
        assert lary("regress", *words, "--lary-log-dir", root / results) == 0
        folder = root / results / "regression/logs/calvin_5_own-weights@pool-mean_mlp_absolute"
        assert (folder / "result.json").is_file()
        assert not list(folder.rglob("training_state.pt"))
        scores += [float(row["val_seen_mse"]) for row in rows_of(folder / "best_result.csv")]
    assert scores == [pytest.approx(scores[1], rel=1e-3), scores[1]]


def test_settings_and_sweep_files_are_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lary("config", "show") == 0
    out = capsys.readouterr().out
    for variable, folder in (("DATA_DIR", "data"), ("LARY_LA_DIR", "latents"), ("LARY_LOG_DIR", "results")):
        assert re.search(rf"^{variable}\s.*\b{folder}\b.*lary\.yaml", out, re.MULTILINE), variable
    assert lary("sweep", "sweep.yaml", *GRID[:2], "--dry-run") == 0
    out = capsys.readouterr().out
    assert [told for told in ("calvin", "robot_1st", "pixels", "ridge") if told not in out] == []


def test_plugins_of_models_are_checked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for which in (GRID, OWN):
        assert lary("check-model", f"{which[1]}:{which[3]}") == 0
        assert "2 x 4 x 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset", "plugin", "place", "rows"),
    [
        ("own_pairs", "plugins/own_dataset.py", ".", 16),
        ("own_videos", "data/own_videos_dataset.py", ".", 2),
        ("own_lerobot", "data/own_lerobot_dataset.py", ".", 7),
        ("own_trajectories", "trajectories/own_trajectories.py", "trajectories", 6),
    ],
)
def test_records_of_data_sets_are_extracted(root: Path, dataset: str, plugin: str, place: str, rows: int) -> None:
    words = (*GRID, "--plugin", FIXTURE / plugin, "--dataset", dataset, "--split", "train", *SMALL)
    assert lary("extract", *words, "--lary-root", root / place, "--data-dir", root / place / "data") == 0
    (table,) = (root / place / "data").glob(f"train_la_{dataset}*tiny-grid.csv")
    assert len([row for row in rows_of(table) if row["la_path"]]) == rows


def test_latents_of_the_published_code_are_probed(root: Path) -> None:
    which = ("--model", "pixels", "--dataset", "calvin")
    found = exported(root / "tokens.npz", *which, "--split", "val")
    with np.load(root / "latents/calvin/stride_5/val/pixels/latent_action_3.npz") as latents:
        np.testing.assert_array_equal(found[3], latents["tokens"])
    assert lary("regress", *which, "--stride", "5", "--model-type", "ridge", "--probe-preset", "demo") == 0
    assert rows_of(root / "results/regression/logs/calvin_5_pixels_ridge_absolute/best_result.csv")
