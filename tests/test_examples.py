"""The notebooks of `examples` run from top to bottom in a folder of their own."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lary.data.spec import DATASETS
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
    trained = read_plan(ROOT / "examples" / "ablation.yaml")
    names = {each.training.out.name for each in trained if each.training}
    assert names == {spec.name for spec in MODELS if spec.ablation}
    assert len(trained) == 3 * len(names)
