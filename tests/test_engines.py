"""Extraction under bad conditions: damaged files, processes that die, interrupts, two starts at once, a full disk."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from lary import locks
from lary.cli import main
from lary.configs import ExtractConfig
from lary.latents import pipeline, reading
from lary.latents.encoding import Encoding
from lary.latents.pipeline import Interrupted
from lary.latents.reading import Batch, Readers
from lary.latents.store import MANIFEST
from lary.models.preprocess import CUBIC_224_IMAGENET, DeviceNormaliser, normalise
from lary.models.spec import MODELS, ModelSpec, Preprocess, register_model
from lary.registry import load_plugin
from lary.runs import extract as extraction
from lary.runs import ray as ray_engine
from lary.runs.engines import run_processes
from lary.runs.estimate import estimate
from lary.runs.extract import extract
from lary.settings import Settings, load_settings
from lary.types import LaryError, Latents, Sample, UsageError
from tests.tree import frame, make_calvin, write_table, write_video


def bad_reader(descriptor: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A reader that hangs or crashes where a file's name says so."""
    answer = reading.reader(descriptor)

    def bad(question: dict[str, Any]) -> dict[str, Any]:
        name = Path(question["paths"][0]).name
        if "hangs" in name:
            time.sleep(600)
        if "crashes" in name:
            os.abort()
        return answer(question)

    return bad


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_calvin(tmp_path, {"val": 8})
    return tmp_path


@pytest.fixture
def bad_decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Readers]:
    """Reading processes that hang or crash where a file's name says so."""
    readers = Readers(f"{__name__}:bad_reader")
    monkeypatch.setattr(reading, "_idle", [readers])
    yield readers
    readers.pool.close()


def settings_of(root: Path) -> Settings:
    return load_settings({"LARY_ROOT": str(root), "DATA_DIR": str(root / "data")}, environment={})


def ask(split: str = "val", dataset: str = "calvin", model: str = "pixels", **changes: Any) -> ExtractConfig:
    return ExtractConfig(model=model, dataset=dataset, split=split, **changes)


