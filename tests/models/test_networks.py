"""``--weights random``: every model of the benchmark runs without files, and its latents never mix with real ones."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers

from lary.models.networks import draw_weights, transformers_model
from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.models.weights import random_weights
from lary.nets import MOST_SEQUENCES, sliced_attention
from lary.types import RANDOM, Latents, UsageError, WeightsIdentity
from tests.helpers import fails
from tests.tiny import save_tiny
from tests.tiny_networks import PUBLISHED, VIT, tiny_record


def run(spec: ModelSpec, seed: int = 0) -> tuple[LoadedEncoder, Latents]:
    encoder, size = build(spec, ModelContext("cpu", "corrected", RANDOM, seed=seed)), spec.preprocess.size
    return encoder, encoder.encode(torch.randn(1, 2, 3, size, size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", [*PUBLISHED, "random-vit"])
def test_seed_decides_about_the_tokens(name: str) -> None:
    assert len(PUBLISHED) == 13
    spec = tiny_record(name) if name in PUBLISHED else MODELS.get(name)
    state = torch.get_rng_state()
    (first, latents), (_, again), (other, others) = run(spec), run(spec), run(spec, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were touched"
    assert torch.equal(latents.tokens, again.tokens)
    assert latents.tokens.isfinite().all()
    assert latents.tokens.std() > 0.01
    assert not torch.equal(latents.tokens, others.tokens)
    if name == "random-vit":  # the seed is part of what latents are
        assert first.identity == other.identity == WeightsIdentity(random=True)
    else:
        assert first.identity == WeightsIdentity("random weights, seed 0", None, True) != other.identity


def test_a_tensor_depends_on_its_name_alone_and_buffers_are_computed() -> None:
    with torch.device("meta"):
        shared, own = torch.nn.Linear(400, 50), torch.nn.Linear(4, 4)
        parts = [torch.nn.ModuleDict({"a": shared, name: own}) for name in "bc"]
    first, second = (draw_weights(copy.deepcopy(part), 0).state_dict() for part in parts)
    assert torch.equal(first["a.weight"], second["a.weight"])
    assert not torch.equal(first["b.weight"], second["c.weight"])
    assert float(first["a.weight"].std()) == pytest.approx(1 / 20, rel=0.05)
    config = transformers.DINOv3ViTConfig(**VIT, image_size=32, patch_size=16)
    drawn = transformers_model(transformers.DINOv3ViTModel, config, random_weights(0), dict, "cpu")
    wanted = dict(transformers.DINOv3ViTModel(config).named_buffers())
    torch.testing.assert_close(dict(drawn.named_buffers()), wanted, rtol=0, atol=0)  # they are computed, not drawn


def test_any_backbone_needs_its_configuration_only(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "vit", "dinov2")
    (folder / "model.safetensors").unlink()
    spec = MODELS.get(f"hf:{folder}")
    encoder, latents = run(spec)
    assert latents.tokens.shape == (1, 2, 256, 32)
    assert encoder.identity.digest.startswith("random weights, seed 0, configuration ")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mlp_ratio": 3}))
    assert run(spec)[0].identity != encoder.identity
    (folder / "config.json").unlink()
    fails(UsageError, r"has no config\.json", run, spec)


def test_attention_takes_as_many_sequences_as_kernels_do(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, MOST_SEQUENCES + 5, 2, 2, 4, generator=torch.Generator().manual_seed(0)).unbind()
    whole, sizes = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), []
    attend = torch.nn.functional.scaled_dot_product_attention

    def noted(*parts: torch.Tensor, **options: bool) -> torch.Tensor:
        sizes.append(len(parts[0]))
        return attend(*parts, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    assert torch.equal(sliced_attention(q, k, v, is_causal=True), whole)
    assert sizes == [MOST_SEQUENCES, 5]
