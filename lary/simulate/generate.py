"""`lary simulate`: the whole data set, resumable."""

import importlib.util
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from lary.arrays import Floats
from lary.data.actions import Moments
from lary.data.configs import SimulateConfig
from lary.data.tables import write_csv
from lary.files import read_json, remove_torn, write_json, write_text
from lary.runtime import log, progress
from lary.simulate.episodes import CLIPS, PAIRS, Recording, make_plan, perform, rows_of_tables
from lary.types import JsonDict, LaryError, UsageError
from lary.workers import end_with_starter

FEWEST = 10
GENERATOR = "2"
"""Version of what is drawn: raised when a seed gives other bytes."""
RECORD = "simulation.json"
UNFINISHED = ".simulation-unfinished.json"
OWN = ("regression/simarm", "classification/SimArm")
"""Folders of DATA_DIR for the simulation alone."""
SETTINGS = "LARY_ROOT: .\nDATA_DIR: data\nLARY_LA_DIR: latent_actions\nLARY_LOG_DIR: logs\n"
STATS = "regression/simarm/simarm_stats.json"


def simulate(out: Path, config: SimulateConfig) -> dict[str, int]:
    """Make the data set in `out`, a ``LARY_ROOT``; returns the number of rows of each table.

    An episode whose files are all there is kept. Raises UsageError without
    MuJoCo, for wrong numbers or another simulation in the folder, LaryError
    where writing fails.
    """
    check_numbers(config)
    if importlib.util.find_spec("mujoco") is None:
        raise UsageError("lary simulate needs MuJoCo: pip install 'lary[demo]'.")
    data_dir = out / "data"
    decisive = {name: getattr(config, name) for name in ("seed", "pairs", "clips", "size")}
    record = {"version": 1, "generator": GENERATOR, "config": decisive}
    claim_folder(out, record, overwrite=config.overwrite)
    recordings = make_plan(config)
    missing = [each for each in recordings if not all((data_dir / name).is_file() for name in each.files)]
    content = rows_of_tables(recordings)
    counts = {name: len(rows) for name, rows in content.items()}
    written = [*(data_dir / f"{name}.csv" for name in content), data_dir / STATS, out / "lary.yaml", out / RECORD]
    if not missing and all(path.is_file() for path in written) and not (out / UNFINISHED).exists():
        log.info("simulation in %s is complete: nothing to do", out)
        return counts
    for name in OWN:
        remove_torn(data_dir / name, below=True)
    if done := len(recordings) - len(missing):
        log.info("simulation in %s: %d of %d episodes and clips are there already", out, done, len(recordings))
    with progress(len(recordings), "simulate", unit="episode", done=done) as bar:
        for _ in perform_all(missing, data_dir, config):
            bar.advance()
    for name, rows in content.items():
        write_csv(data_dir / f"{name}.csv", list(rows[0]), [list(row.values()) for row in rows])
    write_json(data_dir / STATS, {"robot_stats": robot_stats(recordings, data_dir)})
    if not (out / "lary.yaml").exists():
        write_text(out / "lary.yaml", SETTINGS)
    write_json(out / RECORD, record)
    (out / UNFINISHED).unlink(missing_ok=True)
    return counts


def check_numbers(config: SimulateConfig) -> None:
    if config.pairs < FEWEST or config.clips < FEWEST:
        raise UsageError(
            f"A simulation needs at least {FEWEST} pairs and {FEWEST} clips, not {config.pairs} and {config.clips}."
        )
    if config.size % 2 or not 32 <= config.size <= 1024:
        raise UsageError(f"Frames of {config.size} pixels: expected an even number from 32 to 1024.")
    if config.processes < 1 or config.seed < 0:
        raise UsageError("The number of processes is at least 1 and the seed at least 0.")


def claim_folder(out: Path, record: JsonDict, *, overwrite: bool) -> None:
    """Record what fills the folder. Raises UsageError for what else is in it."""
    data_dir = out / "data"
    found = next((path for path in (out / RECORD, out / UNFINISHED) if path.is_file()), None)
    if found and read_json(found, "record of a simulation") == record:
        return
    stray = next((data_dir / name for name in OWN if (data_dir / name).exists()), None)
    if found or stray:
        if not overwrite:
            what = f"{found} is the record of another one" if found else f"{stray} exists without a record"
            raise UsageError(
                f"{out} can't take this simulation, since {what}: choose another folder, or pass --overwrite."
            )
        for name in OWN:
            shutil.rmtree(data_dir / name, ignore_errors=True)
        for path in (*data_dir.glob(f"{PAIRS}*.csv"), *data_dir.glob(f"{CLIPS}*.csv"), out / RECORD):
            path.unlink(missing_ok=True)
    write_json(out / UNFINISHED, record)


def robot_stats(recordings: Sequence[Recording], data_dir: Path) -> dict[str, JsonDict]:
    """Mean, std and count of the training actions (7,) by robot, as in `Moments.entry`."""
    chunks: dict[str, list[Floats]] = {}
    for recording in recordings:
        if recording.pairs and recording.split == "train":
            found = [np.load(data_dir / name, allow_pickle=False) for name in recording.actions]
            chunks.setdefault(recording.robot, []).extend(found)
    entries = {robot: Moments.of(np.vstack(each)).entry() for robot, each in sorted(chunks.items())}
    return {robot: {name: entry[name] for name in ("mean", "std", "count")} for robot, entry in entries.items()}


def perform_all(recordings: Sequence[Recording], data_dir: Path, config: SimulateConfig) -> Iterator[None]:
    """Perform recordings, here or in processes; yields after each."""
    if config.processes == 1 or len(recordings) < 2:
        for recording in recordings:
            perform(recording, data_dir, config.size)
            yield
        return
    # Spawned: threads of MuJoCo and OpenCV would not survive a fork.
    context = multiprocessing.get_context("spawn")
    try:
        pool = ProcessPoolExecutor(min(config.processes, len(recordings)), context, end_with_starter)
    except OSError as error:
        raise LaryError(f"Processes need /dev/shm ({error.strerror}): pass --processes 1.") from error
    try:
        for future in as_completed([pool.submit(perform, each, data_dir, config.size) for each in recordings]):
            yield future.result()
    except BrokenProcessPool as error:
        raise LaryError("A process of the simulation died (out of memory?): start it again to resume.") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
