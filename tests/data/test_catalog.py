"""The records of the data sets: complete, consistent, and as the benchmark describes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from lary.data import catalog
from lary.data.spec import DATASETS, ActionSpace, DatasetSpec, LabelSpace, Normalisation, Split
from lary.types import UsageError

ALL = list(DATASETS)
KEYS = {
    "libero", "human_1st", "robot_1st", "calvin", "vlabench", "vlabench_15", "vlabench_30", "robocoin", "agibotbeta",
    "simarm", "simarm_unseen", "simarm_actions",
}  # fmt: skip


def test_records_that_ship_would_pass_the_validation_of_imported_ones() -> None:
    content = Path(catalog.__file__).with_suffix(".json").read_text(encoding="utf-8")
    checked = TypeAdapter(list[DatasetSpec]).validate_json(content)
    assert checked == [DATASETS.get(spec.name) for spec in checked]


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_record_is_complete(spec: DatasetSpec) -> None:
    assert set(DATASETS.names()) >= KEYS
    assert all((spec.title, spec.licences, spec.revision, spec.description))
    assert spec.validation in spec.splits
    assert spec.unseen is None or spec.unseen in spec.splits
    re.compile(spec.group_pattern)
    for name, split in spec.splits.items():
        assert not split.root.startswith("/")
        assert spec.table_name(name).endswith(".csv")


@pytest.mark.parametrize("spec", [each for each in ALL if isinstance(each.target, ActionSpace)], ids=lambda s: s.name)
def test_action_space_is_consistent(spec: DatasetSpec) -> None:
    space, rule = spec.actions, spec.actions.normalisation
    assert space.horizon == spec.stride
    assert len(set(space.dims)) == len(space.dims) == len(space.units)
    grouped = sorted(index for group in space.groups.values() for index in group)
    assert grouped == (list(range(len(space.dims))) if space.groups else [])
    assert (len(rule.mean) == len(rule.std) == len(space.dims)) != bool(rule.stats_file)
    assert bool(rule.stats_file) == bool(rule.command) == (spec.embodiment_column is not None)
    assert rule.relative_command
    with pytest.raises(UsageError, match="lary regress"):
        _ = spec.labels


def test_classes_of_records() -> None:
    for name, classes in (("libero", 28), ("human_1st", 123), ("robot_1st", 54), ("simarm_actions", 10)):
        spec = DATASETS.get(name)
        assert len(spec.labels.classes) == classes
        with pytest.raises(UsageError, match="lary classify"):
            _ = spec.actions
    axes = [("", "Forward", "Backward"), ("", "Left", "Right"), ("", "Up", "Down")]
    directions = {"_".join(filter(None, (x, y, z))) for x in axes[0] for y in axes[1] for z in axes[2]}
    assert set(DATASETS.get("libero").labels.classes) == (directions - {""}) | {"Open", "Close"}


@pytest.mark.parametrize(
    ("name", "stride", "size", "roots"),
    [
        ("calvin", 5, 7, {"regression/calvin/train_stride5", "regression/calvin/val_stride5"}),
        ("vlabench", 5, 7, {"regression/vlabench"}),
        ("vlabench_15", 15, 7, {"regression/vlabench"}),
        ("vlabench_30", 30, 7, {"regression/vlabench"}),
        ("robocoin", 10, 12, {"regression/robocoin_10"}),
        ("agibotbeta", 45, 16, {"regression/agibot_45"}),
    ],
)
def test_regression_facts(name: str, stride: int, size: int, roots: set[str]) -> None:
    spec = DATASETS.get(name)
    assert (spec.stride, len(spec.actions.dims)) == (stride, size)
    assert {split.root for split in spec.splits.values()} == roots


def test_records_of_one_family_share_constants_and_tables() -> None:
    def constants(name: str) -> tuple[float, ...]:
        return DATASETS.get(name).actions.normalisation.mean

    assert constants("vlabench") == constants("vlabench_15") == constants("vlabench_30") != constants("calvin")
    assert sum(bool(spec.actions.normalisation.mean) for spec in ALL if isinstance(spec.target, ActionSpace)) == 4
    seen, alone = DATASETS.get("simarm"), DATASETS.get("simarm_unseen")
    assert alone.table_name("unseen") == seen.table_name("unseen")
    assert list(alone.splits) == ["unseen"]
    assert alone.split("unseen").root == seen.split("unseen").root


def test_wrong_names_are_answered_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean calvin"):
        DATASETS.get("calvn")
    with pytest.raises(UsageError, match=r"no split 'seen_trian'.*Did you mean seen_train"):
        DATASETS.get("robocoin").split("seen_trian")
    with pytest.raises(UsageError, match=r"has no splits of that name, it has: by-episode"):
        DATASETS.get("vlabench").roles("by-row")
    with pytest.raises(UsageError, match="sorted"):
        LabelSpace(("b", "a"))


def test_an_author_need_not_give_a_normalisation() -> None:
    space = ActionSpace(dims=("x", "gripper"), horizon=2, groups={"position": (0,)})
    assert space.normalisation == Normalisation()
    assert Split("regression/my_arm").table is None
