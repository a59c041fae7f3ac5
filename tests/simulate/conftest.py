"""A small simulation that the tests of this folder share."""

import importlib.util
from pathlib import Path

import pytest

from tests.helpers import lary

collect_ignore_glob = [] if importlib.util.find_spec("mujoco") else ["test_*.py"]
"""The simulator is part of the extra `demo`."""

TINY = ("--seed", "3", "--pairs", "12", "--clips", "10", "--size", "48", "--processes", "1")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated")
    assert lary("simulate", out, *TINY).code == 0
    return out
