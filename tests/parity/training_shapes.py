"""Keys and shapes of the published files that training needs and encoding does not."""

from __future__ import annotations

from typing import Any

from lary.nets.spacetime import COLOURS, FEATURES, VillaConfig

Shapes = dict[str, tuple[int, ...]]


def linear_shapes(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    """Keys and shapes of a linear layer."""
    weight: Shapes = {f"{name}.weight": (outputs, inputs)}
    return {**weight, f"{name}.bias": (outputs,)} if bias else weight


def norm_shapes(name: str, dim: int) -> Shapes:
    """Keys and shapes of a layer norm."""
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def univla_training_shapes(config: dict[str, Any]) -> Shapes:
    """Keys and shapes of the published file that training needs and encoding does not: the decoder and its inputs."""
    dim = config["model_dim"]
    shapes = linear_shapes("patch_up", dim, FEATURES)
    for name in ("action_up", "action_up_uncontrol"):
        shapes |= linear_shapes(name, dim, config["latent_dim"])
    shapes |= norm_shapes("decoder.ffn.0", dim) | linear_shapes("decoder.ffn.1", dim, dim)
    shapes |= norm_shapes("decoder.ffn.2", dim) | linear_shapes("decoder.out", FEATURES, dim)
    for index in range(config["dec_blocks"]):
        block = f"decoder.transformer_blocks.{index}"
        for name in ("to_q", "to_k", "to_v"):
            shapes |= linear_shapes(f"{block}.spatial_attn.{name}", dim, dim, bias=False)
        shapes |= linear_shapes(f"{block}.spatial_attn.to_out.0", dim, dim)
        shapes |= linear_shapes(f"{block}.ffn.0", 4 * dim, dim) | linear_shapes(f"{block}.ffn.3", dim, 4 * dim)
        shapes |= norm_shapes(f"{block}.norm1", dim) | norm_shapes(f"{block}.norm2", dim)
    return shapes


def villa_training_shapes(config: VillaConfig) -> Shapes:
    """Keys and shapes of the published file that training needs and encoding does not: the decoder."""
    dim, hidden = config.decoder_embed_dim, int(config.mlp_ratio * config.decoder_embed_dim)
    shapes: Shapes = {
        "decoder.pe": (1, config.embed_tokens, dim),
        "decoder.embed.proj.weight": (dim, COLOURS, config.patch_size, config.patch_size),
        "decoder.embed.proj.bias": (dim,),
        "decoder.norm.g": (dim,),
    }
    shapes |= linear_shapes("decoder.action_embed", dim, config.action_latent_dim * config.num_learned_tokens)
    shapes |= linear_shapes("decoder.pred_head", config.patch_size**2 * config.in_channels, dim)
    for index in range(config.decoder_depth):
        block = f"decoder.layers.{index}"
        shapes |= {f"{block}.pre_norm_{part}.g": (dim,) for part in ("attn", "mlp")}
        shapes |= {f"{block}.layer_scale_{part}.gamma": (dim,) for part in ("attn", "mlp")}
        shapes |= linear_shapes(f"{block}.attn.kv", 2 * dim, dim) | linear_shapes(f"{block}.attn.q", dim, dim)
        shapes |= linear_shapes(f"{block}.attn.proj", dim, dim)
        if config.use_qk_norm:
            head = dim // config.decoder_n_heads
            shapes |= norm_shapes(f"{block}.attn.q_layernorm", head) | norm_shapes(f"{block}.attn.k_layernorm", head)
        shapes |= linear_shapes(f"{block}.mlp.0.project", 2 * hidden, dim)
        shapes |= linear_shapes(f"{block}.mlp.2", dim, hidden)
    return shapes
