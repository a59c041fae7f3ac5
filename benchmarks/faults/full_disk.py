"""Extraction and probes on a disk that is full again and again, each time with a little more room.

    python -m benchmarks.faults.full_disk [--rows 48] [--seed 0] [--cases npz shards classify regress]

The disk is a small tmpfs, which only root may mount; anybody may with

    unshare --map-root-user --mount python -m benchmarks.faults.full_disk

Each case starts with no room at all. A command has to stop with one sentence that names the full disk, exit code 1 and
no traceback, and to leave no temporary file and no torn one; then the disk grows by a few pages (a probe's by a random
share of what it needs; an extraction's, where it was refused beforehand, to just what the latents alone need) and the
command is started again, until it is done: its files have to be those of an undisturbed run.

Exit code 1 if anything differs; without leave to mount, a sentence and exit code 0.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.faults import scene
from benchmarks.faults.kills import LATER
from lary.latents.sources import read_shard

CASES = ("npz", "shards", "classify", "regress")
PAGE = 4096
STOPS = 12
"""Of a probe, about."""
MOST_STOPS = 200
EPOCHS = 6
FULL, REFUSED = "No space left on device", "free some"


@dataclass
class Outcome:
    """What a case has done."""

    name: str
    stops: int = 0
    refused: int = 0
    places: set[str] = field(default_factory=set)
    compared: int = 0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The outcome for the terminal."""
        return (
            f"{self.name:8} {self.stops:3} times full (while writing {', '.join(sorted(self.places))}; {self.refused} "
            f"refused beforehand), {self.compared} files compared, {len(self.wrong)} differences"
        )


