"""The LAQ family as an encoder: records, files, shapes, protocols."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lary
from lary.models import lapa, laq
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.nets.codes import CODE_STACKS, code_rows
from lary.nets.lam import DifferenceQuantizer, GridBias, LaqConfig, LatentActionModel, PlaceConvolution
from lary.nets.magvit import Tokenizer, TokenizerConfig
from lary.types import BenchmarkProtocol, LaryError, Latents, UsageError

TINY = {
    "dim": 24, "quant_dim": 8, "codebook_size": 8, "image_size": 28, "patch_size": 2, "spatial_depth": 1,
    "temporal_depth": 1, "dim_head": 8, "heads": 2, "code_seq_len": 16,
}  # fmt: skip
FAMILY = ("lapa", "dinov2", "dinov3", "siglip2", "magvit2")


def tiny(name: str = "lapa", features: dict[str, Any] | None = None) -> ModelSpec:
    """A record of the family with small sizes, 28 x 28 pixels."""
    spec = MODELS.get(name)
    flags = {key: value for key, value in spec.options["network"].items() if key in ("patch_input", "pixel_output")}
    options = {**spec.options, "network": {**TINY, **flags}}
    if features:
        options["network"]["dim"] = features.get("hidden_size", features.get("z_channels"))
        options["features"] = {**spec.options["features"], "config": features}
    return replace(spec, options=options, preprocess=replace(spec.preprocess, size=28))


def own_weights(spec: ModelSpec) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return LatentActionModel(LaqConfig(**spec.options["network"])).state_dict()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(own_weights(tiny()), tmp_path / "laq_openx.pt")
    return tmp_path / "laq_openx.pt"


def clips_of(batch: int, frames: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((batch, frames, 3, 28, 28), dtype=np.float32))


def encode(weights: Path, clips: torch.Tensor, protocol: BenchmarkProtocol = "corrected", seed: int = 0) -> Latents:
    return build(tiny(), ModelContext("cpu", protocol, weights=str(weights), seed=seed)).encode(clips)


@pytest.mark.parametrize("name", FAMILY)
def test_full_network_has_the_published_number_of_parameters(name: str) -> None:
    table = Path(lary.__file__).parent / "results" / "reference" / "leaderboard_classification.csv"
    published = {row["model"]: row["params_m"] for row in csv.DictReader(table.read_text().splitlines())}
    spec = MODELS.get(name)
    assert f"{laq.count_parameters(spec.options) / 1e6:.2f}" == published[name] == f"{spec.parameters_m:.2f}"


def test_a_pair_has_no_axis_of_steps_and_a_clip_has(weights: Path) -> None:
    pair = encode(weights, clips_of(2, 2))
    clip = encode(weights, clips_of(2, 9))
    assert pair.codes is not None
    assert clip.codes is not None
    assert pair.tokens.shape == (2, 16, 24)
    assert pair.codes.shape == (2, 16)
    assert clip.tokens.shape == (2, 8, 16, 24)
    assert clip.codes.shape == (2, 8, 16)
    assert clip.codes.dtype == torch.int64
    assert clip.tokens.dtype == torch.float32


def test_a_clip_is_made_of_its_neighbouring_pairs(weights: Path) -> None:
    clips = clips_of(2, 4)
    whole = encode(weights, clips).tokens
    for step in range(3):
        torch.testing.assert_close(whole[:, step], encode(weights, clips[:, step : step + 2]).tokens)


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
@pytest.mark.parametrize("frames", [2, 9])
def test_tokens_are_the_same_bits_in_every_batch(weights: Path, frames: int, protocol: BenchmarkProtocol) -> None:
    clips = clips_of(5, frames)
    encoder = build(tiny(), ModelContext("cpu", protocol, weights=str(weights)))
    whole = encoder.encode(clips)
    for part in (clips[:1], clips[1:3], clips[2:]):
        first = next(index for index in range(5) if torch.equal(clips[index], part[0]))
        latents = encoder.encode(part)
        assert latents.codes is not None
        assert whole.codes is not None
        assert torch.equal(latents.tokens, whole.tokens[first : first + len(part)])
        assert torch.equal(latents.codes, whole.codes[first : first + len(part)])


def test_paper_tokens_are_draws_around_the_corrected_ones(weights: Path) -> None:
    clips = clips_of(3, 2)
    corrected = encode(weights, clips)
    draws = torch.stack([encode(weights, clips, "paper", seed).tokens for seed in range(60)])
    assert torch.equal(draws[0], encode(weights, clips, "paper", 0).tokens)
    assert (draws[0] - draws[1]).abs().max() > 1e-3
    error = (draws.mean(dim=0) - corrected.tokens).abs().mean() / (draws[0] - corrected.tokens).abs().mean()
    assert error < 0.3  # the mean of 60 draws lies 1 / sqrt(60) as far off as one draw
    codes = encode(weights, clips, "paper").codes
    assert corrected.codes is not None
    assert codes is not None
    assert torch.equal(codes, corrected.codes)


def test_noise_has_the_length_of_the_quantization_error() -> None:
    torch.manual_seed(0)
    quantizer = DifferenceQuantizer(dim=6, quant_dim=8, codebook_size=5, grid=14, code_seq_len=16)
    latent, draw = torch.randn(2, 4, 16, 8).unbind()
    codes = quantizer.codes(latent)
    error = latent - quantizer.quantized(codes)
    moved = quantizer.with_noise(latent, codes, draw) - latent
    torch.testing.assert_close(moved.norm(dim=-1), error.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(moved, draw, dim=-1), torch.ones(4, 16))
    distances = torch.cdist(latent, quantizer.codebooks.expand(4, -1, -1))
    assert torch.equal(codes, distances.argmin(dim=-1))


@pytest.mark.parametrize(
    ("length", "grid", "rows"),
    [(1, 7, 1), (2, 7, 2), (4, 7, 4), (16, 14, 16), (49, 14, 49), (64, 14, 64), (16, 16, 16), (64, 16, 81),
     (1, 14, 16), (2, 14, 20), (4, 14, 25), (256, 14, 49)],
)  # fmt: skip
def test_rows_of_a_code_follow_from_its_length_and_the_grid(length: int, grid: int, rows: int) -> None:
    quantizer = DifferenceQuantizer(dim=6, quant_dim=4, codebook_size=5, grid=grid, code_seq_len=length)
    first, last = torch.randn(2, 1, grid**2, 6).unbind()
    assert quantizer.latent(first, last).shape == (1, rows, 4)
    assert code_rows(length, grid) == rows


def test_quantized_tokens_come_from_codebook_rows(weights: Path) -> None:
    spec = tiny()
    quantized = replace(spec, options={**spec.options, "latent": "quantized"})
    encoder = build(quantized, ModelContext("cpu", "corrected", weights=str(weights)))
    latents = encoder.encode(clips_of(2, 3))
    book = own_weights(spec)["vq.codebooks"]
    assert latents.codes is not None
    rows = book[latents.codes]  # (B, P, N, Q), re-read as (Q, N) and transposed
    mixed = rows.reshape(2, 2, 8, 16).transpose(-1, -2)
    weight, bias = (own_weights(spec)[f"vq.project_out.{part}"] for part in ("weight", "bias"))
    torch.testing.assert_close(latents.tokens, mixed @ weight.T + bias)


def test_unknown_latent_is_refused(weights: Path) -> None:
    spec = replace(tiny(), options={**tiny().options, "latent": "soft"})
    with pytest.raises(UsageError, match=r"'soft'.*continuous, quantized, noisy"):
        build(spec, ModelContext("cpu", "corrected", weights=str(weights)))


def test_frames_of_another_size_are_refused(weights: Path) -> None:
    with pytest.raises(LaryError, match="28 x 28"):
        encode(weights, torch.zeros(1, 2, 3, 32, 28))
    with pytest.raises(LaryError, match="at least 2 frames"):
        encode(weights, clips_of(1, 1))


def test_place_convolution_is_the_causal_three_dimensional_one() -> None:
    torch.manual_seed(0)
    layer = PlaceConvolution(6)
    video = torch.randn(2, 4, 5, 3, 6)
    padded = torch.nn.functional.pad(video.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))
    wanted = layer.dsconv(padded).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(layer(video.reshape(8, 15, 6), (2, 4, 5, 3)), wanted.reshape(8, 15, 6))


def test_grid_bias_depends_on_the_offset_of_two_places() -> None:
    torch.manual_seed(0)
    bias = GridBias(6, heads=2)
    found = bias(3, 4)
    assert found.shape == (2, 12, 12)
    for one, other in ((0, 0), (1, 6), (11, 2)):
        offset = torch.tensor([one // 4 - other // 4, one % 4 - other % 4], dtype=torch.float32)
        torch.testing.assert_close(found[:, one, other], bias.net(offset.sign() * torch.log(offset.abs() + 1)))


@pytest.mark.parametrize("name", lapa.PUBLISHED_ABLATIONS)
def test_published_ablations_are_listed(name: str) -> None:
    spec = MODELS.get(name)
    assert name in MODELS.names()
    assert spec.weights is not None
    assert spec.weights.folder == name.replace("dinov3-", "dinov3_") + ".pt"
    assert spec.options["network"]["code_seq_len"] in CODE_STACKS
    assert spec.options["features"] == lapa.DINOV3.options["features"]
    assert f"{laq.count_parameters(spec.options) / 1e6:.2f}" == f"{spec.parameters_m:.2f}"


def test_any_ablation_has_a_record_made_from_its_name() -> None:
    spec = MODELS.get("dinov3-cs512_sl4_dim48_lr2.5e-05")
    network = spec.options["network"]
    assert (network["codebook_size"], network["code_seq_len"], network["quant_dim"]) == (512, 4, 48)
    assert spec.weights is not None
    assert spec.weights.folder == "dinov3_cs512_sl4_dim48_lr2.5e-05.pt"
    assert spec.name not in MODELS.names()
    with pytest.raises(UsageError, match="Did you mean dinov3-cs"):
        MODELS.get("dinov3-cs64_sl49_dim256_lr0.0001")


def test_a_code_length_without_convolutions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no code has length 196; there is 1, 2, 4, 16, 49, 64, 256\."):
        MODELS.get("dinov3-cs8_sl196_dim32_lr1e-4")
    spec = MODELS.get("dinov3-cs8_sl16_dim32_lr1e-4")
    network = {**spec.options["network"], "code_seq_len": 196}
    torch.save({"x": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="code length 196"):
        build(
            replace(spec, options={**spec.options, "network": network}),
            ModelContext("cpu", "corrected", weights=str(tmp_path / "w.pt")),
        )


def test_weights_in_a_folder_and_in_safetensors_are_found(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    clips = clips_of(1, 2)
    tokens = encode(weights, clips).tokens
    assert torch.equal(encode(weights.parent, clips).tokens, tokens)
    save_file({key: value.contiguous() for key, value in own_weights(tiny()).items()}, tmp_path / "own.safetensors")
    assert torch.equal(encode(tmp_path / "own.safetensors", clips).tokens, tokens)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code was run",)


def test_files_that_are_no_weights_are_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = clips_of(1, 2)
    cases = {"hostile": {"x": Hostile()}, "list": [torch.ones(1)], "mixed": {"x": torch.ones(1), "step": 3}}
    for name, content in cases.items():
        torch.save(content, tmp_path / f"{name}.pt")
    (tmp_path / "cut.pt").write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("not weights")
    for name in (*cases, "cut", "text"):
        with pytest.raises(LaryError, match=rf"{name}.pt (are refused: .*print|hold no tensors|can't be read)"):
            encode(tmp_path / f"{name}.pt", clips)
    assert "code was run" not in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"absent\.pt is neither on this .*Put laq_openx\.pt into MODEL_DIR"):
        encode(tmp_path / "absent.pt", clips)


def test_misfits_are_listed(weights: Path, tmp_path: Path) -> None:
    tensors = own_weights(tiny())
    tensors["vq.codebooks"] = torch.zeros(9, 8)
    tensors["extra"] = torch.zeros(1)
    del tensors["vq.project_in.bias"]
    torch.save(tensors, tmp_path / "w.pt")
    wanted = r"1 missing: vq.project_in.bias; 1 unexpected: extra; 1 misshaped: vq.codebooks \[9, 8\] for \[8, 8\]"
    with pytest.raises(LaryError, match=wanted):
        encode(tmp_path / "w.pt", clips_of(1, 2))


DINOV3 = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28,
    "patch_size": 2, "num_register_tokens": 4,
}  # fmt: skip


def test_backbone_comes_from_its_own_folder_where_the_file_has_none(tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import load_file

    spec = tiny("dinov3", DINOV3)
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
    clips = clips_of(2, 2)
    assert torch.equal(encoders[0].encode(clips).tokens, encoders[1].encode(clips).tokens)
    assert encoders[0].identity.digest != encoders[1].identity.digest


@pytest.mark.parametrize("averages", [True, False])
def test_tokenizer_comes_from_its_own_files_where_the_file_has_none(averages: bool, tmp_path: Path) -> None:
    sizes = {"z_channels": 6, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "in_channels": 3, "out_ch": 3}
    spec = tiny("magvit2", {**sizes, "model_type": "en18", "use_ema": averages})
    full = MODELS.get("magvit2").options["features"]["config"]
    asked = replace(spec, options={**spec.options, "features": {**spec.options["features"], "config": full}})
    torch.manual_seed(1)
    inside = Tokenizer(TokenizerConfig(**sizes, use_ema=averages)).state_dict()
    assert averages == any(key.startswith("model_ema.") for key in inside)
    inside = {key: torch.nan_to_num(value) for key, value in inside.items()}
    torch.save(own_weights(spec), tmp_path / "own.pt")
    lightning = {"state_dict": {**inside, "loss.discriminator.weight": torch.ones(2)}, "epoch": 3}
    torch.save(lightning, tmp_path / "tokenizer.ckpt")
    whole = own_weights(spec) | {f"magvit2_tokenizer.{key}": value for key, value in inside.items()}
    torch.save(whole, tmp_path / "whole.pt")
    arguments = {"ddconfig": {**sizes, "resolution": 128}, "use_ema": averages}
    config = {"model": {"class_path": "VQModel", "init_args": arguments}}
    (tmp_path / "tokenizer.yaml").write_text(yaml.safe_dump(config))

    described = {"MAGVIT2_CONFIG_PATH": str(tmp_path / "tokenizer.yaml")}
    own = ModelContext("cpu", "corrected", weights=str(tmp_path / "own.pt"), settings=described)
    with pytest.raises(UsageError, match="MAGVIT2_TOKENIZER_PATH is not set"):
        build(asked, own)
    own = replace(own, settings={**described, "MAGVIT2_TOKENIZER_PATH": str(tmp_path / "tokenizer.ckpt")})
    tokens = build(asked, own).encode(clips_of(2, 2)).tokens
    reference = build(spec, replace(own, weights=str(tmp_path / "whole.pt"), settings={})).encode(clips_of(2, 2)).tokens
    assert torch.equal(tokens, reference)

    (tmp_path / "tokenizer.yaml").write_text("model: {init_args: {ddconfig: {ch: 32}}}")
    with pytest.raises(UsageError, match="has no ddconfig"):
        build(asked, own)
