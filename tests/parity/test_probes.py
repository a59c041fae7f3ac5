"""The probes against the published code: network outputs, schedules, draws, errors, and the sampling of the DiT."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lary.data.spec import DATASETS
from lary.probes import dit
from lary.probes import outcome as metrics
from lary.probes.dit import ActionExpertDiT, add_noise, alphas_cumprod, sampling_timesteps
from lary.probes.nets import ActionExpertMLP, AttentiveProbe
from lary.probes.presets import PRESETS, HeadSettings, learning_rate, weight_decay
from lary.probes.sources import balanced_indices, class_weights
from tests.parity.conftest import OWN, Case, case_names, load_case
from tests.parity.fill import uniform

KEPT = (1, 2, 10, 100, 400, 499)
"""Steps after which ``trajectory_named`` of the DiT has the state."""


def loaded(case: Case, network: Any) -> Any:
    """The network with the weights of the case; its keys and shapes have to be exactly those."""
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == case.about["keys"]
    network.load_state_dict(case.weights())
    return network.eval().requires_grad_(False)


def centred(case: Case, name: str) -> torch.Tensor:
    """A drawn input in [-2, 2)."""
    return torch.from_numpy(case.draw(name) * 4 - 2)


@pytest.mark.parametrize("name", case_names(names="probe_*", but=("probe_schedule", "probe_sampler")))
def test_attentive_probe(name: str) -> None:
    case = load_case(name)
    sizes = ("input_dim", "num_classes", "model_dim", "num_heads", "depth", "max_temporal_len")
    probe = loaded(case, AttentiveProbe(*(case.config[size] for size in sizes)))
    smoothing = PRESETS.get("paper").classifier.label_smoothing
    for kind in case.about["input"]:
        logits = probe(centred(case, kind))
        case.check(f"logits_{kind}", logits)
        labels = 3 * torch.arange(len(logits)) % case.config["num_classes"]
        case.check(f"loss_smooth_{kind}", F.cross_entropy(logits, labels, label_smoothing=smoothing))


@pytest.mark.parametrize("name", case_names(names="regression_mlp_*"))
def test_regression_mlp(name: str) -> None:
    case = load_case(name)
    predicted = loaded(case, ActionExpertMLP(**case.config))(centred(case, "latent")).numpy()
    target = case.draw("target") * 6 - 3
    huber = metrics.huber_loss(predicted, target, len(target))
    case.check_all(prediction=predicted, huber=huber, mse=metrics.mse(predicted, target))


def trace(heads: list[HeadSettings], epochs: int, per_epoch: int) -> dict[str, np.ndarray]:
    total = epochs * per_epoch
    rows = [
        [(learning_rate(head, step, total, per_epoch), weight_decay(head, step, total)) for head in heads]
        for step in range(1, total + 1)
    ]
    return dict(zip(("lr", "wd"), np.moveaxis(np.array(rows), 2, 0), strict=True))


@pytest.mark.parametrize("name", case_names(names="probe_schedule*"))
def test_schedule(name: str) -> None:
    case = load_case(name)
    epochs, per_epoch = case.config["num_epochs"], case.config["iterations_per_epoch"]
    traces = trace([HeadSettings(**head) for head in case.config["heads"]], epochs, per_epoch)
    rising = HeadSettings(0.003, 0.4, final_lr=0.0001, final_weight_decay=0.04, start_lr=0.0005, warmup=0.7)
    traces |= {f"warmup_{key}": value for key, value in trace([rising], epochs, per_epoch).items()}
    for output in case.about["outputs"]:
        key, part = output.split("/")
        first, count = re.fullmatch(r"(first|last)(\d+)", part).groups()  # type: ignore[union-attr]
        rows = traces[key][: int(count)] if first == "first" else traces[key][-int(count) :]
        case.check(output, rows)


def test_paper_preset_has_the_published_heads() -> None:
    case = load_case("probe_schedule", OWN)  # cases of another folder may have heads of their own
    preset = PRESETS.get("paper").classifier
    published = [(head["lr"], head["weight_decay"], head["final_lr"], head["warmup"]) for head in case.config["heads"]]
    assert [(head.lr, head.weight_decay, head.final_lr, head.warmup) for head in preset.heads] == published


@pytest.mark.parametrize("name", case_names(names="probe_sampler*"))
def test_sampler(name: str) -> None:
    case = load_case(name)
    labels = np.unique(case.config["actions"], return_inverse=True)[1]
    weights = class_weights(labels)
    case.check("label_ids", labels)
    np.testing.assert_allclose(weights, case.arrays["weights"], rtol=1e-15)
    for output, expected in case.arrays.items():
        # Several published processes round the draws up to a multiple of their number, and deal them out in turn; ours
        # share the batches of one process. The order in which the published code validates (val_indices) is not ours.
        if match := re.fullmatch(r"indices/world(\d+)/rank(\d+)/epoch(\d+)", output):
            world, rank, epoch = map(int, match.groups())
            own = balanced_indices(weights, epoch, seed=0)[rank::world]
            np.testing.assert_array_equal(own, expected[: len(own)])
            assert len(expected) - len(own) == (rank >= len(labels) % world > 0)


@pytest.mark.parametrize("name", case_names(names="regression_metrics*"))
def test_regression_metrics(name: str) -> None:
    case = load_case(name)
    for key, about in case.about["input"].items():
        size, actions = about["steps"] * len(case.arrays[f"{key}/per_dim"]), DATASETS.get(about["dataset"]).actions
        predicted, target = (uniform(about[of]["draw"], tuple(about[of]["shape"])) * 4 - 2 for of in ("pred", "target"))
        target = (target * np.linspace(0.5, 1.5, size)).astype(np.float32)
        predicted, target = (values.reshape(len(values), about["steps"], -1) for values in (predicted, target))
        groups = metrics.mse_per_group(predicted, target, actions.groups)
        case.check(f"{key}/mse", metrics.mse(predicted, target))
        case.check(f"{key}/per_dim", metrics.mse_per_dim(predicted, target))
        case.check(f"{key}/groups", np.array(list(groups.values())))
        case.check(f"{key}/val_loss", metrics.huber_loss(predicted, target, 4))


def standard(values: np.ndarray) -> torch.Tensor:
    """Uniform draws with mean 0 and variance 1, in the float32 arithmetic of numpy."""
    return torch.from_numpy((values - np.float32(0.5)) * np.float32(math.sqrt(12)))


@pytest.mark.parametrize("name", case_names(names="regression_dit_*"))
def test_diffusion_transformer(name: str) -> None:
    case = load_case(name)
    network, latents = loaded(case, ActionExpertDiT(**case.config)), centred(case, "latent")
    inputs, within = case.about["input"], case.about["tolerance"]
    noise, times = standard(case.draw("noise")), torch.tensor(inputs["timesteps"]["values"])
    noisy = add_noise(centred(case, "action").unflatten(1, network.shape), noise, times)
    predicted = network(noisy, times, latents)
    case.check("timesteps", sampling_timesteps(500))
    case.check("alphas_cumprod", alphas_cumprod(), 1e-6)
    case.check("noisy", noisy, 1e-6)
    case.check("noise_pred", predicted, within["noise_pred"])
    case.check("huber", F.huber_loss(predicted, noise), 1e-5)

    def named(timestep: int | None) -> torch.Tensor:
        entry = inputs["<start>" if timestep is None else "<noise>"]
        return standard(uniform(entry["draw"].replace("<t>", str(timestep)), tuple(entry["shape"])))

    states = list(network.trajectory(latents, named))
    assert len(states) == 500
    case.check("trajectory_named", torch.stack([states[step - 1] for step in KEPT]), within["sample_named"])
    case.check("sample_named", states[-1].flatten(1), within["sample_named"])
    network.seed = 123
    case.check("sample_seeded", network.predict(latents), within["sample_seeded"])


@pytest.mark.parametrize("steps", [1, 3, 50, 500, 1000])
def test_a_perfect_network_is_sampled_exactly(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the noise is known, every sampler ends in the one clean chunk, clipped to one standard deviation."""
    network = ActionExpertDiT(5, 2, 3, hidden_size=8, depth=1, num_heads=2, sampler_steps=steps).eval()
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
    dropped = (embedder(latents, dit._dropped(4000)) != embedder.linear.bias).any(dim=1).float().mean()
    assert float(dropped) == pytest.approx(0.1, abs=0.02)
    torch.testing.assert_close(embedder(latents), embedder.linear(latents))
