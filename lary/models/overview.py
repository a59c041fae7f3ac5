"""What models there are and what each needs: the text of ``lary models`` and of ``docs/models.md``."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import lary
from lary.models.spec import MODELS, ModelSpec, Weights, locate_weights
from lary.types import UsageError, as_path

REFERENCE = Path(lary.__file__).parent / "results" / "reference"
"""Folder of the tables of the benchmark's paper."""
TABLES = {
    "leaderboard_classification": ("classification", ("average", "libero", "human_1st", "robot_1st")),
    "leaderboard_regression": ("regression", ("average", "calvin", "vlabench", "robocoin", "agibotbeta")),
    "leaderboard_vlabench_stride": ("regression on vlabench by stride", ("stride_5", "stride_15", "stride_30")),
}
"""Titles and columns of the tables by model."""
ABLATED = {"codebook_size": "codebook_size", "sequence_length": "code_seq_len", "latent_dim": "quant_dim"}
"""Columns of the table of ablations, and the fields of a network that they name."""


INTRODUCTION = """\
# Models

Made from the records by `python -m lary.models.overview`; a test holds it against them.

- *tokens* are (P, N, D): latent steps, tokens per step, latent dimension; (N, D) for a model without steps.
- *parameters* are counted as in the paper's tables, parts that only training needs included.
- *published* are the numbers in the tables of the paper (Nie et al. 2026, arXiv 2604.11689): Top-1 accuracy in % for
  classification, MSE of normalised actions for regression. The `paper` protocol computes as their code does.
- *paper* is what that protocol changes for the model; without such a line both protocols give the same tokens.
- *known* are facts and defects that a reader of the numbers should know.
"""


class WeightsState(NamedTuple):
    """Whether a model's weights are on this machine, and where, or what is missing."""

    found: bool
    note: str


def weights_state(spec: ModelSpec, values: Mapping[str, str]) -> WeightsState:
    """Look for a model's weights without loading or fetching anything."""
    if spec.weights is None:
        return WeightsState(True, "needs none")
    try:
        place = locate_weights(spec, dict(values))
    except UsageError as error:
        return WeightsState(False, str(error))
    if place is not None and as_path(place).exists():
        return WeightsState(True, place)
    return WeightsState(False, f"would be fetched from the hub: {place}; {where_to_put(spec.weights)}")


def where_to_put(weights: Weights | None) -> str:
    """The file or variable that weights are looked for in."""
    if weights is None:
        return "needs no weights"
    places = [weights.variable] if weights.variable else []
    places += [f"MODEL_DIR/{weights.folder}"] if weights.folder else []
    return f"on this machine they are looked for in {' or '.join(places)}" if places else "pass --weights"


def shape_text(shape: tuple[int, ...]) -> str:
    """``2 x 256 x 1024``, or a dash where the record doesn't say."""
    return " x ".join(map(str, shape)) if shape else "-"


def models_table(values: Mapping[str, str]) -> str:
    """One line per model: key, paradigm, tokens per pair and clip, parameters, licence, weights."""
    rows = [("key", "paradigm", "D", "pair", "clip", "params (M)", "weights", "licence")]
    for spec in MODELS:
        parameters = f"{spec.parameters_m:.2f}" if spec.parameters_m is not None else "-"
        state = "none needed" if spec.weights is None else "here" if weights_state(spec, values).found else "missing"
        dim = str(spec.dim) if spec.dim is not None else "-"
        rows.append(
            (spec.name, spec.paradigm, dim, shape_text(spec.pair_shape), shape_text(spec.clip_shape), parameters, state,
             spec.licence or "-")
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def model_text(spec: ModelSpec, values: Mapping[str, str]) -> str:
    """The record of one model, and the exact file or variable that is missing."""
    state = weights_state(spec, values)
    lines = [spec.name, *(f"  {name:12} {value}" for name, value in facts(spec))]
    lines.append(f"  {'weights':12} {'here: ' if state.found and spec.weights else ''}{state.note}")
    if spec.backbone:
        part = weights_state(replace(spec, weights=spec.backbone), values)
        place = f"here: {part.note}" if part.found else part.note
        lines.append(f"  {'backbone':12} needed where the weights hold none; {place}")
    return "\n".join(lines)


def facts(spec: ModelSpec) -> list[tuple[str, str]]:
    """Name and text of every field that a reader asks for."""
    preprocess = spec.preprocess
    resize = f"short side {preprocess.short_side}, then centre {preprocess.size}" if preprocess.short_side else ""
    parameters = f"{spec.parameters_m:.2f} million" if spec.parameters_m is not None else "-"
    found = [
        ("what", spec.description),
        ("paradigm", spec.paradigm),
        ("tokens", f"{shape_text(spec.pair_shape)} per pair, {shape_text(spec.clip_shape)} per clip of nine frames"),
        ("parameters", parameters),
        ("frames", f"{resize or f'{preprocess.size} x {preprocess.size}'}, {preprocess.resize}"),
        ("pixels", f"/ {preprocess.scale:g}, mean {preprocess.mean}, std {preprocess.std}"),
        ("reference", spec.reference or "-"),
        ("licence", spec.licence or "-"),
    ]
    found += [("published", numbers) for numbers in published(spec)]
    found += [("paper", difference) for difference in spec.paper_differences]
    found += [("known", note) for note in spec.notes]
    return found


def published(spec: ModelSpec) -> list[str]:
    """A model's numbers in the tables of the benchmark's paper, one line per table."""
    found = []
    for table, (title, columns) in TABLES.items():
        for row in paper_rows(table):
            if row["model"] == spec.name:
                found.append(f"{title}: {', '.join(f'{name} {row[name]}' for name in columns)}")
    network = spec.options.get("network", {})
    sizes = {column: str(network.get(field)) for column, field in ABLATED.items()}
    rows = [row for row in paper_rows("lam_ablation") if sizes.items() <= row.items()]
    if rows:  # a setting that several ablations share is in the table more than once, with the same numbers
        others = [column for column in rows[0] if column not in ("ablation", *sizes)]
        found.append(f"ablations: {', '.join(f'{name} {rows[0][name]}' for name in others)}")
    if not found and spec.weights is not None:
        return ["the paper's tables have no numbers of this model"]
    return found


@functools.cache
def paper_rows(name: str) -> list[dict[str, str]]:
    """Rows of one of the paper's tables, arXiv 2604.11689."""
    with (REFERENCE / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def models_page() -> str:
    """``docs/models.md``, made from the records."""
    lines = INTRODUCTION.splitlines()
    for spec in MODELS:
        lines += ["", f"## `{spec.name}`", "", spec.description + ".", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {text} |" for name, text in facts(spec)[1:]]
        lines.append(f"| weights | {where_to_put(spec.weights)}{hub_text(spec.weights)} |")
        if spec.backbone:
            place = f"{where_to_put(spec.backbone)}{hub_text(spec.backbone)}"
            lines.append(f"| backbone | needed where the weights hold none; {place} |")
    return "\n".join(lines) + "\n"


def hub_text(weights: Weights | None) -> str:
    """Where the hub has weights, as a half sentence."""
    if weights is None or not weights.hub:
        return ""
    pinned = f" at {weights.revision[:7]}" if weights.revision else ""
    return f", or fetched from `{weights.hub}`{pinned}"


if __name__ == "__main__":
    print(models_page(), end="")
