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
from tests.helpers import lary
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
        assert spec.weights.variable or spec.weights.folder


def extract(root: Path, model: str, *words: str | Path, split: str = "val", dataset: str = "calvin") -> tuple[int, str]:
    done = lary("extract", "--model", model, "--dataset", dataset, "--split", split, *words, root=root)
    return done.code, done.err


def test_options_that_make_no_sense_are_refused(root: Path) -> None:
    few = ("random-vit", "--limit", "2")  # precision is part of what latents are
    assert extract(root, *few)[0] == 0
    refusals: list[tuple[Any, str]] = [
        (("pixels", "--latent", "quantized"), "has one kind of latent"),
        ((*few, "--precision", "bf16"), "latents of another extraction"),
    ]
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        refusals += [(("pixels", "--device", device), f"--device {device}") for device in ("cuda", "mps")]
    for words, named in refusals:
        code, err = extract(root, *words)
        assert (code, named in err) == (2, True)
    assert extract(root, *few, "--precision", "bf16", "--overwrite")[0] == 0


@pytest.mark.usefixtures("no_figures")
def test_example_runs_through_extract_classify_and_regress(root: Path) -> None:
    plugin = ("colour-grid", "--plugin", EXAMPLE)
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            assert extract(root, *plugin, dataset=dataset, split=split)[0] == 0
    for command, dataset in (("classify", "robot_1st"), ("regress", "calvin")):
        words = ("--plugin", EXAMPLE, "--dataset", dataset, "--probe-preset", "demo", "--epochs", "1")
        assert lary(command, "--model", "colour-grid", *words, root=root).code == 0
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
        words = ("--plugin", write_plugin(tmp_path, answer, value), "--overwrite")
        code, err = extract(root, "own", *words, dataset="robot_1st", split="train")
        assert (code, named in err) == (int(bool(named)), True), err
    for _ in range(2):
        assert extract(root, "own", "--plugin", write_plugin(tmp_path, SOUND))[0] == 0
    code, err = extract(root, "own", "--plugin", write_plugin(tmp_path, SOUND, value=2.0))
    assert (code, "weights" in err) == (2, True), "latents of other weights were reused"
