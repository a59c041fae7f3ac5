"""UniVLA: latent actions between neighbouring frames, from the features of a DINOv2 with registers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.models.networks import NetworkEncoder, check_frames, draw_transformers, load_transformers, with_weights
from lary.models.preprocess import CUBIC_224_IMAGENET
from lary.models.spec import ModelContext, ModelSpec, Weights, register_model
from lary.models.tensors import Layout, Rules, cut_joint, read_tensors, rename_keys, split_off
from lary.models.weights import find_weights
from lary.types import Latents

if TYPE_CHECKING:
    import torch

WRAPPER = "lam."
"""Taken out of every key, wherever it is, as the published loader does."""
BACKBONE = "dino_encoder."
LAYOUT = Layout(
    files=("lam-stage-2.ckpt",),
    unused=("decoder.", "patch_up.", "action_up.", "action_up_uncontrol.", f"{BACKBONE}mask_token"),
    sections=("state_dict",),
    wrappers=(WRAPPER,),
)
"""Encoding needs neither the decoder nor what feeds it, nor the backbone's mask."""

UNIVLA = ModelSpec(
    name="univla",
    paradigm="embodied LAM",
    dim=128,
    weights=Weights(variable="UNIVLA_CKPT_PATH", folder="univla", hub="qwbu/univla-latent-action-model"),
    pair_shape=(4, 128),
    clip_shape=(8, 4, 128),
    grid=0,
    codebook=16,
    preprocess=CUBIC_224_IMAGENET,
    options={
        "network": {
            "in_dim": 3, "model_dim": 768, "latent_dim": 128, "num_latents": 16, "patch_size": 14,
            "enc_blocks": 12, "dec_blocks": 12, "num_heads": 12, "dropout": 0.0,
        },
        "backbone": {
            "img_size": 518, "patch_size": 14, "embed_dim": 768, "depth": 12, "num_heads": 12,
            "mlp_ratio": 4, "num_register_tokens": 4, "layerscale": True,
        },
    },
    notes=(
        "Tokens are rows of a codebook of 16: a pair has at most 16^4 different answers.",
        "The four uncontrollable latents of a transition are computed and left out, as published.",
        "The released file also holds the training decoder; parameters count it, it is neither read nor run.",
    ),
    parameters_m=287.75,
    licence="Apache-2.0",
    reference="Bu et al. 2025, arXiv 2505.06111",
    description=(
        "UniVLA latent action model on DINOv2 ViT-B/14 features: four task-centric codes per transition; parameters "
        "count the training decoder, which isn't loaded"
    ),
)  # fmt: skip


@register_model(UNIVLA)
class UniVLA(NetworkEncoder):
    """Codebook rows of the transitions between frames: N = 4 controllable latent actions.

    A pair gives tokens (B, 4, D) and codes (B, 4), a clip of T frames tokens (B, T - 1, 4, D) and codes
    (B, T - 1, 4). The backbone's weights come from the same file; each frame passes it once.

    Attributes:
        backbone: DINOv2 of transformers.
        network: the latent action network on its features.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import torch
        import transformers

        from lary.nets.univla import UniVLAConfig, UniVLANetwork

        config, backbone = UniVLAConfig(**spec.options["network"]), spec.options["backbone"]
        found = find_weights(spec, context, LAYOUT)
        with torch.device("meta"):
            network = UniVLANetwork(config)
        tensors = read_tensors(found.files, LAYOUT) if found.seed is None else {}
        inner = split_off(tensors, BACKBONE)
        self.network = with_weights(network, found, lambda: tensors, context.device)
        if found.seed is None:
            self.backbone = load_dinov2(backbone, inner, found.file)
        else:
            self.backbone = draw_transformers(
                transformers.Dinov2WithRegistersModel, backbone_config(backbone), found.seed
            )  # fmt: skip
        self.backbone.to(context.device)
        super().__init__(spec, context, found.identity, config.latent_dim)
        self._patch: int = backbone["patch_size"]
        self._leading: int = 1 + backbone["num_register_tokens"]

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, H, W), T at least 2, to tokens float32 and codes int64 on the encoder's device.

        Raises:
            LaryError: not clips, fewer than two frames, or a size that is no multiple of the backbone's patches.
        """
        check_frames(self._spec, clips, multiple=self._patch, least=2)
        tokens, codes = self.run_alone(clips)
        return Latents(tokens[:, 0], codes[:, 0]) if clips.shape[1] == 2 else Latents(tokens, codes)

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """Patch features (B, T, N, 768) of clips (B, T, 3, H, W), after the backbone's final norm."""
        hidden = self.backbone(pixel_values=clips.flatten(0, 1)).last_hidden_state
        features: torch.Tensor = hidden[:, self._leading :].unflatten(0, clips.shape[:2])
        return features

    def run(self, clips: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Clips (B, T, 3, H, W) to tokens (B, T - 1, 4, D) and codes (B, T - 1, 4)."""
        import torch

        features = self.features(clips)
        pairs = torch.stack([features[:, :-1], features[:, 1:]], dim=2)
        actions = self.network(pairs.flatten(0, 1))
        return tuple(part.unflatten(0, pairs.shape[:2]) for part in (actions.tokens, actions.codes))


BLOCK = r"blocks\.(\d+)"
BACKBONE_KEYS: Rules = (
    *((name, f"embeddings.{name}") for name in ("cls_token", "register_tokens")),
    ("pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    ("norm", "layernorm"),
    (rf"{BLOCK}\.attn\.(query|key|value)", r"encoder.layer.\1.attention.attention.\2"),
    (rf"{BLOCK}\.attn\.proj", r"encoder.layer.\1.attention.output.dense"),
    (rf"{BLOCK}\.ls(\d)\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (BLOCK, r"encoder.layer.\1"),
)
"""Keys of the backbone in its published code, its joint projections cut in three, and on disk in transformers."""


def backbone_config(config: Mapping[str, Any]) -> Any:
    """The configuration of transformers for a backbone in the words of DINOv2's published code."""
    import transformers

    return transformers.Dinov2WithRegistersConfig(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        hidden_size=config["embed_dim"],
        num_hidden_layers=config["depth"],
        num_attention_heads=config["num_heads"],
        mlp_ratio=int(config["mlp_ratio"]),
        num_register_tokens=config["num_register_tokens"],
    )


def load_dinov2(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], file: Path) -> torch.nn.Module:
    """The backbone as a transformers model with these tensors.

    Args:
        config: see `backbone_config`.
        tensors: by key without the backbone's prefix.

    Raises:
        LaryError: missing, unexpected or misshaped keys, under the names that transformers has for them.
    """
    import torch
    import transformers

    renamed = rename_keys(cut_joint(tensors), BACKBONE_KEYS)
    if not config["layerscale"]:
        ones = torch.ones(config["embed_dim"])
        for index in range(config["depth"]):
            renamed |= {f"encoder.layer.{index}.layer_scale{part}.lambda1": ones.clone() for part in (1, 2)}
    model_class = transformers.Dinov2WithRegistersModel
    return load_transformers(
        model_class, backbone_config(config), renamed, unused=("embeddings.mask_token",), folder=file
    )  # fmt: skip
