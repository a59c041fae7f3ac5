"""The notebooks of `examples` run from top to bottom in a process and a folder of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lary.data.spec import DATASETS
from lary.models.overview import paper_rows
from lary.models.spec import MODELS
from lary.runs.sweep import read_plan

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="the simulator is part of the extra 'demo'")
    cells = json.loads(notebook.read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code = code.replace('"120", "--clips", "24"', '"24", "--clips", "12"')  # smaller: it is about the code
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"own_encoder": "report.html", "results": "scores.png"}[notebook.stem] in {
        p.name for p in tmp_path.rglob("*.*")
    }


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
