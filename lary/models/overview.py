"""What models there are and what each needs: the text of ``lary models`` and of ``docs/models.md``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lary.models.spec import MODELS, ModelSpec, locate_weights
from lary.types import UsageError, as_path


@dataclass(frozen=True)
class WeightsState:
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
    return WeightsState(False, f"would be fetched from the hub: {place}; {where_to_put(spec)}")


def where_to_put(spec: ModelSpec) -> str:
    """The file or variable that a model's weights are looked for in."""
    weights = spec.weights
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
    found += [("paper", difference) for difference in spec.paper_differences]
    found += [("known", note) for note in spec.notes]
    return found


def models_page() -> str:
    """``docs/models.md``, made from the records."""
    lines = [
        "# Models",
        "",
        "Made from the records by `python -m lary.models.overview`; a test holds it against them. Tokens are",
        "(P, N, D): latent steps, tokens per step, latent dimension.",
    ]
    for spec in MODELS:
        lines += ["", f"## `{spec.name}`", "", spec.description + ".", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {text} |" for name, text in facts(spec)[1:]]
        lines.append(f"| weights | {where_to_put(spec)}{hub_text(spec)} |")
    return "\n".join(lines) + "\n"


def hub_text(spec: ModelSpec) -> str:
    """Where the hub has the weights, as a half sentence."""
    if spec.weights is None or not spec.weights.hub:
        return ""
    pinned = f" at {spec.weights.revision[:7]}" if spec.weights.revision else ""
    return f", or fetched from `{spec.weights.hub}`{pinned}"


if __name__ == "__main__":
    print(models_page(), end="")
