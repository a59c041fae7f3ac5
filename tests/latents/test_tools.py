"""``lary latents``: info, verify, convert, export, and pooled probes from the command line."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lary.configs import ExtractConfig, LatentsConfig
from lary.data.spec import DATASETS
from lary.latents.ref import LatentsRef, SplitLatents, open_latents
from lary.latents.tools import convert_store, export_latents
from lary.locks import LOCK, locked
from lary.runs.extract import FAILURES, TIMING, extract
from tests.helpers import lary as run_lary
from tests.helpers import settings_of
from tests.hostile.harness import bounded, refused
from tests.tree import make_calvin

ASK = ("--model", "pixels", "--dataset", "calvin", "--split", "val")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    make_calvin(root, {"train": 6, "val": 3})
    for split in ("train", "val"):
        assert lary(root, "extract", *ASK[:4], "--split", split, "--batch-size", "2") == 0
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "root")
    return tmp_path / "root"


def lary(root: Path, *words: str) -> int:
    done = run_lary(*words, root=root)
    sys.stdout.write(done.out)
    sys.stderr.write(done.err)
    return done.code


def opened(root: Path) -> SplitLatents:
    return open_latents(settings_of(root), LatentsRef(model="pixels", dataset="calvin", split="val"))


def folder_of(root: Path) -> Path:
    return root / "latent_actions" / "calvin" / "val" / "pixels"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_info_and_verify_of_npz(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder_of(root) / "latent_action_00000002.npz"
    data = bytearray(file.read_bytes())
    data[4000] ^= 1
    file.write_bytes(bytes(data))
    (folder_of(root) / "latent_action_00000005.npz").unlink()
    assert lary(root, "latents", "verify", *ASK) == 1
    told = capsys.readouterr().out
    assert "latent_action_00000002.npz can't be read (Bad CRC-32" in told
    assert "8 rows read, 1 problems" in told
    assert lary(root, "latents", "info", *ASK) == 0
    assert f"missing     1: {opened_id(root, 5)}" in capsys.readouterr().out


def opened_id(root: Path, row: int) -> str:
    from lary.data.tables import read_table

    path = root / "data" / "calvin_metadata_val.csv"
    return read_table(DATASETS.get("calvin"), "val", path=path, data_dir=root)[row].id


def test_convert_there_and_back(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, table = contents(folder_of(root)), root / "data" / "val_la_calvin_5_pixels.csv"
    cells, expected = table.read_bytes(), opened(root).source.read(range(9))
    assert lary(root, "latents", "convert", *ASK, "--store", "shards", "--shard-rows", "4") == 0
    assert {path.name for path in folder_of(root).iterdir()} == {
        "store.json", "index.parquet", "extraction.json", *(f"shard_0000{unit}.safetensors" for unit in range(3))
    }  # fmt: skip
    np.testing.assert_array_equal(opened(root).source.read(range(9)), expected)
    assert lary(root, "latents", "verify", *ASK) == 0
    assert lary(root, "latents", "info", *ASK) == 0
    assert "kind        shards, 3 files" in capsys.readouterr().out
    assert lary(root, "extract", *ASK, "--batch-size", "2", "--store", "shards") == 0
    assert "0 extracted now" in capsys.readouterr().out
    assert lary(root, "extract", *ASK, "--batch-size", "2") == 2
    assert "is a store of kind shards: pass --store shards" in capsys.readouterr().err
    assert lary(root, "latents", "convert", *ASK, "--store", "npz") == 0
    after = contents(folder_of(root))
    npz = [name for name in before if name.endswith(".npz")]
    assert {name: after[name] for name in npz} == {name: before[name] for name in npz}
    assert table.read_bytes() == cells
    assert not [path for path in folder_of(root).parent.iterdir() if path.name.startswith(".")]


def test_convert_to_another_number_format(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = opened(root).source.read(range(9))
    assert lary(root, "latents", "convert", *ASK, "--store", "shards", "--dtype", "bfloat16") == 0
    found = opened(root)
    assert found.store["identity"]["dtype"] == "bfloat16"
    np.testing.assert_allclose(found.source.read(range(9)), expected, rtol=2.0**-8)
    assert lary(root, "latents", "convert", *ASK, "--store", "npz") == 2
    assert ".npz files can't hold it" in capsys.readouterr().err
    assert lary(root, "extract", *ASK, "--store", "shards", "--batch-size", "2") == 2
    assert "dtype 'bfloat16' instead of 'float32'" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["fill", "exchange", "table"])
def test_a_conversion_that_was_stopped_goes_on(root: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = opened(root).source.read(range(9))
    command = ("latents", "convert", *ASK, "--store", "shards", "--shard-rows", "4")

    def stop(*anything: object, **names: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if moment == "fill":
            whole = os.replace
            patched.setattr(os, "replace", lambda old, new: stop() if "d_00001" in str(new) else whole(old, new))
        elif moment == "exchange":
            rename = Path.rename
            patched.setattr(Path, "rename", lambda self, to: stop() if self.name.endswith(".new") else rename(self, to))
        else:
            patched.setattr(shutil, "rmtree", stop)
        assert lary(root, *command) == 130
    if moment == "fill":
        np.testing.assert_array_equal(opened(root).source.read(range(9)), expected)
    assert lary(root, *command) == 0
    np.testing.assert_array_equal(opened(root).source.read(range(9)), expected)
    assert [path.name for path in folder_of(root).parent.iterdir()] == ["pixels"]
    assert lary(root, "latents", "verify", *ASK) == 0


def test_a_conversion_and_an_extraction_wait_for_each_other(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder_of(root))
    with locked(folder_of(root)):
        assert lary(root, "latents", "convert", *ASK, "--store", "shards") == 1
    assert "is being written by process" in capsys.readouterr().err
    assert contents(folder_of(root)) == before
    assert lary(root, "latents", "convert", *ASK, "--store", "shards") == 0
    assert not (folder_of(root) / LOCK).exists(), "the lock went with the old folder"
    assert lary(root, "extract", *ASK, "--batch-size", "2", "--store", "shards") == 0


def test_convert_loses_no_rows_that_the_table_does_not_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lary(root, "extract", *ASK, "--batch-size", "2", "--limit", "4") == 0
    assert lary(root, "latents", "convert", *ASK, "--store", "shards") == 2
    assert "holds latents of 9 rows" in capsys.readouterr().err
    assert len(list(folder_of(root).glob("*.npz"))) == 9


def test_verify_names_bad_rows_of_shards(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lary(root, "latents", "convert", *ASK, "--store", "shards", "--shard-rows", "4") == 0
    file = folder_of(root) / "shard_00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    (folder_of(root) / "shard_00002.safetensors").write_bytes(b"torn")
    assert lary(root, "latents", "verify", *ASK) == 1
    told = capsys.readouterr().out
    assert "shard_00001.safetensors, row 3 (row 8 of the table, sample " in told
    assert "bytes are not those that were written" in told
    assert "shard_00002.safetensors is damaged or no shard" in told
    assert "index.parquet" in told
    assert lary(root, "latents", "info", *ASK) == 0
    told = capsys.readouterr().out
    assert "damaged" in told
    assert "missing     1" in told


def test_export(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latents = opened(root)
    expected, ids = latents.source.read(range(9)), [sample.id for sample in latents.table]
    for kind in ("npz", "safetensors"):
        assert lary(root, "latents", "export", *ASK, "--out", str(tmp_path / f"all.{kind}")) == 0
    with np.load(tmp_path / "all.npz") as found:
        np.testing.assert_array_equal(found["tokens"], expected)
        assert (found["samples"].tolist(), found["rows"].tolist()) == (ids, list(range(9)))
    np.testing.assert_array_equal(load_file(tmp_path / "all.safetensors")["tokens"], expected)
    words = ("--rows", "2-4,7", "--ids", f"{ids[3]},{ids[6]},{ids[0]}")
    assert lary(root, "latents", "export", *ASK, "--out", str(tmp_path / "some.npz"), *words) == 0
    with np.load(tmp_path / "some.npz") as found:
        np.testing.assert_array_equal(found["tokens"], expected[[3, 6]])
    capsys.readouterr()
    for wrong, message in (
        (("--out", "a.npy"), "ends in .npz"),
        (("--out", "a.npz", "--rows", "99"), "row 99 has no latents"),
        (("--out", "a.npz", "--rows", "a"), "is no row or range"),
        (("--out", "a.npz", "--ids", "abc"), "no latents of the sample 'abc'"),
        (("--out", "a.npz", "--rows", "1", "--ids", ids[3]), "No sample is left"),
    ):
        assert lary(root, "latents", "export", *ASK, *wrong) == 2
        assert message in capsys.readouterr().err


def test_wrong_requests(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ("--model", "random-vit", *ASK[2:])
    for command in (("info",), ("verify",), ("convert", "--store", "shards"), ("export", "--out", "a.npz")):
        assert lary(root, "latents", *command, *other) == 2
        told = capsys.readouterr().err
        assert "There are no latents of 'random-vit' for calvin val" in told
        assert "Traceback" not in told
    (folder_of(root) / "store.json").unlink()
    assert lary(root, "latents", "convert", *ASK, "--store", "shards") == 2
    assert "has no identity" in capsys.readouterr().err
    assert lary(root, "latents", "info", *ASK) == 0
    assert "made by another program" in capsys.readouterr().out


ASKED = LatentsConfig(model="pixels", dataset="calvin", split="val")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody else."""
    folder = tmp_path / "victim"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "a.jpg").write_text("precious")
    (folder / "letter").write_text("precious")
    return folder


