"""The picture of an attention analysis: frames on top, below each latent step its attention on the frame it ends at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.results.analyses.base import FinishedRun, settings_text
from lary.results.figures import BLUE, MUTED, new_figure
from lary.results.tables import dataset_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAP = "inferno"
OPACITY = 0.6
BRIGHTEST = 99.5
"""Percentile of the weights that takes the brightest colour: single peaks would darken all else."""

Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """One sample: who it is, what the head says, names of its frames, weights (P, N), frames (T, H, W, 3) or None."""

    sample: str
    media: tuple[str, ...]
    true: str
    predicted: str
    probability: float
    names: tuple[str, ...]
    weights: npt.NDArray[np.float32]
    frames: Pictures | None


@contextmanager
def drawn(run: FinishedRun, steps: Sequence[tuple[int, ...]], side: int, shown: Sequence[Shown]) -> Iterator[Figure]:
    """Two rows per sample: its frames, and below them the attention of each step, under the frames that it shows."""
    count = max(frame for part in steps for frame in part) + 1
    cell = 1.2 if count > 3 else 1.9
    pitch = cell + 0.08
    left, right, top, bottom = 0.35, 1.0, 0.75, 0.3
    block = 0.42 + 2 * cell + (0.62 if side else 0.9)
    width = max(left + right + pitch * count, 6.4)
    height = top + bottom + block * len(shown)
    relative = [own.weights * own.weights.size for own in shown]
    limit = float(np.percentile(np.concatenate([own.ravel() for own in relative]), BRIGHTEST))
    with new_figure(width, height, layout=None) as figure:

        def panel(x: float, y: float) -> Any:
            return figure.add_axes((x / width, y / height, cell / width, cell / height))

        for index, (own, weights) in enumerate(zip(shown, relative, strict=True)):
            base = height - top - block * index
            figure.text(left / width, (base - 0.16) / height, heading(own), fontsize=8.5, va="center")
            upper, lower = base - 0.42 - cell, base - 0.42 - 2 * cell - 0.4
            for frame in range(count):
                axes = panel(left + pitch * frame, upper)
                picture(axes, own.frames, frame)
                axes.set_title(own.names[frame], fontsize=7, pad=2, fontweight="normal")
            for step, part in enumerate(steps):
                axes = panel(left + pitch * (part[0] + part[-1]) / 2, lower)
                if side:
                    image = overlay(axes, own.frames, part[-1], weights[step].reshape(side, side), limit)
                else:
                    bars(axes, weights[step], max(limit, 1.0), first=step == 0)
                share = 100 * own.weights[step].sum()
                axes.set_title(f"step {step}: {share:.0f} %", fontsize=7, pad=2, fontweight="normal")
                ends = [left + pitch * part[0], left + pitch * part[-1] + cell]
                bracket(figure, ends, upper - (0.05 if step % 2 == 0 else 0.11), (width, height))
        if side:
            bar = figure.add_axes(((width - 0.82) / width, (bottom + 0.3) / height, 0.13 / width, 1.8 / height))
            figure.colorbar(image, cax=bar, extend="max", label="attention, uniform = 1")
            bar.tick_params(labelsize=7)
        kind = f"{side} x {side} places" if side else f"{shown[0].weights.shape[1]} tokens without a place"
        title = f"{dataset_title(run.result)}, {run.result.label}: attention of the probe"
        about = f"{kind} per step; {settings_text(run)}"
        figure.suptitle(f"{title}\n{about}", fontsize=9.5, y=1 - 0.12 / height, va="top")
        yield figure


def heading(own: Shown) -> str:
    """Who a sample is and what the head says of it, in a line."""
    verdict = "right" if own.true == own.predicted else "wrong"
    return f"{own.sample}   true {own.true}, predicted {own.predicted} ({100 * own.probability:.0f} %, {verdict})"


def plain(axes: Any) -> None:
    """No ticks, a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_linewidth(0.4)


def picture(axes: Any, frames: Pictures | None, frame: int) -> None:
    """A frame in colour, or a note that it isn't here."""
    plain(axes)
    if frames is None:
        axes.text(0.5, 0.5, "frame not\non this machine", ha="center", va="center", fontsize=6.5, color=MUTED)
    else:
        axes.imshow(frames[frame], interpolation="antialiased")


def overlay(axes: Any, frames: Pictures | None, frame: int, weights: npt.NDArray[np.float32], limit: float) -> Any:
    """Weights (side, side) over a frame in grey."""
    plain(axes)
    size = weights.shape[0]
    extent = (0, size, size, 0)
    if frames is not None:
        grey = frames[frame].astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="antialiased")
    opacity = OPACITY if frames is not None else 1.0
    return axes.imshow(
        weights, cmap=MAP, vmin=0, vmax=limit, alpha=opacity, extent=extent, interpolation="nearest"
    )  # fmt: skip


def bars(axes: Any, weights: npt.NDArray[np.float32], limit: float, *, first: bool) -> None:
    """Weights (N,) of tokens without a place; the dotted line is uniform attention."""
    axes.barh(np.arange(len(weights)), weights, color=BLUE, height=0.8)
    axes.axvline(1.0, color=MUTED, linestyle=":", linewidth=0.8)
    axes.set_xlim(0, 1.05 * limit)
    axes.invert_yaxis()
    axes.tick_params(labelsize=6, labelleft=first, length=2)
    axes.set_yticks(np.unique(np.linspace(0, len(weights) - 1, min(len(weights), 4)).astype(int)))
    axes.set_xlabel("uniform = 1", fontsize=6, labelpad=1)


def bracket(figure: Figure, ends: Sequence[float], y: float, size: tuple[float, float]) -> None:
    """A line under the frames that a step shows, in inches."""
    from matplotlib.lines import Line2D

    places = [end / size[0] for end in ends]
    inset = 0.04 / size[0]
    figure.add_artist(
        Line2D([places[0] + inset, places[1] - inset], [y / size[1]] * 2, color=MUTED, linewidth=0.9, alpha=0.8)
    )  # fmt: skip
