"""Runs a data tool again and again, killed or failed at another step each time.

    python -m tests.data.stopped_tools FOLDER STOPS [TOOL...]

A step is the first half of a write, the second half, the flush to disk, and the renaming of a file. After every stop,
files under their own names have to be those of an undisturbed run, and a run after it has to give the same tree. STOPS
are spread evenly over all steps. Prints how many steps a tool has. A process of its own, since it forks.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import lary
from tests.tree import frame, make_calvin, make_robot, write_image, write_table, write_video

PLACES = "--lary-root . --data-dir data"
TOOLS = {
    "clip": "data clip --ssv2-root raw --seed-ssv2 seed.csv --metadata wanted.csv --output-dir out --workers 1 "
    f"{PLACES}",
    "stats": f"data stats --dataset calvin --output out/stats.json --workers 1 {PLACES}",
    "relative": "data relative --dataset calvin --csv data/calvin_metadata_train.csv --csv "
    f"data/calvin_metadata_val.csv --output-root out --workers 1 {PLACES}",
    "split": "data split data/calvin_metadata_train.csv --by episode --train out/train.csv --val out/val.csv",
    "indices": "indices data/robot_1st_metadata_train.csv --out out/indices.csv --cache out/cache --workers 1 "
    f"--frames 4 --root data/classification {PLACES}",
    "atomic": "data atomic episodes out --name atoms --test-size 0.5 --gripper 3 --overwrite",
}


def make_data(root: Path) -> None:
    """The files that the tools work on."""
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

    def halves(self, write: Callable[[bytes], Any], data: bytes) -> int:
        """Write in halves, with a step before each."""
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.step()
            write(part)
        return len(data)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            self.step()
            return call(*arguments, **options)

        return stepped


class Halves:
    """A file that is written in halves."""

    def __init__(self, file: Any, steps: Steps) -> None:
        self.file, self.steps = file, steps

    def write(self, data: Any) -> int:
        return self.steps.halves(lambda part: (self.file.write(part), self.file.flush()), bytes(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Halves:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def child(tool: str, folder: Path, steps: Steps, count: Path | None = None) -> int:
    """Run a tool in a folder in a process of its own; how that ended. The number of steps goes to `count`."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        os.chdir(folder)
        fdopen = os.fdopen
        os.fdopen = lambda *given, **options: Halves(fdopen(*given, **options), steps)  # type: ignore[assignment,return-value]
        os.writev = lambda handle, parts: steps.halves(lambda part: os.write(handle, part), b"".join(parts))  # type: ignore[assignment]
        os.fsync = steps.around(lambda _: None)  # what is on disk after a loss of power is not asked here
        os.replace = steps.around(os.replace)
        done = lary(*TOOLS[tool].split()).code
        if count is not None:
            count.write_text(str(steps.done))
        code = done if steps.done < steps.stop else 2
    except OSError:
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


def main(tool: str, root: Path, most: int) -> None:
    source, never = root / "source", Steps(10**9, "never")
    make_data(source)
    shutil.copytree(source, root / "whole")
    assert child(tool, root / "whole", never, root / "count") == 0
    whole, count = tree(root / "whole"), int((root / "count").read_text())
    print(tool, count)
    for how, ends in (("kill", (-signal.SIGKILL,)), ("fail", (1, 2))):
        for stop in sorted({1 + round(part * (count - 1) / most) for part in range(most + 1)}):
            folder = root / f"{how}_{stop}"
            shutil.copytree(source, folder)
            code = child(tool, folder, Steps(stop, how))
            assert code in ends, (tool, how, stop, code)
            for place, content in tree(folder).items():
                # A tool may name in a list what failed; what it makes is whole or absent.
                assert place.endswith("_failures.csv") or content == whole[place], (tool, how, stop, place)
            assert how == "kill" or not list(folder.rglob(".*.tmp")), (tool, stop)
            assert child(tool, folder, never) == 0
            assert tree(folder) == whole, (tool, how, stop)
            shutil.rmtree(folder)


if __name__ == "__main__":
    for asked in sys.argv[3:] or TOOLS:
        main(asked, Path(sys.argv[1]) / asked, int(sys.argv[2]))
