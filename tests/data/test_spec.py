"""The list of the data sets and of their terms."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lary.data.spec import DATASETS, LabelSpace
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
    for words in ("eprint={2604.11689}", "samples: 25940", '"name": "MIT"', "libero_metadata_val_by_segment.csv"):
        assert words in text


def test_list_loads_no_heavy_library() -> None:
    """The whole command: what it doesn't import decides how fast it answers."""
    heavy = {"torch", "pandas", "numpy", "pyarrow", "cv2", "av", "PIL", "huggingface_hub", "scipy", "sklearn",
             "pydantic", "requests", "httpx", "mujoco"}  # fmt: skip
    code = f"""
import sys
from lary.cli import main
for asked in (["datasets"], ["datasets", "human_1st"]):
    try:
        main(asked)
    except SystemExit as stop:
        assert not stop.code
found = {heavy!r} & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_wrong_names_are_answered_with_a_suggestion() -> None:
    for words, ask in (
        ("Did you mean calvin", lambda: DATASETS.get("calvn")),
        (r"no split 'seen_trian'.*Did you mean seen_train", lambda: DATASETS.get("robocoin").split("seen_trian")),
        (r"has no splits of that name, it has: by-episode", lambda: DATASETS.get("vlabench").roles("by-row")),
        ("lary regress", lambda: DATASETS.get("calvin").labels),
        ("lary classify", lambda: DATASETS.get("libero").actions),
        ("sorted", lambda: LabelSpace(("b", "a"))),
    ):
        with pytest.raises(UsageError, match=words):
            ask()
