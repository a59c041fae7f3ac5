"""Records of models, and models from outside the package: plug-ins and entry points."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lary.models.spec import MODELS
from tests.helpers import printed
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
    folder = tmp_path_factory.mktemp("own")
    make_calvin(folder, {"train": 10, "val": 4}, pairs=2)
    make_robot(folder, {"train": 12, "val": 4})
    return folder


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
        "torch.full((len(clips), 2, 3, 4), float('nan'))": "12 rows could not be read",
    }
    for value, (answer, named) in enumerate(answers.items()):
        words = ("own", "--plugin", write_plugin(tmp_path, answer, value), "--overwrite")
        extract(root, *words, dataset="robot_1st", split="train", code=int(bool(named)), has=[named])
    for _ in range(2):
        extract(root, "own", "--plugin", write_plugin(tmp_path, SOUND))
    extract(root, "own", "--plugin", write_plugin(tmp_path, SOUND, value=2.0), code=2, has=["weights"])
