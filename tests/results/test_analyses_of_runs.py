"""Attention maps and trajectories of probes that were trained here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.configs import AnalyzeConfig, ClassifyConfig, ExtractConfig, RegressConfig
from lary.data.spec import DATASETS
from lary.latents.ref import LatentsRef, open_latents
from lary.probes.attention import attend, load_head
from lary.results import figures
from lary.results.analyses import make_analysis
from lary.results.analyses.base import Analysis
from lary.results.published import read_actions
from lary.runs.extract import extract
from lary.runs.probe import ProbeRun, classify, regress
from lary.settings import Settings, load_settings
from lary.types import LaryError, UsageError
from tests.tree import make_calvin, make_robot

MODEL = "frame-difference"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a tree with latents of pairs and clips."""
    root = tmp_path_factory.mktemp("analyses")
    make_calvin(root, {"train": 8, "val": 6})
    make_robot(root, {"train": 16, "val": 8})
    given = {"LARY_ROOT": "", "DATA_DIR": "data", "LARY_LA_DIR": "latents", "LARY_LOG_DIR": "logs"}
    settings = load_settings({name: str(root / folder) for name, folder in given.items()}, environment={})
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            extract(ExtractConfig(model=MODEL, dataset=dataset, split=split, workers=1), settings)
    return settings


@pytest.fixture(scope="module")
def classified(place: Settings) -> ProbeRun:
    return classify(ClassifyConfig(model=MODEL, dataset="robot_1st", probe_preset="demo", epochs=2), place)


def run(place: Settings, out: Path, kind: Any, **options: Any) -> Analysis:
    return make_analysis(kind, AnalyzeConfig(out=out, **options), place)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_attention_is_that_of_the_reported_head(place: Settings, classified: ProbeRun, tmp_path: Path) -> None:
    split = open_latents(place, LatentsRef(model=MODEL, dataset="robot_1st", split="val"))
    wanted = [split.table[5].id, split.table[2].media[-1]]
    found = run(place, tmp_path, "attention", sample=tuple(wanted))
    stem = f"attention_robot_1st_{MODEL}"
    assert {file.name for file in found.files} == {f"{stem}{suffix}" for suffix in (".png", ".svg", ".csv", ".json")}
    facts = json.loads((tmp_path / f"{stem}.json").read_text())
    assert [own["sample"] for own in facts["samples"]] == [split.table[5].id, split.table[2].id]
    assert (facts["grid"], facts["tokens_per_step"]) == (8, 64)
    assert facts["frames_of_steps"][0] == [0, 1]
    table = rows_of(tmp_path / f"{stem}.csv")
    assert len(table) == 2 * 8 * 64
    for own in wanted[:1]:
        assert sum(float(row["weight"]) for row in table if row["sample"] == own) == pytest.approx(1, abs=1e-5)
    case = (classified.folder / "case.txt").read_text().splitlines()
    for row, own in zip((5, 2), facts["samples"], strict=True):
        assert case[row].split("\t") == [own["media"][-1], own["predicted"], own["true"]]
    last = table[63]
    assert (last["step"], last["token"], last["row"], last["column"]) == ("0", "63", "7", "7")


def test_attention_does_not_depend_on_the_batch(place: Settings, classified: ProbeRun) -> None:
    split = open_latents(place, LatentsRef(model=MODEL, dataset="robot_1st", split="val"))
    head = load_head(classified.folder, len(DATASETS.get("robot_1st").labels.classes))
    both, one = attend(head, split.source, [1, 4]), attend(head, split.source, [4])
    np.testing.assert_allclose(both.weights[1], one.weights[0], atol=1e-6)
    assert both.weights.shape == (2, 8 * 64)


def test_the_same_runs_give_the_same_bytes(place: Settings, classified: ProbeRun, tmp_path: Path) -> None:
    for part in ("one", "two"):
        run(place, tmp_path / part, "attention", count=1)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_attention_without_frames_or_checkpoint(
    place: Settings, classified: ProbeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = place.path("DATA_DIR") / "classification" / "AgiBotWorld-Beta"
    data.rename(data.with_name("elsewhere"))
    try:
        assert run(place, tmp_path, "attention", count=1).files
    finally:
        data.with_name("elsewhere").rename(data)
    checkpoint = classified.folder / "latest.pt"
    kept = checkpoint.read_bytes()
    try:
        checkpoint.write_bytes(kept[:100])
        with pytest.raises(LaryError, match="holds no head that can be used"):
            run(place, tmp_path, "attention")
        checkpoint.unlink()
        with pytest.raises(LaryError, match=r"latest\.pt does not exist: run the probe again with --overwrite"):
            run(place, tmp_path, "attention")
    finally:
        checkpoint.write_bytes(kept)


def test_a_sample_that_is_not_there_gets_a_suggestion(place: Settings, classified: ProbeRun, tmp_path: Path) -> None:
    known = open_latents(place, LatentsRef(model=MODEL, dataset="robot_1st", split="val")).table[3].id
    with pytest.raises(UsageError, match=f"no run was scored on such a sample. Did you mean {known}"):
        run(place, tmp_path, "all", sample=(known[:-1] + "x",))
    with pytest.raises(UsageError, match="One that is there: "):
        run(place, tmp_path, "attention", sample=("?",))


def test_chunks_of_a_run_are_the_actions_on_disk(
    place: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "trajectory_figure", lambda *_: b"")
    monkeypatch.setattr(figures, "trajectory_book", lambda *_: b"")
    done = regress(RegressConfig(model=MODEL, dataset="calvin", probe_preset="demo", model_type="ridge"), place)
    assert "actions.npz" in done.result.files
    chunks = read_actions(done.folder, done.result)
    table = open_latents(place, LatentsRef(model=MODEL, dataset="calvin", split="val")).table
    for row, sample in enumerate(table):
        np.testing.assert_allclose(chunks.true[row], np.load(table.action_path(sample)), rtol=1e-4, atol=1e-5)
    found = run(place, tmp_path, "trajectories", episode=("ep_3",))
    assert len(found.files) == 4
    facts = json.loads(next(file for file in found.files if file.suffix == ".json").read_text())
    with pytest.raises(UsageError, match=r"--episode ep_33: no run .* Did you mean ep_3"):
        run(place, tmp_path, "trajectories", episode=("ep_33",))
    assert facts["model"] == f"{MODEL} (ridge probe)"
    (done.folder / "actions.npz").write_bytes(b"torn")
    with pytest.raises(LaryError, match="digest differs"):
        run(place, tmp_path, "trajectories")
