"""A data tool that is killed, or whose disk is full, leaves no half file, and goes on when started again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.killed_tools import TOOLS

REPOSITORY = Path(__file__).parent.parent


def test_tools_that_are_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.killed_tools", str(tmp_path), "4"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    steps = dict(line.split() for line in done.stdout.splitlines())
    assert set(steps) == set(TOOLS)
    assert all(int(count) >= 4 for count in steps.values()), "a write has two halves, a flush and a new name"
