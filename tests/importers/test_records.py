"""Records of data sets are files that people edit and pass on: what leads out of a folder, or to no end, is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from lary.importers.episodes import PairCut
from lary.importers.records import load_record, pair_record, save_record
from lary.types import LaryError
from tests.helpers import fails
from tests.hostile.harness import refused

OUT = "../../../X"


@pytest.fixture
def record(tmp_path: Path) -> Path:
    save_record(pair_record("cube", PairCut(3), ["x", "y", "z"], licences=()), tmp_path / "cube_dataset.py")
    return tmp_path / "cube_dataset.json"


@pytest.mark.parametrize(("field", "value", "words"), [
    ("name", OUT, "the name '../../../X'"), ("name", "", "the name ''"), ("name", "/etc", "the name"),
    ("name", "x" * 65, "at most 64"), ("name", "a\n", "the name"),
    ("splits", {OUT: {"root": "a"}, "train": {"root": "a"}, "val": {"root": "a"}}, "the name"),
    ("splits", {"train": {"root": "/etc"}, "val": {"root": "a"}}, "leaves its root"),
    ("splits", {"train": {"root": "a/../.."}, "val": {"root": "a"}}, "leaves its root"),
    ("splits", {"train": {"root": "C:\\a"}, "val": {"root": "a"}}, "leaves its root"),
    ("splits", {"train": {"root": "a", "table": "/etc/passwd"}, "val": {"root": "a"}}, "leaves its root"),
    ("splits", {"train": {"root": "a", "table": "..\\x.csv"}, "val": {"root": "a"}}, "leaves its root"),
    ("splits", {"train": {"root": "a\0"}, "val": {"root": "a"}}, "control characters"),
    ("drawn", {OUT: {"sources": ["val"], "validates": True}}, "the name"),
    ("drawn", {"new": {"sources": ["absent"], "validates": True}}, "drawn"),
    ("drawn", {"new": {"sources": [], "validates": True}}, "drawn"),
    ("drawn", {"new": {"sources": ["val"], "validates": True, "share": float("inf")}}, "drawn"),
    ("drawn", {"new": {"sources": ["val"], "validates": True, "pattern": "("}}, "no regular expression"),
    ("target.normalisation.stats_file", f"{OUT}.json", "leaves its root"),
    ("train", "val", "train"), ("validation", OUT, "validation"), ("unseen", "/etc", "unseen"),
    ("group_pattern", "(", "no regular expression"), ("group_pattern", "a{1000000000}", "too large"),
    ("group_pattern", "x" * 2000, "too large"), ("path_repair", ["a", r"\9"], "invalid group reference 9"),
    ("path_repair", ["(", ""], "no regular expression"), ("unnamed_robot", ["*", "arm"], "no regular expression"),
    ("target.groups", {"hand": [0, 3]}, "groups"), ("target.groups", {"hand": [-1]}, "groups"),
    ("target.orientations", [{"name": "o", "dims": [0, 1, 9], "convention": "euler_xyz"}], "orientations"),
    ("target.orientations", [{"name": "o", "dims": [0, 1], "convention": "euler_xyz"}], "orientations"),
    ("target.horizon", 10**30, "target"), ("target.horizon", 0, "horizon"), ("target.dims", [], "target"),
    ("stride", 0, "stride"), ("media_depth", 10**9, "media_depth"), ("media_depth", -1, "media_depth"),
])  # fmt: skip
def test_a_wrong_field_is_named_before_anything_is_read(record: Path, field: str, value: Any, words: str) -> None:
    content = json.loads(record.read_text())
    *above, last = field.split(".")
    inner = content
    for name in above:
        inner = inner[name]
    inner[last] = value
    record.write_text(json.dumps(content))
    sentence = refused(record.parent, lambda: load_record(record), words)
    assert sentence.startswith(f"The data set record {record} is wrong")


def test_paths_below_the_roots_and_other_files_of_json_are_read(record: Path) -> None:
    content = json.loads(record.read_text())
    content["splits"]["val"] |= {"root": "regression/a b/c", "table": "mine/val.csv"}
    content |= {"group_pattern": r"(\w+)/(?:x/)*", "path_repair": ["(a)", r"\1b"]}
    record.write_text(json.dumps(content))
    assert load_record(record).splits["val"].table == "mine/val.csv"
    record.write_text(" " * (1 << 26) + "{}")
    fails(LaryError, "more than the", load_record, record)
