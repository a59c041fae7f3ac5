"""villa-X: latent actions between neighbouring frames, from an encoder that sees windows of up to `d_t` frames."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.files import digest, read_json
from lary.models.networks import NetworkEncoder, check_frames, with_weights
from lary.models.preprocess import VILLA_X_IMAGE, VILLA_X_PAPER_CLIP
from lary.models.spec import ModelContext, ModelSpec, Weights, register_model
from lary.models.tensors import Layout, read_tensors
from lary.models.weights import Checkpoint, find_weights
from lary.runtime import log
from lary.types import RANDOM, LaryError, Latents, as_path

if TYPE_CHECKING:
    import torch

    from lary.nets.villa import VillaConfig

CONFIG = "model_config.json"
ARCHITECTURE = "IgorModel"
"""What the configuration calls the network."""
HUB_FOLDER = "lam"
"""Where the hub's repository keeps these files; a copy of the whole repository is accepted, too."""
CONFIG_LAYOUT = Layout(files=(CONFIG, f"{HUB_FOLDER}/{CONFIG}"))
LAYOUT = Layout(files=("model.safetensors", "model.bin", "pytorch_model.bin"), unused=("decoder.",))
"""Encoding needs no decoder: its weights may be absent and aren't read."""
DERIVED = ("grid_size", "embed_tokens")
"""Fields that follow from others: the published loader overwrites them."""

VILLA_X = ModelSpec(
    name="villa-x",
    paradigm="embodied LAM",
    dim=32,
    weights=Weights(
        variable="VILLA_X_CKPT_PATH",
        folder="villa-x",
        hub="microsoft/villa-x",
        hint="VILLA_X_DIR, the checkout of its code, is accepted but holds no weights: they are in the folder lam/ of "
        "its hub repository.",
    ),
    pair_shape=(2, 32),
    clip_shape=(8, 2, 32),
    grid=0,
    codebook=32,
    preprocess=VILLA_X_IMAGE,
    preprocess_paper_clip=VILLA_X_PAPER_CLIP,
    options={"config": {"action_latent_dim": 32, "num_learned_tokens": 2, "decoder_depth": 12}},
    paper_differences=(
        "frames of clips are resized by torchvision (bilinear, antialiased), those of pairs by Pillow (Lanczos)",
        "a frame index beyond the end of a clip is an error of its sample instead of the last frame",
    ),
    notes=(
        "Tokens are rows of a codebook of 32: a pair has at most 32^2 different answers.",
        "Clips longer than the window of 8 frames are encoded in windows that slide by one frame.",
        "The released file also holds the training decoder; parameters count it, it is neither read nor run.",
    ),
    parameters_m=238.71,
    licence="MIT",
    reference="Chen et al. 2025, arXiv 2507.23682",
    description=(
        "villa-X latent action model: two codes per transition between neighbouring frames; parameters count the "
        "training decoder, which isn't loaded"
    ),
)


@register_model(VILLA_X)
class VillaX(NetworkEncoder):
    """Codebook rows of the transitions between frames: N learned tokens of width D, as the weights' config says.

    A pair gives tokens (B, N, D) and codes (B, N, 1), a clip of T frames tokens (B, T - 1, N, D) and codes
    (B, T - 1, N): the shapes that the benchmark stores.

    Attributes:
        network: the encoder and its codebook.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import torch

        from lary.nets.villa import VillaConfig, VillaNetwork

        described, found = find_parts(spec, context)
        config = read_villa_config(described.file) if found.seed is None else VillaConfig(**spec.options["config"])
        with torch.device("meta"):
            network = VillaNetwork(config)
        self.network = with_weights(network, found, lambda: read_tensors(found.files, LAYOUT), context.device)
        identity = found.identity
        if found.seed is None:
            identity = replace(identity, digest=digest(described.identity.digest, identity.digest))
        super().__init__(spec, context, identity, config.action_latent_dim)
        self._resolution = config.resolution
        self._preprocess = spec.preprocessing(context.protocol)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, H, W), T at least 2, to tokens float32 and codes int64 on the encoder's device.

        Raises:
            LaryError: not clips, or fewer than two frames.
        """
        check_frames(self._spec, clips, least=2)
        tokens, codes = self.run_alone(self.fitted(clips))
        if clips.shape[1] == 2:
            return Latents(tokens[:, 0], codes[:, 0, :, None])
        return Latents(tokens, codes)

    def run(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips (B, T, 3, H, W) to tokens (B, T - 1, N, D) and codes (B, T - 1, N)."""
        latents: tuple[torch.Tensor, torch.Tensor] = self.network(clips)
        return latents

    def fitted(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips in the resolution of the weights, resized as grey levels where they have another, as published."""
        import torch

        side = self._resolution
        if clips.shape[-2:] == (side, side):
            return clips
        record = self._preprocess
        mean, std = (torch.tensor(value, device=clips.device)[:, None, None] for value in (record.mean, record.std))
        levels = ((clips * std + mean) * record.scale).flatten(0, 1)
        levels = torch.nn.functional.interpolate(levels, (side, side), mode="bilinear", antialias=True)
        fitted = (levels.round().clamp(0, record.scale) / record.scale - mean) / std
        return fitted.reshape(*clips.shape[:3], side, side)


def find_parts(spec: ModelSpec, context: ModelContext) -> tuple[Checkpoint, Checkpoint]:
    """The configuration and the weights beside it.

    Raises:
        UsageError: one of them is not there, or the hub does not give it.
    """
    given = as_path(context.weights) if context.weights not in (None, RANDOM) else None
    if given is not None and given.is_file():
        given = given.parent
        context = replace(context, weights=str(given))
    config = find_weights(spec, context, CONFIG_LAYOUT)
    folder = config.file.parent
    if folder == given or folder.name == config.identity.revision:
        return config, find_weights(spec, context, LAYOUT)
    inner = replace(LAYOUT, files=tuple(f"{HUB_FOLDER}/{name}" for name in LAYOUT.files))
    return config, find_weights(spec, context, inner)


def read_villa_config(file: Path) -> VillaConfig:
    """The network's configuration, every field of it; fields that it does not have are named in the log.

    Raises:
        LaryError: not the configuration of this network, or values that make none.
    """
    from lary.nets.villa import VillaConfig

    content = read_json(file, "model configuration")
    values = content.get("config") if isinstance(content, dict) else None
    if not isinstance(values, dict) or content.get("architecture") != ARCHITECTURE:
        raise LaryError(f"{file} is not the configuration of a villa-X latent action model ({ARCHITECTURE}).")
    known = {field.name: field.default for field in fields(VillaConfig)}
    if unknown := sorted(values.keys() - known.keys() - set(DERIVED)):
        log.warning("%s has fields that the published loader ignores: %s", file, ", ".join(unknown))
    chosen = {name: value for name, value in values.items() if name in known}
    if unfit := [f"{name} {value!r}" for name, value in chosen.items() if not fits(value, known[name])]:
        raise LaryError(f"{file} has values that make no network: {', '.join(unfit)}.")
    config = VillaConfig(**chosen)
    for whole, part in config.multiples():
        if getattr(config, whole) % getattr(config, part):
            reason = f"{whole} {getattr(config, whole)} is no multiple of {part} {getattr(config, part)}"
            raise LaryError(f"{file} describes no network: {reason}.")
    return config


def fits(value: Any, default: Any) -> bool:
    """Whether a value is of the default's kind, and positive where it is a number."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool | None)
    if isinstance(default, (int, float)):
        return isinstance(value, int if isinstance(default, int) else (int, float)) and value > 0
    return True  # augmentation and choice of kernel, which encoding doesn't use
