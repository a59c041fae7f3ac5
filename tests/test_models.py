"""Every registered model with tiny or random weights, and how weights are found and loaded."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

import lary
from lary.models.baselines import GRID, PLACE, cells
from lary.models.image import BACKBONES, image_tower, patch_inputs
from lary.models.overview import published
from lary.models.preprocess import CUBIC_224, VJEPA2, mix_planes, neighbour_pairs, prepare
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, Weights, locate_weights
from lary.types import BenchmarkProtocol, LaryError, UsageError
from tests.tiny import KINDS, TINY_DIM, save_tiny

NAMES = MODELS.names()
LIGHT = [name for name in NAMES if name in KINDS or MODELS.get(name).weights is None]
"""Models that run here on tiny checkpoints or none; the others have test files of their own."""
WEIGHTLESS = [name for name in NAMES if MODELS.get(name).weights is None]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of every kind."""
    root = tmp_path_factory.mktemp("weights")
    kinds = [*KINDS.values(), "dinov2-registers", "siglip2-naflex"]
    return {kind: save_tiny(root / kind, kind) for kind in kinds}


@pytest.fixture
def dinov2(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the DINOv2 checkpoint to damage."""
    return Path(shutil.copytree(checkpoints["dinov2"], tmp_path / "DINOv2"))


def make(name: str, folder: Path | None, protocol: BenchmarkProtocol = "corrected", seed: int = 0) -> Any:
    return build(MODELS.get(name), ModelContext("cpu", protocol, weights=folder and str(folder), seed=seed))


def draw_clip(frames: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth noise that moves a little from frame to frame, (T, 60, 80, 3)."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    image = cv2.resize(noise, (80, 60), interpolation=cv2.INTER_CUBIC)
    return np.stack([np.roll(image, (step, 2 * step), axis=(0, 1)) for step in range(frames)])


def batch_for(name: str, frames: int, protocol: BenchmarkProtocol = "corrected") -> torch.Tensor:
    preprocess = MODELS.get(name).preprocessing(protocol)
    return torch.from_numpy(np.stack([prepare(draw_clip(frames, seed), preprocess) for seed in range(3)]))


# Every record


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
@pytest.mark.parametrize("name", LIGHT)
def test_every_model_gives_what_its_record_says(
    name: str, protocol: BenchmarkProtocol, checkpoints: dict[str, Path]
) -> None:
    spec = MODELS.get(name)
    encoder = make(name, checkpoints[KINDS[name]] if spec.weights else None, protocol)
    for frames in (2, 4):
        clips = batch_for(name, frames, protocol)
        latents = encoder.encode(clips)
        tokens = latents.tokens
        assert tokens.ndim in (3, 4)
        assert tokens.shape[0] == 3
        assert tokens.ndim == 3 or 1 <= tokens.shape[1] <= frames
        assert tokens.shape[-1] == (encoder.dim if spec.weights else spec.dim)
        assert tokens.dtype == torch.float32
        assert torch.isfinite(tokens).all()
        assert not tokens.requires_grad
        assert latents.codes is None or latents.codes.shape == tokens.shape[:-1]
        torch.manual_seed(frames)  # a model with dropout or drawn noise would feel this
        alone = torch.cat([encoder.encode(clip[None]).tokens for clip in clips])
        torch.testing.assert_close(alone, tokens, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(tokens[0], tokens[1], atol=1e-3), "two clips have the same tokens"


@pytest.mark.parametrize("name", NAMES)
def test_records_name_what_the_paper_protocol_changes(name: str) -> None:
    spec = MODELS.get(name)
    prepared = [spec.preprocess_paper, spec.preprocess_paper_clip, spec.options_paper]
    assert any(prepared) == bool(spec.paper_differences)
    assert spec.description
    assert spec.pair_shape
    assert spec.clip_shape
    assert spec.dim in (None, spec.pair_shape[-1])
    assert spec.dim in (None, spec.clip_shape[-1])
    if spec.weights:
        assert spec.licence
        assert spec.reference
        assert spec.weights.variable or spec.weights.folder


def table(name: str) -> list[dict[str, str]]:
    """One of the tables of the paper."""
    file = Path(lary.__file__).parent / "results" / "reference" / f"{name}.csv"
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.mark.parametrize("name", ["classification", "regression", "vlabench_stride"])
def test_records_have_the_parameters_of_the_leaderboards(name: str) -> None:
    for row in table(f"leaderboard_{name}"):
        spec = MODELS.get(row["model"])
        assert f"{spec.parameters_m:.2f}" == row["params_m"]
        assert spec.paradigm == row["paradigm"]


@pytest.mark.parametrize("name", list(KINDS))
def test_full_backbones_have_the_parameters_of_their_records(name: str) -> None:
    """The other records are counted in the tests of their families."""
    import transformers

    spec = MODELS.get(name)
    config = spec.options["config"]
    model_class: Any = getattr(transformers, BACKBONES[config["model_type"]].model)
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(image_tower(config)))
    assert f"{sum(value.numel() for value in model.parameters()) / 1e6:.2f}" == f"{spec.parameters_m:.2f}"


def test_published_numbers_stand_with_their_models() -> None:
    for row in table("leaderboard_classification"):
        told = published(MODELS.get(row["model"]))
        assert f"classification: average {row['average']}, libero {row['libero']}, " in told[0]
        assert len(told) == 3
    for row in table("lam_ablation"):
        name = f"dinov3-cs{row['codebook_size']}_sl{row['sequence_length']}_dim{row['latent_dim']}_lr1e-4"
        (line,) = published(MODELS.get(name))
        assert f"human_1st_accuracy {row['human_1st_accuracy']}, " in line
    assert published(MODELS.get("dinov2-origin")) == ["the paper's tables have no numbers of this model"]
    assert not published(MODELS.get("pixels"))


@pytest.mark.parametrize("name", WEIGHTLESS)
@pytest.mark.parametrize("frames", [2, 9])
def test_tokens_have_the_promised_shape(name: str, frames: int) -> None:
    spec = MODELS.get(name)
    promised = spec.pair_shape if frames == 2 else spec.clip_shape
    assert tuple(make(name, None).encode(batch_for(name, frames)).tokens.shape[1:]) == promised


@pytest.mark.parametrize("name", list(KINDS))
def test_protocols_differ(name: str, checkpoints: dict[str, Path]) -> None:
    """One prepared clip: `corrected` reads each frame alone, `paper` mixes them."""
    corrected, paper = (make(name, checkpoints[KINDS[name]], protocol) for protocol in ("corrected", "paper"))
    clips = batch_for(name, 2)
    alone = torch.cat([corrected.encode(clips[:, [step]]).tokens for step in (0, 1)], dim=1)
    torch.testing.assert_close(corrected.encode(clips).tokens, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(paper.encode(clips).tokens, corrected.encode(mix_planes(clips)).tokens)
    assert not torch.allclose(paper.encode(clips).tokens, alone, atol=1e-2)


# Loading


def edit(folder: Path, change: Any) -> None:
    """Change the tensors of a checkpoint folder in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("layernorm.bias"), "1 missing: layernorm.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "1 unexpected: extra"),
        (lambda tensors: tensors.update({"layernorm.bias": torch.zeros(7)}), "1 misshaped: layernorm.bias"),
        (lambda tensors: tensors.clear() or tensors.update(a=torch.zeros(1)), r"\d missing: .* and \d+ more; 1 unexp"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_stop_with_their_names(dinov2: Path, change: Any, told: str) -> None:
    edit(dinov2, change)
    with pytest.raises(LaryError, match=told) as caught:
        make("dinov2-origin", dinov2)
    assert str(dinov2) in str(caught.value)


def test_unused_keys_may_be_missing_or_there(dinov2: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    clips = batch_for("dinov2-origin", 2)
    before = make("dinov2-origin", dinov2).encode(clips).tokens
    edit(dinov2, lambda tensors: tensors.pop("embeddings.mask_token"))
    torch.testing.assert_close(make("dinov2-origin", dinov2).encode(clips).tokens, before, rtol=0, atol=0)

    whole, tower = checkpoints["siglip2"], tmp_path / "tower"
    tensors = load_file(whole / "model.safetensors")
    assert any(key.startswith("text_model.") for key in tensors)
    assert "vision_model.head.probe" in tensors
    tower.mkdir()
    config = json.loads((whole / "config.json").read_text())["vision_config"]
    (tower / "config.json").write_text(json.dumps({**config, "model_type": "siglip_vision_model"}))
    kept = {
        key.removeprefix("vision_model."): value for key, value in tensors.items() if key.startswith("vision_model.")
    }
    save_file({key: value for key, value in kept.items() if not key.startswith("head.")}, tower / "model.safetensors")
    clips = batch_for("siglip2-origin", 2)
    tokens = [make("siglip2-origin", folder).encode(clips).tokens for folder in (whole, tower)]
    torch.testing.assert_close(*tokens, rtol=0, atol=0)


def test_half_precision_weights_are_run_in_float32(dinov2: Path) -> None:
    edit(dinov2, lambda tensors: tensors.update({key: value.half() for key, value in tensors.items()}))
    assert make("dinov2-origin", dinov2).encode(batch_for("dinov2-origin", 2)).tokens.dtype == torch.float32


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_hostile_pickle_is_refused_and_never_run(dinov2: Path, tmp_path: Path) -> None:
    (dinov2 / "model.safetensors").unlink()
    torch.save({"layernorm.bias": Hostile(tmp_path / "ran")}, dinov2 / "pytorch_model.bin")
    with pytest.raises(LaryError, match="refused"):
        make("dinov2-origin", dinov2)
    assert not (tmp_path / "ran").exists()
    torch.save(["no", "dictionary"], dinov2 / "pytorch_model.bin")
    with pytest.raises(LaryError, match="expected a dictionary of tensors"):
        make("dinov2-origin", dinov2)


def test_safetensors_pickled_tensors_and_shards_give_the_same(dinov2: Path, tmp_path: Path) -> None:
    clips = batch_for("dinov2-origin", 2)
    expected = make("dinov2-origin", dinov2)
    tensors = load_file(dinov2 / "model.safetensors")
    torch.save({"layernorm.bias": Hostile(tmp_path / "ran")}, dinov2 / "pytorch_model.bin")
    assert make("dinov2-origin", dinov2).identity.digest == expected.identity.digest, "safetensors come first"

    (dinov2 / "model.safetensors").unlink()
    torch.save(tensors, dinov2 / "pytorch_model.bin")
    pickled = make("dinov2-origin", dinov2)

    (dinov2 / "pytorch_model.bin").unlink()
    shards = {key: f"model-{place % 2}.safetensors" for place, key in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({key: value for key, value in tensors.items() if shards[key] == shard}, dinov2 / shard)
    index = dinov2 / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    sharded = make("dinov2-origin", dinov2)
    for encoder in (pickled, sharded):
        torch.testing.assert_close(encoder.encode(clips).tokens, expected.encode(clips).tokens, rtol=0, atol=0)
    assert len({expected.identity.digest, pickled.identity.digest, sharded.identity.digest}) == 3

    (dinov2 / "model-0.safetensors").unlink()
    with pytest.raises(LaryError, match=r"names files that are not there: model-0\.safetensors"):
        make("dinov2-origin", dinov2)
    index.write_text(json.dumps({"weight_map": {"layernorm.bias": "../model.safetensors"}}))
    with pytest.raises(UsageError, match="leaves its root"):
        make("dinov2-origin", dinov2)


def test_the_digest_names_content_and_configuration(dinov2: Path, checkpoints: dict[str, Path]) -> None:
    first = make("dinov2-origin", dinov2).identity.digest
    assert first == make("dinov2-origin", checkpoints["dinov2"]).identity.digest
    edit(dinov2, lambda tensors: tensors["layernorm.bias"].add_(1e-3))
    second = make("dinov2-origin", dinov2).identity.digest
    config = json.loads((dinov2 / "config.json").read_text())
    (dinov2 / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    assert len({first, second, make("dinov2-origin", dinov2).identity.digest}) == 3


def test_folders_that_hold_something_else_are_named(dinov2: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds a siglip model, expected dinov3_vit"):
        make("dinov3-origin", checkpoints["siglip2"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no weights"):
        make("dinov2-origin", tmp_path / "empty")
    (dinov2 / "model.safetensors").write_bytes(b"\x08" + bytes(30))
    with pytest.raises(LaryError, match=r"model\.safetensors can't be read"):
        make("dinov2-origin", dinov2)
    (dinov2 / "config.json").unlink()
    with pytest.raises(LaryError, match=r"config\.json does not exist"):
        make("dinov2-origin", dinov2)
    with pytest.raises(UsageError, match="Set DINO_V2_PATH"):
        make("dinov2-origin", None)


def test_position_embeddings_of_another_image_size_are_refused(checkpoints: dict[str, Path]) -> None:
    spec = MODELS.get("siglip2-origin")
    other = replace(spec, preprocess=replace(spec.preprocess, size=256))
    with pytest.raises(UsageError, match=r"images of 224 pixels, the record prepares 256"):
        build(other, ModelContext("cpu", "corrected", weights=str(checkpoints["siglip2"])))


def test_a_checkpoint_of_another_size_says_so(checkpoints: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lary"):
        encoder = make("dinov3-origin", checkpoints["dinov3"])
    assert encoder.dim == TINY_DIM
    assert f"have D = {TINY_DIM}, not 1024 as in its record" in caplog.text


@pytest.mark.parametrize(("name", "kind", "tokens"), [
    ("dinov2-origin", "dinov2", 256), ("dinov2-origin", "dinov2-registers", 256), ("dinov3-origin", "dinov3", 196),
    ("siglip2-origin", "siglip2", 196), ("siglip2-origin", "siglip2-naflex", 196),
])  # fmt: skip
def test_patch_tokens_alone_remain(name: str, kind: str, tokens: int, checkpoints: dict[str, Path]) -> None:
    assert make(name, checkpoints[kind]).encode(batch_for(name, 2)).tokens.shape == (3, 2, tokens, TINY_DIM)


def test_patches_are_cut_row_by_row_with_colours_last() -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, 8, 12), dtype=np.float32))
    inputs = patch_inputs(images, 4)
    assert inputs["pixel_values"].shape == (2, 6, 48)
    second_row_last = images[1, :, 4:, 8:]
    torch.testing.assert_close(inputs["pixel_values"][1, 5], second_row_last.permute(1, 2, 0).flatten())
    assert inputs["spatial_shapes"].tolist() == [[2, 3]] * 2


# Where weights come from


def test_weights_are_searched_in_their_order(tmp_path: Path) -> None:
    spec = MODELS.get("dinov2-origin")
    assert spec.weights
    override, variable, models = tmp_path / "override", tmp_path / "variable", tmp_path / "models"
    for folder in (override, variable, models / "DINOv2"):
        folder.mkdir(parents=True)
    values = {"DINO_V2_PATH": str(variable), "MODEL_DIR": str(models)}
    assert locate_weights(spec, values, str(override)) == str(override)
    assert locate_weights(spec, values) == str(variable)
    assert locate_weights(spec, {"MODEL_DIR": str(models)}) == str(models / "DINOv2")
    assert locate_weights(spec, {"MODEL_DIR": str(tmp_path)}) == spec.weights.hub
    assert locate_weights(spec, {}) == spec.weights.hub
    assert locate_weights(spec, {}, "someone/dinov2-tiny") == "someone/dinov2-tiny"
    assert locate_weights(MODELS.get("pixels"), values) is None
    with pytest.raises(UsageError, match=r"DINO_V2_PATH points to /nowhere/at/all, which does not exist"):
        locate_weights(spec, {**values, "DINO_V2_PATH": "/nowhere/at/all"})
    with pytest.raises(UsageError, match="Set DINO_V2_PATH to them, or pass --weights PATH"):
        locate_weights(replace(spec, weights=Weights(variable="DINO_V2_PATH")), {})


# Baselines


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_baselines_have_a_grid_of_tokens(name: str) -> None:
    steps = 2 if name in ("frame-difference", "optical-flow") else 3
    tokens = make(name, None).encode(batch_for(name, 3)).tokens
    assert tokens.shape == (3, steps, GRID * GRID, MODELS.get(name).dim)


def test_cells_are_cut_row_by_row() -> None:
    maps = torch.arange(2 * 16 * 16).reshape(2, 16, 16)
    cut = cells(maps, 2)
    assert cut.shape == (64, 8)
    assert cut[9].tolist() == maps[:, 2:4, 2:4].flatten().tolist()
    assert torch.equal(cells(maps[None, None], 2)[0, 0], cut)


@pytest.mark.parametrize("name", ["pixels", "frame-difference", "optical-flow"])
def test_tokens_end_with_the_place_of_their_cell(name: str) -> None:
    place = make(name, None).encode(batch_for(name, 2)).tokens[..., -PLACE:]
    assert place[0, 0, 0].tolist() == [-0.875, -0.875]
    assert place[0, 0, 1].tolist() == [-0.875, -0.625]
    assert place[2, -1, 63].tolist() == [0.875, 0.875]


def test_pixels_are_the_means_of_their_blocks() -> None:
    clip = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    clip[0, 0:2, 2:4] = (255, 0, 51)  # one of the 32 x 32 pixels: cell 0, row 0, column 1
    tokens = make("pixels", None).encode(torch.from_numpy(prepare(clip, MODELS.get("pixels").preprocess))[None]).tokens
    colours = tokens[0, 0, 0, :-PLACE].reshape(3, 4, 4)
    torch.testing.assert_close(colours[:, 0, 1], torch.tensor([2.0, -2.0, (0.2 - 0.5) * 4]))
    assert (colours[:, 1:] == -2).all()


def test_frame_difference_sees_change_alone() -> None:
    encoder = make("frame-difference", None)
    clips = torch.rand(1, 3, 3, 64, 64)
    clips[:, 1] = clips[:, 0]
    clips[:, 2] = clips[:, 1]
    clips[:, 2, 0, :8, 8:16] -= 0.5  # red of cell 1
    tokens = encoder.encode(clips).tokens[..., :-PLACE].reshape(2, 64, 4, 16)
    assert (tokens[0] == 0).all()
    torch.testing.assert_close(tokens[1, 1], torch.tensor([-0.5, 0, 0, 0.5 / 3])[:, None].expand(4, 16))
    assert (tokens[1, [0, *range(2, 64)]] == 0).all()


def test_optical_flow_finds_a_shift() -> None:
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    clip = np.stack([image, np.roll(image, 3, axis=1), np.roll(image, (-2, 3), axis=(0, 1))])
    clips = torch.from_numpy(prepare(clip, MODELS.get("optical-flow").preprocess))[None]
    inner = make("optical-flow", None).encode(clips).tokens[0].reshape(2, 8, 8, -1)[:, 2:-2, 2:-2, :4]
    torch.testing.assert_close(inner[0].mean(dim=(0, 1)), torch.tensor([3.0, 0, 0, 0]), rtol=0, atol=0.25)
    torch.testing.assert_close(inner[1].mean(dim=(0, 1)), torch.tensor([0, -2.0, 0, 0]), rtol=0, atol=0.25)


def test_random_weights_follow_the_seed_alone() -> None:
    clips = batch_for("random-vit", 2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make("random-vit", None, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator was used"
    torch.manual_seed(2)
    again, other = make("random-vit", None, seed=3), make("random-vit", None, seed=4)
    assert first.identity.random
    assert torch.equal(first.encode(clips).tokens, again.encode(clips).tokens)
    assert not torch.allclose(first.encode(clips).tokens, other.encode(clips).tokens, atol=0.1)


# Shapes of clips


def test_pairs_and_mixed_planes_are_the_same_in_both_libraries() -> None:
    clips = np.random.default_rng(0).random((2, 9, 3, 2, 2), dtype=np.float32)
    pairs = neighbour_pairs(clips)
    assert pairs.shape == (2, 8, 2, 3, 2, 2)
    np.testing.assert_array_equal(pairs[:, 7], clips[:, 7:9])
    np.testing.assert_array_equal(neighbour_pairs(torch.from_numpy(clips)), pairs)
    mixed = mix_planes(clips)
    np.testing.assert_array_equal(mixed[:, 1], clips[:, 3:6, 0])  # images 0 to 2 are red of frames 0 to 8
    np.testing.assert_array_equal(mixed[:, 8], clips[:, 6:9, 2])
    np.testing.assert_array_equal(mix_planes(torch.from_numpy(clips)), mixed)
    with pytest.raises(LaryError, match="at least two"):
        neighbour_pairs(clips[:, :1])


def test_clips_that_cannot_be_prepared_are_told() -> None:
    with pytest.raises(LaryError, match="uint8 frames"):
        prepare(np.zeros((2, 8, 8, 3), dtype=np.float32), CUBIC_224)  # type: ignore[arg-type]
    with pytest.raises(LaryError, match="uint8 frames"):
        prepare(np.zeros((8, 8, 3), dtype=np.uint8), CUBIC_224)
    with pytest.raises(LaryError, match=r"8 x 8 pixels is too small for the record's crop of 300"):
        prepare(np.zeros((2, 8, 8, 3), dtype=np.uint8), replace(VJEPA2, size=300))


@pytest.mark.parametrize(("height", "width"), [(300, 260), (256, 400)])
def test_the_centre_is_cut_from_tall_and_wide_frames(height: int, width: int) -> None:
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))
    clip = np.repeat(ramp.astype(np.uint8)[None, ..., None], 3, axis=-1)
    out = prepare(clip, replace(VJEPA2, mean=(0, 0, 0), std=(1, 1, 1), scale=1))
    assert out.shape == (1, 3, 224, 224)
    assert abs(out[0, 0].mean() - ramp.mean()) < 1.5
