"""Networks of the LAQ family: one file with the latent action model and, mostly, the encoder of frames inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.files import read_yaml
from lary.models.networks import draw_transformers, draw_weights, fill, load_transformers
from lary.models.spec import ModelContext, ModelSpec, locate_weights
from lary.models.tensors import Layout, configured_by, read_tensors, sha256_of, split_off
from lary.models.weights import find_weights
from lary.types import UsageError, as_path

if TYPE_CHECKING:
    import torch

    from lary.nets.lam import LatentActionModel
    from lary.nets.magvit import Tokenizer

Options = Mapping[str, Any]
LAYOUT = Layout(sections=("model", "state_dict"), wrappers=("module.",))
"""How a file of the family, whose name is in its record, and the tokenizer's own file are laid out."""
TOKENIZER_FIELDS = ("z_channels", "ch", "ch_mult", "num_res_blocks", "in_channels", "out_ch")


def load_network(
    spec: ModelSpec, options: Options, tensors: Mapping[str, torch.Tensor], origin: Path, settings: Mapping[str, str]
) -> tuple[LatentActionModel, str]:
    """The network that a record's options describe, with exactly these tensors, without its decoder.

    The encoder of frames is read from `tensors` too; where they hold nothing of it, from its own file.

    Args:
        options: ``network`` (fields of `LaqConfig`) and ``features`` (how frames are encoded, or None).
        origin: where the tensors come from, for errors.
        settings: values of the variables that name the encoder's own files.

    Returns:
        The network, and the digest of the encoder's own file where one was read, or else an empty text.

    Raises:
        LaryError: keys are missing, unexpected or of another shape.
        UsageError: the sizes fit together with no network, or the encoder of frames is nowhere.
    """
    network = _without_memory(spec, options)
    rest, features, digest = dict(tensors), options["features"], ""
    inside = split_off(rest, features["prefix"]) if features else {}
    fill(network, rest, origin)
    network.drop_decoder()
    if features and "library" in features:
        network.features, digest = _load_backbone(spec, features, inside, origin, network.config.grid, settings)
    elif features:
        network.features, digest = load_tokenizer(spec, features, inside, origin, settings)
    return network.eval(), digest


def draw_network(spec: ModelSpec, options: Options, seed: int) -> LatentActionModel:
    """The network that a record's options describe with random weights, its encoder of frames too, without its decoder.

    Raises:
        UsageError: the sizes fit together with no network.
    """
    network = _without_memory(spec, options)
    network.drop_decoder()
    draw_weights(network, seed)
    features = options["features"]
    if features and "library" in features:
        backbone = draw_transformers(*_library(features), seed)
        network.features = _patch_tokens(backbone, features, network.config.grid)
    elif features:
        tokenizer = empty_tokenizer(features["config"], "the record")
        tokenizer.drop_unused()
        network.features = draw_weights(tokenizer, seed)
    return network


def _without_memory(spec: ModelSpec, options: Options) -> LatentActionModel:
    """The network on the meta device, without its encoder of frames. Raises UsageError if its sizes make none."""
    import torch

    from lary.nets.lam import LaqConfig, LatentActionModel

    try:
        with torch.device("meta"):
            return LatentActionModel(LaqConfig(**options["network"]))
    except (TypeError, ValueError) as error:
        raise UsageError(f"Model '{spec.name}' can't be built: {error}.") from error


def _load_backbone(
    spec: ModelSpec, features: Options, tensors: Mapping[str, torch.Tensor], origin: Path, grid: int,
    settings: Mapping[str, str],
) -> tuple[torch.nn.Module, str]:  # fmt: skip
    """A backbone of transformers; its own weights are where its variable says, in MODEL_DIR or on the hub."""
    beginning, digest = features["prefix_on_disk"], ""
    if not tensors:
        record = replace(spec, name=f"{spec.name}, encoder of frames", weights=spec.backbone)
        found = find_weights(record, ModelContext("cpu", "corrected", locate_weights(record, dict(settings))))
        own = read_tensors(found.files, Layout(unused=tuple(features["unused"])))
        tensors = {key.removeprefix(beginning): value for key, value in own.items()}
        origin, digest = found.folder, found.identity.digest
    named = {beginning + key: value for key, value in tensors.items()}
    model = load_transformers(*_library(features), named, unused=(), folder=origin)
    return _patch_tokens(model, features, grid), digest