LOCKS: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda lock, victim: lock.symlink_to(victim / "letter"),
    "link to nowhere": lambda lock, victim: lock.symlink_to(victim / "new"),
    "second name": lambda lock, victim: os.link(victim / "letter", lock),
    "pipe": lambda lock, victim: os.mkfifo(lock),
    "device": lambda lock, victim: lock.symlink_to("/dev/zero"),
    "folder": lambda lock, victim: lock.mkdir(),
}


@pytest.mark.parametrize("case", LOCKS)
def test_lock_that_leads_elsewhere(root: Path, victim: Path, case: str) -> None:
    LOCKS[case](folder_of(root) / LOCK, victim)
    calls: list[Callable[[], object]] = [
        lambda: extract(ExtractConfig(model="pixels", dataset="calvin", split="val"), settings_of(root)),
        lambda: convert_store(ASKED, settings_of(root), kind="shards"),
    ]
    for call in calls:
        refused(root.parent, call, "can't be a lock|Is a directory")


@pytest.mark.parametrize("end", ["new", "old"])
def test_conversion_into_a_link(root: Path, victim: Path, end: str) -> None:
    (folder_of(root).parent / f".pixels.{end}").symlink_to(victim)
    refused(root.parent, lambda: convert_store(ASKED, settings_of(root), kind="shards"), "is a link")


