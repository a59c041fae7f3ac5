"""Networks of the probes by invariants; their outputs are checked against the published code in tests/parity."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lary.nets import spacetime
from lary.probes.dit import ActionExpertDiT
from lary.probes.nets import ActionExpertMLP, AttentiveProbe, attend, load_heads
from lary.types import LaryError
from tests.helpers import fails
from tests.probes.made import classifier_inputs, train


def test_temporal_embedding_is_stretched_where_there_are_more_steps() -> None:
    """With an embedding that grows evenly over four steps, eight steps still grow, and the first one stays."""
    torch.manual_seed(0)
    probe = AttentiveProbe(5, 3, 8, 2, 1, max_temporal_len=4).requires_grad_(False)
    probe.classifier.temporal_embed.copy_(torch.arange(4.0)[None, :, None, None].expand(1, 4, 1, 8))
    seen: list[torch.Tensor] = []
    probe.classifier.pooler.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    probe(torch.zeros(1, 8, 1, 5))
    added = (seen[0] - probe.projector(torch.zeros(5)))[0, :, 0]
    torch.testing.assert_close(added[[0, -1]], torch.tensor([0.0, 3.0]))
    assert (added.diff() >= 0).all()


@pytest.mark.parametrize("length", [spacetime.SHORT, spacetime.SHORT + 1])
def test_attention_in_bfloat16_is_attention(length: int) -> None:
    torch.manual_seed(0)
    attention = spacetime.SelfAttention(32, 4)
    tokens = torch.randn(2, length, 32)
    expected, found = attention(tokens), attention.bfloat16()(tokens.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)
    cross = spacetime.QueryAttention(32, 4)
    values = spacetime.split_heads(cross.kv(tokens)[..., 32:], 4)
    shown = (cross.weights(tokens, tokens) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(shown, cross(tokens, tokens), msg="the weights that figures show")


@pytest.mark.parametrize("hidden", [16, 100])
def test_the_first_layer_of_the_mlp_has_the_gradients_of_autograd(hidden: int) -> None:
    torch.manual_seed(0)
    network = ActionExpertMLP(24, 3, 2, hidden_dim=hidden, num_blocks=1).double()
    with torch.no_grad():
        network.model.layer_norm1.weight.normal_()
        network.model.layer_norm1.bias.normal_()
    tokens, targets = torch.randn(9, 2, 3, 4).double(), torch.randn(9, 6).double()
    weights = list(network.parameters())
    found, wanted = (
        torch.autograd.grad(F.huber_loss(network(given), targets), weights)
        for given in (tokens, tokens.clone().requires_grad_())
    )
    torch.testing.assert_close(found, wanted)


def test_dropped_conditions_of_the_dit_have_the_gradients_of_replaced_latents() -> None:
    torch.manual_seed(0)
    network = ActionExpertDiT(12, 3, 2, hidden_size=8, depth=1, num_heads=2).double().train()
    embedder = network.dit.z_embedder
    torch.nn.init.normal_(embedder.uncondition)
    latents, dropped = torch.randn(6, 12).double(), torch.tensor([True, False] * 3)
    weights = (embedder.uncondition, embedder.linear.weight, embedder.linear.bias)
    found = torch.autograd.grad(embedder(latents, dropped).square().sum(), weights)
    replaced = embedder.linear(torch.where(dropped[:, None], embedder.uncondition, latents))
    torch.testing.assert_close(found, torch.autograd.grad(replaced.square().sum(), weights))


def test_the_reported_heads_are_read_back(tmp_path: Path) -> None:
    inputs = classifier_inputs()
    outcome = train("attentive", inputs, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pt", "log_r0.csv"]
    assert torch.load(tmp_path / "latest.pt", weights_only=True)["epoch"] == 10
    shares, weights = attend(load_heads(tmp_path / "latest.pt", 4), inputs.validation, [1, 4])
    np.testing.assert_allclose(np.log(shares), outcome.selections["held_out"].logits[[1, 4]], atol=1e-5)
    np.testing.assert_allclose(weights.reshape(2, 12).sum(axis=1), 1, atol=1e-5)
    fails(LaryError, r"holds no head that can be used .*: run the probe again", load_heads, tmp_path / "latest.pt", 5)
    (tmp_path / "latest.pt").write_bytes(b"PK torn")
    fails(LaryError, "holds no head that can be used", load_heads, tmp_path / "latest.pt", 4)
    fails(LaryError, "does not exist: run the probe again with --overwrite", load_heads, tmp_path / "none.pt", 4)
