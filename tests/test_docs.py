"""Commands in the documents are ones that the command line takes, and links lead to files that are there."""

import ast
import os
import re
import shlex
from pathlib import Path

import pytest

from lary.cli import app
from tests.helpers import printed

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = ("lary ", "python -m lary.cli ")


def commands(page: Path) -> list[str]:
    """The lines of code blocks that call lary, without what stands before the call."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    found = []
    for line in lines:
        at = min((line.find(start) for start in STARTS if start in line.split("#")[0]), default=-1)
        if at >= 0 and line[:at].strip().split(" ")[0] in ("", "srun"):
            found.append(line[at:])
    return found


def test_commands_are_taken() -> None:
    found = [(page, command) for page in PAGES for command in commands(page)]
    assert len(found) > 40
    for page, command in found:
        words = shlex.split(command, comments=True)
        words = words[1:] if words[0] == "lary" else words[3:]
        try:
            app.parse_args(words, print_error=False, exit_on_error=False)
        except Exception as error:
            pytest.fail(f"{page.name}: {command.strip()}: {error}")


def test_the_record_in_the_guide_is_taken(tmp_path: Path) -> None:
    block = (ROOT / "docs" / "guide-data.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "record.py").write_text(block)
    printed("datasets", "my-arm", "--plugin", tmp_path / "record.py", root=tmp_path, has=["my_arm_train.csv"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def modules_page() -> str:
    """The page of modules: the first sentence of every module's docstring, package by package."""
    lines = [
        "# Modules", "",
        "Imports go one way: base modules, then `nets`, then `models` and `data` (which never import each other), then",
        "`latents`, `probes`, `results`, `runs` and `cli`; `importers` and `simulate` depend on `data`.",
        "Tests check this, and that this page holds the first sentence of every module.",
    ]  # fmt: skip
    package = None
    for file in sorted((ROOT / "lary").rglob("*.py"), key=lambda file: (len(file.parts), file)):
        path = file.relative_to(ROOT)
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        sentence = " ".join(text.split("\n\n")[0].split())
        if path.parent != package:
            package = path.parent
            lines += ["", f"## `{package}`", "", "| module | contents |", "|---|---|"]
        lines.append(f"| `{path.stem}` | {sentence} |")
    return "\n".join(lines) + "\n"


def test_page_of_modules_is_current() -> None:
    page = ROOT / "docs" / "modules.md"
    if os.environ.get("LARY_GOLDEN_WRITE"):
        page.write_text(modules_page())
    assert page.read_text() == modules_page(), "LARY_GOLDEN_WRITE=1 pytest tests/test_docs.py writes the page"
