"""Figures as bytes, for files beside a result and for papers: colour-blind safe, equal bytes for equal numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from lary.results.record import ClassRow, DimensionRow, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["svg", "png", "pdf"]

INK, MUTED, GRID = "#222222", "#666666", "#dddddd"
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
"""Colours of Okabe and Ito, told apart with every common colour vision deficiency."""

LABELLED_CLASSES = 60
"""More classes than this get no names along the axes of a confusion matrix."""


@contextmanager
def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Iterator[Figure]:
    """A figure in our style, in inches, without touching global state or a display."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.titlesize": 10, "axes.titleweight": "bold",
        "svg.hashsalt": "lary", "svg.fonttype": "none", "pdf.fonttype": 3,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


new_figure = _figure
"""For figures that other modules draw."""


def render(figure: Figure, format: Format) -> bytes:
    """The figure as a file, without date or program version."""
    metadata: dict[Format, Any] = {
        "svg": {"Date": None, "Creator": None},
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    stream = io.BytesIO()
    figure.savefig(stream, format=format, dpi=150, metadata=metadata[format])
    return stream.getvalue()


def confusion_figure(matrix: npt.ArrayLike, classes: Sequence[str], title: str = "", format: Format = "png") -> bytes:
    """A confusion matrix (L, L), rows predicted and columns true, coloured by the share of each true class."""
    counts = np.asarray(matrix, dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=0, keepdims=True), 1)
    labelled = len(classes) <= LABELLED_CLASSES
    side = min(2.6 + (0.24 if labelled else 0.05) * len(classes), 14.0)
    with _figure(side + 0.9, side) as figure:
        axes = figure.subplots()
        image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xlabel="true class", ylabel="predicted class", title=title)
        axes.spines[:].set_visible(False)
        names = list(classes) if labelled else []
        ticks = np.arange(len(names))
        axes.set_xticks(ticks, names, rotation=90)
        axes.set_yticks(ticks, names)
        if len(classes) <= 15:
            for row, column in np.argwhere(counts > 0):
                colour = "black" if share[row, column] > 0.5 else "white"
                axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label="share of the true class")
        return render(figure, format)


def _bars(
    names: Sequence[str], values: Sequence[Metric], label: str, title: str, limit: float | None, format: Format
) -> bytes:
    """Horizontal bars with intervals, the first name on top."""
    heights = np.arange(len(names))
    centre = np.array([value.value for value in values])
    reach = np.array(
        [
            [max(m.value - m.low, 0), max(m.high - m.value, 0)] if m.low is not None and m.high is not None else [0, 0]
            for m in values
        ]
    )
    with _figure(6.4, 1.1 + 0.24 * len(names)) as figure:
        axes = figure.subplots()
        axes.barh(heights, centre, color=BLUE, height=0.66)
        axes.errorbar(centre, heights, xerr=reach.T, fmt="none", ecolor=INK, elinewidth=1.2, capsize=2)
        axes.set_yticks(heights, list(names))
        axes.invert_yaxis()
        axes.set(xlabel=label, title=title)
        axes.set_xlim(0, limit)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        return render(figure, format)


def class_figure(rows: Sequence[ClassRow], title: str = "", format: Format = "svg") -> bytes:
    """Recall per class with 95 % intervals, the best class first."""
    shown = sorted(
        (row for row in rows if row.recall is not None),
        key=lambda row: (-row.recall.value if row.recall else 0, row.name),
    )
    values = [row.recall for row in shown if row.recall is not None]
    return _bars([f"{row.name} ({row.true})" for row in shown], values, "recall, 95 % interval", title, 1.0, format)


def dimension_figure(rows: Sequence[DimensionRow], title: str = "", format: Format = "svg") -> bytes:
    """Mean squared error per action dimension with 95 % intervals, in the order of the rows."""
    names = [f"{row.name} ({row.split})" for row in rows]
    return _bars(names, [row.mse for row in rows], "mean squared error, normalised, 95 % interval", title, None, format)


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
    with PdfPages(stream, metadata={"CreationDate": None, "Creator": None, "Producer": None}) as book:
        for chunk in chunks:
            with _trajectory(chunk, dims, units) as figure:
                book.savefig(figure)
    return stream.getvalue()


@contextmanager
def _trajectory(chunk: Chunk, dims: Sequence[str], units: Sequence[str]) -> Iterator[Figure]:
    guess, truth = np.asarray(chunk.predicted, dtype=np.float64), np.asarray(chunk.true, dtype=np.float64)
    columns = min(4, len(dims))
    rows = -(-len(dims) // columns)
    width, height = 2.3 * columns, 0.9 + 1.6 * rows
    with _figure(width, height, layout=None) as figure:  # margins by hand: a computed layout costs seconds per figure
        left, right, bottom, top = 0.62 / width, 1 - 0.1 / width, 0.6 / height, 1 - 0.65 / height
        figure.subplots_adjust(left=left, right=right, bottom=bottom, top=top, wspace=0.45, hspace=0.62)
        panels = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
        for index, (axes, name) in enumerate(zip(panels, dims, strict=False)):
            unit = units[index] if index < len(units) else ""
            _panel(axes, f"{name} [{unit}]" if unit else name, guess[:, index], truth[:, index])
        for axes in panels[len(dims) :]:
            axes.set_visible(False)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
        figure.suptitle(chunk.title, fontsize=9, y=1 - 0.12 / height, va="top")
        yield figure


def _panel(axes: Any, title: str, guess: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]) -> None:
    from matplotlib.ticker import MaxNLocator

    steps = np.arange(1, len(truth) + 1)
    mark = "o" if len(steps) <= 15 else None
    axes.plot(steps, truth, color=INK, marker=mark, markersize=3, label="true")
    axes.plot(steps, guess, color=VERMILION, marker=mark, markersize=3, linestyle="--", label="predicted")
    axes.set_title(title)
    axes.grid(color=GRID, linewidth=0.5)
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
