"""What all tests share: no variable of the user's environment leaks into a test, one thread does the arithmetic."""

import importlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# Threads of several processes would wait for each other at full speed wherever cores are fewer.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from lary.data.spec import DATASETS
from lary.models.spec import MODELS
from lary.settings import VARIABLES

HANDICAP = """
import os, signal, sys, time
real = os.stat

def stat(path, *given, **options):
    name = os.path.basename(path) if isinstance(path, (str, os.PathLike)) else ""
    if name.endswith((".png", ".npy", ".mp4")):
        time.sleep(600 if name.startswith("hangs") else float(os.environ.get("PAUSE", "0")))
        if name.startswith("crashes"):
            os.kill(os.getpid(), signal.SIGKILL)
    return real(path, *given, **options)

os.stat = stat
"""


LONG = ("golden/test_probes", "hostile/", "lam/test_training", "runs/", "simulate/", "test_examples", "test_fi")
"""Files that are begun first, since a process that has a file does it alone."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # else the files with the fewest tests are begun last


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(LONG))


@pytest.fixture(scope="module", autouse=True)
def own_records() -> Iterator[None]:
    """What the fixtures of a module register is forgotten after it."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in (DATASETS, MODELS):
            registry.names()
            patch.setattr(registry, "_records", dict(registry._records))
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from the test alone, and nothing reaches for a hub."""
    for name in (*VARIABLES, "LARY_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(DATASETS, "_records", dict(DATASETS._records))  # what a test registers is forgotten after it
    monkeypatch.setattr("lary.registry._plugins", {})  # those of other tests are not for the processes of this one


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Pictures are written, but nothing is drawn on them: that takes seconds each, and they have tests of their own."""
    from matplotlib.figure import Figure

    from lary.results import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", lambda *_: None)
        patch.setattr(figures, "_trajectory", lambda *_: nullcontext(Figure((1, 1))))
        patch.setattr(figures, "confusion_figure", lambda *_: b"not drawn")
        yield


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that train together are forked from one that has loaded their libraries, and not started anew."""
    spawn: Any = importlib.import_module("torch.multiprocessing.spawn")
    start = spawn.start_processes
    monkeypatch.setattr(spawn, "start_processes", lambda *a, **k: start(*a, **k | {"start_method": "forkserver"}))


@pytest.fixture
def handicap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that hangs or kills the processes that start, at files of certain names, or is slow."""
    (tmp_path / "sitecustomize.py").write_text(HANDICAP)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)]))
