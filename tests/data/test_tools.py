"""The data tools as commands: the benchmark's own command lines, and tools that are stopped."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.test_clips import brightness
from tests.golden.golden import Place
from tests.golden.test_tools import recordings, robots, tables, trajectories
from tests.helpers import contents
from tests.tree import make_calvin, make_robot

REPOSITORY = Path(__file__).parents[2]
RELATIVE = "--csv data/calvin_metadata_train.csv --csv data/calvin_metadata_val.csv"
SEED = {
    "clip": "prepare_ssv2_egodex.py --ssv2-root raw/ssv2 --egodex-root raw/egodex "
    "--output-dir $DATA_DIR/classification --workers 16",
    "stats": "compute_robot_action_stats.py --dataset robocoin --data-root $DATA_DIR",
    "check": "check_dataset_integrity.py --data-root $DATA_DIR --output all.txt --workers 64 --timeout 3",
    "check one": "check_dataset_integrity.py --data-root $DATA_DIR --groups CALVIN --output one.txt --workers 64",
    "relative": "prepare_relative_actions.py --dataset calvin --input-root $DATA_DIR --output-root $DATA_DIR "
    f"{RELATIVE} --workers 32",
    "misspelt": "compute_robot_action_stats.py --dataset robocoinn --data-root $DATA_DIR",
}


def make_data(root: Path) -> None:
    """The files that the tools work on."""
    make_robot(make_calvin(root, {"train": 1, "val": 1}, pairs=1), {"train": 1})
    for start in (recordings, tables, trajectories, robots):
        start(root)
    shutil.copy(root / "one.csv", root / "data" / "robocoin_metadata_seen_train.csv")


def test_commands_of_the_description(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_data(tmp_path)
    (data / "classification/AgiBotWorld-Beta/train/0.mp4").unlink()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "DATA_DIR": str(data), "OMP_NUM_THREADS": "1"}
    for name, code, printed in (
        ("check", 1, "38 files checked: 11 issues, see all.txt"),
        ("check one", 0, "6 files checked: 0 issues, see one.txt"),
        ("relative", 0, "calvin_metadata_val.csv (val): 1 written, 0 there before, 0 failed"),
        ("stats", 0, "a: 130 steps"),
        ("clip", 1, "4 clips asked for: 3 made, 0 kept, 1 failed"),
        ("misspelt", 2, "lary: Unknown data set 'robocoinn'. Did you mean robocoin?"),
    ):
        words = ["bash", "-c", f"python {REPOSITORY}/utils/{SEED[name]}"]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, printed in done.stdout + done.stderr) == (code, True), done
    assert brightness(data / "classification/EgoDex/9/0_0_rev.mp4") == list(range(9, -1, -1))


STOPPED = {
    "data clip --ssv2-root raw/ssv2 --egodex-root raw/egodex --output-dir out --workers 1": (1, 2, 3),
    "data stats --dataset calvin --output out/stats.json --workers 1": (1,),
    f"data relative --dataset calvin {RELATIVE} --output-root out --workers 1": (1, 3),
    "data split all_clips.csv --train out/train.csv --val out/val.csv --test-size 0.5": (1, 2),
    "indices data/robot_1st_metadata_train.csv --out out/i.csv --cache out/cache --workers 1 --frames 4": (1, 2),
    "data atomic episodes out --name atoms --test-size 0.5 --gripper 3 --overwrite": (1, 4),
}
"""Tools, and at the naming of which of their files they are killed."""


def tree(folder: Path) -> dict[str, bytes]:
    """Files under their own names: what a killed process leaves is hidden and doesn't count."""
    found = {name: data for name, data in contents(folder).items() if name.startswith("out/") and "/." not in name}
    return {name: data.replace(str(folder).encode(), b"ROOT") for name, data in found.items()}


@pytest.mark.parametrize("command", STOPPED)
def test_tools_that_are_stopped(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, or with a full disk: no half file stays, and the same command started again gives the same tree."""
    make_data(tmp_path / "source")

    def prepared(name: str) -> Place:
        shutil.copytree(tmp_path / "source", tmp_path / name)
        return Place(tmp_path / name)

    def files(root: Path) -> dict[str, bytes]:
        return {name: data for name, data in tree(root).items() if not name.endswith("/lock")}

    undisturbed = prepared("whole")
    undisturbed(command, code=None)
    whole = files(undisturbed.root)
    for count in STOPPED[command]:
        place = prepared(f"killed_{count}")
        assert place.stopped(command, count, signal.SIGKILL) == -signal.SIGKILL
        assert files(place.root).items() < whole.items()
        place(command, code=None)
        assert files(place.root) == whole
    place = prepared("full")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert place(command, code=None).code in (1, 2)
    assert not list(place.root.rglob(".*.tmp"))
    place(command, code=None)
    assert files(place.root) == whole
