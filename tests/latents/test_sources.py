"""Latents read back: both layouts as other programs and hostile ones may have written them."""

import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lary.data.tables import SampleTable
from lary.latents.ref import SplitLatents
from lary.latents.sources import MOST_BYTES, NpzSource, ShardSource, Stamp, read_shard, read_stamp, read_tokens
from lary.latents.writers import ShardStore, write_latents
from lary.probes.sources import wide
from lary.types import LaryError, MediaError
from tests.helpers import fails
from tests.hostile.harness import write_zip
from tests.latents.conftest import IDENTITY, draw, fill, shards_in, source_of
from tests.test_arrays import announce, npy

ROWS = 3
TOKENS = ROWS * 8 * 4
SQUARE = npy(announce("(2, 2)"), data=b"ABCDEFGHIJKLMNOP")


def test_stamps(tmp_path: Path) -> None:
    file, stamp = tmp_path / "a.npz", Stamp("0123", "abcd", "modèle")
    write_latents(file, draw(1)[0], np.arange(6).reshape(2, 3), stamp)
    assert read_stamp(file) == stamp
    with np.load(file, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["tokens"], draw(1)[0])
        np.testing.assert_array_equal(found["indices"], np.arange(6).reshape(2, 3))
    whole = file.read_bytes()
    for torn in (whole[:-1], whole[: len(whole) // 2], b"", b"PK\x05\x06"):
        file.write_bytes(torn)
        assert read_stamp(file) is None
    np.savez(file, tokens=draw(1)[0])
    assert read_stamp(file) is None, "it is of another program"
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"[" * 60_000
    assert read_stamp(file) is None


def test_sizes_that_contradict_the_file_are_refused_before_anything_unpacks(tmp_path: Path) -> None:
    file, size = tmp_path / "latents.npz", 80 << 20
    write_zip(file, {"tokens.npy": npy(announce(f"(1, {size // 4})"), data=bytes(size))})
    assert file.stat().st_size < size / 100
    fails(MediaError, "which is refused", read_tokens, file)
    write_zip(file, {"tokens.npy": SQUARE}, zipfile.ZIP_STORED)
    data = bytearray(file.read_bytes())
    for claimed in (MOST_BYTES + 1, 1 << 20):
        struct.pack_into("<L", data, data.rfind(b"PK\x01\x02") + 24, claimed)
        file.write_bytes(bytes(data))
        fails(MediaError, r"latents\.npz", read_tokens, file)


def test_damaged_bytes_and_odd_archives_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "latents.npz"
    write_zip(file, {"tokens.npy": SQUARE}, zipfile.ZIP_STORED)
    whole = file.read_bytes()
    encrypted = bytearray(whole)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.find(signature) + offset] |= 1
    for data, message in ((whole.replace(b"ABCD", b"ABCE", 1), "CRC"), (bytes(encrypted), "encrypted")):
        file.write_bytes(data)
        fails(MediaError, message, read_tokens, file)
    write_zip(file, {"tokens.npy": SQUARE}, zipfile.ZIP_LZMA)
    fails(MediaError, "packed by method", read_tokens, file)
    write_zip(file, {"../a.npy": SQUARE}, zipfile.ZIP_STORED)
    fails(MediaError, "no array 'tokens'", read_tokens, file)


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "<i4", "|u1"])
def test_other_number_formats_and_orders_are_read(tmp_path: Path, kind: str) -> None:
    file, tokens = tmp_path / "latents.npz", np.arange(24).reshape(2, 3, 4).astype(kind)
    for array in (tokens, np.asfortranarray(tokens)):
        np.savez_compressed(file, tokens=array, indices=np.array([]))
        np.testing.assert_array_equal(NpzSource([file]).read([0])[0], tokens.astype(np.float32))
    buffer = io.BytesIO()
    np.save(buffer, tokens)
    write_zip(file, {"tokens.npy": buffer.getvalue()})
    assert NpzSource([file]).read([0]).dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "read"),
    [((5,), (1, 5)), ((3, 5), (3, 5)), ((2, 3, 5), (2, 3, 5)), ((9, 2, 2, 24), (9, 4, 24)), ((2, 3, 2, 5), (2, 6, 5))],
)  # fmt: skip
def test_all_axes_between_the_first_and_the_last_are_tokens(
    tmp_path: Path, shape: tuple[int, ...], read: tuple[int, ...]
) -> None:
    tokens = draw(1, shape)[0]
    np.savez(tmp_path / "a.npz", tokens=tokens)
    source = NpzSource([tmp_path / "a.npz"])
    assert source.shape == read
    np.testing.assert_array_equal(source.read([0])[0], tokens.reshape(read))
    assert source.codes([0]) == [None]
    np.savez(tmp_path / "b.npz", tokens=tokens + 1)  # a reader mixes no latents of two extractions
    os.replace(tmp_path / "b.npz", tmp_path / "a.npz")
    for reader in (source, source.take([0])):
        fails(LaryError, "a.npz was changed while it was in use", reader.read, [0])


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1), (1, 2, 3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_shards_give_back_what_was_written(
    tmp_path: Path, table: SampleTable, dtype: Any, shape: tuple[int, ...]
) -> None:
    tokens, codes = draw(9, shape), np.arange(9 * math.prod(shape[:-1])).reshape(9, *shape[:-1])
    store = shards_in(tmp_path, dtype=dtype)
    assert store.missing(table) == list(range(9))
    fill(store, table, tokens, range(9), codes)
    assert store.missing(table) == []
    source = source_of(store, table)
    expected = torch.from_numpy(tokens).to(getattr(torch, dtype)).float().numpy()
    first = source.read([7, 0, 7, 3])
    part = first[1:]
    for _ in range(3):  # the memory of a batch is used again, but not while something refers to it
        np.testing.assert_array_equal(source.read(np.arange(9)), expected)
    np.testing.assert_array_equal(first, expected[[7, 0, 7, 3]])
    del first
    source.read([1, 2, 4, 5])
    np.testing.assert_array_equal(part, expected[[0, 7, 3]])
    np.testing.assert_array_equal(source.take([5, 2]).read([1, 0]), expected[[2, 5]])
    split = SplitLatents(table, source, {}, 0, tmp_path)
    assert split.on("cpu") is split
    stored = split.on("cuda:1").source.read([7, 0])
    assert stored.dtype == (dtype if dtype != "bfloat16" else "uint16"), "CUDA widens it"
    np.testing.assert_array_equal(wide(stored).astype(np.float32), expected[[7, 0]])
    assert source.read([1]).dtype == np.float32
    assert source.read([]).shape == (0, *expected.shape[1:])
    if dtype != "bfloat16":  # numpy has no such numbers
        found = load_file(store.folder / "shard_00000.safetensors")
        np.testing.assert_array_equal(found["tokens"], tokens[:4].astype(dtype))
        np.testing.assert_array_equal(found["codes"], codes[:4])
    np.testing.assert_array_equal(source.codes([8])[0], codes[8])
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own)
    np.testing.assert_array_equal(copy.read([4]), expected[[4]])
    assert (np.abs(expected - tokens) <= np.abs(tokens) * 2.0**-8).all()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    with ShardStore(tmp_path, IDENTITY, ROWS).writer(0) as write:
        for row in range(ROWS):
            write(row, f"{row:04d}", np.full((1, 2, 4), row, np.float32), np.full((1, 2), row))
    return tmp_path / "shard_00000.safetensors"


