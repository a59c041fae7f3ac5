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
from lary.results.analyses.base import Analysis, Context, FinishedRun, NotPossible, near, slug
from lary.results.figures import BLUE, MUTED, new_figure
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
                left_out.append(f"attention: {run.result.label} on {run.result.dataset.name}: {error}")
            bar.advance()
    for name in context.config.sample:
        if name not in found and known:
            raise UsageError(f"--sample {name}: no run was scored on such a sample.{near(name, list(known))}")
    if not files:
        raise LaryError("; ".join(reason.removeprefix("attention: ") for reason in left_out))
    return Analysis(tuple(files), tuple(left_out))


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
    from lary.probes.attention import attend, load_head

    result, config = run.result, run_options(run)
    model = MODELS.get(config.model)
    classes = split.table.spec.labels.classes
    head = load_head(run.folder, len(classes))
    run_file(run.folder, result, "latest.pt")
    looks = attend(head, split.source, rows)
    frames = len(split.table[0].frame_index) or len(split.table[0].media)
    layout = layout_of(tuple(split.source.shape), frames, model, square=context.config.square)
    view = model.preprocessing(config.protocol, split.table.spec.media)
    if view.short_side is None and view.size < SIDE:  # fine enough for the eye
        view = replace(view, size=SIDE, resize="cv2_area")
    shown: list[Shown] = []
    for row, logits, weights in zip(rows, looks.logits, looks.weights, strict=True):
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
    """Two rows per sample: its frames, and below them the attention of each step, under the frames that it shows."""
    steps, side = layout.steps, layout.side
    count = max(frame for part in steps for frame in part) + 1
    cell = 1.2 if count > 3 else 1.9
    pitch = cell + 0.08
    left, right, top, bottom = 0.35, 1.0, 0.75, 0.3
    block = 0.42 + 2 * cell + (0.62 if side else 0.9)
    width, height = max(left + right + pitch * count, 6.4), top + bottom + block * len(shown)
    relative = [own * own.size for _, own, _ in shown]  # 1 is uniform attention
    limit = float(np.percentile(np.concatenate([own.ravel() for own in relative]), BRIGHTEST))
    with new_figure(width, height, layout=None) as figure:

        def panel(x: float, y: float, title: str) -> Any:
            axes = figure.add_axes((x / width, y / height, cell / width, cell / height))
            axes.set_title(title, fontsize=7, pad=2, fontweight="normal")
            return axes

        for index, ((about, own, pictures), weights) in enumerate(zip(shown, relative, strict=True)):
            base = height - top - block * index
            verdict = (
                f"{100 * about['probability']:.0f} %, {'right' if about['true'] == about['predicted'] else 'wrong'}"
            )
            heading = f"{about['sample']}   true {about['true']}, predicted {about['predicted']} ({verdict})"
            figure.text(left / width, (base - 0.16) / height, heading, fontsize=8.5, va="center")
            for frame in range(count):
                axes = panel(left + pitch * frame, base - 0.42 - cell, about["frames"][frame])
                without_ticks(axes)
                if pictures is None:
                    axes.text(0.5, 0.5, "frame not\non this machine", ha="center", va="center", fontsize=6.5, c=MUTED)
                else:
                    axes.imshow(pictures[frame], interpolation="antialiased")
            for step, part in enumerate(steps):
                of = f", {len(part)} frames" if len(part) > 1 else ""
                title = f"step {step}{of}: {100 * own[step].sum():.0f} %"
                axes = panel(left + pitch * (part[0] + part[-1]) / 2, base - 0.42 - 2 * cell - 0.4, title)
                if side:
                    image = draw_overlay(axes, pictures, part[-1], weights[step].reshape(side, side), limit)
                else:
                    draw_bars(axes, weights[step], max(limit, 1.0), first=step == 0)
        if side:
            bar = figure.add_axes(((width - 0.82) / width, (bottom + 0.3) / height, 0.13 / width, 1.8 / height))
            figure.colorbar(image, cax=bar, extend="max", label="attention, uniform = 1")
            bar.tick_params(labelsize=7)
        kind = f"{side} x {side} places" if side else f"{layout.tokens} tokens without a place"
        title = f"{dataset_title(run.result)}, {run.result.label}: attention of the probe"
        figure.suptitle(f"{title}\n{kind} per step; {run.about}", fontsize=9.5, y=1 - 0.12 / height, va="top")
        yield figure


def without_ticks(axes: Any) -> None:
    """Leave a thin frame alone."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, linewidth=0.4)


def draw_overlay(axes: Any, frames: Pictures | None, frame: int, weights: npt.NDArray[np.float32], limit: float) -> Any:
    """Draw weights (side, side) over a frame in grey; returns the image of the weights."""
    without_ticks(axes)
    extent = (0, len(weights), len(weights), 0)
    if frames is not None:
        grey = frames[frame].astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="antialiased")
    opacity = OPACITY if frames is not None else 1.0
    return axes.imshow(weights, cmap="inferno", vmin=0, vmax=limit, alpha=opacity, extent=extent)


def draw_bars(axes: Any, weights: npt.NDArray[np.float32], limit: float, *, first: bool) -> None:
    """Draw weights (N,) of tokens without a place; the dotted line is uniform attention."""
    axes.barh(np.arange(len(weights)), weights, color=BLUE, height=0.8)
    axes.axvline(1.0, color=MUTED, linestyle=":", linewidth=0.8)
    axes.set_xlim(0, 1.05 * limit)
    axes.invert_yaxis()
    axes.tick_params(labelsize=6, labelleft=first, length=2)
    axes.set_yticks(np.unique(np.linspace(0, len(weights) - 1, min(len(weights), 4)).astype(int)))
    axes.set_xlabel("uniform = 1", fontsize=6, labelpad=1)
