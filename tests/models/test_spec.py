"""Records of models, and models from outside the package: plug-ins, entry points, the commands on models."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lary as package
from lary.models.overview import published_numbers as published
from lary.models.spec import MODELS
from tests.helpers import lary
from tests.tree import make_calvin, make_robot

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "my_encoder.py"
HEAVY = ("torch", "transformers", "diffusers", "numpy", "pandas", "pydantic", "cv2", "huggingface_hub", "yaml")
NAMES = MODELS.names()


@pytest.fixture(autouse=True)
def forget_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it: other tests run over every record."""
    MODELS.names()
    monkeypatch.setattr(MODELS, "_records", dict(MODELS._records))
    yield
    for name in [name for name in sys.modules if name.startswith("lary_plugin_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    make_calvin(folder, {"train": 10, "val": 4}, pairs=2)
    make_robot(folder, {"train": 12, "val": 4})
    return folder


# Records


def reference(name: str) -> list[dict[str, str]]:
    """One of the tables of the paper."""
    file = Path(package.__file__).parent / "results" / "reference" / f"{name}.csv"
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", ["classification", "regression", "vlabench_stride"])
def test_records_have_the_parameters_of_the_leaderboards(name: str) -> None:
    for row in reference(f"leaderboard_{name}"):
        spec = MODELS.get(row["model"])
        assert (f"{spec.parameters_m:.2f}", spec.paradigm) == (row["params_m"], row["paradigm"])


def test_published_numbers_are_listed_with_their_models() -> None:
    for row in reference("leaderboard_classification"):
        lines = published(MODELS.get(row["model"]))
        assert f"classification: average {row['average']}, libero {row['libero']}, " in lines[0]
        assert len(lines) == 3
    for row in reference("lam_ablation"):
        name = f"dinov3-cs{row['codebook_size']}_sl{row['sequence_length']}_dim{row['latent_dim']}_lr1e-4"
        (line,) = published(MODELS.get(name))
        assert f"human_1st_accuracy {row['human_1st_accuracy']}, " in line
    assert published(MODELS.get("dinov2-origin")) == ["the paper's tables have no numbers of this model"]
    assert not published(MODELS.get("pixels"))


# Commands


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


def test_models_lists_every_record_and_names_what_is_missing(tmp_path: Path) -> None:
    assert [line.split()[0] for line in lary("models").out.splitlines()[1:]] == MODELS.names()
    for words, named in (
        (("lapa", "--model-dir", tmp_path), "laq_openx.pt"),
        (("univla",), "UNIVLA_CKPT_PATH"),
        (("magvit2",), "MAGVIT2_TOKENIZER_PATH"),
    ):
        done = lary("models", *words)
        assert (done.code, named in done.out) == (0, True)
    done = lary("models", "dinov4")
    assert (done.code, "Did you mean dinov" in done.err) == (2, True)


def test_docs_are_made_from_the_records() -> None:
    command = [sys.executable, "-m", "lary.models.overview"]  # other tests of this process register models of their own
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert (ROOT / "docs" / "models.md").read_text() == made, f"run: {' '.join(command[1:])} > docs/models.md"


def extract(root: Path, model: str, *words: str | Path, split: str = "val", dataset: str = "calvin") -> tuple[int, str]:
    done = lary("extract", "--model", model, "--dataset", dataset, "--split", split, *words, root=root)
    return done.code, done.err


def test_options_that_make_no_sense_are_refused(root: Path) -> None:
    import torch

    for device in ("cuda", "mps"):
        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            code, err = extract(root, "pixels", "--device", device)
            assert (code, f"--device {device}" in err) == (2, True)
    code, err = extract(root, "pixels", "--latent", "quantized")
    assert (code, "has one kind of latent" in err) == (2, True)
    words = ("random-vit", "--limit", "2")  # precision is part of what latents are
    assert extract(root, *words)[0] == 0
    code, err = extract(root, *words, "--precision", "bf16")
    assert (code, "latents of another extraction" in err) == (2, True)
    assert extract(root, *words, "--precision", "bf16", "--overwrite")[0] == 0


# Plug-ins


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
    assert sorted(result["task"] for result in found) == ["classification", "regression"]
    assert all(result["model"]["name"] == "colour-grid" and result["model"]["dim"] == 6 for result in found)


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


def plugin(folder: Path, answer: str, value: float = 1.0) -> Path:
    file = folder / "plugin.py"
    file.write_text(PLUGIN.format(answer=answer, value=value))
    for name in [name for name in sys.modules if name.startswith("lary_plugin_")]:
        del sys.modules[name]
    MODELS._records.pop("own", None)
    return file


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (SOUND, None),
        (f"Latents({SOUND})", None),
        (f"({SOUND}, torch.zeros(len(clips), 2, 1).long())", None),
        ("torch.full((len(clips), 2, 3, 4), float('nan'))", "not finite"),
        ("clips.mean((3, 4))[..., :3]", "record says 4"),
        ("clips.mean((1, 2, 3, 4))", "expected (B, P, N, D)"),
        ("torch.rand(len(clips), 2, 3, 4)", "chance"),
        ("clips[:, :1].mean((3, 4))[:, :, :1].repeat(1, 1, 4)[:, :, None]", "don't depend on the last frame"),
    ],
)
def test_check_model_finds_what_is_wrong(answer: str, named: str | None, tmp_path: Path) -> None:
    done = lary("check-model", f"{plugin(tmp_path, answer)}:own")
    assert done.code == (1 if named else 0)
    assert (named or "everything as it should be") in done.out


def test_check_model_knows_the_example_and_asks_for_a_name() -> None:
    done = lary("check-model", f"{EXAMPLE}:colour-grid")
    assert (done.code, "2 x 16 x 6" in done.out) == (0, True)
    done = lary("check-model", EXAMPLE)
    assert (done.code, f"as {EXAMPLE}:NAME." in done.err) == (2, True)


def test_extraction_with_a_plug_in(root: Path, tmp_path: Path) -> None:
    """Tokens alone are stored, weights that changed are noticed, wrong shapes stop and rows of NaN are reported."""
    robot = {"dataset": "robot_1st", "split": "train"}
    for value, (answer, code, named) in enumerate(
        (
            (f"({SOUND}, torch.zeros(len(clips), 9, 1).long())", 0, ""),
            ("clips.mean((1, 3, 4)).repeat(1, 2)[:, :4]", 0, ""),  # one token per sample
            ("clips.mean((3, 4)).repeat(1, 1, 16).reshape(len(clips), 9, 2, 6, 4)", 0, ""),
            ("clips.mean((1, 2, 3, 4))", 1, "expected (B, P, N, D)"),
            ("torch.full((len(clips), 2, 3, 4), float('nan'))", 1, "12 rows could not be read"),
        )
    ):
        found, err = extract(root, "own", "--plugin", plugin(tmp_path, answer, value), "--overwrite", **robot)
        assert (found, named in err) == (code, True), err
    assert extract(root, "own", "--plugin", plugin(tmp_path, SOUND))[0] == 0
    assert extract(root, "own", "--plugin", plugin(tmp_path, SOUND))[0] == 0
    code, err = extract(root, "own", "--plugin", plugin(tmp_path, SOUND, value=2.0))
    assert (code, "weights" in err) == (2, True), "latents of other weights were reused"
