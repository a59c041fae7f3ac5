"""The notebooks of `examples` run from top to bottom in a folder of their own."""

import json
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lary
from lary.data.spec import DATASETS
from lary.files import read_yaml, write_json
from lary.models.overview import paper_rows
from lary.models.spec import MODELS
from lary.runs.sweep import read_plan
from tests.helpers import printed
from tests.lerobot_files import write_lerobot

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


SMALLER = {"120": "24", "24": "10", "96": "48"}
"""Numbers of pairs, clips and pixels of the simulated data: it is about the code."""


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="the simulator is part of the extra 'demo'")
    cells = json.loads(notebook.read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code = code.replace('"lerobot/pusht", 5', '"recorded", 2').replace("3000, 64", "4, 32")
    write_lerobot(tmp_path / "recorded", "v2.1")
    monkeypatch.chdir(tmp_path)
    start = subprocess.run

    def run(words: list[str], **how: Any) -> Any:
        """Commands run in this process."""
        if words[0] != "lary":
            return start(words, **how)
        return SimpleNamespace(stdout=printed(*(SMALLER.get(word, word) for word in words[1:])))

    monkeypatch.setattr(subprocess, "run", run)
    for name in ("LARY_ROOT", "DATA_DIR", "LARY_LOG_DIR"):  # one of them sets these
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    exec(compile(code, notebook.name, "exec"), {"__name__": "__main__"})
    written = {"own_encoder": "report.html", "results": "scores.png", "train_lam": "curves.png"}
    assert written[notebook.stem] in {p.name for p in tmp_path.rglob("*.*")}


def test_the_sweeps_of_the_paper_have_a_run_per_published_number() -> None:
    published = {
        (row["model"], name)
        for table in ("leaderboard_classification", "leaderboard_regression", "leaderboard_vlabench_stride")
        for row in paper_rows(table)
        for name, value in row.items()
        if name in DATASETS.names() and value
    }
    runs = {(each.config.model, each.config.dataset) for each in read_plan(ROOT / "examples" / "paper.yaml")}
    assert published <= runs
    assert (len(runs), len(runs - published)) == (117, 18), "two encoders are in no table of the paper"
    ablations = read_plan(ROOT / "examples" / "ablations.yaml")
    assert {each.config.model for each in ablations} == {spec.name for spec in MODELS if spec.ablation}


def test_the_ablation_trains_every_model_that_its_sweep_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lary, "train_lam", lambda **options: made.append(f"lam:{options['out']}"))
    script = runpy.run_path(str(ROOT / "examples" / "ablation.py"), run_name="plugin")
    assert set(made) == set(read_yaml(ROOT / "examples" / "ablation.yaml", "sweep")["grid"]["model"])
    sizes = {"codebook_size": 64, "code_length": 49, "quant_dim": 256}
    for codes, loss in ((8, 0.5), (64, 0.25)):
        trained = {
            "options": {**sizes, "codebook_size": codes},
            "signals": {"loss_noise": loss, "codes_used": 4, "codes": 8},
        }
        metrics = {"seen_mse": {"value": loss}}
        result = {
            "task": "regression", "headline": "held_out", "primary": "seen_mse", "dataset": {"name": "calvin"},
            "model": {"training": trained}, "selections": {"held_out": {"metrics": metrics}},
        }  # fmt: skip
        write_json(tmp_path / "logs" / str(codes) / "result.json", result)
    rows = script["tables"](tmp_path / "logs")["codebook_size"]
    found = {"reconstruction_loss": 0.5, "codebook_utilization_percent": 50, "calvin_mse": 0.5}
    assert rows[0] == {**sizes, "codebook_size": 8, **found}
    assert [row["codebook_size"] for row in rows] == [8, 64]
    script["main"](tmp_path / "logs")
    assert (tmp_path / "ablation.png").is_file()
