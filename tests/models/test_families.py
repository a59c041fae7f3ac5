"""Families of transformers through ``hf:``, tiny and random: tokens of the real grid, or one sentence."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lary.models.choices import with_choices
from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext
from lary.types import LaryError

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
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
    "siglip2_vision_model": ({**VIT, "num_patches": 16, "patch_size": 16}, 14, 32),
    "swiftformer": ({"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 7, 32),
    "vitdet": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64}, 4, 32),
    "yolos": ({**SQUARE, "image_size": [64, 64], "num_detection_tokens": 9}, 4, 32),
}  # fmt: skip
SPREAD = ("bit", "efficientnet", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "poolformer", "regnet", "resnet",
          "sam_vision_model", "swiftformer")  # fmt: skip
"""Networks whose random weights spread a cell over its neighbours; the others show which token is whose."""

# Fields of the configuration, then the frames that the network takes at once, and those of a tubelet.
VIDEOS: dict[str, tuple[dict[str, Any], int, int]] = {
    "timesformer": ({**SQUARE, "num_frames": 8}, 8, 1),
    "videomae": ({**SQUARE, "num_frames": 4}, 4, 2),
    "videoprism_vision_model": (
        {**SQUARE, "num_frames": 4, "num_spatial_layers": 1, "num_temporal_layers": 1, "tubelet_size": [1, 16, 16]}, 4,
        1),
    "vivit": ({**VIT, "image_size": 64, "num_frames": 16, "tubelet_size": [2, 16, 16]}, 16, 2),
    "vjepa2": ({**SQUARE, "crop_size": 64, "frames_per_clip": 4, "pred_hidden_size": 32, "pred_num_hidden_layers": 1,
                "pred_num_attention_heads": 2}, 4, 2),
    "xclip_vision_model": ({**SQUARE, "num_frames": 8}, 8, 1),
}  # fmt: skip

DECODER = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
RESNET = {"model_type": "resnet", "embedding_size": 8, **PYRAMID, "out_features": ["stage4"]}
# Fields of the configuration, then what is said in place of tokens.
SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "bert": ({"vocab_size": 50, **VIT}, r"BertModel of transformers can't encode images of 224 x 224 pixels \("),
    "detr": ({**DECODER, "use_timm_backbone": False, "backbone_config": RESNET, "num_queries": 49}, "no vision back"),
    "hiera": ({"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "num_query_pool": 2}, "no vision backbone"),
    "pixtral": ({**SQUARE, "head_dim": 16}, "no vision backbone"),
    "qwen3_vl_vision": ({"depth": 1, "hidden_size": 32, "num_heads": 2}, "can't encode images of .*grid_thw"),
    "timm_wrapper": ({"architecture": "resnet18"}, "requires the timm library"),
    "vit": ({**SQUARE, "image_size": [64, 32]}, "can't encode images of 224 x 224 pixels"),
    "video_llama_3_vision": (SQUARE, "can't encode images of .*grid_thw"),
}  # fmt: skip


def families_page() -> str:
    """The page of families: what the tests below try, in the order of the names."""
    rows = dict.fromkeys(GRIDS, "images | |")
    for kind, (fields, _, tubelet) in VIDEOS.items():
        number = "any number" if "frames_per_clip" in fields else "its number"
        rows[kind] = f"clips of {number} of frames | {tubelet} |"
    rows |= {kind: "refused | |" for kind in SENTENCES if kind not in rows}
    return "\n".join([
        "# Families of transformers through `hf:`", "",
        "A family is the `model_type` in the `config.json` of a checkpoint. A test tries each of these with a tiny",
        "network and random weights: which token is which cell of which frame, and that a refused one says so in a",
        "sentence. It also compares this page with what it tries. Other families may work; loading says why not.", "",
        "| `model_type` | takes | frames of a tubelet |", "|---|---|---|",
        *(f"| `{kind}` | {rows[kind]}" for kind in sorted(rows)), "",
    ])  # fmt: skip


def test_page_of_families_is_current() -> None:
    if os.environ.get("LARY_GOLDEN_WRITE"):
        PAGE.write_text(families_page())
    assert PAGE.read_text() == families_page(), "run this test with LARY_GOLDEN_WRITE=1"


def open_family(kind: str, fields: dict[str, Any], folder: Path, **choice: int) -> LoadedEncoder:
    """A family's model with weights that are drawn, from its configuration alone."""
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **fields}))
    spec = with_choices(MODELS.get(f"hf:{folder}"), **choice)  # type: ignore[arg-type]
    return build(spec, ModelContext("cpu", "corrected", weights="random"))


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


