"""What version 0.1 wrote, in `fixtures/v0_1`, is read and taken up through commands."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import FIXTURES, printed, rows_of

pytestmark = pytest.mark.usefixtures("no_figures")
FIXTURE = FIXTURES / "v0_1"
GRID = ("--plugin", FIXTURE / "plugins/tiny_grid.py", "--model", "tiny-grid")
OWN = ("--plugin", FIXTURE / "plugins/own_weights.py", "--model", "own-weights")
SMALL = ("--batch-size", "2", "--workers", "1")
SHARDS = ("--store", "shards", "--shard-rows", "4")
ERRORS = ("18.206", "20.783", "0.290")
"""Mean squared errors of the probes mlp, dit and ridge, as 0.1 printed them."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, as the current folder: its lary.yaml names all folders."""
    shutil.copytree(FIXTURE, tmp_path / "root", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "root")
    return tmp_path / "root"


def missing(text: str, *patterns: str) -> list[str]:
    return [pattern for pattern in patterns if not re.search(pattern, text, re.MULTILINE)]


def states(folder: Path, pattern: str) -> dict[Path, tuple[bytes, int]]:
    """Content and time of every such file."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob(pattern)}


def exported(out: Path, *words: str | Path) -> np.ndarray:
    printed("latents", "export", *words, "--out", out)
    with np.load(out) as arrays:
        return arrays["tokens"]


@pytest.mark.parametrize(("which", "how", "rows"), [
    ((*GRID, "--dataset", "calvin"), (), 16),
    ((*GRID, "--dataset", "robot_1st"), SHARDS, 8),
    ((*OWN, "--dataset", "calvin"), (), 16),  # a plug-in with a file of weights
])  # fmt: skip
def test_finished_extraction_is_found(root: Path, which: tuple[str, ...], how: tuple[str, ...], rows: int) -> None:
    kind, pattern = ("shards", "shard_*") if how else ("npz", "latent_action_*")
    before = states(root / "latents", pattern)
    split = (*which, "--split", "train")
    assert not missing(printed("extract", *split, *SMALL, *how), rf"\b{rows} rows, 0 extracted\b")
    assert states(root / "latents", pattern) == before
    out = printed("latents", "info", *split) + printed("latents", "verify", *split)
    facts = (which[3], kind, rf"rows\s+{rows}\b", r"\b4 x 6 float32", rf"\b{rows} rows read, 0 problems")
    assert not missing(out, *facts)


@pytest.mark.parametrize(("model", "how", "done"), [("pixels", (), 5), ("optical-flow", SHARDS, 2)])
def test_killed_extraction_goes_on(root: Path, model: str, how: tuple[str, ...], done: int) -> None:
    """What was there stays as it is, what is missing is added, and the tokens are those of an undisturbed run."""
    pattern = "shard_*.safetensors" if how else "latent_action_*.npz"
    which = ("--model", model, "--dataset", "calvin", "--split", "train", "--pool", "mean")
    folder, fresh = root / "latents/calvin/train" / f"{model}@pool-mean", ("--lary-la-dir", root / "fresh")
    before = states(folder, pattern)
    assert len(before) == done
    printed("extract", *which, *SMALL, *how)
    after = states(folder, pattern)
    assert {name: after[name] for name in before} == before
    assert (len(after), list(folder.glob(".*.tmp"))) == (4 if how else 16, [])
    found = exported(root / "found.npz", *which)
    printed("latents", "verify", *which)
    printed("extract", *which, *SMALL, *how, *fresh)
    expected = exported(root / "expected.npz", *which, *fresh)
    assert expected.shape == (16, *found.shape[1:])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_results_are_read_by_report_compare_and_analyze(root: Path) -> None:
    printed("report")
    assert not missing((root / "results/report.html").read_text(), "tiny-grid", "robot_1st", "ridge", "dit", *ERRORS)
    tags = ("tiny-grid_mlp", "tiny-grid_ridge", "tiny-grid_dit", "tiny-grid@project4_mlp")
    runs = [root / f"results/regression/logs/calvin_5_{tag}_absolute" for tag in tags]
    assert not missing(printed("compare", *runs), "ridge", "dit", "4 random dimensions")
    printed("analyze", "trajectories")
    assert list((root / "results" / "analysis").rglob("*.csv"))


def test_a_new_probe_reads_old_latents(root: Path) -> None:
    """The closed-form probe has the same number on every machine; it now trains on the tenth that was held out."""
    place = "regression/logs/calvin_5_tiny-grid_ridge_absolute"
    words = (*GRID, "--dataset", "calvin", "--probe-preset", "demo", "--model-type", "ridge")
    printed("regress", *words, "--seed", "42", "--lary-log-dir", root / "other")
    (found,), (before,) = (rows_of(root / each / place / "best_result.csv") for each in ("other", "results"))
    numbers = [float(row["val_seen_mse"]) for row in (found, before)]
    assert (numbers, found.keys()) == (pytest.approx([0.20845, 0.28990], rel=1e-3), before.keys())


def test_killed_training_ends_as_an_undisturbed_one(root: Path) -> None:
    """It resumes from its state, or starts over where another version can't take that up."""
    words = (*OWN, "--dataset", "calvin", "--pool", "mean", "--probe-preset", "demo", "--epochs", "40", "--seed", "42")
    scores = []
    for results in ("results", "undisturbed"):
        printed("regress", *words, "--lary-log-dir", root / results)
        folder = root / results / "regression/logs/calvin_5_own-weights@pool-mean_mlp_absolute"
        assert [(folder / "result.json").is_file(), *folder.rglob("training_state.pt")] == [True]
        scores += [float(row["val_seen_mse"]) for row in rows_of(folder / "best_result.csv")]
    assert scores == [pytest.approx(scores[1], rel=1e-3), scores[1]]


