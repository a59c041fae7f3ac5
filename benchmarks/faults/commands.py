"""Every command that writes files, killed by SIGKILL at random moments and started again until it is done.

    python -m benchmarks.faults.commands [--kills 10] [--seed 0] [--only NAME ...]

A case is a folder that is made ready once, and a command that works in it. It is run undisturbed to learn its time
and its files. Then, in a new copy of the folder, its process group is killed at random moments, up to three times in a
row, and the command started again to its end. The files have to be those of the undisturbed run, but for fields of
time, host and process, and no temporary file may be left. Extraction and two probes are in ``kills.py``. Exit code 1 if
any differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.faults import scene

SIZES = ("--pairs", "24", "--clips", "16", "--size", "48")
TIMED = ("report.html", "index.html", "extraction.json", "lock", ".lock")
"""Files whose bytes hold times or names of processes: they have to be there."""
PROBE = ("--probe-preset", "demo", "--epochs", "3")


def lary(root: Path, *words: object) -> list[str]:
    """``lary WORDS`` in a folder that serves as LARY_ROOT, with data/ below it."""
    return scene.command(root / "data", root, *map(str, words))


def done(root: Path, *words: object) -> None:
    """Run a command to its end."""
    scene.finish(lary(root, *words)[: -4 if words[0] == "simulate" else None], root.with_suffix(".log"))


def empty(root: Path) -> None:
    """Nothing: the command makes all."""


def simulated(root: Path) -> None:
    """Simulated pairs and clips."""
    done(root, "simulate", root, *SIZES)


def extracted(root: Path) -> None:
    """The same, with latents of `pixels` of all pairs."""
    simulated(root)
    for split in ("train", "val", "unseen"):
        done(root, "extract", "--model", "pixels", "--dataset", "simarm", "--split", split, "--workers", 1)


def probed(root: Path) -> None:
    """The same, with a finished regression and classification."""
    extracted(root)
    done(root, "regress", "--model", "pixels", "--dataset", "simarm", *PROBE)
    done(root, "run", "--model", "frame-difference", "--dataset", "simarm", *PROBE)
    done(root, "run", "--model", "pixels", "--dataset", "simarm_actions", *PROBE)


def episodes(root: Path) -> None:
    """Folders of images with their actions, to be imported."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for episode in range(6):
        folder = root / "episodes" / str(episode)
        folder.mkdir(parents=True)
        points = np.cumsum(rng.normal(0, 0.05, (24, 7)), axis=0) % 1.0
        np.save(folder / "actions.npy", points.astype(np.float32))
        for at, point in enumerate(points):
            Image.fromarray(scene.picture(point[0], point[1], (250, 200, 90))).save(folder / f"{at:03d}.png")


def sweep_file(root: Path) -> None:
    """Simulated data and a sweep of four runs."""
    simulated(root)
    options = {"probe_preset": "demo", "epochs": 2, "workers": 1}
    grid = {"model": ["pixels", "frame-difference"], "dataset": ["simarm"], "project": [None, 8]}
    (root / "sweep.yaml").write_text(json.dumps({"options": options, "grid": grid}))


OF_PAIRS = "--model pixels --dataset simarm --probe-preset demo"
CSVS = " ".join(f"--csv ROOT/data/simarm_metadata_{name}.csv" for name in ("train", "val", "unseen"))
CASES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "simulate": ("simulate ROOT --pairs 24 --clips 16 --size 48", empty),
    "demo": ("demo --out ROOT/demo --pairs 24 --clips 16 --size 48", empty),
    "import pairs": ("data pairs ROOT/episodes ROOT --name own --stride 4 --overwrite", episodes),
    "import atomic": ("data atomic ROOT/episodes ROOT --name own --overwrite", episodes),
    "data stats": ("data stats --dataset simarm --output ROOT/stats.json", simulated),
    "data relative": (f"data relative --dataset simarm {CSVS}", simulated),
    "data audit": ("data audit simarm --output ROOT/audit.txt", simulated),
    "regress dit": (f"regress {OF_PAIRS} --model-type dit --epochs 3", extracted),
    "controls": (f"controls {OF_PAIRS}", extracted),
    "sweep": ("sweep ROOT/sweep.yaml", sweep_file),
    "report": ("report", probed),
    "analyze": ("analyze", probed),
    "table": ("table --out ROOT/table.md", probed),
}
"""The words of each command, and what makes its folder ready."""
WITHOUT_PATHS = ("simulate", "demo", "import pairs", "import atomic")


def words_of(name: str, root: Path) -> list[str]:
    """The command of a case in a folder."""
    words = CASES[name][0].replace("ROOT", str(root)).split()
    return lary(root, *words)[: -4 if name in WITHOUT_PATHS else None]


def stable(root: Path) -> dict[str, bytes]:
    """Files by place, without what differs between two undisturbed runs."""
    found = {}
    for place, data in scene.contents(root).items():
        name = Path(place).name
        data = re.sub(rb"/[^\s\"',]*/(round|whole)\b", b"ROOT", data)
        found[place] = b"" if name in TIMED or name.endswith(".log") else data
    return found


def kill(words: Sequence[str], log: Path, seconds: float) -> bool:
    """Start a command and kill its group after a time; whether it was still at work."""
    process = scene.start(words, log)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        time.sleep(0.01)
    alive = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def try_case(name: str, kills: int, rng: random.Random, folder: Path) -> tuple[int, int, list[str]]:
    """Kills that hit, files compared, and what differs."""
    ready, whole, log = folder / "ready", folder / "whole", folder / "log"
    ready.mkdir(parents=True)
    CASES[name][1](ready)
    shutil.copytree(ready, whole)
    started = time.monotonic()
    scene.finish(words_of(name, whole), log)
    seconds = time.monotonic() - started
    wanted, hits, compared, wrong = stable(whole), 0, 0, []
    while hits < kills:
        place = folder / "round"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(ready, place)
        for _ in range(min(rng.randint(1, 3), kills - hits)):
            hits += kill(words_of(name, place), log, rng.uniform(0.05, 1.0) * seconds)
        scene.finish(words_of(name, place), log)
        found = stable(place)
        compared += len(found)
        wrong += scene.differences(found, wanted)
        wrong += [f"{path} is left" for path in found if scene.temporary(path)]
    return hits, compared, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    given = parser.parse_args()
    failed = 0
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            try:
                hits, compared, wrong = try_case(name, given.kills, random.Random(given.seed), Path(folder))
            except RuntimeError as error:
                hits, compared, wrong = 0, 0, [str(error)]
        failed += len(wrong)
        print(
            f"{name:16} {hits:3} kills, {compared:5} files compared, {len(wrong)} differences", *wrong[:5], sep="\n  "
        )
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
