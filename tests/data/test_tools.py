"""The data tools as commands: the benchmark's own command lines, and tools that are stopped at any step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.data.stopped_tools import TOOLS
from tests.data.test_clips import brightness, recording
from tests.tree import make_calvin, make_robot, write_table

REPOSITORY = Path(__file__).parents[2]
SEED = {
    "clip": """python utils/prepare_ssv2_egodex.py \\
        --ssv2-root raw/20bn-something-something-v2 \\
        --egodex-root raw/EgoDex \\
        --output-dir $DATA_DIR/classification \\
        --workers 16""",
    "stats": """python utils/compute_robot_action_stats.py \\
        --dataset robocoin \\
        --data-root $DATA_DIR""",
    "check": """python utils/check_dataset_integrity.py \\
        --data-root $DATA_DIR \\
        --output dataset_integrity_report.txt \\
        --workers 64 \\
        --timeout 3""",
    "check one group": """python utils/check_dataset_integrity.py \\
        --data-root $DATA_DIR \\
        --groups CALVIN \\
        --output dataset_integrity_calvin.txt \\
        --workers 64 \\
        --timeout 3""",
    "relative": """python utils/prepare_relative_actions.py \\
        --dataset calvin \\
        --input-root $DATA_DIR \\
        --output-root $DATA_DIR \\
        --csv data/train_la_calvin_5_dinov2.csv \\
        --csv data/val_la_calvin_5_dinov2.csv \\
        --workers 32""",
}


def run(root: Path, command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command of the description, in a folder with the repository's scripts and data."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "DATA_DIR": str(root / "data"), "OMP_NUM_THREADS": "1"}
    words = ["bash", "-c", command]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_commands_of_the_description(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "utils").symlink_to(REPOSITORY / "utils")
    make_calvin(tmp_path, {"train": 1, "val": 1}, pairs=1)
    make_robot(tmp_path, {"train": 1})
    (data / "classification/AgiBotWorld-Beta/train/0.mp4").unlink()
    for name, report in (("check", "report"), ("check one group", "calvin")):
        run(tmp_path, SEED[name], code=int(report == "report"))
        lines = (tmp_path / f"dataset_integrity_{report}.txt").read_text().splitlines()
        assert "  image: total=4 ok=4 missing=0 corrupt=0" in lines
        assert ("[Robot_1st] issue_count=1" in lines) == (report == "report")

    for split in ("train", "val"):
        (data / f"calvin_metadata_{split}.csv").rename(data / f"{split}_la_calvin_5_dinov2.csv")
    run(tmp_path, SEED["relative"])
    assert json.loads((data / "regression_relative/calvin/relative_action_stats_calvin.json").read_text())["count"] == 1
    file = "calvin/val_stride5/actions/ep_0/action_000000to000004.npy"
    chunk = np.load(data / "regression" / file)
    np.testing.assert_array_equal(np.load(data / "regression_relative" / file), chunk[-1] - chunk[0])

    rows = [{"robot_type": "a", "action": f"t/actions/{number}.npy"} for number in range(3)]
    write_table(data / "robocoin_metadata_seen_train.csv", rows)
    folder = data / "regression/robocoin_10"
    (folder / "t/actions").mkdir(parents=True)
    for row in rows:
        np.save(folder / row["action"], np.ones((10, 12), np.float32))
    run(tmp_path, SEED["stats"])
    assert json.loads((folder / "robocoin_stats.json").read_text())["robot_stats"]["a"]["count"] == 30

    recording(tmp_path / "raw/20bn-something-something-v2/7.mp4", 12)
    recording(tmp_path / "raw/EgoDex/part1/lid/9.mp4", 12)
    for name, video in (("ssv2", "/x/7.mp4"), ("egodex", "/d/unzipped/part1/lid/9.mp4")):
        write_table(data / f"seed_{name}.csv", [{"video_path": video, "seed_output": "0 - 0.5"}])
    for split, paths in (("train", ("SSv2/0_0.mp4", "TACO/1.mp4")), ("val", ("EgoDex/9/0_0_rev.mp4",))):
        wanted = [{"dataset": path.split("/")[0], "video_path": path} for path in paths]
        write_table(data / f"human_1st_metadata_{split}.csv", wanted)
    assert "2 clips asked for: 2 made, 0 kept, 0 failed" in run(tmp_path, SEED["clip"]).stdout
    assert brightness(data / "classification/EgoDex/9/0_0_rev.mp4") == [4, 3, 2, 1, 0]

    wrong = run(tmp_path, "python utils/compute_robot_action_stats.py --dataset robocoinn --data-root .", code=2)
    assert wrong.stderr.strip() == "lary: Unknown data set 'robocoinn'. Did you mean robocoin?"


def test_tools_that_are_stopped(tmp_path: Path) -> None:
    """Killed, or with a full disk: no half file stays, and the same command started again gives the same tree."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.data.stopped_tools", str(tmp_path), "4"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    steps = dict(line.split() for line in done.stdout.splitlines())
    assert set(steps) == set(TOOLS)
    assert all(int(count) >= 4 for count in steps.values()), "a write has two halves, a flush and a new name"
