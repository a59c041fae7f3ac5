"""Who does the units of an extraction: several processes or a Ray cluster, though some die, and after Ctrl-C."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.configs import ExtractConfig
from lary.latents.pipeline import Interrupted
from lary.locks import LOCK
from lary.models.spec import MODELS, ModelSpec, register_model
from lary.registry import load_plugin
from lary.runs import engines as on_ray
from lary.runs import extract as extraction
from lary.runs.engines import run_processes
from lary.runs.extract import extract
from lary.types import Latents
from tests.helpers import lary, settings_of
from tests.tree import make_calvin


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_calvin(tmp_path, {"val": 8})
    return tmp_path


def ask(split: str = "val", dataset: str = "calvin", model: str = "pixels", **changes: Any) -> ExtractConfig:
    return ExtractConfig(model=model, dataset=dataset, split=split, **changes)


def latents(root: Path, dataset: str = "calvin", split: str = "val", model: str = "pixels") -> Path:
    return root / "latent_actions" / dataset / split / model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


def test_several_processes_give_the_same_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single = extract(ask(batch_size=4), settings_of(root))
    expected, table = contents(latents(root)), single.table.read_bytes()
    shutil.rmtree(latents(root))
    monkeypatch.setattr(extraction, "pick_devices", lambda gpus, choice: ["cpu", "cpu"])
    extract(ask(batch_size=4), settings_of(root))
    assert contents(latents(root)) == expected
    assert single.table.read_bytes() == table


COUNTING = """
import os, signal, time
from pathlib import Path
from lary.models.spec import MODELS, ModelSpec, register_model

base = MODELS.get("pixels")

@register_model(ModelSpec(name={name!r}, paradigm="baseline", dim=base.dim, preprocess=base.preprocess))
class Counting:
    calls = 0

    def __init__(self, spec, context):
        self.inner = base.factory(base, context)

    def encode(self, clips):
        Counting.calls += 1
        if Counting.calls == {call}:
            {act}
        return self.inner.encode(clips)
"""
DIE_ONCE = """try:
                Path({flag!r}).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                time.sleep({seconds})
                os.kill(os.getpid(), signal.SIGKILL)"""


@pytest.fixture
def counting(root: Path) -> Iterator[Any]:
    """Writes a plug-in of a model that does something in one of its passes; pixels behind it."""
    names = []

    def write(name: str, call: int, act: str) -> Path:
        names.append(name)
        (root / f"{name}.py").write_text(COUNTING.format(name=name, call=call, act=act))
        return root / f"{name}.py"

    yield write
    for name in names:
        MODELS._records.pop(name, None)


@pytest.mark.parametrize("seconds", [0, 5], ids=["while the other works", "after the other has found nothing left"])
def test_the_rows_of_a_process_that_dies_are_done_by_another(
    root: Path, counting: Any, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    plugin = counting("mortal", 3, DIE_ONCE.format(flag=str(root / "dead"), seconds=seconds))
    monkeypatch.setattr(extraction, "pick_devices", lambda gpus, choice: ["cpu", "cpu"])
    words = ("extract", "--model", "mortal", "--dataset", "calvin", "--split", "val", "--batch-size", "1")
    assert lary(*words, "--plugin", str(plugin), root=root).code == 0
    assert (root / "dead").exists()
    extract(ask(batch_size=1), settings_of(root))
    arrays = [np.load(latents(root, model=model) / "latent_action_00000017.npz")["tokens"] for model in
              ("mortal", "pixels")]  # fmt: skip
    assert np.array_equal(*arrays)
    assert len(contents(latents(root, model="mortal"))) == 24


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(on_ray, "TASK_ROWS", 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        nodes.add_node(num_cpus=2)
        yield nodes
        nodes.shutdown()


def test_ray_gives_the_same_files_though_an_actor_is_killed(root: Path, counting: Any, cluster: Any) -> None:
    plugin = counting("mortal", 3, DIE_ONCE.format(flag=str(root / "dead"), seconds=0))
    load_plugin(plugin)
    (root / "dead").touch()  # not the local one
    local = extract(ask(model="mortal", batch_size=1), settings_of(root), plugins=(plugin,))
    expected, table = contents(latents(root, model="mortal")), local.table.read_bytes()
    shutil.rmtree(latents(root, model="mortal"))
    (root / "dead").unlink()
    asked = ask(model="mortal", batch_size=1, engine="ray", address=cluster.address)
    done = extract(asked, settings_of(root), plugins=(plugin,))
    assert (root / "dead").exists()
    assert (done.extracted, done.failures) == (24, ())
    assert contents(latents(root, model="mortal")) == expected
    assert done.table.read_bytes() == table


def test_ray_without_a_cluster_is_a_wrong_request(root: Path) -> None:
    words = ("extract", "--model", "pixels", "--dataset", "calvin", "--split", "val")
    done = lary(*words, "--engine", "ray", "--address", "127.0.0.1:1", root=root)
    assert done.code == 2
    assert "there is no Ray cluster" in done.err


@pytest.fixture
def model_that(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Registers a model ``trial`` that calls a function before each of its passes; pixels behind it."""
    base = MODELS.get("pixels")

    def register(before: Any) -> None:
        calls = itertools.count(1)

        @register_model(ModelSpec(name="trial", paradigm="baseline", dim=base.dim, preprocess=base.preprocess))
        class Trial:
            def __init__(self, spec: ModelSpec, context: Any) -> None:
                assert base.factory is not None
                self.inner = base.factory(base, context)

            def encode(self, clips: torch.Tensor) -> Latents:
                before(next(calls))
                return self.inner.encode(clips)

    yield register
    MODELS._records.pop("trial", None)


