"""The commands on models, the page made from their records, and the check of one model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lary.configs import CheckModelConfig, Precision
from lary.models.overview import ModelCheck
from lary.models.running import LoadedEncoder
from lary.models.spec import MODELS, ModelContext, Preprocess
from lary.types import Latents, WeightsIdentity
from tests.helpers import lary, printed, rows_of
from tests.models.test_spec import EXAMPLE, ROOT, SOUND, forget_plugins, write_plugin

__all__ = ["forget_plugins"]


@pytest.mark.parametrize("name", ["classification", "regression", "vlabench_stride"])
def test_records_have_the_parameters_and_numbers_of_the_leaderboards(name: str) -> None:
    for row in rows_of(ROOT / "lary" / "results" / "reference" / f"leaderboard_{name}.csv"):
        spec, page = MODELS.get(row["model"]), lary("models", row["model"]).out
        assert (f"{spec.parameters_m:.2f}", spec.paradigm) == (row["params_m"], row["paradigm"])
        assert page.count("\n  published ") == 3
        assert f"average {row['average']}" in page


def test_models_lists_every_record_and_names_what_is_missing(tmp_path: Path) -> None:
    assert [line.split()[0] for line in lary("models").out.splitlines()[1:]] == MODELS.names()
    printed("models", "lapa", "--model-dir", tmp_path, has=["laq_openx.pt"])
    (tmp_path / "laq_openx.pt").write_bytes(b"weights")
    printed("models", "lapa", "--model-dir", tmp_path, has=[f"here: {tmp_path / 'laq_openx.pt'}"])
    printed("models", "pixels", has=["needs none"])
    printed("models", "dinov2-origin", has=["would be fetched from the hub: ", "Set DINO_V2_PATH to them, put"])
    printed("models", next(spec.name for spec in MODELS if spec.ablation), has=["published    ablations: "])
    printed("models", "univla", has=["UNIVLA_CKPT_PATH"])
    printed("models", "magvit2", has=["MAGVIT2_TOKENIZER_PATH"])
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
    transformers.Dinov2Model(transformers.Dinov2Config(**small)).save_pretrained(tmp_path / "own")
    printed("models", f"hf:{tmp_path}/own", has=["parameters   0.05 million"])
    printed("models", "dinov4", code=2, has=["Did you mean dinov"])


def test_docs_are_made_from_the_program() -> None:
    """In a process without the plug-ins of other tests."""
    code = "import json, make_pages; print(json.dumps({name: page() for name, page in make_pages.PAGES.items()}))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "docs")
    for name, text in json.loads(made.stdout).items():
        assert (ROOT / "docs" / name).read_text() == text, f"{name} is old: python docs/make_pages.py"


@pytest.mark.usefixtures("forget_plugins")
@pytest.mark.parametrize(("answer", "named"), [
    (SOUND, None), (f"Latents({SOUND})", None), (f"({SOUND}, torch.zeros(len(clips), 2, 1).long())", None),
    ("torch.full((len(clips), 2, 3, 4), float('nan'))", "not finite"),
    ("clips.mean((3, 4))[..., :3]", "record says 4"), ("torch.rand(len(clips), 2, 3, 4)", "chance"),
    (SOUND.replace("clips", "(clips - clips.mean(0))", 1), "on the batch that a sample is in"),
    ("clips[:, :1].mean((3, 4))[:, :, :1].repeat(1, 1, 4)[:, :, None]", "don't depend on the last frame"),
])  # fmt: skip
def test_check_model_finds_what_is_wrong(answer: str, named: str | None, tmp_path: Path) -> None:
    words, code = named or "everything as it should be", 1 if named else 0
    command = ("check-model", f"{write_plugin(tmp_path, answer)}:own")
    printed(*command, code=code, has=[words])
    if named in ("chance", "don't depend on the last frame"):  # as some published code does
        printed(*command, "--protocol", "paper", has=["protocol paper", "everything as it should be"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_accelerators_may_round_by_the_size_of_a_batch(precision: Precision) -> None:
    """By a hundredth in bfloat16 alone; of 24 codes, two may be their neighbours, but not three."""
    spec = replace(MODELS.get("pixels"), name="own", factory=None, dim=4, preprocess=Preprocess(size=8), pair_shape=())

    def problems(change: float, flipped: int) -> list[str]:
        def encode(clips: torch.Tensor) -> Latents:
            tokens = clips.mean((2, 3, 4))[:, :, None, None].repeat(1, 1, 12, 4) + len(clips) * change
            codes = torch.zeros(tokens.shape[:3], dtype=torch.int64)
            codes.view(-1)[:flipped] = len(clips)
            return Latents(tokens, codes)

        author = SimpleNamespace(encode=encode, identity=WeightsIdentity("own"))
        context = ModelContext("cpu:0", "corrected")  # "cpu" is exact
        encoder = LoadedEncoder(author, spec, context, precision=precision, compiled=False)
        check = ModelCheck(encoder, CheckModelConfig(precision=precision), [])
        check.check_media("pair", 2)
        return check.problems

    assert bool(problems(0.005, 0)) == (precision == "fp32")
    assert (bool(problems(0.0, 2)), bool(problems(0.0, 3))) == (False, True)


@pytest.mark.usefixtures("forget_plugins")
def test_check_model_knows_the_example_and_asks_for_a_name() -> None:
    printed("check-model", f"{EXAMPLE}:colour-grid", has=["2 x 16 x 6"])
    printed("check-model", EXAMPLE, code=2, has=[f"as {EXAMPLE}:NAME."])
