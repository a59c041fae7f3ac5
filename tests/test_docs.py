"""Commands in the documents are ones that the command line takes, and links lead to files that are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lary.cli.app import app

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_taken(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command, comments=True)
        words = words[1:] if words[0] == "lary" else words[3:]
        try:
            app.parse_args(words, print_error=False, exit_on_error=False)
        except Exception as error:
            pytest.fail(f"{page.name}: {command.strip()}: {error}")


def test_there_are_commands() -> None:
    """Else the test above looks at nothing."""
    found = {page.name: commands(page) for page in PAGES}
    assert sum(map(len, found.values())) > 40
    assert any("--engine ray" in command for command in found["scale.md"])
    assert any("$SLURM" in command for command in found["scale.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
