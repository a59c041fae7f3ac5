"""UniVLA and villa-X: sizes of the released networks, steps of clips, and what is said about files that don't fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from lary.models.preprocess import prepare
from lary.models.running import build
from lary.models.spec import ModelContext
from lary.models.univla import UNIVLA, UniVLA, backbone_config
from lary.models.villa import VILLA_X, VillaX
from lary.nets import univla, villa
from lary.types import LaryError, UsageError
from tests.parity.fill import fill_tensor

NETWORK = {"model_dim": 24, "latent_dim": 5, "num_latents": 7, "enc_blocks": 1, "dec_blocks": 1, "num_heads": 2}
BACKBONE = {
    "img_size": 28, "patch_size": 14, "embed_dim": 768, "depth": 1, "num_heads": 12, "mlp_ratio": 1,
    "num_register_tokens": 2, "layerscale": True,
}  # fmt: skip
VILLA = {
    "resolution": 28, "patch_size": 14, "d_t": 3, "encoder_depth": 2, "encoder_embed_dim": 24, "encoder_n_heads": 4,
    "action_latent_dim": 5, "num_learned_tokens": 3, "map_heads": 6, "decoder_depth": 1, "decoder_embed_dim": 24,
    "decoder_n_heads": 2, "n_codes": 9, "mlp_ratio": 2.5,
}  # fmt: skip


def drawn(shapes: univla.Shapes) -> dict[str, torch.Tensor]:
    """Weights by name; gains of norms near one, so that latents spread over the codebook."""
    return {
        key: torch.from_numpy(fill_tensor(f"{key}.weight" if key.endswith(".g") else key, shape))
        for key, shape in shapes.items()
    }  # fmt: skip


def shapes_on_meta(make: Any) -> univla.Shapes:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in make().state_dict().items()}


def univla_shapes() -> univla.Shapes:
    """Keys of the small checkpoint as a Lightning file has them, but for the wrapper's name."""
    config = univla.UniVLAConfig(**NETWORK)
    dim, block = 768, "dino_encoder.blocks.0"
    backbone: univla.Shapes = {
        "cls_token": (1, 1, dim), "pos_embed": (1, 5, dim), "register_tokens": (1, 2, dim), "mask_token": (1, dim),
        "patch_embed.proj.weight": (dim, 3, 14, 14), "patch_embed.proj.bias": (dim,),
        "blocks.0.ls1.gamma": (dim,), "blocks.0.ls2.gamma": (dim,),
    }  # fmt: skip
    shapes = shapes_on_meta(lambda: univla.UniVLANetwork(config)) | univla.training_shapes(config)
    shapes |= {f"dino_encoder.{key}": shape for key, shape in backbone.items()}
    for name in ("norm1", "norm2"):
        shapes |= univla.norm_shapes(f"{block}.{name}", dim)
    shapes |= univla.linear_shapes(f"{block}.attn.qkv", 3 * dim, dim)
    for name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        shapes |= univla.linear_shapes(f"{block}.{name}", dim, dim)
    return shapes | univla.norm_shapes("dino_encoder.norm", dim)


