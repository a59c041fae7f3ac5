"""Loading of the LAQ family: one file with the latent action model and, mostly, the encoder of frames inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.files import read_yaml
from lary.models.randomly import draw, draw_transformers
from lary.models.released import Layout, read_checkpoint
from lary.models.spec import ModelContext, ModelSpec, locate_weights
from lary.models.tensors import configured_by, fill, sha256_of, take
from lary.models.weights import Source, find_weights, load_transformers, read_tensors
from lary.types import UsageError, as_path

if TYPE_CHECKING:
    import torch

    from lary.nets.lam import LatentActionModel

Tensors = dict[str, "torch.Tensor"]

LAYOUT = Layout(files=(), sections=("model", "state_dict"), wrappers=("module.",))
"""Of a file of the family, whose name stands in its record, and of the tokenizer's own file."""


def load_network(
    spec: ModelSpec,
    options: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    origin: Path,
    settings: Mapping[str, str],
) -> tuple[LatentActionModel, str]:
    """The network that a record's options describe, with exactly these tensors, without its decoder.

    The encoder of frames is read from `tensors` too; where they hold nothing of it, from its own file.

    Args:
        spec: the record, for errors.
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
    rest = dict(tensors)
    features, digest_of_features = options["features"], ""
    inside = take(rest, features["prefix"]) if features else {}
    fill(network, rest, origin)
    network.drop_decoder()
    if features:
        load = LOADERS[features["kind"]]
        network.features, digest_of_features = load(
            spec, features, inside, origin, network.config.grid, settings
        )  # fmt: skip
    return network.eval(), digest_of_features


def draw_network(spec: ModelSpec, options: Mapping[str, Any], seed: int) -> LatentActionModel:
    """The network that a record's options describe with random weights, its encoder of frames too, without its decoder.

    Raises:
        UsageError: the sizes fit together with no network.
    """
    network = _without_memory(spec, options)
    network.drop_decoder()
    draw(network, seed)
    if features := options["features"]:
        network.features = DRAWN[features["kind"]](features, network.config.grid, seed)
    return network


def _without_memory(spec: ModelSpec, options: Mapping[str, Any]) -> LatentActionModel:
    """The network on the meta device, without its encoder of frames. Raises UsageError if its sizes make none."""
    import torch

    from lary.nets.lam import LaqConfig, LatentActionModel

    try:
        with torch.device("meta"):
            return LatentActionModel(LaqConfig(**options["network"]))
    except (TypeError, ValueError) as error:
        raise UsageError(f"Model '{spec.name}' can't be built: {error}.") from error


def _from_transformers(
    spec: ModelSpec,
    features: Mapping[str, Any],
    tensors: Tensors,
    origin: Path,
    grid: int,
    settings: Mapping[str, str],
) -> tuple[torch.nn.Module, str]:
    """A backbone of transformers, whose patch tokens stand on the model's grid."""
    model_class, config = _library(features)
    beginning, digest_of_folder = features["prefix_on_disk"], ""
    if not tensors:
        own = _backbone_folder(spec, settings)
        tensors = {
            key.removeprefix(beginning): value for key, value in read_tensors(own.files, features["unused"]).items()
        }
        origin, digest_of_folder = own.folder, own.digest
    named = {beginning + key: value for key, value in tensors.items()}
    model = load_transformers(model_class, config, named, unused=(), folder=origin)
    return _patch_tokens(model, features, grid), digest_of_folder


