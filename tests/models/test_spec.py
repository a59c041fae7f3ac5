"""Records of models, and models from outside the package: plug-ins and entry points."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lary.models.choices import deciding_fields, with_choices
from lary.models.spec import MODELS
from lary.results.record import read_result
from tests.helpers import printed
from tests.tiny import TINY_DIM, save_tiny
from tests.tree import make_calvin, make_robot

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "my_encoder.py"
pytestmark = pytest.mark.usefixtures("forget_plugins")


def forget() -> None:
    """What plug-ins have registered is loaded anew."""
    for name in [name for name in sys.modules if name.startswith("lary_plugin_")]:
        del sys.modules[name]
    MODELS._records.pop("own", None)


@pytest.fixture
def forget_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it: other tests run over every record."""
    MODELS.names()
    monkeypatch.setattr(MODELS, "_records", dict(MODELS._records))
    yield
    forget()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_calvin(tmp_path_factory.mktemp("own"), {"train": 10, "val": 4}, pairs=2)
    return make_robot(root, {"train": 12, "val": 4})


@pytest.mark.parametrize("name", MODELS.names())
def test_records_are_complete(name: str) -> None:
    spec = MODELS.get(name)
    assert any([spec.preprocess_paper, spec.preprocess_paper_clip, spec.options_paper]) == bool(spec.paper_differences)
    assert spec.description
    for shape in (spec.pair_shape, spec.clip_shape):
        assert spec.dim in (None, shape[-1])
    if spec.weights:
        assert spec.licence
        assert spec.reference
        assert spec.weights.variable or spec.weights.folder or spec.weights.packages


def extract(root: Path, *words: str | Path, split: str = "val", dataset: str = "calvin", **expected: Any) -> None:
    """Extract with the model that `words` begin with."""
    printed("extract", "--dataset", dataset, "--split", split, "--model", *words, root=root, **expected)


def test_options_that_make_no_sense_are_refused(root: Path) -> None:
    few = ("random-vit", "--limit", "2")  # precision is part of what latents are
    extract(root, *few)
    refusals: list[tuple[Any, str]] = [
        (("pixels", "--latent", "quantized"), "has one kind of latent"),
        ((*few, "--precision", "bf16"), "latents of another extraction"),
    ]
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        refusals += [(("pixels", "--device", device), f"--device {device}") for device in ("cuda", "mps")]
    for words, named in refusals:
        extract(root, *words, code=2, has=[named])
    extract(root, *few, "--precision", "bf16", "--overwrite")


@pytest.mark.usefixtures("no_figures")
def test_example_runs_through_extract_classify_and_regress(root: Path) -> None:
    plugin = ("colour-grid", "--plugin", EXAMPLE)
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            extract(root, *plugin, dataset=dataset, split=split)
    for command, dataset in (("classify", "robot_1st"), ("regress", "calvin")):
        words = ("--plugin", EXAMPLE, "--dataset", dataset, "--probe-preset", "demo", "--epochs", "1")
        printed(command, "--model", "colour-grid", *words, root=root)
    found = [json.loads(path.read_text()) for path in (root / "logs").rglob("result.json")]
    facts = sorted((result["task"], result["model"]["name"], result["model"]["dim"]) for result in found)
    assert facts == [("classification", "colour-grid", 6), ("regression", "colour-grid", 6)]