def rewritten(file: Path, change: Callable[[dict[str, Any]], object], extra: bytes = b"") -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :] + extra)


def tensor(name: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(fields)


def facts(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return tensor("__metadata__", **fields)


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "offsets beyond the file": tensor("codes", data_offsets=[TOKENS, TOKENS + 1 << 40]),
    "a huge shape": tensor("tokens", shape=[1 << 60, 1 << 60, 4]),
    "a shape without end": tensor("tokens", shape=[1] * 500),
    "a wider number format": tensor("tokens", dtype="BF16"),
    "no tokens": lambda header: header.pop("tokens"),
    "another tensor": lambda header: header.update(more=header["codes"]),
    "no metadata": lambda header: header.pop("__metadata__"),
    "metadata that is a list": lambda header: header.update(__metadata__=[1]),
    "another format": facts(format="lary-latents-9"),
    **{f"rows {rows[:9]}": facts(rows=rows) for rows in ("0,2,1", "-1,0,1", "0,1," + "9" * 5000, "0,1," + "9" * 20)},
    "too few samples": facts(samples="0000,0001"),
    **{f"checksums {values}": facts(checksums=values) for values in ("x,y,z", "fffffffff,1,1")},
    "rows of codes that are fewer": tensor("codes", shape=[2, 1, 2], data_offsets=[TOKENS, TOKENS + 32]),
}
NO_SHARDS = {"empty": b"", "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000, "a pickle": b"\x80\x04K\x01." * 9}


@pytest.mark.parametrize("case", [*LIES, *NO_SHARDS, "bytes behind the last tensor"])
def test_what_is_no_shard_is_refused(shard: Path, case: str) -> None:
    rewritten(shard, lambda header: None)
    read_shard(shard)
    if case in NO_SHARDS:
        shard.write_bytes(NO_SHARDS[case])
    else:
        rewritten(shard, LIES.get(case, lambda header: None), extra=b"" if case in LIES else b"x")
    fails(LaryError, r"shard_00000.safetensors is damaged or no shard", read_shard, shard)


def test_links_and_other_kinds_of_files_are_refused(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shard)
    os.mkfifo(tmp_path / "pipe")
    for name, words in {"link": "is a link", "": "Is a directory", "no": "can't be opened", "pipe": "regular"}.items():
        fails(LaryError, words, read_shard, tmp_path / name)


def test_a_file_that_is_exchanged_between_check_and_use_is_noticed(shard: Path, tmp_path: Path) -> None:
    source = ShardSource([read_shard(shard)], np.zeros(ROWS, np.int64), np.arange(ROWS))
    other = tmp_path / "other"
    other.write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(other)
    fails(LaryError, "is a link", source.read, [0])
    shard.unlink()
    shard.write_bytes(other.read_bytes()[:-40])
    fails(LaryError, "was changed while it was in use", source.read, [0])
