"""Attention maps and trajectories: where tokens are, which episodes are shown, and that they are those of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lary.configs import AnalyzeConfig, ClassifyConfig, ExtractConfig, RegressConfig
from lary.data.spec import DATASETS
from lary.latents.ref import LatentsRef, open_latents
from lary.models.spec import MODELS
from lary.probes.nets import QueryAttention, attend, load_head
from lary.results.analyses import make_analysis
from lary.results.figures import Analysis
from lary.results.folder import FinishedRun
from lary.results.published import Chunks, read_predicted
from lary.results.samples import chosen_episodes, frames_of_steps, layout_of, rows_of_episode
from lary.runs.extract import extract
from lary.runs.probe import ProbeRun, classify, regress
from lary.settings import Settings
from lary.types import LaryError, UsageError
from tests import fake_results as fake
from tests.helpers import rows_of, settings_of
from tests.tree import make_calvin, make_robot

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
    assert rows_of_episode(chunks, "ep_0") == ([2, 0, 1], [0, 10, 20], True)
    assert rows_of_episode(replace(chunks, media=("a.png",) * 18), "ep_0") == ([0, 1, 2], [0, 5, 10], False)


def test_trajectories_are_in_physical_units(tmp_path: Path) -> None:
    fake.add_regression(tmp_path, "lapa", "calvin", 0.1, chunks=True)
    fake.add_regression(tmp_path, "dinov3", "calvin", 0.1)
    table, left_out = fake.analysed(tmp_path, "trajectories", "trajectories_calvin_lapa", count=2)
    assert "actions.npz does not exist: run the probe again with --overwrite" in left_out
    outcome = fake.action_outcome(0.1, unseen=False).splits["seen"]
    row = outcome.samples.ids.index(table[0]["sample"])
    assert {row["unit"] for row in table} == {"m", "rad", ""}
    truth = outcome.targets[row] * outcome.std[row] + outcome.mean[row]
    own = [float(each["true"]) for each in table if each["sample"] == table[0]["sample"]]
    np.testing.assert_allclose(own, truth.ravel(), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="--episode val/ep_99: no run was scored on such an episode"):
        fake.analysed(tmp_path, "trajectories", episode=("val/ep_99",))


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


def test_attention_weights_are_those_of_the_pooling() -> None:
    torch.manual_seed(0)
    block = QueryAttention(12, 3)
    queries, tokens = torch.randn(2, 1, 12), torch.randn(2, 7, 12)
    weights = block.weights(queries, tokens)
    assert weights.shape == (2, 3, 1, 7)
    values = block.kv(tokens)[..., 12:].reshape(2, 7, 3, 4).transpose(1, 2)
    pooled = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(pooled, block(queries, tokens))


# --- probes that were trained here ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a tree with latents of pairs and clips."""
    root = tmp_path_factory.mktemp("analyses")
    make_calvin(root, {"train": 8, "val": 6})
    make_robot(root, {"train": 16, "val": 8})
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            extract(ExtractConfig(model=MODEL, dataset=dataset, split=split, workers=1), settings_of(root))
    return settings_of(root)


@pytest.fixture(scope="module")
def classified(place: Settings) -> ProbeRun:
    return classify(ClassifyConfig(model=MODEL, dataset="robot_1st", probe_preset="demo", epochs=2), place)


@pytest.fixture
def make(place: Settings, tmp_path: Path) -> Callable[..., Analysis]:
    return lambda kind, **options: make_analysis(kind, AnalyzeConfig(out=tmp_path, **options), place)


def test_attention_is_that_of_the_reported_head(
    place: Settings, classified: ProbeRun, make: Callable[..., Analysis], tmp_path: Path
) -> None:
    split = open_latents(place, LatentsRef(model=MODEL, dataset="robot_1st", split="val"))
    found = make("attention", sample=(split.table[5].id, split.table[2].media[-1]))
    stem = f"attention_robot_1st_{MODEL}"
    facts = json.loads((tmp_path / f"{stem}.json").read_text())
    assert [own["sample"] for own in facts["samples"]] == [split.table[5].id, split.table[2].id]
    assert (facts["grid"], facts["tokens_per_step"], facts["frames_of_steps"][0]) == (8, 64, [0, 1])
    table = rows_of(tmp_path / f"{stem}.csv")
    assert len(table) == 2 * 8 * 64
    assert sum(float(row["weight"]) for row in table[: 8 * 64]) == pytest.approx(1, abs=1e-5)
    assert [table[63][name] for name in ("step", "token", "row", "column")] == ["0", "63", "7", "7"]
    case = (classified.folder / "case.txt").read_text().splitlines()
    for row, own in zip((5, 2), facts["samples"], strict=True):
        assert case[row].split("\t") == [own["media"][-1], own["predicted"], own["true"]]
    head = load_head(classified.folder / "latest.pt", len(DATASETS.get("robot_1st").labels.classes))
    (_, both), (_, one) = (attend(head, split.source, rows) for rows in ([1, 4], [4]))
    np.testing.assert_allclose(both[1], one[0], atol=1e-6, err_msg="it depends on the batch")
    first = {file.name: file.read_bytes() for file in found.files}
    make("attention", sample=(split.table[5].id, split.table[2].media[-1]))
    assert {file.name: file.read_bytes() for file in found.files} == first
    with pytest.raises(UsageError, match=f"no run was scored on such a sample. Did you mean {split.table[3].id}"):
        make("all", sample=(split.table[3].id[:-1] + "x",))


def test_attention_without_frames_or_checkpoint(
    place: Settings, classified: ProbeRun, make: Callable[..., Analysis]
) -> None:
    data = place.path("DATA_DIR") / "classification" / "AgiBotWorld-Beta"
    data.rename(data.with_name("elsewhere"))
    try:
        assert make("attention", count=1).files
    finally:
        data.with_name("elsewhere").rename(data)
    checkpoint = classified.folder / "latest.pt"
    kept = checkpoint.read_bytes()
    try:
        checkpoint.write_bytes(kept[:100])
        with pytest.raises(LaryError, match="holds no head that can be used"):
            make("attention")
        checkpoint.unlink()
        with pytest.raises(LaryError, match=r"latest\.pt does not exist: run the probe again with --overwrite"):
            make("attention")
    finally:
        checkpoint.write_bytes(kept)


@pytest.mark.usefixtures("no_figures")
def test_chunks_of_a_run_are_the_actions_on_disk(place: Settings, make: Callable[..., Analysis]) -> None:
    done = regress(RegressConfig(model=MODEL, dataset="calvin", probe_preset="demo", model_type="ridge"), place)
    chunks = read_predicted(FinishedRun(done.folder, done.result))
    table = open_latents(place, LatentsRef(model=MODEL, dataset="calvin", split="val")).table
    for row in range(len(table)):
        np.testing.assert_allclose(chunks.true[row], np.load(table.action_path(row)), rtol=1e-4, atol=1e-5)
    found = make("trajectories", episode=("ep_3",))
    facts = json.loads(next(file for file in found.files if file.suffix == ".json").read_text())
    assert facts["model"] == f"{MODEL} (ridge probe)"
    with pytest.raises(UsageError, match=r"--episode ep_33: no run .* Did you mean ep_3"):
        make("trajectories", episode=("ep_33",))
    (done.folder / "actions.npz").write_bytes(b"torn")
    with pytest.raises(LaryError, match="digest differs"):
        make("trajectories")
