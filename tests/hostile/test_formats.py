"""Every format that others write: a valid file, one change, and commands that read it.

Three outcomes are right: the command works, refuses the file in one sentence, or lists it as unreadable. Wrong are any
other exception, a hang, gigabytes of memory, and files outside the folders that were named. Hypothesis chooses the
changes; ``LARY_FORMATS=200 pytest tests/hostile/test_formats.py`` tries more of them than the suite does.
"""

import copy
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace as Entry
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lary.configs import ExtractConfig
from lary.data.spec import DATASETS
from lary.runs.extract import extract
from tests.fake_results import write_classification, write_regression
from tests.helpers import lary, settings_of
from tests.hostile.harness import bounded
from tests.lerobot_files import write_lerobot
from tests.tree import make_calvin

TRIES = int(os.environ.get("LARY_FORMATS", "6"))
OUTSIDE = "outside_of_the_roots"
NUMBERS = (-1, 0, 1, 2**31, 2**63, 10**30, 10**400, -(10**400), 0.5, 1e-320, 1e30, 1e308)
ODD: tuple[Any, ...] = (
    *(None, True, False, *NUMBERS, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "0x10", "1", "NaN", "\0", "\x1b[2J\n", "\ud800", "ä" * 300, "a" * 70_000, "evil", "float16"),
    *("../" * 12 + OUTSIDE, f"x/../../{OUTSIDE}", "/etc/passwd", "/dev/zero", "C:\\x", "..", "/", "~root", "{a}"),
    *("{episode_index:0300000000d}", "(a+)+$", "^(([a-z_0-9/.]?)+)+$X", "(a|aa)+$", r"\9", "(?P<x>", "a{1000000000}"),
    *([], {}, [1], ["x"], [[1]], [None] * 3, {"a": 1}, {"": {}}, [[[[[[[[1]]]]]]]], [10**9], [10**9] * 9, [-1]),
)  # fmt: skip
"""What may be in the place of any value."""
ODD_YAML = tuple(value for value in ODD if value != "\ud800")
HEADERS = (
    "'shape': (True, True)", "'shape': (-1, 5)", "'shape': (10**9,)", "'shape': (1000000000, 1000000000)", "'shape': 5",
    "'shape': ()", "'shape': (5,)", "'shape': (0, 7)", "'shape': (5, 7.0)", "'shape': [5, 7]", "'shape': None", "",
    "'descr': '|O'", "'descr': '<f2'", "'descr': '<U7'", "'descr': '<c16'", "'descr': 'evil'", "'descr': '<M8[s]'",
    "'descr': [('a', '<f4')]", "'descr': '|V4'", "'descr': '<f999999999'", "'fortran_order': 5", "'x': " + "(" * 500,
)  # fmt: skip
"""What may be in a header of numpy, in place of the field of that name."""
Draw = Callable[[st.SearchStrategy[Any]], Any]
Change = Callable[[Path, Draw], object]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a value; of long lists the first four."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(value: Any, draw: Draw, odd: tuple[Any, ...] = ODD) -> Any:
    """A copy with one value replaced, removed, or put under another key or a second time."""
    value = copy.deepcopy(value)
    *above, last = draw(st.sampled_from(list(places(value))))
    inside = value
    for key in above:
        inside = inside[key]
    how, new = draw(st.sampled_from(("replace",) * 6 + ("remove", "again"))), draw(st.sampled_from(odd))
    if how == "replace":
        inside[last] = new
    elif how == "again" and isinstance(inside, list):
        inside.append(inside[last])
    elif how == "again":
        inside[new if isinstance(new, str) else "x"] = inside[last]
    else:
        del inside[last]
    return value


def in_text(load: Callable[[str], Any], dump: Callable[[Any], str], odd: tuple[Any, ...] = ODD) -> Change:
    return lambda path, draw: path.write_text(dump(changed(load(path.read_text()), draw, odd)))


in_json, in_yaml = in_text(json.loads, json.dumps), in_text(yaml.safe_load, yaml.safe_dump, ODD_YAML)
in_lines = in_text(lambda text: [*map(json.loads, text.splitlines())], lambda rows: "\n".join(map(json.dumps, rows)))


