"""Extraction and probes killed by SIGKILL at random moments, and started again until they are done.

    python -m benchmarks.faults.kills [--kills 50] [--probe-kills 20] [--rows 48] [--seed 0] [--jobs 2]

Every kill takes the whole process group: the driver and its two reading workers. A fifth of the moments lie before the
first row, a fifth behind the last one, the rest in between; when a round is done, the next one starts with an empty
folder. Held against an undisturbed run in another folder:

- after every kill, each file that has its name: an extraction's has to be whole and the same already;
- after every round, all files of the store, the table, ``failures.csv`` (two pictures are damaged), weights, scores and
  ``result.json`` but its times, and that no temporary file is left;
- rows that were encoded twice: at most a unit of rows per kill.

Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults import scene

STORES, PROBES = ("npz", "shards"), ("classify", "regress")
PHASES = ("start", "work", "end")
SECONDS_PER_ROW = 0.04
EPOCHS = {"classify": 30, "regress": 200}
LOOK = 0.005
STATES, RESULTS = ("training_state.pt",), ("best_result.csv", "case.txt")
"""Files that tell how far a probe is: it is being trained; it was trained, and its files are being written."""
LATER = ("store.json",)
"""Of a store: files that are written again at the end, so that they may be older ones in between."""


@dataclass
class Outcome:
    """What the kills of one case have done."""

    name: str
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    starts: int = 0
    rounds: int = 0
    rows: int = 0
    encoded: int = 0
    twice: int = 0
    worst: int = 0
    compared: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def landed(self) -> int:
        """Kills that met a living process."""
        return sum(self.kills.values())

    def line(self) -> str:
        """The outcome for the terminal."""
        where = ", ".join(f"{count} at the {phase}" for phase, count in self.kills.items())
        told = f"{self.name:8} {self.landed:3} kills ({where}), {self.starts} starts, {self.rounds} rounds"
        if self.rows:
            told += f", {self.encoded} rows encoded for {self.rows}, {self.twice} twice (most per kill {self.worst})"
        return f"{told}, {self.compared} files compared, {len(self.wrong)} differences"


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill a process group; whether its head was still alive."""
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for some seconds, or for the end of the process."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(min(LOOK, max(0.0, end - time.monotonic())))


def wait_for_rows(process: subprocess.Popen[bytes], counter: Path, count: int) -> None:
    """Wait until so many rows are encoded, or for the end of the process."""
    while process.poll() is None and len(scene.encoded(counter)) < count:
        time.sleep(LOOK)


def kill_extraction(store: str, kills: int, rows: int, home: Path, data: Path, seed: int) -> Outcome:
    """Extractions into a store of a kind, killed `kills` times in all."""
    outcome, draw = Outcome(store), random.Random(f"{seed} {store}")
    home.mkdir()
    log, counter = home / "log.txt", home / "counter"
    plugin = scene.write_plugin(home / "slow.py", counter, SECONDS_PER_ROW)
    words = scene.extract_words(plugin, store)
    whole = scene.make_root(data, home / "whole")
    begun = time.monotonic()
    process = scene.start(scene.command(data, whole, *words), log)
    wait_for_rows(process, counter, 1)
    first = time.monotonic() - begun
    good = rows - 2
    wait_for_rows(process, counter, good)
    encoded = time.monotonic() - begun
    if process.wait() != 1:  # two rows can't be read
        raise RuntimeError(log.read_text()[-3000:])
    tail = time.monotonic() - begun - encoded
    wanted = scene.contents(whole)
    while outcome.landed < kills:
        outcome.rounds += 1
        root = scene.make_root(data, home / f"round_{outcome.rounds}")
        code: int | None = None
        held: set[str] = set()
        counter.unlink()
        while code is None:
            outcome.starts += 1
            before = len(scene.encoded(counter))
            phase = draw.choice(("start", "work", "work", "work", "end")) if outcome.landed < kills else ""
            process = scene.start(scene.command(data, root, *words), log)
            missing = good - len(held)
            if phase == "start":
                wait(process, draw.random() * first)
            elif phase == "work":
                wait_for_rows(process, counter, before + 1)
                wait(process, draw.random() * max(missing * SECONDS_PER_ROW, tail))
            elif phase == "end":
                wait_for_rows(process, counter, before + missing)
                wait(process, draw.random() * tail)
            if not phase or not kill(process):
                code = process.wait()
                continue
            done = len(scene.encoded(counter)) - before
            outcome.kills["start" if not done else "end" if done >= missing else "work"] += 1
            found = scene.contents(root)
            outcome.wrong += torn(found, wanted)
            outcome.compared += len(found)
            kept = latents_in(found, store, wanted)
            lost = done - len(kept - held)
            outcome.worst, held = max(outcome.worst, lost), kept
        finish_round(outcome, root, code, wanted, expected=1)
        all_rows = scene.encoded(counter)
        outcome.rows += good
        outcome.encoded += len(all_rows)
        outcome.twice += len(all_rows) - len(set(all_rows))
        if len(set(all_rows)) != good:
            outcome.wrong.append(f"round {outcome.rounds}: {len(set(all_rows))} rows encoded, not {good}")
        print(outcome.line(), file=sys.stderr, flush=True)
    if outcome.worst > scene.UNIT or outcome.twice > outcome.landed * scene.UNIT:
        outcome.wrong.append(f"{outcome.twice} rows encoded twice, {outcome.worst} after one kill")
    return outcome