# Sides of the grid of the first and last layers.
LAYERS = {
    "convnext": (16, 2), "dinov2": (16, 16), "dinov3_vit": (14, 14), "hiera": (56, 7), "pvt": (56, 7), "swin": (16, 8),
    "timesformer": (4, 4), "vivit": (4, 4), "xclip_vision_model": (4, 4),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_are_those_of_the_network(kind: str, tmp_path: Path) -> None:
    """The first layer is before any attention, so that a cell changes its own token alone."""
    fields = GRIDS[kind][0] if kind in GRIDS else VIDEOS[kind][0]
    encoders = [open_family(kind, fields, tmp_path, layer=layer) for layer in (0, -1)]
    size = encoders[0].spec.preprocess.size
    clip = torch.randn(1, 2, 3, size, size, generator=torch.Generator().manual_seed(1))
    first, last = (encoder.encode(clip).tokens[0] for encoder in encoders)
    side, end = LAYERS[kind]
    steps = 2 if kind in GRIDS or VIDEOS[kind][2] == 1 else 1
    assert [each[..., 0].numel() for each in (first, last)] == [steps * side**2, steps * end**2]
    width, changed = size // side, clip.clone()
    changed[0, 1, :, width : 2 * width, :width] += 1
    moved = (encoders[0].encode(changed).tokens[0] - first).abs().amax(dim=-1).flatten()
    at = (steps - 1) * side**2 + side
    spread = kind in ("convnext", "hiera", "pvt")  # convolutions see a cell's neighbours
    row, column = divmod(int(moved.argmax()) - at + side, side)
    assert abs(row - 1) + abs(column) <= spread
    assert spread or not torch.cat([moved[:at], moved[at + 1 :]]).any()
    with pytest.raises(LaryError, match=r"--layer 99: .* gives layers 0 to "):
        open_family(kind, fields, tmp_path, layer=99)


@pytest.mark.parametrize("kind", VIDEOS)
@pytest.mark.parametrize("frames", [2, 9])
def test_tokens_of_a_clip_are_its_cells_in_time_rows_and_columns(kind: str, frames: int, tmp_path: Path) -> None:
    fields, most, tubelet = VIDEOS[kind]
    encoder = open_family(kind, fields, tmp_path)
    assert encoder.spec.preprocess.size == 64
    clip = torch.randn(1, frames, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    tokens = encoder.encode(clip).tokens[0]
    steps = -(-frames // tubelet)
    assert tokens.shape == (16 * steps, 32)
    for frame, row, column in ((0, 0, 3), (frames - 1, 3, 0)):
        changed = clip.clone()
        changed[0, frame, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] *= -2
        moved = (encoder.encode(changed).tokens[0] - tokens).norm(dim=-1)
        assert int(moved.argmax()) == frame // tubelet * 16 + row * 4 + column
    filled = torch.cat([clip, clip[:, -1:].expand(-1, -frames % most, -1, -1, -1)], dim=1)
    longer = encoder.encode(filled).tokens[0]
    if frames < most and kind != "vjepa2":  # it is given whole tubelets alone
        torch.testing.assert_close(longer[: len(tokens)], tokens)


@pytest.mark.parametrize("kind", SENTENCES)
def test_networks_of_another_kind_say_so_in_a_sentence(kind: str, tmp_path: Path) -> None:
    fields, said = SENTENCES[kind]
    with pytest.raises(LaryError, match=said):
        open_family(kind, fields, tmp_path)
