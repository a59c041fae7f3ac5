"""UniVLA and villa-X: sizes of the released networks, steps of clips, and what is said about files that don't fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from lary.models.embodied import UniVLA, VillaX, backbone_config
from lary.models.preprocess import prepare
from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext
from lary.nets.spacetime import UniVLANetwork, VillaConfig, VillaNetwork

UNIVLA, VILLA_X = MODELS.get("univla"), MODELS.get("villa-x")
from lary.types import LaryError, UsageError
from tests.parity.fill import fill_tensor
from tests.parity.training_shapes import (
    Shapes,
    linear_shapes,
    norm_shapes,
    univla_training_shapes,
    villa_training_shapes,
)

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


def drawn(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Weights by name; gains of norms near one, so that latents spread over the codebook."""
    names = {key: f"{key}.weight" if key.endswith(".g") else key for key in shapes}
    return {key: torch.from_numpy(fill_tensor(names[key], shape)) for key, shape in shapes.items()}


def shapes_on_meta(make: Callable[[], torch.nn.Module]) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in make().state_dict().items()}


def univla_tensors() -> dict[str, torch.Tensor]:
    """The small checkpoint as a Lightning file has it, but for the wrapper's name."""
    config = NETWORK
    dim, block = 768, "dino_encoder.blocks.0"
    backbone: Shapes = {
        "cls_token": (1, 1, dim), "pos_embed": (1, 5, dim), "register_tokens": (1, 2, dim), "mask_token": (1, dim),
        "patch_embed.proj.weight": (dim, 3, 14, 14), "patch_embed.proj.bias": (dim,),
        "blocks.0.ls1.gamma": (dim,), "blocks.0.ls2.gamma": (dim,),
    }  # fmt: skip
    shapes = shapes_on_meta(lambda: UniVLANetwork(**config)) | univla_training_shapes(config)
    shapes |= {f"dino_encoder.{key}": shape for key, shape in backbone.items()}
    shapes |= norm_shapes(f"{block}.norm1", dim) | norm_shapes(f"{block}.norm2", dim)
    shapes |= linear_shapes(f"{block}.attn.qkv", 3 * dim, dim) | norm_shapes("dino_encoder.norm", dim)
    for name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        shapes |= linear_shapes(f"{block}.{name}", dim, dim)
    return drawn(shapes)


