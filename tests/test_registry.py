"""Registries of records, and the plug-ins that add to them."""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from lary.registry import Registry, load_plugin, loaded_plugins
from lary.types import UsageError
from tests.helpers import fails
from tests.hostile.harness import refused


@dataclass(frozen=True)
class Thing:
    name: str


def test_registry_suggests_and_refuses_doubles() -> None:
    things: Registry[Thing] = Registry("thing")
    things.add(Thing("alpha"))
    things.add(Thing("beta"))
    things.add_family(lambda name: Thing(name) if name.startswith("made:") else None)
    assert things.get("made:x") == Thing("made:x")
    fails(UsageError, r"Unknown thing 'alhpa'. Did you mean alpha\?", things.get, "alhpa")
    fails(UsageError, "The nearest of 2: beta, alpha", things.get, "zzz")
    fails(UsageError, "registered twice", things.add, Thing("beta"))
    assert [thing.name for thing in things] == ["alpha", "beta"]


def test_plugin_runs_once_and_names_its_failures(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("import os\nos.environ['LARY_PLUGIN_RUNS'] = os.environ.get('LARY_PLUGIN_RUNS', '') + 'x'\n")
    bad.write_text("1 / 0")
    for _ in range(2):
        load_plugin(good)
        fails(UsageError, r"bad.py failed in .*bad.py, line 1: ZeroDivisionError", load_plugin, bad)
    assert os.environ.pop("LARY_PLUGIN_RUNS") == "x"
    assert loaded_plugins() == (good,)
    bad.write_text("from lary.types import UsageError\nraise UsageError('its own sentence')")
    fails(UsageError, "^its own sentence$", load_plugin, bad)


@pytest.mark.parametrize("name", [
    "no-such.py", "folder.py", "notes.txt", "pipe.py", "/dev/zero", "x" * 5000 + ".py", "a\0b.py", "a\nb.py",
    "~nobody-here/a.py", "bytes.py", "exits.py", "recurses.py", "raises.py",
    pytest.param("secret.py", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")),
])  # fmt: skip
def test_plugins_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "bytes.py").write_bytes(bytes(range(256)))
    for file, text in (
        ("notes.txt", "import os\nos.system('touch executed')\n"), ("exits.py", "raise SystemExit(0)\n"),
        ("recurses.py", "def f():\n    f()\nf()\n"), ("raises.py", "raise ValueError('first line\\nsecond line')\n"),
        ("secret.py", ""),
    ):  # fmt: skip
        (tmp_path / file).write_text(text)
    (tmp_path / "secret.py").chmod(0)
    path = name if name.startswith(("/", "~")) else f"{tmp_path}/{name}"
    refused(tmp_path, lambda: load_plugin(path), "Plug-in|no home folder")


def test_a_broken_package_costs_itself_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    things: Registry[Thing] = Registry("thing", group="lary.things")
    monkeypatch.setattr(logging.getLogger("lary"), "propagate", True)
    points = [EntryPoint(name, f"{name}:THING", "lary.things") for name in ("absent_package", "sys", "this_one")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == "lary.things" else [])
    monkeypatch.setitem(sys.modules, "this_one", SimpleNamespace(THING=things.add(Thing("alpha"))))  # type: ignore[arg-type]
    assert things.names() == ["alpha"]
    text = caplog.text
    assert "left out: absent_package:THING of ? fails: ModuleNotFoundError" in text
    assert "left out: sys:THING" in text
    assert "this_one" not in text


def test_no_module_looks_a_record_up_while_it_is_imported() -> None:
    """Records in LARY_ROOT/data import modules when they are looked up, which would go round."""
    code = "import importlib, pkgutil, lary, lary.registry as r\nr.Registry.get = r.Registry.__iter__ = None\n"
    code += "for each in pkgutil.walk_packages(lary.__path__, 'lary.'):\n"
    code += "    '__main__' in each.name or importlib.import_module(each.name)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
