"""Families of transformers through ``hf:``, tiny and random: tokens of the real grid, or one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext
from lary.types import LaryError

VIT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SQUARE = {**VIT, "image_size": 64, "patch_size": 16}
PYRAMID: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SHIFTED = {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
HEADS = {"num_attention_heads": [1, 1, 2, 2]}
SAM = {"output_channels": 16, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 64}
TEXT = {"vocab_size": 50, "max_position_embeddings": 8, **VIT}

# Fields of the configuration, then rows and columns of the grid and D of the tokens.
GRIDS: dict[str, tuple[dict[str, Any], int, int]] = {
    **dict.fromkeys((
        "aimv2_vision_model", "beit", "chinese_clip_vision_model", "clip_vision_model", "data2vec-vision", "deit",
        "dpt", "ijepa", "mlcd_vision_model", "pixio", "siglip_vision_model", "vit", "vit_mae", "vit_msn"
    ), (SQUARE, 4, 32)),
    **dict.fromkeys(("donut-swin", "maskformer-swin", "swin", "swinv2"), (SHIFTED, 8, 16)),
    **dict.fromkeys(("glpn", "pvt", "pvt_v2", "segformer"), ({**PYRAMID, **HEADS}, 7, 32)),
    **dict.fromkeys(("convnext", "convnextv2"), ({**PYRAMID, "image_size": 64}, 2, 32)),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), ({**SQUARE, "patch_size": 14}, 16, 32)),
    **dict.fromkeys(("clip", "siglip"), ({"text_config": TEXT, "vision_config": SQUARE}, 4, 32)),
    "poolformer": (PYRAMID, 7, 32),
    "bit": ({"embedding_size": 32, **PYRAMID, "hidden_sizes": [32, 32, 64, 64], "num_groups": 4}, 7, 64),
    "dinov3_convnext": ({**PYRAMID, "image_size": 64}, 7, 32),
    "dinov3_vit": ({**SQUARE, "num_register_tokens": 4}, 14, 32),
    "efficientnet": ({"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}, 7, 320),
    "focalnet": ({**SHIFTED, "focal_levels": [2, 2], "focal_windows": [3, 3], "hidden_sizes": [8, 16]}, 8, 16),
    "hiera": ({"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}, 7, 64),
    "internvl_vision": ({**SQUARE, "image_size": [64, 64], "patch_size": [16, 16]}, 4, 32),
    "levit": ({"hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1],
               "key_dim": [8, 8, 8]}, 4, 32),
    "mobilenet_v1": ({"depth_multiplier": 0.25}, 7, 256),
    "mobilenet_v2": ({"depth_multiplier": 0.35}, 7, 1280),
    "mobilevit": ({"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8] * 6 + [32]}, 2, 32),
    "regnet": ({"embedding_size": 8, **PYRAMID, "groups_width": 8}, 7, 32),
    "resnet": ({"embedding_size": 8, **PYRAMID}, 7, 32),
    "sam_vision_model": ({**SAM, "image_size": 64, "global_attn_indexes": [1], "window_size": 2}, 4, 16),
    "sam2_hiera_det_model": (
        {"image_size": [64, 64], "hidden_size": 8, "num_attention_heads": 1, "blocks_per_stage": [1, 2, 2, 1],
         "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 2, 4, 8],
         "global_attention_blocks": [4], "window_size_per_stage": [8, 4, 8, 4]}, 7, 64),
    "swiftformer": ({"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 7, 32),
    "vitdet": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64}, 4, 32),
    "yolos": ({**SQUARE, "image_size": [64, 64], "num_detection_tokens": 9}, 4, 32),
}  # fmt: skip
SPREAD = ("bit", "efficientnet", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "poolformer", "regnet", "resnet",
          "sam_vision_model", "swiftformer")  # fmt: skip
"""Networks whose random weights spread a cell over its neighbours; the others show which token is whose."""

DECODER = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
RESNET = {"model_type": "resnet", "embedding_size": 8, **PYRAMID, "out_features": ["stage4"]}
# Fields of the configuration, then what is said in place of tokens.
SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "bert": ({"vocab_size": 50, **VIT}, r"BertModel of transformers can't encode images of 224 x 224 pixels \("),
    "detr": ({**DECODER, "use_timm_backbone": False, "backbone_config": RESNET, "num_queries": 49}, "no vision back"),
    "hiera": ({"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "num_query_pool": 2}, "no vision backbone"),
    "pixtral": ({**SQUARE, "head_dim": 16}, "no vision backbone"),
    "qwen3_vl_vision": ({"depth": 1, "hidden_size": 32, "num_heads": 2}, "can't encode images of .*grid_thw"),
    "siglip2_vision_model": ({**VIT, "num_patches": 16}, "can't encode images .*spatial_shapes"),
    "timesformer": (SQUARE, "is a video model"),
    "timm_wrapper": ({"architecture": "resnet18"}, "requires the timm library"),
    "videomae": ({**SQUARE, "num_frames": 4}, "is a video model"),
    "vit": ({**SQUARE, "image_size": [64, 32]}, "can't encode images of 224 x 224 pixels"),
    "vivit": (SQUARE, "is a video model"),
    "vjepa2": ({**SQUARE, "pred_hidden_size": 32, "pred_num_attention_heads": 2}, "a video model.*use vjepa2"),
}  # fmt: skip


def open_family(kind: str, fields: dict[str, Any], folder: Path) -> LoadedEncoder:
    """A family's model with weights that are drawn, from its configuration alone."""
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **fields}))
    return build(MODELS.get(f"hf:{folder}"), ModelContext("cpu", "corrected", weights="random"))


@pytest.mark.parametrize("kind", GRIDS)
def test_tokens_are_the_cells_of_the_image_in_rows(kind: str, tmp_path: Path) -> None:
    fields, side, dim = GRIDS[kind]
    encoder = open_family(kind, fields, tmp_path)
    size = encoder.spec.preprocess.size
    image = torch.randn(1, 1, 3, size, size, generator=torch.Generator().manual_seed(1))
    cells, width = ((0, side - 1), (side - 1, 0)), size // side
    clip = image.repeat(1, 3, 1, 1, 1)
    for frame, (row, column) in enumerate(cells, 1):
        clip[0, frame, :, row * width : (row + 1) * width, column * width : (column + 1) * width] *= -2
    tokens = encoder.encode(clip).tokens[0]
    assert tokens.shape == (3, side**2, dim)
    torch.testing.assert_close(encoder.encode(image).tokens[0], tokens[:1], rtol=0, atol=1e-4)
    for frame, (row, column) in enumerate(cells, 1):
        moved = (tokens[frame] - tokens[0]).norm(dim=-1)
        assert kind in SPREAD or int(moved.argmax()) == row * side + column


@pytest.mark.parametrize("kind", SENTENCES)
def test_networks_of_another_kind_say_so_in_a_sentence(kind: str, tmp_path: Path) -> None:
    fields, said = SENTENCES[kind]
    with pytest.raises(LaryError, match=said):
        open_family(kind, fields, tmp_path)