def test_settings_sweeps_and_plugins_are_read(root: Path) -> None:
    folders = {"DATA_DIR": "data", "LARY_LA_DIR": "latents", "LARY_LOG_DIR": "results"}
    lines = [rf"^{variable}\s.*\b{folder}\b.*lary\.yaml" for variable, folder in folders.items()]
    assert not missing(printed("config", "show"), *lines)
    plan = printed("sweep", "sweep.yaml", *GRID[:2], "--dry-run")
    assert not missing(plan, "calvin", "robot_1st", "pixels", "ridge")
    for which in (GRID, OWN):
        assert "2 x 4 x 6" in printed("check-model", f"{which[1]}:{which[3]}")


@pytest.mark.parametrize(("dataset", "plugin", "place", "rows"), [
    ("own_pairs", "plugins/own_dataset.py", ".", 16),
    ("own_videos", "data/own_videos_dataset.py", ".", 2),
    ("own_lerobot", "data/own_lerobot_dataset.py", ".", 7),
    ("own_trajectories", "trajectories/own_trajectories.py", "trajectories", 6),
])  # fmt: skip
def test_records_of_data_sets_are_extracted(root: Path, dataset: str, plugin: str, place: str, rows: int) -> None:
    words = (*GRID, "--plugin", FIXTURE / plugin, "--dataset", dataset, "--split", "train", *SMALL)
    printed("extract", *words, "--lary-root", root / place, "--data-dir", root / place / "data")
    (table,) = (root / place / "data").glob(f"train_la_{dataset}*tiny-grid.csv")
    assert len([row for row in rows_of(table) if row["la_path"]]) == rows


def test_latents_of_the_published_code_are_probed(root: Path) -> None:
    which = ("--model", "pixels", "--dataset", "calvin")
    found = exported(root / "tokens.npz", *which, "--split", "val")
    with np.load(root / "latents/calvin/stride_5/val/pixels/latent_action_3.npz") as latents:
        np.testing.assert_array_equal(found[3], latents["tokens"])
    printed("regress", *which, "--stride", "5", "--model-type", "ridge", "--probe-preset", "demo")
    assert rows_of(root / "results/regression/logs/calvin_5_pixels_ridge_absolute/best_result.csv")
