"""The run around the work: the lines of the log, and the devices that are chosen and printed."""

import io
import logging
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from lary import runtime
from lary.runtime import memory_bytes, pick_devices, pinned, set_arithmetic, setup_logging, tell_once, within_memory
from lary.types import LaryError, UsageError
from tests.helpers import fails, printed


def test_log_lines_do_not_steer_the_terminal() -> None:
    handler = logging.StreamHandler(runtime.PlainStream(text := io.StringIO()))
    handler.emit(logging.LogRecord("lary", logging.ERROR, "", 0, "%s", ("a\x1b]0;title\x07\x9b31m\0\rb",), None))
    assert text.getvalue() == "a\\x1b]0;title\\x07\\x9b31m\\x00\\x0db\n"


def test_provenance_names_versions_and_machine() -> None:
    found = runtime.provenance()
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


@pytest.mark.parametrize("quick", [0.0, 60.0])
def test_only_slow_work_is_shared_by_threads(quick: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in memory are read 5 times as fast in one thread; whether work is slow is tried again and again."""
    monkeypatch.setattr(runtime, "QUICK", quick)
    monkeypatch.setattr(runtime, "QUEUED", 3)
    found = list(runtime.in_threads(lambda item: (item, threading.current_thread()), range(100), 4, batch=4))
    assert [item for item, _ in found] == list(range(100))
    own = [thread is threading.main_thread() for _, thread in found]
    assert own == ([True] * 100 if quick else ([True] * 4 + [False] * 12) * 6 + [True] * 4)


def test_float32_keeps_its_bits_and_cuda_has_an_identity_of_its_own() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    assert [set_arithmetic(device) for device in ("cpu", "mps", "cuda:1")] == ["", "", "cuda fp32"]
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    assert set_arithmetic("cuda:0", "tf32") == "cuda tf32"
    assert torch.backends.cudnn.allow_tf32
    fails(UsageError, "cpu has no TF32", set_arithmetic, "cpu", "tf32")
    set_arithmetic("cpu")


def test_memory_that_is_kept_for_reuse_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an extraction before had is given back first, as far as nothing is in it."""
    kept = [70]
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: kept.append(30))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: kept[-1])
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 20)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (100 - kept[-1], 100))
    assert (runtime.free_memory("cuda:1"), kept) == (80, [70, 30])


def test_a_device_without_memory_is_a_sentence_with_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lary.runtime.free_memory", lambda device: 2_000_000_000)
    told = "CUDA out of memory. Tried to allocate 9.00 GiB. GPU 1 has a total capacity of 80.00 GiB"
    words = r"cuda:1 ran out of memory \(CUDA out of memory. Tried to allocate 9.00 GiB; now 2.0 GB are free\): lower"
    with pytest.raises(LaryError, match=words), within_memory("cuda:1", "lower --batch-size"):
        raise torch.cuda.OutOfMemoryError(told)
    with pytest.raises(RuntimeError, match="another"), within_memory("cuda:1", ""):
        raise RuntimeError("another")


def test_memory_that_cannot_be_pinned_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a container forbids it: the error stays in the runtime until an operation takes it."""
    setup_logging()
    left: list[str] = []

    def refuse(_: torch.Tensor) -> torch.Tensor:
        left.append("operation not supported")
        raise RuntimeError("CUDA error: operation not supported\nlines of advice")

    def operate(*_: object, **__: object) -> None:
        raise RuntimeError(left.pop())

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    monkeypatch.setattr(torch, "zeros", operate)
    tensor = torch.ones(3)
    for _ in range(2):
        assert pinned(tensor.pin_memory, lambda: tensor, "cuda:0") is tensor
        assert not left
    assert capsys.readouterr().err.count("can't be pinned here: CUDA error: operation not supp") == 1
    assert pinned(tensor.pin_memory, lambda: tensor, "cpu") is tensor


@pytest.mark.parametrize("size", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_copies_of_a_command_are_refused(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("extract", "--model", "pixels", "--dataset", "calvin", "--split", "val")
    for count, told in (("8", f"{size} is 8"), ("1", "calvin")):
        monkeypatch.setenv(size, count)
        printed(*words, root=tmp_path, code=2, has=[told])
    monkeypatch.setenv(size, "8")
    printed("models", "pixels")  # computes nothing
    (tmp_path / "sweep.yaml").write_text("runs: [{model: pixels, dataset: calvin}]")
    printed("sweep", tmp_path / "sweep.yaml", "--part", "1/8", "--dry-run", root=tmp_path, code=1, has=["pixels"])
