"""Tiny networks of diffusers and transformers with whole checkpoints, decoder and predictor included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lary.models.autoencoders import flux_arguments, wan_arguments
from lary.models.spec import MODELS
from lary.models.vjepa import vjepa_arguments
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
        network: Any = transformers.VJEPA2Model(transformers.VJEPA2Config(**vjepa_arguments(**config), **sizes))
    elif name == "flux2":
        network = diffusers.AutoencoderKLFlux2(**flux_arguments(**config))
    else:
        options = MODELS.get(name).options
        constants = {constant: list(options[constant]) for constant in ("latents_mean", "latents_std")}
        network = diffusers.AutoencoderKLWan(**wan_arguments(**config), **constants)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.from_numpy(fill_tensor(key, tuple(value.shape)))
            value.copy_(1 + drawn if key.endswith("running_var") else drawn)
    return network.eval()


def save_tiny_network(folder: Path, name: str) -> Path:
    """Write a library's folder of the tiny network; returns it. The same name gives the same bytes."""
    tiny_network(name).save_pretrained(folder)
    return folder
