"""Preprocessing against what the published code hands to its models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lary.models import preprocess as pre
from lary.models.spec import MODELS, Preprocess
from tests.parity import fill
from tests.parity.conftest import Case, load_case, model_cases

Array = npt.NDArray[Any]
Output = tuple[str, Array, tuple[int, int], Preprocess, "int | None"]

# Output of case "preprocess": the record, and the axes of the output among (T, C, H, W).
SINGLE = {
    "vjepa2": (MODELS.get("vjepa2").preprocess, (1, 0, 2, 3)),
    "wan2-2": (MODELS.get("wan2-2").preprocess, (1, 0, 2, 3)),
    "flux2_image": (MODELS.get("flux2").preprocessing("paper"), (0, 2, 3, 1)),
    "flux2_video": (MODELS.get("dinov3").preprocess, (0, 2, 3, 1)),
    "default_pair": (MODELS.get("lapa").preprocess, (1, 0, 2, 3)),
}


def frames_of(entry: dict[str, Any], shape: list[int], draw: str) -> npt.NDArray[np.uint8]:
    """A drawn image or clip; the description says how it becomes grey levels."""
    levels = re.search(r"\* (\d+)", entry["then"])
    assert levels, entry["then"]
    return np.floor(fill.uniform(draw, tuple(shape)) * np.float32(levels.group(1))).astype(np.uint8)


def of_size(record: Preprocess, size: int) -> Preprocess:
    """The record for another output size, its resized short side in proportion."""
    short = None if record.short_side is None else record.short_side * size // record.size
    return replace(record, size=size, short_side=short)


def assert_within_grey_levels(actual: Array, expected: Array, step: float, where: str) -> None:
    """Equal but for one grey level in at most 1 % of the values, which is what versions of the libraries differ by."""
    difference = np.abs(actual.astype(np.float64) - expected)
    assert actual.shape == expected.shape, where
    assert difference.max() <= step * 1.001 + 1e-6, where
    assert (difference > 1e-6 * max(1.0, np.abs(expected).max())).mean() <= 0.01, where


def assert_statistics(actual: Array, expected: Array, step: float, where: str) -> None:
    """Mean, standard deviation and L2 norm, with room for those single grey levels."""
    values = actual.astype(np.float64).ravel()
    off = step * 0.01
    np.testing.assert_allclose(values.mean(), expected[0], atol=off, err_msg=where)
    np.testing.assert_allclose(values.std(), expected[1], atol=off, err_msg=where)
    np.testing.assert_allclose(np.linalg.norm(values), expected[2], atol=off * values.size**0.5, err_msg=where)


def grey_level(record: Preprocess) -> float:
    """One grey level after scaling and normalisation, at most."""
    return 1 / record.scale / min(record.std)


@pytest.mark.parametrize("name", model_cases("preprocessing (*"))
def test_every_model_gets_the_published_values(name: str) -> None:
    case = load_case(name)
    for key in case.about["outputs"]:
        source, model = key.split("/")
        record = of_size(SINGLE[model][0], case.config["image_size"])
        entry = case.about["input"][source]
        out = pre.prepare(frames_of(entry, entry["shape"], entry["draw"]), record).transpose(SINGLE[model][1])
        step = grey_level(record)
        first = case.arrays[f"{key}/first4096"]
        assert out.dtype == np.float32
        assert_within_grey_levels(out.ravel()[: first.size], first, step, key)
        assert_statistics(out, case.arrays[f"{key}/stats"], step, key)


def read_inputs(case: Case) -> tuple[Array, Array]:
    """The pair (2, H, W, 3) and the sampled frames (9, H, W, 3), indices clamped as the published code does."""
    inputs, config = case.about["input"], case.config
    then = {"then": inputs["src"]["then"]}
    pair = np.stack([frames_of(then, inputs[key]["shape"], inputs[key]["draw"]) for key in ("src", "tgt")])
    stem = inputs["frames"]["draw"].split("<")[0]
    clip = [frames_of(then, inputs["frames"]["shape"], f"{stem}{index}") for index in range(config["frames"])]
    return pair, np.stack(clip)[np.clip(config["sample_indices"], 0, config["frames"] - 1)]


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
    yield "video.cv_pairs", pre.neighbour_pairs(frames).swapaxes(1, 2), last, cubic, 0
    yield "video.origin", frames.swapaxes(0, 1), last, cubic, 1
    yield "video.origin_mixed", pre.mix_planes(frames), last, cubic, 0
    yield "video.villa-x", pre.resize(clip, villa_clip), inner, villa_clip, 0


@pytest.mark.parametrize("name", model_cases("preprocessing of *"))
def test_latent_action_models_get_the_published_values(name: str) -> None:
    case = load_case(name)
    seen = set()
    for key, array, axes, record, ends in lam_outputs(*read_inputs(case), case.config["image_size"]):
        seen |= {f"{key}.stats", f"{key}.crop"}
        start, stop = map(int, re.search(r"(\d+):(\d+)", case.about["outputs"][f"{key}.crop"]).groups())
        crop = array if ends is None else array.take([0, -1], axis=ends)
        for axis in axes:
            crop = crop.take(range(start, stop), axis=axis)
        expected = case.arrays[f"{key}.crop"]
        step = 1.0 if expected.dtype == np.uint8 else grey_level(record)
        assert crop.dtype == expected.dtype
        assert_within_grey_levels(crop, expected, step, key)
        assert_statistics(array, case.arrays[f"{key}.stats"], step, key)
    assert seen == set(case.about["outputs"]) - {"video.rel_indices"}  # the data's reader makes those
