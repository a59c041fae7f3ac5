"""Made-up outcomes of probes, for tests of results and for the design of the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lary.configs import AnalyzeConfig
from lary.data.spec import DATASETS, Orientation
from lary.files import write_bytes, write_json
from lary.probes import outcome as probes
from lary.results import published
from lary.results.analyses import make_analysis
from lary.results.folder import publish, writing
from lary.results.published import example_rows, png_of, write_actions
from lary.results.record import FILE_NAME, DatasetFacts, RunFacts, write_result
from lary.results.summarise import classification_result, regression_result
from tests.helpers import rows_of, settings_of

VERBS = ("close", "lift", "lower", "open", "pour", "pull", "push", "reach", "rotate", "sweep")
DIMS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
SUFFIXES = (".png", ".svg", ".csv", ".json")
UNITS = ("m", "m", "m", "rad", "rad", "rad", "")
GROUPS = {"position": (0, 1, 2), "orientation": (3, 4, 5), "gripper": (6,)}
ORIENTATIONS = (Orientation("hand", (3, 4, 5), "euler_xyz"),)


def columns(count: int, episodes: int, kind: str) -> probes.SampleColumns:
    groups = tuple(f"{kind}/ep_{index % episodes:04d}/" for index in range(count))
    media = tuple((f"{group}{index:05d}_src.png", f"{group}{index:05d}_tgt.png") for index, group in enumerate(groups))
    robots = tuple(("arm_a", "arm_b")[index % episodes % 2] for index in range(count))
    return probes.SampleColumns(tuple(f"{index:016x}" for index in range(count)), media, groups, robots)


def class_outcome(
    skill: float, *, seed: int = 0, count: int = 120, episodes: int = 60, classes: tuple[str, ...] = VERBS
) -> probes.ClassificationOutcome:
    """Random scores (n, L) whose true class is raised by `skill`, by another amount for every class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), count)
    logits = rng.normal(size=(count, len(classes))).astype(np.float32)
    logits[np.arange(count), labels] += skill * (0.5 + rng.random(len(classes))[labels])
    better = logits.copy()
    better[np.arange(count), labels] += 0.2
    counts = rng.integers(10, 60, len(classes))
    chosen = {"held_out": (7, 2, logits), "best_on_validation": (9, 1, better)}
    return probes.ClassificationOutcome(
        classes=classes,
        samples=columns(count, episodes, "clips"),
        labels=labels,
        selections={name: probes.ClassPredictions(*own) for name, own in chosen.items()},  # type: ignore[misc]
        controls={"majority_class": np.full(count, int(np.argmax(counts)))},
        train_counts=counts,
        history=[{"epoch": epoch, "train_loss": 2.0 / epoch, "val_acc": [0.1, float("nan")]} for epoch in range(1, 11)],
        settings={"heads": 5},
    )


