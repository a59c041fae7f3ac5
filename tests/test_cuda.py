"""What only a CUDA device can show; skipped, with the reason, where there is none."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any

import numpy as np
import pytest
import torch

from lary.configs import ExtractConfig
from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext
from lary.probes.team import Team, launch
from lary.runs.engines import encode_all
from lary.runs.extract import extract, open_run, prepare_run
from lary.types import RANDOM, LaryError
from tests.helpers import fails, printed, settings_of
from tests.probes.made import assert_same, numbers, train
from tests.tiny_networks import PUBLISHED, tiny_record
from tests.tree import make_calvin

DEVICE = os.environ.get("LARY_TEST_DEVICE", "cuda:0")
"""The device; the CPU takes its place where the tests themselves are tried."""
KIND: Any = DEVICE.partition(":")[0]
FULL = bool(os.environ.get("LARY_FULL_SIZE"))
"""Whether models have their full size, as in benchmarks/first_hour.py."""

absent = KIND == "cuda" and not torch.cuda.is_available()
pytestmark = pytest.mark.skipif(absent, reason="torch finds no CUDA device on this machine")
only_cuda = pytest.mark.skipif(KIND != "cuda", reason="a CPU has no such thing")


def drawn(name: str, device: str, **how: Any) -> LoadedEncoder:
    spec = MODELS.get(name) if FULL or name not in PUBLISHED else tiny_record(name)
    return build(spec, ModelContext(device, "corrected", RANDOM if spec.weights else None), **how)


def difference(one: torch.Tensor, two: torch.Tensor) -> float:
    """The largest difference as a share of the largest magnitude."""
    first, second = (each.float().cpu() for each in (one, two))
    return float((first - second).abs().max() / first.abs().max())


@pytest.mark.parametrize("frames", [2, 9])
@pytest.mark.parametrize("name", [*PUBLISHED, "random-vit", "pixels", "frame-difference"])
def test_parity_of_every_model_with_the_cpu(name: str, frames: int) -> None:
    side = MODELS.get(name).preprocess.size
    clips = torch.randn(3, frames, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        host = drawn(name, "cpu").encode(clips)
        device, again = drawn(name, DEVICE).encode(clips), drawn(name, DEVICE).encode(clips)
        half = drawn(name, DEVICE, precision="bf16").encode(clips).tokens
    assert torch.equal(device.tokens, again.tokens)
    same = torch.ones(device.tokens.shape[:-1], dtype=torch.bool)
    if host.codes is not None and device.codes is not None and "latent" not in MODELS.get(name).options:
        # Tokens are rows of the codebook: a latent between two may take the other one.
        same = (host.codes == device.codes.cpu()).reshape(same.shape)
        assert same.float().mean() > 0.95
    assert difference(host.tokens[same], device.tokens.cpu()[same]) <= 1e-4
    assert half.isfinite().all()
    if host.codes is None:
        assert difference(host.tokens, half) <= 0.1


def store(root: Path, devices: list[str], **how: Any) -> dict[str, bytes]:
    """The latents of an extraction by these devices, by name."""
    config = ExtractConfig(model="random-vit", dataset="calvin", split="val", device=KIND, batch_size=4, **how)
    run = replace(prepare_run(config, settings_of(root)), devices=devices)
    held = open_run(run)
    missing = held.missing(run.table)
    encode_all(replace(run.job, store=held), run.table, missing, devices, run.encoder, run.title)
    return {file.name: file.read_bytes() for file in run.folder.glob("latent_action_*")}


def test_two_processes_and_a_resumed_extraction_give_the_same_bits(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"val": 8})
    whole = store(tmp_path, [DEVICE])
    assert len(whole) == 24
    for file in list(tmp_path.rglob("latent_action_*"))[::3]:
        file.unlink()
    assert store(tmp_path, [DEVICE]) == whole, "resumed"
    for file in tmp_path.rglob("latent_action_*"):
        file.unlink()
    assert store(tmp_path, [DEVICE, DEVICE]) == whole, "two processes"


@only_cuda
def test_a_store_of_the_cpu_is_not_resumed_on_cuda(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"val": 2})
    asked: dict[str, Any] = {"model": "random-vit", "dataset": "calvin", "split": "val"}
    extract(ExtractConfig(**asked, device="cpu"), settings_of(tmp_path))
    fails(LaryError, "arithmetic '' instead of 'cuda fp32'", extract, ExtractConfig(**asked), settings_of(tmp_path))


@pytest.mark.parametrize("kind", ["attentive", "mlp", "dit"])
def test_probes_score_as_on_the_cpu(kind: str) -> None:
    host, device = (numbers(train(kind, device=each, epochs=3, precision="fp32")) for each in ("cpu", DEVICE))
    for name in host.keys() - {"history"}:
        np.testing.assert_allclose(host[name], device[name], atol=5e-3, err_msg=name)
    assert_same(device, numbers(train(kind, device=DEVICE, epochs=3, precision="fp32")))


def in_team(folder: Path, team: Team, device: str) -> None:
    """What each of two processes does."""
    for kind in ("attentive", "mlp", "dit"):
        found = numbers(train(kind, team=team, device=device, epochs=3, precision="fp32"))
        np.savez(folder / f"{kind}{team.rank}.npz", **found)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two CUDA devices")
def test_two_devices_train_as_one(tmp_path: Path) -> None:
    launch(in_team, (tmp_path,), ("cuda:0", "cuda:1"))
    for kind in ("attentive", "mlp", "dit"):
        alone = numbers(train(kind, device=DEVICE, epochs=3, precision="fp32"))
        for rank in range(2):
            found = dict(np.load(tmp_path / f"{kind}{rank}.npz"))
            for name in alone.keys() - {"history"}:
                np.testing.assert_allclose(found[name], alone[name], atol=1e-3, err_msg=f"{kind} {name}")


@only_cuda
def test_a_lack_of_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_calvin(tmp_path, {"val": 2})
    free, _ = torch.cuda.mem_get_info(DEVICE)
    taken = torch.empty(max(1, free - (200 << 20)), dtype=torch.uint8, device=DEVICE)
    words = ("extract", "--model", "random-vit", "--dataset", "calvin", "--split", "val", "--batch-size", "4096")
    printed(*words, root=tmp_path, code=1, has=[f"{DEVICE} ran out of memory", "lower --batch-size"])
    del taken


@only_cuda
def test_pinned_memory_that_is_refused_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_calvin(tmp_path, {"val": 2})
    expected = store(tmp_path, [DEVICE])
    for file in tmp_path.rglob("latent_action_*"):
        file.unlink()
    refuse: Callable[..., Any] = lambda _: torch.cuda.check_error(801)  # noqa: E731 (what registering returns)
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    assert store(tmp_path, [DEVICE]) == expected


@pytest.mark.parametrize("name", ["dinov2", "univla"])
def test_sequences_beyond_the_grid_of_a_kernel(name: str) -> None:
    """Attention over time of 32 clips has more than 65,535 sequences of two tokens."""
    side, count = MODELS.get(name).preprocess.size, 32 if FULL else 2
    clips = torch.randn(count, 9, 3, side, side, generator=torch.Generator().manual_seed(0))
    for precision in ("fp32", "bf16"):
        encoder = drawn(name, DEVICE, precision=precision)
        with torch.inference_mode():
            assert encoder.encode(clips).tokens.isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two CUDA devices")
def test_two_devices_extract_the_bits_of_one(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"val": 8})
    whole = store(tmp_path, ["cuda:0"])
    for file in tmp_path.rglob("latent_action_*"):
        file.unlink()
    assert store(tmp_path, ["cuda:0", "cuda:1"]) == whole


def test_ctrl_c_ends_a_training_on_devices(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from lary.probes.team import launch\n"
        "from tests.probes.test_training import wait_in_c\n"
        f"launch(wait_in_c, (Path({str(tmp_path)!r}),), ({DEVICE!r}, {DEVICE!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1]) as process:
        while len(list(tmp_path.iterdir())) < 2 and process.poll() is None:
            time.sleep(0.1)
        begun = time.monotonic()
        process.send_signal(SIGINT)
        process.wait(30)
    assert time.monotonic() - begun < 10
