"""The output files of the published code, and arrays for comparisons and figures.

``predictions.npz`` holds the fields of `SampleScores` of each role and the
``seeds`` (S,), ``actions.npz`` those of `Chunks` of the first seed. A score is
1 or 0, or a normalised error.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lary.arrays import Array, Floats, Pixels, read_npz
from lary.files import atomic_write, csv_text, write_bytes, write_json, write_text
from lary.probes import outcome as metrics
from lary.probes.outcome import ClassificationOutcome, RegressionOutcome, SplitOutcome, headline
from lary.results import figures
from lary.results.folder import AGAIN, FinishedRun
from lary.results.record import Example
from lary.types import LaryError

PREDICTIONS, ACTIONS = "predictions.npz", "actions.npz"
TOP_K = 5
EXAMPLE_QUANTILES = (0.1, 0.5, 0.9)
"""Ranks of the errors whose chunks are shown: good, median, bad."""

Frames = Callable[[int], Pixels]
"""From a row of the seen split to its frames, (T, H, W, 3) uint8 RGB."""


def write_classification_files(folder: Path, outcome: ClassificationOutcome) -> None:
    """Write the files of a classification for its headline selection.

    The matrix has predicted classes in rows, true ones in columns.
    ``case.txt`` has per validation sample media path, predicted and true
    class, with tabs between.
    """
    from pandas import DataFrame

    predicted = outcome.selections[headline(outcome.selections)].logits.argmax(axis=1)
    names = outcome.classes
    matrix = metrics.confusion_matrix(outcome.labels, predicted, len(names))
    axes = {"rows": "predicted", "columns": "true", "classes": list(names)}
    write_json(folder / "confusion_matrix.json", {**axes, "matrix": matrix.tolist()})
    title = f"Top-1 {100 * np.trace(matrix) / max(matrix.sum(), 1):.2f} %"
    write_bytes(folder / "confusion_matrix.png", figures.confusion_figure(matrix, names, title))
    table = DataFrame(metrics.class_statistics(matrix), index=names).rename(columns={"true": "samples"})
    write_json(folder / "classification_stats.json", table.to_dict("index"))
    samples = zip(outcome.samples.media, predicted, outcome.labels, strict=True)
    lines = (f"{media[-1]}\t{names[guess]}\t{names[label]}\n" for media, guess, label in samples)
    write_text(folder / "case.txt", "".join(lines))


def best_result(outcome: RegressionOutcome) -> dict[str, float]:
    """The one row of ``best_result.csv`` for the headline selection."""
    name = headline(outcome.splits["seen"].selections)
    epoch = outcome.splits["seen"].selections[name].epoch
    losses = {entry.get("epoch"): entry.get("train_loss", np.nan) for entry in outcome.history}
    row: dict[str, float] = {"best_epoch": epoch, "train_loss": float(losses.get(epoch, np.nan))}
    for role, split in outcome.splits.items():
        values = split.selections[name].values
        targets = split.targets
        row[f"val_{role}_loss"] = float(split.loss[name])
        row[f"val_{role}_mse"] = metrics.mse(values, targets)
        by_dim = zip(outcome.dims, metrics.mse_per_dim(values, targets), strict=True)
        by_group = metrics.mse_per_group(values, targets, outcome.groups)
        row |= {f"val_{role}_mse_{label}": float(value) for label, value in (*by_dim, *by_group.items())}
    return row


def write_regression_files(
    folder: Path, outcome: RegressionOutcome, frames: Frames | None, units: Sequence[str]
) -> tuple[str, ...]:
    """Write the files of a regression for its headline selection; returns their names.

    The pictures show the samples of `example_rows` on the seen split; without `frames`
    only their trajectories.
    """
    row, split = best_result(outcome), outcome.splits["seen"]
    files = {"best_result.csv": csv_text([row, row.values()]).encode()}
    place = f"eval_vis/epoch_{row['best_epoch']}"
    chunks = chunks_of(split)
    drawn = []
    for index, (sample, _, error) in enumerate(example_rows(split)):
        if frames is not None:
            clip = frames(sample)
            files[f"{place}/sample_{index}_src.png"] = png_of(clip[0])
            files[f"{place}/sample_{index}_tgt.png"] = png_of(clip[-1])
        title = f"{chunks.ids[sample]}, mean squared error {error:.3g}"
        drawn.append((title, chunks.predicted[sample], chunks.true[sample]))
    for name, data in figures.trajectory_files(drawn, outcome.dims, units):
        files[f"{place}/{name}"] = data
    for file, data in files.items():
        write_bytes(folder / file, data)
    return tuple(files)


def png_of(picture: Pixels) -> bytes:
    """A picture (H, W, 3) or (H, W, 4) uint8 as PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def example_rows(split: SplitOutcome) -> list[tuple[int, float, float]]:
    """Rows to show as (row, quantile, error), at `EXAMPLE_QUANTILES`."""
    values = split.selections[headline(split.selections)].values
    error = ((values - split.targets) ** 2).mean(axis=(1, 2))
    order = np.argsort(error, kind="stable")
    rows = {int(order[round(rank * (len(order) - 1))]): rank for rank in EXAMPLE_QUANTILES}
    return [(row, quantile, float(error[row])) for row, quantile in rows.items()]