def latents_in(found: dict[str, bytes], store: str, wanted: dict[str, bytes]) -> set[str]:
    """The rows whose latents are there, as names."""
    import json

    names = set()
    for place in found:
        if scene.temporary(place) or place not in wanted:
            continue
        if store == "npz" and place.endswith(".npz"):
            names.add(place)
        elif store == "shards" and place.endswith(".safetensors"):
            size = int.from_bytes(found[place][:8], "little")
            names |= set(json.loads(found[place][8 : 8 + size])["__metadata__"]["samples"].split(","))
    return names


def torn(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """Files of an interrupted extraction that have their name and aren't those of an undisturbed one."""
    return [
        f"after a kill: {place}"
        for place, data in found.items()
        if not scene.temporary(place) and Path(place).name not in LATER and wanted.get(place) != data
    ]


def kill_probe(kind: str, kills: int, home: Path, data: Path, seed: int) -> Outcome:
    """Trainings of a probe, killed `kills` times in all."""
    outcome, draw = Outcome(kind), random.Random(f"{seed} {kind}")
    home.mkdir()
    log, latents = home / "log.txt", scene.make_root(data, home / "latents")
    dataset = {"classify": "robot_1st", "regress": "calvin"}[kind]
    for split in ("train", "val"):
        words = ("extract", "--model", "pixels", "--dataset", dataset, "--split", split)
        scene.finish(scene.command(data, latents, *words), log)
    command = scene.command(data, latents, *scene.probe_words(kind, EPOCHS[kind]))
    whole = home / "whole"
    begun = time.monotonic()
    process = scene.start([*command, "--lary-log-dir", str(whole)], log)
    wait_for_change(process, whole, STATES)
    first = time.monotonic()
    wait_for_change(process, whole, RESULTS)
    training = time.monotonic() - first
    if process.wait():
        raise RuntimeError(log.read_text()[-3000:])
    seconds = time.monotonic() - begun
    wanted = scene.contents(whole)
    while outcome.landed < kills:
        outcome.rounds += 1
        root = home / f"round_{outcome.rounds}"
        code: int | None = None
        while code is None:
            outcome.starts += 1
            process = scene.start([*command, "--lary-log-dir", str(root)], log)
            trained = bool(ages(root, RESULTS))
            if outcome.landed < kills and not (trained and draw.random() < 0.5):
                if trained or draw.random() < 0.3:
                    wait(process, seconds * draw.uniform(0.1, 1.0))
                else:
                    wait_for_change(process, root, STATES + RESULTS)
                    wait(process, training * draw.random())
                if kill(process):
                    outcome.kills["end" if ages(root, RESULTS) else "work" if ages(root, STATES) else "start"] += 1
                    continue
            code = process.wait()
        finish_round(outcome, root, code, wanted, expected=0)
        print(outcome.line(), file=sys.stderr, flush=True)
    return outcome


def ages(root: Path, names: Sequence[str]) -> dict[Path, int]:
    """Files of some names below a folder, and when they were changed."""
    found = {}
    for name in names:
        for file in root.rglob(name):
            with contextlib.suppress(FileNotFoundError):
                found[file] = file.stat().st_mtime_ns
    return found


def wait_for_change(process: subprocess.Popen[bytes], root: Path, names: Sequence[str]) -> None:
    """Wait until a file of one of the names is new or changed, or for the end of the process."""
    before = ages(root, names)
    while process.poll() is None and ages(root, names) in ({}, before):
        time.sleep(LOOK)


def finish_round(outcome: Outcome, root: Path, code: int, wanted: dict[str, bytes], *, expected: int) -> None:
    """Compare a folder whose command came to its end, and remove it."""
    found = scene.contents(root)
    outcome.compared += len(wanted)
    outcome.wrong += [f"round {outcome.rounds}: {place}" for place in scene.differences(found, wanted)]
    if code != expected:
        outcome.wrong.append(f"round {outcome.rounds}: exit code {code}")
    shutil.rmtree(root)


def shares(total: int, parts: int) -> list[int]:
    """A number in parts that differ by one at most."""
    return [total // parts + (index < total % parts) for index in range(parts)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all cases and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of extractions, half per kind of store")
    parser.add_argument("--probe-kills", type=int, default=20, help="of probes, half per kind of probe")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at the same time")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        home = Path(folder)
        jobs = []
        if options.kills:
            data = home / "pairs"
            scene.make_pairs(data, {"val": options.rows}, damaged=True)
            for store, kills in zip(STORES, shares(options.kills, 2), strict=True):
                jobs.append(pool.submit(kill_extraction, store, kills, options.rows, home / store, data, options.seed))
        if options.probe_kills:
            data = home / "media"
            scene.make_pairs(data, {"train": 48, "val": 16}, damaged=False)
            scene.make_clips(data, {"train": 32, "val": 16})
            for kind, kills in zip(PROBES, shares(options.probe_kills, 2), strict=True):
                jobs.append(pool.submit(kill_probe, kind, kills, home / kind, data, options.seed))
        outcomes = []
        for job in jobs:
            outcomes.append(job.result())
            print(outcomes[-1].line(), flush=True)
    wrong = [f"{outcome.name}: {what}" for outcome in outcomes for what in outcome.wrong]
    print("\n".join(wrong[:50]), file=sys.stderr)
    landed, starts = sum(each.landed for each in outcomes), sum(each.starts for each in outcomes)
    print(f"in all   {landed} kills, {starts} starts, {sum(each.twice for each in outcomes)} rows encoded twice, "
          f"{sum(each.compared for each in outcomes)} files compared, {len(wrong)} differences, "
          f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