def save_univla(file: Path, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save({"epoch": 1, "state_dict": {f"lam.{key}": value for key, value in tensors.items()}}, file)
    return file


def load_univla(file: Path, **backbone: Any) -> LoadedEncoder:
    spec = replace(UNIVLA, factory=UniVLA, pair_shape=(), clip_shape=(),
                   options={"network": NETWORK, "backbone": {**BACKBONE, **backbone}})  # fmt: skip
    return build(spec, ModelContext("cpu", "corrected", weights=str(file)))


def villa_tensors(**changes: Any) -> dict[str, torch.Tensor]:
    config = VillaConfig(**{**VILLA, **changes})
    return drawn(shapes_on_meta(lambda: VillaNetwork(config)) | villa_training_shapes(config))


def save_villa(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architecture": "IgorModel", "config": {**VILLA, **changes}}
    (folder / "model_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def load_villa(folder: Path) -> LoadedEncoder:
    spec = replace(VILLA_X, factory=VillaX, pair_shape=(), clip_shape=())
    return build(spec, ModelContext("cpu", "corrected", weights=str(folder)))


def clips(frames: int, size: int = 28, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_networks_have_the_published_numbers_of_parameters() -> None:
    config, villa = UNIVLA.options["network"], VillaConfig(**VILLA_X.options["config"])
    backbone = backbone_config(UNIVLA.options["backbone"])
    for parts, wanted in (
        ((shapes_on_meta(lambda: UniVLANetwork(**config)), univla_training_shapes(config),
          shapes_on_meta(lambda: transformers.Dinov2WithRegistersModel(backbone))), UNIVLA.parameters_m),
        ((shapes_on_meta(lambda: VillaNetwork(villa)), villa_training_shapes(villa)), VILLA_X.parameters_m),
    ):  # fmt: skip
        assert round(sum(int(np.prod(shape)) for part in parts for shape in part.values()) / 1e6, 2) == wanted


def test_univla_steps_of_a_clip_are_those_of_its_pairs(tmp_path: Path) -> None:
    encoder, batch = load_univla(save_univla(tmp_path / "any.ckpt", univla_tensors())), clips(4)
    whole = encoder.encode(batch)
    pairs = [encoder.encode(batch[:, step : step + 2]) for step in range(3)]
    assert whole.tokens.shape == (2, 3, 4, 5)
    assert pairs[0].tokens.shape == (2, 4, 5)
    assert whole.codes.dtype == torch.int64
    assert torch.equal(whole.tokens, torch.stack([pair.tokens for pair in pairs], dim=1))
    assert torch.equal(whole.codes, torch.stack([pair.codes for pair in pairs], dim=1))
    assert len(whole.codes.unique()) > 1, "latents that are all alike test nothing"
    network, changed = encoder.author, clips(2)
    for frame in range(2):  # both frames count
        other = changed.clone()
        other[:, frame] = changed[:, frame].flip(-1) * 3
        latent = [network.network(network.features(pair)).latent for pair in (changed, other)]
        assert not torch.allclose(*latent, atol=1e-3)
    for wrong, named in ((clips(2, size=30), "multiples of 14"), (clips(1), "at least 2 frames")):
        with pytest.raises(LaryError, match=named):
            encoder.encode(wrong)


def test_univla_runs_without_the_decoder_and_without_layer_scale(tmp_path: Path) -> None:
    ones = {key: torch.ones_like(value) if "gamma" in key else value for key, value in univla_tensors().items()}
    unused = ("decoder.", "patch_up", "action_up", "dino_encoder.mask")
    needed = {key: value for key, value in ones.items() if "gamma" not in key and not key.startswith(unused)}
    expected = load_univla(save_univla(tmp_path / "scaled.ckpt", ones)).encode(clips(2))
    stripped = load_univla(save_univla(tmp_path / "stripped.ckpt", needed), layerscale=False).encode(clips(2))
    assert torch.equal(stripped.tokens, expected.tokens)


def test_villa_windows_slide_by_one_frame(tmp_path: Path) -> None:
    encoder, batch = load_villa(save_villa(tmp_path, villa_tensors())), clips(6)
    network = encoder.author.network
    whole = network.latents(batch)
    windows = [network.latents(batch[:, start : start + 3]) for start in range(4)]
    torch.testing.assert_close(whole, torch.cat([windows[0], *(window[:, -1:] for window in windows[1:])], dim=1))
    assert not torch.allclose(windows[1][:, 0], whole[:, 1], atol=1e-4), "a window has to see the frames before"
    pair, clip = encoder.encode(clips(2)), encoder.encode(batch)
    assert (pair.tokens.shape, pair.codes.shape) == ((2, 3, 5), (2, 3, 1))
    assert (clip.tokens.shape, clip.codes.shape) == ((2, 5, 3, 5), (2, 5, 3))
    assert torch.equal(clip.tokens, network.vq["embedding"].weight[clip.codes])
    assert len(clip.codes.unique()) > 1, "latents that are all alike test nothing"
    assert torch.equal(clip.tokens, torch.cat([encoder.encode(part[None]).tokens for part in batch]))
    with pytest.raises(LaryError, match="at least 2 frames"):
        encoder.encode(clips(1))


def test_latents_that_are_not_finite_show(tmp_path: Path) -> None:
    tensors = univla_tensors() | {"to_codebook.bias": torch.full((5,), torch.inf)}
    villa = villa_tensors() | {"encoder.norm.g": torch.full((24,), torch.nan)}
    for encoder in (load_univla(save_univla(tmp_path / "a.ckpt", tensors)), load_villa(save_villa(tmp_path, villa))):
        assert not encoder.encode(clips(2)).tokens.isfinite().any()


def test_villa_takes_frames_of_another_size_as_the_published_code_does(tmp_path: Path) -> None:
    encoder = load_villa(save_villa(tmp_path, villa_tensors()))
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    as_it_is = replace(VILLA_X.preprocess, resize="none", size=40)
    whole = torch.from_numpy(prepare(frames, as_it_is))[None]
    fitted = torch.from_numpy(prepare(frames, replace(as_it_is, resize="torch_bilinear", size=28)))[None]
    torch.testing.assert_close(encoder.author.fitted(whole), fitted, rtol=0, atol=1e-5)
    assert torch.equal(encoder.encode(whole).tokens, encoder.encode(fitted).tokens)


@pytest.mark.parametrize(
    "changes",
    [{"st_use_qk_norm": False}, {"use_qk_norm": False}, {"num_learned_tokens": 1}, {"in_channels": 4}, {"d_t": 8}],
    ids=lambda changes: next(iter(changes)),
)
def test_villa_honours_the_configuration(changes: dict[str, Any], tmp_path: Path) -> None:
    encoder = load_villa(save_villa(tmp_path, villa_tensors(**changes), **changes))
    assert encoder.encode(clips(5)).tokens.shape == (2, 4, changes.get("num_learned_tokens", 3), 5)


def test_villa_is_found_by_folder_by_file_and_in_a_copy_of_the_repository(tmp_path: Path) -> None:
    tensors = villa_tensors()
    folder = save_villa(tmp_path / "repository" / "lam", {k: v for k, v in tensors.items() if "decoder" not in k})
    found = {load_villa(path).identity for path in (folder, folder.parent, folder / "model.safetensors")}
    assert len(found) == 1
    torch.save(tensors, folder / "model.bin")
    (folder / "model.safetensors").unlink()
    assert load_villa(folder).identity not in found
    (folder / "model.bin").unlink()
    for named in (r"holds no .*model\.safetensors", r"holds no model_config\.json"):
        with pytest.raises(UsageError, match=named):
            load_villa(folder)
        (folder / "model_config.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("changes", "named"),
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
def test_villa_refuses_a_configuration_that_does_not_fit(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    save_villa(tmp_path, villa_tensors(), **changes)
    with pytest.raises(LaryError, match=named):
        load_villa(tmp_path)


def test_villa_refuses_another_architecture_and_names_unknown_fields(
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
