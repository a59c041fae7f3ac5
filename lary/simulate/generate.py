"""`lary simulate`: the whole data set, by several processes, resumable."""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lary.files import read_json, write_bytes, write_json, write_text
from lary.runtime import log, progress
from lary.simulate.plan import GENERATOR, Job, SimulateConfig, make_plan, tables
from lary.types import LaryError, UsageError

RECORD = "simulation.json"
UNFINISHED = ".simulation-unfinished.json"
OWN = ("regression/simarm", "classification/SimArm")
"""Folders under DATA_DIR that belong to the simulation alone."""
SETTINGS = "LARY_ROOT: .\nDATA_DIR: data\nLARY_LA_DIR: latent_actions\nLARY_LOG_DIR: logs\n"
STATS = "regression/simarm/simarm_stats.json"


def simulate(config: SimulateConfig) -> dict[str, int]:
    """Make the data set; returns the number of rows of each table.

    An episode whose files are all there is not made again. The record `simulation.json` is written last.

    Raises:
        UsageError: MuJoCo is missing, the numbers make no data set, or the folder holds another simulation.
        LaryError: a file can't be written, or a worker process died.
    """
    config.check()
    _require_mujoco()
    out, data_dir = config.out, config.out / "data"
    asked = describe(config)
    _claim(config, asked)
    jobs = make_plan(config)
    missing = [job for job in jobs if not all((data_dir / name).is_file() for name in job.files)]
    content = tables(jobs)
    rows = {name: len(lines) for name, (_, lines) in content.items()}
    if not missing and _complete(out, asked, list(content)):
        log.info("simulation in %s is complete: nothing to do", out)
        return rows
    _sweep_leftovers(data_dir)
    if len(missing) < len(jobs):
        log.info(
            "simulation in %s: %d of %d episodes and clips are there already", out, len(jobs) - len(missing), len(jobs)
        )
    with progress(len(jobs), "simulate", unit="episode", done=len(jobs) - len(missing)) as bar:
        for _ in _performed(missing, config):
            bar.advance()
    for name, (columns, lines) in content.items():
        write_bytes(data_dir / f"{name}.csv", _csv(columns, lines))
    write_json(data_dir / STATS, {"robot_stats": robot_stats(jobs, data_dir)})
    if not (out / "lary.yaml").exists():
        write_text(out / "lary.yaml", SETTINGS)
    write_json(out / RECORD, asked)
    (out / UNFINISHED).unlink(missing_ok=True)
    return rows


def describe(config: SimulateConfig) -> dict[str, Any]:
    """What decides the bytes of a simulation, as its record says it."""
    return {
        "version": 1, "generator": GENERATOR,
        "config": {"seed": config.seed, "pairs": config.pairs, "clips": config.clips, "size": config.size},
    }  # fmt: skip


def _require_mujoco() -> None:
    if importlib.util.find_spec("mujoco") is None:
        raise UsageError("lary simulate needs MuJoCo: pip install 'lary[demo]'.")
    import mujoco

    if "normal:" not in (mujoco.mj_multiRay.__doc__ or ""):
        raise UsageError(
            f"MuJoCo {mujoco.__version__} casts rays without normals: pip install -U 'lary[demo]' (3.5 or later)."
        )


def _claim(config: SimulateConfig, asked: dict[str, Any]) -> None:
    """Make sure that the folder is ours to fill, and note what it is being filled with."""
    out, data_dir = config.out, config.out / "data"
    found = next((path for path in (out / RECORD, out / UNFINISHED) if path.is_file()), None)
    stray = next((data_dir / name for name in OWN if (data_dir / name).exists()), None)
    if found is not None and read_json(found, "record of a simulation") == asked:
        return
    if found is not None or stray is not None:
        if not config.overwrite:
            what = f"{found} tells of another one" if found is not None else f"{stray} exists without a record"
            raise UsageError(
                f"{out} can't take this simulation, since {what}: choose another folder, remove this one, or pass "
                "--overwrite to 'lary simulate'."
            )
        for name in OWN:
            shutil.rmtree(data_dir / name, ignore_errors=True)
        for path in [
            *data_dir.glob("simarm_metadata_*.csv"),
            *data_dir.glob("simarm_actions_metadata_*.csv"),
            out / RECORD,
        ]:
            path.unlink(missing_ok=True)
    write_json(out / UNFINISHED, asked)


def _complete(out: Path, asked: dict[str, Any], names: list[str]) -> bool:
    files = [out / "data" / f"{name}.csv" for name in names] + [out / "data" / STATS, out / "lary.yaml"]
    record = out / RECORD
    return (
        record.is_file()
        and all(path.is_file() for path in files)
        and read_json(record, "record of a simulation") == asked
    )


def _sweep_leftovers(data_dir: Path) -> None:
    """Remove the unfinished files of a killed run."""
    for name in OWN:
        for path in (data_dir / name).rglob(".*.tmp"):
            path.unlink(missing_ok=True)


def _csv(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue().encode()


def robot_stats(jobs: list[Job], data_dir: Path) -> dict[str, dict[str, Any]]:
    """Mean and population standard deviation (7,) of all training steps of each robot type.

    A dimension that never changes has the standard deviation 1, so that it normalises to 0.
    """
    import numpy as np

    result: dict[str, dict[str, Any]] = {}
    training = [job for job in jobs if job.pairs and job.split == "train"]
    for robot in sorted({job.robot for job in training}):
        chosen = [job for job in training if job.robot == robot]
        paths = [data_dir / job.folder / job.action(frame) for job in chosen for frame in job.wanted[:-1]]
        steps = np.concatenate([np.load(path, allow_pickle=False) for path in paths]).astype(np.float64)
        spread = steps.std(axis=0)
        spread[spread < 1e-6] = 1.0
        result[robot] = {"mean": steps.mean(axis=0).tolist(), "std": spread.tolist(), "count": len(steps)}
    return result


def _performed(jobs: list[Job], config: SimulateConfig) -> Iterator[None]:
    """Perform jobs here, or in several fresh processes; yields once for each that is done."""
    from lary.simulate import episodes

    data_dir = config.out / "data"
    if config.processes == 1 or len(jobs) < 2:
        for job in jobs:
            episodes.perform(job, data_dir, config.size)
            yield
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    from lary.simulate.workers import prepare_worker

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(config.processes, len(jobs)), context, prepare_worker)
    try:
        for future in as_completed([pool.submit(episodes.perform, job, data_dir, config.size) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise LaryError(
            "A process of the simulation died (out of memory?): start it again, what is done stays."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