def test_ctrl_c_finishes_the_unit_and_says_how_to_go_on(
    root: Path, model_that: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(call: int) -> None:
        if call == 3:
            os.kill(os.getpid(), signal.SIGINT)

    model_that(interrupt)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lary", "extract", "--model", "trial", "--input", "my table.csv"])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"resume with lary extract --model trial --input 'my table\.csv'") as stop:
        extract(ask(model="trial", batch_size=1), settings_of(root))
    assert stop.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert len(contents(latents(root, model="trial"))) == 8
    assert not (root / "data" / "val_la_calvin_5_trial.csv").exists()
    assert not (latents(root, model="trial") / LOCK).exists()
    done = extract(ask(model="trial", batch_size=1), settings_of(root))
    assert (done.done_before, done.extracted) == (8, 16)


def test_ctrl_c_leaves_what_a_process_has_read_ahead(
    root: Path, counting: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process ends with a unit that it has taken and not begun: it isn't taken for one that died."""
    plugin = counting("hasty", 7, "os.kill(os.getppid(), signal.SIGINT)")
    load_plugin(plugin)

    def in_one_process(job: Any, table: Any, units: Any, device: str, *_: Any, advance: Any, stopped: Any) -> Any:
        return run_processes(job, list(units), [device], stopped, advance)

    monkeypatch.setattr(extraction, "encode_units", in_one_process)
    with pytest.raises(Interrupted, match=r"Stopped: (8|16) of 24 rows are still to be done"):
        extract(ask(model="hasty", batch_size=1, workers=1), settings_of(root), plugins=(plugin,))
    assert "died" not in caplog.text
    assert len(contents(latents(root, model="hasty"))) in (8, 16)


def test_second_ctrl_c_stops_at_once(root: Path, model_that: Any) -> None:
    model_that(lambda call: os.kill(os.getpid(), signal.SIGINT) if call in (2, 3) else None)
    with pytest.raises(KeyboardInterrupt):
        extract(ask(model="trial", batch_size=1), settings_of(root))
    assert len(contents(latents(root, model="trial"))) <= 3
    assert extract(ask(model="trial", batch_size=1), settings_of(root)).rows == 24
