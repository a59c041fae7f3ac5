"""Attention maps: how the query of the attentive probe weighs the tokens of a sample, over the frames they come from.

The model's record says where its tokens are: on how many places a side (its ``grid``), and which frames a latent step
shows. A step shows its own frame where there are as many steps as frames, two neighbours where there is one step less,
and equal parts of the clip where a model compresses time; in causal autoencoders the first step shows the first frame
alone. Tokens that stand for no place are drawn as bars.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary.configs import ClassifyConfig
from lary.data.frames import read_clip
from lary.data.spec import DATASETS
from lary.latents.ref import LatentsRef, SplitLatents, open_latents
from lary.models.preprocess import resize
from lary.models.spec import MODELS, ModelSpec, Preprocess
from lary.results.analyses.base import Analysis, Context, FinishedRun, NotPossible, made, near, slug
from lary.results.figures import new_figure
from lary.results.folder import run_file
from lary.results.report import dataset_title
from lary.runtime import log, progress
from lary.types import LaryError, MediaError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 224
"""Pixels of a drawn frame at least."""
OPACITY = 0.6
BRIGHTEST = 99.5
"""Percentile of the weights that takes the brightest colour: single peaks would darken all else."""
CHECKPOINT = "latest.pt"
PAIR_NAMES = ("source", "target")

Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of a sample are: the frames of each step, tokens per step, places per side (0 for none)."""

    steps: tuple[tuple[int, ...], ...]
    tokens: int
    side: int


Shown = tuple[dict[str, Any], npt.NDArray[np.float32], "Pictures | None"]
"""One sample: what is said of it in the file, weights (P, N), frames (T, H, W, 3) where they are on this machine."""


def attention_maps(context: Context) -> Analysis:
    """One figure per classification run.

    Raises:
        UsageError: no classification run, or a sample that no run has.
        LaryError: no run has its checkpoint and latents.
    """
    runs = context.of_task("classification", "classify")
    files: list[Path] = []
    left_out: list[str] = []
    known: dict[str, int] = {}
    found: set[str] = set()
    with progress(len(runs), "attention maps", "run") as bar:
        for run in runs:
            try:
                split = latents_of(run, context)
                known = names_of(split)
                found |= set(context.config.sample) & set(known)
                if rows := chosen_rows(known, split, context):
                    files += write_maps(run, split, rows, context)
            except LaryError as error:
                left_out.append(f"{run.result.label} on {run.result.dataset.name}: {error}")
            bar.advance()
    for name in context.config.sample:
        if name not in found and known:
            raise UsageError(f"--sample {name}: no run was scored on such a sample.{near(name, list(known))}")
    return made(files, left_out, LaryError)


def run_options(run: FinishedRun) -> ClassifyConfig:
    """The options that a run was made with. Raises LaryError for a result that doesn't hold them."""
    if not run.result.options_given:
        raise LaryError("its result doesn't tell the options that it was made with")
    names = {field.name for field in fields(ClassifyConfig)}
    return ClassifyConfig(**{name: value for name, value in run.result.options_given.items() if name in names})


def latents_of(run: FinishedRun, context: Context) -> SplitLatents:
    """The latents that a run was scored on. Raises LaryError if they aren't there any more."""
    config, dataset = run_options(run), DATASETS.get(run.result.dataset.name)
    split = open_latents(context.settings, replace(LatentsRef.of(config, dataset.validation), dataset=dataset.name))
    if run.result.dataset.tables.get(dataset.validation, split.table.digest) != split.table.digest:
        log.warning("%s: the table of its latents has changed since the run", run.folder)
    return split


def names_of(split: SplitLatents) -> dict[str, int]:
    """Rows by sample id and by the last media path, as in case.txt."""
    names: dict[str, int] = {}
    for row, sample in enumerate(split.table):
        names.setdefault(sample.id, row)
    for row, sample in enumerate(split.table):
        names.setdefault(sample.media[-1], row)
    return names


def chosen_rows(names: dict[str, int], split: SplitLatents, context: Context) -> list[int]:
    """The named samples that this split has; without names, samples of classes evenly spaced over all."""
    if context.config.sample:
        return [names[name] for name in context.config.sample if name in names]
    order = np.argsort(split.table.labels(), kind="stable")
    places = ((np.arange(context.config.count) + 0.5) / context.config.count * len(order)).astype(int)
    return [int(order[place]) for place in np.unique(places)]


def write_maps(run: FinishedRun, split: SplitLatents, rows: list[int], context: Context) -> list[Path]:
    """The figure and data of one run."""
    from lary.probes.nets import attend, load_head

    result, config = run.result, run_options(run)
    model = MODELS.get(config.model)
    classes = split.table.spec.labels.classes
    head = load_head(run.folder / CHECKPOINT, len(classes))
    run_file(run.folder, result, CHECKPOINT)
    all_logits, all_weights = attend(head, split.source, rows)
    frames = len(split.table[0].frame_index) or len(split.table[0].media)
    layout = layout_of(tuple(split.source.shape), frames, model, square=context.config.square)
    view = model.preprocessing(config.protocol, split.table.spec.media)
    if view.short_side is None and view.size < SIDE:  # fine enough for the eye
        view = replace(view, size=SIDE, resize="cv2_area")
    shown: list[Shown] = []
    for row, logits, weights in zip(rows, all_logits, all_weights, strict=True):
        sample = split.table[row]
        scores = np.exp(logits - logits.max())
        guess = int(logits.argmax())
        own = weights.reshape(len(layout.steps), layout.tokens)
        about = {
            "sample": sample.id, "media": list(sample.media), "true": sample.target, "predicted": classes[guess],
            "probability": float(scores[guess] / scores.sum()),
            "frames": [f"frame {number}" for number in sample.frame_index] or list(PAIR_NAMES),
            "share_of_steps": own.sum(axis=1).tolist(),
        }  # fmt: skip
        shown.append((about, own, frames_as_seen(split, row, view)))
    facts = {
        "analysis": "attention", "dataset": result.dataset.name, "model": result.label, "protocol": result.protocol,
        "preset": result.preset, "grid": layout.side, "tokens_per_step": layout.tokens,
        "frames_of_steps": [list(frames) for frames in layout.steps], "samples": [about for about, _, _ in shown],
    }  # fmt: skip
    side = layout.side
    table = [
        {
            "sample": about["sample"], "step": step, "token": token, "row": token // side if side else None,
            "column": token % side if side else None, "weight": float(weight),
        }
        for about, own, _ in shown
        for (step, token), weight in np.ndenumerate(own)
    ]  # fmt: skip
    stem = f"attention_{slug(result.dataset.name)}_{slug(run.folder.name)}"
    return context.write(stem, attention_figure(run, layout, shown), table, facts)


