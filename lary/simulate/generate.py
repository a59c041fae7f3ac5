"""`lary simulate`: the whole data set, by several processes, resumable."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from lary.data.configs import SimulateConfig
from lary.data.tables import write_csv
from lary.files import read_json, remove_torn, write_json, write_text
from lary.runtime import log, progress
from lary.simulate.plan import GENERATOR, Recording, check_numbers, make_plan, tables
from lary.types import LaryError, UsageError

RECORD = "simulation.json"
UNFINISHED = ".simulation-unfinished.json"
OWN = ("regression/simarm", "classification/SimArm")
"""Folders under DATA_DIR that belong to the simulation alone."""
SETTINGS = "LARY_ROOT: .\nDATA_DIR: data\nLARY_LA_DIR: latent_actions\nLARY_LOG_DIR: logs\n"
STATS = "regression/simarm/simarm_stats.json"


def simulate(out: Path, config: SimulateConfig) -> dict[str, int]:
    """Make the data set; returns the number of rows of each table.

    An episode whose files are all there is not made again. The record `simulation.json` is written last.

    Args:
        out: becomes ``LARY_ROOT``, with ``data`` in it as ``DATA_DIR``.

    Raises:
        UsageError: MuJoCo is missing, the numbers make no data set, or the folder holds another simulation.
        LaryError: a file can't be written, or a worker process died.
    """
    check_numbers(config)
    require_mujoco()
    data_dir = out / "data"
    decisive = {"seed": config.seed, "pairs": config.pairs, "clips": config.clips, "size": config.size}
    record = {"version": 1, "generator": GENERATOR, "config": decisive}
    claim_folder(out, record, overwrite=config.overwrite)
    recordings = make_plan(config)
    missing = [
        recording for recording in recordings if not all((data_dir / name).is_file() for name in recording.files)
    ]
    content = tables(recordings)
    rows = {name: len(lines) for name, (_, lines) in content.items()}
    written = [*(data_dir / f"{name}.csv" for name in content), data_dir / STATS, out / "lary.yaml", out / RECORD]
    if not missing and all(path.is_file() for path in written) and not (out / UNFINISHED).exists():
        log.info("simulation in %s is complete: nothing to do", out)
        return rows
    for name in OWN:
        remove_torn(data_dir / name, below=True)
    done = len(recordings) - len(missing)
    if done:
        log.info("simulation in %s: %d of %d episodes and clips are there already", out, done, len(recordings))
    with progress(len(recordings), "simulate", unit="episode", done=done) as bar:
        for _ in perform_all(missing, data_dir, config):
            bar.advance()
    for name, (columns, lines) in content.items():
        write_csv(data_dir / f"{name}.csv", columns, lines)
    write_json(data_dir / STATS, {"robot_stats": robot_stats(recordings, data_dir)})
    if not (out / "lary.yaml").exists():
        write_text(out / "lary.yaml", SETTINGS)
    write_json(out / RECORD, record)
    (out / UNFINISHED).unlink(missing_ok=True)
    return rows


def require_mujoco() -> None:
    """Raise UsageError if MuJoCo is missing or too old."""
    if importlib.util.find_spec("mujoco") is None:
        raise UsageError("lary simulate needs MuJoCo: pip install 'lary[demo]'.")
    import mujoco

    if "normal:" not in (mujoco.mj_multiRay.__doc__ or ""):
        raise UsageError(
            f"MuJoCo {mujoco.__version__} casts rays without normals: pip install -U 'lary[demo]' (3.5 or later)."
        )


def claim_folder(out: Path, record: dict[str, Any], *, overwrite: bool) -> None:
    """Make sure that the folder may be filled, and write down what it is being filled with.

    Raises:
        UsageError: it holds another simulation, or files of one without a record.
    """
    data_dir = out / "data"
    found = next((path for path in (out / RECORD, out / UNFINISHED) if path.is_file()), None)
    stray = next((data_dir / name for name in OWN if (data_dir / name).exists()), None)
    if found is not None and read_json(found, "record of a simulation") == record:
        return
    if found is not None or stray is not None:
        if not overwrite:
            what = f"{found} is the record of another one" if found else f"{stray} exists without a record"
            raise UsageError(
                f"{out} can't take this simulation, since {what}: choose another folder, remove this one, or pass "
                "--overwrite to 'lary simulate'."
            )
        for name in OWN:
            shutil.rmtree(data_dir / name, ignore_errors=True)
        for path in (*data_dir.glob("simarm_metadata_*.csv"), *data_dir.glob("simarm_actions_metadata_*.csv")):
            path.unlink()
        (out / RECORD).unlink(missing_ok=True)
    write_json(out / UNFINISHED, record)


def robot_stats(recordings: Sequence[Recording], data_dir: Path) -> dict[str, dict[str, Any]]:
    """Mean and population standard deviation (7,) of all training steps of each robot type.

    A dimension that never changes has the standard deviation 1, so that it normalises to 0.
    """
    result: dict[str, dict[str, Any]] = {}
    training = [recording for recording in recordings if recording.pairs and recording.split == "train"]
    for robot in sorted({recording.robot for recording in training}):
        chosen = [recording for recording in training if recording.robot == robot]
        paths = [
            data_dir / recording.folder / recording.action(frame)
            for recording in chosen
            for frame in recording.wanted[:-1]
        ]
        steps = np.concatenate([np.load(path, allow_pickle=False) for path in paths]).astype(np.float64)
        spread = steps.std(axis=0)
        spread[spread < 1e-6] = 1.0
        result[robot] = {"mean": steps.mean(axis=0).tolist(), "std": spread.tolist(), "count": len(steps)}
    return result


def perform_all(recordings: Sequence[Recording], data_dir: Path, config: SimulateConfig) -> Iterator[None]:
    """Perform recordings here, or in several fresh processes; yields once for each that is done."""
    from lary.simulate import episodes

    if config.processes == 1 or len(recordings) < 2:
        for recording in recordings:
            episodes.perform(recording, data_dir, config.size)
            yield
        return
    # Fresh processes: MuJoCo and OpenCV have threads of their own, which a fork would not survive.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(config.processes, len(recordings)), context, prepare_worker)
    try:
        for future in as_completed(
            [pool.submit(episodes.perform, recording, data_dir, config.size) for recording in recordings]
        ):
            yield future.result()
    except BrokenProcessPool as error:
        raise LaryError(
            "A process of the simulation died (out of memory?): start it again, what is done stays."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prepare_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when it is gone, which a pool's worker would not notice."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
