"""Tiny networks of diffusers and transformers with whole checkpoints, decoder and predictor included."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lary.models.released import flux_arguments
from lary.models.spec import MODELS, ModelSpec, library_fields
from tests.parity.fill import fill_tensor

TINY = {
    "wan2-2": {**MODELS.get("wan2-2").options["config"], "dim": 4, "dec_dim": 4},
    "flux2": {**MODELS.get("flux2").options["config"], "ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1},
    "vjepa2": {**MODELS.get("vjepa2").options["config"], "embed_dim": 24, "depth": 2, "num_heads": 2},
}
"""Configurations in the words of the published code; D is 48, 128 and 24."""


def tiny_network(name: str) -> Any:
    """The library's whole network of a model, its weights drawn from their names."""
    import diffusers
    import transformers

    config = TINY[name]
    if name == "vjepa2":
        sizes = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
        network: Any = transformers.VJEPA2Model(transformers.VJEPA2Config(**library_fields(config, "vjepa2"), **sizes))
    elif name == "flux2":
        network = diffusers.AutoencoderKLFlux2(**flux_arguments(**config))
    else:
        options = MODELS.get(name).options
        constants = {constant: list(options[constant]) for constant in ("latents_mean", "latents_std")}
        network = diffusers.AutoencoderKLWan(**library_fields(config, "wan2-2"), **constants)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.from_numpy(fill_tensor(key, tuple(value.shape)))
            value.copy_(1 + drawn if key.endswith("running_var") else drawn)
    return network.eval()


def save_tiny_network(folder: Path, name: str) -> Path:
    """Write a library's folder of the tiny network; returns it. The same name gives the same bytes."""
    tiny_network(name).save_pretrained(folder)
    return folder


VIT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
LAQ = {"dim": 24, "quant_dim": 8, "spatial_depth": 1, "temporal_depth": 1, "dim_head": 8, "heads": 2}
_UNIVLA = {
    "network": {"model_dim": 24, "latent_dim": 5, "enc_blocks": 1, "num_heads": 2},
    "backbone": {"depth": 1, "mlp_ratio": 1},
}
_VILLA = {"encoder_depth": 1, "encoder_embed_dim": 24, "encoder_n_heads": 2, "map_heads": 2, "action_latent_dim": 5}
PUBLISHED = [spec.name for spec in MODELS if spec.weights and not spec.weights.extra and not spec.ablation]
"""Keys of the thirteen models of the benchmark's table."""


def merged(record: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A record's options with some values changed, at any depth."""
    return {
        key: merged(value, changes[key]) if isinstance(changes.get(key), dict) else changes.get(key, value)
        for key, value in {**changes, **record}.items()
    }


def tiny_record(name: str) -> ModelSpec:
    """The record of a published model with a small network, for the record's own frames."""
    spec = MODELS.get(name)
    options = spec.options
    if "network" in options and "features" in options:
        config = {**VIT, "z_channels": 24, "ch": 32, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1}
        features = options["features"] or {}
        known = {key: value for key, value in config.items() if key in features.get("config", ())}
        changes: dict[str, Any] = {"network": LAQ, **({"features": {"config": known}} if features else {})}
    elif "accepts" in options:
        changes = {"config": VIT}
    elif name in TINY:
        changes = {"config": TINY[name]}
    else:
        changes = _UNIVLA if "backbone" in options else {"config": _VILLA}
    return replace(spec, options=merged(options, changes), dim=None)
