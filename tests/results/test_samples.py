"""Attention maps and trajectories: where tokens are, which episodes are shown, and that they are those of the run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lary.configs import ClassifyConfig, ExtractConfig
from lary.data.spec import DATASETS
from lary.latents.ref import LatentsRef, open_latents
from lary.models.spec import MODELS
from lary.results.published import Chunks
from lary.results.samples import chosen_episodes, frames_of_steps, layout_of, rows_of_episode
from lary.runs.extract import extract
from lary.runs.probe import classify
from lary.types import LaryError, UsageError
from tests import fake_results as fake
from tests.helpers import fails, settings_of
from tests.tree import make_robot

MODEL = "frame-difference"


def chunks_of(errors: list[float]) -> Chunks:
    """Three samples per episode in no order, their predictions wrong by the given amounts."""
    order = [1, 2, 0]
    groups = tuple(f"ep_{index}" for index in range(len(errors)) for _ in order)
    media = tuple(f"images/ep/frame_{10 * place:06d}.png" for _ in errors for place in order)
    true = np.random.default_rng(0).normal(size=(len(groups), 5, 2)).astype(np.float32)
    wrong = np.repeat(errors, 3).astype(np.float32)[:, None, None]
    return Chunks(tuple(map(str, range(len(groups)))), groups, media, true + wrong, true)


def test_episodes_are_chosen_by_rank_and_their_samples_sorted_by_frame() -> None:
    chunks = chunks_of([0.5, 0.1, 0.9, 0.3, 0.7, 0.2])
    assert chosen_episodes(chunks, (), 3) == ["ep_5", "ep_0", "ep_2"]
    assert chosen_episodes(chunks, (), 50) == ["ep_1", "ep_5", "ep_3", "ep_0", "ep_4", "ep_2"]
    assert chosen_episodes(chunks, ("ep_4", "absent"), 3) == ["ep_4"]
    assert "few" not in chosen_episodes(replace(chunks, groups=(*chunks.groups[:-1], "few")), (), 50)
    assert rows_of_episode(chunks, "ep_0") == ([2, 0, 1], [0, 10, 20], True)
    assert rows_of_episode(replace(chunks, media=("a.png",) * 18), "ep_0") == ([0, 1, 2], [0, 5, 10], False)


def test_trajectories_of_the_episodes_that_are_asked_for(tmp_path: Path) -> None:
    """Their numbers are golden values."""
    fake.add_regression(tmp_path, "lapa", "calvin", 0.1, chunks=True)
    fake.add_regression(tmp_path, "dinov3", "calvin", 0.1)
    table, left_out = fake.analysed(tmp_path, "trajectories", "trajectories_calvin_lapa", count=2)
    units = DATASETS.get("calvin").actions.units
    assert {row["dimension"]: row["unit"] for row in table} == dict(zip(fake.DIMS, units, strict=True))
    assert "actions.npz does not exist: run the probe again with --overwrite" in left_out
    message = "--episode val/ep_99: no run was scored on such an episode"
    fails(UsageError, message, fake.analysed, tmp_path, "trajectories", episode=("val/ep_99",))


def test_frames_that_a_step_shows() -> None:
    for frames, steps, alone, shown in (
        (2, 2, False, "0 1"), (2, 1, False, "01"), (2, 1, True, "0"), (4, 3, False, "01 12 23"),
        (9, 5, False, "01 23 45 67 8"), (9, 4, False, "01 23 45 67"), (9, 3, True, "0 1234 5678"),
        (9, 1, False, "012345678"),
    ):  # fmt: skip
        assert frames_of_steps(frames, steps, alone) == tuple(tuple(map(int, step)) for step in shown.split())


@pytest.mark.parametrize("name", MODELS.names())
def test_tokens_of_every_model_have_a_layout(name: str) -> None:
    spec = MODELS.get(name)
    for shape, frames in ((spec.pair_shape, 2), (spec.clip_shape, 9)):
        layout = layout_of(shape, frames, spec)
        assert len(layout.steps) * layout.tokens == np.prod(shape[:-1])
        assert layout.side**2 in (0, layout.tokens)
        assert {frame for part in layout.steps for frame in part} == set(range(frames))
    if spec.grid is None:
        assert layout.side in (8, 14, 16), "patches are on a grid"
    if name == "vjepa2":
        flat = layout_of((980, 1024), 9, spec)
        assert (len(flat.steps), flat.tokens, flat.side, flat.steps[-1]) == (5, 196, 14, (8,))


@pytest.mark.usefixtures("no_figures")
def test_attention_is_that_of_the_reported_head(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    make_robot(tmp_path, {"train": 16, "val": 8})
    for name in ("train", "val"):
        extract(ExtractConfig(model=MODEL, dataset="robot_1st", split=name, workers=1), settings)
    run = classify(ClassifyConfig(model=MODEL, dataset="robot_1st", probe_preset="demo", epochs=2), settings)
    split = open_latents(settings, LatentsRef(model=MODEL, dataset="robot_1st", split="val"))
    stem = f"attention_robot_1st_{MODEL}"
    table, _ = fake.analysed(tmp_path, "attention", stem, sample=(split.table[5].id, split.table[2].media[-1]))
    facts = json.loads((tmp_path / "logs" / "analysis" / f"{stem}.json").read_text())
    assert [own["sample"] for own in facts["samples"]] == [split.table[5].id, split.table[2].id]
    assert [facts[name] for name in ("grid", "tokens_per_step")] + [len(table)] == [8, 64, 2 * 8 * 64]
    assert sum(float(row["weight"]) for row in table[: 8 * 64]) == pytest.approx(1, abs=1e-5)
    assert [table[63][name] for name in ("step", "token", "row", "column")] == ["0", "63", "7", "7"]
    case = (run.folder / "case.txt").read_text().splitlines()
    for row, own in zip((5, 2), facts["samples"], strict=True):
        assert case[row].split("\t") == [own["media"][-1], own["predicted"], own["true"]]
        assert own["frames"] == [f"frame {number}" for number in split.table[row].frame_index]
        assert (sum(own["share_of_steps"]), own["probability"] < 0.5) == (pytest.approx(1), True), "of 54 classes"
    (tmp_path / "data" / "classification" / "AgiBotWorld-Beta").rename(tmp_path / "elsewhere")
    table, _ = fake.analysed(tmp_path, "attention", stem, count=1)
    assert table[0]["sample"] == split.table[int(np.argsort(split.table.labels(), kind="stable")[4])].id, "of 8"
    message = f"no run was scored on such a sample. Did you mean {split.table[3].id}"
    fails(UsageError, message, fake.analysed, tmp_path, "all", sample=(split.table[3].id[:-1] + "x",))
    torch.save(torch.load(run.folder / "latest.pt", weights_only=True) | {"epoch": 9}, run.folder / "latest.pt")
    fails(LaryError, "is not the file that the run wrote", fake.analysed, tmp_path, "attention")
    (run.folder / "latest.pt").write_bytes(b"torn")
    fails(LaryError, "holds no head that can be used", fake.analysed, tmp_path, "attention")