def onnx_file(path: Path) -> Path:
    """A network that averages cells of 16 x 16 pixels."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 224, 224])
    cells = helper.make_tensor_value_info("cells", TensorProto.FLOAT, ["n", 3, 14, 14])
    pool = helper.make_node("AveragePool", ["images"], ["cells"], kernel_shape=[16, 16], strides=[16, 16])
    graph = helper.make_graph([pool], "cells", [images], [cells])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("name", ["elsewhere", "onnx"])
def test_networks_that_run_elsewhere(name: str, root: Path, tmp_path: Path) -> None:
    weights = ("--weights", onnx_file(tmp_path / "net.onnx")) if name == "onnx" else ()
    plugin = EXAMPLE.with_name("onnx_encoder.py" if weights else "subprocess_encoder.py")
    printed("check-model", f"{plugin}:{name}", *weights, has=["x 196 x 3" if weights else "x 64 x 3", "should be"])
    words = ("--plugin", plugin, "--dataset", "calvin", "--model-type", "ridge", "--probe-preset", "demo", "--workers")
    printed("run", "--model", name, *weights, *words, "1", root=root, has=["the probe was run now"])
    (store,) = (root / "latent_actions" / "calvin" / "val").glob(f"{name}/store.json")
    assert json.loads(store.read_text())["identity"]["weights"], "the file is the identity of the weights"


def test_short_names_layers_and_sizes_name_folders_tables_and_results(root: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "vit", "dinov2")
    model, short = f"hf:{folder}", ("--name", "tiny", "--size", "56")
    known, later = MODELS.get(model), ("dtype", "frames", "stride", "rate")  # these digests are older
    assert deciding_fields(with_choices(known), "corrected", "pair") == {
        "preprocess": {k: v for k, v in asdict(known.preprocess).items() if k not in later}, "options": {},
    }  # fmt: skip
    words = ("--dataset", "calvin", "--model-type", "ridge", "--probe-preset", "demo", "--workers", "1")
    for layer in ("-2", "0"):
        printed("run", "--model", model, *short, "--layer", layer, *words, root=root, has=["the probe was run now"])
    where = root / "latent_actions" / "calvin" / "val"
    stores = [json.loads((where / f"tiny@layer{layer}@size56" / "store.json").read_text()) for layer in ("-2", "0")]
    assert stores[0]["key"] != stores[1]["key"]
    assert (stores[0]["identity"]["model"], stores[0]["record"]["options"]) == ("tiny", {"layer": -2, "size": 56})
    (file,) = (root / "logs").rglob("calvin_5_tiny@layer-2@size56_ridge_absolute/result.json")
    result = read_result(file)
    assert (result.label, result.model.shape) == ("tiny (ridge probe, layer -2, size 56)", (2, 16, TINY_DIM))
    count = sum(value.numel() for value in transformers.AutoModel.from_pretrained(folder).parameters()) / 1e6
    assert result.model.parameters_m == stores[0]["parameters_m"] == pytest.approx(count, abs=1e-4)
    assert str(folder) not in str(result.model.name)
    sentences = {
        ("pixels", "--layer", "1"): "'pixels' has no choice of a layer",
        ("pixels", "--size", "8"): "'pixels' has one size of frames",
        (model, "--layer", "7"): "gives layers 0 to",
        (model, "--size", "0"): "must be at least 1",
        (model, "--name", "pixels"): "the name of another model",
        (model, "--name", "a/b"): "letters, digits and",
    }
    for given, said in sentences.items():
        extract(root, *given, code=2, has=[said])


def test_code_of_a_plug_in_that_fails_shows_its_line(root: Path, tmp_path: Path) -> None:
    """One sentence, with the author's own file and line, also where numpy or torch raised the error."""
    (tmp_path / "helper.py").write_text("def bad(clips):\n    return clips.reshape(7, 7)\n")
    (tmp_path / "module.py").write_text("import json\njson.loads('{')\n")
    hint = f"{tmp_path / 'plugin.py'}, line 11: FileNotFoundError: [Errno 2]"
    extract(root, "own", "--plugin", write_plugin(tmp_path, "open('/nowhere/weights')"), code=1, has=[hint])
    imported = f"__import__('runpy').run_path({str(tmp_path / 'helper.py')!r})['bad'](clips)"
    hint = f"Model 'own' failed in {tmp_path / 'helper.py'}, line 2: RuntimeError: shape '[7, 7]'"
    extract(root, "own", "--plugin", write_plugin(tmp_path, imported), code=1, has=[hint])
    hint = f"failed in {tmp_path / 'plugin.py'}, line 9: TypeError"
    extract(root, "own", "--plugin", write_plugin(tmp_path, SOUND, "None"), code=1, has=[hint])  # type: ignore[arg-type]
    hint = f"module.py failed in {tmp_path / 'module.py'}, line 2: JSONDecodeError"
    printed("models", "--plugin", tmp_path / "module.py", code=2, has=[hint])


def test_installed_package_offers_its_model(tmp_path: Path) -> None:
    """A package with the entry point group lary.models, as pip would lay it out."""
    (tmp_path / "acme_models.py").write_text(EXAMPLE.read_text().replace("colour-grid", "acme-grid"))
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lary.models]\nacme = acme_models\n")
    code = "from lary.models.spec import MODELS; print(MODELS.get('acme-grid').dim)"
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "6", done.stderr


PLUGIN = """
from lary.models.spec import ModelSpec, Preprocess, register_model
from lary.types import Latents
import torch

@register_model(ModelSpec(name="own", paradigm="baseline", dim=4, preprocess=Preprocess(size=8)))
class Own:
    def __init__(self, spec, context):
        self.table = torch.full((4,), {value})
    def encode(self, clips):
        return {answer}
"""
SOUND = "clips.mean((3, 4)).repeat(1, 1, 2)[:, :, None, :4] * self.table"


def write_plugin(folder: Path, answer: str, value: float = 1.0) -> Path:
    """A plug-in whose `encode` gives this answer; an earlier one is forgotten."""
    forget()
    file = folder / "plugin.py"
    file.write_text(PLUGIN.format(answer=answer, value=value))
    return file


def test_extraction_with_a_plug_in(root: Path, tmp_path: Path) -> None:
    """Tokens alone are stored, weights that changed are noticed, wrong shapes stop and rows of NaN are reported."""
    answers = {
        f"({SOUND}, torch.zeros(len(clips), 9, 1).long())": "",
        "clips.mean((1, 3, 4)).repeat(1, 2)[:, :4]": "",  # one token per sample
        "clips.mean((3, 4)).repeat(1, 1, 16).reshape(len(clips), 9, 2, 6, 4)": "",
        "clips.mean((1, 2, 3, 4))": "expected (B, P, N, D)",
        "torch.full((len(clips), 2, 3, 4), float('nan'))": "12 rows failed (The model gave tokens that are not finite",
    }
    for value, (answer, named) in enumerate(answers.items()):
        words = ("own", "--plugin", write_plugin(tmp_path, answer, value), "--overwrite")
        extract(root, *words, dataset="robot_1st", split="train", code=int(bool(named)), has=[named])
    for _ in range(2):
        extract(root, "own", "--plugin", write_plugin(tmp_path, SOUND))
    extract(root, "own", "--plugin", write_plugin(tmp_path, SOUND, value=2.0), code=2, has=["weights"])
