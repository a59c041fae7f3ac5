"""Guards of the structure: budgets of the whole, direction of imports, names in records only, light imports."""

import ast
import subprocess
import sys
import tokenize
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import lary
from lary.data.spec import DATASETS
from lary.models.spec import MODELS

PACKAGE = Path(lary.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = {
    "": 0, "nets": 1, "models": 2, "data": 2, "importers": 3, "simulate": 3, "latents": 3, "lam": 4, "probes": 4,
    "results": 5, "runs": 6, "cli": 7,
}  # fmt: skip
"""Parts of the package: a module may import from its own layer and from those before it."""
APART = (("models", "data"), ("data", "models"), ("probes", "models"))
# The house has 22,000 lines, 100 modules, 160,000 tokens and 12,000 lines of tests. New code has about 10.5 tokens per
# line. To this add, in lines, modules and lines of tests: "Numbers that hold" 700, 3 and 1,000, "Impossible to hurt"
# 300, 2 and 800, "For its users" 1,200, 6 and 1,000, "A ViT-L's row in one night" 200, 1 and 400, "Ready for eight
# GPUs" 300, 1 and 500, "Train latent action models" 1,500, 7 and 1,200. Scripts of "Impossible to hurt" add 210 lines
# to benchmarks/, those of the night and of the first hour on a GPU 450.
LIMITS = {
    "lines": 26_200, "modules": 120, "tokens": 204_100, "characters per line": 43, "longest module": 400,
    "templates, scripts and styles": 900, "lines of tests": 16_900, "lines of utils/ and benchmarks/": 3_120,
    "words of the README": 1_000,
}  # fmt: skip
"""Budgets of the whole; they only ever become smaller, but for allowances that an issue names."""
NO_TOKENS = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
HEAVY = ("torch", "transformers", "diffusers", "ray", "pandas", "mujoco", "cv2", "matplotlib", "sklearn", "scipy", "av")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Which part of the package a module belongs to; base modules have the empty name, commands are in ``cli*``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else ""


def imports_of(path: Path) -> list[str]:
    """What a module imports from lary, at any depth of its functions, but not for type checks alone."""
    found = []
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.split(".")[0] == "lary"]


def lines_of(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def tokens_of(path: Path) -> int:
    with tokenize.open(path) as file:
        return sum(token.type not in NO_TOKENS for token in tokenize.generate_tokens(file.readline))


def sizes() -> dict[str, float]:
    """The sizes that `LIMITS` names."""
    texts = [path for kind in ("html", "css", "js") for path in PACKAGE.rglob(f"*.{kind}")]
    tests = [path for path in (ROOT / "tests").rglob("*.py") if "cases" not in path.parts]
    beside = [path for folder in ("utils", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    lines = lines_of(MODULES)
    return {
        "lines": lines, "modules": len(MODULES), "tokens": sum(map(tokens_of, MODULES)),
        "characters per line": sum(len(line) for path in MODULES for line in path.read_text().splitlines()) / lines,
        "longest module": max(lines_of([path]) for path in MODULES), "templates, scripts and styles": lines_of(texts),
        "lines of tests": lines_of(tests), "lines of utils/ and benchmarks/": lines_of(beside),
        "words of the README": len((ROOT / "README.md").read_text().split()),
    }  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_budgets_are_kept(name: str) -> None:
    """A line is a cost: what is added has to be worth what is removed for it."""
    assert sizes()[name] <= LIMITS[name], f"{name}: {sizes()[name]:.1f}, and {LIMITS[name]} are allowed"


def test_modules_import_each_other_without_cycles() -> None:
    known = {name_of(path): path for path in MODULES}
    graph = {}
    for name, path in known.items():
        found = {each if each in known else each.rpartition(".")[0] for each in imports_of(path)}
        graph[name] = found & known.keys() - {name, "lary"}
    order = TopologicalSorter(graph)
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_no_public_name_has_two_meanings() -> None:
    """Functions and classes of modules; commands bear the names of the functions that they call."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        if part_of(name_of(path)) != "cli":
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, []).append(name_of(path))
    double = {name: homes for name, homes in found.items() if len(homes) > 1}
    assert not double


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    own = name_of(path)
    if own == "lary":
        return  # the public interface names all layers, and imports none before it is asked to
    for imported in imports_of(path):
        parts = part_of(own), part_of(imported)
        assert LAYERS[parts[1]] <= LAYERS[parts[0]], f"{own} imports {imported} from a later layer"
        assert parts not in APART, f"{own} must not import {imported}"


def test_scripts_import_what_is_there() -> None:
    """Scripts beside the package, most of which no test runs."""
    scripts = [path for folder in ("benchmarks", "docs", "examples", "utils") for path in (ROOT / folder).rglob("*.py")]
    names = {name.rpartition(".")[::2] for path in scripts for name in imports_of(path) if "." in name}
    missing = [f"{module}.{name}" for module, name in sorted(names) if not hasattr(import_module(module), name)
               and not find_spec(f"{module}.{name}")]  # fmt: skip
    assert scripts
    assert not missing


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
    """`lary` alone loads no other module of its own before a name is asked for."""
    code = f"import sys; import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not set(HEAVY) & set(loaded), f"importing {module} loads heavy libraries"
    assert module != "lary" or len([name for name in loaded if name.startswith("lary")]) < 3
