"""``lary latents``: info, verify, convert and export."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lary.configs import ConvertConfig, ExtractConfig
from lary.latents.ref import LatentsRef, open_latents
from lary.latents.tools import convert_store
from lary.runs.extract import extract
from tests.helpers import lary, settings_of
from tests.latents.conftest import contents

ASK = ("--model", "pixels", "--dataset", "calvin", "--split", "val")
CONFIG = ExtractConfig(model="pixels", dataset="calvin", split="val", batch_size=2)


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    shutil.copytree(tree, tmp_path / "root")
    extract(CONFIG, settings_of(tmp_path / "root"))
    return tmp_path / "root"


def folder_of(root: Path) -> Path:
    return root / "latent_actions" / "calvin" / "val" / "pixels"


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(bytes(data))


def test_info_and_verify_of_npz(root: Path) -> None:
    absent = open_latents(settings_of(root), LatentsRef.of(CONFIG)).table[5].id
    flip(folder_of(root) / "latent_action_00000002.npz", 4000)
    (folder_of(root) / "latent_action_00000005.npz").unlink()
    done = lary("latents", "verify", *ASK, root=root)
    assert done.code == 1
    assert "latent_action_00000002.npz can't be read (Bad CRC-32" in done.out
    assert "8 rows read, 1 problems" in done.out
    done = lary("latents", "info", *ASK, root=root)
    for line in ("kind        npz, 8 files", "rows        8", "tokens      2 x 64 x 50 float32", "model       pixels"):
        assert line in done.out
    assert f"missing     1: {absent}" in done.out
    (folder_of(root) / "store.json").unlink()
    assert "made by another program" in lary("latents", "info", *ASK, root=root).out


def test_info_and_verify_name_bad_rows_of_shards(root: Path) -> None:
    again = ("--store", "shards", "--shard-rows", "4", "--batch-size", "2")
    done = lary("extract", *ASK, *again, root=root)
    assert (done.code, "store of kind npz: pass --store npz, or --overwrite" in done.err) == (2, True)
    assert lary("extract", *ASK, *again, "--overwrite", root=root).code == 0
    assert not list(folder_of(root).glob("*.npz"))
    assert lary("latents", "verify", *ASK, root=root).code == 0
    flip(folder_of(root) / "shard_00001.safetensors", -1)
    (folder_of(root) / "shard_00002.safetensors").write_bytes(b"torn")
    done = lary("latents", "verify", *ASK, root=root)
    assert done.code == 1
    assert "shard_00001.safetensors, row 3 (row 8 of the table, sample " in done.out
    assert "bytes are not those that were written" in done.out
    assert "shard_00002.safetensors is damaged or no shard" in done.out
    done = lary("latents", "info", *ASK, root=root)
    assert "kind        shards, 2 files" in done.out
    assert "damaged" in done.out
    assert "missing     1" in done.out


@pytest.mark.parametrize("moment", ["2 shards", "manifest", "table", "old files", None])
def test_convert_goes_on_after_a_kill(root: Path, moment: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, folder = settings_of(root), folder_of(root)
    table, before = root / "data" / "val_la_calvin_5_pixels.csv", contents(folder)
    cells, expected = table.read_bytes(), open_latents(settings, LatentsRef.of(CONFIG)).source.read(range(9))
    asked = {"model": "pixels", "dataset": "calvin", "split": "val"}
    config = ConvertConfig(**asked, store="shards", shard_rows=4)  # type: ignore[arg-type]
    if moment:
        calls = iter(range(99))
        at = {"2 shards": 2, "manifest": 3, "table": 4, "old files": 3}[moment]
        owner, name = (Path, "unlink") if moment == "old files" else (os, "replace")
        true = getattr(owner, name)

        def dies(*arguments: Any, **more: Any) -> Any:
            if (name == "replace" or arguments[0].suffix == ".npz") and next(calls) == at:
                raise KeyboardInterrupt
            return true(*arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies)
            with pytest.raises(KeyboardInterrupt):
                convert_store(config, settings)
        np.testing.assert_array_equal(open_latents(settings, LatentsRef.of(CONFIG)).source.read(range(9)), expected)
    assert convert_store(config, settings) == 9
    assert {path.name for path in folder.iterdir()} == {
        "store.json", "extraction.json", *(f"shard_0000{unit}.safetensors" for unit in range(3))
    }  # fmt: skip
    np.testing.assert_array_equal(open_latents(settings, LatentsRef.of(CONFIG)).source.read(range(9)), expected)
    assert "0 extracted now" in lary("extract", *ASK, "--store", "shards", "--batch-size", "2", root=root).out
    assert "9 rows in npz" in lary("latents", "convert", *ASK, "--store", "npz", root=root).out
    npz = [name for name in before if name.endswith(".npz")]
    assert {name: data for name, data in contents(folder).items() if name.endswith("npz")} == {
        name: before[name] for name in npz
    }
    assert table.read_bytes() == cells


def test_convert_narrows_and_refuses_what_would_lose_rows_or_identity(root: Path) -> None:
    def convert(*words: str) -> str:
        done = lary("latents", "convert", *ASK, *words, root=root)
        assert done.code == (0 if done.out else 2)
        return done.out + done.err

    settings, table = settings_of(root), root / "data" / "val_la_calvin_5_pixels.csv"
    expected, cells = open_latents(settings, LatentsRef.of(CONFIG)).source.read(range(9)), table.read_bytes()
    assert "only float32 is converted, and only into the other kind" in convert("--store", "npz", "--dtype", "float16")
    assert "--shard-rows 0: must be at least 1" in convert("--store", "shards", "--shard-rows", "0")
    assert lary("extract", *ASK, "--batch-size", "2", "--limit", "4", root=root).code == 0
    assert "names fewer rows" in convert("--store", "shards")
    table.write_bytes(cells)
    assert "9 rows in shards" in convert("--store", "shards", "--dtype", "bfloat16")
    found = open_latents(settings, LatentsRef.of(CONFIG))
    assert found.store["identity"]["dtype"] == "bfloat16"
    np.testing.assert_allclose(found.source.read(range(9)), expected, rtol=2.0**-8)
    assert ".npz files can't hold it" in convert("--store", "npz")
    assert "holds bfloat16 in shards; only float32" in convert("--store", "npz", "--dtype", "float16")
    (folder_of(root) / "store.json").unlink()
    assert "has no identity" in convert("--store", "shards")


def test_export(root: Path, tmp_path: Path) -> None:
    latents = open_latents(settings_of(root), LatentsRef.of(CONFIG))
    expected, ids = latents.source.read(range(9)), [sample.id for sample in latents.table]
    for kind in ("npz", "safetensors"):
        assert lary("latents", "export", *ASK, "--out", tmp_path / f"all.{kind}", root=root).code == 0
    with np.load(tmp_path / "all.npz") as found:
        np.testing.assert_array_equal(found["tokens"], expected)
        assert (found["samples"].tolist(), found["rows"].tolist()) == (ids, list(range(9)))
    np.testing.assert_array_equal(load_file(tmp_path / "all.safetensors")["tokens"], expected)
    assert lary("latents", "export", *ASK, "--out", tmp_path / "some.npz", "--rows", "7,2-4", root=root).code == 0
    with np.load(tmp_path / "some.npz") as found:
        np.testing.assert_array_equal(found["tokens"], expected[[1, 2, 3, 6]])
    for wrong, message in (
        (("--out", "a.npy"), "ends in .npz"),
        (("--out", "a.npz", "--rows", "99"), "row 99 has no latents"),
        (("--out", "a.npz", "--rows", "1-999999999"), "row 10 has no latents"),
        (("--out", "a.npz", "--rows", "9" * 5000), "is no row or range"),
    ):
        done = lary("latents", "export", *ASK, *wrong, root=root)
        assert (done.code, message in done.err) == (2, True)


@pytest.mark.parametrize("command", [("info",), ("verify",), ("export", "--out", "a.npz")])
def test_latents_that_nobody_has_extracted(root: Path, command: tuple[str, ...]) -> None:
    done = lary("latents", *command, "--model", "random-vit", *ASK[2:], root=root)
    assert done.code == 2
    assert "There are no latents of 'random-vit' for calvin val" in done.err