def examples_of(split: SplitOutcome, files: Iterable[str]) -> Iterator[Example]:
    """The chunks of `example_rows`, with the pictures among `files`."""
    chunks = chunks_of(split)
    for index, (row, quantile, error) in enumerate(example_rows(split)):
        predicted, true = (
            [[float(f"{value:.5g}") for value in step] for step in part[row].tolist()]
            for part in (chunks.predicted, chunks.true)
        )
        ends = f"/sample_{index}_src.png", f"/sample_{index}_tgt.png"
        yield Example(
            sample=chunks.ids[row],
            media=split.samples.media[row],
            group=chunks.groups[row],
            quantile=quantile,
            mse=error,
            predicted=predicted,
            true=true,
            pictures=[name for name in files if name.endswith(ends)],
        )


# --- arrays ---


@dataclass(frozen=True)
class SampleScores:
    """Headline scores (S, n) float32 of the samples of one split."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    scores: Floats


@dataclass(frozen=True)
class Chunks:
    """Chunks (n, K, A) float32 of one split in physical units; `media` are the source frames."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    media: tuple[str, ...]
    predicted: Floats
    true: Floats


Arrays = TypeVar("Arrays", SampleScores, Chunks)


def chunks_of(split: SplitOutcome) -> Chunks:
    samples = split.samples
    mean = split.mean[:, None]
    std = split.std[:, None]
    values = split.selections[headline(split.selections)].values
    media = tuple(paths[0] for paths in samples.media)
    return Chunks(samples.ids, samples.groups, media, values * std + mean, split.targets * std + mean)


def class_scores(runs: Sequence[ClassificationOutcome]) -> dict[str, SampleScores]:
    """Right or wrong, by role, from probes of several seeds."""
    samples = runs[0].samples
    first = headline(runs[0].selections)
    right = [run.selections[first].logits.argmax(axis=1) == run.labels for run in runs]
    return {"seen": SampleScores(samples.ids, samples.groups, np.stack(right).astype(np.float32))}


def action_scores(runs: Sequence[RegressionOutcome]) -> dict[str, SampleScores]:
    """Squared error of each sample, by role, from probes of several seeds."""
    first = headline(runs[0].splits["seen"].selections)
    found = {}
    for role, split in runs[0].splits.items():
        values = np.stack([run.splits[role].selections[first].values for run in runs]).astype(np.float64)
        errors = np.square(values - split.targets).mean(axis=(2, 3)).astype(np.float32)
        found[role] = SampleScores(split.samples.ids, split.samples.groups, errors)
    return found


def answers_of(runs: Sequence[ClassificationOutcome]) -> dict[str, Array]:
    """The ``classes`` (L,), and of the split seen ``labels`` (n,) and the answers of all seeds.

    ``best_<selection>`` (S, n, `TOP_K`) are the best classes from 0,
    ``logits_<selection>`` their scores.
    """
    found: dict[str, Array] = {"classes": np.array(runs[0].classes), "seen_labels": runs[0].labels}
    for name in runs[0].selections:
        logits = np.stack([run.selections[name].logits for run in runs])
        best = np.argsort(-logits, axis=2, kind="stable")[..., :TOP_K].astype(np.int32)
        found[f"seen_best_{name}"] = best
        found[f"seen_logits_{name}"] = np.take_along_axis(logits, best, axis=2)
    return found


def write_scores(folder: Path, scores: Mapping[str, SampleScores], seeds: Sequence[int], **more: Array) -> None:
    _write_arrays(folder / PREDICTIONS, scores, seeds=np.array(seeds, dtype=np.int64), **more)


def write_actions(folder: Path, runs: Sequence[RegressionOutcome]) -> None:
    """Write the chunks of all splits, and what all seeds predict, normalised.

    By role: ``targets`` (n, K, A), ``mean`` and ``std`` (n, A), and
    ``normalised_<selection>`` (S, n, K, A).
    """
    found: dict[str, Array] = {}
    for role, split in runs[0].splits.items():
        found |= {f"{role}_{name}": getattr(split, name) for name in ("targets", "mean", "std")}
        for name in split.selections:
            values = [run.splits[role].selections[name].values for run in runs]
            found[f"{role}_normalised_{name}"] = np.stack(values)
    chunks = {role: chunks_of(split) for role, split in runs[0].splits.items()}
    _write_arrays(folder / ACTIONS, chunks, **found)


def _write_arrays(file: Path, tables: Mapping[str, SampleScores | Chunks], **more: Array) -> None:
    arrays = {f"{role}_{name}": part for role, table in tables.items() for name, part in vars(table).items()}
    with atomic_write(file) as stream:
        np.savez_compressed(stream, **more, **arrays)  # type: ignore[arg-type]


def read_arrays(kind: type[Arrays], run: FinishedRun, role: str = "seen") -> Arrays:
    """The scores or chunks of a role. Raises LaryError if they are missing or torn."""
    name = PREDICTIONS if kind is SampleScores else ACTIONS
    parts = [part.name for part in fields(kind)]
    file = run.folder / name
    if not file.is_file():
        raise LaryError(f"{file} does not exist: run the probe again with --overwrite, then it is written.")
    try:
        found = read_npz(run.file(name), *(f"{role}_{part}" for part in parts))
    except KeyError:
        raise LaryError(f"{file} has no {parts[-1]} of the split '{role}'.") from None
    except (OSError, ValueError) as error:
        raise LaryError(f"{file} can't be read: {error}. {AGAIN}") from error
    values: list[Any] = [tuple(map(str, own)) if own.dtype.kind == "U" else own.astype(np.float32) for own in found]
    return kind(*values)
