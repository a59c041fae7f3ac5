"""The published command lines, word for word, on a small tree in the published layout."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import TINY_DIM, save_tiny
from tests.tree import make_calvin, make_robot

EXAMPLE_A = (
    "python -m lary.cli extract --model dinov2-origin --dataset calvin --split train --mode image "
    "--stride 5 --gpus 0,1,2,3",
    "python -m lary.cli extract --model dinov2-origin --dataset calvin --split val --mode image "
    "--stride 5 --gpus 0,1,2,3",
    "python -m lary.cli regress --model dinov2-origin --dataset calvin --stride 5 --model-type mlp",
)
EXAMPLE_B = (
    "python -m lary.cli extract --model dinov2-origin --dataset robot_1st --split train --mode video --gpus 0,1,2,3",
    "lary extract --model dinov2-origin --dataset robot_1st --split val --mode video --gpus 0,1,2,3",
    "lary classify --model dinov2-origin --dataset robot_1st --dim 32 --classes 54 --gpus 0,1,2,3",
)


def run(command: str, root: Path) -> subprocess.CompletedProcess[str]:
    """A command line as a user types it, in a folder of its own, with env.sh's variables set."""
    words = shlex.split(command)
    program = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", "lary.cli", *words[1:]]
    environment = os.environ | {
        "LARY_ROOT": str(root), "DATA_DIR": str(root / "data"), "MODEL_DIR": str(root / "models"),
        "LARY_LA_DIR": str(root / "latent_actions"), "LARY_LOG_DIR": str(root / "logs"),
        "DINO_V2_PATH": str(root / "models" / "DINOv2"), "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    }  # fmt: skip
    return subprocess.run(program, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    make_calvin(folder, {"train": 10, "val": 3})
    make_robot(folder, {"train": 12, "val": 8})
    save_tiny(folder / "models" / "DINOv2", "dinov2", patch=224)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_example_a_regression(root: Path) -> None:
    for command in EXAMPLE_A:
        done = run(command, root)
        assert done.returncode == 0, done.stderr
        if " extract " in command:
            assert "one process on the CPU" in done.stderr
    rows = rows_of(root / "data" / "val_la_calvin_5_dinov2-origin.csv")
    source = rows_of(root / "data" / "calvin_metadata_val.csv")
    assert [{name: cell for name, cell in row.items() if name != "la_path"} for row in rows] == source
    assert rows[2]["la_path"] == "calvin/val/dinov2-origin/latent_action_00000002.npz"
    with np.load(root / "latent_actions" / rows[2]["la_path"], allow_pickle=False) as latents:
        assert set(latents.files) == {"tokens", "indices"}
        assert latents["tokens"].shape == (2, 1, TINY_DIM)
        assert latents["tokens"].dtype == np.float32
        assert latents["indices"].size == 0
    folder = root / "logs" / "regression" / "logs" / "calvin_5_dinov2-origin_mlp_absolute"
    result = json.loads((folder / "result.json").read_text())
    best = rows_of(folder / "best_result.csv")
    assert len(best) == 1
    assert float(best[0]["val_seen_mse"]) == pytest.approx(
        result["selections"]["held_out"]["metrics"]["seen_mse"]["value"]
    )
    assert list(best[0])[:4] == ["best_epoch", "train_loss", "val_seen_loss", "val_seen_mse"]
    assert (folder / "best_model.pth").exists()
    pictures = sorted(path.name for path in (folder / "eval_vis").glob("epoch_*/sample_0_*"))
    assert {"sample_0_src.png", "sample_0_tgt.png", "sample_0_action.png"} <= set(pictures)
    assert result["options"]["hidden_dim"] == 4096


def test_example_b_classification(root: Path) -> None:
    for command in EXAMPLE_B:
        done = run(command, root)
        assert done.returncode == 0, done.stderr
    rows = rows_of(root / "data" / "train_la_robot_1st_dinov2-origin.csv")
    assert len(rows) == 12
    with np.load(root / "latent_actions" / rows[0]["la_path"], allow_pickle=False) as latents:
        assert latents["tokens"].shape == (9, 1, TINY_DIM)
    folder = root / "logs" / "classification" / "robot_1st" / "dinov2-origin"
    log = rows_of(folder / "log_r0.csv")
    assert list(log[0]) == ["epoch", "train_acc", "val_acc"]
    assert len(log) == 20
    matrix = json.loads((folder / "confusion_matrix.json").read_text())
    assert np.array(matrix["matrix"]).shape == (54, 54)
    assert np.sum(matrix["matrix"]) == 8
    assert len((folder / "case.txt").read_text().splitlines()) == 8
    for name in ("latest.pt", "confusion_matrix.png", "classification_stats.json", "result.json"):
        assert (folder / name).exists()


def test_a_second_run_redoes_nothing(root: Path) -> None:
    result = root / "logs" / "regression" / "logs" / "calvin_5_dinov2-origin_mlp_absolute" / "result.json"
    latents = root / "latent_actions" / "calvin" / "val" / "dinov2-origin" / "latent_action_00000000.npz"
    before = (result.stat().st_mtime_ns, latents.stat().st_mtime_ns)
    for command in EXAMPLE_A[1:]:
        assert run(command, root).returncode == 0
    assert (result.stat().st_mtime_ns, latents.stat().st_mtime_ns) == before


def test_table_of_the_published_code_is_read(root: Path) -> None:
    """Bare la_path, no images/ and actions/ in the paths, latents under stride_5, written by another program."""
    old = root / "latent_actions" / "calvin" / "stride_5"
    for split in ("train", "val"):
        rows = rows_of(root / "data" / f"{split}_la_calvin_5_dinov2-origin.csv")
        folder = old / split / "dinov3-origin"
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows:
            name = Path(row["la_path"]).name
            with np.load(root / "latent_actions" / row["la_path"]) as latents:
                np.savez_compressed(folder / name, tokens=latents["tokens"], indices=latents["indices"])
            row["la_path"] = name
            for column in ("src_img", "tgt_img", "action", "src_state", "tgt_state"):
                row[column] = row[column].split("/", 1)[1]
        with (root / "data" / f"{split}_la_calvin_5_dinov3-origin.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    done = run("lary regress --model dinov3-origin --dataset calvin --stride 5 --model-type mlp --epochs 2", root)
    assert done.returncode == 0, done.stderr
