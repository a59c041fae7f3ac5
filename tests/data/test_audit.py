"""The audit: what it must find in the published tables, in planted files, and in splits drawn by episode."""

import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lary.data.audit import KINDS, AuditReport, Finding, audit, digest_frames, open_parts
from lary.data.configs import AuditConfig
from lary.data.spec import DATASETS, DatasetSpec, LabelSpace
from tests.helpers import FIXTURES, lary, rows_of, settings_of
from tests.tree import make_calvin, make_robot, write_table


def lines_of(name: str) -> list[list[str]]:
    text = lzma.decompress((FIXTURES / "published" / name).read_bytes()).decode()
    return [line.split(",") for line in text.splitlines()]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published tables, from the parts of them that tell rows apart; the rows are sorted."""
    root, rows = tmp_path_factory.mktemp("published"), []
    for split in ("train", "val"):
        pairs = []
        for episode, number in lines_of(f"vlabench_30_{split}.csv.xz"):
            folder, at = f"ep_{episode}/" if episode else "ep", int(number)
            images = [f"images/{folder}frame_{at + step:06d}.png" for step in (0, 30)]
            action = f"actions/{folder}action_{at:06d}to{at + 29:06d}.npy"
            pairs.append({"src_img": images[0], "tgt_img": images[1], "action": action})
        write_table(root / "data" / f"vlabench_30_metadata_{split}.csv", pairs)
    for path, action in lines_of("libero_val.csv.xz"):
        other = path.removesuffix("start") + "end" if path.endswith("start") else path.removesuffix("end") + "start"
        rows.append({"src_img": f"{path}.png", "tgt_img": f"{other}.png", "action": action})
    write_table(root / "data" / "libero_metadata_val.csv", rows)
    return root


def run(root: Path, dataset: str | DatasetSpec, **options: object) -> AuditReport:
    spec = DATASETS.get(dataset) if isinstance(dataset, str) else dataset
    return audit(spec, AuditConfig(**options), settings_of(root))  # type: ignore[arg-type]


def found(report: AuditReport, kind: str, *splits: str) -> Finding:
    (finding,) = (item for item in report.findings if item.kind == kind and (not splits or item.splits == splits))
    return finding


def leaks(report: AuditReport) -> set[str]:
    return {item.kind for item in report.leaks}


def test_vlabench_30_shares_its_episodes(published: Path) -> None:
    report = run(published, "vlabench_30")
    assert [facts["rows"] for facts in report.splits] == [12546, 4182]
    shared = found(report, "same_group")
    assert (shared.severity, shared.count, shared.total, shared.splits) == ("leak", 2771, 2933, ("train", "val"))
    assert found(report, "same_file").count == 4392
    assert leaks(report) == {"same_file", "same_group"}
    assert "leak    train and val: 2771 of 2933 episodes of val are in train too" in report.text()
    drawn = run(published, "vlabench_30", splits=("train_by_episode", "val_by_episode"))
    assert sum(facts["rows"] for facts in drawn.splits) == 12546 + 4182
    assert not drawn.leaks
    assert 0.23 < drawn.splits[1]["rows"] / (12546 + 4182) < 0.27


@pytest.mark.parametrize("by", ["episode", "segment"])
def test_libero_pairs_run_both_ways_and_stay_together_when_drawn(published: Path, tmp_path: Path, by: str) -> None:
    report = run(published, "libero")
    assert found(report, "reversed_pair").text == "3239 of 6485 pairs run from end to start, 3246 from start to end"
    both = found(report, "both_directions")
    assert (both.severity, both.count, both.total) == ("warning", 604, 5881)
    assert (report.splits[0]["classes"]["Open"], report.splits[0]["classes"]["Forward"]) == (1447, 11)
    rows = rows_of(published / "data" / "libero_metadata_val.csv")
    for split, part in (("train", rows[::2]), ("val", rows[1::2])):
        write_table(tmp_path / "data" / f"libero_metadata_{split}.csv", part)
    assert run(tmp_path, "libero").leaks
    drawn = run(tmp_path, "libero", splits=(f"train_by_{by}", f"val_by_{by}"))
    assert sum(item.count for item in drawn.findings if item.kind == "both_directions") == 604
    assert leaks(drawn) == ({"same_group"} if by == "segment" else set())


def test_clean_splits_do_not_leak_and_rows_that_repeat_or_contradict_are_found(tmp_path: Path) -> None:
    make_robot(make_calvin(tmp_path, {"train": 3, "val": 2}), {"train": 4, "val": 4})
    assert not run(tmp_path, "calvin").leaks  # both splits have an ep_0, under different roots
    assert not run(tmp_path, "robot_1st").leaks
    table = tmp_path / "data" / "robot_1st_metadata_train.csv"
    rows = rows_of(table)
    write_table(table, [*rows, rows[0], {**rows[1], "action": "pour"}, {**rows[1], "sample_indices": "0,1"}])
    report = run(tmp_path, "robot_1st")
    assert (found(report, "repeated_row").count, found(report, "contradiction").count) == (1, 1)
    assert found(report, "contradiction").text == "1 of 7 rows show what another row shows, with another target"


def test_clip_and_its_reversal_in_two_splits(tmp_path: Path) -> None:
    row = {"dataset": "TACO", "video_path": "TACO/a/take.mp4", "action": "cut", "sample_indices": "0,1"}
    for split, cells in ("train", {}), ("val", {"video_path": "TACO/a/take_rev.mp4", "action": "open"}):
        write_table(tmp_path / "data" / f"human_1st_metadata_{split}.csv", [row | cells])
    report = run(tmp_path, "human_1st")
    assert (leaks(report), found(report, "class_not_in_training").examples) == ({"same_group"}, ("open",))


def test_severities_and_what_unseen_splits_have_alone(tmp_path: Path) -> None:
    severe = {name for name, (severity, _) in KINDS.items() if severity == "leak" and not name.startswith("trained_")}
    assert severe == {f"same_{name}" for name in ("file", "sample", "group", "segment", "action_file", "frame_content")}
    rows = rows_of(FIXTURES / "metadata" / "robocoin_metadata_unseen.csv")
    known = [row for row in rows if row["robot_type"] != "galaxea_r1_lite"]
    write_table(tmp_path / "data/robocoin_metadata_seen_train.csv", [*known, known[0]])
    table = write_table(tmp_path / "data/robocoin_metadata_unseen.csv", rows)
    report = run(tmp_path, "robocoin")
    assert [facts["split"] for facts in report.splits] == ["seen_train", "unseen"]
    assert found(report, "robot_not_in_training").examples == ("galaxea_r1_lite",)
    assert [item.severity for item in report.findings] == ["leak"] * 4 + ["warning"] * 2
    named = run(tmp_path, "robocoin", splits=("seen_train",), table=(f"seen_val={table}",))
    assert [facts["rows"] for facts in named.splits] == [len(known) + 1, len(rows)]


def test_own_classes_need_no_public_record(tmp_path: Path) -> None:
    spec = replace(DATASETS.get("libero"), name="own", target=LabelSpace(("Close", "Open")), drawn={})
    start, end = (f"s/t/demo_1/a/{name}.png" for name in ("start", "end"))
    others = (start.replace("/a/", "/b/"), end.replace("/a/", "/b/"), "Close")
    pairs = ((start, end, "Open"), others, (end, start, "Close"))
    rows = [{"src_img": first, "tgt_img": second, "action": label} for first, second, label in pairs]
    for split, part in ("train", rows[:2]), ("val", rows[2:]):
        write_table(tmp_path / f"data/own_metadata_{split}.csv", part)
    assert leaks(run(tmp_path, spec)) == {"same_file", "same_sample", "same_group", "same_segment"}


def test_pairs_of_other_stride_and_episodes_without_a_name(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 2})
    table = tmp_path / "data" / "calvin_metadata_train.csv"
    rows = rows_of(table)
    rows[0]["tgt_img"], rows[1]["tgt_img"] = "images/ep_0/frame_000010.png", rows[1]["src_img"]
    rows[2]["src_img"] = "images/stray.png"
    write_table(table, rows)
    report = run(tmp_path, "calvin")
    assert (found(report, "other_stride").count, found(report, "same_frame").count) == (2, 1)
    assert found(report, "no_group").examples == ("regression/calvin/train_stride5/images/stray.png",)
    assert "equal_images" not in {item.kind for item in run(tmp_path, "calvin", frames=True).findings}


def test_frames_under_another_name(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 2, "val": 2})
    folder = tmp_path / "data/regression/calvin"
    train, val = (sorted((folder / f"{name}_stride5").rglob("*.png")) for name in ("train", "val"))
    picture = Image.open(train[0])
    picture.save(val[0], compress_level=0)  # other bytes, same pixels
    Image.fromarray(np.asarray(picture) ^ 1).save(val[1])
    picture.save(train[1])
    report = run(tmp_path, "calvin", frames=True)
    same = found(report, "same_frame_content")
    assert (same.severity, same.count, same.total) == ("leak", 1, 8)
    assert same.examples[0].endswith(f"= regression/calvin/train_stride5/images/ep_0/{train[0].name}")
    assert found(report, "equal_images").count == 1
    assert not leaks(run(tmp_path, "calvin"))
    make_robot(tmp_path, {"train": 2, "val": 3})
    folder = tmp_path / "data" / "classification" / "AgiBotWorld-Beta"
    (folder / "val" / "1.mp4").write_bytes((folder / "train" / "1.mp4").read_bytes())
    (folder / "val" / "2.mp4").write_bytes(b"nothing")
    report = run(tmp_path, "robot_1st", frames=True)
    assert found(report, "same_frame_content").examples[0].startswith("classification/AgiBotWorld-Beta/val/1.mp4 = ")
    assert found(report, "unreadable").count == 1
    part, *_ = open_parts(DATASETS.get("robot_1st"), AuditConfig(frames=True), settings_of(tmp_path))
    assert {len(frames) for frames in digest_frames(part, 1, []).values()} == {3}, "first, middle and last"


def test_command_writes_both_reports(published: Path, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "audit.json", "--output", tmp_path / "audit.txt")
    done = lary("data", "audit", "vlabench_30", *files, "--lary-root", published)
    assert (done.code, done.out) == (1, (tmp_path / "audit.txt").read_text())
    content = json.loads((tmp_path / "audit.json").read_text())
    assert (content["leaks"], content["findings"][0]["splits"]) == (2, ["train", "val"])
    assert lary("data", "audit", "libero", "--lary-root", published).code == 0
