"""UniVLA and villa-X: codebook rows for pairs of neighbouring frames.

UniVLA takes the features of a DINOv2, villa-X sees windows of up to `d_t`
frames.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.files import digest, read_json
from lary.models.networks import NetworkEncoder, built_from, check_frames, transformers_model, with_weights
from lary.models.preprocess import neighbour_pairs
from lary.models.spec import ModelContext, ModelSpec, builtin, library_fields, register_model
from lary.models.tensors import first_names, read_tensors, rename_keys, split_off, weight_layout
from lary.models.weights import Checkpoint, find_weights
from lary.runtime import log
from lary.types import RANDOM, LaryError, Latents, as_path

if TYPE_CHECKING:
    from torch import Tensor

    from lary.nets.spacetime import VillaConfig

BACKBONE = "dino_encoder."
"""Prefix of the backbone's keys in UniVLA's file."""
ARCHITECTURE = "IgorModel"
"""Name of the network in villa-X's configuration."""
HUB_FOLDER = "lam"
"""Folder of villa-X in its hub repository, of which a whole copy will do."""
DERIVED = {"grid_size", "embed_tokens"}
"""Fields that follow from others: the published loader overwrites them."""
MULTIPLES = {
    "patch_size": "resolution",
    "encoder_n_heads": "encoder_embed_dim",
    "map_heads": "encoder_embed_dim",
    "decoder_n_heads": "decoder_embed_dim",
}
"""Fields of villa-X, and those which are multiples of them."""


@register_model(builtin("univla"))
class UniVLA(NetworkEncoder):
    """Codebook rows of transitions between frames: N = 4 controllable actions.

    A pair gives tokens (B, 4, D) and codes (B, 4), T frames give
    tokens (B, T - 1, 4, D) and codes (B, T - 1, 4). The weights of
    `backbone`, a DINOv2, are in the same file as those of `network`.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import transformers

        from lary.nets.spacetime import UniVLANetwork

        sizes, backbone = spec.options["network"], spec.options["backbone"]
        layout = weight_layout("univla")
        found = find_weights(spec, context, layout)
        with built_from("the record", "UniVLA"):
            network = UniVLANetwork(**sizes)
        tensors = read_tensors(found.files, layout) if found.seed is None else {}
        inner = rename_keys(split_off(tensors, BACKBONE), "dinov2")
        self.network = with_weights(network, found, lambda: tensors, context.device)
        config = transformers.Dinov2WithRegistersConfig(**library_fields(backbone, "dinov2"))
        model_class, unused = transformers.Dinov2WithRegistersModel, ("embeddings.mask_token",)
        self.backbone = transformers_model(model_class, config, found, lambda: inner, context.device, unused)
        super().__init__(spec, context, found.identity, sizes["latent_dim"])
        self._patch = backbone["patch_size"]
        self._leading = 1 + backbone["num_register_tokens"]

    def encode(self, clips: Tensor) -> Latents:
        check_frames(self._spec, clips, multiple=self._patch, least=2)
        return self.encode_steps(clips)

    def features(self, clips: Tensor) -> Tensor:
        """Patch features (B, T, N, 768) of clips, after the backbone's final norm."""
        hidden = self.backbone(pixel_values=clips.flatten(0, 1)).last_hidden_state
        return hidden[:, self._leading :].unflatten(0, clips.shape[:2])

    def run(self, clips: Tensor) -> tuple[Tensor, ...]:
        # With a last axis for `neighbour_pairs`, which expects images.
        pairs = neighbour_pairs(self.features(clips)[..., None]).squeeze(-1)
        return tuple(part.unflatten(0, pairs.shape[:2]) for part in self.network(pairs.flatten(0, 1)))


