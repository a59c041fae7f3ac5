"""How models are run: in other precisions, compiled, held to their records; and what listing them loads."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lary.models.precision import in_precision
from lary.models.promise import held_to_record
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess, build
from lary.types import RANDOM, LaryError, Latents
from tests.test_random_weights import NAMES, tiny

TRACED = {
    "dinov2-origin": "aot_eager",
    "lapa": "eager",
    "univla": "aot_eager",
    "villa-x": "aot_eager",
    "vjepa2": "aot_eager",
}
"""One model of each class, but for the autoencoders of diffusers, and how far it is compiled: to graphs of single
operations that run as they are. Those of lapa have other strides than their kernels give, so it is traced only."""
HEAVY = ("torch", "transformers", "diffusers", "numpy", "pandas", "pydantic", "cv2", "huggingface_hub", "yaml")


@pytest.mark.parametrize("words", [[], ["models"], ["models", "univla"], ["models", "dinov3-cs9_sl16_dim32_lr1e-4"]])
def test_listing_models_loads_no_heavy_library(words: list[str], tmp_path: Path) -> None:
    code = f"""
import sys, lary
if {words}:
    from lary.cli import main
    try:
        main({words})
    except SystemExit as stop:
        assert not stop.code
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.strip() == "[]", f"{words} loads {done.stderr}"


def drawn(name: str) -> tuple[Any, torch.Tensor]:
    """An encoder with a small network and random weights, and two pairs of frames."""
    spec = tiny(name)
    side = spec.preprocess.size
    pairs = torch.randn(2, 2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return build(spec, ModelContext("cpu", "corrected", RANDOM)), pairs


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_near_fp32_and_says_the_same_of_itself(name: str) -> None:
    encoder, pairs = drawn(name)
    assert in_precision(encoder, "cpu", "fp32") is encoder
    rounded = in_precision(encoder, "cpu", "bf16")
    full, half = encoder.encode(pairs).tokens, rounded.encode(pairs).tokens.float()
    assert half.shape == full.shape
    assert half.isfinite().all()
    if encoder.encode(pairs).codes is None or "latent" in MODELS.get(name).options:
        assert not torch.equal(half, full), "bf16 was not used"
        assert (torch.cosine_similarity(half.flatten(1), full.flatten(1)) > 0.98).all()
    # Tokens that are rows of a codebook are the same row, or another that is as near as chance has it.
    assert (rounded.weights_digest, rounded.dim) == (encoder.weights_digest, encoder.dim)  # type: ignore[attr-defined]


def assert_compiled_alike(name: str) -> None:
    encoder, pairs = drawn(name)
    compiled = in_precision(encoder, "cpu", "fp32", compiled=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled.encode(pairs).tokens, encoder.encode(pairs).tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled.encode(pairs[:1]).tokens, compiled.encode(pairs).tokens[:1])


@pytest.mark.parametrize("name", TRACED)
def test_compiled_encoders_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=TRACED[name]))
    assert_compiled_alike(name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch has deprecated
@pytest.mark.parametrize("name", [*TRACED, "wan2-2", "flux2"])
def test_encoders_compiled_to_machine_code_give_the_same(name: str) -> None:
    torch.compiler.reset()
    assert_compiled_alike(name)


def test_network_is_compiled_once_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    encoder, pairs = drawn("dinov2-origin")
    compiled = in_precision(encoder, "cpu", "fp32", compiled=True)
    for batch in (1, 2, 5):
        compiled.encode(pairs[:1].repeat(batch, 1, 1, 1, 1))
    assert len(graphs) == 1


class Scaled:
    """An encoder as an author writes it: no part of the package runs its network."""

    def __init__(self, network: torch.nn.Module | None) -> None:
        self.network = network

    def encode(self, clips: torch.Tensor) -> Latents:
        means = clips.mean((3, 4))
        return Latents(means if self.network is None else self.network(means))


def test_modules_of_an_author_are_compiled(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    ran = []

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(torch.compiler.is_compiling())
            return x * 2

    torch.compiler.reset()
    monkeypatch.setattr(Network, "compile", lambda self: torch.nn.Module.compile(self, backend="eager"))
    pairs = torch.rand(2, 2, 3, 8, 8)
    plain = Scaled(Network()).encode(pairs).tokens
    compiled = in_precision(Scaled(Network()), "cpu", "fp32", compiled=True)
    assert torch.equal(compiled.encode(pairs).tokens, plain)
    assert True in ran
    with caplog.at_level(logging.INFO, logger="lary"):
        in_precision(Scaled(None), "cpu", "fp32", compiled=True).encode(pairs)
    assert "--compile changes nothing: Scaled holds no network" in caplog.text


def test_a_machine_that_cannot_compile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=no_compiler))
    encoder = build(MODELS.get("random-vit"), ModelContext("cpu", "corrected"))
    compiled = in_precision(encoder, "cpu", "fp32", compiled=True)
    with pytest.raises(LaryError, match=r"--compile: .*No working C\+\+ compiler found\)\. Leave the option out, or"):
        compiled.encode(torch.zeros(1, 2, 3, 224, 224))