def _library(features: Options) -> tuple[Any, Any]:
    """The class of transformers that runs a backbone, and its configuration."""
    import transformers

    model_class = getattr(transformers, features["library"])
    return model_class, model_class.config_class(**features["config"])


def _patch_tokens(model: Any, features: Options, grid: int) -> torch.nn.Module:
    """A backbone's patch tokens, without the head that pools them: files hold it, and it is never needed."""
    from lary.nets.lam import PatchTokens

    tower = getattr(model, "vision_model", model)
    if getattr(tower, "use_head", False):
        tower.use_head = False
        del tower.head
    registers = getattr(model.config, "num_register_tokens", 0) or 0
    return PatchTokens(model, features["leading"] + registers, grid)


def load_tokenizer(
    spec: ModelSpec, features: Options, tensors: Mapping[str, torch.Tensor], origin: Path, settings: Mapping[str, str]
) -> tuple[torch.nn.Module, str]:
    """The encoder of Open-MAGVIT2, of the configuration that its variable names, or else the record's.

    Raises:
        LaryError: the configuration describes no tokenizer, or the tensors don't fit it.
        UsageError: its weights are nowhere.
    """
    described = settings.get(features["config_variable"])
    changes = _tokenizer_config(as_path(described)) if described else {}
    tokenizer = empty_tokenizer({**features["config"], **changes}, described or "the record")
    digest = ""
    if not tensors:
        variable = (spec.backbone and spec.backbone.variable) or ""
        named = settings.get(variable)
        if not named or not as_path(named).is_file():
            reason = f"points to {named}, which is no file" if named else "is not set"
            raise UsageError(
                f"Weights of '{spec.name}': {origin} holds no tokenizer (keys {features['prefix']}*), and {variable} "
                f"{reason}. Set it to the tokenizer's own checkpoint, and {features['config_variable']} to its "
                "configuration, if that is not the released one of 18 bits."
            )
        origin = as_path(named)
        digest = sha256_of(origin)
        tensors = read_tensors([origin], replace(LAYOUT, unused=tuple(features["unused"])))
    fill(tokenizer, tensors, origin)
    tokenizer.drop_unused()
    return tokenizer, digest


def empty_tokenizer(config: Options, origin: object) -> Tokenizer:
    """Open-MAGVIT2 without memory. Raises LaryError where the configuration, from `origin`, describes none."""
    import torch

    from lary.nets.magvit import Tokenizer, TokenizerConfig

    with configured_by(origin, "Open-MAGVIT2 tokenizer"), torch.device("meta"):
        return Tokenizer(TokenizerConfig(**config))


def _tokenizer_config(file: Path) -> dict[str, Any]:
    """Fields of ``ddconfig`` of a published configuration file, and ``use_ema`` beside it, if it is there.

    Raises:
        UsageError: the file can't be read or has none.
    """
    content: Any = read_yaml(file, "tokenizer configuration")
    found: dict[str, Any] = {}
    for name in ("model", "init_args", "ddconfig"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            found |= {key: bool(content[key]) for key in ("use_ema",) if key in content}
            content = content[name]
    if not isinstance(content, dict) or any(name not in content for name in TOKENIZER_FIELDS):
        raise UsageError(f"The tokenizer configuration {file} has no ddconfig with {', '.join(TOKENIZER_FIELDS)}.")
    return found | {name: content[name] for name in TOKENIZER_FIELDS}
