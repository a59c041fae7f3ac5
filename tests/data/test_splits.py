"""Tables of splits: found by name and drawn by group; tests/golden and tests/parity have those that are split."""

from dataclasses import replace
from pathlib import Path

from lary.data.spec import DATASETS, Draw, Split
from lary.data.splits import find_table, validates
from lary.types import UsageError
from tests.data.arm import PAIR
from tests.helpers import fails, printed, rows_of
from tests.tree import write_table


def test_tables_are_found_by_both_names(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    words = r"no file .*two_metadata_val\.csv nor .*two_val\.csv.*LARY_ROOT"
    fails(UsageError, words, find_table, PAIR, "val", tmp_path)
    fails(UsageError, r"no file .*other\.csv\. Check", find_table, PAIR, "val", tmp_path, tmp_path / "other.csv")
    fails(UsageError, "no split 'train'", find_table, PAIR, "train", tmp_path)
    fails(UsageError, "lary data download --include calvin", find_table, DATASETS.get("calvin"), "val", tmp_path)
    own = replace(PAIR, splits={"val": Split("here", table="mine.csv")})
    for name, spec in (("two_val.csv", PAIR), ("two_metadata_val.csv", PAIR), ("mine.csv", own)):
        (folder / name).touch()
        assert find_table(spec, "val", tmp_path) == folder / name


def test_groups_of_a_column_stay_together(tmp_path: Path) -> None:
    rows = [{"video_path": f"s{n % 6}_{n}.mp4", "action": "ab"[n % 2], "take": f"take {n % 4}"} for n in range(24)]
    write_table(tmp_path / "data/two_metadata_all.csv", rows)
    draw = Draw(("all",), validates=True, share=0.3)
    spec = replace(PAIR, media="clip", splits={"all": Split("here")}, drawn={"val": draw}, group_column="take")
    drawn = {row["take"] for row in rows_of(find_table(spec, "val", tmp_path))}
    assert drawn == {take for take in {row["take"] for row in rows} if validates(take, 0.3)}
    table, train, val = (tmp_path / name for name in ("all.csv", "train.csv", "val.csv"))
    words = ("data", "split", table, "--train", train, "--val", val)
    write_table(table, rows)
    for options, found in ((("--group-column", "take"), lambda row: row["take"]),
                           (("--group-pattern", r"^s(\d)_"), lambda row: row["video_path"][:2])):  # fmt: skip
        printed(*words, *options)
        parts = [set(map(found, rows_of(path))) for path in (train, val)]
        assert (bool(parts[0] & parts[1]), min(map(len, parts)) > 0) == (False, True)
    for options, message in (
        (("--group-column", "session"), "has no column 'session'; it has: video_path, action, take."),
        (("--group-pattern", "(s"), "--group-pattern '(s' is no regular expression: missing ), unterminated"),
        (
            ("--group-pattern", "x"),
            "row 1: column 'video_path' holds 's0_0.mp4', in which the pattern 'x' finds no group.",
        ),
    ):
        printed(*words, *options, code=2, has=[message])
    write_table(table, [{"video_path": "a.mp4"}])
    printed(*words, code=2, has=["has no column 'action'; it has: video_path."])


def test_drawn_table_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    spec = DATASETS.get("vlabench_15")
    rows = [{"src_img": f"ep_{n}/a.png", "tgt_img": f"ep_{n}/b.png", "action": f"ep_{n}/a.npy"} for n in range(20)]
    train, val = (tmp_path / "data" / f"vlabench_15_metadata_{split}.csv" for split in ("train", "val"))
    write_table(train, rows)
    fails(UsageError, "no table of vlabench_15 val", find_table, spec, "val_by_episode", tmp_path)
    write_table(val, rows[:3])
    path = find_table(spec, "val_by_episode", tmp_path)
    before = path.read_bytes()
    assert find_table(spec, "val_by_episode", tmp_path).read_bytes() == before
    path.write_text("src_img,tgt_img,action\nep_1/a.png,ep_1/b.png,ep_1/a.npy\n")
    fails(UsageError, "remove it", find_table, spec, "val_by_episode", tmp_path)
    assert find_table(spec, "val_by_episode", tmp_path, path) == path, "as --input has it"
    train.unlink()
    assert find_table(spec, "val_by_episode", tmp_path) == path, "drawn on another machine"
    write_table(train, [{"src_img": "a", "other": "b"}])
    words = "no column 'other'; it has: src_img, tgt_img, action"
    fails(UsageError, words, find_table, spec, "val_by_episode", tmp_path)
