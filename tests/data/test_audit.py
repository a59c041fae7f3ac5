"""The audit: what it must find in the published tables, in planted files, and in splits drawn by episode."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lary.data.audit import AuditReport, audit
from lary.data.audit_tables import Finding
from lary.data.configs import AuditConfig
from lary.data.hashing import FrameSource, hash_frame, hash_sources, nearest
from lary.data.spec import DATASETS, DatasetSpec, LabelSpace
from lary.data.tables import read_table
from lary.types import Failure, LaryError, UsageError
from tests.helpers import FIXTURES, lary, rows_of, settings_of
from tests.tree import make_calvin, make_robot, write_image, write_table

PUBLISHED = FIXTURES / "published"
HEADS = FIXTURES / "metadata"


def lines_of(name: str) -> list[list[str]]:
    text = lzma.decompress((PUBLISHED / name).read_bytes()).decode()
    return [line.split(",") for line in text.splitlines()]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published tables, from the parts of them that tell rows apart; the rows are sorted."""
    root = tmp_path_factory.mktemp("published")
    for split in ("train", "val"):
        rows = []
        for episode, number in lines_of(f"vlabench_30_{split}.csv.xz"):
            folder, at = f"ep_{episode}/" if episode else "ep", int(number)
            rows.append(
                {
                    "src_img": f"images/{folder}frame_{at:06d}.png",
                    "tgt_img": f"images/{folder}frame_{at + 30:06d}.png",
                    "action": f"actions/{folder}action_{at:06d}to{at + 29:06d}.npy",
                }
            )
        write_table(root / "data" / f"vlabench_30_metadata_{split}.csv", rows)
    rows = []
    for path, action in lines_of("libero_val.csv.xz"):
        folder, _, name = path.rpartition("/")
        other = {"action_start": "action_end", "action_end": "action_start"}[name]
        rows.append({"src_img": f"{path}.png", "tgt_img": f"{folder}/{other}.png", "action": action})
    write_table(root / "data" / "libero_metadata_val.csv", rows)
    return root


def run(root: Path, dataset: str | DatasetSpec, **options: object) -> AuditReport:
    spec = DATASETS.get(dataset) if isinstance(dataset, str) else dataset
    return audit(spec, AuditConfig(**options), settings_of(root))  # type: ignore[arg-type]


def found(report: AuditReport, kind: str, *splits: str) -> Finding:
    (finding,) = (item for item in report.findings if item.kind == kind and (not splits or item.splits == splits))
    return finding


def kinds(report: AuditReport) -> set[str]:
    return {finding.kind for finding in report.findings}


# The published tables


def test_vlabench_30_shares_its_episodes_and_lost_a_folder(published: Path) -> None:
    report = run(published, "vlabench_30")
    assert [facts.rows for facts in report.splits] == [12546, 4182]
    shared = found(report, "same_group")
    assert (shared.severity, shared.count, shared.total, shared.splits) == ("leak", 2770, 2932, ("train", "val"))
    assert "1 whose folder the table lost (ep_30)" in shared.text
    assert found(report, "same_file").count == 4392
    assert found(report, "lost_folder", "train").count == 2
    lost = found(report, "lost_folder", "val")
    assert lost.examples == ("images/epframe_003134.png (read as images/ep_30/frame_003134.png)",)
    assert {item.kind for item in report.leaks} == {"same_file", "same_group"}
    assert "leak    train and val: 2770 of 2932 episodes of val are in train too" in report.text()


def test_vlabench_30_by_episode_shares_nothing(published: Path) -> None:
    report = run(published, "vlabench_30", splits=("train_by_episode", "val_by_episode"))
    assert sum(facts.rows for facts in report.splits) == 12546 + 4182
    assert not report.leaks
    assert 0.23 < report.splits[1].rows / (12546 + 4182) < 0.27
    names = [path.name for path in sorted((published / "data").glob("*by_episode*"))]
    assert names == ["vlabench_30_metadata_train_by_episode.csv", "vlabench_30_metadata_val_by_episode.csv"]


