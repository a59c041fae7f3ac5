"""Predicted against true actions over whole episodes, a panel per action dimension and episode, in physical units.

Every sample holds a chunk of K steps from its source frame on; chunks stand at the number in the name of that frame,
or one behind the other where names don't rise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.results.analyses.base import Analysis, Context, FinishedRun, near, settings_text, slug, write_analysis
from lary.results.chunks import Chunks, read_chunks
from lary.results.figures import GRID, INK, VERMILION, new_figure
from lary.results.tables import dataset_title
from lary.types import LaryError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Episode:
    """The samples of one episode by rising frame: ids, first frames (n,), chunks (n, K, A), how it was chosen."""

    name: str
    ids: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    numbered: bool
    predicted: npt.NDArray[np.float32]
    true: npt.NDArray[np.float32]


def analyse(context: Context) -> Analysis:
    """One figure per regression run.

    Raises:
        UsageError: no regression run, or an episode that none has.
        LaryError: no run has its chunks.
    """
    files: list[Any] = []
    left_out: list[str] = []
    known: dict[str, None] = {}
    for run in context.of_task("regression", "regress"):
        try:
            chunks = read_chunks(run.folder)
        except LaryError as error:
            left_out.append(f"trajectories: {error}")
            continue
        known.update(dict.fromkeys(chunks.groups))
        episodes = [episode_of(chunks, name) for name in chosen(chunks, context.config.episode, context.config.count)]
        if not episodes:
            continue
        rows, facts = table(run, episodes)
        files += write_analysis(
            context.out, f"trajectories_{slug(run.folder.name)}",
            lambda run=run, episodes=episodes: drawn(run, episodes),  # type: ignore[misc]
            rows, facts,
        )  # fmt: skip
    for name in context.config.episode:
        if known and name not in known:
            raise UsageError(f"--episode {name}: no run was scored on such an episode.{near(name, list(known))}")
    if not files:
        raise LaryError("; ".join(reason.removeprefix("trajectories: ") for reason in left_out))
    return Analysis(tuple(files), tuple(left_out))


def chosen(chunks: Chunks, wanted: Sequence[str], count: int) -> list[str]:
    """The named episodes, or `count` of the longest ones at even ranks of their error.

    Longest: those with at least the median number of samples. Named episodes that the run doesn't have are passed over.
    """
    names = list(dict.fromkeys(chunks.groups))
    if wanted:
        return [name for name in wanted if name in names]
    place = {name: index for index, name in enumerate(names)}
    index = np.array([place[group] for group in chunks.groups])
    scale = np.maximum(chunks.true.reshape(-1, chunks.true.shape[-1]).std(axis=0, dtype=np.float64), 1e-12)
    error = np.square((chunks.predicted - chunks.true) / scale).mean(axis=(1, 2))
    sizes = np.bincount(index)
    errors = np.bincount(index, weights=error) / sizes
    long = np.flatnonzero(sizes >= np.median(sizes))
    order = long[np.argsort(errors[long], kind="stable")]
    ranks = np.unique(((np.arange(count) + 0.5) / count * len(order)).astype(int))
    return [names[order[rank]] for rank in ranks]


def episode_of(chunks: Chunks, name: str) -> Episode:
    """The samples of an episode by rising frame."""
    rows = [row for row, group in enumerate(chunks.groups) if group == name]
    numbers = [NUMBER.findall(PurePosixPath(chunks.media[row]).stem) for row in rows]
    frames = [int(found[-1]) if found else -1 for found in numbers]
    numbered = len(set(frames)) == len(frames) and min(frames) >= 0
    if numbered:
        rows = [row for _, row in sorted(zip(frames, rows, strict=True))]
        starts = np.array(sorted(frames), dtype=np.int64)
    else:
        starts = np.arange(len(rows), dtype=np.int64) * chunks.true.shape[1]
    ids = tuple(chunks.ids[row] for row in rows)
    return Episode(name, ids, starts, numbered, chunks.predicted[rows], chunks.true[rows])


def dims_of(run: FinishedRun, count: int) -> list[tuple[str, str]]:
    """Name and unit of every action dimension."""
    names = list(dict.fromkeys(row.name for row in run.result.dimensions if row.split == "seen"))
    units = run.result.dataset.units
    return [
        (names[place] if place < len(names) else f"dimension {place}", units[place] if place < len(units) else "")
        for place in range(count)
    ]


def table(run: FinishedRun, episodes: Sequence[Episode]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per episode, sample, step and dimension."""
    dims = dims_of(run, episodes[0].true.shape[-1])
    rows = [
        {
            "episode": own.name, "sample": own.ids[sample], "frame": int(own.starts[sample]) + step, "step": step,
            "dimension": name, "unit": unit, "predicted": float(own.predicted[sample, step, place]),
            "true": float(own.true[sample, step, place]),
        }
        for own in episodes
        for sample in range(len(own.ids))
        for step in range(own.true.shape[1])
        for place, (name, unit) in enumerate(dims)
    ]  # fmt: skip
    result = run.result
    facts = {
        "analysis": "trajectories", "dataset": result.dataset.name, "model": result.label,
        "protocol": result.protocol, "preset": result.preset, "action_mode": result.action_mode,
        "episodes": [own.name for own in episodes],
    }  # fmt: skip
    return rows, facts


