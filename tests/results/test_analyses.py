"""Analyses of finished runs: the numbers by hand, the files, what is left out and why, and how tokens lie."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.configs import AnalyzeConfig
from lary.data.spec import DATASETS
from lary.models.spec import MODELS
from lary.probes.attention import attention_weights
from lary.probes.nets import QueryAttention
from lary.results import figures
from lary.results.analyses import make_analysis
from lary.results.analyses.attention import frames_of_steps, layout_of
from lary.results.analyses.base import fitted
from lary.results.analyses.classes import Curve
from lary.results.analyses.trajectories import chosen_episodes, episode_of
from lary.results.published import Chunks, write_actions
from lary.results.record import FILE_NAME, DatasetFacts, write_result
from lary.results.summarise import classification_result, regression_result
from lary.types import LaryError, UsageError
from tests import fake_results as fake
from tests.helpers import lary, settings_of

SUFFIXES = (".png", ".svg", ".csv", ".json")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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


def add_regression(root: Path, model: str, dataset: str, error: float, *, chunks: bool = False, **more: Any) -> Path:
    spec = DATASETS.get(dataset)
    outcome = fake.action_outcome(error, unseen=False)
    facts = fake.facts(model, dataset, probe="mlp", action_mode="absolute", **{"preset": "paper", **more})
    data = DatasetFacts(name=dataset, title=spec.title, stride=spec.stride, units=spec.actions.units)
    path = root / "logs" / "regression" / f"{dataset}_{model}" / FILE_NAME
    write_result(path, regression_result(outcome, facts.model_copy(update={"dataset": data})))
    if chunks:
        write_actions(path.parent, outcome)
    return path


def run(root: Path, kind: Any, **options: Any) -> tuple[set[str], str]:
    """Names of the files that an analysis wrote, and what it left out."""
    found = make_analysis(kind, AnalyzeConfig(**options), settings_of(root))
    assert all(file.stat().st_size for file in found.files)
    return {file.name for file in found.files}, "\n".join(found.left_out)


# --- frequency --------------------------------------------------------------------------------------------------------


def test_frequency_orders_classes_and_averages_their_f1(tmp_path: Path) -> None:
    classes = DATASETS.get("libero").labels.classes
    train = np.arange(len(classes))[::-1] * 10  # the last class has no training sample
    add_classification(tmp_path, "siglip2", "libero", 2.0, train=train)
    files, _ = run(tmp_path, "frequency", window=5)
    assert files == {f"frequency_libero{suffix}" for suffix in SUFFIXES}
    table = rows_of(tmp_path / "logs" / "analysis" / "frequency_libero.csv")
    assert [row["class"] for row in table] == list(classes)
    rising = table[::-1][1:]
    values = [float(row["f1"]) for row in rising]
    assert float(rising[2]["moving_average"]) == pytest.approx(np.mean(values[:5]))
    assert float(rising[10]["moving_average"]) == pytest.approx(np.mean(values[8:13]))
    assert rising[1]["moving_average"] == table[-1]["moving_average"] == ""


def test_frequency_refuses_what_it_cannot_average(tmp_path: Path) -> None:
    add_classification(tmp_path, "siglip2", "libero", 2.0)
    with pytest.raises(UsageError, match="--window 400: libero has 28 classes"):
        run(tmp_path, "frequency", window=400)


def test_the_average_has_one_point_per_frequency() -> None:
    own = Curve("", (), np.empty(0), np.empty(0), np.array([5.0, 5, 7]), np.array([0.2, 0.4, 0.9]), None)
    np.testing.assert_allclose(own.drawn, [[5, 7], [0.3, 0.9]])


def test_classes_that_are_all_equally_frequent_are_drawn_by_name(tmp_path: Path) -> None:
    for model, skill in (("siglip2", 2.0), ("dinov3", 4.0)):
        add_classification(tmp_path, model, "libero", skill, train=7)
    files, left_out = run(tmp_path, "frequency")
    assert files == {f"frequency_libero{suffix}" for suffix in SUFFIXES}
    assert not left_out
    table = rows_of(tmp_path / "logs" / "analysis" / "frequency_libero.csv")
    assert {(row["train"], row["moving_average"]) for row in table} == {("7", "")}
    picture = (tmp_path / "logs" / "analysis" / "frequency_libero.svg").read_text()
    order = [picture.index(f">{name}<") for name in by_mean_f1(table)]
    assert order == sorted(order)
    assert "each with 7 training samples" in picture


def by_mean_f1(table: list[dict[str, str]]) -> list[str]:
    """Names of the classes by rising mean of F1 over the models."""
    values: dict[str, list[float]] = {}
    for row in table:
        values.setdefault(row["class"], []).append(float(row["f1"]))
    return sorted(values, key=lambda name: (np.mean(values[name]), name))


@pytest.mark.parametrize("width", [4.2, 6.4, 9.6])
def test_titles_fit_their_figures(width: float) -> None:
    text = "protocol corrected, preset paper, absolute actions, 95 % intervals; lower is better; open marks: paper"
    lines = fitted(f"VLABench: score by stride\n{text}", width).splitlines()
    assert lines[0] == "VLABench: score by stride"
    assert " ".join(lines[1:]) == text
    with figures.new_figure(width, 2) as figure:
        title = figure.suptitle("\n".join(lines), fontsize=9.5)
        box = title.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


# --- gap --------------------------------------------------------------------------------------------------------------


def test_gap_is_f1_of_people_minus_f1_of_robots_on_shared_classes(tmp_path: Path) -> None:
    runs = {
        (model, data): add_classification(tmp_path, model, data, skill, seed=seed)
        for model, seed in (("lapa", 1), ("dinov3", 2))
        for data, skill in (("human_1st", 4.0), ("robot_1st", 1.0))
    }
    add_classification(tmp_path, "vjepa2", "human_1st", 3.0)
    files, left_out = run(tmp_path, "gap")
    assert files == {f"gap_human_1st_robot_1st{suffix}" for suffix in SUFFIXES}
    assert left_out == "gap: vjepa2 has a run on one of the two data sets only"
    table = rows_of(tmp_path / "logs" / "analysis" / "gap_human_1st_robot_1st.csv")
    spaces = [set(DATASETS.get(name).labels.classes) for name in ("human_1st", "robot_1st")]
    assert {row["class"] for row in table} <= spaces[0] & spaces[1]
    truth = {
        key: {row["name"]: row["f1"] for row in json.loads(path.read_text())["classes"]} for key, path in runs.items()
    }
    shown = [row for row in table if row["gap"]]
    for row in shown:
        wanted = (truth[row["model"], side][row["class"]] for side in ("human_1st", "robot_1st"))
        assert float(row["gap"]) == pytest.approx(next(wanted) - next(wanted))
    facts = json.loads((tmp_path / "logs" / "analysis" / "gap_human_1st_robot_1st.json").read_text())
    own = [float(row["gap"]) for row in shown if row["model"] == "lapa"]
    assert facts["mean_gap"]["lapa"] == pytest.approx(np.mean(own))
    assert facts["mean_gap"]["lapa"] > 0.2


def test_gap_needs_runs_on_both_and_shared_classes(tmp_path: Path) -> None:
    add_classification(tmp_path, "lapa", "human_1st", 3.0)
    add_classification(tmp_path, "lapa", "robot_1st", 3.0, preset="demo")
    with pytest.raises(UsageError, match="no model has finished runs on both human_1st and robot_1st"):
        run(tmp_path, "gap")
    with pytest.raises(UsageError, match="are both human_1st"):
        run(tmp_path, "gap", robot="human_1st")
    with pytest.raises(UsageError, match="Did you mean human_1st"):
        run(tmp_path, "gap", human="human_first")


# --- ablations --------------------------------------------------------------------------------------------------------


def test_stride_takes_data_sets_of_one_series_beside_the_paper(tmp_path: Path) -> None:
    for dataset, error in (("vlabench", 0.1), ("vlabench_15", 0.2), ("vlabench_30", 0.4)):
        add_regression(tmp_path, "dinov3", dataset, error)
    add_regression(tmp_path, "lapa", "vlabench", 0.5)
    files, _ = run(tmp_path, "stride")
    assert files == {f"stride_VLABench{suffix}" for suffix in SUFFIXES}
    table = rows_of(tmp_path / "logs" / "analysis" / "stride_VLABench.csv")
    assert [(row["model"], float(row["value"]), float(row["published"])) for row in table] == [
        ("dinov3", 5, 0.25), ("dinov3", 15, 0.20), ("dinov3", 30, 0.26)
    ]  # fmt: skip
    assert float(table[0]["low"]) < float(table[0]["score"]) < float(table[0]["high"])


def test_many_models_get_a_panel_each(tmp_path: Path) -> None:
    for model in ("lapa", "dinov2", "dinov3", "siglip2", "flux2", "vjepa2"):
        for dataset in ("vlabench", "vlabench_30"):
            add_regression(tmp_path, model, dataset, 0.3)
    files, _ = run(tmp_path, "stride")
    assert "stride_VLABench.svg" in files
    picture = (tmp_path / "logs" / "analysis" / "stride_VLABench.svg").read_text()
    assert all(f">{model}<" in picture for model in ("lapa", "dinov2", "dinov3", "siglip2", "flux2", "vjepa2"))


def test_codebook_holds_all_settings_but_one(tmp_path: Path) -> None:
    for codebook, length, width in ((8, 49, 256), (64, 49, 256), (64, 16, 256), (32, 4, 16)):
        add_classification(tmp_path, f"dinov3-cs{codebook}_sl{length}_dim{width}_lr1e-4", "robot_1st", 2.0)
    add_classification(tmp_path, "dinov3", "robot_1st", 2.0)
    diagnosis = tmp_path / "logs" / "diagnostics" / "robot_1st" / "val" / "dinov3-cs64_sl49_dim256_lr1e-4.json"
    diagnosis.parent.mkdir(parents=True)
    diagnosis.write_text('{"codes": {"used": 48, "size": 64}}')
    files, _ = run(tmp_path, "codebook")
    assert files == {f"codebook_robot_1st{suffix}" for suffix in SUFFIXES}
    table = rows_of(tmp_path / "logs" / "analysis" / "codebook_robot_1st.csv")
    assert [(row["setting"], float(row["value"]), round(float(row["published"]), 4)) for row in table] == [
        ("codebook size", 8, 0.6489), ("codebook size", 64, 0.6404),
        ("sequence length", 16, 0.6333), ("sequence length", 49, 0.6404),
    ]  # fmt: skip
    assert [row["codes_used"] for row in table] == ["", "0.75", "", "0.75"]


def test_ablations_without_their_runs(tmp_path: Path) -> None:
    add_regression(tmp_path, "dinov3", "vlabench", 0.1)
    with pytest.raises(UsageError, match="no model has finished runs at two strides"):
        run(tmp_path, "stride")
    with pytest.raises(UsageError, match="no finished run of an ablated model"):
        run(tmp_path, "codebook")
    add_regression(tmp_path, "dinov3-cs8_sl49_dim256_lr1e-4", "vlabench", 0.1)
    with pytest.raises(UsageError, match="no two runs on vlabench differ in one setting alone"):
        run(tmp_path, "codebook")


# --- trajectories -----------------------------------------------------------------------------------------------------


def chunks_of(errors: list[float]) -> Chunks:
    """Three samples per episode in no order, their predictions wrong by the given amounts."""
    order = [1, 2, 0]
    groups = tuple(f"ep_{index}" for index in range(len(errors)) for _ in order)
    media = tuple(f"images/ep/frame_{10 * place:06d}.png" for _ in errors for place in order)
    true = np.random.default_rng(0).normal(size=(len(groups), 5, 2)).astype(np.float32)
    wrong = np.repeat(errors, 3).astype(np.float32)[:, None, None]
    return Chunks(tuple(map(str, range(len(groups)))), groups, media, true + wrong, true)


def test_episodes_are_chosen_at_even_ranks_of_their_error() -> None:
    chunks = chunks_of([0.5, 0.1, 0.9, 0.3, 0.7, 0.2])
    assert chosen_episodes(chunks, (), 3) == ["ep_5", "ep_0", "ep_2"]
    assert chosen_episodes(chunks, (), 50) == ["ep_1", "ep_5", "ep_3", "ep_0", "ep_4", "ep_2"]
    assert chosen_episodes(chunks, ("ep_4", "absent"), 3) == ["ep_4"]


def test_samples_of_an_episode_stand_at_the_numbers_of_their_frames() -> None:
    own = episode_of(chunks_of([0.5]), "ep_0")
    assert own.starts.tolist() == [0, 10, 20]
    assert own.ids == ("2", "0", "1")
    unnumbered = replace(chunks_of([0.5]), media=("a.png",) * 3)
    assert episode_of(unnumbered, "ep_0").starts.tolist() == [0, 5, 10]


def test_trajectories_are_in_physical_units(tmp_path: Path) -> None:
    add_regression(tmp_path, "lapa", "calvin", 0.1, chunks=True)
    add_regression(tmp_path, "dinov3", "calvin", 0.1)
    files, left_out = run(tmp_path, "trajectories", count=2)
    assert files == {f"trajectories_calvin_lapa{suffix}" for suffix in SUFFIXES}
    assert "actions.npz does not exist: run the probe again with --overwrite" in left_out
    outcome = fake.action_outcome(0.1, unseen=False).splits["seen"]
    table = rows_of(tmp_path / "logs" / "analysis" / "trajectories_calvin_lapa.csv")
    row = outcome.samples.ids.index(table[0]["sample"])
    assert {row["unit"] for row in table} == {"m", "rad", ""}
    truth = outcome.targets[row] * outcome.std[row] + outcome.mean[row]
    own = [float(each["true"]) for each in table if each["sample"] == table[0]["sample"]]
    np.testing.assert_allclose(own, truth.ravel(), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="--episode val/ep_99: no run was scored on such an episode"):
        run(tmp_path, "trajectories", episode=("val/ep_99",))


# --- how tokens lie ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "steps", "alone", "shown"),
    [
        (2, 2, False, ((0,), (1,))),
        (2, 1, False, ((0, 1),)),
        (2, 1, True, ((0,),)),
        (4, 3, False, ((0, 1), (1, 2), (2, 3))),
        (9, 5, False, ((0, 1), (2, 3), (4, 5), (6, 7), (8,))),
        (9, 4, False, ((0, 1), (2, 3), (4, 5), (6, 7))),
        (9, 3, True, ((0,), (1, 2, 3, 4), (5, 6, 7, 8))),
        (9, 1, False, (tuple(range(9)),)),
    ],
)
def test_frames_that_a_step_shows(frames: int, steps: int, alone: bool, shown: tuple[tuple[int, ...], ...]) -> None:
    assert frames_of_steps(frames, steps, alone) == shown


@pytest.mark.parametrize("name", MODELS.names())
def test_tokens_of_every_model_have_a_layout(name: str) -> None:
    spec = MODELS.get(name)
    for shape, frames in ((spec.pair_shape, 2), (spec.clip_shape, 9)):
        layout = layout_of(shape, frames, spec)
        assert len(layout.steps) * layout.tokens == np.prod(shape[:-1])
        assert layout.side**2 in (0, layout.tokens)
        assert {frame for part in layout.steps for frame in part} == set(range(frames))
    if spec.grid is None:
        assert layout.side in (8, 14, 16), "patches lie on a grid"
    square = layout_of((8, 16, 4), 9, spec, square=True)
    assert (square.side, square.tokens) == (4, 16)


def test_steps_of_a_flat_latent_come_from_the_grid() -> None:
    layout = layout_of((980, 1024), 9, MODELS.get("vjepa2"))
    assert (len(layout.steps), layout.tokens, layout.side) == (5, 196, 14)
    assert layout.steps[-1] == (8,)
    with pytest.raises(UsageError, match="--square: 2 tokens per step of 'villa-x' make no square"):
        layout_of((8, 2, 32), 9, MODELS.get("villa-x"), square=True)


def test_attention_weights_are_those_of_the_pooling() -> None:
    torch.manual_seed(0)
    block = QueryAttention(12, 3)
    queries, tokens = torch.randn(2, 1, 12), torch.randn(2, 7, 12)
    weights = attention_weights(block, queries, tokens)
    assert weights.shape == (2, 3, 1, 7)
    values = block.kv(tokens)[..., 12:].reshape(2, 7, 3, 4).transpose(1, 2)
    pooled = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(pooled, block(queries, tokens))


# --- all, and wrong requests ------------------------------------------------------------------------------------------


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
    with pytest.raises(UsageError, match="There is no folder"):
        run(tmp_path, "all")
    (tmp_path / "logs").mkdir()
    with pytest.raises(UsageError, match=r"no finished run below .*: run 'lary classify' or 'lary regress' first"):
        run(tmp_path, "all")
    add_regression(tmp_path, "lapa", "calvin", 0.1)
    with pytest.raises(UsageError, match=r"--model lappa: no run below .* has it\. Did you mean lapa"):
        run(tmp_path, "stride", model=("lappa",))
    with pytest.raises(UsageError, match="--count 0: must be at least 1"):
        run(tmp_path, "trajectories", count=0)
    with pytest.raises(UsageError, match="frequency: there is no finished classification run: run 'lary classify'"):
        run(tmp_path, "frequency")
    with pytest.raises(LaryError, match="No analysis can be made of these runs:\n  frequency: "):
        run(tmp_path, "all")
