"""The published command lines, word for word, on a small tree in the published layout."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import rows_of
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
REGRESSION = "logs/regression/logs/calvin_5_dinov2-origin_mlp_absolute"


def run(command: str, root: Path) -> subprocess.CompletedProcess[str]:
    """A command line as a user types it, in a folder of its own, with env.sh's variables set."""
    words = shlex.split(command)
    program = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", "lary.cli", *words[1:]]
    environment = os.environ | {
        "LARY_ROOT": str(root), "DATA_DIR": str(root / "data"), "MODEL_DIR": str(root / "models"),
        "LARY_LA_DIR": str(root / "latent_actions"), "LARY_LOG_DIR": str(root / "logs"),
        "DINO_V2_PATH": str(root / "models" / "DINOv2"), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(program, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    make_calvin(folder, {"train": 10, "val": 3})
    make_robot(folder, {"train": 12, "val": 8})
    save_tiny(folder / "models" / "DINOv2", "dinov2", patch=224)
    return folder


def test_regression(root: Path) -> None:
    assert all("one process on the CPU" in run(command, root).stderr for command in PAIRS)
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
    assert result["options"]["hidden_dim"] == 4096


def test_classification(root: Path) -> None:
    for command in CLIPS:
        run(command, root)
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