def in_parquet(path: Path, draw: Draw) -> None:
    """One cell, one column of another kind, or more rows than the description says."""
    rows = pq.read_table(path)
    name = draw(st.sampled_from(rows.column_names))
    at, count = rows.column_names.index(name), rows.num_rows
    values = ([None], ["x"], [float("inf")], [2**62], [[[1]]])
    changes = [rows.set_column(at, name, pa.array(value * count)) for value in values]
    more = rows.take(pa.array(np.zeros(300_000, np.int64)))
    rows = draw(st.sampled_from([*changes, more, rows.drop_columns([name]), rows.append_column(name, rows[name])]))
    pq.write_table(rows, path, compression="zstd")


def in_bytes(path: Path, draw: Draw) -> None:
    """A file cut off, or some bytes replaced, added or taken out."""
    content = path.read_bytes()
    at = draw(st.integers(0, len(content)))
    some = st.sampled_from((b"\0" * 99, b"\xff" * 4, b'"', b"\n\n", b",,,,", b"/.."))
    new = draw(st.one_of(st.binary(max_size=8), some))
    end = draw(st.sampled_from((at, at + len(new), at + 1, len(content))))
    path.write_bytes(content[:at] + new + content[end:])


def in_header(path: Path, draw: Draw) -> None:
    """A numpy file whose header says something else."""
    values, field = np.load(path), draw(st.sampled_from(HEADERS))
    fields = {"descr": "'<f4'", "fortran_order": "False", "shape": str(values.shape)}
    kept = [f"'{name}': {value}" for name, value in fields.items() if not field.startswith(f"'{name}'")]
    text = ("{" + ", ".join([*kept, field]) + "}\n").encode()
    path.write_bytes(b"\x93NUMPY\x02\0" + len(text).to_bytes(4, "little") + text + values.tobytes())