def test_libero_pairs_run_both_ways_and_are_split_by_row(published: Path) -> None:
    report = run(published, "libero")
    assert found(report, "reversed_pair").text.startswith("3239 of 6485 pairs run from end to start, 3246 from start")
    both = found(report, "both_directions")
    assert (both.severity, both.count, both.total) == ("warning", 604, 5881)
    assert report.splits[0].classes["Open"] == 1447
    assert report.splits[0].classes["Forward"] == 11


@pytest.mark.parametrize("by", ["episode", "segment"])
def test_libero_directions_stay_together_when_drawn(published: Path, tmp_path: Path, by: str) -> None:
    rows = rows_of(published / "data" / "libero_metadata_val.csv")
    for split, part in (("train", rows[::2]), ("val", rows[1::2])):
        write_table(tmp_path / "data" / f"libero_metadata_{split}.csv", part)
    assert run(tmp_path, "libero").leaks
    drawn = run(tmp_path, "libero", splits=(f"train_by_{by}", f"val_by_{by}"))
    directions = {item.splits[0]: item.count for item in drawn.findings if item.kind == "both_directions"}
    assert sum(directions.values()) == 604
    assert ("same_group" in {item.kind for item in drawn.leaks}) == (by == "segment")
    assert not {"same_file", "same_segment", "same_sample"} & {item.kind for item in drawn.leaks}


def test_robots_without_a_type_are_counted_and_stay_without_one_where_no_rule_names_it(tmp_path: Path) -> None:
    path = HEADS / "robocoin_metadata_unseen.csv"
    report = run(tmp_path, "robocoin", table=(f"unseen={path}",))
    table = read_table(DATASETS.get("robocoin"), "unseen", path=path, data_dir=tmp_path)
    empty = found(report, "empty_robot_type")
    assert empty.count == list(table.frame["robot_type"]).count("") > 0
    assert empty.examples[0].startswith("G1edu-u3")
    assert f"the record knows {empty.count} of them as G1edu-u3" in empty.text
    assert "no statistics" not in empty.text
    assert "" not in table.embodiments()
    listed = rows_of(path)
    for row in listed[:2]:
        row |= {name: row[name].replace("G1edu-u3", "H2x") for name in ("src_img", "tgt_img", "action")}
        row["robot_type"] = " "
    write_table(tmp_path / "mixed.csv", listed)
    report = run(tmp_path, "robocoin", table=(f"unseen={tmp_path / 'mixed.csv'}",))
    mixed = found(report, "empty_robot_type")
    assert f"the record knows {mixed.count - 2} of them as G1edu-u3; 2 have no statistics" in mixed.text
    assert report.splits[0].embodiments[""] == 2


# Planted defects


def test_clean_splits_do_not_leak_and_rows_that_repeat_or_contradict_are_found(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 3, "val": 2})
    make_robot(tmp_path, {"train": 4, "val": 4})
    assert not run(tmp_path, "calvin").leaks  # both splits have an ep_0, under different roots
    assert not run(tmp_path, "robot_1st").leaks
    table = tmp_path / "data" / "robot_1st_metadata_train.csv"
    rows = rows_of(table)
    write_table(table, [*rows, rows[0], {**rows[1], "action": "pour"}])
    report = run(tmp_path, "robot_1st")
    assert (found(report, "repeated_row").count, found(report, "contradiction").count) == (1, 1)
    assert found(report, "absent_class", "train").total == 54


