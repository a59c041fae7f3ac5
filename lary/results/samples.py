"""Figures of single samples and episodes of finished runs.

Attention maps show how the query of the attentive probe weighs the tokens of a
sample. Trajectories show actions over episodes.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from lary.arrays import Floats, Ints, Pixels
from lary.data.spec import DATASETS
from lary.latents.choice import read_chosen
from lary.latents.ref import LatentsRef, SplitLatents, open_latents
from lary.models.choices import chosen_model
from lary.models.spec import ModelSpec, Preprocess
from lary.results.figures import Context, Files, Found, check_known, finish, new_figure, plot_pair, slug
from lary.results.folder import FinishedRun
from lary.results.published import Chunks, read_arrays
from lary.results.report import dataset_title
from lary.runtime import log
from lary.types import JsonDict, LaryError, MediaError, Sample

OPACITY = 0.6
BRIGHTEST = 99.5
"""Percentile with the brightest colour: peaks would darken all else."""
CHECKPOINT = "latest.pt"
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class TokenLayout:
    """Frames of each step, tokens per step, places per side (0 for none)."""

    steps: tuple[tuple[int, ...], ...]
    tokens: int
    side: int


# --- attention ---


def attention_maps(context: Context) -> Found:
    """One figure per classification run. Raises UsageError for a sample that no run has."""
    runs = context.of_task("classification", "classify")
    known: dict[str, None] = {}
    for run in runs:
        try:
            yield from _write_maps(run, context, known)
        except LaryError as error:
            yield f"{run.result.label} on {run.result.dataset.name}: {error}"
    check_known("sample", context.config.sample, list(known), "no run was scored on such a sample")


def _write_maps(run: FinishedRun, context: Context, known: dict[str, None]) -> Files:
    """The figure and data of a run; adds the names of its samples to `known`."""
    from pandas import DataFrame, MultiIndex

    from lary.probes.nets import attend, load_heads

    result = run.result
    if not result.options_given:
        raise LaryError("its result doesn't tell the options that it was made with")
    dataset = DATASETS.get(result.dataset.name)
    names = LatentsRef.__dataclass_fields__
    given = {name: value for name, value in result.options_given.items() if name in names}
    ref = LatentsRef(**given | {"dataset": dataset.name, "split": dataset.validation})
    model = chosen_model(ref)
    split = open_latents(context.settings, ref)
    if result.dataset.tables.get(ref.split, split.table.digest) != split.table.digest:
        log.warning("%s: the table of its latents has changed since the run", run.folder)
    rows = _chosen_rows(split, context, known)
    if not rows:
        return []
    heads = load_heads(run.folder / CHECKPOINT, len(dataset.labels.classes))
    run.file(CHECKPOINT)
    shares, weights = attend(heads, split.source, rows)
    view = model.preprocessing(ref.protocol, split.table.spec.media)
    of_view = range(view.frames or 0)
    layout = layout_of(split.source.shape, len(of_view) or split.frames, model)
    steps = len(layout.steps)
    tokens = layout.tokens
    side = layout.side
    weights = weights.reshape(len(rows), steps, tokens)
    chosen = [split.table[row] for row in rows]
    pictures = [_frames_as_seen(split, sample, view) for sample in chosen]
    samples = [
        {
            "sample": sample.id,
            "media": list(sample.media),
            "true": sample.target,
            "predicted": dataset.labels.classes[shares[place].argmax()],
            "probability": float(shares[place].max()),
            "frames": [f"frame {number}" for number in of_view or sample.frame_index] or ["source", "target"],
            "share_of_steps": weights[place].sum(axis=1).tolist(),
        }
        for place, sample in enumerate(chosen)
    ]
    each = [sample.id for sample in chosen], range(steps), range(tokens)
    index = MultiIndex.from_product(each, names=["sample", "step", "token"])
    table = DataFrame(index=index).reset_index()
    table["row"], table["column"] = divmod(table["token"], side) if side else (None, None)
    table["weight"] = weights.ravel()
    cell = 1.25 if steps > 3 else 1.9
    height = sum(cell * (1 if shown is None else 2) + 0.6 for shown in pictures)
    with new_figure(max(1.2 + cell * steps, 6.4), 0.7 + height) as figure:
        limit = float(np.percentile(weights * weights[0].size, BRIGHTEST))
        blocks = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for block, about, own, shown in zip(blocks, samples, weights, pictures, strict=True):
            _draw_maps(block, about, own, shown, layout, limit)
        kind = f"{side} x {side} places" if side else f"{tokens} tokens without a place"
        title = f"{dataset_title(result)}, {result.label}: attention of the probe"
        figure.suptitle(f"{title}\n{kind} per step; {run.about}", fontsize=9.5)
        facts = {
            "dataset": dataset.name,
            "model": result.label,
            "grid": side,
            "tokens_per_step": tokens,
            "frames_of_steps": layout.steps,
            "samples": samples,
        }
        stem = f"attention_{slug(dataset.name)}_{slug(run.folder.name)}"
        return context.write(stem, figure, table, run, **facts)


def _chosen_rows(split: SplitLatents, context: Context, known: dict[str, None]) -> list[int]:
    """The named samples; unnamed, of evenly spaced classes."""
    config = context.config
    names: dict[str, int] = {}
    for row, sample in enumerate(split.table):  # of equal names the first row counts
        names.setdefault(sample.id, row)
        names.setdefault(sample.media[-1], row)
    known |= dict.fromkeys(names)
    if config.sample:
        return [names[name] for name in config.sample if name in names]
    order: Ints = np.argsort(split.table.labels(), kind="stable")
    return list(map(int, order[_even_places(config.count, len(order))]))


def _even_places(count: int, length: int) -> Ints:
    return np.unique(((np.arange(count) + 0.5) / count * length).astype(np.int64))


def _frames_as_seen(split: SplitLatents, sample: Sample, view: Preprocess) -> Pixels | None:
    """Frames (T, H, W, 3) as the model sees them, if they are here."""
    try:
        return np.stack(read_chosen(split.table.media_path(sample), sample.frame_index, view))
    except MediaError as error:
        log.warning("attention without the frame behind it: %s", error)
        return None


def layout_of(shape: tuple[int, ...], frames: int, model: ModelSpec) -> TokenLayout:
    """Where tokens (P, N, D), or (P * N, D) with N by the model's grid, are over the frames."""
    side = model.grid
    if len(shape) == 3:
        steps, tokens = shape[:2]
    else:
        steps = shape[0] // side**2 if side and shape[0] % side**2 == 0 else 1
        tokens = shape[0] // steps
    side = math.isqrt(tokens) if side is None else side
    shown = frames_of_steps(frames, steps, model.first_frame_alone)
    return TokenLayout(shown, tokens, side if side**2 == tokens else 0)