@register_model(builtin("villa-x"))
class VillaX(NetworkEncoder):
    """Codebook rows of transitions between frames: N tokens of width D.

    The weights' configuration decides N and D. As the benchmark
    stores it, a pair gives tokens (B, N, D) and codes (B, N, 1),
    T frames tokens (B, T - 1, N, D) and codes (B, T - 1, N).
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        from lary.nets.spacetime import VillaConfig, VillaNetwork

        described, found = find_parts(spec, context)
        config = read_villa_config(described.file) if found.seed is None else VillaConfig(**spec.options["config"])
        with built_from(described.file, "villa-X"):
            network = VillaNetwork(config)
        self.network = with_weights(
            network, found, lambda: read_tensors(found.files, weight_layout("villa-x")), context.device
        )
        identity = found.identity
        if found.seed is None:
            identity = replace(identity, digest=digest(described.identity.digest, identity.digest))
        super().__init__(spec, context, identity, config.action_latent_dim)
        self._resolution = config.resolution
        self._preprocess = spec.preprocessing(context.protocol)

    def encode(self, clips: Tensor) -> Latents:
        check_frames(self._spec, clips, least=2)
        latents: Any = self.encode_steps(self.fitted(clips))
        return Latents(latents.tokens, latents.codes[..., None]) if clips.shape[1] == 2 else latents

    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(clips)

    def fitted(self, clips: Tensor) -> Tensor:
        """Clips in the weights' resolution, resized as grey levels, as published.

        Levels are whole before, too: resizing often ends halfway between two.
        """
        import torch

        side = self._resolution
        if clips.shape[-2:] == (side, side):
            return clips
        record = self._preprocess
        mean, std = (torch.tensor(value, device=clips.device)[:, None, None] for value in (record.mean, record.std))
        levels = ((clips * std + mean) * record.scale).round().flatten(0, 1)
        levels = torch.nn.functional.interpolate(levels, (side, side), mode="bilinear", antialias=True)
        fitted = (levels.round().clamp(0, record.scale) / record.scale - mean) / std
        return fitted.reshape(*clips.shape[:3], side, side)


def find_parts(spec: ModelSpec, context: ModelContext) -> tuple[Checkpoint, Checkpoint]:
    """The configuration of villa-X and the weights beside it. Raises UsageError."""
    given = as_path(context.weights) if context.weights not in (None, RANDOM) else None
    if given and given.is_file():
        given = given.parent
        context = replace(context, weights=str(given))
    config = find_weights(spec, context, weight_layout("villa-x configuration"))
    folder = config.file.parent
    layout = weight_layout("villa-x")
    # Found in `HUB_FOLDER`, below the given folder or the hub's repository.
    if folder != given and folder.name != config.identity.revision:
        layout = replace(layout, files=tuple(f"{HUB_FOLDER}/{name}" for name in layout.files))
    return config, find_weights(spec, context, layout)


def read_villa_config(file: Path) -> VillaConfig:
    """The configuration of villa-X; unknown fields are named in the log.

    Raises LaryError.
    """
    from pydantic import ValidationError

    from lary.nets.spacetime import VillaConfig

    content = read_json(file, "model configuration")
    values = content.get("config") if isinstance(content, dict) else None
    if not isinstance(values, dict) or content.get("architecture") != ARCHITECTURE:
        raise LaryError(f"{file} is not the configuration of a villa-X latent action model ({ARCHITECTURE}).")
    try:
        config = VillaConfig.model_validate(values)
    except ValidationError as error:
        wrong = first_names(f"{each['loc'][0]} {each['input']!r:.40}" for each in error.errors())
        raise LaryError(f"{file} has values that make no network: {wrong}.") from error
    if unknown := sorted((config.model_extra or {}).keys() - DERIVED):
        log.warning("%s has fields that the published loader ignores: %s", file, ", ".join(unknown))
    for part, whole in MULTIPLES.items():
        width, divisor = getattr(config, whole), getattr(config, part)
        if width % divisor:
            raise LaryError(f"{file} describes no network: {whole} {width} is no multiple of {part} {divisor}.")
    return config
