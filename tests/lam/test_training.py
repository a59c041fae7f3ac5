"""Trainings of latent action models: resuming, processes, files, the monitor, and mistakes in sentences."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lary.files import file_digest
from lary.lam.codebook import ALARMS, CorrectedRule, Monitor, monitor_due, replacement_due, verdict
from lary.lam.network import Forward, build_network, lengths_of
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext
from lary.probes.team import Team, launch
from lary.types import LaryError, UsageError
from tests.helpers import FORKED, fails, printed
from tests.lam.made import FEATURES, MadePairs, losses, made_training
from tests.tiny_networks import tiny_record
from tests.tree import write_image


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def train_alone(folder: Path) -> None:
    torch.set_num_threads(1)
    made_training(folder=folder, steps=60, checkpoint_minutes=0.0).run()


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_training_resumes_with_the_same_bits(kills: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    made_training(folder=tmp_path / "whole", steps=60).run()
    folder, draw, seen = tmp_path / "parts", random.Random(3), []
    state = folder / ".work" / "state.pt"
    for _ in range(kills):
        process = FORKED.Process(target=train_alone, args=(folder,))
        process.start()
        before = state.stat().st_mtime_ns if state.exists() else 0
        while not state.exists() or state.stat().st_mtime_ns == before:  # it has begun to train
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        process.join()
        seen.append(torch.load(state, weights_only=True)["step"])
    assert seen == sorted(seen)
    assert 0 < seen[0] <= seen[-1] < 60, seen
    train_alone(folder)
    assert_same(weights(folder), weights(tmp_path / "whole"))
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "parts")]
    assert records[0]["curves"] == records[1]["curves"]
    assert records[0]["weights_digest"] == file_digest(folder / "model.safetensors", 64)


def in_team(folder: Path, team: Team, device: str) -> None:
    """What each of two processes does: both recipes, and a batch that can't be halved."""
    torch.set_num_threads(1)
    for recipe, size in TEAMS:
        training = made_training(recipe=recipe, batch_size=size, accumulate=2, session={"team": team})
        training.run()
        found = {"losses": losses(training), "network": training.network.state_dict(), "used": training.rule.used}
        torch.save(found, folder / f"{recipe}{team.rank}.pt")


TEAMS = (("corrected", 7), ("paper", 6))


@pytest.mark.usefixtures("forked")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    launch(in_team, (tmp_path,), ("cpu", "cpu"))
    for recipe, size in TEAMS:
        first, second = (torch.load(tmp_path / f"{recipe}{rank}.pt") for rank in range(2))
        alone = made_training(recipe=recipe, batch_size=size, accumulate=2)
        alone.run()
        assert first["losses"] == second["losses"]
        if recipe == "corrected":
            assert first["losses"] == pytest.approx(losses(alone), abs=1e-5)
            assert_same(first["network"], second["network"])
            assert torch.equal(first["used"], alone.rule.used)
            for key, value in alone.network.state_dict().items():
                torch.testing.assert_close(first["network"][key], value, rtol=0, atol=1e-4, msg=key)
        else:  # as published, each process replaces for itself
            assert not torch.equal(first["network"]["vq.codebooks"], second["network"]["vq.codebooks"])
            assert torch.equal(first["network"]["vq.project_in.weight"], second["network"]["vq.project_in.weight"])


def test_a_batch_may_be_made_of_several_forward_passes() -> None:
    """The order of samples and their noise stay."""
    whole, parts = made_training(batch_size=6), made_training(batch_size=2, accumulate=3)
    for _ in range(9):
        whole.update()
        parts.update()
    assert len(whole.since) == 8
    assert parts.since == pytest.approx(whole.since, rel=1e-4)


def test_bfloat16_trains_by_autocast() -> None:
    whole, mixed = made_training(), made_training(precision="bf16")
    whole.run()
    mixed.run()
    assert losses(mixed) == pytest.approx(losses(whole), rel=0.05)
    assert losses(mixed) != losses(whole)
    assert all(value.dtype == torch.float32 for value in mixed.network.parameters())


