"""The LAQ family as an encoder: ablations, files and encoders of frames, steps of clips, protocols."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.nets import code_rows, quantizer_parameters
from lary.nets.lam import DifferenceQuantizer, LatentActionModel, Tokenizer
from lary.types import LaryError, Latents, UsageError

TINY = {
    "dim": 24, "quant_dim": 8, "codebook_size": 8, "image_size": 28, "patch_size": 2, "spatial_depth": 1,
    "temporal_depth": 1, "dim_head": 8, "heads": 2, "code_seq_len": 16,
}  # fmt: skip
DINOV3 = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28,
    "patch_size": 2, "num_register_tokens": 4,
}  # fmt: skip


def tiny(name: str = "lapa", features: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    """A record of the family with small sizes, 28 x 28 pixels."""
    spec = MODELS.get(name)
    flags = {key: value for key, value in spec.options["network"].items() if key in ("patch_input", "pixel_output")}
    options = {**spec.options, "network": {**TINY, **flags}, **changes}
    if features:
        options["network"]["dim"] = features.get("hidden_size", features.get("z_channels"))
        options["features"] = {**spec.options["features"], "config": features}
    sized = replace(spec.preprocess, size=28)
    return replace(spec, options=options, options_paper={**spec.options_paper, **changes}, preprocess=sized)


def own_weights(spec: ModelSpec) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return LatentActionModel(**spec.options["network"]).state_dict()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(own_weights(tiny()), tmp_path / "laq_openx.pt")
    return tmp_path / "laq_openx.pt"


def clips_of(batch: int, frames: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((batch, frames, 3, 28, 28), dtype=np.float32))


def encode(
    weights: Path, clips: torch.Tensor, protocol: Any = "corrected", seed: int = 0, spec: ModelSpec | None = None,
    **settings: Path,
) -> Latents:  # fmt: skip
    values = {name: str(path) for name, path in settings.items()}
    context = ModelContext("cpu", protocol, weights=str(weights), seed=seed, settings=values)
    return build(spec or tiny(), context).encode(clips)


def test_paper_tokens_are_draws_that_follow_the_seed(weights: Path) -> None:
    clips = clips_of(3, 2)
    corrected, *draws = [encode(weights, clips, *how) for how in ((), ("paper", 0), ("paper", 0), ("paper", 1))]
    assert torch.equal(draws[0].tokens, draws[1].tokens)
    assert (draws[0].tokens - draws[2].tokens).abs().max() > 1e-3
    assert torch.equal(draws[0].codes, corrected.codes)


def test_any_ablation_has_a_record_made_from_its_name(weights: Path) -> None:
    dinov3 = MODELS.get("dinov3")
    published = [spec for spec in MODELS if spec.ablation and spec.name.startswith("dinov3-cs")]
    assert len(published) == 9
    for spec in [*published, MODELS.get("dinov3-cs512_sl4_dim48_lr2.5e-05")]:
        network = spec.options["network"]
        assert spec.weights is not None
        assert spec.weights.folder == spec.name.replace("dinov3-", "dinov3_") + ".pt"
        assert spec.options["features"] == dinov3.options["features"]
        with torch.device("meta"):
            made = sum(value.numel() for value in LatentActionModel(**network).vq.parameters())
        assert made == quantizer_parameters(network)
        changed = made - quantizer_parameters(dinov3.options["network"])
        assert spec.parameters_m - dinov3.parameters_m == pytest.approx(changed / 1e6, abs=0.011)
    assert (network["codebook_size"], network["code_seq_len"], network["quant_dim"]) == (512, 4, 48)
    assert spec.name not in MODELS.names()
    with pytest.raises(UsageError, match="Did you mean dinov3-cs"):
        MODELS.get("dinov3-cs64_sl49_dim256_lr0.0001")
    with pytest.raises(UsageError, match=r"no code has length 196; there is 1, 2, 4, 16, 49, 64, 256\."):
        MODELS.get("dinov3-cs8_sl196_dim32_lr1e-4")
    for wrong, named in (
        (tiny(network={**TINY, "code_seq_len": 196}), "code length 196"),
        (tiny(latent="soft"), "'soft'.*continuous, quantized, noisy"),
    ):
        with pytest.raises(UsageError, match=named):
            encode(weights, clips_of(1, 2), spec=wrong)
    with pytest.raises(LaryError, match="at least 2 frames"):
        encode(weights, clips_of(1, 1))


def test_files_folders_and_misfits(weights: Path, tmp_path: Path) -> None:
    clips, tensors = clips_of(1, 2), own_weights(tiny())
    tokens = encode(weights, clips).tokens
    decoder = {"dec_spatial_transformer.norm_out.gamma": torch.ones(2)}  # may be there, in whole or in part
    save_file({key: value.contiguous() for key, value in (tensors | decoder).items()}, tmp_path / "own.safetensors")
    for place in (weights.parent, tmp_path / "own.safetensors"):
        assert torch.equal(encode(place, clips).tokens, tokens)
    tensors |= {"vq.codebooks": torch.zeros(9, 8), "extra": torch.zeros(1)}
    del tensors["vq.project_in.bias"]
    torch.save(tensors, tmp_path / "w.pt")
    wanted = r"1 missing: vq.project_in.bias; 1 unexpected: extra; 1 misshaped: vq.codebooks \[9, 8\] for \[8, 8\]"
    with pytest.raises(LaryError, match=wanted):
        encode(tmp_path / "w.pt", clips)
    with pytest.raises(UsageError, match=r"absent\.pt is neither on this .*Put laq_openx\.pt into MODEL_DIR"):
        encode(tmp_path / "absent.pt", clips)


def test_backbone_comes_from_its_own_folder_where_the_file_has_none(tmp_path: Path) -> None:
    spec, clips = tiny("dinov3", DINOV3), clips_of(2, 2)
    torch.manual_seed(1)
    transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**DINOV3)).save_pretrained(tmp_path / "DINOv3")
    own, inside = own_weights(spec), load_file(tmp_path / "DINOv3" / "model.safetensors")
    torch.save(own, tmp_path / "own.pt")
    torch.save(own | {f"dino_tokenizer.{key}": value for key, value in inside.items()}, tmp_path / "whole.pt")
    settings = {"DINO_V3_PATH": str(tmp_path / "DINOv3")}
    encoders = [
        build(spec, ModelContext("cpu", "corrected", weights=str(tmp_path / f"{name}.pt"), settings=settings))
        for name in ("own", "whole")
    ]
    assert torch.equal(encoders[0].encode(clips).tokens, encoders[1].encode(clips).tokens)
    assert encoders[0].identity != encoders[1].identity
    with pytest.raises(UsageError, match=r"'dinov3, encoder of frames': DINO_V3_PATH points to /nowhere"):
        encode(tmp_path / "own.pt", clips, spec=spec, DINO_V3_PATH=Path("/nowhere"))


def test_tokenizer_comes_from_its_own_files_where_the_file_has_none(tmp_path: Path) -> None:
    sizes = {"z_channels": 6, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "in_channels": 3, "out_ch": 3}
    spec, clips = tiny("magvit2", {**sizes, "model_type": "en18", "use_ema": True}), clips_of(2, 2)
    features = {**spec.options["features"], "config": MODELS.get("magvit2").options["features"]["config"]}
    asked = replace(spec, options={**spec.options, "features": features})
    torch.manual_seed(1)
    inside, own = Tokenizer(**sizes).state_dict(), own_weights(spec)
    unused = {f"{name}.weight": torch.ones(2) for name in ("decoder.conv_in", "model_ema.conv", "loss.discriminator")}
    torch.save(own, tmp_path / "own.pt")
    torch.save({"state_dict": inside | unused, "epoch": 3}, tmp_path / "tokenizer.ckpt")
    torch.save(own | {f"magvit2_tokenizer.{key}": value for key, value in inside.items()}, tmp_path / "whole.pt")
    config = tmp_path / "tokenizer.yaml"

    def describe(**changes: Any) -> None:
        arguments = {"ddconfig": {**sizes, "resolution": 128, **changes}, "use_ema": True}
        config.write_text(yaml.safe_dump({"model": {"class_path": "VQModel", "init_args": arguments}}))

    describe()
    described = {"spec": asked, "MAGVIT2_CONFIG_PATH": config, "MAGVIT2_TOKENIZER_PATH": tmp_path / "tokenizer.ckpt"}
    tokens = encode(tmp_path / "own.pt", clips, **described).tokens
    assert torch.equal(tokens, encode(tmp_path / "whole.pt", clips, spec=spec).tokens)
    for path, named in ((None, "is not set"), (tmp_path / "absent", "points to .*absent, which is no file")):
        settings = {"spec": asked, "MAGVIT2_CONFIG_PATH": config}
        settings |= {} if path is None else {"MAGVIT2_TOKENIZER_PATH": path}
        with pytest.raises(UsageError, match=f"MAGVIT2_TOKENIZER_PATH {named}.*and MAGVIT2_CONFIG_PATH to"):
            encode(tmp_path / "own.pt", clips, **settings)
    describe(ch=33)
    with pytest.raises(LaryError, match=r"tokenizer\.yaml describes no Open-MAGVIT2 tokenizer: num_channels"):
        encode(tmp_path / "own.pt", clips, **described)
    mark = tmp_path / "ran"
    for content, named in (
        ("model: {init_args: {ddconfig: {ch: 32}}}", "has no ddconfig"),
        (f'model: !!python/object/apply:os.system ["touch {mark}"]', "can't be read"),
        ("model: " + "[" * 100_000, "can't be read"),
    ):
        config.write_text(content)
        with pytest.raises(LaryError, match=named):
            encode(tmp_path / "own.pt", clips, **described)
    assert not mark.exists()


def test_rows_of_a_code_follow_from_its_length_and_the_grid() -> None:
    for length, grid, rows in (
        (1, 7, 1),
        (2, 7, 2),
        (4, 7, 4),
        (16, 14, 16),
        (49, 14, 49),
        (64, 16, 81),
        (256, 14, 49),
    ):
        quantizer = DifferenceQuantizer(dim=6, quant_dim=4, codebook_size=5, grid=grid, code_seq_len=length)
        first, last = torch.randn(2, 1, grid**2, 6).unbind()
        assert quantizer.latent(first, last).shape == (1, rows, 4)
        assert code_rows(length, grid) == rows
