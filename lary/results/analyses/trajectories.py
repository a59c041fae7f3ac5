"""Predicted against true actions over whole episodes, a panel per action dimension and episode, in physical units.

Every sample holds a chunk of K steps from its source frame on; chunks begin at the number in the name of that frame,
or one behind the other where names don't rise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.results.analyses.base import Analysis, Context, FinishedRun, made, near, slug
from lary.results.figures import new_figure, plot_pair
from lary.results.published import Chunks, read_predicted
from lary.results.report import dataset_title
from lary.types import LaryError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class EpisodeChunks:
    """The samples of one episode by rising frame: ids, first frames (n,), chunks (n, K, A)."""

    name: str
    ids: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    numbered: bool
    predicted: npt.NDArray[np.float32]
    true: npt.NDArray[np.float32]


def trajectories(context: Context) -> Analysis:
    """One figure per regression run.

    Raises:
        UsageError: no regression run, or an episode that none has.
        LaryError: no run has its chunks.
    """
    files: list[Path] = []
    left_out: list[str] = []
    known: dict[str, None] = {}
    for run in context.of_task("regression", "regress"):
        try:
            chunks = read_predicted(run.folder, run.result)
        except LaryError as error:
            left_out.append(str(error))
            continue
        known.update(dict.fromkeys(chunks.groups))
        names = chosen_episodes(chunks, context.config.episode, context.config.count)
        if episodes := [episode_of(chunks, name) for name in names]:
            files += write_episodes(context, run, episodes)
    for name in context.config.episode:
        if known and name not in known:
            raise UsageError(f"--episode {name}: no run was scored on such an episode.{near(name, list(known))}")
    return made(files, left_out, LaryError)


def chosen_episodes(chunks: Chunks, wanted: Sequence[str], count: int) -> list[str]:
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


def episode_of(chunks: Chunks, name: str) -> EpisodeChunks:
    """The samples of an episode by rising frame."""
    rows = np.array([row for row, group in enumerate(chunks.groups) if group == name])
    numbers = [NUMBER.findall(PurePosixPath(chunks.media[row]).stem) for row in rows]
    frames = np.array([int(found[-1]) if found else -1 for found in numbers], dtype=np.int64)
    numbered = len(set(frames)) == len(frames) and min(frames) >= 0
    if numbered:
        rows, starts = rows[np.argsort(frames)], np.sort(frames)
    else:
        starts = np.arange(len(rows), dtype=np.int64) * chunks.true.shape[1]
    ids = tuple(chunks.ids[row] for row in rows)
    return EpisodeChunks(name, ids, starts, numbered, chunks.predicted[rows], chunks.true[rows])


def write_episodes(context: Context, run: FinishedRun, episodes: Sequence[EpisodeChunks]) -> list[Path]:
    """The figure and the data of some episodes: a row per episode, sample, step and dimension."""
    result = run.result
    size = episodes[0].true.shape[-1]
    names = list(dict.fromkeys(row.name for row in result.dimensions if row.split == "seen"))
    names += [f"dimension {place}" for place in range(len(names), size)]
    units = [*result.dataset.units, *([""] * size)]
    dims = list(zip(names[:size], units, strict=False))
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
    facts = {
        "analysis": "trajectories", "dataset": result.dataset.name, "model": result.label,
        "protocol": result.protocol, "preset": result.preset, "action_mode": result.action_mode,
        "episodes": [own.name for own in episodes],
    }  # fmt: skip
    return context.write(f"trajectories_{slug(run.folder.name)}", episode_figure(run, episodes, dims), rows, facts)


@contextmanager
def episode_figure(
    run: FinishedRun, episodes: Sequence[EpisodeChunks], dims: Sequence[tuple[str, str]]
) -> Iterator[Figure]:
    """Dimensions in rows, episodes in columns; a row shares its axis; a delta marks relative actions."""
    width, height = 0.9 + 3.1 * len(episodes), 1.25 + 0.95 * len(dims)
    change = "Δ " if run.result.action_mode == "relative" else ""
    with new_figure(width, height, layout=None) as figure:
        figure.subplots_adjust(
            left=0.85 / width, right=1 - 0.12 / width, bottom=0.72 / height, top=1 - 0.78 / height, wspace=0.06,
            hspace=0.22,
        )  # fmt: skip
        grid = figure.subplots(len(dims), len(episodes), squeeze=False, sharey="row", sharex="col")
        for (place, column), axes in np.ndenumerate(grid):
            draw_chunks(axes, episodes[column], place)
            axes.tick_params(labelsize=7, labelleft=column == 0)
            name, unit = dims[place]
            if column == 0:
                axes.set_ylabel(f"{change}{name}\n[{unit}]" if unit else f"{change}{name}", fontsize=8)
        for own, first, last in zip(episodes, grid[0], grid[-1], strict=True):
            first.set_title(shortened(own.name.strip("/")), fontsize=8, fontweight="normal")
            last.set_xlabel("frame" if own.numbered else "step of the samples in turn", fontsize=8)
        figure.align_ylabels(grid[:, 0].tolist())
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False, fontsize=8)
        title = f"{dataset_title(run.result)}, {run.result.label}: predicted and true actions\n{run.about}"
        figure.suptitle(title, fontsize=9.5, y=1 - 0.1 / height, va="top")
        yield figure


def draw_chunks(axes: Any, own: EpisodeChunks, place: int) -> None:
    """Draw one dimension of an episode; every chunk is a line of its own."""
    steps = own.true.shape[1]
    frames = (own.starts[:, None] + np.arange(steps)).astype(np.float64)
    gap = np.full((len(frames), 1), np.nan)  # ends a line
    across, true, predicted = (
        np.hstack([each, gap]).ravel() for each in (frames, own.true[..., place], own.predicted[..., place])
    )
    plot_pair(axes, across, true, predicted, "." if steps == 1 else None, 6)


def shortened(name: str, limit: int = 42) -> str:
    """The end of a long name."""
    return name if len(name) <= limit else f"...{name[-limit + 3 :]}"