def test_dead_codes_start_on_latents_without_moments() -> None:
    training = made_training(steps=100)
    training.run()  # has moments
    book, optimizer = training.network.vq.codebooks, training.optimizer
    training.step, training.rule.used[:] = 50, 40
    training.rule.used[[1, 6]] = 2
    before, latent = book.detach().clone(), torch.randn(3, 4, 8)
    assert training.restart(latent) == 2
    for code in range(8):
        moved = code in (1, 6)
        assert (not moved) == torch.equal(book[code], before[code])
        assert moved == bool((latent.flatten(0, 1) == book[code]).all(dim=1).any())
        assert moved == (not optimizer.state[book]["exp_avg_sq"][code].any())
    assert torch.equal(training.result.vq.codebooks[[1, 6]], book[[1, 6]])
    assert not torch.equal(book[1], book[6])
    assert not training.rule.used.any(), "the window is over"
    rule = CorrectedRule(8, "cpu")
    for step, used in ((55, 40), (90, 40), (0, 40), (50, 9)):  # no tenth step, the last tenth, the first, a short one
        rule.used[:] = used
        rule.used[3] = 0
        assert not len(rule.dead(step, 100))
        assert rule.used.any()


def test_the_codebook_starts_on_latents_of_the_first_batch() -> None:
    training = made_training()
    training.start_codebook()
    pairs = training.pairs.batch(0, range(6))
    latent = training.network.latent(training.embed(training.network, pairs)[0]).flatten(0, 1)
    distance = torch.cdist(training.network.vq.codebooks, latent).min(dim=1).values
    assert distance.max() < 1e-5
    many = made_training(sizes={"codebook_size": 100})
    many.start_codebook()
    assert len(many.network.vq.codebooks.unique(dim=0)) == 100, "a latent may start several codes"


class Exact:
    """A network that knows the answer: its latent is the difference of the frames, its codebook has two rows."""

    patch = 0

    def __init__(self) -> None:
        self.vq = self
        self.codebooks = torch.tensor([[0.0, 2.0], [3.0, 0.0], [9.0, 9.0], [-9.0, 9.0]])

    def latent(self, embedded: torch.Tensor) -> torch.Tensor:
        return (embedded[:, 1] - embedded[:, 0]).mean(dim=(1, 2))[:, None]

    def quantized(self, codes: torch.Tensor) -> torch.Tensor:
        return self.codebooks[codes]

    def tokens(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def decode(self, first: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return first + tokens[:, :, None]

    def __call__(self, embedded: Any, pixels: Any, noise: Any, latent: torch.Tensor) -> Forward:
        codes = torch.cdist(latent, self.codebooks).argmin(dim=-1)
        return Forward(latent, codes, latent, embedded[:, 0] + 1, embedded[:, 1])


def test_signals_of_the_monitor_are_those_of_an_example_by_hand() -> None:
    first = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 2, 2)
    moves = torch.tensor([[0.0, 1.0], [0.0, 1.0], [4.0, 0.0], [0.0, 0.0]])
    pairs = torch.stack([first, first + moves[:, None, None]], dim=1)
    row = Monitor(lambda _, part: (part, None), pairs, 4, 0).measure(Exact())
    # Codes 0, 0, 1, 0; errors 1, 1, 1, 2; lengths 1, 1, 4, 0; copying costs 0.5, 0.5, 8, 0.
    shares = torch.tensor([0.75, 0.25])
    assert row["perplexity"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()))
    assert (row["codes"], row["codes_used"], row["static_pairs"], row["static_ratio"]) == (4, 2, 0.25, pytest.approx(0))
    assert row["quantisation_error"] == pytest.approx(5 / 6)
    assert row["loss_copy"] == pytest.approx(9 / 4)
    assert row["loss_hard"] == pytest.approx((0.5 + 0.5 + 0.5 + 2) / 4)
    assert row["loss_continuous"] == pytest.approx(0)
    assert row["loss_noise"] == pytest.approx((0.5 + 0.5 + 5 + 1) / 4)
    assert row["margin"] == pytest.approx(1 - 7 / 9)
    # With the tokens of the pair before: errors of hard codes are [0, 2], [0, 2], [0, 2], [3, 0] minus the moves.
    assert row["gap_hard"] == pytest.approx((0.5 + 0.5 + 10 + 4.5) / 3.5 - 1)
    centred = moves - moves.mean(dim=0)
    assert row["latent_spread"] == pytest.approx(float(centred.square().sum(1).mean().sqrt()) / 1.5, rel=1e-5)
    assert row["closest_codes"] == pytest.approx(float(13**0.5 / torch.pdist(Exact().codebooks).median()), rel=1e-5)
    values = torch.linalg.svdvals(centred)
    shares = values / values.sum()
    assert row["latent_rank"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-4)
    found = verdict(row)
    assert found["state"] == "warning"
    assert found["alarms"] == ["perplexity_share", "static_pairs"]
    assert found["text"] == "warning: the perplexity is 1.75 with 4 codes; 25% of the pairs are static"


