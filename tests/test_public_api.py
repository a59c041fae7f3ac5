"""The public interface of `lary`: its exports, its cost, and the typed results and tables that notebooks get."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import pandas
import pytest
import torch

import lary
from lary.compat import MOVED
from tests.tree import make_calvin, make_robot


def test_import_is_fast_and_light() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import lary; print(time.perf_counter() - t, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.split()
    assert float(seconds) < 0.2
    assert heavy == "False"


def test_no_submodule_replaces_an_exported_name() -> None:
    for module in pkgutil.walk_packages(lary.__path__, "lary."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    assert set(lary.__all__) == {name for names in lary._HOMES.values() for name in names} <= set(dir(lary))
    assert not set(lary.__all__) & {module.name for module in pkgutil.iter_modules(lary.__path__)}
    for name in lary.__all__:
        assert callable(getattr(lary, name)), name
        assert getattr(lary, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lary.nothing  # noqa: B018


@pytest.mark.usefixtures("no_figures")
def test_the_whole_course_from_python(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 8, "val": 5})
    make_robot(tmp_path, {"train": 16, "val": 8})
    folders = {"lary_root": tmp_path, "data_dir": tmp_path / "data", "lary_log_dir": str(tmp_path / "logs")}
    for split in ("train", "val"):
        report = lary.extract(model="pixels", dataset="calvin", split=split, workers=1, **folders)
        assert report.extracted == report.rows > 0
    wanted = {"model": "pixels", "dataset": "calvin", "probe_preset": "demo", **folders}
    done = lary.regress(model_type="ridge", seeds=[0, 1], **wanted)
    assert done.result.task == "regression"
    assert not lary.regress(model_type="ridge", seeds="0,1", **wanted).new
    other = lary.run(model="frame-difference", **{k: v for k, v in wanted.items() if k != "model"}, model_type="ridge")
    found = lary.load_results(tmp_path / "logs")
    assert isinstance(found, pandas.DataFrame)
    assert set(found.model) == {"pixels", "frame-difference"}
    assert {"selection", "headline", "seen_mse", "seen_mse_low", "seen_mse_high"} <= set(found.columns)
    (value,) = found[(found.model == "pixels") & found.headline].seen_mse
    samples = lary.load_samples(done.folder)
    assert list(samples.columns) == ["split", "sample", "group", "score", "score_0", "score_1"]
    assert samples.score.mean() == pytest.approx(value, rel=1e-5)
    assert "frame-difference" in lary.compare(done.folder, str(other.probe.folder)).text()
    assert lary.write_report(tmp_path / "logs").is_file()


def test_wrong_calls_are_sentences(tmp_path: Path) -> None:
    for options, words in (
        ({"model": "pixels", "dataset": "calvin", "splitt": "val"}, "no option 'splitt'. Did you mean split"),
        ({"model": "pixels", "dataset": "calvin"}, "lary.extract: there is no value for split"),
        ({"model": "pixels", "dataset": "calvin", "split": "val", "store": "zip"}, "lary.extract: store 'zip'"),
        ({"model": "pixels", "dataset": "calvin", "split": "val", "limit": "3"}, "lary.extract: limit '3'"),
    ):
        with pytest.raises(lary.types.UsageError, match=words):
            lary.extract(lary_root=tmp_path, **options)


def test_a_loaded_model_is_a_module_whose_gradients_flow() -> None:
    encoder = lary.load_model("pixels", device="cpu")
    assert isinstance(encoder.module, torch.nn.Module)
    clips = torch.rand(1, 2, 3, 32, 32, requires_grad=True)
    tokens = encoder.encode(clips).tokens
    tokens.sum().backward()
    assert clips.grad is not None


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("lary.results.evaluate", "classify"),
        ("lary.results.evaluate", "regress"),
        ("lary.latents.extract", "extract"),
        ("lary.fileio", "write_json"),
        ("lary.tool_configs", "DemoConfig"),
        ("lary.data.records", "save_record"),
        ("lary.data.samples", "read_table"),
        ("lary.data.simulate", "simulate"),
    ],
)
def test_old_import_paths_work_with_a_warning(old: str, name: str) -> None:
    sys.modules.pop(old, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert hasattr(importlib.import_module(old), name)
    assert any(old in str(each.message) and each.category is DeprecationWarning for each in caught)


def test_every_old_path_leads_somewhere() -> None:
    for old, homes in MOVED.items():
        assert importlib.util.find_spec(old) is not None
        for home in homes:
            importlib.import_module(home)


def test_documented_paths_stay() -> None:
    for module, name in (
        ("lary.models.spec", "register_model"),
        ("lary.data.spec", "register_dataset"),
        ("lary.types", "Latents"),
        ("lary.registry", "load_plugin"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert hasattr(importlib.import_module(module), name)
