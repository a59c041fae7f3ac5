"""The output files of the published code, from what a probe hands on.

Classification: ``confusion_matrix.json`` and ``.png``, ``classification_stats.json``, ``case.txt``. Regression:
``best_result.csv`` and in ``eval_vis/epoch_<n>/``: ``sample_<i>_{src,tgt,action}.png``, ``sample_<i>_action.pdf`` and
``action.pdf`` with all of these as pages.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lary.files import write_bytes, write_json, write_text
from lary.probes import outcome as metrics
from lary.probes.outcome import ClassificationOutcome, RegressionOutcome, SplitOutcome
from lary.results import figures
from lary.results.measure import headline
from lary.results.summarise import example_rows

Frames = Callable[[int], npt.NDArray[np.uint8]]
"""From a row of the seen split to its frames, (T, H, W, 3) uint8 RGB."""


def write_classification_files(folder: Path, outcome: ClassificationOutcome) -> tuple[str, ...]:
    """Write the files of a classification for its headline selection; returns their names.

    The matrix has predicted classes in rows and true classes in columns. ``case.txt`` has one line per validation
    sample: media path, predicted class, true class, separated by tabs.
    """
    predicted = outcome.selections[headline(outcome.selections)].logits.argmax(axis=1)
    names = outcome.classes
    matrix = metrics.confusion_matrix(outcome.labels, predicted, len(names))
    table = metrics.class_statistics(matrix)
    write_json(
        folder / "confusion_matrix.json",
        {"rows": "predicted", "columns": "true", "classes": list(names), "matrix": matrix.tolist()},
    )
    title = f"Top-1 {100 * np.trace(matrix) / max(matrix.sum(), 1):.2f} %"
    write_bytes(folder / "confusion_matrix.png", figures.confusion_figure(matrix, names, title))
    statistics = {
        name: {
            "precision": float(table.precision[index]),
            "recall": float(table.recall[index]),
            "f1": float(table.f1[index]),
            "samples": int(table.support[index]),
        }
        for index, name in enumerate(names)
    }
    write_json(folder / "classification_stats.json", statistics)
    lines = (
        f"{media[-1]}\t{names[guess]}\t{names[label]}\n"
        for media, guess, label in zip(outcome.samples.media, predicted, outcome.labels, strict=True)
    )
    write_text(folder / "case.txt", "".join(lines))
    return ("confusion_matrix.json", "confusion_matrix.png", "classification_stats.json", "case.txt")


def best_result(outcome: RegressionOutcome) -> dict[str, float | int]:
    """The one row of ``best_result.csv`` for the headline selection; the training loss is that of its epoch."""
    name = headline(outcome.splits["seen"].selections)
    epoch = outcome.splits["seen"].selections[name].epoch
    losses = [entry["train_loss"] for entry in outcome.history if entry.get("epoch") == epoch and "train_loss" in entry]
    row: dict[str, float | int] = {"best_epoch": epoch, "train_loss": float(losses[0]) if losses else float("nan")}
    for role, split in outcome.splits.items():
        values, targets = split.selections[name].values, split.targets
        row[f"val_{role}_loss"] = float(split.loss[name])
        row[f"val_{role}_mse"] = metrics.mse(values, targets)
        for label, value in zip(outcome.dims, metrics.mse_per_dim(values, targets), strict=True):
            row[f"val_{role}_mse_{label}"] = float(value)
        for label, value in metrics.mse_per_group(values, targets, outcome.groups).items():
            row[f"val_{role}_mse_{label}"] = float(value)
    return row


def write_regression_files(
    folder: Path, outcome: RegressionOutcome, frames: Frames | None = None, units: Sequence[str] = ()
) -> tuple[str, ...]:
    """Write the files of a regression for its headline selection; returns their names relative to `folder`.

    The pictures show the samples of `example_rows` on the seen split; without `frames` only their trajectories.
    """
    row = best_result(outcome)
    _write_row(folder / "best_result.csv", row)
    name = headline(outcome.splits["seen"].selections)
    split = outcome.splits["seen"]
    place = f"eval_vis/epoch_{split.selections[name].epoch}"
    written = ["best_result.csv"]
    chunks = []
    for index, (sample, _, error) in enumerate(example_rows(split, name)):
        stem = f"{place}/sample_{index}"
        files: dict[str, bytes] = {}
        if frames is not None:
            clip = frames(sample)
            files |= {f"{stem}_src.png": encode_png(clip[0]), f"{stem}_tgt.png": encode_png(clip[-1])}
        title = f"{split.samples.ids[sample]}, mean squared error {error:.3g}"
        chunk = figures.Chunk(title, *physical_chunks(split, split.selections[name].values, sample))
        for suffix in ("png", "pdf"):
            files[f"{stem}_action.{suffix}"] = figures.trajectory_figure(chunk, outcome.dims, units, suffix)
        chunks.append(chunk)
        for file, data in files.items():
            write_bytes(folder / file, data)
        written += files
    write_bytes(folder / place / "action.pdf", figures.trajectory_book(chunks, outcome.dims, units))
    return (*written, f"{place}/action.pdf")


def physical_chunks(
    split: SplitOutcome, values: npt.NDArray[np.float32], row: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Predicted and true chunk of one sample in physical units, each (K, A) float64."""
    mean, std = split.mean[row].astype(np.float64), split.std[row].astype(np.float64)
    return values[row] * std + mean, split.targets[row] * std + mean


def encode_png(picture: npt.NDArray[np.uint8]) -> bytes:
    """An RGB picture (H, W, 3) uint8 as PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _write_row(path: Path, row: Mapping[str, float | int]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    write_text(path, text.getvalue())
