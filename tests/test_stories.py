"""Three users from their data to a number: LeRobot recordings, a latent action model with codes, a sweep to a table."""

import inspect
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import printed, rows_of
from tests.lerobot_files import FRONT, WRIST, write_lerobot
from tests.tree import make_calvin

pytestmark = pytest.mark.usefixtures("no_figures")
PAGE = (Path(__file__).parents[1] / "docs" / "stories.md").read_text()


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
    shapes = {"project": (48, 8), "codebook": (16, 8)}
    weights = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    torch.save(weights, tmp_path / "vq.pt")
    (tmp_path / "vq_lam.py").write_text(PAGE.split("```python\n")[1].split("```")[0])
    for setting in (("PLUGIN", "vq_lam.py"), ("VQ_LAM_PATH", "vq.pt")):
        printed("config", "set", *setting)
    printed("check-model", "vq-lam", has=["pair: codes", "everything as it should be"])
    sweep = PAGE.split("```yaml\n")[1].split("```")[0].replace("simarm", "calvin")
    (tmp_path / "sweep.yaml").write_text(sweep.replace("workers", "model_type: mlp, epochs: 2, workers"))
    assert "lacks" not in printed("sweep", "sweep.yaml", "--dry-run", root=tmp_path)
    printed("sweep", "sweep.yaml", root=tmp_path, has=["4 runs: 4 done now"])
    latex = printed("table", tmp_path / "logs", "--format", "latex")
    rows = re.findall(r"^    (.+?) & (.+?) \[", latex, re.MULTILINE)
    assert {name for name, _ in rows} == {"vq-lam", "vq-lam (latent quantized)", "frame-difference", "random-vit"}
    assert latex.count(r"\textbf{") == 1
    codes = printed("diagnose", "--model", "vq-lam", "--dataset", "calvin", "--split", "val", root=tmp_path)
    assert "perplexity" in codes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that it leaves open
@pytest.mark.parametrize("kind", ["image", "video"])
def test_recordings_of_the_real_package_are_read(tmp_path: Path, kind: str) -> None:
    """Only where `lerobot` is installed, which needs an older torch than ours; 0.3 writes v2.1 and 0.4 v3.0."""
    datasets = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot is not installed")
    import numpy as np

    names = {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]}
    camera = {"dtype": kind, "shape": (64, 80, 3), "names": ["height", "width", "channel"]}
    features = {"action": names, FRONT: camera, WRIST: camera}
    how = {"features": features, "root": tmp_path / "source", "use_videos": kind == "video"}
    made = datasets.LeRobotDataset.create("a/b", fps=10, **how)
    for episode in range(3):
        for at in range(12):
            picture = np.full((64, 80, 3), 20 * at, np.uint8)
            action = np.array([at, episode, 0], np.float32)
            frame, task = {"action": action, FRONT: picture, WRIST: 255 - picture}, f"push {episode}"
            if "task" in inspect.signature(made.add_frame).parameters:
                made.add_frame(frame, task=task)
            else:
                made.add_frame({**frame, "task": task})
        made.save_episode()
    getattr(made, "finalize", lambda: None)()
    words = ("data", "import-lerobot", tmp_path / "source", "--name", "real", "--stride", "3", "--camera", FRONT)
    printed(*words, "--camera", WRIST, root=tmp_path, has=["use it with --dataset real"])
    rows = rows_of(tmp_path / "data" / "real_metadata_train.csv")
    assert len(rows) == 12
    for row in rows:
        file, action = (tmp_path / "data" / "regression" / "real" / row[name] for name in ("src_img", "action"))
        values = np.load(action)
        level = 20 * values[0, 0] if "front" in row["src_img"] else 255 - 20 * values[0, 0]
        assert abs(np.asarray(Image.open(file)).mean() - level) < (3 if kind == "video" else 0.1), row
        assert values.tolist() == [[values[0, 0] + step, float(row["episode"]), 0] for step in range(3)]
    options = ("--model", "pixels", "--dataset", "real", "--probe-preset", "demo", "--workers", "1")
    printed("run", *options, "--model-type", "ridge", "--folds", "3", root=tmp_path, has=["3 folds", "seen_mse"])
