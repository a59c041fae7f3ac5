"""Latent action models of the LAQ family: LAPA on pixels, and the same on features of DINOv2, DINOv3, SigLIP 2 and
Open-MAGVIT2, with the ablations of the benchmark's paper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lary.files import digest
from lary.models.image import DINOV2_LARGE, DINOV2_WEIGHTS, DINOV3_LARGE, DINOV3_WEIGHTS, SIGLIP2_BASE, SIGLIP2_WEIGHTS
from lary.models.laq import LAYOUT, draw_network, load_network
from lary.models.networks import NetworkEncoder, check_frames
from lary.models.preprocess import CUBIC_224, CUBIC_224_SIGNED, neighbour_pairs
from lary.models.spec import MODELS, ModelContext, ModelSpec, Weights, register_model
from lary.models.tensors import read_tensors
from lary.models.weights import find_weights
from lary.nets import CODE_STACKS, code_rows, quantizer_parameters
from lary.types import Latents, UsageError

if TYPE_CHECKING:
    import torch

_SIZES = {
    "dim": 1024, "quant_dim": 32, "codebook_size": 8, "image_size": 224, "patch_size": 16, "spatial_depth": 4,
    "temporal_depth": 4, "dim_head": 64, "heads": 16, "code_seq_len": 16,
}  # fmt: skip
_NO_PLACES = 0
"""The quantizer re-reads its rows so that every token mixes entries of several positions."""
LATENTS = ("continuous", "quantized", "noisy")
"""What tokens can be made of: the latent, its codebook rows, or random draws around it."""
_NOISE = "noise substitution stays on: tokens are random draws around the continuous latent"
_ORDER = (
    "The network re-reads places over time, and the rows of its code, in another order than they were written: tokens "
    "mix places. The weights were trained so, and both protocols keep it."
)
_ONE_FILE = "The encoder of frames is in the file itself, under `{}`; where it isn't, its own weights are read."

LAPA = ModelSpec(
    name="lapa",
    paradigm="embodied LAM",
    dim=1024,
    pair_shape=(4, 1024),
    clip_shape=(8, 4, 1024),
    grid=_NO_PLACES,
    codebook=_SIZES["codebook_size"],
    preprocess=CUBIC_224,
    weights=Weights(folder="laq_openx.pt", hub="latent-action-pretraining/LAPA-7B-openx"),
    options={
        "network": {**_SIZES, "patch_size": 32, "spatial_depth": 8, "temporal_depth": 8, "code_seq_len": 4,
                    "patch_input": True, "pixel_output": True},
        "features": None,
        "latent": "continuous",
    },
    options_paper={"latent": "noisy"},
    paper_differences=(_NOISE,),
    notes=(_ORDER,
        "Patches of 32 pixels are embedded by the model itself; no other encoder of frames takes part.",),
    parameters_m=343.80,
    licence="MIT",
    reference="Ye et al. 2024, arXiv 2410.11758",
    description="LAPA's latent action quantizer, trained on Open X-Embodiment: 4 tokens per pair of frames",
)  # fmt: skip


def _on_features(name: str, features: dict[str, Any], *, dim: int = 1024, **fields: Any) -> ModelSpec:
    """A record of LAPA's quantizer on the features of another encoder of frames."""
    network = {**_SIZES, "dim": dim, **fields.pop("network", {})}
    notes = (_ORDER, _ONE_FILE.format(features["prefix"]), *fields.pop("notes", ()))
    return replace(
        LAPA, name=name, paradigm="general LAM", dim=dim, pair_shape=(16, dim), clip_shape=(8, 16, dim), notes=notes,
        options={"network": network, "features": features, "latent": "continuous"},
        reference="Nie et al. 2026, arXiv 2604.11689", **fields,
    )  # fmt: skip


DINOV2 = _on_features(
    "dinov2",
    {
        "kind": "transformers", "library": "Dinov2Model", "prefix": "dino_tokenizer.", "leading": 1, "unused": (),
        "prefix_on_disk": "", "config": DINOV2_LARGE,
    },
    network={"patch_size": 14},
    preprocess=CUBIC_224_SIGNED,
    weights=Weights(folder="laq_dinov2.pt"),
    backbone=DINOV2_WEIGHTS,
    parameters_m=473.69,
    licence="MIT; the backbone Apache-2.0",
    description="LAPA's quantizer on patch tokens of DINOv2 ViT-L/14: 16 tokens per pair of frames",
)  # fmt: skip

