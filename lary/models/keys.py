"""Key names of originally released files, and the names under which the libraries' classes hold the same tensors.

A table is a list of rules: a pattern for the beginning of a key, and what takes its place. The rest of the key stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Rules = tuple[tuple[str, str], ...]


def _residual(source: str, target: str) -> Rules:
    """A residual block of Wan: its layers are numbered in the released file and named in diffusers."""
    layers = {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}
    return tuple((rf"{source}\.residual\.{number}", f"{target}.{name}") for number, name in layers.items())


_WAN_INNER = r"encoder\.downsamples\.(\d+)\.downsamples\.(\d+)"

WAN_KEYS: Rules = (
    (r"encoder\.conv1", "encoder.conv_in"),
    *_residual(_WAN_INNER, r"encoder.down_blocks.\1.resnets.\2"),
    (rf"{_WAN_INNER}\.shortcut", r"encoder.down_blocks.\1.resnets.\2.conv_shortcut"),
    (rf"{_WAN_INNER}\.(resample\.1|time_conv)", r"encoder.down_blocks.\1.downsampler.\3"),
    *_residual(r"encoder\.middle\.0", "encoder.mid_block.resnets.0"),
    *_residual(r"encoder\.middle\.2", "encoder.mid_block.resnets.1"),
    (r"encoder\.middle\.1\.(norm|to_qkv|proj)", r"encoder.mid_block.attentions.0.\1"),
    (r"encoder\.head\.0", "encoder.norm_out"),
    (r"encoder\.head\.2", "encoder.conv_out"),
    (r"conv1", "quant_conv"),
)
"""``Wan2.2_VAE.pth`` to diffusers' AutoencoderKLWan, encoder only."""

_FLUX_BLOCK = r"encoder\.down\.(\d+)\.block\.(\d+)"
_FLUX_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

FLUX_KEYS: Rules = (
    (r"encoder\.(conv_in|conv_out)", r"encoder.\1"),
    (r"encoder\.norm_out", "encoder.conv_norm_out"),
    (r"encoder\.quant_conv", "quant_conv"),
    (rf"{_FLUX_BLOCK}\.(norm1|conv1|norm2|conv2)", r"encoder.down_blocks.\1.resnets.\2.\3"),
    (rf"{_FLUX_BLOCK}\.nin_shortcut", r"encoder.down_blocks.\1.resnets.\2.conv_shortcut"),
    (r"encoder\.down\.(\d+)\.downsample\.conv", r"encoder.down_blocks.\1.downsamplers.0.conv"),
    (r"encoder\.mid\.block_1", "encoder.mid_block.resnets.0"),
    (r"encoder\.mid\.block_2", "encoder.mid_block.resnets.1"),
    *(
        (rf"encoder\.mid\.attn_1\.{source}", f"encoder.mid_block.attentions.0.{target}")
        for source, target in _FLUX_ATTENTION.items()
    ),
    (r"bn", "bn"),
)
"""``ae.safetensors`` of FLUX.2 to diffusers' AutoencoderKLFlux2, encoder only."""

_VJEPA_BLOCK = r"blocks\.(\d+)"

VJEPA_KEYS: Rules = (
    (r"patch_embed\.proj", "encoder.embeddings.patch_embeddings.proj"),
    (rf"{_VJEPA_BLOCK}\.(norm1|norm2|mlp\.fc1|mlp\.fc2)", r"encoder.layer.\1.\2"),
    (rf"{_VJEPA_BLOCK}\.attn\.(query|key|value|proj)", r"encoder.layer.\1.attention.\2"),
    (r"norm", "encoder.layernorm"),
)
"""``target_encoder`` of V-JEPA 2, its joint projections cut in three, to transformers' VJEPA2Model."""


def rename(key: str, rules: Rules) -> str:
    """The key's name in the library; a key that no rule knows stays, marked so that it fits nothing."""
    for source, target in rules:
        match = re.match(rf"{source}\.", key)
        if match:
            return match.expand(target) + key[match.end() - 1 :]
    return f"{key} (unknown)"


def rename_keys(tensors: Mapping[str, torch.Tensor], rules: Rules) -> dict[str, torch.Tensor]:
    """The same tensors under the library's names."""
    return {rename(key, rules): value for key, value in tensors.items()}


def cut_joint(tensors: Mapping[str, torch.Tensor], joint: str, parts: Iterable[str]) -> dict[str, torch.Tensor]:
    """Cut each tensor whose key holds the component `joint` into equal runs of rows, one per name of `parts`."""
    names = tuple(parts)
    out: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        components = key.split(".")
        if joint not in components or value.shape[0] % len(names):
            out[key] = value
            continue
        for name, rows in zip(names, value.chunk(len(names)), strict=True):
            out[".".join(name if component == joint else component for component in components)] = rows
    return out
