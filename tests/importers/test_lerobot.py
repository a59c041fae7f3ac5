"""LeRobot data sets in each format come back frame by frame, and run through extraction and a probe."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lary.data.images import read_image
from lary.files import write_bytes
from lary.importers.episodes import ATOMIC_CLASSES, INVERSE
from lary.importers.records import load_record
from tests.helpers import lary, printed, rows_of
from tests.hostile.harness import bounded
from tests.lerobot_files import FRONT, LENGTHS, WRIST, actions, hand, told, write_lerobot

LABELS = ("--labels", "atomic", "--settle", "2")
STRIDE = ("--stride", "3")


def run(root: Path, *words: str | Path, code: int = 0) -> str:
    """Import ``root/source`` as `arm`; what is printed."""
    name = () if "--name" in words else ("--name", "arm")
    return printed("data", "import-lerobot", root / "source", *name, *words, root=root, code=code)


def rows(root: Path) -> list[dict[str, str]]:
    parts = {split: rows_of(root / "data" / f"arm_metadata_{split}.csv") for split in ("train", "val")}
    return [{"split": split, **row} for split in parts for row in parts[split]]


def failed(root: Path) -> dict[str, str]:
    """Reasons by episode, of the list of failures."""
    found = rows_of(root / "data" / "arm_import_failures.csv")
    return {row["path"].removeprefix("episode "): row["reason"] for row in found}


@pytest.mark.parametrize("camera", [FRONT, WRIST])
@pytest.mark.parametrize("kind", ["v2.1 h264", "v2.1 av1", "v3.0 h264", "v3.0 av1", "v2.1 PNG", "v3.0 JPEG"])
def test_frames_and_actions_come_back_exactly(tmp_path: Path, kind: str, camera: str) -> None:
    """Statistics, the pixels of some frames and more of the record are compared with the golden ones."""
    version, form = kind.split()
    write_lerobot(tmp_path / "source", version, form, form if form in ("PNG", "JPEG") else None)
    run(tmp_path, *STRIDE, "--camera", camera)
    found, data, seen = rows(tmp_path), tmp_path / "data/regression/arm", []
    for row in found:
        first, second = (told(read_image(data / row[name])) for name in ("src_img", "tgt_img"))
        _, episode, at = first
        assert [first, second] == [(camera, episode, at), (camera, episode, at + 3)]
        assert (row["episode"], row["robot_type"], row["task"]) == (str(episode), "so100", "pick, then place")
        np.testing.assert_array_equal(np.load(data / row["action"]), actions(episode, LENGTHS[episode])[at : at + 3])
        seen.append((episode, at))
    assert sorted(seen) == [(e, at) for e, n in enumerate(LENGTHS) for at in range(0, n - 3, 3)]
    assert len({(row["split"], row["episode"]) for row in found}) == 4
    spec = load_record(tmp_path / "data/arm_dataset.json")
    assert spec.actions.dims == ("x", "y", "z", "gripper", "action_4_gripper")
    assert (spec.actions.horizon, spec.stride, spec.samples, spec.licences[0].commercial) == (3, 3, len(seen), True)


def test_templates_reach_nothing_else(tmp_path: Path) -> None:
    for number, template in enumerate(("../{episode_index}.parquet", "/etc/passwd", "{video_key.__class__}", "{no}")):
        source = write_lerobot(tmp_path / str(number), "v2.1", images="PNG", data_path=template)
        assert lary("data", "import-lerobot", source, root=tmp_path).code in (1, 2)
    assert not list((tmp_path / "data").glob("*_dataset.py"))


def test_damaged_episodes_are_left_out_and_named(tmp_path: Path) -> None:
    """In v2.1 a torn video, a torn table, one with a row too few, and a value that is none; in v3.0 a wrong time."""
    source, overwrite = write_lerobot(tmp_path / "source", "v2.1", "h264", splits={"val": "1:2"}), "--overwrite"
    film = next(source.glob(f"videos/*/{FRONT}/episode_000002.mp4"))
    film.write_bytes(film.read_bytes()[:900])
    run(tmp_path, *STRIDE, code=1)
    found = {(row["split"], row["episode"]) for row in rows(tmp_path)}
    assert found == {("train", "0"), ("val", "1"), ("train", "3")}, "the split is the one that is declared"
    assert (list(failed(tmp_path)), list((tmp_path / "data/regression/arm").rglob("*ep_2*"))) == (["2"], [])
    first, last = (next(source.glob(f"data/*/episode_{number:06d}.parquet")) for number in (0, 3))
    table = pq.read_table(first)
    first.write_bytes(b"PAR1")
    pq.write_table(pq.read_table(last).slice(0, 7), last)
    said = run(tmp_path, *STRIDE, overwrite, code=1)
    assert all(words in said for words in ("Nothing of the train split", "3 failed, listed in", "(episode 0, "))
    assert (sorted(failed(tmp_path)), "7 rows" in failed(tmp_path)["3"]) == (["0", "2", "3"], True)
    values = table.column("action").to_pylist()
    values[4][2] = float("nan")
    pq.write_table(table.set_column(0, "action", pa.array(values, pa.list_(pa.float32()))), first)
    run(tmp_path, *STRIDE, overwrite, code=1)
    assert "finite numbers" in failed(tmp_path)["0"]
    shutil.rmtree(source)
    write_lerobot(source, "v3.0", "h264", splits={"val": "0:1"})
    path, column = source / "meta/episodes/chunk-000/file-000.parquet", f"videos/{FRONT}/from_timestamp"
    table = pq.read_table(path)
    times = pa.array([*table.column(column).to_pylist()[:3], 6.0])
    pq.write_table(table.set_column(table.column_names.index(column), column, times), path)
    run(tmp_path, *STRIDE, overwrite, code=1)
    assert ["No frame is shown" in reason for reason in failed(tmp_path).values()] == [True]
    assert not list((tmp_path / "data/regression/arm").glob(".*")), "nor of the last one"


def test_a_stopped_import_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lerobot(tmp_path / "source", "v2.1", "h264")
    written, real = [], Path.write_bytes

    def stop(path: Path, content: bytes) -> int:
        written.append(path.suffix)
        if written.count(".png") == 8:
            raise KeyboardInterrupt
        return real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", stop)
        run(tmp_path, *STRIDE, code=130)
    images = tmp_path / "data/regression/arm/images"
    stamp = (images / "ep_0/frame_000000.png").stat().st_mtime_ns
    run(tmp_path, *STRIDE)
    assert len(rows(tmp_path)) == sum(len(range(0, length - 3, 3)) for length in LENGTHS)
    assert (images / "ep_0/frame_000000.png").stat().st_mtime_ns == stamp, "a finished episode is not decoded again"
    assert sorted(path.name for path in images.iterdir()) == [f"ep_{number}" for number in range(4)]
    assert not list(images.parent.glob(".*")), "nothing of the stopped run is left"


def test_an_import_is_not_mixed_with_another(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "source", "v2.1", images="PNG")
    run(tmp_path, *STRIDE)
    for other in ((*STRIDE, "--camera", WRIST), (*STRIDE, "--actions", "observation.state"), ("--stride", "2")):
        assert "other choices" in run(tmp_path, *other, code=2)
    other = shutil.copytree(tmp_path / "source", tmp_path / "other")
    printed("data", "import-lerobot", other, "--name", "arm", *STRIDE, root=tmp_path, code=2, has=["other choices"])
    run(tmp_path, *STRIDE, "--camera", WRIST, "--overwrite")
    foreign = tmp_path / "data/regression/own/work.txt"
    write_bytes(foreign, b"mine")
    run(tmp_path, "--name", "own", code=2)
    run(tmp_path, "--name", "own", "--overwrite", code=2)
    assert foreign.read_text() == "mine"
    path = tmp_path / "data/arm_dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "media": "film"}))
    printed("datasets", "arm", "--plugin", path.with_suffix(".py"), root=tmp_path, code=2, has=["wrong at 'media'"])


def test_a_data_set_of_the_hub_runs_through_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata first, then only the files of the chosen camera, all of one commit."""
    hub, cache, asked = write_lerobot(tmp_path / "hub", "v3.0", "h264"), tmp_path / "cache", []

    def snapshot(name: str, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        assert (name, repo_type, revision) == ("own/er.set", "dataset", "abc")
        asked.append(allow_patterns)
        for path in (path for pattern in allow_patterns for path in hub.glob(pattern.replace("**", "**/*"))):
            if path.is_file():
                write_bytes(cache / path.relative_to(hub), path.read_bytes())
        return str(cache)

    info = SimpleNamespace(dataset_info=lambda name, revision, timeout: SimpleNamespace(sha="abc"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    tables = [f"data/chunk-000/file-{number:03d}.parquet" for number in range(2)]
    videos = [f"videos/{FRONT}/chunk-000/file-{number:03d}.mp4" for number in range(2)]
    assert "0 episodes failed" in lary("data", "import-lerobot", "own/er.set", "--stride", "2", root=tmp_path).out
    assert asked[1:] == [tables + videos]
    plugin = tmp_path / "data/er.set_dataset.py"
    assert load_record(plugin.with_suffix(".json")).licences[0].url == "https://huggingface.co/datasets/own/er.set"
    which = ("--model", "pixels", "--dataset", "er.set", "--plugin", plugin, "--lary-la-dir", tmp_path / "latents")
    for words in (("extract", "--split", "train"), ("extract", "--split", "val"),
                  ("regress", "--probe-preset", "demo", "--model-type", "ridge")):  # fmt: skip
        assert lary(*words, *which, root=tmp_path).code == 0
    assert list((tmp_path / "logs").glob("**/result.json"))
    shutil.rmtree(cache)
    atoms = ("--name", "atoms", "--labels", "atomic", "--threshold", "0.1", "--reach", "1")
    assert lary("data", "import-lerobot", "own/er.set", *atoms, root=tmp_path).code == 0
    assert asked[3:] == [tables, tables + videos], "labels are made from the tables, before any video is fetched"


@pytest.mark.parametrize("kind", [("v2.1", None), ("v3.0", None), ("v3.0", "JPEG")])
def test_labels_of_atomic_motions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, str]) -> None:
    """Images of each motion's ends, both directions with inverse labels, in the split of their episode."""
    monkeypatch.setattr("tests.lerobot_files.actions", hand)
    write_lerobot(tmp_path / "source", kind[0], images=kind[1])
    turned = run(tmp_path, *LABELS, "--position", "z, 0,y", "--gripper", "4", "--preview")
    assert "motions of z, x, y; gripper: action_4_gripper" in turned
    assert "gripper: gripper, open above 50" in run(tmp_path, *LABELS)
    data, spec = tmp_path / "data/classification/arm", load_record(tmp_path / "data/arm_dataset.json")
    found = rows(tmp_path)
    assert (spec.labels.classes, spec.stride, spec.samples) == (ATOMIC_CLASSES, None, len(found))
    assert len({(row["split"], row["episode"]) for row in found}) == 4
    labels = {(row["src_img"], row["tgt_img"]): row["action"] for row in found}
    assert all(INVERSE[labels[target, first]] == label for (first, target), label in labels.items())
    assert set(labels.values()) >= {"Forward", "Backward", "Close", "Open", "Up", "Down"}
    for row in found:
        (camera, episode, at), end = (told(read_image(data / row[name])) for name in ("src_img", "tgt_img"))
        assert (camera, episode, *end[:2]) == (FRONT, int(row["episode"])) * 2
        moved = hand(episode, LENGTHS[episode])[end[2]] - hand(episode, LENGTHS[episode])[at]
        assert moved[2] > 0.03 or row["action"] not in ("Forward_Up", "Up")
        assert moved[3] < 0 or row["action"] != "Close"
    stamps = {path: path.stat().st_mtime_ns for path in data.rglob("*.png")}
    run(tmp_path, *LABELS)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "nothing is decoded again"
    assert "other choices" in run(tmp_path, *LABELS, "--threshold", "0.02", code=2)
    still = ("--labels", "atomic", "--gripper", "none", "--threshold", "9", "--reach", "9", "--overwrite")
    assert "nothing in it moves" in run(tmp_path, *still, code=1)


def bomb(path: Path) -> None:
    """Two million equal rows in less than a megabyte."""
    rows, count = pq.read_table(path), 2_000_000
    columns = {name: pa.array(np.zeros(count, np.int64)) for name in ("episode_index", "frame_index", "timestamp")}
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(5 * count, np.float32)), 5)
    pq.write_table(pa.table({**columns, **dict.fromkeys(set(rows.column_names) - columns.keys(), values)}), path)


