"""Memory, precision and learning rates of trainings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from lary.probes.presets import PRESETS
from lary.probes.regress import RegressorTraining, make_regressor
from lary.probes.session import Session
from lary.probes.training import count_weights, free_bytes, in_bfloat16, samples_at_once, warmup_factor
from lary.runtime import memory_bytes
from lary.types import UsageError
from tests.probes.made import KINDS, TINY, regressor_inputs, train


def test_weights_are_counted_without_being_made() -> None:
    settings = PRESETS.get("paper").regressor
    weights = count_weights(lambda: make_regressor(settings, (2, 256, 1024), (10, 5, 7), 0))
    assert weights == 2 * 524288 + 524288 * 4096 + 4096 + 2 * (2 * 4096 + 4096 * 4096 + 4096) + 8192 + 4096 * 35 + 35
    small = make_regressor(TINY.regressor, (2, 3, 4), (9, 2, 3), 0)
    assert count_weights(lambda: make_regressor(TINY.regressor, (2, 3, 4), (9, 2, 3), 0)) == sum(
        parameter.numel() for parameter in small.parameters()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_does_not_fit_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_bytes("cpu") <= 2 * memory_bytes()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(UsageError, match=r"needs .* GB for latents of .*0\.0 GB are free.*--pool.*--project"):
        train(kind)


def test_the_published_width_on_whole_feature_maps_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 24 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    inputs, session = regressor_inputs(), Session(protocol="paper", seed=0, device="cuda:0")
    settings = PRESETS.get("paper").regressor
    training = RegressorTraining(inputs, settings, session, (np.arange(120), np.arange(0)))
    asked: Any = (2_181_000_000, (2, 256, 1024), "probe mlp")
    with pytest.raises(UsageError, match=r"needs 39\.2 GB for latents of 2 x 256 x 1024 values: 34\.9 GB for weights"):
        training.check_memory(*asked)
    free = 80 << 30
    training.check_memory(*asked)


def test_samples_at_once_bound_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert samples_at_once((8, 16, 1024), 768, 4, 256, "cpu") == 16
    assert samples_at_once((9, 256, 1024), 768, 4, 256, "cpu") == 1
    assert samples_at_once((2, 5), 768, 4, 32, "cpu") == 32
    assert samples_at_once((1024,), 768, 4, 32, "cpu") == 32
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30))
    assert samples_at_once((8, 16, 1024), 768, 4, 256, "cuda:0") == 256
    assert 1 <= samples_at_once((9, 256, 1024), 768, 4, 256, "cuda:0") < 256


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False), ({}, False)],
)
def test_the_published_precision_where_the_device_has_it(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert in_bfloat16(True, None, "cpu") is expected
    assert not in_bfloat16(False, None, "cpu")
    assert not in_bfloat16(True, "fp32", "cpu")
    assert in_bfloat16(False, "bf16", "cpu")
    for version, has in (((9, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, version=version: version)
        assert in_bfloat16(True, None, "cuda:1") is has
    assert not in_bfloat16(True, None, "mps")


def test_warmup_rises_over_the_first_tenth() -> None:
    factors = [warmup_factor(update, 50, 0.1) for update in range(50)]
    np.testing.assert_allclose(factors[:6], [0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(factors[5:]) == {1.0}


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_are_whole(name: str) -> None:
    preset = PRESETS.get(name)
    assert preset.classifier.model_dim % preset.classifier.num_heads == 0
    assert len(preset.classifier.heads) == 5