def _library(features: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class of transformers that runs a backbone, and its configuration."""
    import transformers

    model_class = getattr(transformers, features["library"])
    return model_class, model_class.config_class(**features["config"])


def _patch_tokens(model: Any, features: Mapping[str, Any], grid: int) -> torch.nn.Module:
    """A backbone's patch tokens, without the head that pools them: files hold it, and it is never needed."""
    from lary.nets.lam import PatchTokens

    tower = getattr(model, "vision_model", model)
    if getattr(tower, "use_head", False):
        tower.use_head = False
        del tower.head
    registers = getattr(model.config, "num_register_tokens", 0) or 0
    return PatchTokens(model, features["leading"] + registers, grid)


def _drawn_transformers(features: Mapping[str, Any], grid: int, seed: int) -> torch.nn.Module:
    return _patch_tokens(draw_transformers(*_library(features), seed), features, grid)


def _drawn_magvit(features: Mapping[str, Any], grid: int, seed: int) -> torch.nn.Module:
    import torch

    from lary.nets.magvit import Tokenizer, TokenizerConfig

    with torch.device("meta"):
        tokenizer = Tokenizer(TokenizerConfig(**features["config"]))
    tokenizer.drop_unused()
    return draw(tokenizer, seed)


def _backbone_folder(spec: ModelSpec, settings: Mapping[str, str]) -> Source:
    """The backbone's own weights, for a file that holds none: where its variable says, in MODEL_DIR or on the hub."""
    record = replace(spec, name=f"{spec.name}, encoder of frames", weights=spec.backbone)
    return find_weights(record, ModelContext("cpu", "corrected", weights=locate_weights(record, dict(settings))))


def _from_magvit(
    spec: ModelSpec,
    features: Mapping[str, Any],
    tensors: Tensors,
    origin: Path,
    grid: int,
    settings: Mapping[str, str],
) -> tuple[torch.nn.Module, str]:
    """The encoder of Open-MAGVIT2, of the configuration that its variable names, or else the record's."""
    import torch

    from lary.nets.magvit import Tokenizer, TokenizerConfig

    described = settings.get(features["config_variable"])
    changes = _tokenizer_config(as_path(described)) if described else {}
    with configured_by(described or "the record", "Open-MAGVIT2 tokenizer"), torch.device("meta"):
        tokenizer = Tokenizer(TokenizerConfig(**{**features["config"], **changes}))
    digest_of_file = ""
    if not tensors:
        variable = spec.backbone.variable if spec.backbone else None
        named = settings.get(variable) if variable else None
        if not named or not as_path(named).is_file():
            reason = f"points to {named}, which is no file" if named else "is not set"
            raise UsageError(
                f"Weights of '{spec.name}': {origin} holds no tokenizer (keys {features['prefix']}*), and "
                f"{variable} {reason}. Set it to the tokenizer's own checkpoint."
            )
        origin = as_path(named)
        digest_of_file = sha256_of(origin)
        tensors = read_checkpoint(origin, replace(LAYOUT, unused=features["unused"]))
    fill(tokenizer, tensors, origin)
    tokenizer.drop_unused()
    return tokenizer, digest_of_file


TOKENIZER_FIELDS = ("z_channels", "ch", "ch_mult", "num_res_blocks", "in_channels", "out_ch")


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


def count_parameters(options: Mapping[str, Any]) -> int:
    """Parameters of the network that a record's options describe, decoder and encoder of frames included."""
    import torch

    from lary.nets.lam import LaqConfig, LatentActionModel
    from lary.nets.magvit import Tokenizer, TokenizerConfig

    features = options["features"] or {}
    with torch.device("meta"):
        parts: list[torch.nn.Module] = [LatentActionModel(LaqConfig(**options["network"]))]
        if "library" in features:
            model_class, config = _library(features)
            parts.append(model_class(config))
        elif features:
            parts.append(Tokenizer(TokenizerConfig(**features["config"])))
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


Loader = Callable[
    ["ModelSpec", Mapping[str, Any], Tensors, Path, int, Mapping[str, str]], "tuple[torch.nn.Module, str]"
]
LOADERS: dict[str, Loader] = {"transformers": _from_transformers, "open-magvit2": _from_magvit}
DRAWN: dict[str, Callable[[Mapping[str, Any], int, int], torch.nn.Module]] = {
    "transformers": _drawn_transformers,
    "open-magvit2": _drawn_magvit,
}
