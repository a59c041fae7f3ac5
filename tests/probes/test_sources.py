"""Latents as the probes read them, rows that are drawn, and the memory for a training."""

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from lary.arrays import Array
from lary.probes import sources
from lary.probes.nets import ActionExpertMLP
from lary.probes.sources import check_memory, projected, read_batches, reordered
from lary.types import LaryError, UsageError
from tests.helpers import fails
from tests.probes.made import KINDS, InMemory, train

TOKENS = np.random.default_rng(0).standard_normal((50, 2, 3, 4)).astype(np.float32)
ROWS = np.array([3, 11, 12])
FORMATS = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


def stored(tokens: Array, dtype: str) -> tuple[Array, Array]:
    """Tokens as shards give them to a probe on CUDA, and these as float32."""
    found = torch.from_numpy(tokens).to(getattr(torch, dtype))
    return (found.view(torch.uint16) if dtype == "bfloat16" else found).numpy(), found.float().numpy()


@FORMATS
def test_controls_change_the_steps(dtype: str) -> None:
    tokens, numbers = stored(TOKENS, dtype)
    source = InMemory(tokens)
    np.testing.assert_allclose(projected(source, 3, 0).read(ROWS), projected(InMemory(numbers), 3, 0).read(ROWS))
    np.testing.assert_array_equal(reordered(source, "static-pair", 0).read(ROWS), tokens[ROWS][:, [0, 0]])
    mixed = reordered(source, "shuffled-order", 0)
    everything = mixed.read(np.arange(50))
    swapped = (everything == tokens[:, ::-1]).all(axis=(1, 2, 3))
    kept = (everything == tokens).all(axis=(1, 2, 3))
    assert (swapped ^ kept).all()
    assert 15 <= swapped.sum() <= 35
    np.testing.assert_array_equal(mixed.read(ROWS), everything[ROWS])


def test_projections_keep_lengths_and_channels_are_standardised() -> None:
    wide = InMemory(np.random.default_rng(1).standard_normal((200, 1, 1, 400)).astype(np.float32))
    lengths = np.square(projected(wide, 100, 0).read(np.arange(200))).sum(axis=-1).mean()
    assert lengths == pytest.approx(400, rel=0.1)
    tokens = TOKENS * np.array([1, 10, 1e-3, 0], np.float32) + np.array([0, 5, 0, 3], np.float32)
    source = InMemory(tokens)
    mean, std = sources.channel_statistics(source, np.arange(50))
    values = sources.standardised(source, mean, std).read(np.arange(50)).reshape(-1, 4)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=0), [1, 1, 1, 0], atol=1e-4)


@FORMATS
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found(dtype: str, wrong: float) -> None:
    largest = torch.finfo(getattr(torch, dtype)).max  # a sum of such values overflows
    tokens, _ = stored(np.full((5, 2, 3), largest, np.float32), dtype)
    source = sources.finite_latents(InMemory(tokens), lambda row: f"sample {row}f ({row}.mp4)")
    np.testing.assert_array_equal(source.read(np.arange(5)), tokens)
    tokens[3, 1, 2] = stored(np.array([wrong], np.float32), dtype)[0][0]
    assert source.read([0, 1]).shape == (2, *source.shape)
    with pytest.raises(LaryError, match=r"latents of sample 3f \(3.mp4\) hold NaN or infinity.*check-model"):
        projected(source, 2, 0).read(np.array([4, 3]))
    fails(LaryError, r"latents of sample 3f", list, read_batches(source, np.array([4, 3]), 8, "cpu"))


@pytest.mark.parametrize("fits", [True, False])
@FORMATS
def test_batches_are_the_rows_in_order_and_float32(fits: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * TOKENS.nbytes))
    tokens, numbers = stored(TOKENS, dtype)
    own = InMemory(tokens)
    source = sources.keep_in_memory(own, 1 if fits else 2)  # an eighth is enough for one process
    assert (source is own) is not fits
    rows = np.random.default_rng(2).permutation(50)
    found = list(read_batches(source, rows, 16, "cpu"))
    assert [count for *_, count in found] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate([part for part, *_ in found]), rows)
    values = torch.cat([batch for _, batch, _ in found])
    assert values.dtype == torch.float32
    np.testing.assert_array_equal(values.numpy(), numbers[rows])
    statistics = [sources.channel_statistics(InMemory(each), rows) for each in (tokens, numbers)]
    np.testing.assert_array_equal(*statistics)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ridge"])
def test_a_training_that_does_not_fit_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=1000))
    fails(UsageError, r"on latents of shape .* needs .* GB .*has 0\.0 GB free.*--pool.*--project", train, kind)


def test_the_published_width_on_whole_feature_maps_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 24 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    given = (lambda: ActionExpertMLP(2 * 256 * 1024, 7, 5), 1, 256, (2, 256, 1024), "cuda:0")
    numbers = r"2\.18 billion weights .*1024\) needs 34\.9 GB for weights.*4\.3 GB for batches"
    fails(UsageError, numbers, check_memory, *given)
    free = 40 << 30
    check_memory(*given)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30))
    fails(UsageError, r"needs 34\.9 GB for weights.*21\.5 GB for batches", check_memory, *given, 0.2)