@pytest.mark.parametrize("name", [FAILURES, TIMING])
def test_conversion_keeps_no_links(root: Path, name: str) -> None:
    for target in ("/dev/zero", "/etc/passwd"):
        file = folder_of(root) / name
        file.unlink(missing_ok=True)
        file.symlink_to(target)
        with bounded():
            folder, rows = convert_store(ASKED, settings_of(root), kind="npz" if target == "/etc/passwd" else "shards")
        assert rows == 9
        assert not os.path.lexists(folder / name)


def test_ids_and_rows_without_end(root: Path, tmp_path: Path) -> None:
    def exported(**options: str) -> Callable[[], object]:
        return lambda: export_latents(ASKED, settings_of(root), tmp_path / "out.npz", **options)

    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    refused(tmp_path, exported(ids=str(tmp_path / "bytes")), "can't be read")
    refused(tmp_path, exported(ids=str(tmp_path / "endless")), "no latents of the sample")
    refused(tmp_path, exported(ids="a\0b"), "no latents of the sample")
    refused(tmp_path, exported(rows="1-999999999"), "row 10 has no latents")
    refused(tmp_path, exported(rows="9" * 5000), "no row or range")
    opened = open_latents(settings_of(root), LatentsRef(model="pixels", dataset="calvin", split="val"))
    known = [sample.id for sample in opened.table]
    assert export_latents(ASKED, settings_of(root), tmp_path / "out.npz", ids=",".join(known * 20)) == 9, (
        "no path, but ids"
    )
