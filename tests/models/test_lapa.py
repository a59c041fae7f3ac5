"""The LAQ family as an encoder: ablations, files and encoders of frames, steps of clips, protocols."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.nets import quantizer_parameters
from lary.nets.lam import LatentActionModel, Tokenizer
from lary.types import LaryError, UsageError
from tests.helpers import fails
from tests.tiny_networks import LAQ, VIT

TINY = {**LAQ, "codebook_size": 8, "image_size": 28, "patch_size": 2, "code_seq_len": 16}
DINOV3 = {**VIT, "image_size": 28, "patch_size": 2, "num_register_tokens": 4}
MAGVIT2 = {"z_channels": 6, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "in_channels": 3, "out_ch": 3}
CLIPS = torch.rand(3, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))


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


def load(
    weights: Path, spec: ModelSpec | None = None, protocol: Any = "corrected", seed: int = 0, **settings: object
) -> LoadedEncoder:
    named = {name: str(value) for name, value in settings.items()}
    return build(spec or tiny(), ModelContext("cpu", protocol, weights=str(weights), seed=seed, settings=named))


def test_paper_tokens_are_draws_that_follow_the_seed(weights: Path) -> None:
    corrected, first, again, other = (
        load(weights, **how).encode(CLIPS)
        for how in ({}, {"protocol": "paper"}, {"protocol": "paper"}, {"protocol": "paper", "seed": 1})
    )
    assert torch.equal(first.tokens, again.tokens)
    assert (first.tokens - other.tokens).abs().max() > 1e-3
    assert torch.equal(first.codes, corrected.codes)


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
    assert (spec.codebook, spec.pair_shape, spec.clip_shape) == (512, (25, 1024), (8, 25, 1024))
    assert " ".join(f"{key} {value}," for key, value in spec.ablation.items()) == (
        "codebook size 512, sequence length 4, latent dimension 48, learning rate 2.5e-05,"
    )
    assert spec.name not in MODELS.names()
    fails(UsageError, "Did you mean dinov3-cs", MODELS.get, "dinov3-cs64_sl49_dim256_lr0.0001")
    lengths = r"no code has length 196; there is 1, 2, 4, 16, 49, 64, 256\."
    fails(UsageError, lengths, MODELS.get, "dinov3-cs8_sl196_dim32_lr1e-4")
    fails(UsageError, "code length 196", load, weights, tiny(network={**TINY, "code_seq_len": 196}))
    fails(UsageError, "'soft'.*continuous, quantized, noisy", load, weights, tiny(latent="soft"))
    fails(LaryError, "at least 2 frames", load(weights).encode, CLIPS[:, :1])


def test_files_and_folders_give_the_same(weights: Path, tmp_path: Path) -> None:
    tensors, tokens = own_weights(tiny()), load(weights).encode(CLIPS).tokens
    decoder = {"dec_spatial_transformer.norm_out.gamma": torch.ones(2)}  # may be there, in whole or in part
    save_file({key: value.contiguous() for key, value in (tensors | decoder).items()}, tmp_path / "own.safetensors")
    for place in (weights.parent, tmp_path / "own.safetensors"):
        assert torch.equal(load(place).encode(CLIPS).tokens, tokens)
    fails(UsageError, r"absent\.pt is neither on this .*Put laq_openx\.pt into MODEL_DIR", load, tmp_path / "absent.pt")


def test_backbone_comes_from_its_own_folder_where_the_file_has_none(tmp_path: Path) -> None:
    spec = tiny("dinov3", DINOV3)
    torch.manual_seed(1)
    transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**DINOV3)).save_pretrained(tmp_path / "DINOv3")
    own, inside = own_weights(spec), load_file(tmp_path / "DINOv3" / "model.safetensors")
    torch.save(own, tmp_path / "own.pt")
    torch.save(own | {f"dino_tokenizer.{key}": value for key, value in inside.items()}, tmp_path / "whole.pt")
    parts, whole = (load(tmp_path / name, spec, DINO_V3_PATH=tmp_path / "DINOv3") for name in ("own.pt", "whole.pt"))
    assert torch.equal(parts.encode(CLIPS).tokens, whole.encode(CLIPS).tokens)
    assert parts.identity != whole.identity
    transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**DINOV3)).save_pretrained(tmp_path / "DINOv3")
    assert load(tmp_path / "own.pt", spec, DINO_V3_PATH=tmp_path / "DINOv3").identity != parts.identity
    with pytest.raises(UsageError, match=r"'dinov3, encoder of frames': DINO_V3_PATH points to /nowhere"):
        load(tmp_path / "own.pt", spec, DINO_V3_PATH="/nowhere")


def test_tokenizer_comes_from_its_own_files_where_the_file_has_none(tmp_path: Path) -> None:
    spec = tiny("magvit2", {**MAGVIT2, "model_type": "en18", "use_ema": True})
    features = {**spec.options["features"], "config": MODELS.get("magvit2").options["features"]["config"]}
    asked = replace(spec, options={**spec.options, "features": features})
    torch.manual_seed(1)
    inside, own = Tokenizer(**MAGVIT2).state_dict(), own_weights(spec)
    unused = {f"{name}.weight": torch.ones(2) for name in ("decoder.conv_in", "model_ema.conv", "loss.discriminator")}
    torch.save(own, tmp_path / "own.pt")
    torch.save({"state_dict": inside | unused, "epoch": 3}, tmp_path / "tokenizer.ckpt")
    torch.save(own | {f"magvit2_tokenizer.{key}": value for key, value in inside.items()}, tmp_path / "whole.pt")
    described, config, mark = {"MAGVIT2_CONFIG_PATH": tmp_path / "c.yaml"}, tmp_path / "c.yaml", tmp_path / "ran"
    complete = described | {"MAGVIT2_TOKENIZER_PATH": tmp_path / "tokenizer.ckpt"}

    def words(**changes: Any) -> str:
        arguments = {"ddconfig": {**MAGVIT2, "resolution": 128, **changes}, "use_ema": True}
        return yaml.safe_dump({"model": {"class_path": "VQModel", "init_args": arguments}})

    config.write_text(words())
    tokens = load(tmp_path / "own.pt", asked, **complete).encode(CLIPS).tokens
    assert torch.equal(tokens, load(tmp_path / "whole.pt", spec).encode(CLIPS).tokens)
    for content, settings, named in (
        (words(), described, "MAGVIT2_TOKENIZER_PATH is not set.*and MAGVIT2_CONFIG_PATH to"),
        (words(), described | {"MAGVIT2_TOKENIZER_PATH": "/absent"}, "points to /absent, which is no file"),
        (words(ch=33), complete, r"c\.yaml describes no Open-MAGVIT2 tokenizer: num_channels"),
        ("model: {init_args: {ddconfig: {ch: 32}}}", complete, "has no ddconfig"),
        (f'model: !!python/object/apply:os.system ["touch {mark}"]', complete, "can't be read"),
    ):
        config.write_text(content)
        fails(LaryError, named, load, tmp_path / "own.pt", asked, **settings)
    assert not mark.exists()