def linked(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to if to else path.name)


EPISODES, TABLE = "meta/episodes.jsonl", "data/chunk-000/episode_000000.parquet"
VIDEO = f"videos/chunk-000/{FRONT}/episode_000000.mp4"


@pytest.mark.parametrize(("place", "change"), [
    ("meta/info.json", os.mkfifo), (EPISODES, os.mkfifo), (EPISODES, linked("/dev/zero")), (EPISODES, linked("")),
    (TABLE, os.mkfifo), (TABLE, linked("/dev/zero")), (TABLE, linked("none")), (TABLE, Path.mkdir), (VIDEO, os.mkfifo),
    (VIDEO, linked("/dev/zero")), (VIDEO, linked("")), ("README.md", os.mkfifo), ("README.md", linked("/dev/zero")),
])  # fmt: skip
def test_what_is_no_file_is_refused(tmp_path: Path, place: str, change: Callable[[Path], None]) -> None:
    """Pipes, devices, links that go round and folders; metadata end the import, others their episode."""
    path = write_lerobot(tmp_path / "source", "v2.1", images=None if place == VIDEO else "PNG") / place
    path.unlink()
    change(path)
    with bounded():
        text = run(tmp_path, *STRIDE, code={"meta/info.json": 2, "README.md": 0}.get(place, 1))
    assert ("1 episodes failed" in text) == (place in (TABLE, VIDEO)), text


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_table_of_more_rows_than_announced_is_not_read(tmp_path: Path, version: str) -> None:
    source = write_lerobot(tmp_path / "source", version, images="PNG")
    path = min(source.glob("data/*/*.parquet"))
    bomb(path)
    assert path.stat().st_size < 1 << 20
    with bounded():
        assert "more or larger rows than announced" in run(tmp_path, *STRIDE, code=1)
    if version == "v3.0":
        bomb(min(source.glob("meta/episodes/*/*.parquet")))
        with bounded():
            assert "list of episodes" in run(tmp_path, *STRIDE, code=1)