def frames_as_seen(split: SplitLatents, row: int, view: Preprocess) -> Pictures | None:
    """Frames (T, H, W, 3) as the model sees them, without its scaling; None where they aren't on this machine."""
    sample = split.table[row]
    try:
        return resize(read_clip(split.table.media_path(sample), sample.frame_index), view)
    except MediaError as error:
        log.warning("attention without the frame behind it: %s", error)
        return None


def layout_of(shape: tuple[int, ...], frames: int, model: ModelSpec, *, square: bool = False) -> TokenLayout:
    """Where tokens (P, N, D), or (P * N, D) where a model's grid tells N, are over `frames` frames.

    `square` gives tokens without places the places of a square. Raises NotPossible if they make none.
    """
    side = model.grid
    if len(shape) == 3:
        steps, tokens = shape[:2]
    else:
        steps = shape[0] // side**2 if side and shape[0] % side**2 == 0 else 1
        tokens = shape[0] // steps
    root = math.isqrt(tokens)
    if square and root**2 != tokens:
        raise NotPossible(f"--square: {tokens} tokens per step of '{model.name}' make no square")
    if square or side is None or side**2 != tokens:
        side = root if root**2 == tokens and (square or side is None) else 0
    return TokenLayout(frames_of_steps(frames, steps, model.first_frame_alone), tokens, side)


def frames_of_steps(frames: int, steps: int, first_alone: bool) -> tuple[tuple[int, ...], ...]:
    """Which of the frames 0 to T - 1 each latent step shows."""
    if steps == frames:
        return tuple((frame,) for frame in range(frames))
    if first_alone:
        rest = np.array_split(np.arange(1, frames), max(steps - 1, 1))
        return ((0,), *(tuple(part.tolist()) for part in rest))[:steps]
    if steps == frames - 1:
        return tuple((frame, frame + 1) for frame in range(steps))
    width = max(1, round(frames / steps))
    starts = [min(step * width, frames - 1) for step in range(steps)]
    return tuple(tuple(range(start, min(start + width, frames))) for start in starts)


@contextmanager
def attention_figure(run: FinishedRun, layout: TokenLayout, shown: Sequence[Shown]) -> Iterator[Figure]:
    """Two rows per sample: its frames, and the attention of each step on the last frame that it shows.

    Tokens without a place are a column of bars, the first one on top.
    """
    steps, side = layout.steps, layout.side
    count = max(frame for part in steps for frame in part) + 1
    cell = 1.25 if count > 3 else 1.9
    limit = float(np.percentile(np.concatenate([own.ravel() * own.size for _, own, _ in shown]), BRIGHTEST))
    with new_figure(max(1.2 + cell * count, 6.4), 0.7 + (2 * cell + 0.75) * len(shown)) as figure:
        parts = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
        for block, (about, own, pictures) in zip(parts, shown, strict=True):
            upper, lower = grid = block.subplots(2, count, squeeze=False)
            for axes in grid.ravel():
                axes.axis("off")
            verdict = "right" if about["true"] == about["predicted"] else "wrong"
            heading = f"{about['sample']}   true {about['true']}, predicted {about['predicted']}"
            heading += f" ({100 * about['probability']:.0f} %, {verdict})"
            heading += "" if pictures is not None else "; the frames are not on this machine"
            block.suptitle(heading, fontsize=8.5, x=0.01, ha="left")
            for frame, axes in enumerate(upper):
                axes.set_title(about["frames"][frame], fontsize=7, fontweight="normal")
                axes.imshow(np.full((1, 1), np.nan) if pictures is None else pictures[frame])
            for step, part in enumerate(steps):
                axes, extent = lower[part[-1]], (0, 1, 1, 0)
                axes.set_title(f"step {step}: {100 * own[step].sum():.0f} %", fontsize=7, fontweight="normal")
                if pictures is not None and side:
                    grey = pictures[part[-1]].astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
                    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent)
                weights = (own[step] * own.size).reshape(side or -1, side or 1)  # 1 is uniform attention
                opacity = OPACITY if pictures is not None and side else 1.0
                image = axes.imshow(weights, cmap="inferno", vmin=0, vmax=limit, alpha=opacity, extent=extent)
            block.colorbar(image, ax=grid, shrink=0.6, pad=0.01, extend="max", label="attention, uniform = 1")
        kind = f"{side} x {side} places" if side else f"{layout.tokens} tokens without a place"
        title = f"{dataset_title(run.result)}, {run.result.label}: attention of the probe"
        figure.suptitle(f"{title}\n{kind} per step; {run.about}", fontsize=9.5)
        yield figure
