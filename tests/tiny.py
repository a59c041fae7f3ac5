"""Tiny checkpoints with random weights, in the files and under the key names of the published ones."""

from pathlib import Path

from tests.parity.fill import fill_tensor

TINY_DIM = 32
"""D of every tiny checkpoint."""

KINDS = {"dinov2-origin": "dinov2", "dinov3-origin": "dinov3", "siglip2-origin": "siglip2"}
"""The kind of checkpoint that a model key loads."""

_SHARED = {"hidden_size": TINY_DIM, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tiny(folder: Path, kind: str, *, patch: int = 14) -> Path:
    """Write ``config.json`` and ``model.safetensors`` of a tiny backbone for 224 x 224 images; returns the folder.

    Kinds: dinov2 (N = 256), dinov2-registers, dinov3, siglip2 (a whole model with its text tower), siglip2-naflex (all
    N = 196), each with D = `TINY_DIM`; `patch` is that of dinov2. The same kind gives the same bytes.
    """
    import torch
    import transformers

    if kind.startswith("dinov2"):
        name = "Dinov2WithRegisters" if kind == "dinov2-registers" else "Dinov2"
        config = getattr(transformers, f"{name}Config")(**_SHARED, image_size=518, patch_size=patch, mlp_ratio=2)
        model = getattr(transformers, f"{name}Model")(config)
    elif kind == "dinov3":
        sizes = {**_SHARED, "intermediate_size": 64, "image_size": 224, "patch_size": 16, "num_register_tokens": 4}
        model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes))
    elif kind in ("siglip2", "siglip2-naflex"):
        name = "Siglip2" if kind == "siglip2-naflex" else "Siglip"
        size = {"num_patches": 256} if kind == "siglip2-naflex" else {"image_size": 224}
        vision = {**_SHARED, **size, "intermediate_size": 64, "patch_size": 16}
        text = {**_SHARED, "intermediate_size": 64, "vocab_size": 40, "max_position_embeddings": 8}
        config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision)
        model = getattr(transformers, f"{name}Model")(config)
    else:
        raise ValueError(f"unknown kind of tiny checkpoint: {kind}")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(fill_tensor(f"tiny/{kind}/{key}", tuple(parameter.shape))))
    model.save_pretrained(folder)
    return folder
