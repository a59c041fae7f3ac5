"""Three users from their data to a number: LeRobot recordings, a latent action model with codes, a sweep to a table."""

import re
import sys
from pathlib import Path

import pytest

from tests.helpers import lary, printed, rows_of
from tests.lerobot_files import FRONT, WRIST, write_lerobot
from tests.tree import make_calvin

pytestmark = pytest.mark.usefixtures("no_figures")
LAM = """
import torch
from lary import Latents, ModelSpec, Preprocess, Weights, register_model

RECORD = ModelSpec(name="vq-lam", paradigm="general LAM", dim=8, preprocess=Preprocess(size=32),
                   weights=Weights(variable="VQ_LAM_PATH"), options={"latent": "continuous"})

@register_model(RECORD)
class VqLam:
    def __init__(self, spec, context):
        state = torch.load(context.weights, weights_only=True)
        self.project, self.codebook, self.latent = state["project"], state["codebook"], spec.options["latent"]

    def encode(self, clips):  # a latent action for every pair of neighbouring frames
        change = torch.nn.functional.adaptive_avg_pool2d((clips[:, 1:] - clips[:, :-1]).flatten(0, 1), 4).flatten(1)
        latents = (change @ self.project).unflatten(0, (len(clips), -1))[:, :, None]  # (B, T - 1, 1, 8)
        codes = torch.cdist(latents.flatten(0, 2), self.codebook).argmin(dim=1).view(latents.shape[:3])
        return Latents(self.codebook[codes] if self.latent == "quantized" else latents, codes)
"""
SWEEP = """
plugins: [vq_lam.py]
options: {dataset: calvin, probe_preset: demo, model_type: mlp, epochs: 2, workers: 1}
runs:
  - {model: vq-lam}
  - {model: vq-lam, latent: quantized}
  - {model: frame-difference}
"""


def test_recordings_of_a_student_become_a_number(tmp_path: Path) -> None:
    """Import with relative targets and task texts, a run with folds since few episodes validate, a page."""
    write_lerobot(tmp_path / "source", "v3.0")
    words = ("data", "import-lerobot", tmp_path / "source", "--name", "cube", "--stride", "3", "--camera", FRONT)
    out = printed(*words, "--camera", WRIST, root=tmp_path, has=["use it with --dataset cube", "--folds 5"])
    assert "Only 1 episodes" in out
    folders = ("--lary-la-dir", tmp_path / "latents")
    options = ("--model", "pixels", "--dataset", "cube", "--probe-preset", "demo", "--workers", "1", *folders)
    for mode in ("absolute", "relative"):
        ridge = ("--model-type", "ridge", "--folds", "3", "--action-mode", mode)
        printed("run", *options, *ridge, root=tmp_path, has=["3 folds", "seen_mse"])
    assert (tmp_path / "logs" / "report.html").exists() is False
    printed("report", root=tmp_path)
    assert "cube" in (tmp_path / "logs" / "report.html").read_text()


def test_codes_of_an_author_end_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with weights of its own by variable, both kinds of its latents, against a baseline, as LaTeX."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    make_calvin(tmp_path, {"train": 8, "val": 7})
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=draw) for name, shape in (("project", (48, 8)), ("codebook", (16, 8)))
    }
    torch.save(weights, tmp_path / "vq.pt")
    (tmp_path / "vq_lam.py").write_text(LAM)
    (tmp_path / "lary.yaml").write_text("PLUGIN: vq_lam.py\nVQ_LAM_PATH: vq.pt\n")
    printed("check-model", "vq-lam", has=["pair: codes", "everything as it should be"])
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    assert "lacks" not in printed("sweep", "sweep.yaml", "--dry-run", root=tmp_path)
    printed("sweep", "sweep.yaml", root=tmp_path, has=["3 runs: 3 done now"])
    latex = printed("table", tmp_path / "logs", "--format", "latex")
    rows = re.findall(r"^    (.+?) & (.+?) \[", latex, re.MULTILINE)
    assert {name for name, _ in rows} == {"vq-lam", "vq-lam (latent quantized)", "frame-difference"}
    assert latex.count(r"\textbf{") == 1
    codes = printed("diagnose", "--model", "vq-lam", "--dataset", "calvin", "--split", "val", root=tmp_path)
    assert "perplexity" in codes


@pytest.mark.slow
def test_recordings_of_the_real_package_are_read(tmp_path: Path) -> None:
    """Only where `lerobot` is installed, which needs an older torch than ours."""
    datasets = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot is not installed")
    import numpy as np

    names = {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]}
    camera = {"dtype": "image", "shape": (64, 80, 3), "names": ["height", "width", "channel"]}
    made = datasets.LeRobotDataset.create(
        "a/b", fps=10, features={"action": names, FRONT: camera}, root=tmp_path / "source", use_videos=False
    )
    for _ in range(3):
        for at in range(12):
            picture = np.full((64, 80, 3), 10 * at, np.uint8)
            made.add_frame({"action": np.full(3, at, np.float32), FRONT: picture, "task": "push"})
        made.save_episode()
    getattr(made, "finalize", lambda: None)()
    done = lary("data", "import-lerobot", tmp_path / "source", "--name", "real", "--stride", "3", root=tmp_path)
    assert done.code == 0, done.err
    assert len(rows_of(tmp_path / "data" / "real_metadata_train.csv")) == 6
    assert "lerobot" in sys.modules