def test_clip_and_its_reversal_in_two_splits(tmp_path: Path) -> None:
    row = {"dataset": "TACO", "video_path": "TACO/a/take.mp4", "action": "cut", "sample_indices": "0,1"}
    write_table(tmp_path / "data" / "human_1st_metadata_train.csv", [row])
    write_table(
        tmp_path / "data" / "human_1st_metadata_val.csv",
        [{**row, "video_path": "TACO/a/take_rev.mp4", "action": "open"}],
    )
    report = run(tmp_path, "human_1st")
    assert [item.kind for item in report.leaks] == ["same_group"]
    assert found(report, "class_not_in_training").examples == ("open",)
    assert found(report, "class_shares").count == 1


def test_pairs_of_other_stride_episodes_without_a_name_and_actions_that_stand_still(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 2})
    table = tmp_path / "data" / "calvin_metadata_train.csv"
    folder = tmp_path / "data" / "regression" / "calvin" / "train_stride5" / "actions" / "ep_0"
    first, second = sorted(folder.glob("*.npy"))[:2]
    np.save(first, np.tile(np.load(first)[:1], (5, 1)))
    second.write_bytes(b"")
    report = run(tmp_path, "calvin", actions=True)
    constant = found(report, "constant_dimension")
    assert constant.examples == ("z", "roll", "pitch", "yaw", "gripper")
    assert (found(report, "no_motion").count, found(report, "no_motion").total) == (1, 5)
    assert found(report, "unreadable").count == 1
    rows = rows_of(table)
    rows[0]["tgt_img"], rows[1]["tgt_img"] = "images/ep_0/frame_000010.png", rows[1]["src_img"]
    rows[2]["src_img"] = "images/stray.png"
    write_table(table, rows)
    report = run(tmp_path, "calvin")
    assert found(report, "other_stride").count == 2
    assert found(report, "same_frame").count == 1
    assert found(report, "no_group").examples == ("images/stray.png",)


def test_frames_under_another_name(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 2, "val": 2})
    roots = {
        name: tmp_path / "data" / "regression" / "calvin" / f"{name}_stride5" / "images" for name in ("train", "val")
    }
    twin, alike = sorted(roots["val"].glob("*/*.png"))[:2]
    source = sorted(roots["train"].glob("*/*.png"))[0]
    from PIL import Image

    picture = np.asarray(Image.open(source))
    Image.fromarray(picture).save(twin, compress_level=0)  # other bytes, same pixels
    write_image(alike, np.clip(picture.astype(int) + 3, 0, 255).astype(np.uint8))
    report = run(tmp_path, "calvin", frames=True)
    same = found(report, "same_frame_content")
    assert (same.severity, same.count) == ("leak", 1)
    assert same.examples[0].endswith(f"= regression/calvin/train_stride5/images/{source.parent.name}/{source.name}")
    near = found(report, "alike_frame")
    assert near.severity == "warning"
    assert any(alike.name in example for example in near.examples)
    assert "same_frame_content" not in kinds(run(tmp_path, "calvin"))


def test_frames_of_clips_and_pairs_without_motion(tmp_path: Path) -> None:
    make_robot(tmp_path, {"train": 4, "val": 4})
    folder = tmp_path / "data" / "classification" / "AgiBotWorld-Beta"
    (folder / "val" / "2.mp4").write_bytes((folder / "train" / "1.mp4").read_bytes())
    (folder / "val" / "3.mp4").write_bytes(b"nothing")
    report = run(tmp_path, "robot_1st", frames=True, cache=tmp_path / "cache.sqlite")
    assert found(report, "same_frame_content").count == 1
    assert found(report, "unreadable").count == 1
    again = run(tmp_path, "robot_1st", frames=True, cache=tmp_path / "cache.sqlite")
    assert again == report
    with pytest.raises(UsageError, match="--distance 9"):
        run(tmp_path, "robot_1st", frames=True, distance=9)


