"""Every command that writes files in odd states of the machine: a right result, or one sentence and exit code 1 or 2.

    python -m benchmarks.faults.states [--states gone cwd shm full ...] [--times 3] [--seed 0] [--only NAME ...]

``gone``: its folder is removed while it runs. ``cwd``: the current folder is removed. ``no shm``, ``full shm``:
``/dev/shm`` is absent, or has one page. ``full``: a disk with a random share of the space needed, which then grows, and
the command is started again to its end. All but ``gone`` and ``cwd`` need leave to mount, see ``full_disk.py``. The
cases are those of ``commands.py``. Exit code 1 if any is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults import scene
from benchmarks.faults.commands import CASES, stable, words_of
from benchmarks.faults.full_disk import PAGE, disk_at, pages_of

SECONDS = 600
"""Of a command: after them it counts as hanging."""
DEVICES = (
    "mkdir /dev/pts; for n in null zero random urandom; do touch /dev/$n; mount --bind /tmp/devices/$n /dev/$n; done"
)
SHELLS = {
    "cwd": 'mkdir "$1.cwd"; cd "$1.cwd"; rmdir "$1.cwd"; shift; exec "$@"',
    "no shm": "mkdir -p /tmp/devices; mount --rbind /dev /tmp/devices; mount -t tmpfs dev /dev; "
    + DEVICES
    + '; shift; exec "$@"',
    "full shm": f'mount -t tmpfs -o size={PAGE} shm /dev/shm; shift; exec "$@"',
}
STATES = ("gone", "full", *SHELLS)


def ended(words: Sequence[str], log: Path, remove: Path | None = None, after: float = 0) -> tuple[int, list[str]]:
    """Exit code and lines of a command; a folder is removed while it runs."""
    log.unlink(missing_ok=True)
    process = scene.start(words, log)
    timer = threading.Timer(after, shutil.rmtree, (remove, True))
    if remove is not None:
        timer.start()
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = -1
    timer.cancel()
    return code, log.read_text(errors="replace").splitlines()


def wrong_end(code: int, lines: list[str]) -> list[str]:
    """What is wrong with a command that did not succeed."""
    last = next((line for line in reversed(lines) if not line.startswith("  ")), "")
    found = [] if code in (1, 2) else [f"exit code {code}"]
    found += ["a traceback"] if any("Traceback" in line for line in lines) else []
    named = last.startswith("lary: ") or any(line.startswith("  failed: ") for line in lines)
    return found + ([] if named else [f"no sentence: {last[:200]}"])


def try_state(state: str, name: str, times: int, rng: random.Random, folder: Path) -> tuple[int, int, list[str]]:
    """Starts, refusals, and what is wrong."""
    ready, whole, place, log = (folder / part for part in ("ready", "whole", "round", "log"))
    if not whole.exists():
        ready.mkdir()
        CASES[name][1](ready)
        shutil.copytree(ready, whole)
        started = time.monotonic()
        scene.finish(words_of(name, whole), log)
        (folder / "seconds").write_text(str(time.monotonic() - started))
    seconds = float((folder / "seconds").read_text())
    wanted, pages, refused, wrong = stable(whole), pages_of(whole), 0, list[str]()
    for _ in range(times):
        shutil.rmtree(place, ignore_errors=True)
        words = words_of(name, place)
        if state == "full":
            with disk_at(place) as disk:
                disk.resize(2 * pages + 64)
                shutil.copytree(ready, place, dirs_exist_ok=True)
                disk.resize(disk.used() + 1 + int(rng.random() * (pages - pages_of(ready))))
                code, lines = ended(words, log)
                wrong += [f"{each}: {lines[-1:]}" for each in wrong_end(code, lines)] if code else []
                refused += bool(code)
                disk.resize(8 * pages + 4096)
                code, lines = ended(words, log)
                wrong += (
                    [f"exit code {code} with space: {lines[-1:]}"] if code else scene.differences(stable(place), wanted)
                )
            place.rmdir()
            continue
        shutil.copytree(ready, place)
        shell = ["unshare", "--mount", "bash", "-c", SHELLS[state], "bash", str(place)] if state in SHELLS else []
        code, lines = ended([*shell, *words], log, place if state == "gone" else None, seconds * rng.uniform(0.3, 1.0))
        refused += bool(code)
        if code:
            wrong += wrong_end(code, lines)
        elif state != "gone":
            wrong += scene.differences(stable(place), wanted)
    return times, refused, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", nargs="+", choices=STATES, default=STATES)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    given, failed = parser.parse_args(), 0
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            for state in given.states:
                tried, refused, wrong = try_state(state, name, given.times, random.Random(given.seed), Path(folder))
                failed += len(wrong)
                print(
                    f"{name:16} {state:8} {tried} starts, {refused} refused, {len(wrong)} wrong",
                    *wrong[:5],
                    sep="\n  ",
                    flush=True,
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
