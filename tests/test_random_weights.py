"""``--weights random``: every model of the benchmark runs without files, and its latents never mix with real ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.configs import ExtractConfig
from lary.data.spec import DATASETS
from lary.latents.ref import LatentsRef, open_latents
from lary.models.randomly import TABLE_STD, draw, draw_transformers
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec, locate_weights
from lary.runs.extract import extract, store_identity
from lary.settings import load_settings
from lary.types import RANDOM, Latents, UsageError
from tests.tiny import save_tiny
from tests.tiny_networks import PUBLISHED, tiny_record
from tests.tree import make_calvin

VIT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NAMES = PUBLISHED
tiny = tiny_record


def run(spec: ModelSpec, seed: int = 0, frames: int = 2) -> tuple[Any, Latents]:
    encoder = build(spec, ModelContext("cpu", "corrected", RANDOM, seed=seed))
    size = spec.preprocess.size
    clips = np.random.default_rng(0).standard_normal((1, frames, 3, size, size), dtype=np.float32)
    return encoder, encoder.encode(torch.from_numpy(clips))


def test_all_thirteen_are_here() -> None:
    assert len(NAMES) == 13


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_about_the_tokens(name: str) -> None:
    spec = tiny(name)
    (first, tokens), (_, again), (other, others) = run(spec), run(spec), run(spec, seed=1)
    assert torch.equal(tokens.tokens, again.tokens)
    assert tokens.tokens.shape[1:-1] == spec.pair_shape[:-1]
    assert tokens.tokens.isfinite().all()
    assert tokens.tokens.std() > 0.01
    assert not torch.equal(tokens.tokens, others.tokens)
    assert first.identity.digest == "random weights, seed 0" != other.identity.digest
    assert not first.identity.revision


@pytest.mark.parametrize("name", NAMES)
def test_clips_run_too(name: str) -> None:
    spec = tiny(name)
    assert run(spec, frames=9)[1].tokens.shape[1:-1] == spec.clip_shape[:-1]


def test_callers_random_numbers_are_not_touched() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    run(tiny("dinov2-origin"))
    assert torch.equal(torch.rand(4), wanted)


def test_scales_of_what_is_drawn() -> None:
    import transformers

    with torch.device("meta"):
        parts = {"a": torch.nn.Linear(400, 50), "b": torch.nn.Conv2d(8, 16, 5), "c": torch.nn.LayerNorm(7)}
        network = torch.nn.ModuleDict({**parts, "d": torch.nn.Embedding(50, 60), "vq": torch.nn.Embedding(50, 60)})
    state = draw(network, 0).state_dict()
    stds = {"a": 1 / 20, "b": 1 / math.sqrt(8 * 25), "d": TABLE_STD, "vq": 1.0}
    for key, std in stds.items():
        assert float(state[f"{key}.weight"].std()) == pytest.approx(std, rel=0.05)
    assert not state["a.bias"].any()
    assert not state["c.bias"].any()
    assert (state["c.weight"] == 1).all()
    config = transformers.DINOv3ViTConfig(**VIT, image_size=32, patch_size=16)
    drawn, built = draw_transformers(transformers.DINOv3ViTModel, config, 0), transformers.DINOv3ViTModel(config)
    for (name, buffer), (_, wanted) in zip(drawn.named_buffers(), built.named_buffers(), strict=True):
        assert torch.equal(buffer, wanted), f"{name} is computed, not drawn"


def test_a_tensor_depends_on_its_name_and_not_on_the_others() -> None:
    whole = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    part = torch.nn.ModuleDict({"b": torch.nn.Linear(3, 3)})
    draw(whole, 5), draw(part, 5)
    assert torch.equal(whole["b"].weight, part["b"].weight)
    assert not torch.equal(whole["a"].weight, whole["b"].weight)


def test_any_backbone_needs_its_configuration_only(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "vit", "dinov2")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    spec = MODELS.get(f"hf:{folder}")
    encoder, latents = run(spec)
    assert latents.tokens.shape == (1, 2, 256, 32)
    assert encoder.identity.digest.startswith("random weights, seed 0, configuration ")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mlp_ratio": 3}))
    assert run(spec)[0].identity.digest != encoder.identity.digest
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"has no config\.json"):
        run(spec)
    with pytest.raises(UsageError, match="name a folder or a hub id"):
        MODELS.get("hf:random")


def test_random_is_no_path() -> None:
    spec = MODELS.get("lapa")
    assert locate_weights(spec, {}, RANDOM) == RANDOM
    with pytest.raises(UsageError, match="DINO_V2_PATH points to random"):
        locate_weights(MODELS.get("dinov2-origin"), {"DINO_V2_PATH": RANDOM})
    with pytest.raises(UsageError, match="'pixels' has no weights; leave the option out"):
        locate_weights(MODELS.get("pixels"), {}, RANDOM)


def test_folders_and_stores_are_apart() -> None:
    ref = LatentsRef(model="lapa", dataset="calvin", split="train")
    assert replace(ref, weights=RANDOM).tag == "lapa@random"
    assert replace(ref, protocol="paper", latent="noisy", weights=RANDOM).tag == "lapa@paper@noisy@random"
    assert replace(ref, weights="/weights/laq.pt").tag == ref.tag == "lapa"
    config = ExtractConfig(model="lapa", dataset="calvin", split="train", weights=RANDOM)
    keys = {
        store_identity(MODELS.get("lapa"), DATASETS.get("calvin"), replace(config, seed=seed), digest).key
        for seed, digest in ((0, "random weights, seed 0"), (1, "random weights, seed 1"), (0, "0123"))
    }
    assert len(keys) == 3


def test_extraction_and_probes_find_their_own_latents(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"val": 2})
    settings = load_settings({"LARY_ROOT": str(tmp_path), "DATA_DIR": str(tmp_path / "data")}, environment={})
    folder = save_tiny(tmp_path / "vit", "dinov2")
    name = f"hf:{folder}"
    config = ExtractConfig(model=name, dataset="calvin", split="val", limit=2)
    tables = [extract(replace(config, weights=weights), settings).table for weights in (None, RANDOM)]
    assert tables[1].name == tables[0].name.replace(".csv", "@random.csv")
    ref = LatentsRef(model=name, dataset="calvin", split="val")
    read, drawn = (open_latents(settings, replace(ref, weights=each)) for each in (None, RANDOM))
    assert not np.array_equal(read.source.read([0, 1]), drawn.source.read([0, 1]))
    assert drawn.store["weights_from"] == RANDOM
    assert drawn.store["identity"]["weights"].startswith("random weights, seed 0")
    with pytest.raises(UsageError, match=r"--split train --weights random' first"):
        open_latents(settings, replace(ref, split="train", weights=RANDOM))
