"""The published command lines, word for word, on a small tree in the published layout."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lary.probes.presets import PRESETS
from tests.helpers import lary, rows_of
from tests.tiny import TINY_DIM, save_tiny
from tests.tree import make_calvin, make_robot

EXTRACT = "python -m lary.cli extract --model dinov2-origin --dataset {} --split {} --mode {} --gpus 0,1,2,3"
PAIRS = (
    EXTRACT.format("calvin", "train", "image --stride 5"),
    EXTRACT.format("calvin", "val", "image --stride 5"),
    "python -m lary.cli regress --model dinov2-origin --dataset calvin --stride 5 --model-type mlp",
)
CLIPS = (
    EXTRACT.format("robot_1st", "train", "video"),
    EXTRACT.format("robot_1st", "val", "video"),
    "lary classify --model dinov2-origin --dataset robot_1st --dim 32 --classes 54 --gpus 0,1,2,3",
)
pytestmark = pytest.mark.usefixtures("no_figures")
REGRESSION = "logs/regression/logs/calvin_5_dinov2-origin_mlp_absolute"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_calvin(tmp_path_factory.mktemp("benchmark"), {"train": 10, "val": 3})
    make_robot(folder, {"train": 12, "val": 8})
    save_tiny(folder / "models" / "DINOv2", "dinov2", patch=224)
    return folder


@pytest.fixture(autouse=True)
def published(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of env.sh, and the published preset with narrow probes."""
    folders = {"DATA_DIR": "data", "MODEL_DIR": "models", "LARY_LA_DIR": "latent_actions", "LARY_LOG_DIR": "logs"}
    for name, path in {"LARY_ROOT": "", **folders, "DINO_V2_PATH": "models/DINOv2"}.items():
        monkeypatch.setenv(name, str(root / path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(root)
    paper = PRESETS.get("paper")
    small = replace(paper.classifier, model_dim=32, num_heads=2, depth=1)
    narrow = replace(paper, classifier=small, regressor=replace(paper.regressor, hidden_dim=64))
    monkeypatch.setitem(PRESETS._records, "paper", narrow)


def run(command: str) -> None:
    """A command line as a user types it."""
    words = shlex.split(command)
    done = lary(*words[words.index("lary.cli" if words[0] == "python" else "lary") + 1 :])
    assert done.code == 0, done.err


def test_regression(root: Path) -> None:
    first, *others = PAIRS
    done = subprocess.run([sys.executable, *first.split()[1:]], capture_output=True, text=True, check=False)
    assert (done.returncode, "one process on the CPU" in done.stderr) == (0, True), done.stderr
    for command in others:
        run(command)
    rows = rows_of(root / "data" / "val_la_calvin_5_dinov2-origin.csv")
    source = rows_of(root / "data" / "calvin_metadata_val.csv")
    assert [{name: cell for name, cell in row.items() if name != "la_path"} for row in rows] == source
    assert rows[2]["la_path"] == "calvin/val/dinov2-origin/latent_action_00000002.npz"
    with np.load(root / "latent_actions" / rows[2]["la_path"], allow_pickle=False) as latents:
        assert set(latents.files) == {"tokens", "indices"}
        assert (latents["tokens"].shape, latents["tokens"].dtype) == ((2, 1, TINY_DIM), np.float32)
        assert latents["indices"].size == 0
    result = json.loads((root / REGRESSION / "result.json").read_text())
    (best,) = rows_of(root / REGRESSION / "best_result.csv")
    assert result["seeds"] == [0, 1, 2]
    assert float(best["val_seen_mse"]) == pytest.approx(result["per_seed"][0]["metrics"]["seen_mse"])
    assert list(best)[:4] == ["best_epoch", "train_loss", "val_seen_loss", "val_seen_mse"]
    assert (root / REGRESSION / "best_model.pth").exists()
    pictures = {path.name for path in (root / REGRESSION / "eval_vis").glob("epoch_*/sample_0_*")}
    assert {"sample_0_src.png", "sample_0_tgt.png", "sample_0_action.png"} <= pictures
    assert result["options"]["hidden_dim"] == 64, "without an option it is the published preset"


def test_classification(root: Path) -> None:
    for command in CLIPS:
        run(command)
    rows = rows_of(root / "data" / "train_la_robot_1st_dinov2-origin.csv")
    assert len(rows) == 12
    with np.load(root / "latent_actions" / rows[0]["la_path"], allow_pickle=False) as latents:
        assert latents["tokens"].shape == (9, 1, TINY_DIM)
    folder = root / "logs" / "classification" / "robot_1st" / "dinov2-origin"
    log = rows_of(folder / "log_r0.csv")
    assert (list(log[0]), len(log)) == (["epoch", "train_acc", "val_acc"], 20)
    matrix = np.array(json.loads((folder / "confusion_matrix.json").read_text())["matrix"])
    assert (matrix.shape, matrix.sum()) == ((54, 54), 8)
    assert len((folder / "case.txt").read_text().splitlines()) == 8
    for name in ("latest.pt", "confusion_matrix.png", "classification_stats.json", "result.json"):
        assert (folder / name).exists()
