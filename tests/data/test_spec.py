"""The records of the data sets: complete, as the benchmark describes them, and listed with their terms."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from lary.data import spec as specs
from lary.data.spec import DATASETS, DatasetSpec, LabelSpace
from lary.types import UsageError
from tests.helpers import fails, lary


def test_records_that_ship_would_pass_the_validation_of_imported_ones() -> None:
    content = json.loads(Path(specs.__file__).with_name("catalog.json").read_bytes())
    checked = TypeAdapter(list[DatasetSpec]).validate_python(content["records"])
    assert checked == [DATASETS.get(spec.name) for spec in checked]


@pytest.mark.parametrize("spec", list(DATASETS), ids=lambda spec: spec.name)
def test_record_is_complete_and_consistent(spec: DatasetSpec) -> None:
    assert all((spec.title, spec.licences, spec.revision, spec.description))
    assert {spec.validation, spec.unseen or spec.validation} <= set(spec.splits)
    if isinstance(spec.target, LabelSpace):
        return
    space, rule = spec.actions, spec.actions.normalisation
    assert space.horizon == spec.stride
    assert len(set(space.dims)) == len(space.dims) == len(space.units)
    grouped = sorted(index for group in space.groups.values() for index in group)
    assert grouped == (list(range(len(space.dims))) if space.groups else [])
    assert (len(rule.mean) == len(rule.std) == len(space.dims)) != bool(rule.stats_file)
    assert bool(rule.stats_file) == bool(rule.command) == (spec.embodiment_column is not None)
    assert rule.relative_command


def test_list_of_data_sets() -> None:
    listed, _, notes = lary("datasets").out.rstrip("\n").partition("\n\n")
    assert "citation" in notes
    lines = {line.split()[0]: line for line in listed.splitlines()}
    assert set(lines) == {"key", *DATASETS.names()}
    expected = {"robot_1st": ("538,423 samples", "  no  "), "human_1st": ("  in part  ",), "calvin": ("  yes  ",)}
    assert [(name, word) for name, words in expected.items() for word in words if word not in lines[name]] == []
    text = lary("datasets", "libero").out
    texts = ("eprint={2604.11689}", "samples: 25940", '"name": "MIT"', "libero_metadata_val_by_segment.csv")
    assert [words for words in texts if words not in text] == []


def test_list_loads_no_heavy_library() -> None:
    """The whole command: what it doesn't import decides how fast it answers."""
    heavy = {"torch", "pandas", "numpy", "pyarrow", "cv2", "av", "PIL", "scipy", "sklearn", "pydantic", "httpx",
             "transformers", "diffusers", "huggingface_hub"}  # fmt: skip
    code = f"""
import sys, lary.cli
for asked in ("datasets human_1st", "models", "models dinov3-cs9_sl16_dim32_lr1e-4"):
    try: lary.cli.main(asked.split())
    except SystemExit as stop: assert not stop.code
assert not {heavy!r} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "Ego4D" in done.stdout) == (0, True), done.stderr


def test_wrong_names_are_answered_with_a_suggestion() -> None:
    fails(UsageError, "Did you mean calvin", DATASETS.get, "calvn")
    words = r"no split 'seen_trian'.*Did you mean seen_train"
    fails(UsageError, words, DATASETS.get("robocoin").split, "seen_trian")
    fails(UsageError, "has no splits of that name, it has: by-episode", DATASETS.get("vlabench").roles, "by-row")
    fails(UsageError, "lary regress", lambda: DATASETS.get("calvin").labels)
    fails(UsageError, "lary classify", lambda: DATASETS.get("libero").actions)
    fails(UsageError, "sorted", LabelSpace, ("b", "a"))