DINOV3 = _on_features(
    "dinov3",
    {
        "kind": "transformers", "library": "DINOv3ViTModel", "prefix": "dino_tokenizer.", "leading": 1, "unused": (),
        "prefix_on_disk": "", "config": DINOV3_LARGE,
    },
    preprocess=CUBIC_224_SIGNED,
    weights=Weights(folder="laq_dinov3.pt"),
    backbone=DINOV3_WEIGHTS,
    parameters_m=472.45,
    licence="MIT; the backbone DINOv3 License",
    description="LAPA's quantizer on patch tokens of DINOv3 ViT-L/16: 16 tokens per pair of frames",
)  # fmt: skip

SIGLIP2 = _on_features(
    "siglip2",
    {
        "kind": "transformers", "library": "SiglipVisionModel", "prefix": "encoder.vision_model.", "leading": 0,
        "unused": ("text_model.", "logit_scale", "logit_bias"), "prefix_on_disk": "vision_model.",
        "config": SIGLIP2_BASE,
    },
    dim=768,
    weights=Weights(folder="siglip2.pt"),
    backbone=SIGLIP2_WEIGHTS,
    parameters_m=200.83,
    licence="MIT; the backbone Apache-2.0",
    description="LAPA's quantizer on patch tokens of SigLIP 2 base: 16 tokens per pair of frames",
)  # fmt: skip

MAGVIT2 = _on_features(
    "magvit2",
    {
        "kind": "open-magvit2", "prefix": "magvit2_tokenizer.", "config_variable": "MAGVIT2_CONFIG_PATH",
        "unused": ("loss.",),
        "config": {
            "z_channels": 18, "ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 4, "in_channels": 3, "out_ch": 3,
            "model_type": "en18", "use_ema": True,
        },
    },
    dim=18,
    network={"pixel_output": True},
    weights=Weights(folder="magvit2.pt"),
    backbone=Weights(
        variable="MAGVIT2_TOKENIZER_PATH",
        hint="MAGVIT2_CONFIG_PATH names its configuration, where that is not the released one of 18 bits.",
    ),
    notes=(
        "MAGVIT2_CONFIG_PATH may name the tokenizer's configuration; unset, it is the released one of 18 bits.",
        "The encoder's raw weights run, not their running averages, which the file holds too.",
    ),
    parameters_m=116.40,
    licence="MIT; the tokenizer Apache-2.0",
    description="LAPA's quantizer on the continuous map of Open-MAGVIT2's encoder: 16 tokens per pair of frames",
)  # fmt: skip


def _quantizer(network: Mapping[str, Any]) -> int:
    """Parameters of the quantizer, the one part of the network that ablations vary."""
    names = ("dim", "quant_dim", "codebook_size", "code_seq_len")
    return quantizer_parameters(**{name: network[name] for name in names})


_DINOV3_BUT_QUANTIZER = 472_454_512 - _quantizer(DINOV3.options["network"])
ABLATION = re.compile(r"dinov3-(cs(\d+)_sl(\d+)_dim(\d+)_lr([0-9.]+[eE][-+]?[0-9]+))")
"""Codebook size, code length, width of a code, learning rate (it names the file and nothing else)."""
PUBLISHED_ABLATIONS = tuple(
    f"dinov3-cs{codebook}_sl{length}_dim{width}_lr1e-4"
    for codebook, length, width in (
        (8, 49, 256), (64, 49, 256), (256, 49, 256), (64, 16, 256), (64, 64, 256), (64, 49, 32), (64, 49, 64),
        (64, 49, 512), (64, 49, 1024),
    )
)  # fmt: skip
"""The settings of the paper's ablations."""