@contextmanager
def drawn(run: FinishedRun, episodes: Sequence[Episode]) -> Iterator[Figure]:
    """Dimensions in rows, episodes in columns; a row shares its axis; a delta marks relative actions."""
    dims = dims_of(run, episodes[0].true.shape[-1])
    width, height = 0.9 + 3.1 * len(episodes), 1.25 + 0.95 * len(dims)
    change = "Δ " if run.result.action_mode == "relative" else ""
    with new_figure(width, height, layout=None) as figure:
        figure.subplots_adjust(
            left=0.85 / width, right=1 - 0.12 / width, bottom=0.72 / height, top=1 - 0.78 / height, wspace=0.06,
            hspace=0.22,
        )  # fmt: skip
        grid = figure.subplots(len(dims), len(episodes), squeeze=False, sharey="row", sharex="col")
        for column, own in enumerate(episodes):
            for place, (name, unit) in enumerate(dims):
                axes = grid[place, column]
                draw_chunks(axes, own, place)
                if column == 0:
                    axes.set_ylabel(f"{change}{name}\n[{unit}]" if unit else f"{change}{name}", fontsize=8)
                axes.tick_params(labelsize=7, labelleft=column == 0)
            grid[0, column].set_title(short(own.name, 42), fontsize=8, fontweight="normal")
            grid[-1, column].set_xlabel("frame" if own.numbered else "step of the samples in turn", fontsize=8)
        figure.align_ylabels(grid[:, 0].tolist())
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False, fontsize=8)
        title = f"{dataset_title(run.result)}, {run.result.label}: predicted and true actions\n{settings_text(run)}"
        figure.suptitle(title, fontsize=9.5, y=1 - 0.1 / height, va="top")
        yield figure


def draw_chunks(axes: Any, own: Episode, place: int) -> None:
    """One dimension of an episode; every chunk is a line of its own."""
    from matplotlib.ticker import MaxNLocator

    steps = own.true.shape[1]
    frames = (own.starts[:, None] + np.arange(steps)).astype(np.float64)
    gap = np.full((len(frames), 1), np.nan)
    mark = "." if steps == 1 else None
    for values, colour, style, name in ((own.true, INK, "-", "true"), (own.predicted, VERMILION, "--", "predicted")):
        axes.plot(
            np.hstack([frames, gap]).ravel(), np.hstack([values[..., place], gap]).ravel(), color=colour,
            linestyle=style, linewidth=1.3, marker=mark, markersize=4, label=name,
        )  # fmt: skip
    axes.grid(color=GRID, linewidth=0.5)
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def short(name: str, limit: int) -> str:
    """The end of a long name."""
    plain = name.strip("/")
    return plain if len(plain) <= limit else f"...{plain[-limit + 3 :]}"