def frames_of_steps(frames: int, steps: int, first_alone: bool) -> tuple[tuple[int, ...], ...]:
    """Which of the frames 0 to T - 1 each latent step shows."""
    if first_alone and steps != frames:
        rest = np.array_split(np.arange(1, frames), max(steps - 1, 1))
        return ((0,), *(tuple(part.tolist()) for part in rest))[:steps]
    if steps == frames - 1:
        return tuple((frame, frame + 1) for frame in range(steps))
    width = max(1, round(frames / steps))
    starts = [min(step * width, frames - 1) for step in range(steps)]
    return tuple(tuple(range(start, min(start + width, frames))) for start in starts)


def _draw_maps(
    block: Any, about: JsonDict, weights: Floats, pictures: Pixels | None, layout: TokenLayout, limit: float
) -> None:
    """Draw the frames of a sample, below them the attention of steps on their last frame.

    Tokens without a place are a column of bars, the first one on top.
    """
    side, extent = layout.side, (0, 1, 1, 0)
    there = pictures is not None
    *above, grid = block.subplots(1 + there, len(layout.steps), squeeze=False)
    heading = "{sample}   true {true}, predicted {predicted}".format_map(about)
    heading += f" ({100 * about['probability']:.0f} %)"
    block.suptitle(heading, fontsize=8.5, x=0.01, ha="left")
    for step, (axes, part) in enumerate(zip(grid, layout.steps, strict=True)):
        axes.axis("off")
        axes.set_title(f"{about['frames'][part[-1]]}: {100 * weights[step].sum():.0f} %", fontsize=7)
        if pictures is not None:
            picture = pictures[part[-1]]
            above[0][step].axis("off")
            above[0][step].imshow(picture, extent=extent)
            if side:
                axes.imshow(picture.mean(axis=-1), cmap="gray", vmin=0, vmax=255, extent=extent)
        own = (weights[step] * weights.size).reshape(side or -1, side or 1)  # 1 is uniform attention
        alpha = OPACITY if there and side else 1.0
        image = axes.imshow(own, cmap="inferno", vmin=0, vmax=limit, alpha=alpha, extent=extent)
    block.colorbar(image, ax=grid, shrink=0.6, pad=0.01, extend="max", label="attention, uniform = 1")


# --- trajectories ---


