"""Latent action models of the LAQ family, and the ablations of the paper.

One file holds the latent action model and mostly the
encoder of frames, which else has a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.files import digest, file_digest, read_yaml
from lary.models.networks import NetworkEncoder, built_from, check_frames, transformers_model, with_weights
from lary.models.preprocess import neighbour_pairs
from lary.models.spec import (
    MODELS,
    ModelContext,
    ModelSpec,
    Weights,
    builtin,
    builtin_tables,
    locate_weights,
    register_model,
)
from lary.models.tensors import Layout, Tensors, read_tensors, split_off, weight_layout
from lary.models.weights import Checkpoint, find_weights
from lary.nets import CODE_STACKS, code_rows, each_frame, quantizer_parameters
from lary.types import JsonDict, Latents, UsageError, WeightsIdentity, as_path

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lary.nets.lam import LatentActionModel

Options = Mapping[str, Any]
LATENTS = ("continuous", "quantized", "noisy")
"""What tokens are: the latent, its codebook rows, or draws around it."""
DECODER = {"dec_spatial_transformer.", "to_pixels_first_frame."}
TOKENIZER_FIELDS = ("z_channels", "ch", "ch_mult", "num_res_blocks", "in_channels", "out_ch")
ABLATION = re.compile(r"dinov3-(cs(\d+)_sl(\d+)_dim(\d+)_lr([0-9.]+[eE][-+]?[0-9]+))")
"""Codebook size, code length, width of a code, learning rate (in the file's name alone)."""


def ablation(name: str) -> ModelSpec | None:
    """The record of an ablation by its name, or None. Raises UsageError."""
    match = ABLATION.fullmatch(name)
    if not match:
        return None
    base = builtin("dinov3")
    codebook, length, width = (int(match[group]) for group in (2, 3, 4))
    sizes = base.options["network"]
    network = {**sizes, "codebook_size": codebook, "code_seq_len": length, "quant_dim": width}
    rows = code_rows(length, sizes["image_size"] // sizes["patch_size"])
    if not rows:
        raise UsageError(f"Model '{name}': no code has length {length}; there is {', '.join(map(str, CODE_STACKS))}.")
    # Ablations vary the quantizer alone; the number is dinov3's in the paper.
    parameters = 472_454_512 - quantizer_parameters(sizes) + quantizer_parameters(network)
    return replace(
        base,
        name=name,
        pair_shape=(rows, 1024),
        clip_shape=(8, rows, 1024),
        weights=Weights(folder=f"dinov3_{match[1]}.pt"),
        options={**base.options, "network": network},
        parameters_m=round(parameters / 1e6, 2),
        codebook=codebook,
        ablation={
            "codebook size": codebook,
            "sequence length": length,
            "latent dimension": width,
            "learning rate": float(match[5]),
        },
        factory=LatentActions,
        description=f"Ablation of dinov3: {codebook} codes of width {width}, code length {length}",
    )


@register_model(*map(builtin, ("lapa", "dinov2", "dinov3", "siglip2", "magvit2")))
class LatentActions(NetworkEncoder):
    """What changed between neighbouring frames, in P = T - 1 latent steps.

    A pair has tokens (B, N, D), a clip (B, P, N, D); codes lack D. By the
    option ``latent``, tokens are the ``continuous`` latent; ``quantized``,
    its codebook rows; ``noisy``, moved by the quantization error in a
    random direction, as published, by the seed and the sample's frames.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        options = spec.options_under(context.protocol)
        self._latent = options["latent"]
        if self._latent not in LATENTS:
            raise UsageError(f"Latent '{self._latent}' of '{spec.name}': there is {', '.join(LATENTS)}.")
        network, identity = self.open(spec, context)
        super().__init__(spec, context, identity, network.dim)
        self._network = network.to(context.device)
        self._seed = context.seed
        self._size = spec.preprocessing(context.protocol).size

    @staticmethod
    def open(spec: ModelSpec, context: ModelContext, kind: Any = None) -> tuple[Any, WeightsIdentity]:
        """The network on the CPU, of a `kind` with its decoder, and its weights' name."""
        layout = weight_layout("laq")
        if spec.weights and spec.weights.folder:
            layout = replace(layout, files=(spec.weights.folder,))
        found = find_weights(spec, context, layout)
        if kind:
            layout = replace(layout, unused=tuple(set(layout.unused) - DECODER))
        tensors = read_tensors(found.files, layout) if found.seed is None else {}
        options = spec.options_under(context.protocol)
        network, features = load_network(spec, options, found, tensors, context.settings, kind)
        identity = found.identity
        if found.seed is None:
            identity = replace(identity, digest=digest(identity.digest, features))
        return network, identity

    def encode(self, clips: Tensor) -> Latents:
        check_frames(self._spec, clips, side=self._size, least=2)
        return self.encode_steps(clips)

    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        network = self._network
        latent = network.latent(neighbour_pairs(self.embed(clips)).flatten(0, 1))
        codes = network.vq.codes(latent)
        rows = latent
        if self._latent == "quantized":
            rows = network.vq.quantized(codes)
        elif self._latent == "noisy":
            rows = network.vq.with_noise(latent, codes, self._draw(clips, latent))
        steps = (len(clips), -1)
        return network.vq.tokens(rows).unflatten(0, steps), codes.unflatten(0, steps)

    def embed(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H', W') to embedded frames (B, T, H, W, D)."""
        return each_frame(self._network.embed, clips)

    def _draw(self, clips: Tensor, latent: Tensor) -> Tensor:
        """Normal values like `latent` (B * P, N, Q), from seed and own frames."""
        import torch

        like = latent.unflatten(0, (len(clips), -1))[0]
        draws = []
        for clip in clips.detach()[..., ::7, ::7].cpu().contiguous():  # enough to tell samples apart
            seed = int(digest(str(self._seed), clip.numpy().tobytes()), 16) % 2**63
            draws.append(torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)))
        return torch.cat(draws).to(latent)


for record in filter(None, map(ablation, builtin_tables()["ablations"])):
    MODELS.add(record)
MODELS.add_family(ablation)


def load_network(
    spec: ModelSpec, options: Options, found: Checkpoint, tensors: Tensors, settings: Options, kind: Any = None
) -> tuple[LatentActionModel, str]:
    """The network of a record's options, with exactly these weights, or random ones.

    The encoder of frames is in `tensors` too, or else in its own file, which
    `settings` name and whose digest is returned. Raises LaryError, UsageError.
    """
    import torch

    from lary.nets.lam import LatentActionModel

    try:
        with torch.device("meta"):
            network = (kind or LatentActionModel)(**options["network"])
    except (TypeError, ValueError) as error:
        raise UsageError(f"Model '{spec.name}' can't be built: {error}.") from error
    features, own = options["features"], ""
    rest = dict(tensors)
    inside = split_off(rest, features["prefix"]) if features else {}
    # Still without the encoder of frames: other keys have to fit exactly.
    with_weights(network, found, lambda: rest, "cpu")
    if features:
        network.features, own = load_features(spec, features, found, inside, settings, network.grid)
    return network.eval(), own


def load_features(
    spec: ModelSpec, features: Options, found: Checkpoint, inside: Tensors, settings: Options, grid: int
) -> tuple[nn.Module, str]:
    """The encoder of frames, by tensors `inside` or its own file, as `load_network`."""
    if "library" not in features:
        return _load_tokenizer(spec, features, found, inside, settings)
    import transformers

    from lary.nets.lam import PatchTokens

    prefix, own = features["prefix_on_disk"], ""
    if not inside and found.seed is None:
        record = replace(spec, name=f"{spec.name}, encoder of frames", weights=spec.backbone)
        found = find_weights(record, ModelContext("cpu", "corrected", locate_weights(record, settings)))
        inside = read_tensors(found.files, Layout(unused=tuple(features["unused"])))
        own = found.identity.digest
    # Files of the tower or the model alone lack the prefix.
    named = {prefix + key.removeprefix(prefix): value for key, value in inside.items()}
    model_class = getattr(transformers, features["library"])
    config = model_class.config_class(**features["config"])
    model = transformers_model(model_class, config, found, lambda: named, "cpu")
    tower = getattr(model, "vision_model", model)
    if getattr(tower, "use_head", False):  # a pooling head
        tower.use_head = False
    registers = getattr(model.config, "num_register_tokens", 0) or 0
    return PatchTokens(model, features["leading"] + registers, grid), own


def _load_tokenizer(
    spec: ModelSpec, features: Options, found: Checkpoint, tensors: Tensors, settings: Options
) -> tuple[Any, str]:
    """The encoder of Open-MAGVIT2, and the digest of its own file, if any.

    Its variable names its configuration; else it is the record's.
    """
    from lary.nets.lam import Tokenizer

    drawn = found.seed is not None
    described, own = None if drawn else settings.get(features["config_variable"]), ""
    changes = read_tokenizer_config(as_path(described)) if described else {}
    with built_from(described or "the record", "Open-MAGVIT2 tokenizer"):
        tokenizer = Tokenizer(**{**features["config"], **changes})
    if not tensors and not drawn:
        variable = (spec.backbone or Weights()).variable or ""
        named = settings.get(variable)
        if not named or not as_path(named).is_file():
            reason = f"points to {named}, which is no file" if named else "is not set"
            raise UsageError(
                f"Weights of '{spec.name}': {found.file} holds no tokenizer (keys {features['prefix']}*), and "
                f"{variable} {reason}. Set it to the tokenizer's own checkpoint, and {features['config_variable']} to "
                "its configuration, if that is not the released one of 18 bits."
            )
        file = as_path(named)
        own = file_digest(file, 64)
        found = Checkpoint((file,), None, WeightsIdentity(own))
        tensors = read_tensors(found.files, weight_layout("open-magvit2"))
    return with_weights(tokenizer, found, lambda: tensors, "cpu"), own


def read_tokenizer_config(file: Path) -> JsonDict:
    """Fields of ``ddconfig`` in a published configuration. Raises UsageError."""
    content: Any = read_yaml(file, "tokenizer configuration")
    for name in ("model", "init_args", "ddconfig"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or any(name not in content for name in TOKENIZER_FIELDS):
        raise UsageError(f"The tokenizer configuration {file} has no ddconfig with {', '.join(TOKENIZER_FIELDS)}.")
    return {name: content[name] for name in TOKENIZER_FIELDS}
