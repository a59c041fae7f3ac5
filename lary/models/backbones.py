"""Published vision backbones that several records name: configurations in the words of transformers, and weights."""

from __future__ import annotations

from typing import Any

from lary.models.spec import Weights

DINOV2_LARGE: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_ratio": 4, "hidden_act": "gelu",
    "layer_norm_eps": 1e-6, "image_size": 518, "patch_size": 14, "num_channels": 3, "qkv_bias": True,
    "layerscale_value": 1.0, "use_swiglu_ffn": False, "use_mask_token": True,
}  # fmt: skip
"""``facebook/dinov2-large``."""

DINOV3_LARGE: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rope_theta": 100.0, "image_size": 224, "patch_size": 16,
    "num_channels": 3, "query_bias": True, "key_bias": False, "value_bias": True, "proj_bias": True, "mlp_bias": True,
    "layerscale_value": 1.0, "use_gated_mlp": False, "num_register_tokens": 4, "pos_embed_rescale": 2.0,
}  # fmt: skip
"""``facebook/dinov3-vitl16-pretrain-lvd1689m``."""

SIGLIP2_BASE: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 16,
    "num_channels": 3, "vision_use_head": True,
}  # fmt: skip
"""Image tower of ``google/siglip2-base-patch16-224``, with its pooling head."""

DINOV2_WEIGHTS = Weights(
    variable="DINO_V2_PATH", folder="DINOv2", hub="facebook/dinov2-large",
    revision="47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
)  # fmt: skip

DINOV3_WEIGHTS = Weights(
    variable="DINO_V3_PATH", folder="DINOv3", hub="facebook/dinov3-vitl16-pretrain-lvd1689m",
    revision="ea8dc2863c51be0a264bab82070e3e8836b02d51",
)  # fmt: skip

SIGLIP2_WEIGHTS = Weights(
    variable="SIGLIP2_PATH", folder="SigLIP2", hub="google/siglip2-base-patch16-224",
    revision="75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
)  # fmt: skip
