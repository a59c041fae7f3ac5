"""Attention maps: how the query of the attentive probe weighs the tokens of a sample, over the frames they come from.

The model's record says how tokens lie: on how many places a side (its ``grid``), and which frames a latent step shows.
A step shows its own frame where there are as many steps as frames, two neighbours where there is one step less, and
equal parts of the clip where a model compresses time; in causal autoencoders the first step shows the first frame
alone. Tokens that stand for no place are drawn as bars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.configs import ClassifyConfig
from lary.data.frames import read_clip
from lary.data.spec import DATASETS
from lary.latents.ref import LatentsRef, SplitLatents, open_latents
from lary.models.preprocess import resize
from lary.models.spec import MODELS, ModelSpec, Preprocess
from lary.results.analyses.base import Analysis, Context, FinishedRun, NotPossible, near, slug, write_analysis
from lary.results.analyses.overlays import Shown, drawn
from lary.runtime import log, progress
from lary.types import LaryError, MediaError, UsageError

SIDE = 224
"""Pixels of a drawn frame at least."""

PAIR_NAMES = ("source", "target")

Rows = list[int]


@dataclass(frozen=True)
class Layout:
    """How the tokens of a sample lie: the frames of each step, tokens per step, places per side (0 for none)."""

    steps: tuple[tuple[int, ...], ...]
    tokens: int
    side: int


def analyse(context: Context) -> Analysis:
    """One figure per classification run.

    Raises:
        UsageError: no classification run, or a sample that no run has.
        LaryError: no run has its checkpoint and latents.
    """
    runs = context.of_task("classification", "classify")
    files: list[Any] = []
    left_out: list[str] = []
    found: set[str] = set()
    known: list[str] = []
    with progress(len(runs), "attention maps", "run") as bar:
        for run in runs:
            try:
                split = latents_of(run, context)
                names = names_of(split)
                rows = rows_of(names, split, context)
                known = list(names)
                found |= {name for name in context.config.sample if name in names}
                if rows:
                    files += write_run(run, split, rows, context)
            except LaryError as error:
                left_out.append(f"attention: {run.result.label} on {run.result.dataset.name}: {error}")
            bar.advance()
    absent = [name for name in context.config.sample if name not in found]
    if absent and known:
        raise UsageError(
            f"--sample {absent[0]}: no run was scored on such a sample.{near(absent[0], known)}"
        )  # fmt: skip
    if not files:
        raise LaryError("; ".join(reason.removeprefix("attention: ") for reason in left_out))
    return Analysis(tuple(files), tuple(left_out))


def config_of(run: FinishedRun) -> ClassifyConfig:
    """The options that a run was made with."""
    names = {field.name for field in fields(ClassifyConfig)}
    return ClassifyConfig(**{name: value for name, value in run.result.options_given.items() if name in names})


def latents_of(run: FinishedRun, context: Context) -> SplitLatents:
    """The latents that a run was scored on. Raises LaryError if they aren't there any more."""
    result = run.result
    if not result.options_given:
        raise LaryError("its result doesn't tell the options that it was made with")
    config = config_of(run)
    dataset = DATASETS.get(result.dataset.name)
    ref = replace(LatentsRef.of(config, dataset.validation), dataset=dataset.name)
    split = open_latents(context.settings, ref)
    if result.dataset.tables.get(dataset.validation, split.table.digest) != split.table.digest:
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


def rows_of(names: dict[str, int], split: SplitLatents, context: Context) -> Rows:
    """The named samples that this split has; without names, samples of classes evenly spaced over all."""
    if context.config.sample:
        return [names[name] for name in context.config.sample if name in names]
    order = np.argsort(split.table.labels(), kind="stable")
    places = ((np.arange(context.config.count) + 0.5) / context.config.count * len(order)).astype(int)
    return [int(order[place]) for place in np.unique(places)]


def write_run(run: FinishedRun, split: SplitLatents, rows: Rows, context: Context) -> list[Any]:
    """The figure and data of one run."""
    from lary.probes.attention import attend, load_head

    result, config = run.result, config_of(run)
    model = MODELS.get(config.model)
    classes = split.table.spec.labels.classes
    looks = attend(load_head(run.folder, len(classes)), split.source, rows)
    frames = len(split.table[0].frame_index) or len(split.table[0].media)
    layout = layout_of(tuple(split.source.shape), frames, model, square=context.config.square)
    view = shown_as(model.preprocessing(config.protocol, split.table.spec.media))
    shown = []
    for row, logits, weights in zip(rows, looks.logits, looks.weights, strict=True):
        sample = split.table[row]
        scores = np.exp(logits - logits.max())
        guess = int(logits.argmax())
        names = tuple(f"frame {number}" for number in sample.frame_index) or PAIR_NAMES
        shown.append(
            Shown(
                sample.id, sample.media, sample.target, classes[guess], float(scores[guess] / scores.sum()), names,
                weights.reshape(len(layout.steps), layout.tokens), pictures(split, row, view),
            )
        )  # fmt: skip
    facts = {
        "analysis": "attention", "dataset": result.dataset.name, "model": result.label, "protocol": result.protocol,
        "preset": result.preset, "grid": layout.side, "tokens_per_step": layout.tokens,
        "frames_of_steps": [list(frames) for frames in layout.steps],
        "samples": [
            {
                "sample": own.sample, "media": list(own.media), "true": own.true, "predicted": own.predicted,
                "probability": own.probability, "frames": list(own.names),
                "share_of_steps": own.weights.sum(axis=1).tolist(),
            }
            for own in shown
        ],
    }  # fmt: skip
    stem = f"attention_{slug(result.dataset.name)}_{slug(run.folder.name)}"
    return write_analysis(context.out, stem, lambda: drawn(run, layout.steps, layout.side, shown), table(shown, layout),
                          facts)  # fmt: skip


def table(shown: Sequence[Shown], layout: Layout) -> list[dict[str, Any]]:
    """A row per sample, step and token; row and column of its place where it has one."""
    return [
        {
            "sample": own.sample, "step": step, "token": token,
            "row": token // layout.side if layout.side else None,
            "column": token % layout.side if layout.side else None, "weight": float(weight),
        }
        for own in shown
        for (step, token), weight in np.ndenumerate(own.weights)
    ]  # fmt: skip


def pictures(split: SplitLatents, row: int, view: Preprocess) -> npt.NDArray[np.uint8] | None:
    """Frames (T, H, W, 3) as the model sees them, without its scaling; None where they aren't on this machine."""
    sample = split.table[row]
    try:
        return resize(read_clip(split.table.media_path(sample), sample.frame_index), view)
    except MediaError as error:
        log.warning("attention without the frame behind it: %s", error)
        return None


def shown_as(preprocess: Preprocess) -> Preprocess:
    """A model's cut of the frame, fine enough to be looked at."""
    if preprocess.short_side is None and preprocess.size < SIDE:
        return replace(preprocess, size=SIDE, resize="cv2_area")
    return preprocess


def layout_of(shape: tuple[int, ...], frames: int, model: ModelSpec, *, square: bool = False) -> Layout:
    """How tokens (P, N, D), or (P * N, D) where a model's grid tells N, lie over `frames` frames.

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
    return Layout(frames_of_steps(frames, steps, model.first_frame_alone), tokens, side)


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
