"""The list of the data sets and of their terms."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lary.data.spec import DATASETS, dataset_text, datasets_table
from tests.helpers import lary


def test_list_of_data_sets() -> None:
    text = lary("datasets").out.rstrip("\n")
    assert text == datasets_table()
    listed, _, notes = text.partition("\n\n")
    assert "citation" in notes
    lines = {line.split()[0]: line for line in listed.splitlines()}
    assert set(lines) == {"key", *DATASETS.names()}
    assert "538,423 samples" in lines["robot_1st"]
    assert "  no  " in lines["robot_1st"]
    assert "  in part  " in lines["human_1st"]
    assert "  yes  " in lines["calvin"]
    text = lary("datasets", "calvin").out
    assert "eprint={2604.11689}" in text
    assert "size:        209,921 samples" in text
    text = lary("datasets", "libero").out
    assert "train_by_segment, val_by_segment: drawn anew from these tables, for --splits by-segment" in text


@pytest.mark.parametrize("asked", [["datasets"], ["datasets", "human_1st"]])
def test_list_loads_no_heavy_library(asked: list[str]) -> None:
    """The whole command: what it doesn't import decides how fast it answers."""
    heavy = ("torch", "pandas", "numpy", "pyarrow", "cv2", "av", "PIL", "huggingface_hub", "scipy", "sklearn",
             "pydantic", "requests", "httpx", "yaml", "mujoco")  # fmt: skip
    code = f"""
import sys
from lary.cli import main
try:
    main({asked!r})
except SystemExit as stop:
    assert not stop.code
found = [name for name in {heavy!r} if name in sys.modules]
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_record_can_be_shown() -> None:
    for spec in DATASETS:
        text = dataset_text(spec)
        assert all(split.root in text for split in spec.splits.values())
        assert all(licence.source in text for licence in spec.licences)
        assert max(map(len, text.splitlines())) <= 160