def save_univla(file: Path, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save({"epoch": 1, "state_dict": {f"lam.{key}": value for key, value in tensors.items()}}, file)
    return file


def load_univla(file: Path, **backbone: Any) -> UniVLA:
    spec = replace(UNIVLA, factory=UniVLA, options={"network": NETWORK, "backbone": {**BACKBONE, **backbone}})
    encoder = build(spec, ModelContext("cpu", "corrected", weights=str(file))).author
    assert isinstance(encoder, UniVLA)
    return encoder


def villa_tensors(**changes: Any) -> dict[str, torch.Tensor]:
    config = villa.VillaConfig(**{**VILLA, **changes})
    return drawn(shapes_on_meta(lambda: villa.VillaNetwork(config)) | villa.training_shapes(config))


def save_villa(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architecture": "IgorModel", "config": {**VILLA, **changes}}
    (folder / "model_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def load_villa(folder: Path) -> VillaX:
    encoder = build(replace(VILLA_X, factory=VillaX), ModelContext("cpu", "corrected", weights=str(folder))).author
    assert isinstance(encoder, VillaX)
    return encoder


def clips(frames: int, size: int = 28, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, frames, 3, size, size, generator=generator)


def millions(*shapes: univla.Shapes) -> float:
    return round(sum(int(np.prod(shape)) for part in shapes for shape in part.values()) / 1e6, 2)


def test_univla_has_the_published_number_of_parameters() -> None:
    config = univla.UniVLAConfig(**UNIVLA.options["network"])
    backbone = backbone_config(UNIVLA.options["backbone"])
    parts = (
        shapes_on_meta(lambda: univla.UniVLANetwork(config)),
        univla.training_shapes(config),
        shapes_on_meta(lambda: transformers.Dinov2WithRegistersModel(backbone)),
    )
    assert millions(*parts) == UNIVLA.parameters_m == 287.75


def test_villa_has_the_published_number_of_parameters() -> None:
    config = villa.VillaConfig(action_latent_dim=32, num_learned_tokens=2, decoder_depth=12)
    parts = (shapes_on_meta(lambda: villa.VillaNetwork(config)), villa.training_shapes(config))
    assert millions(*parts) == VILLA_X.parameters_m == 238.71


def test_univla_steps_of_a_clip_are_those_of_its_pairs(tmp_path: Path) -> None:
    encoder = load_univla(save_univla(tmp_path / "any.ckpt", drawn(univla_shapes())))
    batch = clips(4)
    whole = encoder.encode(batch)
    pairs = [encoder.encode(batch[:, step : step + 2]) for step in range(3)]
    assert whole.tokens.shape == (2, 3, 4, 5)
    assert pairs[0].tokens.shape == (2, 4, 5)
    assert whole.codes is not None
    assert whole.codes.dtype == torch.int64
    assert torch.equal(whole.tokens, torch.stack([pair.tokens for pair in pairs], dim=1))
    assert torch.equal(whole.codes, torch.stack([pair.codes for pair in pairs], dim=1))
    assert len(whole.codes.unique()) > 1, "latents that are all alike test nothing"


def test_univla_depends_on_both_frames(tmp_path: Path) -> None:
    encoder = load_univla(save_univla(tmp_path / "any.ckpt", drawn(univla_shapes())))
    first, other = clips(2), clips(2)
    for frame in range(2):
        changed = first.clone()
        changed[:, frame] = other[:, frame].flip(-1) * 3
        with torch.inference_mode():
            latent = [encoder.network(encoder.features(pair)).latent for pair in (first, changed)]
        assert not torch.allclose(*latent, atol=1e-3)


def test_univla_runs_without_the_decoder_and_without_layer_scale(tmp_path: Path) -> None:
    tensors = drawn(univla_shapes())
    ones = {key: torch.ones_like(value) if "gamma" in key else value for key, value in tensors.items()}
    needed = {
        key: value
        for key, value in ones.items()
        if "gamma" not in key and not key.startswith(("decoder.", "patch_up", "action_up")) and "mask" not in key
    }
    batch = clips(2)
    expected = load_univla(save_univla(tmp_path / "scaled.ckpt", ones)).encode(batch)
    stripped = load_univla(save_univla(tmp_path / "stripped.ckpt", needed), layerscale=False).encode(batch)
    assert torch.equal(stripped.tokens, expected.tokens)


@pytest.mark.parametrize(
    ("key", "shape", "told"),
    [
        ("to_codebook.bias", None, "1 missing: to_codebook.bias"),
        ("to_codebook.bias", (6,), r"1 misshaped: to_codebook.bias \[6\] for \[5\]"),
        ("strange.weight", (2, 2), "1 unexpected: strange.weight"),
        ("dino_encoder.norm.bias", None, "1 missing: layernorm.bias"),
        ("dino_encoder.strange", (2,), r"1 unexpected: dino_encoder.strange \(unknown\)"),
    ],
)
def test_univla_accounts_for_every_key(key: str, shape: tuple[int, ...] | None, told: str, tmp_path: Path) -> None:
    tensors = drawn(univla_shapes())
    tensors.pop(key, None)
    if shape:
        tensors[key] = torch.zeros(shape)
    with pytest.raises(LaryError, match=told):
        load_univla(save_univla(tmp_path / "lam-stage-2.ckpt", tensors))


def test_univla_refuses_files_that_are_not_its_own(tmp_path: Path) -> None:
    file = tmp_path / "lam-stage-2.ckpt"
    with pytest.raises(UsageError, match=r"holds no lam-stage-2\.ckpt"):
        load_univla(tmp_path)
    torch.save({"model": {}}, file)
    with pytest.raises(LaryError, match="no tensors by name at the top or under 'state_dict', only entries model"):
        load_univla(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": {"optimizer": torch.optim.AdamW}}, file)
    with pytest.raises(LaryError, match=r"besides tensors they hold .*AdamW"):
        load_univla(file)
    save_univla(file, drawn(univla_shapes()))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(LaryError, match="can't be read"):
        load_univla(file)


def test_univla_refuses_frames_that_make_no_patches_or_no_step(tmp_path: Path) -> None:
    encoder = load_univla(save_univla(tmp_path / "any.ckpt", drawn(univla_shapes())))
    with pytest.raises(LaryError, match="multiples of 14"):
        encoder.encode(clips(2, size=30))
    with pytest.raises(LaryError, match="at least 2 frames"):
        encoder.encode(clips(1))


def test_villa_windows_slide_by_one_frame(tmp_path: Path) -> None:
    encoder = load_villa(save_villa(tmp_path, villa_tensors()))
    batch = clips(6)
    whole = encoder.network.latents(batch)
    windows = [encoder.network.latents(batch[:, start : start + 3]) for start in range(4)]
    expected = torch.cat([windows[0], *(window[:, -1:] for window in windows[1:])], dim=1)
    torch.testing.assert_close(whole, expected)
    assert whole.shape == (2, 5, 3, 5)
    assert not torch.allclose(windows[1][:, 0], whole[:, 1], atol=1e-4), "a window has to see the frames before"


def test_villa_shapes_are_those_that_the_benchmark_stores(tmp_path: Path) -> None:
    encoder = load_villa(save_villa(tmp_path, villa_tensors()))
    pair, clip = encoder.encode(clips(2)), encoder.encode(clips(6))
    assert pair.tokens.shape == (2, 3, 5)
    assert clip.tokens.shape == (2, 5, 3, 5)
    assert pair.codes is not None
    assert clip.codes is not None
    assert pair.codes.shape == (2, 3, 1)
    assert clip.codes.shape == (2, 5, 3)
    rows = encoder.network.vq.embedding.weight
    assert torch.equal(clip.tokens, rows[clip.codes])
    assert len(clip.codes.unique()) > 1, "latents that are all alike test nothing"


def test_villa_tokens_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    encoder = load_villa(save_villa(tmp_path, villa_tensors()))
    for frames in (2, 5):
        batch = clips(frames, batch=3)
        whole = encoder.encode(batch)
        assert torch.equal(whole.tokens, torch.cat([encoder.encode(clip[None]).tokens for clip in batch]))


def test_latents_that_are_not_finite_show(tmp_path: Path) -> None:
    tensors = drawn(univla_shapes()) | {"to_codebook.bias": torch.full((5,), torch.inf)}
    encoders = [
        load_univla(save_univla(tmp_path / "any.ckpt", tensors)),
        load_villa(save_villa(tmp_path, villa_tensors() | {"encoder.norm.g": torch.full((24,), torch.nan)})),
    ]
    for encoder in encoders:
        assert not encoder.encode(clips(2)).tokens.isfinite().any()


def test_villa_takes_frames_of_another_size_as_the_published_code_does(tmp_path: Path) -> None:
    encoder = load_villa(save_villa(tmp_path, villa_tensors()))
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 52, 3), dtype=np.uint8)
    as_it_is = replace(VILLA_X.preprocess, resize="none", size=40)
    whole = torch.from_numpy(prepare(frames[:, :, :40].copy(), as_it_is))[None]
    fitted = prepare(frames[:, :, :40].copy(), replace(as_it_is, resize="torch_bilinear", size=28))
    torch.testing.assert_close(encoder.fitted(whole)[0], torch.from_numpy(fitted), rtol=0, atol=1e-5)
    assert torch.equal(encoder.encode(whole).tokens, encoder.encode(torch.from_numpy(fitted)[None]).tokens)


@pytest.mark.parametrize(
    "changes",
    [{"st_use_qk_norm": False}, {"use_qk_norm": False}, {"num_learned_tokens": 1}, {"in_channels": 4}, {"d_t": 8}],
    ids=lambda changes: next(iter(changes)),
)
def test_villa_honours_the_configuration(changes: dict[str, Any], tmp_path: Path) -> None:
    encoder = load_villa(save_villa(tmp_path, villa_tensors(**changes), **changes))
    learned = changes.get("num_learned_tokens", 3)
    assert encoder.encode(clips(5)).tokens.shape == (2, 4, learned, 5)


def test_villa_is_found_by_folder_by_file_and_in_a_copy_of_the_repository(tmp_path: Path) -> None:
    tensors = villa_tensors()
    folder = save_villa(tmp_path / "repository" / "lam", {k: v for k, v in tensors.items() if "decoder" not in k})
    found = {load_villa(path).identity.digest for path in (folder, folder.parent, folder / "model.safetensors")}
    assert len(found) == 1
    torch.save(tensors, folder / "model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_villa(folder).network.vq.embedding.weight, tensors["vq.embedding.weight"])
    (folder / "model.bin").unlink()
    with pytest.raises(UsageError, match=r"holds no .*model\.safetensors"):
        load_villa(folder)
    (folder / "model_config.json").unlink()
    with pytest.raises(UsageError, match=r"holds no model_config\.json"):
        load_villa(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder_embed_dim": "24"}, "encoder_embed_dim '24'"),
        ({"n_codes": 0}, "n_codes 0"),
        ({"st_use_qk_norm": 1}, "st_use_qk_norm 1"),
        ({"encoder_depth": True}, "encoder_depth True"),
        ({"resolution": 30}, "resolution 30 is no multiple of patch_size 14"),
        ({"encoder_depth": 3}, r"missing: encoder\.layers\.2"),
        ({"encoder_depth": 1}, r"unexpected: encoder\.layers\.1"),
        ({"n_codes": 8}, r"misshaped: vq\.embedding\.weight \[9, 5\] for \[8, 5\]"),
    ],
)
def test_villa_refuses_a_configuration_that_does_not_fit(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    save_villa(tmp_path, villa_tensors(), **changes)
    with pytest.raises(LaryError, match=told):
        load_villa(tmp_path)


def test_villa_refuses_another_architecture_and_names_strange_fields(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_villa(tmp_path, villa_tensors(), proprio_dim=7, grid_size=2)
    with caplog.at_level("WARNING"):
        load_villa(tmp_path)
    assert "proprio_dim" in caplog.text
    assert "grid_size" not in caplog.text
    (tmp_path / "model_config.json").write_text(json.dumps({"architecture": "ActorModel", "config": VILLA}))
    with pytest.raises(LaryError, match="not the configuration of a villa-X latent action model"):
        load_villa(tmp_path)


def test_villa_refuses_what_has_no_step(tmp_path: Path) -> None:
    encoder = load_villa(save_villa(tmp_path, villa_tensors()))
    with pytest.raises(LaryError, match="at least 2 frames"):
        encoder.encode(clips(1))
