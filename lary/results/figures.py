"""Figures as bytes, for files beside a result and for papers: colour-blind safe, equal bytes for equal numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["svg", "png", "pdf"]
Doubles = npt.NDArray[np.float64]

INK, MUTED, GRID, LIGHT = "#222222", "#666666", "#dddddd", "#c8c8c8"
BLUE, VERMILION = "#0072B2", "#D55E00"
"""Colours of Okabe and Ito, told apart with every common colour vision deficiency."""

LABELLED_CLASSES = 60
"""More classes than this get no names along the axes of a confusion matrix."""
NO_DATES: dict[Format, Any] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@contextmanager
def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Iterator[Figure]:
    """A figure in our style, in inches, without touching global state or a display."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.titlesize": 10, "axes.titleweight": "bold", "axes.axisbelow": True, "grid.color": GRID,
        "grid.linewidth": 0.5, "svg.hashsalt": "lary", "svg.fonttype": "none", "pdf.fonttype": 3,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def render(figure: Figure, format: Format) -> bytes:
    """The figure as a file, without date or program version."""
    stream = io.BytesIO()
    figure.savefig(stream, format=format, dpi=150, metadata=NO_DATES[format])
    return stream.getvalue()


def panel_grid(figure: Figure, titles: Sequence[str], columns: int, across: str = "", up: str = "") -> list[Any]:
    """Axes with a shared scale, one per title; `across` is that of all of them, empty if they differ in it."""
    rows = -(-len(titles) // columns)
    grid = np.asarray(figure.subplots(rows, columns, squeeze=False, sharex=bool(across), sharey=True)).ravel().tolist()
    for axes in grid[len(titles) :]:
        axes.set_visible(False)
    for index, (axes, title) in enumerate(zip(grid, titles, strict=False)):
        last = index + columns >= len(titles)
        axes.set_title(title, fontsize=8.5, fontweight="normal")
        axes.tick_params(labelbottom=last or not across, labelsize=8)
        axes.set_xlabel(across if last else "", fontsize=8)
        axes.set_ylabel("" if index % columns else up, fontsize=8)
        axes.grid()
    return grid[: len(titles)]


def confusion_figure(matrix: npt.ArrayLike, classes: Sequence[str], title: str = "", format: Format = "png") -> bytes:
    """A confusion matrix (L, L), rows predicted and columns true, coloured by the share of each true class."""
    counts = np.asarray(matrix, dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=0, keepdims=True), 1)
    labelled = len(classes) <= LABELLED_CLASSES
    side = min(2.6 + (0.24 if labelled else 0.05) * len(classes), 14.0)
    with new_figure(side + 0.9, side) as figure:
        axes = figure.subplots()
        image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xlabel="true class", ylabel="predicted class", title=title)
        axes.spines[:].set_visible(False)
        names = list(classes) if labelled else []
        axes.set_xticks(np.arange(len(names)), names, rotation=90)
        axes.set_yticks(np.arange(len(names)), names)
        for row, column in np.argwhere(counts > 0) if len(classes) <= 15 else ():
            colour = "black" if share[row, column] > 0.5 else "white"
            axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label="share of the true class")
        return render(figure, format)


@dataclass(frozen=True)
class Chunk:
    """A predicted and a true action chunk, both (K, A) in physical units."""

    title: str
    predicted: npt.ArrayLike
    true: npt.ArrayLike


def trajectory_figure(chunk: Chunk, dims: Sequence[str], units: Sequence[str] = (), format: Format = "png") -> bytes:
    """Prediction and truth of one chunk, one panel per dimension."""
    with _trajectory(chunk, dims, units) as figure:
        return render(figure, format)


def trajectory_book(chunks: Sequence[Chunk], dims: Sequence[str], units: Sequence[str] = ()) -> bytes:
    """A PDF with a page per chunk."""
    from matplotlib.backends.backend_pdf import PdfPages

    stream = io.BytesIO()
    with PdfPages(stream, metadata=NO_DATES["pdf"]) as book:
        for chunk in chunks:
            with _trajectory(chunk, dims, units) as figure:
                book.savefig(figure)
    return stream.getvalue()


def plot_pair(axes: Any, steps: Doubles, truth: Doubles, guess: Doubles, marker: str | None, ticks: int) -> None:
    """Draw true and predicted values (n,) over steps (n,) with whole numbers, at most so many `ticks` an axis."""
    from matplotlib.ticker import MaxNLocator

    for values, colour, style, label in ((truth, INK, "-", "true"), (guess, VERMILION, "--", "predicted")):
        axes.plot(steps, values, style, color=colour, marker=marker, markersize=3, label=label)
    axes.grid()
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


@contextmanager
def _trajectory(chunk: Chunk, dims: Sequence[str], units: Sequence[str]) -> Iterator[Figure]:
    truth, guess = np.asarray(chunk.true, dtype=np.float64), np.asarray(chunk.predicted, dtype=np.float64)
    columns = min(4, len(dims))
    rows = -(-len(dims) // columns)
    width, height = 2.3 * columns, 0.9 + 1.6 * rows
    steps, mark = np.arange(1.0, len(truth) + 1), "o" if len(truth) <= 15 else None
    with new_figure(width, height, layout=None) as figure:  # margins by hand: a layout costs seconds per figure
        left, right, bottom, top = 0.62 / width, 1 - 0.1 / width, 0.6 / height, 1 - 0.65 / height
        figure.subplots_adjust(left=left, right=right, bottom=bottom, top=top, wspace=0.45, hspace=0.62)
        panels = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
        for index, (axes, name) in enumerate(zip(panels, dims, strict=False)):
            unit = units[index] if index < len(units) else ""
            plot_pair(axes, steps, truth[:, index], guess[:, index], mark, 4)
            axes.set_title(f"{name} [{unit}]" if unit else name)
        for axes in panels[len(dims) :]:
            axes.set_visible(False)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
        figure.suptitle(chunk.title, fontsize=9, y=1 - 0.12 / height, va="top")
        yield figure
