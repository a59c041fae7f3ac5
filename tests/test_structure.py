"""Guards of the structure: size of modules, direction of imports, names in records only, light imports."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lary
from lary.data.spec import DATASETS
from lary.models.spec import MODELS

PACKAGE = Path(lary.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module may import from its own layer and from those before it.
LAYERS = (
    ("",),
    ("nets",),
    ("models", "data"),
    ("importers", "simulate", "latents"),
    ("probes", "lam"),
    ("results",),
    ("runs",),
    ("cli",),
)
APART = (("models", "data"), ("data", "models"), ("probes", "models"))
HEAVY = ("torch", "transformers", "diffusers", "ray", "pandas", "mujoco", "cv2", "matplotlib", "sklearn", "scipy", "av")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Which part of the package a module belongs to; base modules have the empty name, commands are in ``cli*``."""
    parts = module.split(".")
    known = {part for layer in LAYERS for part in layer}
    return parts[1] if len(parts) > 1 and parts[1] in known else ""


def layer_of(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if part_of(module) in layer)


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.split(".")[0] == "lary"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_small(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{path.name} has {lines} lines: split it where a reader would"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    own = name_of(path)
    if own == "lary":
        return  # the public interface names all layers, and imports none before it is asked to
    for imported in imports_of(path):
        assert layer_of(imported) <= layer_of(own), f"{own} imports {imported} from a later layer"
        assert (part_of(own), part_of(imported)) not in APART, f"{own} must not import {imported}"


def test_names_of_records_are_compared_nowhere() -> None:
    names = {*MODELS.names(), *DATASETS.names()}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            compared = []
            if isinstance(node, ast.Compare):
                compared = [node.left, *node.comparators]
            elif isinstance(node, ast.match_case):
                compared = [item.value for item in ast.walk(node.pattern) if isinstance(item, ast.MatchValue)]
            literals = {item.value for part in compared for item in ast.walk(part) if isinstance(item, ast.Constant)}
            assert not names & literals, f"{path}:{node.lineno} compares a record's name: make it a field"


@pytest.mark.parametrize("module", ["lary", "lary.cli", "lary.data.spec", "lary.models.spec", "lary.settings"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]", f"importing {module} loads {loaded}"


def test_help_loads_no_heavy_library() -> None:
    code = f"""
import sys
from lary.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert not stop.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 20, "help hangs"
