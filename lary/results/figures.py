"""Figures of results, colour-blind safe, with equal bytes for equal numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from lary.arrays import Doubles
from lary.configs import AnalyzeConfig
from lary.files import csv_text, digest, write_bytes, write_json, write_text
from lary.registry import suggest
from lary.results.folder import FinishedRun
from lary.settings import Settings
from lary.types import LaryError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Format = Literal["svg", "png", "pdf"]
Chunk = tuple[str, Doubles, Doubles]
"""Title, predicted and true action chunk, both (K, A) in physical units."""

INK, LIGHT = "#222222", "#c8c8c8"
BLUE, VERMILION = "#0072B2", "#D55E00"
"""Colours of Okabe and Ito, which every common colour vision tells apart."""
STYLE = Path(__file__).with_suffix(".mplstyle")
NO_DATES: dict[Format, Any] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")
LONGEST_STEM = 200
LABELLED_CLASSES, NUMBERED_CLASSES = 60, 15
"""With more classes a confusion matrix has no names or numbers."""


@contextmanager
def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Iterator[Figure]:
    """A figure in our style, in inches, without global state or a display."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def render(figure: Figure, format: Format) -> bytes:
    """The figure as a file, without date or program version."""
    stream = io.BytesIO()
    figure.savefig(stream, format=format, dpi=150, metadata=NO_DATES[format])
    return stream.getvalue()


@contextmanager
def panels(titles: Sequence[str], *, up: str, across: str = "") -> Iterator[tuple[Figure, list[Any]]]:
    """A figure and its panels, one per title, in up to four columns."""
    columns = min(len(titles), 4)
    rows = -(-len(titles) // columns)
    with new_figure(max(2.6 * columns, 5.2), 1.3 + 2.2 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel().tolist()
        for axes in grid[len(titles) :]:
            axes.set_visible(False)
        for index, title in enumerate(titles):
            axes = grid[index]
            axes.set_title(title, fontsize=8.5)
            axes.tick_params(labelsize=8)
            axes.set_xlabel(across, fontsize=8)
            axes.set_ylabel("" if index % columns else up, fontsize=8)
            axes.grid()
        yield figure, grid[: len(titles)]


def finish(figure: Figure, axes: Any, title: str) -> None:
    """Add a title to a figure, and a legend of the marks of one panel."""
    marks = {name: mark for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9.5, wrap="$" not in title)


def plot_pair(axes: Any, steps: npt.ArrayLike, truth: npt.ArrayLike, guess: npt.ArrayLike, marker: str | None) -> None:
    """Draw true and predicted values (n,) over steps (n,)."""
    from matplotlib.ticker import MaxNLocator

    for values, colour, style, label in ((truth, INK, "-", "true"), (guess, VERMILION, "--", "predicted")):
        axes.plot(steps, values, style, color=colour, marker=marker, markersize=3, label=label)
    axes.grid()
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))


# --- files of the published code ---


def confusion_figure(matrix: npt.ArrayLike, classes: Sequence[str], title: str = "", format: Format = "png") -> bytes:
    """A confusion matrix (L, L), rows predicted and columns true, by share of the true class."""
    counts = np.asarray(matrix, dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=0, keepdims=True), 1)
    names = list(classes) if len(classes) <= LABELLED_CLASSES else []
    side = min(2.6 + (0.24 if names else 0.05) * len(classes), 14.0)
    with new_figure(side + 0.9, side) as figure:
        axes = figure.subplots()
        image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xlabel="true class", ylabel="predicted class", title=title)
        axes.set_xticks(np.arange(len(names)), names, rotation=90)
        axes.set_yticks(np.arange(len(names)), names)
        for row, column in np.argwhere(counts > 0) if len(classes) <= NUMBERED_CLASSES else ():
            colour = "black" if share[row, column] > 0.5 else "white"
            axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label="share of the true class")
        return render(figure, format)


def trajectory_files(
    chunks: Sequence[Chunk], dims: Sequence[str], units: Sequence[str] = ()
) -> Iterator[tuple[str, bytes]]:
    """Each chunk as ``sample_<number>_action.png``, then ``action.pdf`` with a page for each; all are of one length."""
    from matplotlib.backends.backend_pdf import PdfPages

    stream = io.BytesIO()
    # One figure for all: to make its panels takes as long as to draw them.
    with PdfPages(stream, metadata=NO_DATES["pdf"]) as book, _trajectory(chunks[0], dims, units) as figure:
        for number, (title, guess, truth) in enumerate(chunks):
            figure.suptitle(title, fontsize=9, y=1 - 0.12 / figure.get_figheight(), va="top")
            for axes, *values in zip(figure.axes, truth.T, guess.T, strict=False):  # the last panels are empty
                for line, own in zip(axes.lines, values, strict=True):
                    line.set_ydata(own)
                axes.relim()
                axes.autoscale_view()
            yield f"sample_{number}_action.png", render(figure, "png")
            book.savefig(figure)
    yield "action.pdf", stream.getvalue()


