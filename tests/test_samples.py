"""Tables of samples: both published path forms, ids and groups, and what is said about a wrong table."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lary.data.spec import DATASETS, ActionSpace, DatasetSpec, LabelSpace, Split
from lary.data.splits import find_table
from lary.data.tables import SampleTable, line_of, placed, read_table, without_images
from lary.files import inside
from lary.types import UsageError

TABLES = Path(__file__).parent / "fixtures" / "metadata"
PAIR = DatasetSpec(
    name="two", title="Two", media="pair", target=LabelSpace(("close", "open")), splits={"val": Split("here")},
    licences=(), media_depth=0, group_pattern=r"^(.*?ep_\d+)/",
)  # fmt: skip
CLIPS = replace(
    PAIR, name="clips", media="clip", media_depth=None, group_pattern=DATASETS.get("human_1st").group_pattern
)
ARM = replace(PAIR, name="arm", target=ActionSpace(dims=("x", "y"), horizon=2), embodiment_column="robot_type")


def published(dataset: str, split: str, path: Path | None = None) -> SampleTable:
    path = path or TABLES / f"{dataset}_metadata_{split}.csv"
    return read_table(DATASETS.get(dataset), split, path=path, data_dir=Path("/data"))


def written(folder: Path, text: str | bytes, spec: DatasetSpec = PAIR, limit: int | None = None) -> SampleTable:
    path = folder / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(spec, "val", path=path, data_dir=folder, limit=limit)


def test_calvin_sample() -> None:
    table = published("calvin", "val")
    sample = table[0]
    assert len(table) == len(table.frame) == 20
    assert sample.media == ("images/ep_1/frame_000065.png", "images/ep_1/frame_000070.png")
    assert sample.frame_index == ()
    assert (sample.group, sample.embodiment, sample.row) == ("ep_1", "robot", 0)
    assert table.media_path(sample)[1] == Path("/data/regression/calvin/val_stride5/images/ep_1/frame_000070.png")
    assert table.action_path(sample) == Path(
        "/data/regression/calvin/val_stride5/actions/ep_1/action_000065to000069.npy"
    )
    assert "src_state" in table.frame.columns


def test_both_path_forms_give_the_same_samples() -> None:
    long, short = published("calvin", "val"), published("calvin", "val", TABLES / "val_la_calvin_5_dinov2.csv")
    assert [sample.id for sample in long] == [sample.id for sample in short]
    assert list(long) == list(short)
    assert [long.media_path(sample) for sample in long] == [short.media_path(sample) for sample in short]
    assert [long.action_path(sample) for sample in long] == [short.action_path(sample) for sample in short]


def test_task_folder_stays_in_front() -> None:
    table = published("robocoin", "unseen")
    assert table[1].group == "R1_Lite_move_the_position_of_the_spoon/ep_19"
    assert table.embodiments()[:2] == ("G1edu-u3", "galaxea_r1_lite")
    assert "nan" not in table.embodiments()
    task = "R1_Lite_move_the_position_of_the_spoon"
    assert placed(f"{task}/ep_19/frame_005506.png", "images", 1) == f"{task}/images/ep_19/frame_005506.png"
    assert placed("ep2.npy", "actions", 1) == "actions/ep2.npy"
    assert published("agibotbeta", "unseen")[0].group == "task_593/ep_804004"


def test_libero_labels_and_groups() -> None:
    table = published("libero", "val")
    assert table.groups()[0] == "libero_goal_clean/put_the_bowl_on_the_plate_demo/demo_31"
    classes = table.spec.labels.classes
    assert [classes[label] for label in table.labels()] == table.frame["action"].tolist()
    assert table.labels().dtype == "int64"
    assert table.media_path(table[0])[0].is_relative_to("/data/classification/LIBERO")


def test_episode_that_the_published_tables_lost(tmp_path: Path) -> None:
    row = "images/epframe_001451.png,images/epframe_001466.png,actions/epaction_001451to001465.npy"
    path = tmp_path / "table.csv"
    path.write_text(f"src_img,tgt_img,action\n{row}\n")
    table = read_table(DATASETS.get("vlabench_15"), "val", path=path, data_dir=tmp_path)
    assert table[0].media[0] == "images/ep_15/frame_001451.png"
    assert table[0].group == "ep_15"
    literal = table.root / "images" / "epframe_001451.png"
    literal.parent.mkdir(parents=True)
    literal.touch()
    assert table.media_path(table[0]) == (literal, table.root / "images/ep_15/frame_001466.png")


@pytest.mark.parametrize("name", [path.name for path in sorted(TABLES.glob("*_metadata_*.csv"))])
def test_shipped_first_rows_are_read(name: str) -> None:
    dataset, split = name.removesuffix(".csv").split("_metadata_")
    table = published(dataset, split)
    assert len({sample.id for sample in table}) == len(table) == 20
    assert table.groups() == tuple(sample.group for sample in table)
    assert table.embodiments() == tuple(sample.embodiment for sample in table)


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("SSv2/12_0.mp4", "SSv2/12"),
        ("SSv2/12_3_rev.mp4", "SSv2/12"),
        ("EgoDex/3279/7_1.mp4", "EgoDex/3279/7"),
        ("TACO/a_b/take_2.mp4", "TACO/a_b/take_2"),
        ("TACO/a_b/take_2_rev.mp4", "TACO/a_b/take_2"),
        ("AgiBotWorld-Beta/327/x.y.mp4", "AgiBotWorld-Beta/327/x.y"),
        ("SSv2/odd.mp4", "SSv2/odd"),
    ],
)
def test_clip_and_its_reversal_share_a_group(tmp_path: Path, path: str, group: str) -> None:
    table = written(tmp_path, f'video_path,action,sample_indices\n{path},open,"0,3,3"\n', CLIPS)
    assert table.groups() == (group,) == (table[0].group,)
    assert table[0].frame_index == (0, 3, 3)


def test_id_is_content_not_position(tmp_path: Path) -> None:
    head, one, two = "src_img,tgt_img,action\n", "ep_1/a.png,ep_1/b.png,open\n", "ep_1/b.png,ep_1/a.png,close\n"
    first, second = list(written(tmp_path, head + one + two)), list(written(tmp_path, head + two + one))
    assert [sample.id for sample in first] == [sample.id for sample in reversed(second)]
    assert len({sample.id for sample in first}) == 2


def test_bom_crlf_quoted_commas_and_blank_lines(tmp_path: Path) -> None:
    first = '"ep_1/a,1.png",ep_1/b.png,open,"two\r\nlines"'
    text = f"\ufeffsrc_img,tgt_img,action,note\r\n{first}\r\n\r\nep_2/a.png,ep_2/b.png,close,\r\n"
    table = written(tmp_path, text)
    assert [sample.media[0] for sample in table] == ["images/ep_1/a,1.png", "images/ep_2/a.png"]
    assert table.frame["note"].tolist() == ["two\r\nlines", ""]
    assert line_of(table.path, 1) == 5


def test_embodiment_column_is_optional(tmp_path: Path) -> None:
    table = written(tmp_path, "src_img,tgt_img,action,embodiment\na/x.png,a/y.png,open,left arm\n")
    assert table.embodiments() == ("left arm",)


def test_take_keeps_rows_and_limit_cuts(tmp_path: Path) -> None:
    table = published("libero", "val")
    part = table.take([3, 1])
    assert [sample.row for sample in part] == [3, 1]
    assert [sample.id for sample in part] == [table[3].id, table[1].id]
    assert part.media_path(part[0]) == table.media_path(table[3])
    assert part.labels().tolist() == table.labels()[[3, 1]].tolist()
    assert table[-1] == table[19]
    with pytest.raises(IndexError):
        _ = table[20]
    rows = "src_img,tgt_img,action\n" + "ep_1/a.png,ep_1/b.png,open\n" * 5
    assert len(written(tmp_path, rows, limit=2)) == 2
    with pytest.raises(UsageError, match="at least 1"):
        written(tmp_path, rows, limit=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("src_img,tgt_img,action\n", "no rows"),
        ("src_img,action\na,open\n", r"no column 'tgt_img', which two needs; it has: src_img, action"),
        ("src_img,src_img,action\na,b,open\n", "names a column twice"),
        ("src_img,tgt_img,action\na,b,open\na,b\n", r"row 2 \(line 3\): 2 cells under 3"),
        ("src_img,tgt_img,action\na,b,c,open\n", r"row 1 \(line 2\): 4 cells under 3"),
        ("src_img,tgt_img,action\na,b,open\na,,open\n", r"row 2 \(line 3\): column 'tgt_img' is empty"),
        ("src_img,tgt_img,action\na,b,open\n\na,b,opne\n", r"row 2 \(line 4\): 'opne' is no class.* Did you mean open"),
        ("src_img,tgt_img,action\n../a,b,open\n", r"row 1 \(line 2\): the path '../a' leaves its root"),
        ("src_img,tgt_img,action\na,/b,open\n", "leaves its root"),
        (b"src_img,tgt_img,action\n\xff\xfe,b,open\n", "can't be read as CSV in UTF-8"),
    ],
)  # fmt: skip
def test_wrong_tables_are_named(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        written(tmp_path, text)
    assert "table.csv" in str(caught.value)


@pytest.mark.parametrize("cell", ["", "1;2", "-1,2", "1,,2", "1.5", "a", "1,2,"])
def test_wrong_frame_indices_are_named(tmp_path: Path, cell: str) -> None:
    with pytest.raises(UsageError, match=r"row 1 \(line 2\): column 'sample_indices'"):
        written(tmp_path, f'video_path,action,sample_indices\na.mp4,open,"{cell}"\n', CLIPS)


def test_robot_column_is_needed_where_the_record_has_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column 'robot_type'"):
        written(tmp_path, "src_img,tgt_img,action\na,b,c.npy\n", ARM)
    with pytest.raises(UsageError, match="leaves its root"):
        written(tmp_path, "src_img,tgt_img,action,robot_type\na,b,../c.npy,x\n", ARM)


parts = st.text(st.sampled_from("ab. é"), min_size=1, max_size=4).filter(lambda part: part.strip(" .") != "")
ways_out = st.sampled_from(["..", "../..", "/", "//", "C:", "C:\\", "\\", "..\\"])


@given(before=st.lists(parts, max_size=3), out=ways_out, after=st.lists(parts, min_size=1, max_size=3))
def test_no_path_leaves_the_root(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], out: str, after: list[str]
) -> None:
    absolute = out.startswith(("/", "\\", "C:"))
    path = "/".join(([] if absolute else before) + [out, *after])
    folder = tmp_path_factory.getbasetemp()
    with pytest.raises(UsageError, match="leaves its root"):
        written(folder, f'src_img,tgt_img,action\n"{path}",b.png,open\n')


@given(segments=st.lists(parts, min_size=1, max_size=5), depth=st.sampled_from([None, 0, 1, 2]))
def test_placing_is_stable_and_stays_inside(segments: list[str], depth: int | None) -> None:
    once = placed("/".join(segments), "images", depth)
    assert placed(once, "images", depth) == once
    assert inside(Path("/root"), once).is_relative_to("/root")
    assert ("images" in once.split("/")) == (depth is not None)


def test_tables_are_found_by_both_names(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"two_metadata_val\.csv nor .*two_val\.csv exists.*LARY_ROOT"):
        find_table(PAIR, "val", tmp_path)
    (folder / "two_val.csv").touch()
    assert find_table(PAIR, "val", tmp_path) == folder / "two_val.csv"
    (folder / "two_metadata_val.csv").touch()
    assert find_table(PAIR, "val", tmp_path) == folder / "two_metadata_val.csv"
    own = replace(PAIR, splits={"val": Split("here", table="mine.csv")})
    (folder / "mine.csv").touch()
    assert find_table(own, "val", tmp_path) == folder / "mine.csv"
    with pytest.raises(UsageError, match=r"other\.csv does not exist"):
        find_table(PAIR, "val", tmp_path, tmp_path / "other.csv")
    with pytest.raises(UsageError, match="no split 'train'"):
        find_table(PAIR, "train", tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_table(PAIR, "val", path=tmp_path / "none.csv", data_dir=tmp_path)


def test_missing_media_are_listed_once_in_order(tmp_path: Path) -> None:
    table = written(tmp_path, "src_img,tgt_img,action\na.png,b.png,open\nb.png,a.png,close\nc.png,a.png,open\n")
    (table.root / "images").mkdir(parents=True)
    (table.root / "images" / "a.png").touch()
    assert table.missing_media() == [table.root / "images/b.png", table.root / "images/c.png"]
    assert table.missing_media([2]) == [table.root / "images/c.png"]


def test_file_without_its_folder_is_found_where_it_lies(tmp_path: Path) -> None:
    table = written(tmp_path, "src_img,tgt_img,action\nep_1/a.png,ep_1/b.png,open\n")
    (table.root / "ep_1").mkdir(parents=True)
    (table.root / "ep_1" / "a.png").touch()
    assert table.media_path(table[0]) == (table.root / "ep_1/a.png", table.root / "images/ep_1/b.png")


@given(st.lists(st.sampled_from(["images", "a", "ximages", "imagesx"]), min_size=1, max_size=5))
def test_one_folder_of_images_is_left_out(parts: list[str]) -> None:
    path = "/".join([*parts, "f.png"])
    assert without_images(path) == re.sub(r"(^|/)images/", r"\1", path, count=1)