def trajectories(context: Context) -> Found:
    """One figure per regression run. Raises UsageError for an episode that no run has."""
    known: dict[str, None] = {}
    for run in context.of_task("regression", "regress"):
        try:
            chunks = read_arrays(Chunks, run)
        except LaryError as error:
            yield str(error)
            continue
        known |= dict.fromkeys(chunks.groups)
        if names := chosen_episodes(chunks, context.config.episode, context.config.count):
            yield from _write_episodes(context, run, chunks, names)
    check_known("episode", context.config.episode, list(known), "no run was scored on such an episode")


def chosen_episodes(chunks: Chunks, wanted: Sequence[str], count: int) -> list[str]:
    """The named episodes, or `count` of the longest ones at even ranks of their error.

    Longest: with at least the median number of samples. Unknown names count as none.
    """
    from pandas import Series

    if wanted:
        return [name for name in wanted if name in chunks.groups]
    true = chunks.true
    scale = np.maximum(true.reshape(-1, true.shape[-1]).std(axis=0, dtype=np.float64), 1e-12)
    error = Series(np.square((chunks.predicted - true) / scale).mean(axis=(1, 2)))
    table = error.groupby(list(chunks.groups), sort=False).agg(["size", "mean"])
    long = table[table["size"] >= table["size"].median()].sort_values("mean", kind="stable")
    return list(long.index[_even_places(count, len(long))])


def rows_of_episode(chunks: Chunks, name: str) -> tuple[list[int], list[int], bool]:
    """Rows of an episode by frame, their first frames, and whether these are known."""
    rows = [row for row, group in enumerate(chunks.groups) if group == name]
    numbers = [NUMBER.findall(PurePosixPath(chunks.media[row]).stem) for row in rows]
    frames = [int(found[-1]) if found else -1 for found in numbers]
    if len(set(frames)) < len(frames) or min(frames) < 0:
        return rows, [place * chunks.true.shape[1] for place in range(len(rows))], False
    return [row for _, row in sorted(zip(frames, rows, strict=True))], sorted(frames), True


def _write_episodes(context: Context, run: FinishedRun, chunks: Chunks, episodes: Sequence[str]) -> Files:
    """Draw dimensions in rows, episodes in columns; a delta marks relative actions.

    The table has a row per episode, sample, step and dimension.
    """
    from pandas import DataFrame, concat

    result, (_, steps, size) = run.result, chunks.true.shape
    names = list(dict.fromkeys(row.name for row in result.dimensions if row.split == "seen"))
    names += [f"dimension {place}" for place in range(len(names), size)]
    units = [*result.dataset.units] + [""] * size
    change = "Δ " if result.action_mode == "relative" else ""
    tables = []
    with new_figure(0.9 + 3.1 * len(episodes), 1.25 + 0.95 * size) as figure:
        grid = figure.subplots(size, len(episodes), squeeze=False, sharey="row", sharex="col")
        for column, episode in enumerate(episodes):
            rows, starts, numbered = rows_of_episode(chunks, episode)
            frames = np.array(starts)[:, None] + np.arange(steps)
            true = chunks.true[rows]
            predicted = chunks.predicted[rows]
            sample, step, dim = np.indices(true.shape).reshape(3, -1)
            cells = {
                "episode": episode,
                "sample": np.array(chunks.ids)[rows][sample],
                "frame": frames[sample, step],
                "step": step,
                "dimension": np.array(names)[dim],
                "unit": np.array(units)[dim],
                "predicted": predicted.ravel(),
                "true": true.ravel(),
            }
            tables.append(DataFrame(cells))
            for place, axes in enumerate(grid[:, column]):
                # A NaN behind each chunk ends its line.
                steps_at, truth, guess = (
                    np.pad(own.astype(np.float64), ((0, 0), (0, 1)), constant_values=np.nan).ravel()
                    for own in (frames, true[..., place], predicted[..., place])
                )
                plot_pair(axes, steps_at, truth, guess, "." if steps == 1 else None)
                axes.tick_params(labelsize=7)
                unit = f"\n[{units[place]}]" if units[place] else ""
                axes.set_ylabel("" if column else f"{change}{names[place]}{unit}", fontsize=8)
            grid[0, column].set_title(episode.strip("/")[-42:], fontsize=8)
            grid[-1, column].set_xlabel("frame" if numbered else "step of the samples in turn", fontsize=8)
        title = f"{dataset_title(result)}, {result.label}: predicted and true actions\n{run.about}"
        finish(figure, grid[0, 0], title)
        facts = {"dataset": result.dataset.name, "model": result.label, "action_mode": result.action_mode}
        stem = f"trajectories_{slug(run.folder.name)}"
        return context.write(stem, figure, concat(tables), run, **facts, episodes=episodes)
