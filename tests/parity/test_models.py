"""The models against what the published code computes: what they are given, every step of their networks, tokens."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from safetensors.torch import save_file

from lary.models import preprocess as pre
from lary.models.lapa import load_network
from lary.models.spec import MODELS, Preprocess
from lary.models.tensors import weight_layout
from lary.models.weights import Checkpoint
from lary.nets.spacetime import VillaConfig, nearest_rows
from lary.types import BenchmarkProtocol, WeightsIdentity
from tests.parity import fill
from tests.parity.conftest import (
    Case,
    assert_statistics,
    case_names,
    load_case,
    load_univla,
    models_of_cases,
    network_record,
    normalised,
    open_model,
    open_villa,
    save_villa,
)

pytestmark = pytest.mark.timeout(1200)  # full sizes take minutes on a busy machine

Array = npt.NDArray[Any]
Output = tuple[str, Array, tuple[int, int], Preprocess, "int | None"]

CASES = case_names("lapa", "dinov2", "dinov3", "siglip2", "magvit2", "dinov3-cs*")
VILLA_CASES = case_names("villa-x")
DRAWN = Checkpoint((Path("drawn"),), None, WeightsIdentity())
# Output of case "preprocess": the record, and the axes of the output among (T, C, H, W).
SINGLE = {
    "vjepa2": (MODELS.get("vjepa2").preprocess, (1, 0, 2, 3)),
    "wan2-2": (MODELS.get("wan2-2").preprocess, (1, 0, 2, 3)),
    "flux2_image": (MODELS.get("flux2").preprocessing("paper"), (0, 2, 3, 1)),
    "flux2_video": (MODELS.get("dinov3").preprocess, (0, 2, 3, 1)),
    "default_pair": (MODELS.get("lapa").preprocess, (1, 0, 2, 3)),
}


def pixels(entry: dict[str, Any], then: str, number: object = "") -> npt.NDArray[np.uint8]:
    """A drawn image or clip; its description says how it becomes grey levels."""
    levels = re.search(r"\* (\d+)", then)
    assert levels, then
    drawn = fill.uniform(f"{entry['draw'].split('<')[0]}{number}", tuple(entry["shape"]))
    return np.floor(drawn * np.float32(levels[1])).astype(np.uint8)


def of_size(record: Preprocess, size: int) -> Preprocess:
    """The record for another output size, its resized short side in proportion."""
    short = None if record.short_side is None else record.short_side * size // record.size
    return replace(record, size=size, short_side=short)


def check_levels(case: Case, keys: tuple[str, str], whole: Array, part: Array, record: Preprocess) -> None:
    """Equal but for one grey level in at most 1 % of the values, which is what versions of the libraries differ by."""
    expected, statistics = (case.arrays[key] for key in keys)
    level = 1.0 if part.dtype == np.uint8 else 1 / record.scale / min(record.std)
    difference = np.abs(part.astype(np.float64) - expected)
    assert (part.shape, part.dtype) == (expected.shape, expected.dtype), keys
    assert difference.max() <= level * 1.001 + 1e-6, keys
    assert (difference > 1e-6 * max(1.0, np.abs(expected).max())).mean() <= 0.01, keys
    assert_statistics(whole.astype(np.float64).ravel(), statistics, level * 0.01 + 1e-7, keys[0])


@pytest.mark.parametrize("name", case_names("preprocessing (*"))
def test_every_model_gets_the_published_values(name: str) -> None:
    case = load_case(name)
    for key in case.about["outputs"]:
        source, model = key.split("/")
        entry, (record, axes) = case.about["input"][source], SINGLE[model]
        record = of_size(record, case.config["image_size"])
        out = pre.prepare(pixels(entry, entry["then"]), record).transpose(axes)
        first = out.ravel()[: case.arrays[f"{key}/first4096"].size]
        check_levels(case, (f"{key}/first4096", f"{key}/stats"), out, first, record)


def read_inputs(case: Case) -> tuple[Array, Array]:
    """The pair (2, H, W, 3) and the sampled frames (9, H, W, 3), indices clamped as the published code does."""
    inputs, last = case.about["input"], case.config["frames"] - 1
    then, indices = inputs["src"]["then"], np.clip(case.config["sample_indices"], 0, last)
    pair = [pixels(inputs[name], then) for name in ("src", "tgt")]
    return np.stack(pair), np.stack([pixels(inputs["frames"], then, index) for index in indices])


def lam_outputs(pair: Array, clip: Array, size: int) -> Iterator[Output]:
    """Each output by name: the array, its axes of height and width, its record, and an axis cropped to its ends."""
    names = ("lapa", "dinov3", "univla", "villa-x")
    cubic, signed, imagenet, villa = (of_size(MODELS.get(name).preprocess, size) for name in names)
    villa_clip = of_size(MODELS.get("villa-x").preprocessing("paper", "clip"), size)
    last, inner = (-2, -1), (-3, -2)
    frames = pre.prepare(clip, cubic)
    yield "image.cv", pre.prepare(pair, cubic).swapaxes(0, 1), last, cubic, None
    yield "image.cv_times2minus1", pre.prepare(pair, signed).swapaxes(0, 1), last, signed, None
    yield "image.univla_normalized", pre.prepare(pair, imagenet), last, imagenet, None
    yield "image.origin_mixed", pre.mix_planes(pre.prepare(pair, cubic)), last, cubic, None
    yield "image.villa-x", pre.resize(pair, villa), inner, villa, None
    yield "image.villa-x_normalized", pre.prepare(pair, villa), last, villa, None
    yield "video.cv_pairs", pre.neighbour_pairs(torch.from_numpy(frames)).numpy().swapaxes(1, 2), last, cubic, 0
    yield "video.origin", frames.swapaxes(0, 1), last, cubic, 1
    yield "video.origin_mixed", pre.mix_planes(frames), last, cubic, 0
    yield "video.villa-x", pre.resize(clip, villa_clip), inner, villa_clip, 0


@pytest.mark.parametrize("name", case_names("preprocessing of *"))
def test_latent_action_models_get_the_published_values(name: str) -> None:
    case = load_case(name)
    seen = {"video.rel_indices"}  # the data's reader makes those
    for key, array, axes, record, ends in lam_outputs(*read_inputs(case), case.config["image_size"]):
        keys = (f"{key}.crop", f"{key}.stats")
        seen |= set(keys)
        start, stop = map(int, re.search(r"(\d+):(\d+)", case.about["outputs"][keys[0]]).groups())  # type: ignore[union-attr]
        crop = array if ends is None else array.take([0, -1], axis=ends)
        for axis in axes:
            crop = crop.take(range(start, stop), axis=axis)
        check_levels(case, keys, array, crop, record)
    assert seen == set(case.about["outputs"]) | {"video.rel_indices"}


def save_checkpoint(case: Case, folder: Path, prefix: str) -> Path:
    """The case's backbone on disk: config.json and model.safetensors under the published key names."""
    config_class = getattr(transformers, case.about["backbone"]["class"].split()[0].split(".")[-1]).config_class
    folder.mkdir()
    config = {"model_type": config_class.model_type, **case.config["backbone"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({prefix + key: value for key, value in case.weights().items()}, folder / "model.safetensors")
    return folder


def encode_image(case: Case, folder: Path, protocol: BenchmarkProtocol, clips: Array) -> torch.Tensor:
    """Tokens of clips (B, T, 3, H, W) in [0, 1], normalised as the published code does."""
    spec = MODELS.get(case.about["model"])
    paper, sizes = spec.preprocessing("paper"), {"size": clips.shape[-1]}
    spec = replace(spec, preprocess=replace(spec.preprocess, **sizes), preprocess_paper=replace(paper, **sizes))
    return open_model(spec, folder, protocol).encode(normalised(clips, paper)).tokens


@pytest.mark.parametrize("name", case_names("*-origin"))
def test_tokens_and_planes_equal_the_published_ones(name: Any, tmp_path: Path) -> None:
    """Under ``corrected`` they are those of single frames; keys may have the prefix of the published file."""
    case = load_case(name)
    clips = np.ascontiguousarray(case.draw("x", "none: (B, 3, F, H, W) in [0, 1)").swapaxes(1, 2))
    case.check("mixed_images_corner", pre.mix_planes(clips)[..., :4, :4].reshape(-1, 3, 4, 4))
    folder = save_checkpoint(case, tmp_path / "bare", "")
    case.check("tokens", encode_image(case, folder, "paper", clips))
    tokens = encode_image(case, folder, "corrected", clips)
    assert tokens.shape == case.arrays["tokens"].shape
    case.check("tokens_unmixed_first_image", tokens[:, :1])
    if prefix := case.about["backbone"].get("prefix_in_published_file", "").split(" ")[0]:
        case.check("tokens", encode_image(case, save_checkpoint(case, tmp_path / "published", prefix), "paper", clips))


def save_released(case: Case, folder: Path) -> Path:
    """The case's weights as the released file has them, beside the entries that training leaves there."""
    weights: Any = case.weights(without=tuple(pattern.rstrip("*") for pattern in case.about["ignored_keys"]))
    if case.about["model"] == "flux2":
        save_file(weights, folder / "ae.safetensors")
        return folder / "ae.safetensors"
    if case.about["model"] == "vjepa2":
        wrapped = {f"module.backbone.{key}": value for key, value in weights.items()}
        weights = {"target_encoder": wrapped, "encoder": {}, "epoch": 3, "opt": None}
    torch.save(weights, folder / "weights.pt")
    return folder / "weights.pt"


def encode(case: Case, file: Path, protocol: BenchmarkProtocol, clips: Any) -> torch.Tensor:
    spec = MODELS.get(case.about["model"])
    constants = {name: case.about[name] for name in ("latents_mean", "latents_std") if name in case.about}
    options = {**spec.options, "config": case.config, **constants}
    spec = replace(spec, options=options, preprocess=replace(spec.preprocess, size=clips.shape[-1]))
    return open_model(spec, file, protocol).encode(torch.as_tensor(np.ascontiguousarray(clips))).tokens


@pytest.mark.parametrize("name", case_names("wan2-2"))
def test_wan_tokens_equal_the_published_ones_and_corrected_pairs_are_images(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    file, kinds = save_released(case, tmp_path), ("image", "video")
    drawn = {kind: case.draw(f"clip_{kind}", "x * 2 - 1") * 2 - 1 for kind in kinds}  # one sample, channels first
    clips = {kind: clip.swapaxes(0, 1)[None] for kind, clip in drawn.items()}
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
        levels = np.floor(drawn * 256).astype(np.float32)
        frames = (levels / np.float32(rule.scale) - np.float32(rule.mean)) / np.float32(rule.std)
    return np.moveaxis(frames, -1, 2)


@pytest.mark.parametrize("name", case_names("flux2"))
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


@pytest.mark.parametrize("name", case_names("vjepa2"))
def test_vjepa_tokens_equal_the_published_ones_and_the_last_frame_is_repeated(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    file, clips = save_released(case, tmp_path), {}
    for kind in ("image", "video"):
        drawn = case.draw(f"clip_{kind}", "(x - mean) / std per channel on axis 1, ImageNet mean and std")
        clips[kind] = normalised(drawn.swapaxes(1, 2), MODELS.get("vjepa2").preprocess)
    case.check_all(**{f"tokens_{kind}": encode(case, file, "paper", clip) for kind, clip in clips.items()})
    clip = clips["video"]
    padded = torch.cat([clip, *[clip[:, -1:]] * (-clip.shape[1] % case.config["tubelet_size"])], dim=1)
    assert torch.equal(encode(case, file, "corrected", clip), encode(case, file, "paper", padded))


def tensors_of(case: Case, unused: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """The case's weights, and its whole numbers as a model has them at first."""
    integers = [key for key in case.about["integer_keys"] if not key.startswith(unused)]
    return case.weights(without=unused) | dict.fromkeys(integers, torch.tensor(0))


def pairs_of(case: Case, preprocess: Preprocess) -> torch.Tensor:
    """The case's pairs (B, 2, 3, H, W), normalised as a record says."""
    return normalised(case.draw("video", "none: values in [0, 1)").swapaxes(1, 2), preprocess)


@pytest.mark.parametrize("name", CASES)
def test_every_step_equals_the_published_one(name: str) -> None:
    case = load_case(name)
    spec, tensors = network_record(case), tensors_of(case, weight_layout("laq").unused)
    network, pairs = load_network(spec, spec.options, DRAWN, tensors, {})[0], pairs_of(case, spec.preprocess)
    vq = network.vq
    with torch.inference_mode():
        embedded = network.embed(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
        first, last = network.encode(embedded)
        latent = vq.latent(first, last)
        codes = vq.codes(latent)
        draw = torch.randn(latent.flatten(0, 1).shape, generator=torch.Generator().manual_seed(0)).reshape(latent.shape)
        case.check_all(
            embedded=embedded, first_tokens=first, last_tokens=last, input_data=latent, indices=codes,
            tokens_hard=vq.tokens(vq.quantized(codes)), tokens_no_noise=vq.tokens(latent), random_vector_seed0=draw,
            tokens_seed0=vq.tokens(vq.with_noise(latent, codes, draw)),
        )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CASES if isinstance(name, str)])  # the small ones
def test_encoder_from_a_file_gives_the_published_tokens(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    spec, tensors, file = network_record(case), tensors_of(case), tmp_path / "weights.pt"
    wrapped = {f"module.{key}": value for key, value in tensors.items()}
    for form in (tensors, wrapped, {"model": tensors, "step": 7}, {"model": wrapped}):
        torch.save(form, file)
        latents = open_model(spec, file).encode(pairs_of(case, spec.preprocess))
        case.check("tokens_no_noise", latents.tokens)
        case.check("indices", latents.codes)


def assert_alone(encoder: Any, clips: torch.Tensor) -> None:
    """Tokens and codes don't depend on the batch."""
    whole, single = encoder.encode(clips), [encoder.encode(clip[None]) for clip in clips]
    for part in ("tokens", "codes"):
        assert torch.equal(torch.cat([getattr(each, part) for each in single]), getattr(whole, part))


@pytest.mark.parametrize("name", case_names("univla"))
def test_every_output_of_univla_equals_the_published_one(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    encoder, clips = load_univla(case, tmp_path).author, pairs_of(case, MODELS.get("univla").preprocess)
    latents, network = encoder.encode(clips), encoder.network
    with torch.inference_mode():
        features = encoder.features(clips)
        encoded = network.encode(features)
        uncontrollable = network.to_codebook_uncontrol(encoded[:, 1, 4:])
        _, ids = nearest_rows(uncontrollable, network.vq["codebook"].weight)
    case.check_all(
        patches=features, latent=network.latent(encoded), indices=latents.codes, tokens=latents.tokens,
        latent_uncontrol=uncontrollable, indices_uncontrol=ids, encoder_output_codes=encoded,
    )  # fmt: skip
    if case.about["size"] == "small":
        assert_alone(encoder, clips)


@pytest.mark.parametrize("name", VILLA_CASES)
def test_every_output_of_villa_equals_the_published_one(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    frames = np.floor(case.draw("clips", "floor(draw * 255) as uint8, (B, T, H, W, 3)") * np.float32(255))
    planes = np.moveaxis(frames.astype(np.uint8), -1, -3)
    clips = torch.from_numpy(pre.normalise(planes, MODELS.get("villa-x").preprocess))  # without a resize
    encoder = open_villa(save_villa(case, tmp_path)).author
    latents, network = encoder.encode(clips), encoder.network
    if case.about["size"] == "small":
        assert_alone(encoder, clips)
    clips = encoder.fitted(clips)
    probe = fill.uniform(f"{case.about['input']['clips']['draw']}/vq_probe", (64, encoder.dim))
    with torch.inference_mode():
        continuous = network.latents(clips)
        window = network.encoder.tokens(network.encoder.patches(clips[:, : network.window]))
        _, nearest = nearest_rows(torch.from_numpy(2 * probe - 1), network.vq["embedding"].weight)
    case.check_all(
        encoder_tokens=window.flatten(0, 1), latent=continuous.flatten(2).unsqueeze(2), tokens=latents.tokens,
        indices=latents.codes, vq_probe_indices=nearest, preprocessed_corner=clips[..., :4, :4],
    )  # fmt: skip


@pytest.mark.parametrize("name", VILLA_CASES)
def test_fields_of_villa_and_their_defaults_are_the_published_ones(name: str) -> None:
    case = load_case(name)
    config, complete = VillaConfig(**case.config), dict(case.about["config_complete"])
    patches = complete.pop("embed_tokens")
    assert complete.pop("grid_size") ** 2 == patches == (config.resolution // config.patch_size) ** 2
    assert json.loads(config.model_dump_json()) == complete


@pytest.mark.parametrize("name", [name for name in models_of_cases() if "_full" in name])
def test_records_have_the_sizes_and_parameters_of_the_published_files(name: str) -> None:
    """Decoders of training are counted, buffers and running averages of weights are not."""
    case = load_case(name)
    keys, model, integers = case.about["keys"], case.about["model"], case.about.get("integer_keys", ())
    if model in MODELS.names():
        spec, buffers = MODELS.get(model), (".beta", "num_batches_tracked", ".running_mean", ".running_var")
        counted = [key for key in keys if "model_ema." not in key and not key.endswith((*integers, *buffers))]
        assert round(sum(math.prod(keys[key]) for key in counted) / 1e6, 2) == spec.parameters_m
        if "features" in spec.options:
            assert (network_record(case).options, case.config["image_size"]) == (spec.options, spec.preprocess.size)
