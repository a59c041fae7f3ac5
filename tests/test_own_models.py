"""Models from outside the package: a plug-in, an entry point, any transformers backbone; the commands on models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lary.cli import main
from lary.models.spec import MODELS
from tests.tree import make_calvin, make_robot

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "my_encoder.py"


@pytest.fixture(autouse=True)
def forget_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it: other tests run over every record."""
    MODELS.names()
    monkeypatch.setattr(MODELS, "_records", dict(MODELS._records))
    yield
    for name in [name for name in sys.modules if name.startswith("lary_plugin_")]:
        del sys.modules[name]


def lary(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    make_calvin(folder, {"train": 10, "val": 4}, pairs=2)
    make_robot(folder, {"train": 12, "val": 4})
    return folder


def places(root: Path) -> list[str]:
    return ["--lary-root", str(root), "--data-dir", str(root / "data")]


@pytest.mark.usefixtures("no_figures")
def test_example_runs_through_extract_classify_and_regress(root: Path) -> None:
    plugin = ["--plugin", str(EXAMPLE), "--model", "colour-grid"]
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            assert lary("extract", *plugin, "--dataset", dataset, "--split", split, *places(root)) == 0
    preset = ["--probe-preset", "demo", "--epochs", "1"]
    assert lary("classify", *plugin, "--dataset", "robot_1st", *preset, *places(root)) == 0
    assert lary("regress", *plugin, "--dataset", "calvin", *preset, *places(root)) == 0
    found = [json.loads(path.read_text()) for path in (root / "logs").rglob("result.json")]
    assert sorted(result["task"] for result in found) == ["classification", "regression"]
    assert all(result["model"]["name"] == "colour-grid" and result["model"]["dim"] == 6 for result in found)


def test_example_passes_check_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert lary("check-model", f"{EXAMPLE}:colour-grid") == 0
    told = capsys.readouterr().out
    assert "2 x 16 x 6" in told
    assert "everything as it should be" in told


def test_check_model_asks_for_the_name_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert lary("check-model", EXAMPLE) == 2
    assert f"name the model that the file registers, as {EXAMPLE}:NAME." in capsys.readouterr().err


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


BAD = """
from lary.models.spec import ModelSpec, Preprocess, register_model
from lary.types import Latents
import torch

@register_model(ModelSpec(name="bad-{kind}", paradigm="baseline", dim=4, preprocess=Preprocess(size=8)))
class Bad:
    def __init__(self, spec, context): pass
    def encode(self, clips):
        tokens = {tokens}
        return Latents(tokens)
"""


@pytest.mark.parametrize(
    ("kind", "tokens", "told"),
    [
        ("nan", "torch.full((len(clips), 2, 3, 4), float('nan'))", "not finite"),
        ("dim", "clips.mean((3, 4))[..., :3]", "record says 4"),
        ("shape", "clips.mean((1, 2, 3, 4))", "expected (B, P, N, D)"),
        ("chance", "torch.rand(len(clips), 2, 3, 4)", "chance"),
        ("blind", "clips[:, :1].mean((3, 4))[:, :, :1].repeat(1, 1, 4)[:, :, None]", "don't depend on the last frame"),
    ],
)
def test_check_model_finds_what_is_wrong(
    kind: str, tokens: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"{kind}.py"
    file.write_text(BAD.format(kind=kind, tokens=tokens))
    assert lary("check-model", f"{file}:bad-{kind}") == 1
    assert told in capsys.readouterr().out


def test_extraction_refuses_a_wrong_shape_and_reports_nan(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, tokens, told in (
        ("flat", "clips.mean((1, 2, 3, 4))", "expected (B, P, N, D)"),
        ("rotten", "torch.full((len(clips), 2, 3, 4), float('nan'))", "12 rows could not be read"),
    ):
        file = tmp_path / f"{kind}.py"
        file.write_text(BAD.format(kind=kind, tokens=tokens))
        words = ["--plugin", str(file), "--model", f"bad-{kind}", "--dataset", "robot_1st", "--split", "train"]
        assert lary("extract", *words, *places(root)) == 1
        assert told in capsys.readouterr().err


def save_vit(folder: Path) -> Path:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_any_transformers_backbone(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"hf:{save_vit(tmp_path / 'vit')}"
    record = MODELS.get(name).preprocess
    assert (record.size, record.resize, record.mean, record.std) == (32, "pil_bicubic", (0.5,) * 3, (0.25,) * 3)
    assert lary("check-model", name) == 0
    assert "2 x 16 x 16" in capsys.readouterr().out
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            assert lary("extract", "--model", name, "--dataset", dataset, "--split", split, *places(root)) == 0
    preset = ["--probe-preset", "demo", "--epochs", "1"]
    assert lary("classify", "--model", name, "--dataset", "robot_1st", *preset, *places(root)) == 0
    assert lary("regress", "--model", name, "--dataset", "calvin", *preset, *places(root)) == 0


def test_any_backbone_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lary("check-model", "hf:") == 2
    assert "name a folder or a hub id" in capsys.readouterr().err
    folder = save_vit(tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text("{")
    assert lary("check-model", f"hf:{folder}") == 2
    assert "can't be used" in capsys.readouterr().err


def test_models_lists_every_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert lary("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == MODELS.names()


def test_models_key_names_the_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lary("models", "lapa", "--model-dir", tmp_path) == 0
    assert "laq_openx.pt" in capsys.readouterr().out
    assert lary("models", "univla") == 0
    assert "UNIVLA_CKPT_PATH" in capsys.readouterr().out
    assert lary("models", "dinov4") == 2
    assert "Did you mean dinov" in capsys.readouterr().err


def test_latent_option_belongs_to_quantized_models(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "pixels", "--dataset", "calvin", "--split", "val", "--latent", "quantized"]
    assert lary("extract", *words, *places(root)) == 2
    assert "has one kind of latent" in capsys.readouterr().err


def test_precision_is_part_of_what_latents_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extract", "--model", "random-vit", "--dataset", "calvin", "--split", "val", "--limit", "2", *places(root)]
    assert lary(*words) == 0
    assert lary(*words, "--precision", "bf16") == 2
    assert "latents of another extraction" in capsys.readouterr().err
    assert lary(*words, "--precision", "bf16", "--overwrite") == 0


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_absent_devices_are_named(device: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has an accelerator")
    words = ["--model", "pixels", "--dataset", "calvin", "--split", "val", "--device", device]
    assert lary("extract", *words, *places(root)) == 2
    assert f"--device {device}" in capsys.readouterr().err


def test_docs_are_made_from_the_records() -> None:
    command = [sys.executable, "-m", "lary.models.overview"]  # other tests of this process register models of their own
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert (ROOT / "docs" / "models.md").read_text() == made, f"run: {' '.join(command[1:])} > docs/models.md"
