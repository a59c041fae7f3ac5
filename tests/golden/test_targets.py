"""Targets of every data set with actions: statistics, relative motion, the chunks that a probe is scored against."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.golden.golden import Golden, Place, summaries, summary
from tests.tree import frame, write_array, write_image, write_table


class Layout(NamedTuple):
    """Where a data set's files are: folder of each split, steps and dimensions of a chunk, robot types."""

    folder: str
    shape: tuple[int, int]
    robots: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "val")


SEEN = ("seen_train", "seen_val", "unseen")
LAYOUTS = {
    "calvin": Layout("calvin/{split}_stride5", (5, 7)),
    "vlabench": Layout("vlabench", (5, 7)),
    "vlabench_15": Layout("vlabench", (15, 7)),
    "vlabench_30": Layout("vlabench", (30, 7)),
    "robocoin": Layout("robocoin_10", (10, 12), ("a1", "b2"), SEEN),
    "agibotbeta": Layout("agibot_45", (45, 16), ("a2d",), SEEN),
}
MODES = {"absolute": "", "relative": "--action-mode relative", "local": "--action-mode relative --relative-frame local"}
ROWS = 6
GOLDEN = Golden("targets")
pytestmark = pytest.mark.usefixtures("no_figures")


def write_dataset(root: Path, name: str, layout: Layout) -> None:
    """Tables, pictures and random chunks; orientations are angles, or quaternions of any length."""
    rng = np.random.default_rng(sorted(LAYOUTS).index(name))
    for number, split in enumerate(layout.splits):
        rows = []
        folder = root / "data" / "regression" / layout.folder.format(split=split)
        for row in range(ROWS if number == 0 else 1):
            episode = 10 * number + row // 2
            task = f"task_{episode}/" if layout.robots else ""
            first = 100 * number + 50 * (row % 2)
            images = [f"{task}images/ep_{episode}/frame_{first + step:06d}.png" for step in (0, layout.shape[0])]
            for image in images:
                write_image(folder / image, frame(*rng.random(2), (250, 200, 20 * row)))
            action = f"{task}actions/ep_{episode}/action_{first:06d}to{first + layout.shape[0] - 1:06d}.npy"
            chunk = rng.uniform(-1, 1, layout.shape).astype(np.float32)
            write_array(folder / action, chunk.ravel() if row == 1 else chunk)
            robot = {"robot_type": layout.robots[(row + number) % len(layout.robots)]} if layout.robots else {}
            rows.append({"dataset": name, **robot, "src_img": images[0], "tgt_img": images[1], "action": action})
        write_table(root / "data" / f"{name}_metadata_{split}.csv", rows)


@pytest.mark.parametrize("name", LAYOUTS)
def test_targets(name: str, tmp_path: Path) -> None:
    layout, place, data = LAYOUTS[name], Place(tmp_path), tmp_path / "data"
    write_dataset(tmp_path, name, layout)
    tables = " ".join(f"--csv ROOT/data/{name}_metadata_{split}.csv" for split in layout.splits)
    for axes in ("world", "local"):
        place(f"data relative --dataset {name} {tables} --input-root ROOT/data --frame {axes}")
    if layout.robots:
        place(f"data stats --dataset {name} --data-root ROOT/data")
    for path in sorted(data.rglob("*stats*.json")):
        content = json.loads(path.read_text().replace(str(tmp_path), "<0>"))
        GOLDEN.check(f"{name}, {path.relative_to(data)}", content)
    moved = [path for path in sorted(data.rglob("*.npy")) if "regression_relative" in str(path)]
    files = [path.relative_to(data).as_posix() for path in moved]
    GOLDEN.check(f"{name}, moved", {"files": files, "values": summary(np.stack([np.load(path) for path in moved]))})
    which = f"--model frame-difference --dataset {name} --pool mean"
    for split in layout.splits:
        place(f"extract {which} --split {split} --workers 1 --device cpu")
    for mode, words in MODES.items():
        place.logs = tmp_path / f"logs_{mode}"
        place(f"regress {which} --model-type ridge {words}")
        (result,) = place.logs.rglob("result.json")
        arrays = {file: summaries(result.parent / file) for file in ("actions.npz", "predictions.npz")}
        GOLDEN.check(f"{name}, {mode}", {"folder": result.parent.relative_to(place.logs).as_posix(), **arrays})