def in_table(path: Path, draw: Draw) -> None:
    """A CSV with an odd cell or name of a column."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    row = draw(st.integers(0, len(lines) - 1))
    lines[row][draw(st.integers(0, len(lines[row]) - 1))] = str(draw(st.sampled_from(ODD_YAML)))
    path.write_text("\n".join(",".join(line) for line in lines))


TWO, THREE = (("data", "import-lerobot", f"{{root}}/{name}", "--name", "fresh") for name in ("two", "three"))
PLUGIN = ("--plugin", "{root}/data/cube_dataset.py")
STORE, STORED = "latent_actions/calvin/val/pixels", ("--model", "pixels", "--dataset", "calvin", "--split", "val")
CUBE = ("extract", "--model", "pixels", "--dataset", "cube", "--split", "val", "--dry-run", *PLUGIN)
TRIAL = ("extract", *STORED, "--dry-run")
ABOUT = (("datasets", "cube"), ("data", "audit", "cube"), ("data", "stats", "--dataset", "cube"))
ON_RECORD = [(*words, *PLUGIN) for words in ABOUT]
LATENTS = [("latents", *words, *STORED) for words in (("info",), ("verify",), ("convert", "--store", "shards"))]
DOWNLOAD = ("data", "download", "--include", "calvin", "--accept-licenses")
FORMATS: dict[str, tuple[str, Change, Sequence[tuple[str, ...]]]] = {
    "LeRobot v2 description": ("two/meta/info.json", in_json, [TWO]),
    "LeRobot v2 episodes": ("two/meta/episodes.jsonl", in_lines, [TWO]),
    "LeRobot v2 rows": ("two/data/chunk-000/episode_000001.parquet", in_parquet, [TWO]),
    "LeRobot v3 description": ("three/meta/info.json", in_json, [THREE]),
    "LeRobot v3 episodes": ("three/meta/episodes/chunk-000/file-000.parquet", in_parquet, [THREE]),
    "LeRobot v3 rows": ("three/data/chunk-000/file-000.parquet", in_parquet, [THREE]),
    "data set record": ("data/cube_dataset.json", in_json, [*ON_RECORD, CUBE]),
    "result.json": ("runs/a/result.json", in_json, [("report", "{root}/runs")]),
    "sweep.yaml": ("sweep.yaml", in_yaml, [("sweep", "{root}/sweep.yaml", "--dry-run")]),
    "lary.yaml": ("lary.yaml", in_yaml, [("config", "show", "--config", "{root}/lary.yaml")]),
    "hub listing": ("listing.json", in_json, [DOWNLOAD]),
    "lary_download.json": ("data/lary_download.json", in_json, [DOWNLOAD]),
    "store.json": (f"{STORE}/store.json", in_json, [("extract", *STORED), *LATENTS]),
    "latents": (f"{STORE}/latent_action_00000001.npz", in_bytes, [TRIAL, *LATENTS]),
    "actions": (
        "data/regression/calvin/train_stride5/actions/ep_0/action_000000to000004.npy", in_header,
        [("data", "stats", "--dataset", "calvin", "--output", "{root}/stats.json")],
    ),
    "table": ("data/calvin_metadata_val.csv", in_table, [TRIAL, ("data", "audit", "calvin")]),
}  # fmt: skip


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid file of every format, deep enough for paths with many ``..``."""
    root = make_calvin(tmp_path_factory.mktemp("formats") / "/".join("abcdefghijkl") / "root", {"train": 4, "val": 3})
    extract(ExtractConfig(model="pixels", dataset="calvin", split="val", workers=1), settings_of(root))
    write_lerobot(root / "two", "v2.1", images="PNG")
    write_lerobot(root / "three", "v3.0", images="PNG")
    assert lary("data", "import-lerobot", root / "two", "--name", "cube", root=root).code == 0
    write_classification(root / "runs/a", "one", 1.0)
    write_regression(root / "runs/b", "two", 0.5)
    sweep = {"options": {"dataset": "calvin"}, "grid": {"model": ["pixels", "dinov2"], "seed": [0, 1]}, "runs": []}
    (root / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (root / "lary.yaml").write_text(yaml.safe_dump({"LARY_ROOT": ".", "DATA_DIR": "data", "DINO_V2_PATH": "a/b"}))
    digest = "ea1f343c8a1248a4cc4eb47bc92953d0efddb510"
    files = [{"path": "regression/calvin/a.bin", "size": 4, "oid": digest, "lfs": None}]
    (root / "listing.json").write_text(json.dumps({"sha": "0" * 40, "files": files}))
    entry = {"size": 4, "sha256": "", "git": "0" * 40, "state": "done"}
    about = {"version": 1, "source": "huggingface", "repository": "meituan-longcat/LARYBench", "revision": "0" * 40}
    (root / "data/lary_download.json").write_text(json.dumps({**about, "files": {"regression/calvin/b.bin": entry}}))
    return root


class Hub:
    """A hub that lists what a file says, and gives four bytes for any file."""

    def __init__(self, root: Path) -> None:
        self.said = json.loads((root / "listing.json").read_text())

    def dataset_info(self, *_: Any, **__: Any) -> Any:
        return Entry(**self.said)

    def list_repo_tree(self, *_: Any, **__: Any) -> Iterator[Any]:
        api: Any = huggingface_hub.hf_api
        return (api.RepoFile(**file) for file in self.said["files"])


def give(_: str, path: str, *, local_dir: Path, **__: Any) -> None:
    (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
    (local_dir / path).write_bytes(b"four")


@pytest.mark.parametrize("name", FORMATS)
def test_one_change_works_or_is_refused_in_a_sentence(
    name: str, valid: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, change, commands = FORMATS[name]
    top, count = valid.parents[12], itertools.count()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(root))
    monkeypatch.chdir(tmp_path)
    known, root = dict(DATASETS._records), Path(valid)

    @settings(max_examples=TRIES, deadline=None, derandomize=TRIES < 20, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.data())
    def try_one(data: st.DataObject) -> None:
        nonlocal root
        root = valid.with_name(f"changed{next(count)}")  # a plug-in is loaded once per path
        monkeypatch.setattr(DATASETS, "_records", dict(known))
        shutil.copytree(valid, root)
        data.draw(st.sampled_from((change, change, change, in_bytes)))(root / file, data.draw)
        for words in commands:
            with bounded():
                done = lary(*(word.format(root=root) for word in words), root=root)
            text = done.out + done.err
            assert done.code in (0, 1, 2), text
            assert "Traceback" not in text, text
            assert "than this machine has" not in text, text
        others = {path.name for path in (*top.rglob(OUTSIDE), *tmp_path.rglob("*"))}
        assert sorted(root.parent.iterdir()) == [root, valid]
        shutil.rmtree(root)
        assert not others, others

    try_one()