def test_the_verdict_is_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = made_training(folder=tmp_path, recipe="paper", steps=20)
    training.run()
    row = {key: value for key, value in training.curves["monitor"][-1].items() if key != "step"}
    good = row | {name: limit + (1 if wrong(0, 1) else -1) for name, (wrong, limit, _) in ALARMS.items()}
    assert verdict(good | {"perplexity": 7.0})["state"] == "healthy"
    bad = good | {"perplexity": 1.2, "perplexity_share": 0.15}
    text = "collapsed: the perplexity is 1.20 with 8 codes"
    assert verdict(bad) == {"state": "collapsed", "alarms": ["perplexity_share"], "text": text}
    due = [step for step in range(2201) if monitor_due(step, 2200)]
    assert due == [*range(0, 1000, 100), 1000, 1500, 2000, 2200]
    assert len([step for step in range(9000) if replacement_due(step)]) == 26
    monkeypatch.setattr(Monitor, "measure", lambda *_: bad)
    often: dict[str, Any] = {"batch_size": 2, "steps": 900, "validate_every": 1000}
    stopping = made_training(stop_on_collapse=True, folder=tmp_path / "stop", **often)
    fails(LaryError, "The codebook collapsed, and the training was stopped at step 200", stopping.run)
    record = json.loads((tmp_path / "stop" / "training.json").read_text())
    assert (record["steps"], record["verdict"]["state"]) == (200, "collapsed")


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    broken = MadePairs(features=True, broken=(21,))
    training = made_training(pairs=broken, sizes=FEATURES, folder=tmp_path, checkpoint_minutes=0.0)
    words = r"diverged in step 3 \(loss nan\): .* They are made/18, made/19, .*made/23\."
    fails(LaryError, words, training.run)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 3
    other = made_training(pairs=MadePairs(features=True), sizes=FEATURES, folder=tmp_path, lr=0.5)
    fails(UsageError, "holds another training, with other --lr: pass --overwrite", other.run)
    (tmp_path / ".work" / "state.pt").write_bytes(b"no state")
    fails(UsageError, r"state.pt can't be read .*--overwrite", other.run)
    training = made_training()
    training.update = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))  # type: ignore[method-assign]
    fails(LaryError, "cpu ran out of memory .*: pass a smaller --batch-size", training.run)
    words = r"needs [\d.e+]+ GB, .* for a batch of 100000000; cpu has .* --accumulate, or a smaller network\.$"
    fails(LaryError, words, made_training, batch_size=10**8)
    fails(UsageError, "--batch-size 1: .* 2 processes", made_training, batch_size=1, session={"team": Team(0, 2)})
    assert [lengths_of(grid) for grid in (14, 16, 8, 7, 4)] == [[16, 49, 64], [16], [1, 2, 4], [1, 2, 4], []]