def lary(root: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--lary-root", str(root), "--data-dir", str(root / "data")])
    return int(stop.value.code or 0)


def latents(root: Path, dataset: str = "calvin", split: str = "val", model: str = "pixels") -> Path:
    return root / "latent_actions" / dataset / split / model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- damaged files ----------------------------------------------------------------------------------------------------


def damage(folder: Path) -> dict[str, str]:
    """Nine clips, each damaged in its own way; the reason that each one has to get."""
    good = (folder / "0.mp4").read_bytes()
    (folder / "1.mp4").write_bytes(good[: len(good) // 2])
    (folder / "2.mp4").write_bytes(b"")
    (folder / "3.mp4").write_bytes(b"\x89PNG\r\n\x1a\n" + good)
    with av.open(str(folder / "4.mp4"), "w") as container:
        container.add_stream("libx264", rate=10)
        container.start_encoding()
    (folder / "5.mp4").unlink()
    (folder / "6.mp4").unlink()
    os.mkfifo(folder / "6.mp4")
    (folder / "7.mp4").rename(folder / "hangs.mp4")
    (folder / "8.mp4").rename(folder / "crashes.mp4")
    if os.geteuid() == 0:  # permissions don't bind root, a link in a circle does
        (folder / "9.mp4").unlink()
        (folder / "9.mp4").symlink_to("9.mp4")
        closed = "symbolic links"
    else:
        (folder / "9.mp4").chmod(0)
        closed = "denied"
    return {
        "1.mp4": "", "2.mp4": "", "3.mp4": "", "4.mp4": "video stream", "5.mp4": "No such file",
        "6.mp4": "no regular file",
        "hangs.mp4": "no answer within 3 s", "crashes.mp4": "crashed", "9.mp4": closed,
    }  # fmt: skip


def test_five_percent_damaged_files(tmp_path: Path, bad_decoder: Readers) -> None:
    folder = tmp_path / "data" / "classification" / "AgiBotWorld-Beta" / "val"
    write_video(folder / "0.mp4", [frame(0.1 * step, 0.5, (200, 60, 60)) for step in range(9)])
    for index in range(1, 180):
        shutil.copy(folder / "0.mp4", folder / f"{index}.mp4")
    reasons = damage(folder)
    names = {7: "hangs", 8: "crashes"}
    write_table(
        tmp_path / "data" / "robot_1st_metadata_val.csv",
        [{"video_path": f"AgiBotWorld-Beta/val/{names.get(index, index)}.mp4", "action": "pick",
          "sample_indices": "0,2,4"} for index in range(180)],
    )  # fmt: skip
    words = ("extract", "--model", "pixels", "--dataset", "robot_1st", "--split", "val", "--read-timeout", "3")
    assert lary(tmp_path, *words) == 1
    found = rows_of(latents(tmp_path, "robot_1st") / "failures.csv")
    assert {Path(row["path"]).name: True for row in found} == dict.fromkeys(reasons, True)
    assert len(found) == len(reasons)
    for row in found:
        name = Path(row["path"]).name
        assert reasons[name] in row["reason"], row
        assert name in row["reason"]
    written = rows_of(tmp_path / "data" / "val_la_robot_1st_pixels.csv")
    assert [index for index, row in enumerate(written) if not row["la_path"]] == [*range(1, 10)]
    assert len(contents(latents(tmp_path, "robot_1st"))) == 171


def test_retry_failed_takes_only_the_failed_rows(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("extract", "--model", "pixels", "--dataset", "calvin", "--split", "val")
    rows = rows_of(root / "data" / "calvin_metadata_val.csv")
    media = root / "data" / "regression" / "calvin" / "val_stride5"
    assert lary(root, *words, "--retry-failed") == 2
    assert "the last run had no failures" in capsys.readouterr().err
    kept = (media / rows[5]["tgt_img"]).read_bytes()
    (media / rows[5]["tgt_img"]).write_bytes(kept[:100])
    (media / rows[21]["src_img"]).write_bytes(b"")
    assert lary(root, *words) == 1
    found = rows_of(latents(root) / "failures.csv")
    assert [(row["row"], row["path"]) for row in found] == [("6", rows[5]["tgt_img"]), ("22", rows[21]["src_img"])]
    (latents(root) / "latent_action_00000010.npz").unlink()
    (media / rows[5]["tgt_img"]).write_bytes(kept)
    assert lary(root, *words, "--retry-failed") == 1
    assert "1 of 24 rows are still to be done" in capsys.readouterr().err
    assert [row["row"] for row in rows_of(latents(root) / "failures.csv")] == ["22"]
    assert len(contents(latents(root))) == 24 - 2
    assert lary(root, *words) == 1
    assert "24 rows, 1 extracted now, 1 failed" in capsys.readouterr().out


# --- processes that die -----------------------------------------------------------------------------------------------

MORTAL = """
    import os, signal, time
    from pathlib import Path
    from lary.models.spec import MODELS, ModelSpec, register_model

    base = MODELS.get("pixels")

    @register_model(ModelSpec(name="mortal", paradigm="baseline", dim=base.dim, preprocess=base.preprocess))
    class Mortal:
        calls = 0

        def __init__(self, spec, context):
            self.inner = base.factory(base, context)

        def encode(self, clips):
            Mortal.calls += 1
            if Mortal.calls == 3:
                try:
                    Path({flag!r}).touch(exist_ok=False)
                except FileExistsError:
                    pass
                else:
                    time.sleep({seconds})
                    os.kill(os.getpid(), signal.SIGKILL)
            return self.inner.encode(clips)
"""


@pytest.mark.parametrize("seconds", [0, 5], ids=["while the other works", "after the other has found nothing left"])
def test_the_rows_of_a_process_that_dies_are_done_by_another(
    root: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    plugin = root / "mortal.py"
    plugin.write_text(textwrap.dedent(MORTAL.format(flag=str(root / "dead"), seconds=seconds)))
    monkeypatch.setattr(extraction, "pick_devices", lambda gpus, choice: ["cpu", "cpu"])
    words = ("extract", "--model", "mortal", "--dataset", "calvin", "--split", "val", "--batch-size", "1")
    try:
        assert lary(root, *words, "--plugin", str(plugin)) == 0
    finally:
        MODELS._records.pop("mortal", None)
    assert (root / "dead").exists()
    extract(ask(batch_size=1), settings_of(root))
    arrays = [np.load(latents(root, model=model) / "latent_action_00000017.npz")["tokens"] for model in
              ("mortal", "pixels")]  # fmt: skip
    assert np.array_equal(*arrays)
    assert len(contents(latents(root, model="mortal"))) == 24


# --- a Ray cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(ray_engine, "TASK_ROWS", 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        nodes.add_node(num_cpus=2)
        yield nodes
        nodes.shutdown()


def test_ray_gives_the_same_files_though_an_actor_is_killed(root: Path, cluster: Any) -> None:
    plugin = root / "mortal.py"
    plugin.write_text(textwrap.dedent(MORTAL.format(flag=str(root / "dead"), seconds=0)))
    load_plugin(plugin)
    (root / "dead").touch()  # not the local one
    try:
        local = extract(ask(model="mortal", batch_size=1), settings_of(root), plugins=(plugin,))
        expected, table = contents(latents(root, model="mortal")), local.table.read_bytes()
        shutil.rmtree(latents(root, model="mortal"))
        (root / "dead").unlink()
        done = extract(
            ask(model="mortal", batch_size=1, engine="ray", address=cluster.address), settings_of(root),
            plugins=(plugin,),
        )  # fmt: skip
    finally:
        MODELS._records.pop("mortal", None)
    assert (root / "dead").exists()
    assert (done.extracted, done.failures) == (24, ())
    assert contents(latents(root, model="mortal")) == expected
    assert done.table.read_bytes() == table


def test_ray_without_a_cluster_is_a_wrong_request(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("extract", "--model", "pixels", "--dataset", "calvin", "--split", "val")
    assert lary(root, *words, "--engine", "ray", "--address", "127.0.0.1:1") == 2
    assert "there is no Ray cluster" in capsys.readouterr().err


# --- interrupts -------------------------------------------------------------------------------------------------------


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
    assert not (latents(root, model="trial") / locks.LOCK).exists()
    done = extract(ask(model="trial", batch_size=1), settings_of(root))
    assert (done.done_before, done.extracted) == (8, 16)


HASTY = """
    import os, signal
    from lary.models.spec import MODELS, ModelSpec, register_model

    base = MODELS.get("pixels")

    @register_model(ModelSpec(name="hasty", paradigm="baseline", dim=base.dim, preprocess=base.preprocess))
    class Hasty:
        calls = 0

        def __init__(self, spec, context):
            self.inner = base.factory(base, context)

        def encode(self, clips):
            Hasty.calls += 1
            if Hasty.calls == 7:
                os.kill(os.getppid(), signal.SIGINT)
            return self.inner.encode(clips)
"""


def test_ctrl_c_leaves_what_a_process_has_read_ahead(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process ends with a unit that it has taken and not begun: it isn't taken for one that died."""
    plugin = root / "hasty.py"
    plugin.write_text(textwrap.dedent(HASTY))
    load_plugin(plugin)

    def in_one_process(job: Any, table: Any, units: Any, device: str, encoder: Any, *more: Any) -> Any:
        return run_processes(job, units, [device], *more)

    monkeypatch.setattr(extraction, "run_here", in_one_process)
    try:
        with pytest.raises(Interrupted, match=r"Stopped: (8|16) of 24 rows are still to be done"):
            extract(ask(model="hasty", batch_size=1, workers=1), settings_of(root), plugins=(plugin,))
    finally:
        MODELS._records.pop("hasty", None)
    assert "died" not in caplog.text
    assert len(contents(latents(root, model="hasty"))) in (8, 16)


def test_second_ctrl_c_stops_at_once(root: Path, model_that: Any) -> None:
    model_that(lambda call: os.kill(os.getpid(), signal.SIGINT) if call in (2, 3) else None)
    with pytest.raises(KeyboardInterrupt):
        extract(ask(model="trial", batch_size=1), settings_of(root))
    assert len(contents(latents(root, model="trial"))) <= 3
    assert extract(ask(model="trial", batch_size=1), settings_of(root)).rows == 24


# --- two starts at once -----------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_is_at_work(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("extract", "--model", "pixels", "--dataset", "calvin", "--split", "val")
    with locks.locked(latents(root)):
        assert lary(root, *words) == 1
        assert f"by process {os.getpid()} on " in capsys.readouterr().err
        assert not contents(latents(root))
    assert lary(root, *words) == 0


# --- disk and dry run -------------------------------------------------------------------------------------------------


def test_too_little_disk_is_refused_before_anything_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)._replace(free=100_000)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(LaryError, match=r"24 rows of 2x64x50 float32 need 0\.0 GB"):
        extract(ask(), settings_of(root))
    assert not contents(latents(root))


def test_dry_run_measures_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(root.rglob("*"))
    assert lary(root, "extract", "--model", "pixels", "--dataset", "calvin", "--split", "val", "--dry-run") == 0
    assert sorted(root.rglob("*")) == before
    assert "24 samples, 0 done, 24 to do" in capsys.readouterr().out
    found = estimate(ask(batch_size=4), settings_of(root))
    assert found.measured == 16
    assert found.seconds is not None
    extract(ask(batch_size=4, limit=8), settings_of(root))
    files = contents(latents(root))
    again = estimate(ask(batch_size=4), settings_of(root))
    assert (again.done, again.rows) == (8, 24)
    per_row = sum(map(len, files.values())) / len(files)
    assert abs(again.bytes_to_write - 16 * per_row) < 0.01 * again.bytes_to_write
    assert contents(latents(root)) == files
    assert (latents(root) / MANIFEST).exists()
    with pytest.raises(UsageError, match="read-timeout"):
        estimate(ask(read_timeout=0), settings_of(root))
    for picture in (root / "data" / "regression").rglob("*.png"):
        picture.write_bytes(b"")
    nothing = estimate(ask(batch_size=4), settings_of(root))
    assert nothing.text().count("unknown") == 2, "neither time nor bytes where nothing could be measured"
    assert nothing.failures


# --- stages -----------------------------------------------------------------------------------------------------------


def test_normalising_on_a_device_gives_the_same_bits() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 9, 7), dtype=np.uint8)
    for record in (
        CUBIC_224_IMAGENET,
        Preprocess(),
        Preprocess(scale=1, mean=(0.5, 0, 0.1)),
        Preprocess(std=(2, 1, 3)),
    ):
        wanted = normalise(planes, record)
        found = DeviceNormaliser(record, "cpu")(torch.from_numpy(planes)).numpy()
        assert wanted.dtype == found.dtype == np.float32
        assert wanted.tobytes() == found.tobytes()
        by_hand = (planes.astype(np.float32) / np.float32(record.scale)
                   - np.float32(record.mean)[:, None, None]) / np.float32(record.std)[:, None, None]  # fmt: skip
        assert np.array_equal(wanted, by_hand)


def test_batches_on_an_accelerator_give_what_single_rows_give() -> None:
    """Rows of different lengths, some unreadable, two batches under way at once."""

    class Sums:
        def encode(self, clips: torch.Tensor) -> Latents:
            return Latents(clips.sum((3, 4)).unsqueeze(2), clips.sum((2, 3, 4)).long().unsqueeze(2))

    record = Preprocess(size=8, mean=(0.5, 0.5, 0.5))
    rng = np.random.default_rng(1)

    def batch(first: int) -> Batch:
        rows, lengths = [first, first + 1, first + 3], [4, 2, 4]
        samples = [Sample(str(row), row, ("a",), (), "", "", "") for row in rows]
        clips = rng.integers(0, 256, (4, 4, 3, 8, 8), dtype=np.uint8)
        problems = {first + 3: "torn"} if first == 4 else {}
        return Batch(0, rows, [0, 1, 3], samples, [{"paths": ["a"]}] * 3, lengths, clips, problems)

    batches = [batch(0), batch(4), batch(8)]
    results = []
    for accelerated in (False, True):
        encoding = Encoding(Sums(), record, "cpu", "none")
        if accelerated:
            encoding._normalise = DeviceNormaliser(record, "cpu")
        released: list[Batch] = []
        found = {}
        for current, rows in encoding.stream(batches, released.append):
            assert current not in released
            for index, tokens, codes in rows:
                assert codes is not None
                found[current.rows[index]] = (tokens.tobytes(), tokens.shape, codes.tobytes())
        assert released == batches
        results.append(found)
    assert results[0] == results[1]
    assert sorted(results[0]) == [0, 1, 3, 4, 5, 8, 9, 11]
