"""``lary extract --dry-run``: what an extraction will need, from a real encode of a few samples. Writes nothing."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lary.configs import ExtractConfig
from lary.latents.pipeline import encode_units, plan_units
from lary.latents.ref import store_at
from lary.latents.store import MANIFEST
from lary.runs.extract import Run, open_run, prepare_run
from lary.settings import Settings
from lary.types import Failure

SECONDS = 10.0
"""How long to measure, at most; the current batch is finished."""
BATCHES = 16


@dataclass(frozen=True)
class Estimate:
    """What is to be done and what it needs.

    Attributes:
        bytes_to_write: of the rows that are missing, from the files of those that were measured.
        bytes_free: where the latents will lie.
        seconds: for the missing rows on all devices of the request; None if nothing could be measured.
        measured: how many samples that was measured on.
    """

    title: str
    folder: Path
    rows: int
    done: int
    bytes_to_write: int
    bytes_free: int
    seconds: float | None
    measured: int
    failures: tuple[Failure, ...]

    @property
    def fits(self) -> bool:
        """Whether the disk has the free space."""
        return self.bytes_to_write <= self.bytes_free

    def text(self) -> str:
        """A few lines for a reader."""
        unknown = self.seconds is None and self.done < self.rows
        lines = [
            f"{self.title}: {self.rows} samples, {self.done} done, {self.rows - self.done} to do",
            f"  measured on   {self.measured} samples",
            f"  time          {'unknown' if unknown else _duration(self.seconds or 0.0)}",
            f"  to write      {'unknown' if unknown else f'{self.bytes_to_write / 1e9:.3f} GB'} into {self.folder}",
            f"  free there    {self.bytes_free / 1e9:.3f} GB{'' if self.fits else ': NOT ENOUGH'}",
        ]
        return "\n".join(
            lines + [f"  unreadable    row {(item.row or 0) + 1}: {item.reason}" for item in self.failures]
        )


def estimate(config: ExtractConfig, settings: Settings, *, plugins: tuple[Path, ...] = ()) -> Estimate:
    """Measure a few of the samples that are missing. Raises UsageError and LaryError, as `extract` does."""
    run = prepare_run(config, settings, plugins)
    there = (run.folder / MANIFEST).exists() and not config.overwrite
    missing = open_run(run).missing(run.table) if there else list(range(len(run.table)))
    found = _measure(run, missing) if missing else _Measurement(0, 0.0, 0.0, ())
    free = shutil.disk_usage(_nearest(run.folder)).free
    seconds = None if found.seconds_per_row is None else len(missing) * found.seconds_per_row / len(run.devices)
    return Estimate(
        run.title, run.folder, len(run.table), len(run.table) - len(missing), round(len(missing) * found.bytes_per_row),
        free, seconds, found.rows, found.failures,
    )  # fmt: skip


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


@dataclass(frozen=True)
class _Measurement:
    """Seconds and bytes per row, from `rows` rows that went through all stages."""

    rows: int
    seconds_per_row: float | None
    bytes_per_row: float
    failures: tuple[Failure, ...]


def _measure(run: Run, missing: Sequence[int]) -> _Measurement:
    """Read, encode and write some rows, spread over the missing ones, into a folder that is removed again."""
    # On a CPU rows go one by one anyway, and a few of them are enough for a slow model.
    config = run.job.config if run.devices[0] != "cpu" else replace(run.job.config, batch_size=1)
    size = config.batch_size
    chosen = missing[:: max(1, len(missing) // (BATCHES * size))][: BATCHES * size]
    ends, done, failures = [time.monotonic()], [0], list[Failure]()
    with tempfile.TemporaryDirectory() as folder:
        store = store_at(Path(folder), run.identity, config.store, size)
        job = replace(run.job, config=config, store=store, processes=len(run.devices))
        for report in encode_units(
            job, run.table.take(chosen), plan_units(range(len(chosen)), size), run.devices[0], run.encoder,
            advance=lambda rows: None, stopped=lambda: time.monotonic() - ends[0] > SECONDS,
        ):  # fmt: skip
            ends.append(time.monotonic())
            done.append(done[-1] + report.done)
            failures += [replace(failure, row=chosen[failure.row or 0]) for failure in report.failures]
        written = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    rows = done[-1]
    if not rows:
        return _Measurement(0, None, 0.0, tuple(failures))
    first = 1 if rows > done[1] else 0  # the first batch also pays for what is done once
    return _Measurement(rows, (ends[-1] - ends[first]) / (rows - done[first]), written / rows, tuple(failures))


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