TINY = "--depth 1 --heads 2 --dim-head 8 --quant-dim 8 --batch-size 4 --monitor-pairs 8 --validate-every 5"
PIXELS = "--backbone lapa --image-size 16 --patch-size 2 --dim 16"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images, whose pairs are frames one apart."""
    folder = tmp_path_factory.mktemp("images")
    for group in range(4):
        for number, frame in enumerate(MadePairs().batch(0, range(8 * group, 8 * group + 8))[:, 0]):
            write_image(folder / str(group) / f"{number}.png", frame.permute(1, 2, 0).numpy())
    return folder


def train(images: Path, words: str, code: int = 0, has: tuple[str, ...] = ()) -> str:
    steps = "" if "--steps" in words else "--steps 12"
    small = TINY if "--batch-size" not in words else TINY.partition(" --batch-size")[0]
    return printed(*f"train lam --dataset {images} --workers 1 {small} {steps} {words}".split(), code=code, has=has)


def test_the_command_trains_resumes_and_exports(images: Path, tmp_path: Path) -> None:
    """The exported file is one that extraction, which is strict about keys, loads."""
    out = tmp_path / "run"
    train(images, f"{PIXELS} --out {out}", has=("12 steps, ", "Written to"))
    record = json.loads((out / "training.json").read_text())
    assert record["finished"]
    assert record["manifest"]["parts"][0]["samples"]
    train(images, f"{PIXELS} --out {out} --steps 15 --export published", has=("15 steps, ",))
    train(images, f"{PIXELS} --out {out} --lr 1e-3", code=2, has=("with other --lr",))
    spec = MODELS.get("lapa")
    spec = replace(spec, options={**spec.options, "network": record["sizes"]}, dim=16, pair_shape=(), clip_shape=())
    spec = replace(spec, preprocess=replace(spec.preprocess, size=16))
    encoder = build(spec, ModelContext("cpu", "corrected", str(out / "published.pt")))
    network = build_network(record["sizes"], 0, "lapa")
    network.load_state_dict(weights(out))
    clips = torch.rand(2, 2, 3, 16, 16)
    latent = network.latent(network.embed_pairs(clips))
    torch.testing.assert_close(encoder.encode(clips).tokens, network.vq.tokens(latent))


@pytest.mark.parametrize("name", ["dinov2", "dinov3-cs16_sl49_dim8_lr3e-4", "siglip2", "magvit2", "random-vit"])
def test_every_backbone_is_trained_on(name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = MODELS.get(name) if name == "random-vit" else tiny_record(name)
    monkeypatch.setattr("lary.lam.network.MODELS", Mock(get=lambda _: spec))
    export = "" if name == "random-vit" else "--weights random --export published"
    train(images, f"--backbone {name} --out {tmp_path} --steps 2 --batch-size 2 --monitor-pairs 3 {export}")
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["backbone"]["model"] == name
    assert record["options"]["lr"] == (3e-4 if "lr3e-4" in name else 1e-4)
    assert (record["sizes"]["code_seq_len"] == 49) == ("sl49" in name)
    assert record["curves"]["monitor"][0]["loss_copy"] > 0
    if export:
        spec = replace(spec, options={**spec.options, "network": record["sizes"]}, pair_shape=(), clip_shape=())
        encoder = build(spec, ModelContext("cpu", "corrected", str(tmp_path / "published.pt")))
        codes = encoder.encode(torch.rand(1, 2, 3, 224, 224)).codes
        assert codes is not None
        assert codes.shape == (1, record["sizes"]["code_seq_len"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{PIXELS} --code-length 16", "can't be decoded on a grid of 8 x 8, where 4 rows come out: choose"),
        (f"{PIXELS} --lr 0", "--lr 0.0: must be above 0"),
        (f"{PIXELS} --steps 0", "--steps 0: must be at least 1"),
        (f"{PIXELS} --weights random", "--weights random: 'lapa' takes none"),
        ("--backbone pixels --dim 8", "--dim 8: 'pixels' takes none"),
        ("--backbone frame-difference", "nothing can be trained on it at 64 x 64 pixels, since"),
        (f"{PIXELS} --weight 1 2", "--weight: there are 2 for 1 data sets"),
        ("--backbone lapaa", "Did you mean"),
        ("--backbone random-vit --export published", "none is known for the backbone 'random-vit'"),
    ],
)  # fmt: skip
def test_wrong_options_are_sentences(words: str, message: str, images: Path, tmp_path: Path) -> None:
    assert len(train(images, f"{words} --out {tmp_path}", code=2, has=(message,)).splitlines()) <= 2


def test_pairs_that_are_all_static_are_refused(tmp_path: Path) -> None:
    for number in range(6):
        write_image(tmp_path / "still" / "a" / f"{number}.png", np.zeros((9, 9, 3), np.uint8))
    train(tmp_path / "still", f"{PIXELS} --out {tmp_path / 'out'}", code=2, has=("are static",))
    (tmp_path / "none").mkdir()
    train(tmp_path / "none", f"{PIXELS} --out {tmp_path / 'out'}", code=2, has=("There are no pairs in",))
