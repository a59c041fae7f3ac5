"""The DiT probe against the published code: schedule of the noise, network, loss, sampling step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lary.probes import dit
from lary.probes.dit import ActionExpertDiT, Sampler, add_noise, alphas_cumprod, sampling_timesteps
from tests.parity.conftest import Case, case_names, load_case
from tests.parity.fill import uniform

KEPT = (1, 2, 10, 100, 400, 499)
"""Steps after which ``trajectory_named`` has the state."""


def build(case: Case) -> ActionExpertDiT:
    """The network with the weights of the case; its keys and shapes have to be exactly those."""
    network = ActionExpertDiT(**case.config).eval()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == case.about["keys"]
    network.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights().items()}, strict=True)
    return network


def close(case: Case, name: str, actual: torch.Tensor, tolerance: float) -> None:
    expected = case.arrays[name]
    assert tuple(actual.shape) == expected.shape
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=tolerance, err_msg=f"{case.name} {name}")


def standard(values: np.ndarray) -> torch.Tensor:
    """Uniform draws with mean 0 and variance 1, in the float32 arithmetic of numpy."""
    return torch.from_numpy((values - np.float32(0.5)) * np.float32(math.sqrt(12)))


@pytest.mark.parametrize("name", case_names("regression_dit_*"))
def test_noise_network_and_loss(name: str) -> None:
    case = load_case(name)
    network = build(case)
    latents = torch.from_numpy(case.draw("latent") * 4 - 2)
    action = torch.from_numpy(case.draw("action") * 4 - 2).unflatten(1, network.shape)
    noise, times = standard(case.draw("noise")), torch.tensor(case.about["input"]["timesteps"]["values"])
    close(case, "alphas_cumprod", alphas_cumprod(), 1e-6)
    np.testing.assert_array_equal(sampling_timesteps(500), case.arrays["timesteps"])
    noisy = add_noise(action, noise, times)
    close(case, "noisy", noisy, 1e-6)
    with torch.no_grad():
        predicted = network(noisy, times, latents)
    close(case, "noise_pred", predicted, case.about["tolerance"]["noise_pred"])
    np.testing.assert_allclose(float(F.huber_loss(predicted, noise)), case.arrays["huber"], atol=1e-5)


@pytest.mark.parametrize("name", case_names("regression_dit_*"))
def test_published_sampling(name: str) -> None:
    case = load_case(name)
    network = build(case)
    latents = torch.from_numpy(case.draw("latent") * 4 - 2)
    draws = {"start": case.about["input"]["<start>"], "noise": case.about["input"]["<noise>"]}

    def named(timestep: int | None) -> torch.Tensor:
        entry = draws["start"] if timestep is None else draws["noise"]
        return standard(uniform(entry["draw"].replace("<t>", str(timestep)), tuple(entry["shape"])))

    states = list(network.trajectory(latents, named))
    assert len(states) == 500
    tolerance = case.about["tolerance"]
    close(case, "trajectory_named", torch.stack([states[step - 1] for step in KEPT]), tolerance["sample_named"])
    close(case, "sample_named", states[-1].flatten(1), tolerance["sample_named"])
    network.sampler = Sampler(seed=123)
    close(case, "sample_seeded", network.predict(latents), tolerance["sample_seeded"])


@pytest.mark.parametrize("steps", [1, 3, 50, 500, 1000])
def test_a_perfect_network_is_sampled_exactly(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the noise is known, every sampler ends in the one clean chunk, clipped to one standard deviation."""
    network = ActionExpertDiT(5, 2, 3, hidden_size=8, depth=1, num_heads=2, sampler=Sampler(steps)).eval()
    clean = torch.tensor([[[0.5, -0.9], [0.0, 0.3], [0.8, 4.0]]])

    def known(noisy: torch.Tensor, times: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        left = alphas_cumprod()[times][:, None, None]
        return (noisy - left.sqrt() * clean) / (1 - left).sqrt()

    monkeypatch.setattr(network.dit, "denoise", known)
    found = network.predict(torch.zeros(1, 5)).unflatten(1, (3, 2))
    torch.testing.assert_close(found, clean.clamp(-1, 1), atol=2e-3, rtol=0)


def test_the_condition_is_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    embedder = dit.ConditionEmbedder(4, 3)
    torch.nn.init.ones_(embedder.uncondition)
    latents = torch.zeros(4000, 4)
    dropped = (embedder.train()(latents) != embedder.linear.bias).any(dim=1).float().mean()
    assert float(dropped) == pytest.approx(0.1, abs=0.02)
    torch.testing.assert_close(embedder.eval()(latents), embedder.linear(latents))
