"""Typical mistakes of users: each is answered in one sentence that says what to do next."""

import re
from pathlib import Path

import pytest

from tests.helpers import lary
from tests.hostile.harness import write_zip
from tests.lerobot_files import write_lerobot
from tests.tree import make_calvin

OWN = """import torch
from lary import ModelSpec, Preprocess, Weights, register_model
@register_model(ModelSpec(name="NAME", paradigm="lam", dim=8, preprocess=Preprocess(size=32), MORE))
class Own:
    def __init__(self, spec, context): ...
    def encode(self, clips): return BODY
"""
AT_ROOT = ("extract", "run", "regress", "classify", "data")
EXTRACT = "extract --dataset calvin --split val --workers 1 --overwrite --model"
RUN = "run --dataset calvin --probe-preset demo --workers 1 --model"
MISTAKES = {
    f"{EXTRACT} dinov2-orign": "Did you mean dinov2-origin",
    f"{EXTRACT} pixels --device cuda": "use --device auto",
    f"{EXTRACT} pixels --plugin none.py": "correct its path",
    f"{EXTRACT} hf:/nowhere/vit": "Or correct the name after hf:",
    f"{EXTRACT} own0 --plugin own0.py": "Set OWN_PATH to them",
    f"{EXTRACT} own1 --plugin own1.py": "line 6: RuntimeError: bad.",
    f"{EXTRACT} own2 --plugin own2.py": "latent dimension 16, its record says 8. Correct",
    f"{EXTRACT} own3 --plugin own3.py": "not finite",
    f"{EXTRACT} pixels --plugin own4.py": "choose another name",
    f"{RUN} pixels --model-type ridge --epochs 3": "leave it out, or take the probe dit",
    "regress --model pixels --dataset calvin": "Run 'lary extract --model pixels --dataset calvin --split train' first",
    "check-model own0.py": "own0.py:NAME",
    "config set DATADIR x": "Did you mean DATA_DIR?",
    "sweep bad.yaml": "line 1",
    "sweep keys.yaml": "keys options, grid, runs, train or plugins, and no others",
    "sweep word.yaml": "Did you mean epochs?",
    "data import-lerobot nowhere --name q": "no folder nowhere, and it is no data set on the hub, which are called",
    "data import-lerobot data --name q": "name the folder above meta/",
    "data import-lerobot arm --name q --camera observation.images.top": "Did you mean",
    "data import-lerobot arm --name q --stride 500": "lower --stride",
    "table data --format tex": 'Did you mean "latex"',
    "table data": "run 'lary classify' or 'lary regress' first",
}
TABLES = {
    "src_img>image": "it has: dataset, type",
    ",>;": "Separate cells by commas",
    "(?s)\n.*>\n": "it needs a line of column names, and rows",
    "images/>img/": "Check DATA_DIR",
    "SHEET": "save it as CSV in UTF-8",
}
"""Changes of a table, as pattern and replacement."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_calvin(tmp_path_factory.mktemp("mistakes"), {"train": 2, "val": 1})
    write_lerobot(folder / "arm", "v3.0")
    bodies = "None", "exec('raise RuntimeError(\"bad\")')", "torch.zeros(len(clips), 1, 4, 16)"
    for number, body in enumerate((*bodies, "torch.full((len(clips), 1, 4, 8), torch.nan)", "None")):
        name = f"own{number}" if number < 4 else "pixels"
        more = "" if number else "weights=Weights(variable='OWN_PATH')"
        text = OWN.replace("NAME", name).replace("MORE", more).replace("BODY", body)
        (folder / f"own{number}.py").write_text(text)
    (folder / "bad.yaml").write_text("grid: [model: {")
    (folder / "keys.yaml").write_text("grids: {model: [pixels]}")
    (folder / "word.yaml").write_text("runs: [{model: pixels, dataset: calvin, epoch: 3}]")
    return folder


@pytest.mark.parametrize("words", [*MISTAKES, *TABLES])
def test_the_answer_names_the_next_step(root: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = root / "data" / "calvin_metadata_val.csv"
    kept = table.read_text()
    if words == "SHEET":
        write_zip(table, {"xl/sheet.xml": b"<sheet/>"})
    elif words in TABLES:
        table.write_text(re.sub(*words.split(">"), kept))
    typed = f"{EXTRACT} random-vit" if words in TABLES else words
    done = lary(*typed.split(), root=root if typed.split()[0] in AT_ROOT else None)
    table.write_text(kept)
    assert (done.code in (1, 2), "Traceback" in done.err) == (True, False)
    assert (MISTAKES | TABLES)[words] in re.sub(r"[\s│]+", " ", done.err)  # without the frame of the command line