class Disk:
    """A tmpfs of some pages."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.pages = 1

    def mount(self) -> None:
        """Mount it. Raises PermissionError."""
        self.place.mkdir()
        self._call("mount", "-t", "tmpfs", "-o", f"size={self.pages * PAGE}", "tmpfs", str(self.place))

    def resize(self, pages: int) -> None:
        """Change its size."""
        self.pages = pages
        self._call("mount", "-o", f"remount,size={pages * PAGE}", str(self.place))

    def used(self) -> int:
        """Pages that its files take."""
        return pages_of(self.place)

    def unmount(self) -> None:
        """Throw it away."""
        self._call("umount", str(self.place))

    def _call(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise PermissionError(done.stderr.strip())


@contextlib.contextmanager
def disk_at(place: Path) -> Iterator[Disk]:
    """A disk for a while. Raises PermissionError."""
    disk = Disk(place)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


def pages_of(root: Path) -> int:
    """Pages of all files below a folder."""
    return sum(-(-file.stat().st_size // PAGE) for file in scene.files_below(root))


def fill_case(case: str, rows: int, home: Path, data: Path, seed: int) -> Outcome:
    """One case from a disk without room to the end. Raises PermissionError where it can't be mounted."""
    outcome, draw = Outcome(case), random.Random(f"{seed} {case}")
    home.mkdir()
    log = home / "log.txt"
    stored = case in ("npz", "shards")
    with disk_at(home / "disk") as disk:
        if stored:
            plugin = scene.write_plugin(home / "slow.py", home / "counter", 0.0)
            asked, whole = scene.extract_words(plugin, case), scene.make_root(data, home / "whole")
            disk.resize(1000)
            scene.make_root(data, disk.place)
            whole_words, words = (scene.command(data, root, *asked) for root in (whole, disk.place))
        else:
            common = latents_for(case, home, data, log)
            whole = home / "whole"
            whole_words, words = ([*common, "--lary-log-dir", str(root)] for root in (whole, disk.place))
        scene.finish(whole_words, log)
        wanted, total = scene.contents(whole), pages_of(whole)
        disk.resize(max(1, disk.used()))
        while outcome.stops < MOST_STOPS:
            said = log.stat().st_size
            code = scene.start(words, log).wait()
            lines = log.read_bytes()[said:].decode().splitlines()
            if not code:
                break
            outcome.stops += 1
            outcome.wrong += wrong_stop(code, lines) + left_over(disk.place, wanted if stored else None)
            outcome.places.add(what_was_written(lines[-1], disk.place))
            used = disk.used()
            if REFUSED in lines[-1]:
                outcome.refused += 1
                lock = 1
                disk.resize(max(disk.pages + 1, used + latents_alone(whole, disk.place, case, rows) + lock))
            else:
                # A state of a training takes several times what is left in the end.
                more = 1 if stored else draw.randint(1, max(1, 2 * total // STOPS, disk.pages // 2))
                disk.resize(max(disk.pages, used) + more)
        found = scene.contents(disk.place)
        outcome.compared = len(wanted)
        outcome.wrong += [f"at the end: {place}" for place in scene.differences(found, wanted)]
    return outcome


def latents_for(case: str, home: Path, data: Path, log: Path) -> list[str]:
    """Extract what a probe needs, with room; returns its command."""
    root = scene.make_root(data, home / "latents")
    dataset = {"classify": "robot_1st", "regress": "calvin"}[case]
    for split in ("train", "val"):
        words = ("extract", "--model", "pixels", "--dataset", dataset, "--split", split)
        scene.finish(scene.command(data, root, *words), log)
    return scene.command(data, root, *scene.probe_words(case, EPOCHS))


def latents_alone(whole: Path, disk: Path, case: str, rows: int) -> int:
    """Pages that the tokens of the rows take that aren't there yet, without anything around them."""
    if case == "shards":
        held = scene.UNIT * len(list(disk.rglob("shard_*.safetensors")))
        header = read_shard(next(whole.rglob("shard_*.safetensors")))
        size = int(np.prod(header.shape)) * np.dtype(header.dtype).itemsize
    else:
        held = len(list(disk.rglob("*.npz")))
        with np.load(next(whole.rglob("*.npz"))) as arrays:
            size = arrays["tokens"].nbytes
    return -(-(rows - held) * size // PAGE)


def wrong_stop(code: int, lines: list[str]) -> list[str]:
    """What is wrong with how a command stopped."""
    told = [line for line in lines if FULL in line or REFUSED in line]
    wrong = [] if code == 1 else [f"exit code {code}"]
    if any("Traceback" in line for line in lines):
        wrong.append("a traceback")
    if len(told) != 1 or told[0] != lines[-1]:
        wrong.append(f"not one sentence at the end: {lines[-3:]}")
    return wrong


def left_over(root: Path, wanted: dict[str, bytes] | None) -> list[str]:
    """Temporary files, locks, and files of an extraction that aren't those of an undisturbed one."""
    wrong = [f"left: {file.name}" for file in scene.files_below(root) if scene.temporary(file.name)]
    wrong += [f"left: {file.name}" for file in root.rglob("lock")]
    if wanted is not None:
        wrong += [
            f"torn: {place}"
            for place, data in scene.contents(root).items()
            if Path(place).name not in LATER and not scene.temporary(place) and wanted.get(place) != data
        ]
    return wrong


def what_was_written(line: str, root: Path) -> str:
    """The kind of file that a sentence names."""
    name = Path(line.partition("Cannot write ")[2].partition(": ")[0] or root).name
    return "latents beforehand" if name == root.name else name.translate(str.maketrans("", "", "0123456789"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all cases and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    options = parser.parse_args(arguments)
    begun, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        scene.make_pairs(home / "pairs", {"val": options.rows}, damaged=False)
        scene.make_pairs(home / "media", {"train": 32, "val": 16}, damaged=False)
        scene.make_clips(home / "media", {"train": 32, "val": 16})
        for case in options.cases:
            data = home / ("pairs" if case in ("npz", "shards") else "media")
            try:
                outcomes.append(fill_case(case, options.rows, home / case, data, options.seed))
            except PermissionError as error:
                print(f"skipped: no tmpfs can be mounted here ({error}); the docstring says how anybody may")
                return 0
            print(outcomes[-1].line(), flush=True)
            print("\n".join(outcomes[-1].wrong[:50]), file=sys.stderr, flush=True)
    wrong = sum(len(each.wrong) for each in outcomes)
    print(f"in all   {sum(each.stops for each in outcomes)} times full, {sum(each.compared for each in outcomes)} "
          f"files compared, {wrong} differences, {time.monotonic() - begun:.0f} s")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
