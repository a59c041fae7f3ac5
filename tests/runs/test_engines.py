"""Who does the units of an extraction: several processes or a Ray cluster, though some die, and after Ctrl-C."""

import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from lary.configs import ExtractConfig
from lary.latents.pipeline import Interrupted, UnitReport
from lary.locks import LOCK
from lary.models.spec import MODELS
from lary.registry import load_plugin
from lary.runs import engines
from lary.runs.engines import encode_all
from lary.runs.extract import extract, open_run, prepare_run
from lary.runtime import log
from tests.helpers import fails, printed, settings_of
from tests.tree import make_calvin

Counting = Callable[..., None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_calvin(tmp_path, {"val": 8})


def ask(model: str = "pixels", **changes: Any) -> ExtractConfig:
    return ExtractConfig(**{"model": model, "dataset": "calvin", "split": "val", "batch_size": 1, **changes})


def contents(root: Path, model: str = "pixels") -> dict[str, bytes]:
    """The latents as other programs read them: their stamps differ between models."""
    folder = root / "latent_actions" / "calvin" / "val" / model
    return {path.name: path.read_bytes()[: path.stat().st_size - 200] for path in sorted(folder.glob("*.npz"))}


def on_two_processes(root: Path, config: ExtractConfig) -> tuple[list[UnitReport], bool]:
    run = replace(prepare_run(config, settings_of(root)), devices=["cpu", "cpu"])
    store = open_run(run)
    job = replace(run.job, store=store)
    return encode_all(job, run.table, store.missing(run.table), run.devices, run.encoder, run.title)


COUNTING = """
import os, signal, sys
from pathlib import Path
from lary.models.spec import MODELS, ModelSpec, register_model

base = MODELS.get("pixels")

@register_model(ModelSpec(name={name!r}, paradigm="baseline", dim=base.dim, preprocess=base.preprocess))
class Counting:
    calls = 0
    in_worker = sys.argv[0].endswith("workers.py")

    def __init__(self, spec, context):
        self.inner = base.factory(base, context)

    def encode(self, clips):
        Counting.calls += 1
        if {condition}:
            {act}
        return self.inner.encode(clips)
"""
ONCE = """try:
                Path(__file__).with_suffix(".done").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                {}"""
DIE, INTERRUPT = "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGINT)"


@pytest.fixture
def counting(root: Path) -> Iterator[Counting]:
    """Registers, by a plug-in, a model that does something in some of its passes; pixels behind it."""
    names = []

    def write(name: str, condition: str, act: str = ONCE.format(DIE)) -> None:
        names.append(name)
        (root / f"{name}.py").write_text(COUNTING.format(name=name, condition=condition, act=act))
        load_plugin(root / f"{name}.py")

    yield write
    for name in names:
        MODELS._records.pop(name, None)


def test_the_rows_of_a_process_that_dies_are_done_all_the_same(root: Path, counting: Counting) -> None:
    """By a fresh process, and every file is as one process alone writes it."""
    counting("mortal", "Counting.calls == 3")
    reports, stopped = on_two_processes(root, ask("mortal"))
    assert ((root / "mortal.done").exists(), sum(report.done for report in reports), stopped) == (True, 24, False)
    extract(ask(), settings_of(root))
    assert list(contents(root, "mortal").values()) == list(contents(root).values())


def test_the_arithmetic_is_the_same_in_all_processes(root: Path, counting: Counting) -> None:
    """By itself torch allows TF32 in convolutions; the place of CUDA devices is taken by the CPU."""
    counting("noting", "__import__('torch').backends.cudnn.allow_tf32", "Path(__file__).with_suffix('.tf32').touch()")
    extract(ask("noting"), settings_of(root))
    shutil.rmtree(root / "latent_actions")
    reports, _ = on_two_processes(root, ask("noting"))
    assert (sum(report.done for report in reports), (root / "noting.tf32").exists()) == (24, False)


def test_a_process_that_dies_again_and_again_is_an_error(root: Path, counting: Counting) -> None:
    counting("doomed", "Counting.in_worker", DIE)
    message = r"A process that encodes died .*signal 9.*What was done is kept"
    fails(Exception, message, on_two_processes, root, ask("doomed"))


def test_an_encoder_is_on_a_device_where_it_encodes_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first process has the digest from the CPU; the devices of Ray need none on this machine."""
    nodes = [{"Alive": alive, "Resources": {"GPU": count}} for alive, count in ((True, 3.0), (False, 8.0), (True, 0.0))]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True, nodes=lambda: nodes))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for engine, there, devices in (("local", True, ["cuda:0", "cuda:1"]), ("ray", False, ["cuda"] * 3)):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        run = prepare_run(ask("random-vit", engine=engine, gpus="0,1", device="cuda"), settings_of(root))
        places = {value.device.type for value in run.encoder.module.parameters()}
        assert (run.devices, places, run.identity.arithmetic) == (devices, {"cpu"}, "cuda fp32")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        nodes.add_node(num_cpus=2)
        yield nodes
        nodes.shutdown()  # type: ignore[no-untyped-call]


def test_ray_gives_the_same_files_though_an_actor_is_killed(
    root: Path, counting: Counting, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting("mortal", "Counting.calls == 3")
    monkeypatch.setattr(log, "warning", told := Mock())
    monkeypatch.setattr(engines, "SECONDS_QUIET", 0.01)
    (root / "mortal.done").touch()  # not in this process
    local = extract(ask("mortal"), settings_of(root))
    expected, table = contents(root, "mortal"), local.table.read_bytes()
    shutil.rmtree(root / "latent_actions")
    (root / "mortal.done").unlink()
    done = extract(ask("mortal", engine="ray", address=cluster.address), settings_of(root))
    assert ((root / "mortal.done").exists(), done.extracted, done.failures) == (True, 24, ())
    assert (contents(root, "mortal"), done.table.read_bytes()) == (expected, table)
    told.assert_any_call("Ray has no place yet for %d of %d actors; waiting", 2, 2)


def test_second_ctrl_c_ends_the_tasks_of_ray(root: Path, counting: Counting, cluster: Any) -> None:
    counting("slow", "True", "Path(__file__).with_suffix('.busy').touch(); __import__('time').sleep(1000)")

    def interrupt_twice() -> None:
        while not (root / "slow.busy").exists():
            time.sleep(0.1)
        begun.append(time.monotonic())
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    begun: list[float] = []
    threading.Thread(target=interrupt_twice, daemon=True).start()
    asked = ask("slow", engine="ray", address=cluster.address)
    fails(KeyboardInterrupt, "", extract, asked, settings_of(root))
    assert time.monotonic() - begun[0] < 300, "tasks of 1000 s are not waited for; the cluster ends slowly under load"


def test_ray_without_a_cluster_is_a_wrong_request(root: Path) -> None:
    words = ("extract", "--model", "pixels", "--dataset", "calvin", "--split", "val")
    has = ["there is no Ray cluster"]
    printed(*words, "--engine", "ray", "--address", "127.0.0.1:1", root=root, code=2, has=has)


def test_ctrl_c_finishes_the_unit_and_says_how_to_resume(root: Path, counting: Counting, monkeypatch: Any) -> None:
    counting("trial", "Counting.calls == 3", INTERRUPT)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lary", "extract", "--model", "trial", "--input", "my table.csv"])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"resume with lary extract --model trial --input 'my table\.csv'") as stop:
        extract(ask("trial"), settings_of(root))
    assert (stop.value.exit_code, signal.getsignal(signal.SIGINT), len(contents(root, "trial"))) == (130, before, 8)
    assert not list(root.rglob("val_la_*.csv")) + list(root.rglob(LOCK))
    done = extract(ask("trial"), settings_of(root))
    assert (done.done_before, done.extracted) == (8, 16)


def test_ctrl_c_at_the_last_row_counts_too(root: Path, counting: Counting) -> None:
    counting("late", "Counting.calls == 24", INTERRUPT)
    fails(Interrupted, "Stopped: 0 of 24 rows", extract, ask("late"), settings_of(root))
    assert extract(ask("late"), settings_of(root)).done_before == 24


def test_ctrl_c_ends_several_processes_after_their_tasks(root: Path, counting: Counting) -> None:
    interrupt = ONCE.format(INTERRUPT.replace("getpid", "getppid"))
    counting("hasty", "Counting.in_worker and Counting.calls == 3", interrupt)
    reports, stopped = on_two_processes(root, ask("hasty", workers=1))
    assert stopped
    assert sum(report.done for report in reports) == len(contents(root, "hasty")) in (8, 16)


def test_second_ctrl_c_stops_at_once(root: Path, counting: Counting) -> None:
    counting("trial", "Counting.calls in (2, 3)", INTERRUPT)
    fails(KeyboardInterrupt, "", extract, ask("trial"), settings_of(root))
    assert len(contents(root, "trial")) <= 3
    assert extract(ask("trial"), settings_of(root)).rows == 24
