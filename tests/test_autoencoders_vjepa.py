"""Wan2.2, FLUX.2 and V-JEPA 2: sizes of the published networks, forms of weights, protocols, batches, errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lary.models.autoencoders import flux_arguments, wan_arguments
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext
from lary.models.vjepa import vjepa_arguments, whole_tubelets
from lary.types import BenchmarkProtocol, LaryError, UsageError
from tests.tiny_networks import TINY, save_tiny_network, tiny_network

NAMES = ["wan2-2", "flux2", "vjepa2"]
SIDE = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A library's folder of each model."""
    root = tmp_path_factory.mktemp("weights")
    return {name: save_tiny_network(root / name, name) for name in NAMES}


def make(name: str, weights: Path | str | None, protocol: BenchmarkProtocol = "corrected") -> Any:
    """The encoder of a model's record, with the tiny configuration and small frames."""
    spec = MODELS.get(name)
    spec = replace(
        spec,
        pair_shape=(),
        clip_shape=(),
        pair_shape_paper=(),
        clip_shape_paper=(),
        preprocess=replace(spec.preprocess, size=SIDE),
        preprocess_paper=spec.preprocess_paper and replace(spec.preprocess_paper, size=SIDE),
        options={**spec.options, "config": TINY[name]},
    )
    return build(spec, ModelContext("cpu", protocol, weights=weights and str(weights)))