def test_files_may_be_links_to_files(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "source", "v2.1")
    for place in ("meta/info.json", EPISODES, TABLE, VIDEO):
        (tmp_path / "store").mkdir(exist_ok=True)
        (source / place).rename(stored := tmp_path / "store" / Path(place).name)
        (source / place).symlink_to(stored)
    assert "0 episodes failed" in run(tmp_path, *STRIDE)


def test_descriptions_and_options_out_of_range(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "source", "v2.1", images="PNG") / "meta/info.json"
    assert "--seed -1: must" in run(tmp_path, "--seed", "-1", code=2)
    info = json.loads(path.read_text())
    long = {"features": {**info["features"], "action": {**info["features"]["action"], "shape": [10**9]}}}
    for change, code, words in (
        ({"fps": float("inf")}, 1, "'fps'"), ({"fps": 1e300}, 1, "'fps'"), ({"chunks_size": "x"}, 1, "'chunks_size'"),
        ({"data_path": "../{episode_index}"}, 2, "leaves its"), ({"data_path": "{episode_index.x}"}, 1, "does no"),
        ({"data_path": "{episode_index:0300000000d}"}, 2, "leaves its root"), (long, 2, "1000000000 values, more than"),
    ):  # fmt: skip
        path.write_text(json.dumps(info | change))
        with bounded():
            assert words in run(tmp_path, code=code)


