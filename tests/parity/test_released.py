"""Wan2.2, FLUX.2 and V-JEPA 2 against what the published code computes, loaded from files as they were released."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lary.models.running import build
from lary.models.spec import MODELS, ModelContext
from lary.types import BenchmarkProtocol
from tests.parity.conftest import Case, load_case, model_cases

WAN_CASES, FLUX_CASES, VJEPA_CASES = (model_cases(name) for name in ("wan2-2", "flux2", "vjepa2"))


def save_released(case: Case, folder: Path) -> Path:
    """The case's weights as the released file has them, beside the entries that training leaves there."""
    ignored = tuple(pattern.rstrip("*") for pattern in case.about["ignored_keys"])
    weights = case.weights(without=ignored)
    if case.about["model"] == "flux2":
        save_file(weights, folder / "ae.safetensors")
        return folder / "ae.safetensors"
    content: Any = {key: torch.from_numpy(value) for key, value in weights.items()}
    if case.about["model"] == "vjepa2":
        wrapped = {f"module.backbone.{key}": value for key, value in content.items()}
        content = {"target_encoder": wrapped, "encoder": {}, "epoch": 3, "opt": None}
    torch.save(content, folder / "weights.pt")
    return folder / "weights.pt"


def encode(case: Case, file: Path, protocol: BenchmarkProtocol, clips: np.ndarray) -> torch.Tensor:
    spec = MODELS.get(case.about["model"])
    constants = {name: case.about[name] for name in ("latents_mean", "latents_std") if name in case.about}
    options = {**spec.options, "config": case.config, **constants}
    shapes = dict.fromkeys(("pair_shape", "clip_shape", "pair_shape_paper", "clip_shape_paper"), ())
    spec = replace(spec, options=options, preprocess=replace(spec.preprocess, size=clips.shape[-1]), **shapes)
    encoder = build(spec, ModelContext("cpu", protocol, str(file)))
    return encoder.encode(torch.from_numpy(np.ascontiguousarray(clips, dtype=np.float32))).tokens


def wan_clip(case: Case, name: str) -> np.ndarray:
    """One sample (1, T, 3, H, W) in [-1, 1]; the case has channels first."""
    return (case.draw(name, "x * 2 - 1") * 2 - 1).swapaxes(0, 1)[None]


@pytest.mark.parametrize("name", WAN_CASES)
def test_wan_tokens_equal_the_published_ones_and_frames_of_a_corrected_pair_are_images(
    name: str, tmp_path: Path
) -> None:
    case = load_case(name)
    file, clips = save_released(case, tmp_path), {kind: wan_clip(case, f"clip_{kind}") for kind in ("image", "video")}
    case.check_all(**{f"tokens_{kind}": encode(case, file, "paper", clip)[0] for kind, clip in clips.items()})
    tokens = encode(case, file, "corrected", clips["image"])
    assert tokens.shape[1] == 2
    case.check("tokens_image", tokens[0, :1])  # all that the published code sees
    assert torch.equal(tokens.flip(1), encode(case, file, "corrected", clips["image"][:, ::-1]))
    assert not torch.equal(tokens[:, 0], tokens[:, 1])


def flux_clips(case: Case, protocol: BenchmarkProtocol, name: str) -> np.ndarray:
    """The case's frames, normalised as the record or, for clips, the published code does: (B, T, 3, H, W)."""
    if name == "video":
        frames = case.draw(name, "x in [0,1) stands for the resized frames / 255, (B, T, H, W, 3)") * 2 - 1
    else:
        rule = MODELS.get("flux2").preprocessing(protocol, "pair")
        drawn = case.draw(name, "uint8 = floor(x * 256), (B, T=2, H, W, 3), already resized")
        pixels = np.floor(drawn * 256).astype(np.float32)
        frames = (pixels / np.float32(rule.scale) - np.float32(rule.mean)) / np.float32(rule.std)
    return np.moveaxis(frames, -1, 2)


@pytest.mark.parametrize("name", FLUX_CASES)
def test_flux_latents_and_tokens_equal_the_published_and_the_corrected_ones(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    file = save_released(case, tmp_path)
    images = case.draw("pixels", "x * 2 - 1 (N, 3, H, W)") * 2 - 1
    cells = [side // 2 ** len(case.config["ch_mult"]) for side in images.shape[2:]]
    latents = encode(case, file, "corrected", images[:, None])[:, 0].transpose(1, 2).unflatten(2, cells)
    found = {"latents": latents}
    for kind, output in (("image_pair", "image"), ("video", "video")):
        found[f"tokens_{output}_upstream"] = encode(case, file, "paper", flux_clips(case, "paper", kind))
        found[f"tokens_{output}_fixed"] = encode(case, file, "corrected", flux_clips(case, "corrected", kind))
    case.check_all(**found)


@pytest.mark.parametrize("name", VJEPA_CASES)
def test_vjepa_tokens_equal_the_published_ones_and_the_last_frame_is_repeated(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    file, clips = save_released(case, tmp_path), {}
    mean, std = (np.float32(value)[:, None, None] for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for kind in ("image", "video"):
        drawn = case.draw(f"clip_{kind}", "(x - mean) / std per channel on axis 1, ImageNet mean and std")
        clips[kind] = (drawn.swapaxes(1, 2) - mean) / std
    case.check_all(**{f"tokens_{kind}": encode(case, file, "paper", clip) for kind, clip in clips.items()})
    clip = clips["video"]
    padded = np.concatenate([clip, *[clip[:, -1:]] * (-clip.shape[1] % case.config["tubelet_size"])], axis=1)
    assert torch.equal(encode(case, file, "corrected", clip), encode(case, file, "paper", padded))
