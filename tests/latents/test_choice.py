"""Frames of a model's own: which they are, and models with such records through the commands."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.configs import ExtractConfig
from lary.data.frames import read_clip
from lary.latents.choice import centred, images_around, read_chosen, spread
from lary.latents.ref import LatentsRef, open_latents
from lary.models.spec import MODELS, Preprocess
from lary.registry import load_plugin
from lary.runs.extract import extract
from lary.types import MediaError, UsageError
from tests.helpers import fails, printed, settings_of
from tests.tree import make_calvin, make_robot, write_video

PLUGIN = """
import torch
from lary import ModelSpec, Preprocess, register_model

def record(name, **how):
    return ModelSpec(name=name, paradigm="baseline", dim=5, preprocess=Preprocess(**how))

@register_model(
    record("sixteen", size=8, frames=16),
    record("around", size=8, frames=4, stride=5, rate=5),
    record("dense", size=8, frames=6, stride=1),
    record("timed", size=8, frames=6, rate=2),
    record("native", size=200, resize="native", dtype="uint8"),
)
class Means:
    def __init__(self, spec, context):
        self.name = spec.name

    def encode(self, clips):
        assert (clips.dtype == torch.uint8) == (self.name == "native")
        colours = clips.float().mean(dim=(-2, -1))
        size = torch.tensor(clips.shape[-2:]).float().expand(*colours.shape[:2], 2)
        return torch.cat([colours, size], dim=-1)[:, :, None]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_robot(make_calvin(tmp_path_factory.mktemp("own"), {"train": 8, "val": 4}), {"train": 12, "val": 4})


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in whose models are gone after the test."""
    MODELS.names()
    monkeypatch.setattr(MODELS, "_records", dict(MODELS._records))
    (tmp_path / "own.py").write_text(PLUGIN)
    return tmp_path / "own.py"


def tokens_of(root: Path, model: str, dataset: str) -> Any:
    """Latents of the validation split, extracted now."""
    settings = settings_of(root)
    report = extract(ExtractConfig(model=model, dataset=dataset, split="val", workers=1), settings)
    assert report.failures == ()
    latents = open_latents(settings, LatentsRef(model=model, dataset=dataset, split="val"))
    return latents, latents.source.read(range(len(latents.table)))


def test_frames_are_spread_or_centred_and_follow_a_control() -> None:
    assert spread([3, 9], 4).tolist() == [3, 5, 7, 9]
    assert spread([0, 1, 4], 5).tolist() == [0, 1, 1, 3, 4]
    assert centred([10, 15], 4, 5).tolist() == [5, 10, 15, 20]
    assert centred([10, 15], 6, 1).tolist() == [10, 11, 12, 13, 14, 15]
    assert centred([15, 10], 4, 5).tolist() == [20, 15, 10, 5]
    assert centred([7, 7, 7], 4, 5).tolist() == [7] * 4
    mixed = centred([4, 0, 8], 3, 4).tolist()
    assert (sorted(mixed), mixed) == ([0, 4, 8], [4, 0, 8])
    for wrong in ({"frames": 0}, {"stride": 2}, {"rate": 5.0}, {"frames": 4, "rate": -1.0}):
        fails(UsageError, "frames, stride and rate are above 0", Preprocess, **wrong)


def test_images_around_a_pair(tmp_path: Path) -> None:
    for number in (0, 5, 6, 7, 8, 9, 10, 15):
        (tmp_path / f"cam_2_frame_{number:04d}.png").touch()
    pair = [tmp_path / f"cam_2_frame_{number:04d}.png" for number in (5, 10)]

    def around(count: int, step: int, paths: list[Path] = pair) -> list[int]:
        return [int(path.stem[-4:]) for path in images_around(paths, count, step)]

    assert around(4, 5) == [0, 5, 10, 15]
    assert around(8, 5) == [0, 0, 0, 5, 10, 15, 15, 15], "the ends of the recording are repeated"
    assert around(6, 1) == [5, 6, 7, 8, 9, 10]
    assert around(4, 5, pair[::-1]) == [15, 10, 5, 0]
    assert around(3, 5, [pair[0], pair[0]]) == [5, 5, 5]
    (tmp_path / "cam_2_frame_0007.png").unlink()
    fails(MediaError, r"0007\.png, a frame between those of a pair, isn't there", around, 6, 1)
    named = [tmp_path / "action_start.png", tmp_path / "action_end.png"]
    fails(MediaError, "differ in no number", around, 4, 5, named)


def test_frames_of_a_video_at_a_rate(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    write_video(file, [np.full((16, 16, 3), 6 * number, np.uint8) for number in range(40)], rate=20)

    def shown(*index: int, **how: Any) -> list[int]:
        found = read_chosen([file], index, Preprocess(**how))
        return [round(float(frame.mean()) / 6) for frame in found]

    assert shown(10, 20, 30, frames=5) == [10, 15, 20, 25, 30]
    assert shown(10, 20, 30, frames=5, rate=5) == [12, 16, 20, 24, 28]
    assert shown(10, 20, 30, frames=3, stride=2) == [18, 20, 22]
    assert shown(0, 4, frames=3, rate=2, stride=7) == [0, 2, 12]
    assert shown(30, 39, frames=3, rate=2) == [25, 35, 39]
    fails(MediaError, "ends with frame 39, and frame 50", shown, 10, 50, frames=3, rate=2, clamp=False)


def test_own_frames_through_extraction(root: Path, plugin: Path) -> None:
    load_plugin(plugin)
    shape = {model: tokens_of(root, model, "robot_1st")[1].shape[1:] for model in ("sixteen", "around", "native")}
    assert shape == {"sixteen": (16, 1, 5), "around": (4, 1, 5), "native": (9, 1, 5)}
    latents, tokens = tokens_of(root, "native", "calvin")
    frames = read_clip(latents.table.media_path(latents.table[0]), ())
    np.testing.assert_allclose(tokens[0, :, 0, :3], frames.mean(axis=(1, 2)), rtol=1e-5)
    assert (tokens[..., 3:] == 48).all()
    around = tokens_of(root, "around", "calvin")[1]  # pairs are neighbours in episodes of three
    np.testing.assert_array_equal(around[1, [0, 3]], around[[0, 2]][:, [1, 2]][[0, 1], [0, 1]])
    np.testing.assert_array_equal(around[0, 0], around[0, 1])
    repeated = tokens_of(root, "sixteen", "calvin")[1]
    assert (repeated[:, :8] == repeated[:, :1]).all()
    assert (repeated[:, 8:] == repeated[:, 15:]).all()
    words = "takes 6 frames at a stride of 1 around a pair, and none of the first 12"
    fails(UsageError, words, tokens_of, root, "dense", "calvin")
    fails(UsageError, "image pairs of 'calvin' have no times", tokens_of, root, "timed", "calvin")


@pytest.mark.usefixtures("no_figures")
def test_own_frames_through_the_commands(root: Path, plugin: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root, tmp_path / "root")
    for model, tokens in (("sixteen", "16 x 1 x 5"), ("around", "4 x 1 x 5"), ("native", "9 x 1 x 5")):
        printed("check-model", f"{plugin}:{model}", has=[tokens, "as it should be"])
        words = ("run", "--model", model, "--plugin", plugin, "--probe-preset", "demo", "--workers", "1")
        printed(*words, "--dataset", "calvin", "--model-type", "ridge", root=folder, has=["the probe was run now"])
    words = ("run", "--model", "around", "--plugin", plugin, "--probe-preset", "demo", "--epochs", "1")
    printed(*words, "--dataset", "robot_1st", "--control", "shuffled-order", root=folder)
    changed = folder / "latent_actions" / "controls" / "shuffled-order"
    assert list(changed.rglob("store.json")), "frames of a model's own are changed before its extraction"