def test_command_writes_both_reports_and_names_what_is_wrong(published: Path, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "audit.json", "--output", tmp_path / "audit.txt")
    done = lary("data", "audit", "vlabench_30", *files, "--lary-root", published)
    assert (done.code, done.out) == (1, (tmp_path / "audit.txt").read_text())
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["leaks"] == 2
    assert content["findings"][0]["splits"] == ["train", "val"]
    assert lary("data", "audit", "libero", "--lary-root", published).code == 0
    wrong = lary("data", "audit", "libero", "--table", "val", root=published)
    assert wrong.code == 2
    assert "SPLIT=FILE" in wrong.err
    for splits, words in (
        ((), "nothing to audit.*calvin val"), (("val",), "no table of calvin val"), (("vla",), "no split 'vla'")
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            run(tmp_path, "calvin", splits=splits)


# Hashes


def scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)


def test_hash_of_pixels_and_of_the_look() -> None:
    import cv2

    picture = scene(1)
    smaller = cv2.resize(picture, (96, 96), interpolation=cv2.INTER_AREA)
    one, two, other = (hash_frame(image) for image in (picture, smaller, scene(2)))
    assert one.content != two.content
    assert one == hash_frame(picture.copy())
    bits = [np.unpackbits(np.frombuffer(item.look, np.uint8)) for item in (one, two, other)]
    assert (bits[0] != bits[1]).sum() <= 7
    assert (bits[0] != bits[2]).sum() > 60
    assert hash_frame(np.full((50, 60, 3), 9, np.uint8)).look == b""


def test_nearest_is_what_comparing_all_gives() -> None:
    rng = np.random.default_rng(3)
    base = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    queries = base[rng.integers(0, 300, 120)].copy()
    for row, query in enumerate(queries):  # 0 to 11 bits away
        for bit in rng.choice(256, row % 12, replace=False):
            query[bit // 8] ^= 1 << (bit % 8)
    differ = np.unpackbits(queries[:, None] ^ base[None], axis=2).sum(axis=2)
    for distance in (0, 4, 7):
        positions, bits = nearest(queries, base, distance)
        near = differ.min(axis=1) <= distance
        assert (positions >= 0).tolist() == near.tolist()
        assert positions[near].tolist() == differ.argmin(axis=1)[near].tolist()
        assert bits[near].tolist() == differ.min(axis=1)[near].tolist()
    assert nearest(queries, base[:0], 4)[0].tolist() == [-1] * 120


def test_cache_knows_a_changed_file(tmp_path: Path) -> None:
    image, cache = tmp_path / "a.png", tmp_path / "folder" / "cache.sqlite"
    sources = [FrameSource(image), FrameSource(tmp_path / "missing.png")]
    write_image(image, scene(4))
    first = list(hash_sources(sources, cache=cache))
    assert isinstance(first[1], Failure)
    assert list(hash_sources(sources, cache=cache)) == first == list(hash_sources(sources))
    write_image(image, scene(5))
    assert next(iter(hash_sources(sources, cache=cache))) != first[0]
    cache.write_bytes(b"no data base" * 100)
    with pytest.raises(LaryError, match="can't be used"):
        list(hash_sources(sources, cache=cache))


def test_own_classes_need_no_public_record(tmp_path: Path) -> None:
    spec = replace(DATASETS.get("libero"), name="own", target=LabelSpace(("Close", "Open")), drawn={})
    rows = [
        {"src_img": "s/t/demo_1/a/start.png", "tgt_img": "s/t/demo_1/a/end.png", "action": "Open"},
        {"src_img": "s/t/demo_1/b/start.png", "tgt_img": "s/t/demo_1/b/end.png", "action": "Close"},
    ]
    write_table(tmp_path / "data" / "own_metadata_train.csv", rows)
    swapped = {**rows[0], "src_img": rows[0]["tgt_img"], "tgt_img": rows[0]["src_img"], "action": "Close"}
    write_table(tmp_path / "data" / "own_metadata_val.csv", [swapped])
    report = run(tmp_path, spec)
    assert {item.kind for item in report.leaks} == {"same_file", "same_sample", "same_group", "same_segment"}
