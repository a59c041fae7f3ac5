"""Loaded models: gradients, precisions, compilation, the identity of weights, and answers that contradict a record."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.models.preprocess import prepare
from lary.models.running import LoadedEncoder, as_latents, build, load_model
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess
from lary.types import RANDOM, LaryError, Latents, UsageError, WeightsIdentity
from tests.helpers import fails
from tests.tiny import TINY_DIM, save_tiny
from tests.tiny_networks import PUBLISHED, tiny_record

WEIGHTLESS = [spec.name for spec in MODELS if spec.weights is None]
RECORD = ModelSpec("own", "baseline", 4, Preprocess(size=8), pair_shape=(2, 3, 4), pair_shape_paper=(1, 3, 4))
PAIRS = torch.zeros(5, 2, 3, 8, 8)
WHOLE = torch.zeros(5, 2, 3, dtype=torch.int64)


def drawn(name: str, **how: Any) -> LoadedEncoder:
    """An encoder with a small network and random weights, or one that needs none."""
    protocol, known = how.pop("protocol", "corrected"), name in WEIGHTLESS
    context = ModelContext("cpu", protocol, None if known else RANDOM)
    return build(MODELS.get(name) if known else tiny_record(name), context, **how)


def pairs_for(name: str) -> torch.Tensor:
    side = MODELS.get(name).preprocess.size
    return torch.randn(2, 2, 3, side, side, generator=torch.Generator().manual_seed(0))


def own(
    encode: Callable[[torch.Tensor], Any], weights: str | None = None, protocol: Any = "corrected", **attributes: Any
) -> LoadedEncoder:
    """A loaded plug-in with this `encode` and these attributes."""

    def make(spec: ModelSpec, context: ModelContext) -> Any:
        author: Any = type("Own", (), {"encode": lambda self, clips: encode(clips)})()
        vars(author).update(attributes)
        return author

    return build(replace(RECORD, factory=make), ModelContext("cpu", protocol, weights))


@pytest.mark.parametrize("name", PUBLISHED)
def test_gradients_flow_through_every_published_model_and_bf16_is_near_fp32(name: str) -> None:
    encoder, frozen, rounded = drawn(name, trainable=True), drawn(name), drawn(name, precision="bf16")
    clips = pairs_for(name).requires_grad_()
    encoder.module(clips).square().sum().backward()
    assert any(value.grad is not None and value.grad.any() for value in encoder.module.parameters())
    assert clips.grad is not None
    assert clips.grad.any()
    latents, half = frozen.encode(clips.detach()), rounded.encode(clips.detach()).tokens.float()
    assert not latents.tokens.requires_grad
    torch.testing.assert_close(latents.tokens, encoder.encode(clips).tokens.detach(), rtol=1e-4, atol=1e-5)
    assert half.shape == latents.tokens.shape
    assert half.isfinite().all()
    each_time = drawn(name, precision="bf16", trainable=True).encode(clips.detach()).tokens.detach().float()
    assert torch.equal(each_time, half), "weights rounded once are those that autocast rounds in every pass"
    if latents.codes is None or "latent" in MODELS.get(name).options:  # rows of a codebook may be a neighbour's
        assert not torch.equal(half, latents.tokens), "bf16 was not used"
        assert (torch.cosine_similarity(half.flatten(1), latents.tokens.flatten(1)) > 0.98).all()
    assert (rounded.identity, rounded.dim) == (encoder.identity, encoder.dim)


@pytest.mark.parametrize("name", [*PUBLISHED, "random-vit"])
def test_networks_mix_no_tensors_of_host_and_device(name: str) -> None:
    """The meta device refuses a tensor of the CPU in an operation, as CUDA does."""
    spec = tiny_record(name) if name in PUBLISHED else MODELS.get(name)
    encoder = build(spec, ModelContext("meta", "corrected", RANDOM if spec.weights else None))
    side = spec.preprocess.size
    for frames in (2, 9):
        tokens = as_latents(encoder.author.encode(torch.empty(3, frames, 3, side, side, device="meta"))).tokens
        assert (tokens.device.type, len(tokens)) == ("meta", 3)


def test_load_model_takes_frames_or_prepared_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, load = save_tiny(tmp_path / "vit", "dinov2"), functools.partial(load_model, device="cpu")
    monkeypatch.setenv("DINO_V2_PATH", str(folder))
    encoder = load("dinov2-origin")
    frames = torch.randint(0, 256, (2, 3, 40, 50, 3), dtype=torch.uint8)
    tokens = encoder.encode(frames).tokens
    assert (tokens.shape, tokens.requires_grad, encoder.dim) == ((2, 3, 256, TINY_DIM), True, TINY_DIM)
    assert encoder.identity.digest
    prepared = torch.from_numpy(np.stack([prepare(clip.numpy(), encoder.spec.preprocess) for clip in frames]))
    assert torch.equal(encoder.encode(prepared).tokens, tokens)
    assert torch.equal(encoder.module(prepared), tokens)
    rounded = [load("dinov2-origin", precision=kind).encode(frames).tokens for kind in ("bf16", "fp16")]
    bf16, fp16 = (float((each.detach().float() - tokens.detach()).abs().mean()) for each in rounded)
    assert 0 < 3 * fp16 < bf16, "another precision was used"
    for place in (folder, str(folder)):
        assert load(place).encode(frames).tokens.shape == tokens.shape
    identity = load("magvit2", weights=RANDOM, latent="quantized", seed=3).identity
    assert identity == WeightsIdentity("random weights, seed 3", None, True)
    fails(UsageError, "'pixels' has one kind of latent", load, "pixels", latent="quantized")
    fails(UsageError, "--revision v2: the weights of 'dinov2-origin' are on disk", load, "dinov2-origin", revision="v2")
    assert load("pixels", protocol="paper")._protocol == "paper"
    fails(UsageError, "Did you mean dinov2", load, "dinov2-orign")
    fails(LaryError, r"uint8 frames \(H, W, 3\) of one size", encoder.encode, frames.movedim(-1, 2))


def compile_by(backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))


@pytest.mark.parametrize("name", ["dinov2-origin", "lapa", "villa-x"])
def test_compiled_encoders_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []
    compile_by(lambda graph, _: graphs.append(graph) or graph.forward, monkeypatch)
    encoder, compiled, clips = drawn(name), drawn(name, compiled=True), pairs_for(name)
    with torch.inference_mode():
        tokens = compiled.encode(clips).tokens
        torch.testing.assert_close(tokens, encoder.encode(clips).tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled.encode(clips[:1]).tokens, tokens[:1])
    assert len(graphs) == 1 or (graphs and name != "dinov2-origin"), "it is compiled anew for another batch"


def test_modules_of_a_plug_in_are_compiled_and_a_machine_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    compile_by(no_compiler, monkeypatch)
    with pytest.raises(LaryError, match=r"--compile: .*No working C\+\+ compiler found\)\. Leave the option out, or"):
        drawn("random-vit", compiled=True).encode(torch.zeros(1, 2, 3, 128, 128))
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    net: Any = torch.nn.Linear(2, 2)
    build(replace(RECORD, factory=lambda *_: Holder(net)), ModelContext("cpu", "corrected"), compiled=True)
    assert compiled == [net]


@pytest.mark.parametrize(("answer", "named"), [
    (None, "returned NoneType, expected Latents"),
    (Latents(torch.zeros(5)), r"tokens of shape \(5,\) for 5 samples, expected \(B, P, N, D\)"),
    (Latents(torch.zeros(1, 2, 3, 4)), r"tokens of shape \(1, 2, 3, 4\) for 5 samples"),
    (torch.zeros(5, 2, 3, 6), "latent dimension 6, its record says 4"),
    (Latents(torch.zeros(5, 2, 7, 4)), r"shape \(2, 7, 4\) for a pair, its record says \(2, 3, 4\)"),
    (Latents(WHOLE), "tokens of int64, expected floating-point"),
    ((torch.zeros(5, 2, 3, 4), WHOLE[:1]), r"codes of shape \(1, 2, 3\)"),
    (Latents(torch.zeros(5, 2, 3, 4), torch.zeros(5, 2, 3)), "expected whole numbers"),
])  # fmt: skip
def test_answers_that_contradict_the_record_stop(answer: Any, named: str) -> None:
    with pytest.raises(LaryError, match=r"Model 'own' returned .*lary check-model") as caught:
        own(lambda clips: answer).encode(PAIRS)
    assert caught.match(named)


def test_answers_that_keep_the_record_pass() -> None:
    for protocol, steps in (("corrected", 2), ("paper", 1)):
        tokens, codes = torch.zeros(5, steps, 3, 4), WHOLE[:, :steps]
        for answer in (Latents(tokens, codes), (tokens, codes), tokens):
            found = own(lambda clips, answer=answer: answer, protocol=protocol).encode(PAIRS)
            assert (found.tokens is tokens, found.codes is codes) == (True, answer is not tokens)
    sized = replace(RECORD, preprocess_paper=Preprocess(size=6), preprocess_paper_clip=Preprocess(size=4))
    fails(UsageError, "'own' has no class: register it", build, RECORD, ModelContext("cpu", "corrected"))
    seen: list[torch.Size] = []
    shown = replace(sized, factory=lambda *_: own(lambda clips: seen.append(clips.shape)).author)
    for frames, side in ((2, 6), (9, 4)):
        with pytest.raises(LaryError, match="returned NoneType"):
            build(shown, ModelContext("cpu", "paper")).encode(torch.zeros(1, frames, 8, 8, 3, dtype=torch.uint8))
        assert seen[-1] == (1, frames, 3, side, side)
    for shape, clips, how in (
        ((5, 2, 9, 6), PAIRS, {"dim": 6}),  # weights of another D than the record's, which say so
        ((5, 7, 3, 4), torch.zeros(5, 7, 3, 8, 8), {}),
        ((5, 2, 9, 4), torch.zeros(5, 2, 3, 16, 16), {}),
    ):
        tokens = torch.zeros(shape)
        assert own(lambda _, tokens=tokens: tokens, **how).encode(clips).tokens is tokens


class Holder:
    def __init__(self, network: Any) -> None:
        self.network = network


def test_weights_of_a_plug_in_without_an_identity_are_hashed(tmp_path: Path) -> None:
    file = tmp_path / "own.onnx"
    file.write_bytes(b"one")

    def linear(value: float) -> torch.nn.Module:
        network = torch.nn.Linear(2, 2)
        network.load_state_dict({"weight": torch.full((2, 2), value), "bias": torch.zeros(2)})
        return network

    def digest(weights: str | None = None, **attributes: Any) -> str:
        return own(lambda clips: clips, weights, **attributes).identity.digest

    digests = [
        digest(net=linear(1)), digest(net=linear(2)), digest(net=linear(1).bfloat16()), digest(parts=[linear(1)]),
        digest(inner=Holder(linear(1))), digest(inner=Holder(linear(2))), digest(table=torch.eye(3)),
        digest(table=np.eye(3)), digest(table={"a": np.zeros(3)}), digest(table={"a.b.c.d.e.f.g": np.ones(3)}),
        digest(table={"a": np.zeros(3, np.int64)}), digest(file=file),
    ]  # fmt: skip
    assert len({*digests, ""}) == len(digests) + 1
    assert digest(net=linear(1), name="x", size=3) == digests[0], "what is no weight plays no part"
    assert digest(str(tmp_path), size=3) == digests[-1], "the weights that it was given are hashed in its place"
    file.write_bytes(b"two")
    assert digest(file=file) == digest(str(tmp_path)) not in digests
    assert digest(size=3) == ""


def test_identity_of_a_plug_in_is_taken_over() -> None:
    named, net = WeightsIdentity("abc", "1f0c2d7"), torch.nn.Linear(2, 2)
    assert own(lambda clips: clips, identity=named, net=net).identity is named
    assert own(lambda clips: clips, weights_digest="abc", weights_revision="1f0c2d7", net=net).identity == named
    assert own(lambda clips: clips, weights_digest=None, net=net).identity == WeightsIdentity()
    assert own(lambda clips: clips, RANDOM, weights_digest="random weights, seed 0").identity.random
    fails(UsageError, "doesn't draw its weights from the seed", own, lambda clips: clips, RANDOM, weights_digest="0123")


def test_module_holds_the_networks_of_a_plug_in() -> None:
    net = torch.nn.Linear(3, 4)
    encoder = own(lambda clips: net(clips.mean((3, 4)))[:, :, None].expand(-1, -1, 3, -1), inner=Holder(net))
    found = {key: value.requires_grad for key, value in encoder.module.named_parameters()}
    assert found == {"inner_network.weight": False, "inner_network.bias": False}
    assert encoder.module(PAIRS).shape == (5, 2, 3, 4)


@pytest.mark.parametrize("name", [*PUBLISHED, *WEIGHTLESS])
@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_tokens_have_their_shape_whatever_the_batch_and_other_frames_are_refused(name: str, protocol: Any) -> None:
    encoder, side = drawn(name, protocol=protocol), MODELS.get(name).preprocess.size
    for media, frames in (("pair", 2), ("clip", 9)):
        clips = torch.rand(3 if frames == 2 else 2, frames, 3, side, side, generator=torch.Generator().manual_seed(0))
        clips = clips * 255 if name == "optical-flow" else clips
        tokens = encoder.encode(clips).tokens
        assert tokens.shape[1:-1] == encoder.spec.shape(protocol, media)[:-1]
        assert (tokens.shape[-1], tokens.dtype) == (encoder.dim, torch.float32)
        assert torch.equal(encoder.encode(clips.flip(0)).tokens.flip(0), tokens)
        assert torch.equal(encoder.encode(clips[1:]).tokens, tokens[1:])
    with pytest.raises(LaryError, match=rf"{name} encodes clips \(B, T, 3, H, W\), not \[2, 3, 2"):
        encoder.encode(pairs_for(name).transpose(1, 2))
    if name != "villa-x":  # which fits frames of any size itself, as published
        fails(LaryError, rf"{name} needs frames .*, not 30 x 44", encoder.encode, torch.zeros(1, 2, 3, 44, 30))