def split_outcome(
    error: float, *, seed: int = 0, count: int = 96, episodes: int = 24, kind: str = "val"
) -> probes.SplitOutcome:
    """Smooth chunks (n, 5, 7) of unit variance, and predictions with about the mean squared error `error`."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(count, 1, len(DIMS)))
    targets = (start + 0.15 * rng.normal(size=(count, 5, len(DIMS))).cumsum(axis=1)).astype(np.float32)
    scale = np.sqrt(error * np.linspace(0.4, 1.6, len(DIMS)))
    wrong = scale * rng.normal(size=(count, 1, len(DIMS))) * np.exp(0.4 * rng.normal(size=(count, 1, 1)))
    values = (targets * (1 - min(error, 1.0) / 2) + 0.7 * wrong).astype(np.float32)
    numbers = [0.4, 0.1, 0.3, 3.1, 0.0, 0.2, 0.0], [0.14, 0.1, 0.06, 0.5, 0.2, 0.6, 0.99]
    mean, std = (np.tile(np.array(own, dtype=np.float32), (count, 1)) for own in numbers)
    chosen = {"held_out": (14, values), "best_on_validation": (12, values * 0.99)}
    return probes.SplitOutcome(
        samples=columns(count, episodes, kind),
        targets=targets,
        mean=mean,
        std=std,
        selections={name: probes.ActionPredictions(*own) for name, own in chosen.items()},  # type: ignore[misc]
        controls={"mean_action": np.zeros_like(targets)},
        loss={"held_out": 0.4 * error, "best_on_validation": 0.39 * error},
    )


def action_outcome(error: float, *, seed: int = 0, unseen: bool = True) -> probes.RegressionOutcome:
    splits = {"seen": split_outcome(error, seed=seed)}
    if unseen:
        splits["unseen"] = split_outcome(1.6 * error, seed=seed + 1, count=40, episodes=10, kind="unseen")
    history = [{"epoch": epoch, "train_loss": 1.0 / epoch} for epoch in range(1, 21)]
    return probes.RegressionOutcome(dims=DIMS, groups=GROUPS, splits=splits, history=history)


def facts(model: str, data: str, paradigm: str = "baseline", **more: object) -> RunFacts:
    """What a caller knows about a run."""
    values: dict[str, object] = {
        "created": "2026-01-02T03:04:05+00:00",
        "dataset": {
            "name": data, "title": data, "revision": "1", "tables": {"train": "0f3a", "val": "91bc"},
            "units": UNITS, "splits": {"train": {"rows": 320, "groups": 160}, "val": {"rows": 120, "groups": 60}},
        },
        "model": {"name": model, "paradigm": paradigm, "dim": 384, "shape": (2, 256, 384), "parameters_m": 22.1},
        "probe": "attentive",
        "preset": "demo",
        "seed": 0,
        "options": {"epochs": 10, "batch_size": 64},
        "provenance": {"command": ("lary", "classify", "--model", model), "versions": {"lary": "0.1.0"}},
        "timings": {"extract": 41.2, "probe": 73.9, "evaluate": 1.4},
    }  # fmt: skip
    return RunFacts.model_validate({**values, **more})


def frames(row: int) -> np.ndarray:
    """Two frames (2, 96, 96, 3) uint8: a disc that moves over a grey table."""
    height, width, step = np.mgrid[0:96, 0:96, 0:2]
    disc = (height - 50 - 6 * step) ** 2 + (width - 30 - row % 30 - 14 * step) ** 2 < 120
    return np.where(disc.T[..., None], (200, 80, 40), (120, 125, 130)).astype(np.uint8)


def write_classification(folder: Path, model: str, skill: float, paradigm: str = "baseline", **more: object) -> Path:
    path = folder / FILE_NAME
    write_result(path, classification_result(class_outcome(skill), facts(model, "verbs", paradigm, **more)))
    return path


def write_regression(
    folder: Path, model: str, error: float, paradigm: str = "baseline", *, seeds: int = 1, **more: object
) -> Path:
    """A regression and the frames of its examples alone: figures take time, and the report draws its own."""
    outcome, *others = (action_outcome(error * (1 + 0.04 * number)) for number in range(seeds))
    names = []
    for index, (row, _, _) in enumerate(example_rows(outcome.splits["seen"])):
        for part, picture in zip(("src", "tgt"), frames(row), strict=True):
            names.append(f"eval_vis/epoch_14/sample_{index}_{part}.png")
            write_bytes(folder / names[-1], png_of(picture))
    more = {"probe": "mlp", "action_mode": "absolute", "files": dict.fromkeys(names, ""), **more}
    about = facts(model, "arm", paradigm, seeds=tuple(range(seeds)), **more)
    write_result(folder / FILE_NAME, regression_result(outcome, about, others, ORIENTATIONS))
    return folder / FILE_NAME


MARGINS = [
    {"name": name, "value": value, "p": p, "gain": {"value": gain, "low": gain - 0.06, "high": gain + 0.05,
                                                    "unit": "normalised", "higher_is_better": False}}
    for name, value, p, gain in (("acme (static pair)", 0.55, 0.0021, -0.35), ("optical-flow", 0.21, 0.64, -0.01))
]  # fmt: skip
"""Margins of a run as ``lary controls`` leaves them."""


def write_runs(root: Path) -> None:
    """Runs of both tasks as a report has them: models, baselines, controls, several seeds, both protocols."""
    warning = "Head 3 of 5 is left out from epoch 4 on: its loss is not finite."
    write_classification(root / "classification" / "pixels", "pixels", 0.9)
    write_classification(root / "classification" / "optical-flow", "optical-flow", 3.0)
    write_classification(root / "classification" / "acme", "acme", 2.0, "general LAM", protocol="paper")
    write_regression(root / "regression" / "pixels", "pixels", 0.45)
    write_regression(root / "regression" / "pixels@static-pair", "pixels", 0.9, control="static-pair")
    path = write_regression(root / "regression" / "acme", "acme", 0.2, "general LAM", failures=2, seeds=3)
    write_json(path, {**json.loads(path.read_text()), "warnings": [warning], "margins": MARGINS})


def write_whole(folder: Path, kind: str, model: str = "pixels", **more: object) -> Path:
    """A run of two seeds with all its files: more classes than five or not, or two splits and two orientations."""

    def about(**own: object) -> RunFacts:
        return facts(model, "arm", seeds=(3, 4), **more, **own)

    with writing(folder, "one") as work:
        if kind != "regression":
            names = VERBS if kind == "classification" else VERBS[:2]
            classes = [class_outcome(2.0 - 0.1 * seed, classes=names) for seed in (3, 4)]
            published.write_classification_files(work, classes[0])
            answers = published.answers_of(classes)
            published.write_scores(work, published.class_scores(classes), (3, 4), **answers)
            publish(work, classification_result(classes[0], about(), classes[1:]))
            return folder
        actions = [action_outcome(0.1 * seed) for seed in (3, 4)]
        for each in actions:  # no orientation recorded, and none predicted
            seen = each.splits["seen"]
            seen.mean[:], seen.std[:], seen.targets[0] = 0, 1, 0
            seen.selections["held_out"].values[1] = 0
        files = published.write_regression_files(work, actions[0], frames, UNITS)
        published.write_scores(work, published.action_scores(actions), (3, 4))
        published.write_actions(work, actions)
        turns = (*ORIENTATIONS, Orientation("turn", (0, 1, 2, 6), "quaternion_xyzw"))
        publish(work, regression_result(actions[0], about(files=dict.fromkeys(files, "")), actions[1:], turns))
    return folder


def add_classification(
    root: Path, model: str, dataset: str, skill: float, *, seed: int = 0, train: Any = None, **more: Any
) -> Path:
    """A finished classification below ``logs/``; `train` counts the training samples of each class."""
    spec = DATASETS.get(dataset)
    outcome = class_outcome(skill, seed=seed, count=400, classes=spec.labels.classes)
    if train is not None:
        outcome = replace(outcome, train_counts=np.broadcast_to(train, len(outcome.classes)))
    about = facts(model, dataset, seed=seed, **{"preset": "paper", **more})
    about = about.model_copy(update={"dataset": DatasetFacts(name=dataset, title=spec.title)})
    path = root / "logs" / "classification" / dataset / f"{model}_{seed}_{len(more)}" / FILE_NAME
    write_result(path, classification_result(outcome, about))
    return path


def add_regression(root: Path, model: str, dataset: str, error: float, *, chunks: bool = False) -> None:
    """A finished regression below ``logs/``, with its chunks if asked."""
    spec = DATASETS.get(dataset)
    outcome = action_outcome(error, unseen=False)
    about = facts(model, dataset, probe="mlp", action_mode="absolute", preset="paper")
    data = DatasetFacts(name=dataset, title=spec.title, stride=spec.stride, units=spec.actions.units)
    path = root / "logs" / "regression" / f"{dataset}_{model}" / FILE_NAME
    write_result(path, regression_result(outcome, about.model_copy(update={"dataset": data})))
    if chunks:
        write_actions(path.parent, [outcome])


def analysed(root: Path, kind: Any, stem: str = "", **options: Any) -> tuple[list[dict[str, str]], str]:
    """The table that an analysis wrote, and what it left out; four files of the stem are all that it writes."""
    files, left_out = make_analysis(kind, AnalyzeConfig(**options), settings_of(root))
    assert {file.name for file in files} == {f"{stem}{suffix}" for suffix in SUFFIXES}
    assert all(file.stat().st_size for file in files)
    return rows_of(root / "logs" / "analysis" / f"{stem}.csv"), "\n".join(left_out)
