"""The run around the work: the lines of the log, and the devices that are chosen and printed."""

import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lary.runtime import PlainStream, in_threads, memory_bytes, pick_devices, provenance, setup_logging, tell_once
from lary.types import UsageError
from tests.helpers import fails


def test_log_lines_do_not_steer_the_terminal() -> None:
    handler = logging.StreamHandler(PlainStream(text := io.StringIO()))
    handler.emit(logging.LogRecord("lary", logging.ERROR, "", 0, "%s", ("a\x1b]0;title\x07\x9b31m\0\rb",), None))
    assert text.getvalue() == "a\\x1b]0;title\\x07\\x9b31m\\x00\\x0db\n"


def test_results_of_threads_keep_the_order_of_their_items() -> None:
    assert list(in_threads(lambda item: item * item, range(500), 4, batch=3)) == [item * item for item in range(500)]


def test_provenance_names_versions_and_machine() -> None:
    found = provenance()
    assert (list(found), found["command"]) == (["command", "versions", "commit", "dirty", "machine"], sys.argv)
    assert {"lary", "python", "numpy", "torch"} <= set(found["versions"])
    assert list(found["machine"]) == ["system", "processor", "cores", "device"]
    assert found["commit"] is None or len(found["commit"]) == 40


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_that_of_the_container(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    two, one = ("max", "current", "stat"), ("limit_in_bytes", "usage_in_bytes", "stat")
    names = [f"memory.{name}" for name in two] if version == 2 else [f"memory/memory.{name}" for name in one]
    files = dict(zip(names, ("800\n", "700\n", "anon 600\ninactive_file 100\n"), strict=True))

    def read(path: Path) -> str:
        if (name := path.relative_to("/sys/fs/cgroup").as_posix()) in files:
            return files[name]
        raise FileNotFoundError(name)

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1000, available=900))
    monkeypatch.setattr(Path, "read_text", read)
    assert (memory_bytes(), memory_bytes(free=True)) == (800, 200)
    files.clear()
    assert (memory_bytes(), memory_bytes(free=True)) == (1000, 900)


def test_devices_are_chosen_and_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    setup_logging()
    some = {(None, False): "cuda:0", (None, True): "cuda:0, cuda:1, cuda:2", ("2,1", False): "cuda:2, cuda:1"}
    for (gpus, every), devices in {**some, ("0", True): "cuda:0"}.items():
        tell_once.cache_clear()
        assert ", ".join(pick_devices(gpus, every=every)) == devices
        assert f"working on {devices} of 3" in capsys.readouterr().err
    assert pick_devices(None, choice="cpu", every=True) == ["cpu"]
    fails(UsageError, "this machine has CUDA devices 0 to 2, not 3", pick_devices, "0,3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert (pick_devices("0"), pick_devices(None)) == (["cpu"], ["cpu"])
    absent = "no CUDA device here: one process on the CPU"
    lines = f"lary: --gpus 0: torch finds {absent}; to use one, install its driver", f"lary: {absent}"
    assert list(map(str.startswith, capsys.readouterr().err.splitlines(), lines)) == [True, True]