def draw(batch: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Records


def test_full_sizes_are_those_of_the_paper() -> None:
    """The published tables count encoder and decoder of an autoencoder, and V-JEPA 2's encoder alone."""
    config = {name: MODELS.get(name).options["config"] for name in NAMES}
    with torch.device("meta"):
        networks = {
            "wan2-2": diffusers.AutoencoderKLWan(**wan_arguments(**config["wan2-2"])),
            "flux2": diffusers.AutoencoderKLFlux2(**flux_arguments(**config["flux2"])),
            "vjepa2": transformers.VJEPA2Model(
                transformers.VJEPA2Config(**vjepa_arguments(**config["vjepa2"]))
            ).encoder,
        }
    millions = {
        name: round(sum(value.numel() for value in network.parameters()) / 1e6, 2) for name, network in networks.items()
    }
    assert millions == {"wan2-2": 704.69, "flux2": 84.05, "vjepa2": 303.89}
    assert millions == {name: MODELS.get(name).parameters_m for name in NAMES}


def test_preprocessing_is_that_of_the_weights() -> None:
    wan, flux, vjepa = (MODELS.get(name).preprocess for name in NAMES)
    assert wan == flux
    assert (wan.size, wan.resize, wan.scale, wan.mean, wan.std) == (224, "pil_lanczos", 255, (0.5,) * 3, (0.5,) * 3)
    assert (vjepa.short_side, vjepa.size, vjepa.resize) == (256, 224, "cv2_linear")
    assert MODELS.get("flux2").preprocessing("paper", "pair") == replace(flux, scale=1.0)
    clip = MODELS.get("flux2").preprocessing("paper", "clip")
    assert (clip.resize, clip.scale, clip.mean, clip.std) == ("cv2_cubic", 255, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_shapes_are_those_of_the_full_size(name: str, folders: dict[str, Path]) -> None:
    """A tiny network has as many tokens at 224 x 224 as the published one."""
    spec = MODELS.get(name)
    encoder = build(spec, ModelContext("cpu", "corrected", weights=str(folders[name])))
    for frames, shape in ((2, spec.pair_shape), (9, spec.clip_shape)):
        tokens = encoder.encode(torch.zeros(1, frames, 3, 224, 224)).tokens[0]
        assert tokens.shape[:-1] == shape[:-1]
        assert shape[-1] == spec.dim


# Shapes, protocols, batches


@pytest.mark.parametrize(
    ("name", "protocol", "frames", "shape"),
    [
        ("wan2-2", "corrected", 2, (2, 4, 48)),
        ("wan2-2", "paper", 2, (1, 4, 48)),
        ("wan2-2", "corrected", 9, (3, 4, 48)),
        ("wan2-2", "paper", 9, (3, 4, 48)),
        ("flux2", "corrected", 2, (2, 4, 128)),
        ("flux2", "paper", 2, (2, 4, 128)),
        ("flux2", "corrected", 9, (9, 4, 128)),
        ("vjepa2", "corrected", 2, (4, 24)),
        ("vjepa2", "corrected", 9, (20, 24)),
        ("vjepa2", "paper", 9, (16, 24)),
    ],
)
def test_tokens_of_pairs_and_clips(
    name: str, protocol: BenchmarkProtocol, frames: int, shape: tuple[int, ...], folders: dict[str, Path]
) -> None:
    encoder = make(name, folders[name], protocol)
    tokens = encoder.encode(draw(2, frames)).tokens
    assert tokens.shape == (2, *shape)
    assert tokens.dtype == torch.float32
    assert tokens.shape[-1] == encoder.dim
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
@pytest.mark.parametrize("frames", [2, 9])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_do_not_depend_on_the_batch(
    name: str, frames: int, protocol: BenchmarkProtocol, folders: dict[str, Path]
) -> None:
    encoder, clips = make(name, folders[name], protocol), draw(3, frames)
    together = encoder.encode(clips).tokens
    for parts in (1, 2):
        assert torch.equal(torch.cat([encoder.encode(part).tokens for part in clips.split(parts)]), together)
    assert torch.equal(encoder.encode(clips.flip(0)).tokens.flip(0), together)


def test_the_target_of_a_pair_reaches_wan_under_corrected_alone(folders: dict[str, Path]) -> None:
    pair, other = draw(1, 2), draw(1, 2, seed=1)
    mixed = torch.cat([pair[:, :1], other[:, 1:]], dim=1)
    paper, corrected = (make("wan2-2", folders["wan2-2"], protocol) for protocol in ("paper", "corrected"))
    assert torch.equal(paper.encode(pair).tokens, paper.encode(mixed).tokens)
    before, after = corrected.encode(pair).tokens, corrected.encode(mixed).tokens
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)
    assert torch.equal(before[:, :1], paper.encode(pair).tokens)


def test_the_ninth_frame_reaches_vjepa_under_corrected_alone(folders: dict[str, Path]) -> None:
    clip = draw(1, 9)
    other = torch.cat([clip[:, :8], draw(1, 1, seed=1)], dim=1)
    paper, corrected = (make("vjepa2", folders["vjepa2"], protocol) for protocol in ("paper", "corrected"))
    assert torch.equal(paper.encode(clip).tokens, paper.encode(other).tokens)
    assert not torch.allclose(corrected.encode(clip).tokens, corrected.encode(other).tokens, atol=1e-3)


def test_whole_tubelets() -> None:
    steps = torch.arange(5)[None]
    assert whole_tubelets(steps, 2, repeat=True).tolist() == [[0, 1, 2, 3, 4, 4]]
    assert whole_tubelets(steps, 2, repeat=False).tolist() == [[0, 1, 2, 3]]
    assert whole_tubelets(steps, 3, repeat=True).tolist() == [[0, 1, 2, 3, 4, 4]]
    assert whole_tubelets(steps, 5, repeat=False).tolist() == [[0, 1, 2, 3, 4]]


def test_flux_tokens_stand_at_their_cells_under_corrected(folders: dict[str, Path]) -> None:
    """A change in one corner moves that corner's token most; under ``paper`` rows of pixels are no picture."""
    clip = draw(1, 1)
    changed = clip.clone()
    changed[..., :12, -12:] *= -1
    encoder = make("flux2", folders["flux2"])
    change = (encoder.encode(changed).tokens - encoder.encode(clip).tokens).norm(dim=-1)[0, 0]
    assert change.argmax() == 1  # row 0, column 1 of 2 x 2 cells


# Forms of weights


def library_tokens(name: str, network: Any, clips: torch.Tensor) -> torch.Tensor:
    """Tokens by the library's own network, written the long way."""
    with torch.inference_mode():
        if name == "vjepa2":
            return network(clips, skip_predictor=True).last_hidden_state
        if name == "wan2-2":
            latents = network.encode(clips.transpose(1, 2)).latent_dist.mode()  # (1, D, P, h, w)
            mean, std = (torch.tensor(network.config[key]) for key in ("latents_mean", "latents_std"))
            return (latents.permute(0, 2, 3, 4, 1).flatten(2, 3) - mean) / std
        latents = network.encode(clips[0]).latent_dist.mode()  # (T, D / 4, h, w)
        frames, channels, height, width = latents.shape
        folded = latents.reshape(frames, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        tokens = folded.reshape(frames, height * width // 4, channels * 4)
        return ((tokens - network.bn.running_mean) / (network.bn.running_var + 1e-4).sqrt())[None]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_the_library_gives_the_library_s_tokens(name: str, folders: dict[str, Path]) -> None:
    clips = draw(1, 5 if name == "wan2-2" else 4)
    network = tiny_network(name)
    if name == "vjepa2":  # its grid of positions has to be that of the frames
        folder = json.loads((folders[name] / "config.json").read_text())
        assert folder["crop_size"] == 224
        weights = network.state_dict()
        network = transformers.VJEPA2Model(transformers.VJEPA2Config.from_dict({**folder, "crop_size": SIDE}))
        network.load_state_dict(weights)
    expected = library_tokens(name, network.eval(), clips)
    torch.testing.assert_close(make(name, folders[name]).encode(clips).tokens, expected, rtol=1e-5, atol=1e-5)


def test_files_folders_and_pipelines_give_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    clips = draw(1, 2)
    for name in ("wan2-2", "flux2"):
        expected = make(name, folders[name])
        shutil.copytree(folders[name], tmp_path / name / "vae")
        (tmp_path / name / "config.json").write_text('{"_class_name": "SomePipeline"}')
        file = folders[name] / "diffusion_pytorch_model.safetensors"
        for weights in (tmp_path / name, tmp_path / name / "vae", file):
            encoder = make(name, weights)
            assert torch.equal(encoder.encode(clips).tokens, expected.encode(clips).tokens)
            assert encoder.identity.digest == expected.identity.digest


def test_half_precision_weights_are_run_in_float32(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in NAMES:
        folder = Path(shutil.copytree(folders[name], tmp_path / name))
        file = next(folder.glob("*.safetensors"))
        halved = {
            key: value.bfloat16() if value.is_floating_point() else value for key, value in load_file(file).items()
        }
        save_file(halved, file)
        assert make(name, folder).encode(draw(1, 2)).tokens.dtype == torch.float32


def test_decoder_and_predictor_may_be_absent_and_are_not_in_memory(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, beginning in (("wan2-2", "decoder."), ("flux2", "decoder."), ("vjepa2", "predictor.")):
        folder = Path(shutil.copytree(folders[name], tmp_path / name))
        file = next(folder.glob("*.safetensors"))
        tensors = load_file(file)
        assert any(key.startswith(beginning) for key in tensors)
        save_file({key: value for key, value in tensors.items() if not key.startswith(beginning)}, file)
        encoder = make(name, folder)
        assert torch.equal(encoder.encode(draw(1, 2)).tokens, make(name, folders[name]).encode(draw(1, 2)).tokens)
        assert not any(f".{beginning}" in f".{key}" for key in encoder.module.state_dict())


# What doesn't fit


def spoil_one_key(tensors: dict[str, torch.Tensor]) -> str:
    """Take a key that is used away."""
    key = next(key for key in tensors if key.startswith("encoder.") and key.endswith("conv_in.bias"))
    del tensors[key]
    return f"1 missing: {key}"


def add_a_key(tensors: dict[str, torch.Tensor]) -> str:
    tensors["encoder.extra"] = torch.zeros(2)
    return "1 unexpected: encoder.extra"


def reshape_a_key(tensors: dict[str, torch.Tensor]) -> str:
    tensors["encoder.conv_in.bias"] = torch.zeros(7)
    return r"1 misshaped: encoder.conv_in.bias \[7\] for"


@pytest.mark.parametrize("change", [spoil_one_key, add_a_key, reshape_a_key])
@pytest.mark.parametrize("name", ["wan2-2", "flux2"])
def test_keys_that_do_not_fit_stop_with_their_names(
    name: str, change: Callable[[dict[str, torch.Tensor]], str], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / name))
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    told = change(tensors)
    save_file(tensors, file)
    with pytest.raises(LaryError, match=told):
        make(name, folder)


def test_released_files_of_another_layout_or_content_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "ae.safetensors"
    save_file({"encoder.down.0.block.0.norm9.weight": torch.zeros(2)}, other)
    with pytest.raises(LaryError, match=r"1 unexpected: encoder\.down\.0\.block\.0\.norm9\.weight \(unknown\)"):
        make("flux2", other)
    section = tmp_path / "vitl.pt"
    torch.save({"encoder": {}, "epoch": 3}, section)
    with pytest.raises(LaryError, match="under 'target_encoder', only entries encoder, epoch"):
        make("vjepa2", section)
    torch.save({"target_encoder": {"module.backbone.norm.weight": 1.0}}, section)
    with pytest.raises(LaryError, match="under 'target_encoder', only entries target_encoder"):
        make("vjepa2", section)
    torch.save({"target_encoder": {"module.backbone.blocks.0.attn.qkv.bias": torch.zeros(7)}}, section)
    with pytest.raises(LaryError, match=r"blocks\.0\.attn\.qkv\.bias \(unknown\)"):
        make("vjepa2", section)


class Hostile:
    """An object whose unpickling would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_code_and_damage_in_files_are_refused_and_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    pickled = tmp_path / "Wan2.2_VAE.pth"
    torch.save({"encoder.conv1.weight": Hostile(tmp_path / "trace")}, pickled)
    with pytest.raises(LaryError, match=r"besides tensors they hold .*pathlib"):
        make("wan2-2", pickled)
    assert not (tmp_path / "trace").exists()
    torch.save({"encoder.conv1.weight": torch.zeros(9999)}, pickled)
    pickled.write_bytes(pickled.read_bytes()[:5000])
    with pytest.raises(LaryError, match="can't be read as plain tensors"):
        make("wan2-2", pickled)
    cut = Path(shutil.copytree(folders["flux2"], tmp_path / "flux")) / "diffusion_pytorch_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(LaryError, match="can't be read"):
        make("flux2", cut)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("wan2-2", {"latents_mean": [0.0] * 16}, "one value for each of 48"),
        (
            "wan2-2",
            {"base_dim": 8},
            r"\d+ misshaped: encoder\.conv_in\.weight \[4, 12, 3, 3, 3\] for \[8, 12, 3, 3, 3\]",
        ),
        ("flux2", {"layers_per_block": 2}, r"\d+ missing: encoder\.down_blocks"),
        ("flux2", {"norm_num_groups": 7}, "describes no AutoencoderKLFlux2: num_channels .32. must be divisible"),
        ("vjepa2", {"num_hidden_layers": 3}, r"\d+ missing: encoder\.layer\.2"),
        ("vjepa2", {"num_attention_heads": 5}, "describes no VJEPA2Model: The hidden size"),
    ],
)
def test_a_configuration_that_does_not_fit_is_told(
    name: str, change: dict[str, Any], told: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / name))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(LaryError, match=told):
        make(name, folder)


def test_frames_of_the_wrong_size_are_told(folders: dict[str, Path]) -> None:
    for name in NAMES:
        encoder = make(name, folders[name])
        with pytest.raises(LaryError, match=r"(multiples of 16|frames of 32 x 32 pixels), not 40 x 32"):
            encoder.encode(torch.zeros(1, 2, 3, 32, 40))
        with pytest.raises(LaryError, match=r"not \[1, 3, 2, 32, 32\]"):
            encoder.encode(torch.zeros(1, 3, 2, 32, 32))
    with pytest.raises(LaryError, match="needs frames of 32 x 32 pixels, not 64 x 64"):
        make("vjepa2", folders["vjepa2"]).encode(torch.zeros(1, 2, 3, 64, 64))
    with pytest.raises(LaryError, match="at least 2 frames"):
        make("vjepa2", folders["vjepa2"], "paper").encode(torch.zeros(1, 1, 3, 32, 32))


def test_absent_weights_are_named_with_where_they_go(tmp_path: Path) -> None:
    for name, variable, file in (
        ("wan2-2", "WAN22_VAE_PATH", "Wan2.2_VAE.pth"),
        ("flux2", "AE_MODEL_PATH", "ae.safetensors"),
        ("vjepa2", "VJEPA2_CKPT_PATH", "vitl.pt"),
    ):
        with pytest.raises(UsageError, match=f"none given.*{variable}.*{file}"):
            make(name, None)
        with pytest.raises(UsageError, match=f"holds no .*{file}"):
            make(name, tmp_path)
