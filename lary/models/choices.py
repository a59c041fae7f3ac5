"""Models as the options of commands change their records."""

import re
from dataclasses import asdict, replace
from typing import Any

from lary.models.spec import MODELS, ModelSpec, Preprocess
from lary.types import BenchmarkProtocol, JsonDict, Media, UsageError

CHOICES = {"latent": "one kind of latent", "layer": "no choice of a layer", "size": "one size of frames"}
"""Options that a record takes if it has them, and what others have."""
OPEN = ("layer", "size")
"""Options that digests leave out where they are None."""
LATER = {"dtype": "float32", "frames": None, "stride": None, "rate": None}
"""Later fields of `Preprocess`: digests leave them out where unused."""


def chosen_model(config: Any) -> ModelSpec:
    """The record of the model that options name. Raises UsageError as `with_choices`."""
    given = {name: getattr(config, name, None) for name in (*CHOICES, "name")}
    return with_choices(MODELS.get(config.model), **given)


def with_choices(spec: ModelSpec, *, name: str | None = None, **given: Any) -> ModelSpec:
    """The record as options change it, under both protocols.

    `given` are values of `CHOICES`; None leaves the record's. Raises
    UsageError for an option that the model doesn't take, or another model's
    name.
    """
    choice = {option: value for option, value in given.items() if value is not None}
    for option, value in choice.items():
        if option not in spec.options:
            raise UsageError(f"--{option} {value}: model '{spec.name}' has {CHOICES[option]}; leave it out.")
    parts: JsonDict = {}
    if (size := choice.get("size")) is not None:
        if size < 1:
            raise UsageError(f"--size {size}: must be at least 1.")
        for part, own in vars(spec).items():
            if isinstance(own, Preprocess):
                short = own.short_side and round(own.short_side * size / own.size)
                parts[part] = replace(own, size=size, short_side=short)
    if name is not None:
        if name in MODELS.names():
            raise UsageError(f"--name {name}: this is the name of another model.")
        if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
            raise UsageError(f"--name {name}: expected letters, digits and . + - _ alone.")
        parts["name"] = name
    return replace(spec, options=spec.options | choice, options_paper=spec.options_paper | choice, **parts)


def deciding_fields(spec: ModelSpec, protocol: BenchmarkProtocol, media: Media) -> JsonDict:
    """The fields of a record that decide latents: their identity."""
    frames, options = asdict(spec.preprocessing(protocol, media)), spec.options_under(protocol)
    return {
        "preprocess": {name: value for name, value in frames.items() if (name, value) not in LATER.items()},
        "options": {name: value for name, value in options.items() if value is not None or name not in OPEN},
    }
