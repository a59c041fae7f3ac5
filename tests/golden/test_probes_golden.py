"""Golden outputs of the probes and of all that is done with their results, made through commands alone.

The expected values are in ``probes.json``. Make them anew with ``LARY_GOLDEN_WRITE=1 pytest -n 0 tests/golden``: they
change only where a change of numbers is meant and written down. Numbers may differ by a part in ten thousand. Sentences
are kept there too, so that a change is seen, but compared by exit code, numbers and key words alone.
"""

from __future__ import annotations

import csv
import json
import re
import signal
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest

from tests.golden.probes_tools import Place, array_facts, check, differences, files_below, numbers_of, rows_of, rounded
from tests.tree import make_calvin, make_robot

DEMO = "--probe-preset demo"
CLASSIFY = f"classify --model pixels --dataset robot_1st {DEMO} --epochs 2"
DIFFERENCE = f"classify --model frame-difference --dataset robot_1st {DEMO} --epochs 2"
REGRESS = f"regress --model pixels --dataset calvin {DEMO}"
MLP, RIDGE = f"{REGRESS} --epochs 2", f"{REGRESS} --model-type ridge"
DIT = f"{REGRESS} --epochs 2 --model-type dit --sampler-steps 5"
TINY = f"regress --model pixels --dataset tiny {DEMO} --plugin ROOT/tiny.py"
PAPER = "--protocol paper"

PROBES = {
    "classify": CLASSIFY,
    "classify seeds": f"{CLASSIFY} --seeds 0,1",
    "classify static-pair": f"{CLASSIFY} --control static-pair",
    "classify shuffled-order": f"{CLASSIFY} --control shuffled-order",
    "classify shuffled-targets": f"{CLASSIFY} --control shuffled-targets",
    "classify project": f"{CLASSIFY} --project 8",
    "classify pool": f"{CLASSIFY} --pool mean --seed 3 --probe-batch-size 8",
    "classify differences": DIFFERENCE,
    "classify paper": f"{CLASSIFY} {PAPER}",
    "mlp": MLP,
    "mlp seeds": f"{MLP} --seeds 42,43",
    "mlp static-pair": f"{MLP} --control static-pair",
    "mlp shuffled-order": f"{MLP} --control shuffled-order",
    "mlp shuffled-targets": f"{MLP} --control shuffled-targets",
    "mlp project": f"{MLP} --project 8",
    "mlp pool": f"{MLP} --pool grid:2 --seed 1 --probe-batch-size 8",
    "mlp relative": f"{MLP} --action-mode relative",
    "mlp paper": f"{MLP} {PAPER}",
    "mlp unseen": f"{TINY} --epochs 2",
    "dit": DIT,
    "dit relative": f"{DIT} --action-mode relative",
    "dit paper": f"{DIT} {PAPER}",
    "ridge": RIDGE,
    "ridge local": f"{RIDGE} --action-mode relative --relative-frame local",
    "ridge seeds": f"{RIDGE} --seeds 0,1 --project 16",
    "ridge unseen": f"{TINY} --model-type ridge",
    "ridge paper": f"{RIDGE} {PAPER}",
}

TINY_DATASET = """
from dataclasses import replace
from lary.data.spec import DATASETS, Split, register_dataset

calvin = DATASETS.get("calvin")
register_dataset(replace(calvin, name="tiny", title="Tiny", integrity_group="", stride_series="", splits={
    "train": calvin.splits["train"], "val": calvin.splits["val"],
    "unseen": Split(calvin.splits["val"].root, table="calvin_metadata_val.csv")}, unseen="unseen"))
"""

SLOW_MODEL = """
import torch
from lary.models.spec import ModelSpec, Preprocess, register_model
from lary.types import Latents

@register_model(ModelSpec(name="mine", paradigm="baseline", dim=6, preprocess=Preprocess(size=16)))
class Mine:
    def __init__(self, spec, context):
        pass

    def encode(self, clips):
        tokens = torch.cat([clips.mean((3, 4)), clips.std((3, 4))], dim=-1)
        return Latents(tokens.unsqueeze(2))
"""

SWEEP = """
options: {probe_preset: demo, workers: 1, model_type: ridge}
grid:
  model: [pixels, frame-difference]
  dataset: [calvin]
runs:
  - {model: pixels, dataset: calvin, project: 4}
"""


@pytest.fixture(autouse=True)
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are written, but nothing is drawn on them: that takes seconds each."""
    monkeypatch.setattr(matplotlib.figure.Figure, "draw", lambda *_: None)


def make_place(root: Path, protocol: str = "corrected", data: Path | None = None) -> Place:
    """A tree with latents of two models, of one protocol."""
    if data is None:
        make_calvin(root, {"train": 10, "val": 7}, pairs=2)
        make_robot(root, {"train": 16, "val": 8})
    place = Place(root, data)
    (root / "tiny.py").write_text(TINY_DATASET)
    (root / "mine.py").write_text(SLOW_MODEL)
    for model, dataset in (("pixels", "calvin"), ("pixels", "robot_1st"), ("frame-difference", "robot_1st")):
        for split in ("train", "val"):
            words = f"extract --model {model} --dataset {dataset} --split {split} --workers 1 --protocol {protocol}"
            place(*words.split())
    return place


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("corrected"))
    tables = [word for split in ("train", "val") for word in ("--csv", f"ROOT/data/calvin_metadata_{split}.csv")]
    for frame in ("world", "local"):
        place("data", "relative", "--dataset", "calvin", "--input-root", "ROOT/data", "--frame", frame, *tables)
    for split in ("train", "val", "unseen"):
        words = f"extract --model pixels --dataset tiny --split {split} --workers 1 --plugin ROOT/tiny.py"
        (place.root / "data" / f"tiny_metadata_{split}.csv").write_bytes(
            (place.root / "data" / f"calvin_metadata_{'train' if split == 'train' else 'val'}.csv").read_bytes()
        )
        place(*words.split())
    return place


@pytest.fixture(scope="module")
def paper(corrected: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("paper"), "paper", corrected.data)


@pytest.mark.parametrize("name", PROBES)
def test_scores(name: str, corrected: Place, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    place = request.getfixturevalue("paper") if PAPER in PROBES[name] else corrected
    monkeypatch.setattr(place, "logs", place.root / "runs" / name.replace(" ", "_"))
    _, out, _ = place(*PROBES[name].split())
    assert len(place.runs()) == 1
    check(f"scores: {name}", place.runs())
    check(f"summary: {name}", numbers_of(out))
    before = (file := next(place.logs.rglob("result.json"))).stat().st_mtime_ns
    place(*PROBES[name].split())
    assert file.stat().st_mtime_ns == before, "a run that is done is not done again"
