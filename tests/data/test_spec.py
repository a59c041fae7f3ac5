"""The list of the data sets and of their terms."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lary.data.spec import DATASETS, ActionSpace, LabelSpace, Normalisation, dataset_text
from lary.types import UsageError
from tests.helpers import lary


def test_list_of_data_sets() -> None:
    listed, _, notes = lary("datasets").out.rstrip("\n").partition("\n\n")
    assert "citation" in notes
    lines = {line.split()[0]: line for line in listed.splitlines()}
    assert set(lines) == {"key", *DATASETS.names()}
    for name, words in (("robot_1st", "538,423 samples"), ("robot_1st", "  no  "), ("human_1st", "  in part  "),
                        ("calvin", "  yes  ")):  # fmt: skip
        assert words in lines[name]
    text = lary("datasets", "libero").out
    assert "eprint={2604.11689}" in text
    assert "size: 25,940 samples" in text
    assert "train_by_segment, val_by_segment: drawn anew from these tables, for --splits by-segment" in text
    for spec in DATASETS:
        text = dataset_text(spec)
        assert all(split.root in text for split in spec.splits.values())
        assert all(licence.source in text for licence in spec.licences)


@pytest.mark.parametrize("asked", [["datasets"], ["datasets", "human_1st"]])
def test_list_loads_no_heavy_library(asked: list[str]) -> None:
    """The whole command: what it doesn't import decides how fast it answers."""
    heavy = {"torch", "pandas", "numpy", "pyarrow", "cv2", "av", "PIL", "huggingface_hub", "scipy", "sklearn",
             "pydantic", "requests", "httpx", "mujoco"}  # fmt: skip
    code = f"""
import sys
from lary.cli import main
try:
    main({asked!r})
except SystemExit as stop:
    assert not stop.code
found = {heavy!r} & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_wrong_names_are_answered_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean calvin"):
        DATASETS.get("calvn")
    with pytest.raises(UsageError, match=r"no split 'seen_trian'.*Did you mean seen_train"):
        DATASETS.get("robocoin").split("seen_trian")
    with pytest.raises(UsageError, match=r"has no splits of that name, it has: by-episode"):
        DATASETS.get("vlabench").roles("by-row")
    with pytest.raises(UsageError, match="lary regress"):
        _ = DATASETS.get("calvin").labels
    with pytest.raises(UsageError, match="lary classify"):
        _ = DATASETS.get("libero").actions
    with pytest.raises(UsageError, match="sorted"):
        LabelSpace(("b", "a"))
    assert ActionSpace(dims=("x", "gripper"), horizon=2).normalisation == Normalisation()
