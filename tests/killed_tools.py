"""Runs a data tool again and again, killed or failed at another step each time.

    python -m tests.killed_tools FOLDER STOPS [TOOL...]

A step is the first half of a write, the second half, the flush to disk, and the renaming of a file. After every stop,
files under their own names have to be those of an undisturbed run, and a run after it has to give the same tree. STOPS
are spread evenly over all steps. Prints how many steps a tool has. A process of its own, since it forks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lary.data import clips, sampling, splits, statistics
from lary.data.configs import AtomicConfig
from lary.data.spec import DATASETS
from lary.importers import trajectories
from lary.types import LaryError
from tests.tree import frame, make_calvin, make_robot, write_image, write_table, write_video

HERE = Path()


def make_data(root: Path) -> None:
    """What the tools work on."""
    make_calvin(root, {"train": 4, "val": 1}, pairs=1)
    make_robot(root, {"train": 1})
    write_video(root / "raw" / "7.mp4", [np.full((48, 48, 3), 8 * number, np.uint8) for number in range(8)])
    write_table(root / "seed.csv", [{"video_path": "7.mp4", "seed_output": "0.0 - 0.4 push"}])
    write_table(root / "wanted.csv", [{"dataset": "SSv2", "video_path": f"SSv2/0_0{end}.mp4"} for end in ("", "_rev")])
    for number in range(2):
        actions = np.zeros((3, 4))
        actions[:, 0] = 0.05 * np.arange(3)
        for at in range(3):
            write_image(root / "episodes" / str(number) / f"{at}.png", frame(at / 5, 0.5, (200, 100 * number, 9)))
        np.save(root / "episodes" / str(number) / "actions.npy", actions)


def clip() -> None:
    clips.prepare_clips(
        clips.ClipRequest(
            roots={"SSv2": HERE / "raw"}, seeds={"SSv2": HERE / "seed.csv"}, tables=(HERE / "wanted.csv",),
            out=HERE / "out", workers=1, backend="pyav",
        )
    )  # fmt: skip


def stats() -> None:
    table = HERE / "data" / "calvin_metadata_train.csv"
    statistics.write_statistics(DATASETS.get("calvin"), table, HERE / "data", HERE / "out" / "stats.json", workers=1)


def relative_actions() -> None:
    tables = tuple(HERE / "data" / f"calvin_metadata_{split}.csv" for split in ("train", "val"))
    statistics.write_relative(
        statistics.RelativeRequest(
            spec=DATASETS.get("calvin"), tables=tables, input_root=HERE / "data", output_root=HERE / "out", workers=1
        )
    )


def split() -> None:
    table, out = HERE / "data" / "calvin_metadata_train.csv", HERE / "out"
    splits.write_split(splits.SplitRequest(table=table, by="episode", train=out / "train.csv", val=out / "val.csv"))


def indices() -> None:
    sampling.write_indices(
        sampling.IndexRequest(
            table=HERE / "data" / "robot_1st_metadata_train.csv", root=HERE / "data" / "classification",
            out=HERE / "out" / "indices.csv", cache=HERE / "out" / "cache", workers=1,
        )
    )  # fmt: skip


def atomic() -> None:
    config = AtomicConfig(name="atoms", share=0.5, overwrite=True, gripper=-1)
    trajectories.import_trajectories(HERE / "episodes", HERE / "out", config, trajectories.columns_cut(config))


TOOLS: dict[str, Callable[[], None]] = {
    "clip": clip, "stats": stats, "relative": relative_actions, "split": split, "indices": indices, "atomic": atomic,
}  # fmt: skip


class Steps:
    """Counts steps and stops at one of them."""

    def __init__(self, stop: int, how: str) -> None:
        self.done, self.stop, self.how = 0, stop, how

    def step(self) -> None:
        self.done += 1
        if self.done == self.stop and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.done == self.stop:
            raise OSError(28, "No space left on device")

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            self.step()
            return call(*arguments, **options)

        return stepped


class Halves:
    """A file that is written in halves, with a step before each."""

    def __init__(self, file: Any, steps: Steps) -> None:
        self.file, self.steps = file, steps

    def write(self, data: Any) -> int:
        whole = bytes(data)
        for part in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
            self.steps.step()
            self.file.write(part)
            self.file.flush()
        return len(whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Halves:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def halved(steps: Steps) -> Callable[[int, Any], int]:
    """`os.writev` that writes in halves, with a step before each."""

    def writev(handle: int, parts: Any) -> int:
        whole = b"".join(parts)
        for part in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
            steps.step()
            os.write(handle, part)
        return len(whole)

    return writev


def child(tool: Callable[[], None], folder: Path, steps: Steps, count: Path | None = None) -> int:
    """Run a tool in a folder in a process of its own; how that ended. The number of steps goes to `count`."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        os.chdir(folder)
        fdopen, fsync = os.fdopen, lambda _: None  # what is on disk after a loss of power is not asked here
        os.fdopen = lambda *given, **options: Halves(fdopen(*given, **options), steps)  # type: ignore[assignment,return-value]
        os.writev = halved(steps)  # type: ignore[assignment]
        os.fsync, os.replace = steps.around(fsync), steps.around(os.replace)
        with contextlib.redirect_stdout(None), open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
            tool()
        if count is not None:
            count.write_text(str(steps.done))
        code = 0 if steps.done < steps.stop else 3
    except (LaryError, OSError):
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def tree(folder: Path) -> dict[str, bytes]:
    """Files under their own names; those that a killed process left under a temporary name don't count."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not (path.name.startswith(".") and path.name.endswith(".tmp"))
    }


def main(name: str, root: Path, most: int) -> None:
    tool, source, never = TOOLS[name], root / "source", Steps(10**9, "never")
    make_data(source)
    shutil.copytree(source, root / "whole")
    assert child(tool, root / "whole", never, root / "count") == 0
    whole, count = tree(root / "whole"), int((root / "count").read_text())
    print(name, count)
    for how, ends in (("kill", (-signal.SIGKILL,)), ("fail", (2, 3))):
        for stop in sorted({1 + round(part * (count - 1) / most) for part in range(most + 1)}):
            folder = root / f"{how}_{stop}"
            shutil.copytree(source, folder)
            code = child(tool, folder, Steps(stop, how))
            assert code in ends, (name, how, stop, code)
            for place, content in tree(folder).items():
                # A tool may name in a list what failed; what it makes is whole or absent.
                assert place.endswith("_failures.csv") or content == whole[place], (name, how, stop, place)
            if how == "fail":
                assert not list(folder.rglob(".*.tmp")), (how, stop)
            assert child(tool, folder, never) == 0
            assert tree(folder) == whole, (name, how, stop)
            shutil.rmtree(folder)


if __name__ == "__main__":
    for asked in sys.argv[3:] or TOOLS:
        main(asked, Path(sys.argv[1]) / asked, int(sys.argv[2]))
