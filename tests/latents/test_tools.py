"""``lary latents``: info, verify, convert and export."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.configs import ConvertConfig, ExtractConfig
from lary.latents.ref import LatentsRef, open_latents
from lary.latents.tools import convert_store
from lary.runs.extract import extract
from tests.helpers import contents, fails, printed, settings_of

ASK = ("--model", "pixels", "--dataset", "calvin", "--split", "val")
CONFIG = ExtractConfig(model="pixels", dataset="calvin", split="val", batch_size=2)


@pytest.fixture
def root(root: Path) -> Path:
    extract(CONFIG, settings_of(root))
    return root


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
    torn = ("latent_action_00000002.npz can't be read (Bad CRC-32", "8 rows read, 1 problems")
    printed("latents", "verify", *ASK, root=root, code=1, has=torn)
    lines = ("kind        npz, 8 files", "rows        8", "tokens      2 x 64 x 50 float32", "model       pixels")
    printed("latents", "info", *ASK, root=root, has=(*lines, f"missing     1: {absent}"))
    manifest = folder_of(root) / "store.json"
    manifest.write_text(manifest.read_text().replace('"key": "', '"key": "another '))
    np.savez(folder_of(root) / "latent_action_00000005.npz", tokens=np.ones((2, 64, 50), np.float32), indices=[])
    foreign = ("00000.npz belongs to another store", "00005.npz belongs to another store", "9 problems")
    printed("latents", "verify", *ASK, root=root, code=1, has=foreign)
    manifest.unlink()
    np.savez(folder_of(root) / "latent_action_00000006.npz", tokens=np.full((2, 64, 50), np.inf, np.float32))
    printed("latents", "verify", *ASK, root=root, code=1, has=["00006.npz holds values that are not finite"])
    (root / "data" / "calvin_metadata_val.csv").unlink()
    printed("latents", "info", *ASK, root=root, has=["made by another program", "unknown: the table isn't here"])


def test_info_and_verify_name_bad_rows_of_shards(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = ("--store", "shards", "--shard-rows", "4", "--batch-size", "2")
    printed("extract", *ASK, *again, root=root, code=2, has=["store of kind npz: pass --store npz, or --overwrite"])
    printed("extract", *ASK, *again, "--overwrite", root=root)
    assert not list(folder_of(root).glob("*.npz"))
    printed("latents", "verify", *ASK, root=root)
    flip(folder_of(root) / "shard_00001.safetensors", -1)
    (folder_of(root) / "shard_00002.safetensors").write_bytes(b"torn")
    row = "shard_00001.safetensors, row 3 (row 8 of the table, sample "
    torn = "shard_00002.safetensors is damaged or no shard"
    printed("latents", "verify", *ASK, root=root, code=1, has=[row, torn, "bytes are not those that were written"])
    printed("latents", "info", *ASK, root=root, has=["kind        shards, 2 files", "damaged", "missing     1"])
    for dtype, value in (("float16", np.float16(np.nan)), ("bfloat16", np.uint16(0x7F80))):
        monkeypatch.setattr("lary.latents.writers.narrow", lambda tokens, _, value=value: np.full(tokens.shape, value))
        printed("extract", *ASK, *again, "--overwrite", "--dtype", dtype, root=root)
        wrong = ["it holds values that are not finite", "9 problems"]
        printed("latents", "verify", *ASK, root=root, code=1, has=wrong)


@pytest.mark.parametrize("moment", ["2 shards", "manifest", "table", "old files", None])
def test_convert_goes_on_after_a_kill(root: Path, moment: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, folder = settings_of(root), folder_of(root)
    table, before = root / "data" / "val_la_calvin_5_pixels.csv", contents(folder, "*.npz")
    cells, expected = table.read_bytes(), open_latents(settings, LatentsRef.of(CONFIG)).source.read(range(9))
    config = ConvertConfig(model="pixels", dataset="calvin", split="val", store="shards", shard_rows=4)
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
            fails(KeyboardInterrupt, "", convert_store, config, settings)
        np.testing.assert_array_equal(open_latents(settings, LatentsRef.of(CONFIG)).source.read(range(9)), expected)
    (folder / "index.parquet").touch()  # of version 0.1
    assert convert_store(config, settings) == 9
    assert {path.name for path in folder.iterdir()} == {
        "store.json", "extraction.json", "media_00000.txt", *(f"shard_0000{unit}.safetensors" for unit in range(3))
    }  # fmt: skip
    np.testing.assert_array_equal(open_latents(settings, LatentsRef.of(CONFIG)).source.read(range(9)), expected)
    printed("extract", *ASK, "--store", "shards", "--batch-size", "2", root=root, has=["0 extracted now"])
    printed("latents", "convert", *ASK, "--store", "npz", root=root, has=["9 rows in npz"])
    assert (contents(folder, "*.npz"), table.read_bytes()) == (before, cells)


def test_convert_narrows_and_refuses_what_would_lose_rows_or_identity(root: Path) -> None:
    def convert(has: str, *words: str, code: int = 2) -> None:
        printed("latents", "convert", *ASK, *words, root=root, code=code, has=[has])

    settings, table = settings_of(root), root / "data" / "val_la_calvin_5_pixels.csv"
    expected, cells = open_latents(settings, LatentsRef.of(CONFIG)).source.read(range(9)), table.read_bytes()
    convert("only float32 is converted, and only into the other kind", "--store", "npz", "--dtype", "float16")
    convert("--shard-rows 0: must be at least 1", "--store", "shards", "--shard-rows", "0")
    printed("extract", *ASK, "--batch-size", "2", "--limit", "4", root=root)
    convert("names fewer rows", "--store", "shards")
    table.write_bytes(cells)
    convert("9 rows in shards", "--store", "shards", "--dtype", "bfloat16", code=0)
    found = open_latents(settings, LatentsRef.of(CONFIG))
    assert found.store["identity"]["dtype"] == "bfloat16"
    np.testing.assert_allclose(found.source.read(range(9)), expected, rtol=2.0**-8)
    convert(".npz files can't hold it", "--store", "npz")
    convert("holds bfloat16 in shards; only float32", "--store", "npz", "--dtype", "float16")
    table.unlink()
    convert("run 'lary extract' first", "--store", "shards")
    (folder_of(root) / "store.json").unlink()
    convert("has no identity", "--store", "shards")


def test_export(root: Path, tmp_path: Path) -> None:
    latents = open_latents(settings_of(root), LatentsRef.of(CONFIG))
    expected, ids = latents.source.read(range(9)), [sample.id for sample in latents.table]
    for name, rows in (("all.npz", ()), ("some.npz", ("--rows", "7,2-4"))):
        printed("latents", "export", *ASK, "--out", tmp_path / name, *rows, root=root)
    with np.load(tmp_path / "all.npz") as found:
        np.testing.assert_array_equal(found["tokens"], expected)
        assert (found["samples"].tolist(), found["rows"].tolist()) == (ids, list(range(9)))
        assert found["tokens"].dtype == np.float32
    with np.load(tmp_path / "some.npz") as found:
        np.testing.assert_array_equal(found["tokens"], expected[found["rows"]])
        assert found["rows"].tolist() == [1, 2, 3, 6]
    printed("latents", "export", *ASK, "--out", "a.npy", root=root, code=2, has=["ends in .npz"])
    wrong = {"99": "row 99 has no latents", "1-999999999": "row 10 has no latents", "9" * 5000: "is no row or range"}
    for rows, message in wrong.items():
        printed("latents", "export", *ASK, "--out", "a.npz", "--rows", rows, root=root, code=2, has=[message])


@pytest.mark.parametrize("command", [("info",), ("verify",), ("export", "--out", "a.npz")])
def test_latents_that_nobody_has_extracted(root: Path, command: tuple[str, ...]) -> None:
    message = "There are no latents of 'random-vit' for calvin val"
    printed("latents", *command, "--model", "random-vit", *ASK[2:], root=root, code=2, has=[message])
