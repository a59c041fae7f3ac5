"""``--weights random``: every model of the benchmark runs without files, and its latents never mix with real ones."""

import json
from pathlib import Path

import pytest
import torch

from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.nets import MOST_SEQUENCES, sliced_attention
from lary.types import RANDOM, Latents, UsageError, WeightsIdentity
from tests.helpers import fails
from tests.tiny import save_tiny
from tests.tiny_networks import PUBLISHED, tiny_record


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
