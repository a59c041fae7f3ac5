"""Tables of samples: both published path forms, ids and groups, strict CSV, and what is refused in a sentence."""

import csv
import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lary.data.spec import DATASETS, DatasetSpec, evaluate
from lary.data.tables import SampleTable, line_of, matched, placed, read_csv, read_frame, read_table
from lary.files import write_text
from lary.types import UsageError
from tests.data.arm import PAIR
from tests.helpers import FIXTURES, INPUTS, fails
from tests.hostile.harness import MEBIBYTE, bounded, refused

TABLES = FIXTURES / "metadata"
HEADER = "src_img,tgt_img,action\n"
CLIPS = replace(PAIR, media="clip", media_depth=None, group_pattern=DATASETS.get("human_1st").group_pattern)


def published(dataset: str, split: str, path: Path | None = None) -> SampleTable:
    path = path or TABLES / f"{dataset}_metadata_{split}.csv"
    return read_table(DATASETS.get(dataset), split, path=path, data_dir=Path("/data"))


def stored(folder: Path, text: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def written(folder: Path, text: str | bytes, spec: DatasetSpec = PAIR) -> SampleTable:
    return read_table(spec, "val", path=stored(folder, text), data_dir=folder)


def quoted(cells: dict[str, str]) -> str:
    """A table of one row, whatever its cells hold."""
    return f"{','.join(cells)}\n" + ",".join(f'"{cell}"' for cell in cells.values())


def row_of(folder: Path, spec: DatasetSpec, **cells: str) -> SampleTable:
    return written(folder, quoted(cells), spec)


TEXTS = (
    "a,b,c\n1,2,3\n", "a,b,c\r\n1,,3\r\n\r\n4,5,6", "a,b,c\r1,2,3\r", "\ufeffa, b ,c\n1,2,NA\nnull,NaN,nan\n",
    'a,b,c\n"1,2","say ""x""","two\nlines"\n1"x",2,"y"z\n', "a,b,c\n 1, 2,3 \n01,1e5,True\n", "a\nx\n\ny\n",
    "a,b,c\nä,漢,🤖\n",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_cells_are_those_of_the_csv_module(tmp_path: Path, text: str) -> None:
    path = stored(tmp_path, text)
    header, *rows = filter(None, csv.reader(text.removeprefix("\ufeff").splitlines(keepends=True)))
    for limit in (None, 1):
        frame = read_frame(path, limit)
        assert list(frame.columns) == [name.strip() for name in header]
        assert frame.to_numpy(dtype=object).tolist() == rows[:limit]
        assert all(type(cell) is str for cell in frame.to_numpy(dtype=object).ravel())
    assert read_csv(path) == ([name.strip() for name in header], rows)
    fails(UsageError, "at least 1", read_frame, path, 0)
    fails(UsageError, r"none\.csv does not exist", read_frame, tmp_path / "none.csv")
    assert line_of(path, len(rows) - 1) == len(text.splitlines())


def test_wrong_tables_are_named(tmp_path: Path) -> None:
    for text, words in (
        *INPUTS["wrong tables"].items(),
        (HEADER.encode() + b"\xff\xfe,b,open\n", "can't be read as CSV in UTF-8"),
        ("a," * 10_000_000 + "\n1\n", "a row has more than"),
        (",".join(map(str, range(5000))) + "\n" + "1," * 4999 + "1\n", "names 5000 columns, more than"),
        (HEADER + "a.png,b.png,open" + "," * 10_000_000 + "\n", "a row has more than|cells under"),
        (HEADER + 'a.png,b.png,"' + "x\n" * 2_000_000, "row 1.*4000000 letters|a row has more than"),
    ):  # fmt: skip
        path = stored(tmp_path, text)
        read = partial(read_table, PAIR, "val", path=path, data_dir=tmp_path)
        assert "table.csv" in refused(tmp_path, read, words)


def test_both_path_forms_give_the_same_samples() -> None:
    table, short = published("calvin", "val"), published("calvin", "val", TABLES / "val_la_calvin_5_dinov2.csv")
    assert list(table) == list(short)
    assert list(map(table.media_path, table)) == list(map(short.media_path, short))
    sample, root = table[0], Path("/data/regression/calvin/val_stride5")
    assert sample.media == ("images/ep_1/frame_000065.png", "images/ep_1/frame_000070.png")
    assert (sample.frame_index, sample.group, sample.embodiment, sample.row) == ((), "ep_1", "robot", 0)
    assert table.media_path(sample)[1] == root / "images/ep_1/frame_000070.png"
    assert table.action_path(0) == short.action_path(0) == root / "actions/ep_1/action_000065to000069.npy"


def test_published_first_rows_are_read() -> None:
    for path in sorted(TABLES.glob("*_metadata_*.csv")):
        table = published(*path.stem.split("_metadata_"))
        assert len({sample.id for sample in table}) == len(table) == 20
        assert table.groups() == tuple(sample.group for sample in table)
        assert table.embodiments == tuple(sample.embodiment for sample in table)
    table, task = published("robocoin", "unseen"), "R1_Lite_move_the_position_of_the_spoon"
    assert table[1].group == f"{task}/ep_19"
    assert table.embodiments[:2] == ("G1edu-u3", "galaxea_r1_lite")
    assert placed(f"{task}/ep_19/frame_005506.png", "images", 1) == f"{task}/images/ep_19/frame_005506.png"
    assert placed("ep2.npy", "actions", 1) == "actions/ep2.npy"
    assert published("agibotbeta", "unseen")[0].group == "task_593/ep_804004"


def test_libero_labels_groups_and_parts_of_a_table() -> None:
    table = published("libero", "val")
    assert table.groups()[0] == "libero_goal_clean/put_the_bowl_on_the_plate_demo/demo_31"
    classes = table.spec.labels.classes
    assert [classes[label] for label in table.labels()] == table.frame["action"].tolist()
    part = table.take([3, 1])
    assert list(part) == [table[3], table[1]]
    assert part.media_path(part[0]) == table.media_path(table[3])
    assert part.labels().tolist() == table.labels()[[3, 1]].tolist()
    assert table[-1] == table[19]
    fails(IndexError, "", table.__getitem__, 20)
    fails(UsageError, "lary classify", table.action_path, 0)


def test_episode_that_the_published_tables_lost(tmp_path: Path) -> None:
    row = "images/epframe_001451.png,images/epframe_001466.png,actions/epaction_001451to001465.npy"
    table = written(tmp_path, f"{HEADER}{row}\n", DATASETS.get("vlabench_15"))
    assert table[0].media[0] == "images/ep_15/frame_001451.png"
    assert table[0].group == "ep_15"
    literal = table.root / "images" / "epframe_001451.png"
    write_text(literal, "")
    assert table.media_path(table[0]) == (literal, table.root / "images/ep_15/frame_001466.png")


def test_clip_and_its_reversal_share_a_group(tmp_path: Path) -> None:
    for path, group in (
        ("SSv2/12_0.mp4", "SSv2/12"), ("SSv2/12_3_rev.mp4", "SSv2/12"), ("EgoDex/3279/7_1.mp4", "EgoDex/3279/7"),
        ("TACO/a_b/take_2.mp4", "TACO/a_b/take_2"), ("TACO/a_b/take_2_rev.mp4", "TACO/a_b/take_2"),
        ("AgiBotWorld-Beta/327/x.y.mp4", "AgiBotWorld-Beta/327/x.y"), ("SSv2/odd.mp4", "SSv2/odd"),
        ("EPIC-KITCHENS/a/P01_101_7_rev.mp4", "P01_101"), ("TACO/(dust, a, b)/20231105_019_2.mp4", "20231105_019"),
        ("Ego4D/0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d_3.mp4", "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"),
        ("HoloAssist/open/R007-7July-DSLR_12.mp4", "R007-7July-DSLR"), ("AgiBotWorld-Beta/804004_3.mp4", "804004"),
        ("AgiBotWorld-Beta/804004.mp4", "AgiBotWorld-Beta/804004"), ("EPIC-KITCHENS/P1.mp4", "EPIC-KITCHENS/P1"),
    ):  # fmt: skip
        table = row_of(tmp_path, CLIPS, video_path=path, action="open", sample_indices="0, 3,3")
        assert table.groups() == (group,) == (table[0].group,)
        alone = group == path.replace("_rev", "").removesuffix(".mp4")
        assert (table.unit, table.sources) == ("clips" if alone else "videos", ["" if alone else group])
        assert table[0].frame_index == (0, 3, 3)


def test_a_column_names_groups(tmp_path: Path) -> None:
    spec = replace(PAIR, group_column="session")
    rows = "src_img,tgt_img,action,session\nep_1/a.png,b.png,open,s1\nep_2/c.png,d.png,open,\n"
    table = written(tmp_path, rows, spec)
    assert (table.groups(), table[0].group, table.unit) == (("s1", "images/ep_2/c"), "s1", "pairs")
    assert table.take([0]).unit == "episodes"
    fails(UsageError, "no column 'session'", written, tmp_path, HEADER + "a.png,b.png,open\n", spec)


def test_id_is_content_not_position(tmp_path: Path) -> None:
    one, two = "ep_1/a.png,ep_1/b.png,open\n", "ep_1/b.png,ep_1/a.png,close\n"
    first, second = list(written(tmp_path, HEADER + one + two)), list(written(tmp_path, HEADER + two + one))
    assert [sample.id for sample in first] == [sample.id for sample in reversed(second)]
    assert len({sample.id for sample in first}) == 2
    assert row_of(tmp_path, PAIR, src_img="a", tgt_img="b", action="open", embodiment=" arm ").embodiments == ("arm",)


def test_missing_media_are_listed_once_in_order_and_files_without_their_folder_found(tmp_path: Path) -> None:
    table = written(tmp_path, HEADER + "a.png,b.png,open\nb.png,a.png,close\nc.png,a.png,open\nep_1/a.png,b.png,open\n")
    for file in ("images/a.png", "ep_1/a.png"):
        write_text(table.root / file, "")
    absent, another = table.root / "images/b.png", table.root / "images/c.png"
    assert (table.missing_media(), table.missing_media([2])) == ([absent, another], [another])
    assert table.media_path(table[3]) == (table.root / "ep_1/a.png", absent)


OUTSIDE = (
    "../../secret.png", "a/../../secret.png", "a/..", "..", "/etc/passwd", "~/../../etc/passwd/../../..",
    "C:\\secret.png", "C:", "\\\\host\\share\\secret.png", "..\\..\\secret.png", "file:///etc/passwd", "//a",
)  # fmt: skip
CONTROL = ("a\nb.png", "a\x1b]0;title\x07b.png", "a\rb.png", "a\x7f.png", "a\0.png")
LONG = ("x" * 256, "y/" * 2100, "x" * (3 * MEBIBYTE))
CELLS = [(OUTSIDE, "leaves its root"), (CONTROL, "control characters|NUL"), (LONG, "too long|row 1.*letters")]


@pytest.mark.parametrize("column", ["src_img", "tgt_img", "action"])
@pytest.mark.parametrize(("cells", "words"), CELLS, ids=["outside", "control", "long"])
def test_cells_that_no_file_should_have(tmp_path: Path, cells: tuple[str, ...], words: str, column: str) -> None:
    for cell in cells:
        path = stored(tmp_path, quoted({"src_img": "a.png", "tgt_img": "b.png", "action": "c.npy", column: cell}))
        read = partial(read_table, DATASETS.get("calvin"), "val", path=path, data_dir=tmp_path)
        sentence = refused(tmp_path, read, words)
        assert ("\x1b" in sentence, "x" * 160 in sentence) == (False, False)


def test_wrong_frame_indices_and_labels_are_named(tmp_path: Path) -> None:
    clip = {"video_path": "a.mp4", "action": "open", "sample_indices": "0,1"}
    words = r"row 1 \(line 2\): column 'sample_indices'"
    for cell in ("", "1;2", "-1,2", "1,,2", "1.5", "a", "1,2,", "9" * 5000, "1," * 100_000 + "1", "9999999999", "٣٣٣"):
        fails(UsageError, words, row_of, tmp_path, CLIPS, **clip | {"sample_indices": cell})
    for label in ("../../../../outside", "/etc/passwd", "pick\0", "a/b", "__import__('os')"):
        fails(UsageError, "is no class", row_of, tmp_path, CLIPS, **clip | {"action": label})


@pytest.mark.parametrize("pattern", ["^(([a-z_0-9/.]?)+)+$X?$", "(a|aa)+$", "(a+)+$", "^(a?){64}a{64}$", "(a|a)*b"])
@pytest.mark.parametrize("replacement", [None, "b"])
def test_patterns_without_end_are_refused_or_end(tmp_path: Path, pattern: str, replacement: str | None) -> None:
    with bounded(), suppress(UsageError):
        evaluate(pattern, "a" * 4095 + "!", replacement)


def test_patterns_are_those_of_python() -> None:
    """With the limit of time and without it; a replacement is checked before there is a match."""
    found = [matched(pattern, "a/images/ep_1/f.png") for pattern in ("^(.*?ep_[^/]+)/", "^(?:(.*?ep_[^/]+))+/")]
    assert found == ["a/ep_1"] * 2
    assert evaluate(r"\bep(frame|x)_", "a/epframe_1", r"ep_5/\1_") == "a/ep_5/frame_1"
    assert evaluate(r"(?:\bep(frame|x)_)+", "a/epframe_1", r"ep_5/\1_") == "a/ep_5/frame_1"
    for wrong in (("(", None), ("a", r"\1"), ("(?:a)+", r"\1")):
        fails(UsageError, "regular expression", evaluate, wrong[0], "b", wrong[1])


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    refused(tmp_path, lambda: read_frame(tmp_path / "pipe.csv"), "it is no regular file")


ODD_PAIRS = (
    "images/ep_1/a.png,images/ep_1/b.png,actions/ep_1/a.npy",
    "ep_1/a.png,./images//ep_1/b.png,actions/x",
    "ep_1\\a.png,images/ep ö/b.png ,ep_1/actions/a.npy",
    '"images/ep_1/a,b.png",x/images/b.png,images/a.npy',
    "images,images/,actions/ ä.npy",
)


@pytest.mark.parametrize("depth", [None, 0, 1])
def test_ids_from_columns_are_those_of_the_samples(tmp_path: Path, depth: int | None) -> None:
    spec = replace(PAIR, media_depth=depth, target=DATASETS.get("calvin").target)
    table = written(tmp_path, HEADER + "\n".join(ODD_PAIRS), spec)
    assert table.ids == [sample.id for sample in table]
    repaired = replace(table, spec=replace(spec, path_repair=("ep_", "episode_")))
    assert repaired.ids == [sample.id for sample in repaired] != table.ids
    assert table.take([3, 0]).ids == [table.ids[3], table.ids[0]]


def test_ids_from_columns_of_published_tables_and_of_clips(tmp_path: Path) -> None:
    tables = [published(*path.stem.split("_metadata_")) for path in TABLES.glob("*_metadata_*.csv")]
    rows = 'a.mp4,open,"3,9"\nb/c.mp4,close,"007, 9"\n'
    for table in (*tables, written(tmp_path, "video_path,action,sample_indices\n" + rows, CLIPS)):
        assert table.ids == [sample.id for sample in table]