def ablation(name: str) -> ModelSpec | None:
    """The record of an ablation model, made from its name; None for a name of another form.

    Raises:
        UsageError: no convolutions make a code of this length.
    """
    match = ABLATION.fullmatch(name)
    if match is None:
        return None
    codebook, length, width = (int(match[group]) for group in (2, 3, 4))
    network = {**_SIZES, "codebook_size": codebook, "code_seq_len": length, "quant_dim": width}
    rows = code_rows(length, _SIZES["image_size"] // _SIZES["patch_size"])
    if not rows:
        raise UsageError(f"Model '{name}': no code has length {length}; there is {', '.join(map(str, CODE_STACKS))}.")
    return replace(
        DINOV3,
        name=name,
        pair_shape=(rows, 1024),
        clip_shape=(8, rows, 1024),
        weights=Weights(folder=f"dinov3_{match[1]}.pt"),
        options={**DINOV3.options, "network": network},
        parameters_m=round((_DINOV3_BUT_QUANTIZER + _quantizer(network)) / 1e6, 2),
        codebook=codebook,
        ablation={
            "codebook size": codebook, "sequence length": length, "latent dimension": width,
            "learning rate": float(match[5]),
        },
        description=f"Ablation of dinov3: {codebook} codes of width {width}, code length {length}",
    )  # fmt: skip


@register_model(LAPA, DINOV2, DINOV3, SIGLIP2, MAGVIT2, *filter(None, map(ablation, PUBLISHED_ABLATIONS)))
class LatentActions(NetworkEncoder):
    """What changed between neighbouring frames: tokens (B, N, D) of a pair, (B, P, N, D) of a clip, P = T - 1.

    Codes have the same axes without D, int64. The record's option ``latent`` says what the tokens are made of:
    ``continuous``, the latent as it is; ``quantized``, its codebook rows; ``noisy``, the latent moved by its
    quantization error in a random direction, as the published code stores it. The direction is drawn from the
    context's seed and the frames of the sample, so it doesn't depend on the batch or on the order of samples.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        options = spec.options_under(context.protocol)
        if options["latent"] not in LATENTS:
            raise UsageError(f"Latent '{options['latent']}' of '{spec.name}': there is {', '.join(LATENTS)}.")
        layout = replace(LAYOUT, files=(spec.weights.folder,)) if spec.weights and spec.weights.folder else LAYOUT
        found = find_weights(spec, context, layout)
        identity = found.identity
        if found.seed is None:
            network, features = load_network(
                spec, options, read_tensors(found.files, LAYOUT), found.file, context.settings
            )
            identity = replace(identity, digest=digest(identity.digest, features))
        else:
            network = draw_network(spec, options, found.seed)
        super().__init__(spec, context, identity, network.config.dim)
        self._network = network.to(context.device)
        self._latent: str = options["latent"]
        self._seed = context.seed
        self._size = spec.preprocessing(context.protocol).size

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, H, W) to latents, float32, on the encoder's device.

        Raises:
            LaryError: the frames have another size than the record's, or there is only one.
        """
        check_frames(self._spec, clips, side=self._size, least=2)
        tokens, codes = self.run_alone(clips)
        if clips.shape[1] == 2:  # a pair has no axis of latent steps
            tokens, codes = tokens.squeeze(1), codes.squeeze(1)
        return Latents(tokens, codes)

    def run(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips (B, T, 3, H, W) to tokens (B, P, N, D) and codes (B, P, N)."""
        batch, frames = clips.shape[:2]
        network = self._network
        embedded = network.embed(clips.flatten(0, 1))
        embedded = embedded.reshape(batch, frames, *embedded.shape[1:])
        latent = network.latent(neighbour_pairs(embedded).flatten(0, 1))
        codes = network.vq.codes(latent)
        rows = latent
        if self._latent == "quantized":
            rows = network.vq.quantized(codes)
        elif self._latent == "noisy":
            rows = network.vq.with_noise(latent, codes, self._draw(clips, latent))
        tokens = network.vq.tokens(rows)
        return tokens.reshape(batch, -1, *tokens.shape[1:]), codes.reshape(batch, -1, *codes.shape[1:])

    def _draw(self, clips: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Standard-normal values like `latent` (B * P, N, Q), for each sample from the seed and its own frames."""
        import torch

        steps = len(latent) // len(clips)
        draws = []
        for clip in clips.detach()[..., ::7, ::7].cpu().contiguous():  # a part of the pixels tells samples apart
            seed = int(digest(str(self._seed), clip.numpy().tobytes()), 16) % 2**63
            draws.append(torch.randn(steps, *latent.shape[1:], generator=torch.Generator().manual_seed(seed)))
        return torch.cat(draws).to(latent)


def _any_ablation(name: str) -> ModelSpec | None:
    record = ablation(name)
    return replace(record, factory=LatentActions) if record else None


MODELS.add_family(_any_ablation)
