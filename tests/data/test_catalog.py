"""The records of the data sets: complete, consistent, and as the benchmark describes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from lary.data import catalog
from lary.data.spec import DATASETS, ActionSpace, DatasetSpec

CLASSES = {"libero": 28, "human_1st": 123, "robot_1st": 54, "simarm_actions": 10}
ACTIONS = {
    "calvin": (5, 7, {"regression/calvin/train_stride5", "regression/calvin/val_stride5"}),
    "vlabench": (5, 7, {"regression/vlabench"}),
    "vlabench_15": (15, 7, {"regression/vlabench"}),
    "vlabench_30": (30, 7, {"regression/vlabench"}),
    "robocoin": (10, 12, {"regression/robocoin_10"}),
    "agibotbeta": (45, 16, {"regression/agibot_45"}),
}


def test_records_that_ship_would_pass_the_validation_of_imported_ones() -> None:
    content = Path(catalog.__file__).with_suffix(".json").read_text(encoding="utf-8")
    checked = TypeAdapter(list[DatasetSpec]).validate_json(content)
    assert checked == [DATASETS.get(spec.name) for spec in checked]
    assert {spec.name for spec in checked} == {*CLASSES, *ACTIONS, "simarm", "simarm_unseen"}


@pytest.mark.parametrize("spec", list(DATASETS), ids=lambda spec: spec.name)
def test_record_is_complete_and_consistent(spec: DatasetSpec) -> None:
    assert all((spec.title, spec.licences, spec.revision, spec.description))
    assert {spec.validation, spec.unseen or spec.validation} <= set(spec.splits)
    if not isinstance(spec.target, ActionSpace):
        assert len(spec.labels.classes) == CLASSES[spec.name]
        return
    space, rule = spec.actions, spec.actions.normalisation
    assert space.horizon == spec.stride
    assert len(set(space.dims)) == len(space.dims) == len(space.units)
    grouped = sorted(index for group in space.groups.values() for index in group)
    assert grouped == (list(range(len(space.dims))) if space.groups else [])
    assert (len(rule.mean) == len(rule.std) == len(space.dims)) != bool(rule.stats_file)
    assert bool(rule.stats_file) == bool(rule.command) == (spec.embodiment_column is not None)
    assert rule.relative_command
    if spec.name in ACTIONS:
        roots = {split.root for split in spec.splits.values()}
        assert (spec.stride, len(space.dims), roots) == ACTIONS[spec.name]


def test_records_of_one_family_share_constants_and_tables() -> None:
    means = [DATASETS.get(name).actions.normalisation.mean for name in ("vlabench", "vlabench_15", "vlabench_30")]
    assert len(set(means)) == 1
    assert means[0] != DATASETS.get("calvin").actions.normalisation.mean
    seen, alone = DATASETS.get("simarm"), DATASETS.get("simarm_unseen")
    assert alone.table_name("unseen") == seen.table_name("unseen")
    assert alone.split("unseen").root == seen.split("unseen").root
    axes = [("", "Forward", "Backward"), ("", "Left", "Right"), ("", "Up", "Down")]
    directions = {"_".join(filter(None, (x, y, z))) for x in axes[0] for y in axes[1] for z in axes[2]}
    assert set(DATASETS.get("libero").labels.classes) == (directions - {""}) | {"Open", "Close"}
