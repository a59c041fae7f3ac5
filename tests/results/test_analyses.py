"""Analyses of finished runs: the numbers by hand, the files, what is left out and why, and where tokens are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.configs import AnalyzeConfig, ClassifyConfig, ExtractConfig, RegressConfig
from lary.data.spec import DATASETS
from lary.latents.ref import LatentsRef, open_latents
from lary.models.spec import MODELS
from lary.probes.nets import QueryAttention, attend, load_head
from lary.results.analyses import make_analysis
from lary.results.analyses.attention import frames_of_steps, layout_of
from lary.results.analyses.base import Analysis
from lary.results.analyses.classes import Curve
from lary.results.analyses.trajectories import chosen_episodes, episode_of
from lary.results.published import Chunks, read_predicted, write_actions
from lary.results.record import FILE_NAME, DatasetFacts, write_result
from lary.results.summarise import classification_result, regression_result
from lary.runs.extract import extract
from lary.runs.probe import ProbeRun, classify, regress
from lary.settings import Settings
from lary.types import LaryError, UsageError
from tests import fake_results as fake
from tests.helpers import lary, rows_of, settings_of
from tests.tree import make_calvin, make_robot

SUFFIXES = (".png", ".svg", ".csv", ".json")
MODEL = "frame-difference"


def add_classification(
    root: Path, model: str, dataset: str, skill: float, *, seed: int = 0, train: Any = None, **more: Any
) -> Path:
    classes = DATASETS.get(dataset).labels.classes
    outcome = fake.class_outcome(skill, seed=seed, count=400, classes=classes)
    if train is not None:
        outcome = replace(outcome, train_counts=np.broadcast_to(train, len(classes)))
    facts = fake.facts(model, dataset, seed=seed, **{"preset": "paper", **more})
    facts = facts.model_copy(update={"dataset": DatasetFacts(name=dataset, title=DATASETS.get(dataset).title)})
    path = root / "logs" / "classification" / dataset / f"{model}_{seed}_{len(more)}" / FILE_NAME
    write_result(path, classification_result(outcome, facts))
    return path


def add_regression(root: Path, model: str, dataset: str, error: float, *, chunks: bool = False) -> None:
    spec = DATASETS.get(dataset)
    outcome = fake.action_outcome(error, unseen=False)
    facts = fake.facts(model, dataset, probe="mlp", action_mode="absolute", preset="paper")
    data = DatasetFacts(name=dataset, title=spec.title, stride=spec.stride, units=spec.actions.units)
    path = root / "logs" / "regression" / f"{dataset}_{model}" / FILE_NAME
    write_result(path, regression_result(outcome, facts.model_copy(update={"dataset": data})))
    if chunks:
        write_actions(path.parent, outcome)


def run(root: Path, kind: Any, stem: str = "", **options: Any) -> tuple[list[dict[str, str]], str]:
    """The table that an analysis wrote, and what it left out; four files of the stem are all that it writes."""
    found = make_analysis(kind, AnalyzeConfig(**options), settings_of(root))
    assert {file.name for file in found.files} == {f"{stem}{suffix}" for suffix in SUFFIXES}
    assert all(file.stat().st_size for file in found.files)
    return rows_of(root / "logs" / "analysis" / f"{stem}.csv"), "\n".join(found.left_out)


def test_frequency_orders_classes_and_averages_their_f1(tmp_path: Path) -> None:
    classes = DATASETS.get("libero").labels.classes
    train = np.arange(len(classes))[::-1] * 10  # the last class has no training sample
    add_classification(tmp_path, "siglip2", "libero", 2.0, train=train)
    table, _ = run(tmp_path, "frequency", "frequency_libero", window=5)
    assert [row["class"] for row in table] == list(classes)
    rising = table[::-1][1:]
    values = [float(row["f1"]) for row in rising]
    assert float(rising[2]["moving_average"]) == pytest.approx(np.mean(values[:5]))
    assert float(rising[10]["moving_average"]) == pytest.approx(np.mean(values[8:13]))
    assert rising[1]["moving_average"] == table[-1]["moving_average"] == ""
    with pytest.raises(UsageError, match="--window 400: libero has 27 classes"):
        run(tmp_path, "frequency", window=400)
    own = Curve("", (), np.empty(0), np.empty(0), np.array([5.0, 5, 7]), np.array([0.2, 0.4, 0.9]), None)
    np.testing.assert_allclose(own.drawn, [[5, 7], [0.3, 0.9]], err_msg="the average has one point per frequency")


def test_classes_that_are_all_equally_frequent_are_drawn_by_name(tmp_path: Path) -> None:
    for model, skill in (("siglip2", 2.0), ("dinov3", 4.0)):
        add_classification(tmp_path, model, "libero", skill, train=7)
    table, left_out = run(tmp_path, "frequency", "frequency_libero")
    assert not left_out
    assert {(row["train"], row["moving_average"]) for row in table} == {("7", "")}
    picture = (tmp_path / "logs" / "analysis" / "frequency_libero.svg").read_text()
    values: dict[str, list[float]] = {}
    for row in table:
        values.setdefault(row["class"], []).append(float(row["f1"]))
    order = [picture.index(f">{name}<") for name in sorted(values, key=lambda name: (np.mean(values[name]), name))]
    assert order == sorted(order)
    assert "each with 7 training samples" in picture


def test_gap_is_f1_of_people_minus_f1_of_robots_on_shared_classes(tmp_path: Path) -> None:
    runs = {
        (model, data): add_classification(tmp_path, model, data, skill, seed=seed)
        for model, seed in (("lapa", 1), ("dinov3", 2))
        for data, skill in (("human_1st", 4.0), ("robot_1st", 1.0))
    }
    add_classification(tmp_path, "vjepa2", "human_1st", 3.0)
    table, left_out = run(tmp_path, "gap", "gap_human_1st_robot_1st")
    assert left_out == "gap: vjepa2 has a run on one of the two data sets only"
    human, robot = (set(DATASETS.get(name).labels.classes) for name in ("human_1st", "robot_1st"))
    assert {row["class"] for row in table} <= human & robot
    truth = {
        key: {row["name"]: row["f1"] for row in json.loads(path.read_text())["classes"]} for key, path in runs.items()
    }
    shown = [row for row in table if row["gap"]]
    for row in shown:
        wanted = [truth[row["model"], side][row["class"]] for side in ("human_1st", "robot_1st")]
        assert float(row["gap"]) == pytest.approx(wanted[0] - wanted[1])
    facts = json.loads((tmp_path / "logs" / "analysis" / "gap_human_1st_robot_1st.json").read_text())
    mean = np.mean([float(row["gap"]) for row in shown if row["model"] == "lapa"])
    assert facts["mean_gap"]["lapa"] == pytest.approx(mean)
    assert mean > 0.2


def test_stride_takes_data_sets_of_one_series_beside_the_paper(tmp_path: Path) -> None:
    for dataset, error in (("vlabench", 0.1), ("vlabench_15", 0.2), ("vlabench_30", 0.4)):
        add_regression(tmp_path, "dinov3", dataset, error)
    add_regression(tmp_path, "lapa", "vlabench", 0.5)
    table, _ = run(tmp_path, "stride", "stride_VLABench")
    assert [(row["model"], float(row["value"]), float(row["published"])) for row in table] == [
        ("dinov3", 5, 0.25), ("dinov3", 15, 0.20), ("dinov3", 30, 0.26)
    ]  # fmt: skip
    assert float(table[0]["low"]) < float(table[0]["score"]) < float(table[0]["high"])
    models = ("lapa", "dinov2", "siglip2", "flux2", "vjepa2")
    for model in models:
        for dataset in ("vlabench", "vlabench_30"):
            add_regression(tmp_path, model, dataset, 0.3)
    run(tmp_path, "stride", "stride_VLABench")
    picture = (tmp_path / "logs" / "analysis" / "stride_VLABench.svg").read_text()
    assert all(f">{model}<" in picture for model in models), "every model has a panel"


def test_codebook_holds_all_settings_but_one(tmp_path: Path) -> None:
    for codebook, length, width in ((8, 49, 256), (64, 49, 256), (64, 16, 256), (32, 4, 16)):
        add_classification(tmp_path, f"dinov3-cs{codebook}_sl{length}_dim{width}_lr1e-4", "robot_1st", 2.0)
    add_classification(tmp_path, "dinov3", "robot_1st", 2.0)
    diagnosis = tmp_path / "logs" / "diagnostics" / "robot_1st" / "val" / "dinov3-cs64_sl49_dim256_lr1e-4.json"
    diagnosis.parent.mkdir(parents=True)
    diagnosis.write_text('{"codes": {"used": 48, "size": 64}}')
    table, _ = run(tmp_path, "codebook", "codebook_robot_1st")
    assert [(row["setting"], float(row["value"]), round(float(row["published"]), 4)) for row in table] == [
        ("codebook size", 8, 0.6489), ("codebook size", 64, 0.6404),
        ("sequence length", 16, 0.6333), ("sequence length", 49, 0.6404),
    ]  # fmt: skip
    assert [row["codes_used"] for row in table] == ["", "0.75", "", "0.75"]


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
    own = episode_of(chunks, "ep_0")
    assert (own.starts.tolist(), own.ids) == ([0, 10, 20], ("2", "0", "1"))
    unnumbered = replace(chunks, media=("a.png",) * 18)
    assert episode_of(unnumbered, "ep_0").starts.tolist() == [0, 5, 10]


def test_trajectories_are_in_physical_units(tmp_path: Path) -> None:
    add_regression(tmp_path, "lapa", "calvin", 0.1, chunks=True)
    add_regression(tmp_path, "dinov3", "calvin", 0.1)
    table, left_out = run(tmp_path, "trajectories", "trajectories_calvin_lapa", count=2)
    assert "actions.npz does not exist: run the probe again with --overwrite" in left_out
    outcome = fake.action_outcome(0.1, unseen=False).splits["seen"]
    row = outcome.samples.ids.index(table[0]["sample"])
    assert {row["unit"] for row in table} == {"m", "rad", ""}
    truth = outcome.targets[row] * outcome.std[row] + outcome.mean[row]
    own = [float(each["true"]) for each in table if each["sample"] == table[0]["sample"]]
    np.testing.assert_allclose(own, truth.ravel(), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="--episode val/ep_99: no run was scored on such an episode"):
        run(tmp_path, "trajectories", episode=("val/ep_99",))


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
    square = layout_of((8, 16, 4), 9, spec, square=True)
    assert (square.side, square.tokens) == (4, 16)
    if name == "vjepa2":
        flat = layout_of((980, 1024), 9, spec)
        assert (len(flat.steps), flat.tokens, flat.side, flat.steps[-1]) == (5, 196, 14, (8,))
    if name == "villa-x":
        with pytest.raises(UsageError, match="--square: 2 tokens per step of 'villa-x' make no square"):
            layout_of((8, 2, 32), 9, spec, square=True)


def test_attention_weights_are_those_of_the_pooling() -> None:
    torch.manual_seed(0)
    block = QueryAttention(12, 3)
    queries, tokens = torch.randn(2, 1, 12), torch.randn(2, 7, 12)
    weights = block.weights(queries, tokens)
    assert weights.shape == (2, 3, 1, 7)
    values = block.kv(tokens)[..., 12:].reshape(2, 7, 3, 4).transpose(1, 2)
    pooled = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(pooled, block(queries, tokens))


def test_all_makes_what_the_runs_allow_and_says_the_rest(tmp_path: Path) -> None:
    add_classification(tmp_path, "lapa", "libero", 2.0)
    add_regression(tmp_path, "lapa", "calvin", 0.1, chunks=True)
    add_classification(tmp_path, "lapa", "libero", 9.0, control="shuffled-targets")
    asked = ("analyze", "--out", tmp_path / "out", "--count=1")
    done = lary(*asked, root=tmp_path)
    assert done.code == 0
    for kind in ("gap", "stride", "codebook", "attention"):
        assert f"left out: {kind}: " in done.out
    first = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    stems = ("frequency_libero", "trajectories_calvin_lapa")
    assert set(first) == {f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES}
    table = rows_of(tmp_path / "out" / "frequency_libero.csv")
    assert max(float(row["f1"]) for row in table) < 0.99, "controls are left out"
    lary(*asked, root=tmp_path)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == first


def test_wrong_requests_name_the_remedy(tmp_path: Path) -> None:
    def refused(kind: str, message: str, **options: Any) -> None:
        with pytest.raises(LaryError, match=message):
            run(tmp_path, kind, **options)

    refused("all", "There is no folder")
    (tmp_path / "logs").mkdir()
    refused("all", r"no finished run below .*: run 'lary classify' or 'lary regress' first")
    add_regression(tmp_path, "dinov3", "vlabench", 0.1)
    refused("stride", "no model has finished runs at two strides")
    refused("codebook", "no finished run of an ablated model")
    refused("stride", r"--model dinov: no run below .* has it\. Did you mean dinov3", model=("dinov",))
    refused("trajectories", "--count 0: must be at least 1", count=0)
    refused("frequency", "frequency: there is no finished classification run: run 'lary classify'")
    refused("all", "No analysis can be made of these runs:\n  frequency: ")
    add_regression(tmp_path, "dinov3-cs8_sl49_dim256_lr1e-4", "vlabench", 0.1)
    refused("codebook", "no two runs on vlabench differ in one setting alone")
    add_classification(tmp_path, "lapa", "human_1st", 3.0)
    add_classification(tmp_path, "lapa", "robot_1st", 3.0, preset="demo")
    refused("gap", "no model has finished runs on both human_1st and robot_1st")
    refused("gap", "are both human_1st", robot="human_1st")
    refused("gap", "Did you mean human_1st", human="human_first")


# --- probes that were trained here ------------------------------------------------------------------------------------


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
def analysed(place: Settings, tmp_path: Path) -> Callable[..., Analysis]:
    return lambda kind, **options: make_analysis(kind, AnalyzeConfig(out=tmp_path, **options), place)


def test_attention_is_that_of_the_reported_head(
    place: Settings, classified: ProbeRun, analysed: Callable[..., Analysis], tmp_path: Path
) -> None:
    split = open_latents(place, LatentsRef(model=MODEL, dataset="robot_1st", split="val"))
    found = analysed("attention", sample=(split.table[5].id, split.table[2].media[-1]))
    stem = f"attention_robot_1st_{MODEL}"
    assert {file.name for file in found.files} == {f"{stem}{suffix}" for suffix in SUFFIXES}
    facts = json.loads((tmp_path / f"{stem}.json").read_text())
    assert [own["sample"] for own in facts["samples"]] == [split.table[5].id, split.table[2].id]
    assert (facts["grid"], facts["tokens_per_step"], facts["frames_of_steps"][0]) == (8, 64, [0, 1])
    table = rows_of(tmp_path / f"{stem}.csv")
    assert len(table) == 2 * 8 * 64
    assert sum(float(row["weight"]) for row in table[: 8 * 64]) == pytest.approx(1, abs=1e-5)
    case = (classified.folder / "case.txt").read_text().splitlines()
    for row, own in zip((5, 2), facts["samples"], strict=True):
        assert case[row].split("\t") == [own["media"][-1], own["predicted"], own["true"]]
    assert [table[63][name] for name in ("step", "token", "row", "column")] == ["0", "63", "7", "7"]
    head = load_head(classified.folder / "latest.pt", len(DATASETS.get("robot_1st").labels.classes))
    (_, both), (_, one) = (attend(head, split.source, rows) for rows in ([1, 4], [4]))
    np.testing.assert_allclose(both[1], one[0], atol=1e-6, err_msg="it depends on the batch")
    first = {file.name: file.read_bytes() for file in found.files}
    analysed("attention", sample=(split.table[5].id, split.table[2].media[-1]))
    assert {file.name: file.read_bytes() for file in found.files} == first


def test_attention_without_frames_or_checkpoint(
    place: Settings, classified: ProbeRun, analysed: Callable[..., Analysis]
) -> None:
    data = place.path("DATA_DIR") / "classification" / "AgiBotWorld-Beta"
    data.rename(data.with_name("elsewhere"))
    try:
        assert analysed("attention", count=1).files
    finally:
        data.with_name("elsewhere").rename(data)
    checkpoint = classified.folder / "latest.pt"
    kept = checkpoint.read_bytes()
    try:
        checkpoint.write_bytes(kept[:100])
        with pytest.raises(LaryError, match="holds no head that can be used"):
            analysed("attention")
        checkpoint.unlink()
        with pytest.raises(LaryError, match=r"latest\.pt does not exist: run the probe again with --overwrite"):
            analysed("attention")
    finally:
        checkpoint.write_bytes(kept)


@pytest.mark.usefixtures("classified")
def test_a_sample_that_is_not_there_gets_a_suggestion(place: Settings, analysed: Callable[..., Analysis]) -> None:
    known = open_latents(place, LatentsRef(model=MODEL, dataset="robot_1st", split="val")).table[3].id
    with pytest.raises(UsageError, match=f"no run was scored on such a sample. Did you mean {known}"):
        analysed("all", sample=(known[:-1] + "x",))
    with pytest.raises(UsageError, match="One that is there: "):
        analysed("attention", sample=("?",))


@pytest.mark.usefixtures("no_figures")
def test_chunks_of_a_run_are_the_actions_on_disk(place: Settings, analysed: Callable[..., Analysis]) -> None:
    done = regress(RegressConfig(model=MODEL, dataset="calvin", probe_preset="demo", model_type="ridge"), place)
    chunks = read_predicted(done.folder, done.result)
    table = open_latents(place, LatentsRef(model=MODEL, dataset="calvin", split="val")).table
    for row in range(len(table)):
        np.testing.assert_allclose(chunks.true[row], np.load(table.action_path(row)), rtol=1e-4, atol=1e-5)
    found = analysed("trajectories", episode=("ep_3",))
    facts = json.loads(next(file for file in found.files if file.suffix == ".json").read_text())
    assert facts["model"] == f"{MODEL} (ridge probe)"
    with pytest.raises(UsageError, match=r"--episode ep_33: no run .* Did you mean ep_3"):
        analysed("trajectories", episode=("ep_33",))
    (done.folder / "actions.npz").write_bytes(b"torn")
    with pytest.raises(LaryError, match="digest differs"):
        analysed("trajectories")
