"""What the tools for data and latents write: every new file, and the numbers that they print."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.golden.conftest import write_video
from tests.golden.golden import CASES, Golden, lary, plain, sha256, summary
from tests.lerobot_files import write_lerobot
from tests.tree import frame, make_calvin, make_robot, write_image, write_table

GOLDEN = Golden("tools")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
VOLATILE = re.compile(r'"(created|seconds)": ("[^"]*"|[\d.]+)')


# What the tools start from


def recordings(root: Path) -> None:
    """Recordings whose brightness tells the frame, one of them absent, and the tables that name their clips."""
    for name in ("ssv2/7.mp4", "egodex/part1/lid/9.mp4"):
        write_video(root / "raw" / name, [np.full((48, 48, 3), 8 * number, np.uint8) for number in range(30)])
    lines = "0.5 - 1.5 push\\n00:01.2 - 00:02.4 pull"
    seeds = {"ssv2": [("/x/7.mp4", lines), ("gone.mp4", "0 - 1")], "egodex": [("/d/unzipped/part1/lid/9.mp4", "0-1")]}
    for name, rows in seeds.items():
        cells = [{"video_path": path, "seed_output": text} for path, text in rows]
        write_table(root / "data" / f"seed_{name}.csv", cells)
    wanted = {"train": ("SSv2/0_0.mp4", "SSv2/0_1_rev.mp4", "SSv2/1_0.mp4"), "val": ("EgoDex/9/0_0_rev.mp4",)}
    for split, paths in wanted.items():
        rows = [{"dataset": path.split("/")[0], "video_path": path} for path in paths]
        write_table(root / "data" / f"human_1st_metadata_{split}.csv", rows)


def calvin(root: Path) -> None:
    make_calvin(root, {"train": 2, "val": 1}, pairs=2)


def damaged(root: Path) -> None:
    """Both layouts with a file absent, one torn and an action of the wrong shape."""
    calvin(root)
    make_robot(root, {"train": 2, "val": 1})
    (root / "data/classification/AgiBotWorld-Beta/train/0.mp4").unlink()
    folder = root / "data/regression/calvin/train_stride5"
    image, action = (sorted(folder.rglob(pattern)) for pattern in ("*.png", "*.npy"))
    image[1].write_bytes(image[1].read_bytes()[:60])
    np.save(action[2], np.zeros((5, 3), np.float32))


def shared(root: Path) -> None:
    """Splits that share an episode, frames and an action that never changes."""
    calvin(root)
    with (root / "data" / "calvin_metadata_train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    write_table(root / "data" / "calvin_metadata_val.csv", rows[:2])
    data = root / "data" / "regression" / "calvin"
    shutil.rmtree(data / "val_stride5")
    shutil.copytree(data / "train_stride5", data / "val_stride5")


def clips(root: Path) -> None:
    make_robot(root, {"train": 4})
    folder = root / "data" / "classification"
    for name in ("motion", "short"):
        shutil.copy(CASES / f"sampling_{name}.mp4", folder / f"{name}.mp4")
    names = [f"AgiBotWorld-Beta/train/{number}.mp4" for number in range(2)] + ["motion.mp4", "short.mp4"]
    write_table(root / "clips.csv", [{"video_path": name, "action": "push"} for name in names])


def tables(root: Path) -> None:
    """Tables to split: clips with their reversals, and pairs of episodes and segments."""
    names = [f"SSv2/{row}_{line}{end}.mp4" for row in range(12) for line in range(2) for end in ("", "_rev")]
    cells = [{"video_path": name, "action": ("push", "pull")[len(name) % 2]} for name in names]
    write_table(root / "all_clips.csv", cells)
    cells = []
    for number in range(48):
        demo, segment = divmod(number // 2, 3)
        images = [f"task/demo_{demo}/seg_{segment}/{10 * number + step}.png" for step in (0, 5)]
        cells.append({"src_img": images[0], "tgt_img": images[1], "action": ("up", "down", "left")[number % 3]})
    write_table(root / "all_pairs.csv", cells)


def trajectories(root: Path) -> None:
    """Episodes that move forward, close the gripper and move up; the last one is a video."""
    for number in range(4):
        folder, actions = root / "episodes" / str(number), np.zeros((13, 4))
        actions[:, 0] = 0.02 * np.minimum(np.arange(13), 4)
        actions[:, 2] = 0.02 * np.maximum(np.arange(13) - 7, 0)
        actions[:, 3] = np.arange(13) < 5
        pictures = [frame(5 * x, 5 * z, (200, 250 * int(grip), 20 * number)) for x, _, z, grip in actions]
        for index, picture in enumerate(pictures):
            if number < 3:
                write_image(folder / f"{index}.png", picture)
        if number == 3:
            write_video(folder / "camera.mp4", pictures)
        np.save(folder / "actions.npy", actions)


def videos(root: Path) -> None:
    rows = []
    for number in range(6):
        sign = 1 if number % 2 else -1
        steps = [frame(0.5 + sign * 0.03 * step, 0.1 + 0.1 * number, (220, 60, 60)) for step in range(12)]
        write_video(root / "videos" / f"day{number % 3}" / f"{number}.mp4", steps)
        rows.append({"file": f"day{number % 3}/{number}.mp4", "label": ("push", "pull")[number % 2]})
    write_table(root / "labels.csv", rows)


def lerobot(root: Path) -> None:
    write_lerobot(root / "old", "v2.1", "h264")
    write_lerobot(root / "new", "v3.0", images="PNG")


def robots(root: Path) -> None:
    rng, rows = np.random.default_rng(5), []
    for number in range(40):
        path = f"t/actions/ep_0/{number}.npy"
        place = root / "data" / "regression" / "robocoin_10" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, (rng.normal(size=(10, 12)) * 1e-3 + 100 * rng.random()).astype(np.float32))
        rows.append({"robot_type": "ab"[number % 2], "action": path, "src_img": "a.png", "tgt_img": "b.png"})
    for name, part in (("one", rows[:25]), ("two", rows[25:])):
        write_table(root / f"{name}.csv", part)


def numbers(text: str) -> list[float]:
    """The numbers in a text, but for digests."""
    return [float(value) for value in NUMBER.findall(re.sub(r"\b[0-9a-f]{12,}\b", "", text))]


def nothing(_: Path) -> None:
    return None


# The commands. {root} is the temporary folder; a word that begins with ! is the exit code of its command.


class Scenario(NamedTuple):
    """What is there, which commands run, and which of the new files are compared."""

    start: Callable[[Path], None]
    commands: tuple[str, ...]
    files: str = "**/*"


LATENTS = "--model pixels --dataset calvin --split val --pool mean --lary-root {root} --data-dir {root}/data"
PLACES = "--lary-root {root} --data-dir {root}/data"
SCENARIOS = {
    "clip": Scenario(recordings, tuple(
        "!1 data clip --ssv2-root {root}/raw/ssv2 --egodex-root {root}/raw/egodex --workers 1 --backend pyav "
        f"--lary-root {{root}} --output-dir {{root}}/{times} --times {times}" for times in ("clock", "published")
    )),
    "stats": Scenario(robots, (
        *(f"data stats --dataset robocoin --data-root {{root}}/data --csv {{root}}/{name}.csv "
          f"--output {{root}}/{name}.json --lary-root {{root}}" for name in ("one", "two")),
        "data stats --dataset robocoin --merge {root}/one.json --merge {root}/two.json --output {root}/both.json",
    )),
    "relative": Scenario(calvin, tuple(
        f"data relative --dataset calvin --csv {{root}}/data/calvin_metadata_train.csv "
        f"--csv {{root}}/data/calvin_metadata_val.csv --input-root {{root}}/data --output-root {{root}}/out {words}"
        for words in ("", "--frame local", "")
    )),
    "check": Scenario(damaged, (
        "!1 data check --data-root {root}/data --output {root}/all.txt --workers 1 --manifest {root}/manifest.jsonl "
        "--lary-root {root}",
        "!1 data check --data-root {root}/data --output {root}/one.txt --workers 1 --depth headers --groups CALVIN "
        "--lary-root {root}",
    )),
    "split": Scenario(tables, (
        "data split {root}/all_clips.csv --train {root}/rt.csv --val {root}/rv.csv",
        "data split {root}/all_clips.csv --by video --dataset human_1st --train {root}/vt.csv --val {root}/vv.csv",
        "data split {root}/all_pairs.csv --by episode --dataset libero --seed 3 --train {root}/et.csv "
        "--val {root}/ev.csv",
        "data split {root}/all_pairs.csv --by segment --dataset libero --test-size 0.4 --train {root}/st.csv "
        "--val {root}/sv.csv",
    )),
    "pairs": Scenario(trajectories, (
        "data pairs {root}/episodes {root}/out --name mine --stride 4 --dims x y z grip --embodiment arm",
        "datasets mine --plugin {root}/out/mine.py",
    )),
    "atomic": Scenario(trajectories, (
        "data atomic {root}/episodes {root}/out --name atoms --test-size 0.5 --gripper 3",
        "datasets atoms --plugin {root}/out/atoms.py",
    )),
    "import-videos": Scenario(videos, tuple(
        f"data import-videos {{root}}/videos --labels {{root}}/labels.csv --name {method}_clips --method {method} "
        f"--workers 1 --val-share 0.34 {PLACES}" for method in ("uniform", "motion")
    )),
    "import-lerobot": Scenario(lerobot, (
        f"data import-lerobot {{root}}/old --preview {PLACES}",
        f"data import-lerobot {{root}}/old --name first --stride 3 {PLACES}",
        f"data import-lerobot {{root}}/new --name second --camera observation.images.wrist --episodes 3 "
        f"--actions observation.state --actions action --seed 4 --licence none {PLACES}",
        f"data import-lerobot {{root}}/new --name third --labels atomic --threshold 0.1 --reach 1 {PLACES}",
    )),
    "audit": Scenario(shared, (
        "!1 data audit calvin --data-root {root}/data --actions --frames --workers 1 --json {root}/audit.json "
        "--output {root}/audit.txt --lary-root {root}",
    )),
    "indices": Scenario(clips, tuple(
        f"indices {{root}}/clips.csv --root {{root}}/data/classification --out {{root}}/{method}_{count}.csv "
        f"--method {method} --frames {count} --workers 1" for method in ("motion", "uniform") for count in (9, 4)
    )),
    "simulate": Scenario(nothing, (
        "simulate {root}/sim --seed 3 --pairs 12 --clips 10 --size 48 --processes 1",
    ), "**/*.[cjn][spu]*"),
    "latents": Scenario(calvin, (
        f"extract {LATENTS} --workers 1 --device cpu",
        *(f"latents {words} {LATENTS}" for words in (
            "info", "verify", "convert --store shards --shard-rows 2", "info", "verify",
            *(f"export --out {{root}}/out{end}" for end in (".npy", ".npz", ".parquet", ".safetensors")),
            "export --rows 2 --out {root}/row.npy", "convert --store npz --dtype float16", "verify",
        )),
    )),
}  # fmt: skip


def content(path: Path, root: Path) -> Any:
    """What a file holds, in a form that is the same wherever it was written."""
    if path.is_symlink():
        return f"link to {plain(str(path.readlink()), root)}"
    if path.suffix in (".csv", ".txt"):
        text = plain(path.read_bytes().decode(), root)
        return text if len(text) < 1500 else hashlib.sha256(text.encode()).hexdigest()
    if path.suffix in (".json", ".jsonl"):
        text = VOLATILE.sub(r'"\1": ""', plain(path.read_text(), root))
        form = hashlib.sha256(NUMBER.sub("0", text).encode()).hexdigest()[:16]
        values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
        return {"form": form, "values": values}
    if path.suffix == ".png":
        from PIL import Image

        return hashlib.sha256(np.asarray(Image.open(path)).tobytes()).hexdigest()[:16]
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as film:
            frames = [picture.to_ndarray(format="rgb24") for picture in film.decode(video=0)]
        return {
            "shape": list(frames[0].shape),
            "brightness / 8": [round(float(picture.mean()) / 8) for picture in frames],
        }
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: summary(arrays[name]) for name in sorted(arrays)}
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        table = parquet.read_table(path)
        return {"schema": str(table.schema), "rows": table.num_rows}
    return "" if path.suffix in (".py", ".lock") else sha256(path)


@pytest.mark.parametrize("name", SCENARIOS)
def test_files_and_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "simulate":
        pytest.importorskip("mujoco", reason="the simulator is part of the extra 'demo'")
    monkeypatch.chdir(tmp_path)
    scenario = SCENARIOS[name]
    scenario.start(tmp_path)
    before = set(tmp_path.rglob("*"))
    for number, command in enumerate(scenario.commands):
        words = [word.replace("{root}", str(tmp_path)) for word in command.split()]
        code = int(words.pop(0)[1:]) if words[0].startswith("!") else 0
        printed = plain(lary(*words, code=code), tmp_path)
        GOLDEN.check(f"{name}, printed {number}", numbers(printed))
    new = sorted(path for path in set(tmp_path.glob(scenario.files)) - before if path.is_file())
    found = {path.relative_to(tmp_path).as_posix(): content(path, tmp_path) for path in new}
    GOLDEN.check(f"{name}, files", found)


def columns(text: str, *names: str) -> list[list[str]]:
    """Cells of a printed table below some of its headings."""
    header, *rows = [line for line in text.splitlines() if "  " in line]
    starts = {match.group(): match.start() for match in re.finditer(r"\S+(?: \S+)*", header)}
    ends = dict(itertools.pairwise([*starts.values(), None]))
    return [[row[starts[name] : ends[starts[name]]].strip() for name in names] for row in rows]


def test_lists_of_models_and_data_sets(tmp_path: Path) -> None:
    """In processes of their own: what other tests register is not listed."""

    def printed(*words: str) -> str:
        code = [sys.executable, "-m", "lary.cli", *words]
        path = os.pathsep.join(filter(None, [str(CASES.parents[2]), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    GOLDEN.check("models", columns(printed("models"), "key", "paradigm", "D", "pair", "clip", "params (M)", "licence"))
    GOLDEN.check("datasets", columns(printed("datasets"), "key", "kind", "splits", "size", "commercial", "licence"))
    for name in ("human_1st", "vlabench_30", "agibotbeta"):
        GOLDEN.check(f"datasets {name}", numbers(printed("datasets", name)))