RECORD = ModelSpec("held", "baseline", 4, Preprocess(), pair_shape=(2, 3, 4), pair_shape_paper=(1, 3, 4))


class Fixed:
    """An encoder that answers one thing."""

    def __init__(self, answer: Any, dim: int | None = None) -> None:
        self.answer, self.dim = answer, dim

    def encode(self, clips: torch.Tensor) -> Latents:
        answer: Latents = self.answer
        return answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (torch.zeros(5, 2, 3, 4), "returned Tensor, expected Latents"),
        (None, "returned NoneType, expected Latents"),
        (Latents(torch.zeros(5, 4)), r"tokens of shape \(5, 4\) for 5 samples, expected \(B, P, N, D\)"),
        (Latents(torch.zeros(1, 2, 3, 4)), r"tokens of shape \(1, 2, 3, 4\) for 5 samples"),
        (Latents(torch.zeros(5, 2, 3, 6)), "latent dimension 6, its record says 4"),
        (Latents(torch.zeros(5, 2, 7, 4)), r"shape \(2, 7, 4\) for a pair, its record says \(2, 3, 4\)"),
        (Latents(torch.zeros(5, 2, 3, 4, dtype=torch.int64)), "tokens of int64, expected floating-point"),
        (Latents(torch.zeros(5, 2, 3, 4), torch.zeros(1, 2, 3, dtype=torch.int64)), r"codes of shape \(1, 2, 3\)"),
        (Latents(torch.zeros(5, 2, 3, 4), torch.zeros(5, 2, 3)), "expected whole numbers"),
    ],
)
def test_answers_that_break_the_record_stop(answer: Any, told: str) -> None:
    encoder = held_to_record(Fixed(answer), RECORD, "corrected")
    with pytest.raises(LaryError, match=r"Model 'held' returned .*lary check-model") as caught:
        encoder.encode(torch.zeros(5, 2, 3, 8, 8))
    assert caught.match(told)


def test_answers_that_keep_the_record_pass() -> None:
    pairs = torch.zeros(5, 2, 3, 8, 8)
    for protocol, steps in (("corrected", 2), ("paper", 1)):
        answer = Latents(torch.zeros(5, steps, 3, 4), torch.zeros(5, steps, 3, dtype=torch.int64))
        assert held_to_record(Fixed(answer), RECORD, protocol).encode(pairs) is answer  # type: ignore[arg-type]
    other = Latents(torch.zeros(5, 2, 9, 6))  # weights of another size than the record's, which say so
    assert held_to_record(Fixed(other, dim=6), RECORD, "corrected").encode(pairs) is other
    longer = Latents(torch.zeros(5, 7, 3, 4))
    assert held_to_record(Fixed(longer), RECORD, "corrected").encode(torch.zeros(5, 7, 3, 8, 8)) is longer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_records_say_the_shapes_under_both_protocols(name: str, protocol: Any) -> None:
    spec = tiny(name)
    encoder: Any = build(spec, ModelContext("cpu", protocol, RANDOM))
    side = spec.preprocess.size
    for media, frames in (("pair", 2), ("clip", 9)):
        shape = encoder.encode(torch.zeros(1, frames, 3, side, side)).tokens.shape[1:]
        assert shape[:-1] == spec.shape(protocol, media)[:-1]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_frames_of_another_size_are_told(name: str) -> None:
    encoder, pairs = drawn(name)
    with pytest.raises(LaryError, match=rf"{name} encodes clips \(B, T, 3, H, W\), not \[2, 3, 2"):
        encoder.encode(pairs.transpose(1, 2))
    if name != "villa-x":  # which fits frames of any size itself, as published
        with pytest.raises(LaryError, match=rf"{name} needs frames .*, not 30 x 44"):
            encoder.encode(torch.zeros(1, 2, 3, 44, 30))


@pytest.mark.parametrize("name", ["pixels", "frame-difference", "optical-flow", "random-vit"])
def test_baselines_tell_frames_of_another_size(name: str) -> None:
    encoder = build(MODELS.get(name), ModelContext("cpu", "corrected"))
    with pytest.raises(LaryError, match=rf"{name} needs frames of .* pixels, not 30 x 44"):
        encoder.encode(torch.zeros(1, 2, 3, 44, 30))


def test_record_without_a_shape_holds_no_one_to_it() -> None:
    free = replace(RECORD, dim=None, pair_shape=(), pair_shape_paper=())
    answer = Latents(torch.zeros(5, 3, 8))
    assert held_to_record(Fixed(answer), free, "corrected").encode(torch.zeros(5, 2, 3, 8, 8)) is answer