def retell(root: Path, *texts: str | None) -> None:
    """Give the episodes of a data set of v2.1 other tasks."""
    file = root / "source" / "meta" / "episodes.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [{**line, "tasks": [text] if text else []} for line, text in zip(lines, texts, strict=True)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in told))


def test_texts_of_tasks_are_classes(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "source", "v2.1", "h264")
    run(tmp_path, "--labels", "task", code=2)
    assert "1 texts of tasks, and two are needed" in run(tmp_path, "--labels", "task", code=2)
    retell(tmp_path, "lift", "push", "lift", None)
    text = run(tmp_path, "--labels", "task", "--stride", "4", code=1)
    assert "labels: 2 tasks, such as 'lift'" in text
    assert failed(tmp_path) == {"3": "The episode has no text of a task, or several."}
    found = rows(tmp_path)
    assert {(row["episode"], row["action"]) for row in found} == {("0", "lift"), ("1", "push"), ("2", "lift")}
    assert load_record(tmp_path / "data" / "arm_dataset.json").labels.classes == ("lift", "push")
    first = next(row for row in found if row["episode"] == "1")
    pictures = [told(read_image(tmp_path / "data/classification/arm" / first[name])) for name in ("src_img", "tgt_img")]
    assert pictures == [(FRONT, 1, 0), (FRONT, 1, 4)]
    assert not (tmp_path / "data/classification/arm/actions").exists()


@pytest.mark.parametrize("kind", ["v2.1 h264", "v3.0 av1", "v2.1 PNG"])
def test_several_cameras_are_rows_of_the_same_episodes(tmp_path: Path, kind: str) -> None:
    version, form = kind.split()
    write_lerobot(tmp_path / "source", version, form, form if form == "PNG" else None)
    run(tmp_path, *STRIDE, "--camera", FRONT, "--camera", WRIST)
    seen = []
    for row in rows(tmp_path):
        camera, episode, at = told(read_image(tmp_path / "data/regression/arm" / row["src_img"]))
        assert row["episode"] == str(episode)
        seen.append((camera, episode, at))
    one = [(e, at) for e, n in enumerate(LENGTHS) for at in range(0, n - 3, 3)]
    assert sorted(seen) == sorted((camera, *place) for camera in (FRONT, WRIST) for place in one)
    splits = {row["episode"]: row["split"] for row in rows(tmp_path)}
    assert all(row["split"] == splits[row["episode"]] for row in rows(tmp_path)), "a split divides no episode"
    spec = load_record(tmp_path / "data" / "arm_dataset.json")
    assert (spec.group_column, "front" in spec.description, "wrist" in spec.description) == ("episode", True, True)
