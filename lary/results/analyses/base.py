"""What the analyses share: which runs there are, which may be in one figure, how figures and data are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.configs import AnalyzeConfig
from lary.files import csv_text, write_bytes, write_json, write_text
from lary.registry import suggest
from lary.results.figures import Format, render
from lary.results.record import USUAL_PROBES, EvalResult
from lary.results.report import find_results
from lary.settings import Settings
from lary.types import LaryError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: tuple[Format, ...] = ("png", "svg")

TableRow = Mapping[str, Any]
"""One line of a table; the keys are the columns."""


class NotPossible(UsageError):
    """The runs don't allow an analysis: an error where it was asked for by name, a line where all were."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its folder and its result."""

    folder: Path
    result: EvalResult

    @property
    def settings(self) -> tuple[str, ...]:
        """What runs must share to be in one figure, besides the data set."""
        result = self.result
        probe = "" if result.probe in USUAL_PROBES else result.probe
        return (result.protocol, result.preset, result.action_mode or "", probe)

    @property
    def suffix(self) -> str:
        """The settings that aren't the usual ones, for file names."""
        usual = ("corrected", "paper", "absolute", "")
        odd = (own for own, common in zip(self.settings, usual, strict=True) if own not in (common, ""))
        return "".join(f"_{own}" for own in odd)

    @property
    def about(self) -> str:
        """The settings for the title of a figure."""
        protocol, preset, mode, probe = self.settings
        parts = [f"protocol {protocol}", f"preset {preset}", mode and f"{mode} actions", probe and f"{probe} probe"]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Analysis:
    """What an analysis wrote, and what it left out and why, in sentences."""

    files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()

    def text(self) -> str:
        """The files, then what was left out, as lines for a terminal."""
        return "\n".join([*(str(file) for file in self.files), *(f"left out: {reason}" for reason in self.left_out)])


def made(files: Sequence[Path], left_out: Sequence[str], error: type[LaryError] = NotPossible) -> Analysis:
    """The outcome of an analysis. Raises `error` with all that was left out where nothing was written."""
    if not files:
        raise error("; ".join(left_out))
    return Analysis(tuple(files), tuple(left_out))


@dataclass(frozen=True)
class Context:
    """What every analysis gets: the runs, where to write, the options and the settings."""

    runs: tuple[FinishedRun, ...]
    out: Path
    config: AnalyzeConfig
    settings: Settings

    def of_task(self, task: str, command: str) -> list[FinishedRun]:
        """The runs of one task. Raises NotPossible if there are none, with the command that makes some."""
        found = [run for run in self.runs if run.result.task == task]
        if not found:
            raise NotPossible(f"there is no finished {task} run: run 'lary {command}' first")
        return found

    def write(
        self, stem: str, drawing: AbstractContextManager[Figure], rows: Sequence[TableRow], facts: TableRow
    ) -> list[Path]:
        """Write a figure as PNG and SVG, its data as CSV, and CSV and facts together as JSON; returns the files."""
        written = [self.out / f"{stem}.{format}" for format in (*FORMATS, "csv", "json")]
        with drawing as figure:
            for path, format in zip(written, FORMATS, strict=False):
                write_bytes(path, render(figure, format))
        columns = list(dict.fromkeys(key for row in rows for key in row))
        write_text(written[2], csv_text([columns, *([row.get(name) for name in columns] for row in rows)]))
        write_json(written[3], {"format": 1, **facts, "rows": list(rows)})
        return written


def find_runs(config: AnalyzeConfig, settings: Settings) -> tuple[FinishedRun, ...]:
    """Every finished run that was asked for; runs of controls and of random projections are no models' own.

    Raises:
        UsageError: there is no folder, no run in it, or none of the named models or data sets.
    """
    folder = config.folder or settings.path("LARY_LOG_DIR")
    entries, _ = find_results(folder)
    own = [entry for entry in entries if entry.result.control is None and entry.result.project is None]
    if not own:
        raise UsageError(f"There is no finished run below {folder}: run 'lary classify' or 'lary regress' first.")
    for option, wanted, known in (
        ("--model", config.model, sorted({entry.result.model.name for entry in own})),
        ("--dataset", config.dataset, sorted({entry.result.dataset.name for entry in own})),
    ):
        for name in wanted:
            if name not in known:
                raise UsageError(f"{option} {name}: no run below {folder} has it.{suggest(name, known)}")
    chosen = [
        FinishedRun(entry.path.parent, entry.result)
        for entry in own
        if (not config.model or entry.result.model.name in config.model)
        and (not config.dataset or entry.result.dataset.name in config.dataset)
    ]
    if not chosen:
        raise UsageError(f"No run below {folder} has both the --model and the --dataset that were asked for.")
    return tuple(sorted(chosen, key=lambda run: (run.result.dataset.name, run.settings, run.result.label, run.folder)))


def grouped(runs: Sequence[FinishedRun], key: Callable[[FinishedRun], Any]) -> dict[Any, list[FinishedRun]]:
    """Runs by a key, in the order in which they come; of several of one label, the latest counts."""
    found: dict[Any, dict[str, FinishedRun]] = {}
    for run in runs:
        group = found.setdefault(key(run), {})
        before = group.get(run.result.label)
        if before is None or (run.result.created, run.folder) > (before.result.created, before.folder):
            group[run.result.label] = run
    return {name: list(group.values()) for name, group in found.items()}


def near(wrong: str, known: Sequence[str]) -> str:
    """A suggestion for a wrong name out of many, or one of them."""
    some = list(known[:5000])
    hint = suggest(wrong, some)
    return hint if len(some) <= 12 or "Did you mean" in hint else f" One that is there: {some[0]}."


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")
