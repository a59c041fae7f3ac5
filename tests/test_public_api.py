"""The public interface of `lary`: its exports, its cost, and the typed results and tables that notebooks get."""

import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import lary
from lary.compat import moved
from lary.runs.api import paths_of
from lary.types import UsageError
from tests.helpers import fails
from tests.tree import make_calvin

NAMES = {
    "lary.results.evaluate": "classify regress", "lary.latents.extract": "extract", "lary.fileio": "write_json",
    "lary.tool_configs": "DemoConfig", "lary.data.records": "save_record", "lary.data.samples": "read_table",
    "lary.data.simulate": "simulate",
}  # fmt: skip
"""Names that modules of version 0.1 had, by their old paths."""


def test_no_submodule_replaces_an_exported_name() -> None:
    for module in pkgutil.walk_packages(lary.__path__, "lary."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    assert set(lary.__all__) == {name for names in lary._HOMES.values() for name in names} <= set(dir(lary))
    assert not set(lary.__all__) & {module.name for module in pkgutil.iter_modules(lary.__path__)}
    assert all(callable(getattr(lary, name)) and getattr(lary, name).__doc__ for name in lary.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lary.nothing  # noqa: B018


@pytest.mark.usefixtures("no_figures")
def test_the_whole_course_from_python(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 8, "val": 5})
    folders = {"lary_root": tmp_path, "data_dir": tmp_path / "data", "lary_log_dir": str(tmp_path / "logs")}
    for split in ("train", "val"):
        report = lary.extract(model="pixels", dataset="calvin", split=split, workers=1, **folders)
        assert report.extracted == report.rows > 0
    wanted = {"dataset": "calvin", "probe_preset": "demo", "model_type": "ridge", **folders}
    done = lary.regress(model="pixels", seeds=[0, 1], **wanted)
    assert (done.result.task, lary.regress(model="pixels", seeds="0,1", **wanted).new) == ("regression", False)
    other = lary.run(model="frame-difference", workers=1, **wanted)
    found = lary.load_results(tmp_path / "logs")
    assert set(found.model) == {"pixels", "frame-difference"}
    assert {"selection", "headline", "seen_mse", "seen_mse_low", "seen_mse_high"} <= set(found.columns)
    (value,) = found[(found.model == "pixels") & found.headline].seen_mse
    samples = lary.load_samples(done.folder)
    assert list(samples.columns) == ["split", "sample", "group", "score", "score_0", "score_1"]
    assert samples.score.mean() == pytest.approx(value, rel=1e-5)
    assert "frame-difference" in lary.compare(done.folder, str(other.probe.folder)).text()
    assert lary.write_report(tmp_path / "logs").is_file()


def test_wrong_calls_are_sentences(tmp_path: Path) -> None:
    assert paths_of({"plugin": "own.py"}).plugin == paths_of({"plugin": [Path("own.py")]}).plugin == (Path("own.py"),)
    for words, options in {
        "no option 'splitt'. Did you mean split": {"splitt": "val"},
        "lary.extract: there is no value for split": {},
        "lary.extract: store 'zip'": {"split": "val", "store": "zip"},
        "lary.extract: limit '3'": {"split": "val", "limit": "3"},
    }.items():
        fails(UsageError, words, lary.extract, model="pixels", dataset="calvin", lary_root=tmp_path, **options)


@pytest.mark.parametrize("old", moved())
def test_old_import_paths_work_with_a_warning(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {moved()[old][0]}"):
        module = importlib.import_module(old)
    assert all(hasattr(module, name) for name in NAMES.get(old, "").split())
