"""Stores of shards: what is written comes back, in whole files of the library; files that lie are refused."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lary.data.tables import SampleTable
from lary.files import WriteError
from lary.latents.shardfile import ShardSource, read_mode, read_shard
from lary.latents.shards import ShardStore, index_problems
from lary.latents.store import INDEX, StoreIdentity
from lary.types import LaryError, MediaError
from tests.latents.conftest import IDENTITY, contents, draw, fill, shards_in, source_of

ROWS = 3


@pytest.mark.parametrize("mode", ["mmap", "pread"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_shards_give_back_what_was_written(tmp_path: Path, table: SampleTable, dtype: Any, mode: str) -> None:
    tokens, codes = draw(9), np.arange(9 * 6).reshape(9, 2, 3)
    store = shards_in(tmp_path, dtype=dtype)
    assert store.missing(table) == list(range(9))
    fill(store, table, tokens, range(9), codes)
    assert store.missing(table) == []
    source = source_of(store, table, mode)
    expected = torch.from_numpy(tokens).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(source.read(np.arange(9)), expected)
    np.testing.assert_array_equal(source.read([7, 0, 7, 3]), expected[[7, 0, 7, 3]])
    np.testing.assert_array_equal(source.take([5, 2]).read([1, 0]), expected[[2, 5]])
    assert source.read([]).shape == (0, 2, 3, 4)
    np.testing.assert_array_equal(source.codes([8])[0], codes[8])
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own)
    np.testing.assert_array_equal(copy.read([4]), expected[[4]])
    assert (np.abs(expected - tokens) <= np.abs(tokens) * 2.0**-8).all()


def test_same_rows_same_bytes_in_any_order_and_whatever_came_between(tmp_path: Path, table: SampleTable) -> None:
    tokens = draw(9)
    folders = []
    for order in ((0, 1, 3), (3, 1, 0), (1, 3, 0)):
        store = shards_in(tmp_path / str(len(folders)))
        with store.writer(0) as write:
            for row in order:
                write(row, table[row].id, tokens[row], None)
                with pytest.raises(MediaError):
                    write(2, table[2].id, np.full((2, 3, 4), np.nan, np.float32), None)
        store.finish(table)
        folders.append(contents(store.folder))
    assert folders[0] == folders[1] == folders[2]
    assert set(folders[0]) == {"shard_00000.safetensors", "index.parquet", "store.json"}
    assert store.entries(table, tmp_path, failed=[3]) == [
        "2/shard_00000.safetensors#0", "2/shard_00000.safetensors#1", *[""] * 7
    ]  # fmt: skip


def test_rows_done_later_come_in_a_further_shard(tmp_path: Path, table: SampleTable) -> None:
    tokens = draw(9)
    store = shards_in(tmp_path / "store")
    fill(store, table, tokens, [0, 1, 3, 4])
    before = contents(store.folder)
    assert store.missing(table) == [2, 5, 6, 7, 8]
    fill(store, table, tokens, [2, 5])
    after = contents(store.folder)
    kept = [name for name in before if name.startswith("shard")]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert set(after) - set(before) == {"shard_00000_1.safetensors", "shard_00001_1.safetensors"}
    assert store.entries(table, tmp_path)[2] == "store/shard_00000_1.safetensors#0"
    np.testing.assert_array_equal(source_of(store, table).read(range(6)), tokens[:6])
    fill(store, table, tokens, [2, 5])
    assert contents(store.folder) == after, "the same rows a second time leave no second copy"


def test_an_exception_leaves_nothing(tmp_path: Path, table: SampleTable) -> None:
    store = shards_in(tmp_path)

    def stop_in_the_middle() -> None:
        with store.writer(0) as write:
            write(0, table[0].id, draw(1)[0], None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert set(contents(tmp_path)) == {"store.json"}
    with store.writer(0):
        pass
    assert set(contents(tmp_path)) == {"store.json"}
    (tmp_path / ".shard_00001.safetensors.abc.tmp").write_bytes(b"of a killed writer")
    store.finish(table)
    assert set(contents(tmp_path)) == {"store.json", "index.parquet"}


def test_a_damaged_shard_is_done_again_under_its_name(tmp_path: Path, table: SampleTable) -> None:
    tokens = draw(9)
    store = shards_in(tmp_path)
    fill(store, table, tokens, range(9))
    whole = contents(tmp_path)
    file = tmp_path / "shard_00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert store.missing(table) == [4, 5, 6, 7]
    fill(store, table, tokens, store.missing(table))
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": 4}, "Row 4 is none of unit 0"),
        ({"tokens": np.ones((2, 3, 5), np.float32)}, "latents of one shape"),
        ({"codes": np.ones((2, 3), np.int64)}, "latents of one shape"),
        ({"sample": "abc"}, "latents of one shape"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tokens = draw(2)
    with shards_in(tmp_path).writer(0) as write:
        write(0, "sample-0", tokens[0], None)
        with pytest.raises(LaryError, match=message):
            write(**({"row": 1, "sample": "sample-1", "tokens": tokens[1], "codes": None} | change))


@given(
    rows=st.lists(st.integers(0, 11), max_size=12, unique=True),
    shape=st.sampled_from([(1, 1), (2, 3), (2, 1, 5), (1, 2, 3, 2)]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    coded=st.booleans(),
    seed=st.integers(0, 99),
)
@limits(max_examples=60, deadline=None)
def test_any_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], shape: tuple[int, ...], dtype: Any, coded: bool,
    seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("any")
    tokens = draw(12, shape, seed)
    codes = np.random.default_rng(seed).integers(0, 99, (12, *shape[:-1])) if coded else None
    store = ShardStore(folder, StoreIdentity(**(vars(IDENTITY) | {"dtype": dtype})), 12)
    with store.writer(0) as write:
        for row in rows:
            write(row, f"{row:04d}", tokens[row], None if codes is None else codes[row])
    if not rows:
        assert not list(folder.iterdir())
        return
    header = read_shard(folder / "shard_00000.safetensors")
    assert header.rows.tolist() == sorted(rows)
    assert header.samples == tuple(f"{row:04d}" for row in sorted(rows))
    expected = torch.from_numpy(tokens[sorted(rows)]).to(getattr(torch, dtype)).float().numpy()
    order = np.random.default_rng(seed).permutation(len(rows))
    for mode in ("mmap", "pread"):
        source = ShardSource([header], np.zeros(len(rows), np.int64), np.arange(len(rows)), mode)
        np.testing.assert_array_equal(source.read(order), expected[order])
        for at, found in zip(order, source.codes(order.tolist()), strict=True):
            if codes is None:
                assert found is None
            else:
                np.testing.assert_array_equal(found, codes[sorted(rows)[at]])
    if dtype != "bfloat16":  # numpy has no such numbers
        loaded = load_file(header.path)
        assert set(loaded) == ({"tokens", "codes"} if coded else {"tokens"})
        np.testing.assert_array_equal(loaded["tokens"], expected)


@pytest.mark.parametrize(("kind", "mode"), [("nfs4", "pread"), ("fuse.sshfs", "pread"), ("ext4", "mmap")])
def test_network_file_systems_are_read_by_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str
) -> None:
    mounts = [
        SimpleNamespace(mountpoint=str(place), fstype=name)
        for place, name in (("/", "xfs"), (tmp_path / "data", kind), (f"{tmp_path}/dat", "lustre"))
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    (tmp_path / "data" / "store").mkdir(parents=True)
    assert read_mode(tmp_path / "data" / "store") == mode
    assert read_mode(tmp_path) == "mmap"


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate"])
def test_a_shard_on_a_full_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ShardStore(tmp_path, StoreIdentity("m", "d", "s", "corrected", "", "", 0), 4)
    monkeypatch.setattr(os, call, full)
    with (
        pytest.raises(WriteError, match=r"^Cannot write .*shard_00000.safetensors: No space left on device. Free"),
        store.writer(0) as write,
    ):
        write(1, "a", np.ones((2, 3, 4), np.float32), None)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    store = ShardStore(tmp_path, IDENTITY, ROWS)
    with store.writer(0) as write:
        for row in range(ROWS):
            write(row, f"{row:04d}", np.full((1, 2, 4), row, np.float32), np.full((1, 2), row))
    return tmp_path / "shard_00000.safetensors"


def parts_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewritten(file: Path, change: Callable[[dict[str, Any]], object], extra: bytes = b"") -> None:
    header, data = parts_of(file)
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data + extra)


TOKENS = ROWS * 8 * 4
LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "offsets beyond the file": lambda header: header["codes"].update(data_offsets=[TOKENS, TOKENS + 1 << 40]),
    "offsets that overlap": lambda header: header["codes"].update(data_offsets=[0, ROWS * 16]),
    "a gap": lambda header: header["tokens"].update(data_offsets=[8, TOKENS + 8]),
    "offsets turned round": lambda header: header["tokens"].update(data_offsets=[TOKENS, 0]),
    "negative offsets": lambda header: header["tokens"].update(data_offsets=[-TOKENS, 0]),
    "a huge shape": lambda header: header["tokens"].update(shape=[1 << 60, 1 << 60, 4]),
    "a negative side": lambda header: header["tokens"].update(shape=[-3, -2, 4]),
    "a side that is no number": lambda header: header["tokens"].update(shape=[ROWS, "2", 4]),
    "a side that is true": lambda header: header["tokens"].update(shape=[ROWS, True, 2, 4]),
    "a shape without end": lambda header: header["tokens"].update(shape=[1] * 500),
    "an unknown number format": lambda header: header["tokens"].update(dtype="O"),
    "a wider number format": lambda header: header["tokens"].update(dtype="BF16"),
    "no tokens": lambda header: header.pop("tokens"),
    "another tensor": lambda header: header.update(more=header["codes"]),
    "no metadata": lambda header: header.pop("__metadata__"),
    "metadata that is a list": lambda header: header.update(__metadata__=[1]),
    "another format": lambda header: header["__metadata__"].update(format="lary-latents-9"),
    "rows that don't ascend": lambda header: header["__metadata__"].update(rows="0,2,1"),
    "rows that are negative": lambda header: header["__metadata__"].update(rows="-1,0,1"),
    "rows that are huge": lambda header: header["__metadata__"].update(rows="0,1," + "9" * 5000),
    "rows that don't fit": lambda header: header["__metadata__"].update(rows="0,1,99999999999999999999"),
    "too few samples": lambda header: header["__metadata__"].update(samples="0000,0001"),
    "checksums that are none": lambda header: header["__metadata__"].update(checksums="x,y,z"),
    "checksums that are too large": lambda header: header["__metadata__"].update(checksums="fffffffff,1,1"),
    "rows of codes that are fewer": lambda header: header["codes"].update(
        shape=[2, 1, 2], data_offsets=[TOKENS, TOKENS + 32]
    ),
}


NO_SHARDS = {
    "empty": b"",
    "short": b"1234567",
    "absurd length": (1 << 63).to_bytes(8, "little") + b"{}",
    "longer than the file": (99).to_bytes(8, "little") + b"{}",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "null": (4).to_bytes(8, "little") + b"null",
    "no text": (2).to_bytes(8, "little") + b"\xff\xff",
    "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "twice": (26).to_bytes(8, "little") + b'{"tokens":{}, "tokens":{}}',
    "a pickle": b"\x80\x04K\x01." * 9,
}


@pytest.mark.parametrize("case", [*LIES, *NO_SHARDS, "bytes behind the last tensor"])
def test_what_is_no_shard_is_refused(shard: Path, case: str) -> None:
    rewritten(shard, lambda header: None)
    read_shard(shard)
    if case in NO_SHARDS:
        shard.write_bytes(NO_SHARDS[case])
    else:
        rewritten(shard, LIES.get(case, lambda header: None), extra=b"" if case in LIES else b"x")
    with pytest.raises(LaryError, match=r"shard_00000.safetensors is damaged or no shard"):
        read_shard(shard)


def test_links_and_other_kinds_of_files_are_refused(shard: Path, tmp_path: Path) -> None:
    link = tmp_path / "shard_00001.safetensors"
    link.symlink_to(shard)
    with pytest.raises(LaryError, match=r"shard_00001.safetensors is a link"):
        read_shard(link)
    with pytest.raises(LaryError, match="Is a directory"):
        read_shard(tmp_path)
    with pytest.raises(LaryError, match="can't be opened"):
        read_shard(tmp_path / "nowhere.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LaryError, match="no regular file"):
        read_shard(tmp_path / "pipe")


@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_a_file_that_is_exchanged_between_check_and_use_is_noticed(shard: Path, tmp_path: Path, mode: str) -> None:
    header = read_shard(shard)
    source = ShardSource([header], np.zeros(ROWS, np.int64), np.arange(ROWS), mode)
    other = tmp_path / "other"
    other.write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(other)
    with pytest.raises(LaryError, match="is a link"):
        source.read([0])
    shard.unlink()
    shard.write_bytes(other.read_bytes()[:-40])
    with pytest.raises(LaryError, match="was changed while it was in use"):
        source.read([0])


INDEX_LIES: dict[str, Callable[[dict[str, list[Any]]], object]] = {
    "a shard that isn't there": lambda columns: columns["shard"].__setitem__(1, "../../secret"),
    "a position behind the end": lambda columns: columns["position"].__setitem__(1, 99),
    "a negative position": lambda columns: columns["position"].__setitem__(1, -1),
    "another sample": lambda columns: columns["sample"].__setitem__(1, "0000"),
    "another row": lambda columns: columns["row"].__setitem__(1, 7),
    "another checksum": lambda columns: columns["checksum"].__setitem__(1, 7),
    "nothing": lambda columns: columns["position"].__setitem__(1, None),
    "a column less": lambda columns: columns.pop("sample"),
    "more rows than there are": lambda columns: [values.extend(values) for values in columns.values()],
}


@pytest.mark.parametrize("lie", INDEX_LIES)
def test_an_index_that_contradicts_its_shards_is_refused(shard: Path, lie: str) -> None:
    header, folder = read_shard(shard), shard.parent
    columns: dict[str, list[Any]] = {
        "sample": list(header.samples), "row": header.rows.tolist(), "shard": [shard.name] * ROWS,
        "position": list(range(ROWS)), "checksum": header.checksums.tolist(),
    }  # fmt: skip
    file = shard.parent / INDEX
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    types = pyarrow.schema([("sample", pyarrow.string()), ("row", pyarrow.int64()), ("shard", pyarrow.string()),
                            ("position", pyarrow.int32()), ("checksum", pyarrow.uint32())])  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=types), file)
    assert index_problems(folder, [header]) == []
    INDEX_LIES[lie](columns)
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    (problem,) = index_problems(folder, [header])
    assert "index.parquet" in problem


def test_an_index_that_is_none_or_a_link_is_refused(shard: Path) -> None:
    file = shard.parent / INDEX
    file.write_bytes(b"PAR1" * 9)
    assert "index.parquet can't be read" in index_problems(shard.parent, [])[0]
    file.unlink()
    assert "index.parquet is missing" in index_problems(shard.parent, [])[0]
    file.symlink_to("/etc/passwd")
    assert "index.parquet is a link" in index_problems(shard.parent, [])[0]