@contextmanager
def _trajectory(chunk: Chunk, dims: Sequence[str], units: Sequence[str]) -> Iterator[Figure]:
    _, guess, truth = chunk
    columns = min(4, len(dims))
    rows = -(-len(dims) // columns)
    width, height = 2.3 * columns, 0.9 + 1.6 * rows
    steps = np.arange(1.0, len(truth) + 1)
    # A layout costs seconds per figure.
    with new_figure(width, height, layout=None) as figure:
        figure.subplots_adjust(
            left=0.62 / width,
            right=1 - 0.1 / width,
            bottom=0.6 / height,
            top=1 - 0.65 / height,
            wspace=0.45,
            hspace=0.62,
        )
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for index, axes in enumerate(grid):
            if index >= len(dims):
                axes.set_visible(False)
                continue
            unit = units[index] if index < len(units) else ""
            plot_pair(axes, steps, truth[:, index], guess[:, index], "o" if len(truth) <= 15 else None)
            # To find the places takes a third of the time.
            axes.set_title(f"{dims[index]} [{unit}]" if unit else dims[index], y=1.03)
            axes.xaxis.set_label_coords(0.5, -0.2)
            axes.yaxis.set_label_coords(-0.2, 0.5)
            axes.tick_params(length=0, labelbottom=index + columns >= len(dims))
        labels = grid[0].get_legend_handles_labels()
        figure.legend(*labels, loc="lower center", ncols=2, frameon=False)
        yield figure


# --- analyses ---


Found = Iterator[Path | str]
"""Files that an analysis wrote, and sentences on what it left out."""
Files = list[Path | str]


@dataclass(frozen=True)
class Context:
    """What every analysis gets."""

    runs: tuple[FinishedRun, ...]
    out: Path
    config: AnalyzeConfig
    settings: Settings

    def of_task(self, task: str, command: str) -> list[FinishedRun]:
        """The runs of one task. Raises LaryError if there are none."""
        found = [run for run in self.runs if run.result.task == task]
        if not found:
            chosen = " of the chosen models and data sets" if self.config.model or self.config.dataset else ""
            raise LaryError(f"there is no finished {task} run{chosen}: run 'lary {command}' first")
        return found

    def write(self, stem: str, figure: Figure, table: DataFrame, run: FinishedRun, **facts: Any) -> Files:
        """Write a figure as PNG and SVG, its data as CSV and with facts as JSON; returns the files.

        All runs in the figure have the settings of `run`.
        """
        png, svg, data, lines = (self.out / f"{slug(stem)}.{kind}" for kind in ("png", "svg", "json", "csv"))
        write_bytes(png, render(figure, "png"))
        write_bytes(svg, render(figure, "svg"))
        # JSON has null where a number is missing, and plain numbers.
        plain = table.astype(object).where(table.notna(), None)
        write_text(lines, csv_text([plain.columns, *(map(no_formula, row) for row in plain.to_numpy())]))
        own = {
            "format": 1,
            "analysis": stem.partition("_")[0],
            "protocol": run.result.protocol,
            "preset": run.result.preset,
            **facts,
            "rows": plain.to_dict("records"),
        }
        write_json(data, own)
        return [png, svg, lines, data]


def grouped(runs: Sequence[FinishedRun]) -> dict[tuple[str, ...], list[FinishedRun]]:
    """Runs by data set and settings, the latest of equal labels."""
    ordered = sorted(runs, key=lambda run: (run.result.created, run.folder))
    latest = {(run.result.dataset.name, *run.settings, run.result.label): run for run in ordered}
    groups = groupby(sorted(latest), key=lambda key: key[:-1])
    return {place: [latest[key] for key in keys] for place, keys in groups}


def check_known(option: str, wanted: Sequence[str], known: Sequence[str], problem: str) -> None:
    """Refuse names that no run has, with a suggestion. Raises UsageError."""
    for name in wanted if known else ():
        if name not in known:
            raise UsageError(f"--{option} {name}: {problem}.{suggest(name, known[:5000])}")


def slug(text: str) -> str:
    """A text as part of a file name, at most `LONGEST_STEM` bytes."""
    text = re.sub(r"[^\w.+-]+", "-", text).strip("-")
    short = text.encode()[: LONGEST_STEM - 20].decode(errors="ignore")
    return text if len(text.encode()) < LONGEST_STEM else f"{short}-{digest(text)}"


def no_formula(cell: Any) -> Any:
    """A cell, with an apostrophe where a spreadsheet would run its text."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in FORMULA else cell
