"""Trained models as models: their record, latents, results, reconstructions and ablations."""

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lary.lam import train_lam
from lary.lam.configs import TrainLamConfig
from lary.lam.data import open_mixture
from lary.lam.features import FeaturePairs
from lary.lam.network import FrozenBackbone, TrainableModel, open_backbone
from lary.lam.trained import TrainedActions
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, Preprocess
from lary.results.report import write_report
from lary.types import LaryError, UsageError, WeightsIdentity
from tests.helpers import fails, printed, settings_of
from tests.tiny import save_tiny
from tests.tree import make_calvin

TINY = {
    "image_size": 32, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "code_length": 4,
    "quant_dim": 8, "codebook_size": 8, "steps": 2, "batch_size": 4, "monitor_pairs": 6, "device": "cpu", "workers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with two trained models of pixels, which differ in their codebooks."""
    root = make_calvin(tmp_path_factory.mktemp("trained"), {"train": 8, "val": 6})
    for size in (8, 4):
        options = TINY | {"codebook_size": size}
        config = TrainLamConfig(backbone="lapa", dataset=("calvin",), out=root / f"k{size}", **options)
        train_lam(config, settings_of(root))
    return root


def model(root: Path, name: str = "k8") -> str:
    return f"lam:{root / name}"


def context(root: Path, weights: str = "", **changes: object) -> ModelContext:
    values = {name: str(value) for name, value in settings_of(root).values().items()}
    return ModelContext("cpu", "corrected", weights or str(root / "k8" / "model.safetensors"), settings=values)


def test_its_latents_are_those_of_the_network_that_was_trained(root: Path) -> None:
    spec = MODELS.get(model(root))
    assert (spec.dim, spec.pair_shape, spec.codebook, spec.preprocess.size) == (16, (4, 16), 8, 32)
    clips = torch.rand(2, 3, 3, 32, 32)
    encoder = build(spec, context(root))
    network, _ = TrainedActions.open(spec, context(root), TrainableModel)
    pairs = torch.stack([clips[:, :2], clips[:, 1:]], dim=1).flatten(0, 1)
    expected = network.vq.tokens(network.latent(network.embed_pairs(pairs))).unflatten(0, (2, 2))
    torch.testing.assert_close(encoder.encode(clips).tokens, expected)
    drawn = build(spec, context(root, "random"))
    assert drawn.identity.random
    assert not torch.allclose(drawn.encode(clips).tokens, expected)
    printed("check-model", model(root), "--device", "cpu", root=root, has=["everything as it should be", "4 x 16"])


@pytest.mark.usefixtures("no_figures")
def test_its_record_stands_in_the_result_and_in_the_ablations(root: Path) -> None:
    how = ("--probe-preset", "demo", "--model-type", "ridge", "--workers", "1", "--device", "cpu")
    for name in ("k8", "k4"):
        printed("run", "--model", model(root, name), "--dataset", "calvin", *how, root=root, has=["mse"])
    results = [json.loads(path.read_text()) for path in (root / "logs").rglob("result.json")]
    record = json.loads((root / "k8" / "training.json").read_text())
    (own,) = (each["model"]["training"] for each in results if each["model"]["training"]["options"]["out"][-1] == "8")
    assert own["weights_digest"] == record["weights_digest"]
    assert own["signals"] == record["curves"]["monitor"][-1]
    assert len(own["manifest"]) == 16
    assert own["curves"]["step"] == [0, 2]
    page = write_report(root / "logs").read_text()
    assert f"2 steps, {own['verdict']['text']}" in html.unescape(page)
    assert page.count("over 2 steps") == 2 * 4


def test_weights_that_are_not_those_of_the_record_are_refused(root: Path, tmp_path: Path) -> None:
    other = shutil.copytree(root / "k8", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({key: value + 1 for key, value in tensors.items()}, other / "model.safetensors")
    spec, changed = MODELS.get(f"lam:{other}"), replace(context(root), weights=str(other / "model.safetensors"))
    fails(LaryError, "isn't what training.json beside it names", build, spec, changed)
    record = json.loads((root / "k8" / "training.json").read_text())
    for key, odd, words in (("options", [], "list"), ("preprocess", 3, "'int'"), ("backbone", [], "list")):
        (other / "training.json").write_text(json.dumps(record | {key: odd}))
        fails(UsageError, f"training.json lacks {words}", MODELS.get, f"lam:{other}")
    shutil.copytree(root / "k8", other, dirs_exist_ok=True)
    del record["sizes"]["heads"]
    (other / "training.json").write_text(json.dumps(record))
    fails(LaryError, "training.json fits no network: .* 'heads'", build, MODELS.get(f"lam:{other}"), changed)
    (other / "training.json").write_text('{"schema": 7}')
    fails(UsageError, "training.json lacks 'sizes'", MODELS.get, f"lam:{other}")
    fails(UsageError, "holds no training.json: name the folder", MODELS.get, f"lam:{tmp_path}")


def test_released_weights_have_their_decoder_or_are_refused(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A file in the published form, with every key of the decoder."""
    spec = MODELS.get("lapa")
    sizes = json.loads((root / "k8" / "training.json").read_text())["sizes"]
    spec = replace(spec, options={**spec.options, "network": sizes}, preprocess=replace(spec.preprocess, size=32))
    monkeypatch.setattr("lary.runs.reconstruct.MODELS", Mock(get=lambda _: spec))
    words = ("--model", "lapa", "--weights", tmp_path / "laq.pt")
    tensors = load_file(root / "k8" / "model.safetensors")
    torch.save(tensors, tmp_path / "laq.pt")
    given = replace(context(root), weights=str(tmp_path / "laq.pt"))
    network, _ = spec.factory.open(spec, given, TrainableModel)  # type: ignore[union-attr]
    assert torch.equal(network.to_pixels_first_frame[0].weight, tensors["to_pixels_first_frame.0.weight"])
    found, _ = reconstructed(root, tmp_path, *words)
    trained, _ = reconstructed(root, tmp_path, *words[:3], root / "k8" / "model.safetensors")
    assert found["numbers"] == trained["numbers"]
    names = sorted(tensors)
    torch.save(dict(zip(names, map(tensors.get, names[1:] + names[:1]), strict=True)), tmp_path / "laq.pt")
    wrong = ("64 misshaped: to_patch_emb_first_frame.1.weight [16] for [48]",)
    reconstructed(root, tmp_path, *words, code=1, has=wrong)
    del tensors["to_pixels_first_frame.0.weight"]
    torch.save(tensors, tmp_path / "laq.pt")
    fails(LaryError, "1 missing: to_pixels_first_frame.0.weight", spec.factory.open, spec, given, TrainableModel)  # type: ignore[union-attr]
    assert spec.factory.open(spec, given)[0].dim == 16  # type: ignore[union-attr]


def test_features_are_computed_once(root: Path, tmp_path: Path) -> None:
    """Of each frame, whatever the batch; another process finds them in the file."""
    calls = []

    def encode(pairs: torch.Tensor) -> torch.Tensor:
        calls.append(len(pairs))
        return pairs.movedim(2, -1)[:, :, ::4, ::4]

    spec = MODELS.get("random-vit")
    sizes = {"image_size": 2, "patch_size": 1, "dim": 3}
    backbone = FrozenBackbone(spec, sizes, Preprocess(size=8, scale=1.0), WeightsIdentity(), encode)

    def pairs() -> FeaturePairs:
        mixture = open_mixture(["calvin"], settings_of(root), 0, 8, workers=1)
        return FeaturePairs(mixture, backbone, tmp_path, "cpu")

    data = pairs()
    first = data.batch(0, range(40))
    assert calls == [32, 8]
    plain = data._mixture.batch(0, range(40))
    data.close()
    assert torch.equal(first, plain.float().movedim(2, -1)[:, :, ::4, ::4])
    assert torch.equal(pairs().batch(7, range(30, 10, -1)), first[range(30, 10, -1)])
    assert calls == [32, 8]
    assert data.manifest()["parts"][0]["name"] == "calvin:train"
    pixels = replace(backbone, encode=None)
    fails(UsageError, "predicts pixels; leave it out", FeaturePairs, data._mixture, pixels, tmp_path, "cpu")


def test_a_backbone_of_transformers(root: Path, tmp_path: Path) -> None:
    """Trained on its features, cached; its weights are checked when the model is used."""
    save_tiny(tmp_path / "vit", "dinov2", patch=28)
    options = {key: value for key, value in TINY.items() if key not in ("image_size", "patch_size", "dim")}
    config = TrainLamConfig(
        backbone=f"hf:{tmp_path / 'vit'}", dataset=("calvin",), out=tmp_path / "lam", cache_features=True, **options
    )
    train_lam(config, settings_of(root))
    spec = MODELS.get(f"lam:{tmp_path / 'lam'}")
    given = replace(context(root), weights=str(tmp_path / "lam" / "model.safetensors"))
    assert build(spec, given).encode(torch.rand(1, 2, 3, 224, 224)).tokens.shape == (1, 4, 32)
    found, size = reconstructed(root, tmp_path, "--model", spec.name)
    assert (found["target"], found["numbers"]["pairs"], size) == ("features", 18, (1365, 690))
    record = tmp_path / "lam" / "training.json"
    record.write_text(record.read_text().replace("features_normed", "features"))  # of an earlier version
    fails(UsageError, "lacks 'features_normed': train the model anew", MODELS.get, f"lam:{tmp_path / 'lam'}")
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, tmp_path / "vit" / "model.safetensors")
    fails(LaryError, "aren't those of 'lam:", build, spec, given)


def test_features_of_other_models_are_normed(root: Path, tmp_path: Path) -> None:
    """The decoder, which ends in a norm, could not reach features of another scale."""
    config = TrainLamConfig(backbone="pixels", dataset=("calvin",), out=tmp_path)
    backbone = open_backbone(config, settings_of(root), "cpu")
    assert backbone.encode is not None
    features = backbone.encode(torch.rand(1, 2, 3, 32, 32))
    assert features.shape == (1, 2, 8, 8, backbone.sizes["dim"])
    torch.testing.assert_close(features.mean(dim=-1), torch.zeros(1, 2, 8, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(dim=-1, correction=0), torch.ones(1, 2, 8, 8), atol=1e-2, rtol=0)


HOW = ("--batch-size", "4", "--pictures", "3", "--device", "cpu", "--workers", "1")


def reconstructed(root: Path, out: Path, *words: str | Path, code: int = 0, has: tuple[str, ...] = ()) -> Any:
    """What the command wrote, and the height and width of its pictures."""
    data = () if "--dataset" in words else ("--dataset", "calvin")
    printed("reconstruct", *data, "--out", out, *HOW, *words, root=root, code=code, has=has)
    if not code:
        with Image.open(out / "reconstruct.png") as picture:
            return json.loads((out / "reconstruct.json").read_text()), picture.size
    return None


def test_reconstruction_of_trained_weights(root: Path, tmp_path: Path) -> None:
    """The losses over all pairs of the validation split are those of the network alone."""
    found, size = reconstructed(root, tmp_path, "--model", model(root), has=("reconstruction_loss", "Written"))
    assert (found["data"], found["target"], found["numbers"]["pairs"]) == ("calvin:val", "pixels", 18)
    assert size == (1170, 690)
    assert found["training"]["weights_digest"] == MODELS.get(model(root)).options["trained"]["weights_digest"]
    mixture = open_mixture(["calvin:val"], settings_of(root), 0, 32, exclude=False, workers=1)
    units = {unit.id: unit for unit in map(mixture.parts[0].unit, range(18))}
    assert sorted(found["samples"]) == sorted(f"calvin:val/{name}/0-1" for name in units)
    paths = [unit.paths for unit in units.values()]
    pairs = torch.stack([torch.stack([pil_to_tensor(path) for path in both]) for both in paths])
    network, _ = TrainedActions.open(MODELS.get(model(root)), context(root), TrainableModel)
    with torch.no_grad():
        embedded = network.embed_pairs(pairs)
        latent = network.latent(embedded)
        for name, tokens in (("continuous", latent), ("hard", network.vq.quantized(network.vq.codes(latent)))):
            drawn = network.decode(embedded[:, 0], network.vq.tokens(tokens))
            expected = float((drawn - pairs[:, 1]).square().mean())
            assert found["numbers"][f"loss_{name}"] == pytest.approx(expected, rel=1e-4)
    copied = float((pairs[:, 0] - pairs[:, 1]).square().mean())
    assert found["numbers"]["copy_loss"] == pytest.approx(copied, rel=1e-4)
    assert found["numbers"]["margin"] == pytest.approx(1 - found["numbers"]["reconstruction_loss"] / copied, rel=1e-4)
    other, _ = reconstructed(root, tmp_path, "--model", model(root), "--pairs", "4", "--seed", "1")
    assert len(other["samples"]) == 4
    assert other["samples"] != found["samples"][:4]
    words = ("It isn't known how tokens of 'univla' enter a decoder", "lapa, dinov2, dinov3, siglip2, magvit2")
    reconstructed(root, tmp_path, "--model", "univla", code=2, has=words)
    reconstructed(root, tmp_path, "--model", model(root), "--pairs", "1", code=2, has=("at least 2 are needed",))
    for name in "ab":
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    still = ("--model", model(root), "--dataset", tmp_path, "--seed", "-1")
    reconstructed(root, tmp_path, *still, code=2, has=("are static: raise --distance",))


def pil_to_tensor(path: str) -> torch.Tensor:
    """A picture, resized as published, as (3, 32, 32) in [0, 1]."""
    with Image.open(path) as picture:
        resized = picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
