"""Large writes past the cache: the same bytes as any other write, also where the system can't or won't do it."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary import direct, fileio
from lary.latents.npzfile import Stamp, read_latents, write_latents
from lary.latents.shards import ShardStore
from lary.latents.store import StoreIdentity

SIZES = (direct.LEAST, direct.LEAST + 1, direct.PIECE + direct.BLOCK, 3 * direct.PIECE - 1, 2 * direct.PIECE + 77)


def drawn(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def switched_on(handle: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & direct.FLAG)


@pytest.mark.parametrize("size", SIZES)
def test_parts_make_the_same_file(size: int, tmp_path: Path) -> None:
    data = drawn(size)
    for cuts in ((), (1,), (168, size - 1), (direct.PIECE - 1, direct.PIECE, size // 2 + direct.PIECE // 3)):
        edges = [0, *sorted(cut for cut in cuts if cut < size), size]
        parts = [data[start:end] for start, end in pairwise(edges)]
        fileio.write_parts(tmp_path / "a", parts)
        assert (tmp_path / "a").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not direct.FLAG, reason="this system has no O_DIRECT")
def test_large_files_go_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    written = os.pwrite

    def pwrite(handle: int, data: Any, place: int) -> int:
        modes.append(switched_on(handle))
        return written(handle, data, place)

    monkeypatch.setattr(os, "pwrite", pwrite)
    fileio.write_bytes(tmp_path / "large", drawn(2 * direct.PIECE))
    assert modes == [True, True]
    fileio.write_bytes(tmp_path / "small", b"few")
    assert len(modes) == 2


@pytest.mark.skipif(not direct.FLAG, reason="this system has no O_DIRECT")
def test_file_systems_that_refuse_a_size_get_plain_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, refused = os.pwrite, []

    def pwrite(handle: int, data: Any, place: int) -> int:
        if switched_on(handle):
            refused.append(place)
            raise OSError(errno.EINVAL, "Invalid argument")
        return written(handle, data, place)

    monkeypatch.setattr(os, "pwrite", pwrite)
    data = drawn(2 * direct.PIECE + 5)
    fileio.write_bytes(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data
    assert refused == [0]


@pytest.mark.skipif(not direct.FLAG, reason="this system has no O_DIRECT")
def test_a_write_that_stops_halfway_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, place: written(handle, data[: 100_001], place)
                        if not switched_on(handle) else written(handle, data[: 8 * direct.BLOCK], place))  # fmt: skip
    data = drawn(direct.PIECE + 5)
    fileio.write_bytes(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data


def test_a_refusal_that_another_thread_has_dealt_with_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, refusals = os.pwrite, [True, False]

    def pwrite(handle: int, data: Any, place: int) -> int:
        if refusals and refusals.pop(0):
            direct.switch(handle, on=False)  # as the other thread did between this write and its answer
            raise OSError(errno.EINVAL, "Invalid argument")
        return written(handle, data, place)

    monkeypatch.setattr(os, "pwrite", pwrite)
    data = drawn(direct.PIECE + 5)
    fileio.write_bytes(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data
    refusals[:] = [True, True]
    with pytest.raises(OSError, match="Invalid argument"):  # twice the same piece: an error of its own
        fileio.write_bytes(tmp_path / "b", data)


def test_systems_without_it_write_as_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "FLAG", 0)
    data = drawn(direct.PIECE + 5)
    fileio.write_bytes(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(fileio.WriteError, match=r"^Cannot write .*a: No space left on device. Free space"):
        fileio.write_bytes(tmp_path / "a", drawn(direct.LEAST))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(2, 256, 1024), (3, 177, 999), (1, 2)])
def test_latents_of_any_size_come_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    write_latents(tmp_path / "a.npz", tokens, np.arange(6), Stamp("sample", "store", "model"))
    np.testing.assert_array_equal(read_latents(tmp_path / "a.npz"), tokens)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:  # as everybody else reads it
        np.testing.assert_array_equal(found["tokens"], tokens)
        np.testing.assert_array_equal(found["indices"], np.arange(6))


def test_latents_too_large_to_be_read_are_not_written(tmp_path: Path) -> None:
    huge = np.broadcast_to(np.float32(0), (1 << 15, 1 << 14))
    with pytest.raises(fileio.LaryError, match=r"take 2.1 GB per sample, .* --pool"):
        write_latents(tmp_path / "a.npz", huge, None, Stamp("", "", ""))
    assert not list(tmp_path.iterdir())


def test_shards_of_large_rows_have_the_same_bytes_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).standard_normal((6, 2, 256, 1024), dtype=np.float32)

    def shard(folder: Path, rows: tuple[int, ...]) -> bytes:
        store = ShardStore(folder, StoreIdentity("m", "d", "s", "corrected", "", "", 0), 8)
        with store.writer(0) as writer:
            for row in rows:
                writer.add(row, f"sample{row}", tokens[row], np.arange(3) + row)
        (header,) = store.headers()
        assert header.rows.tolist() == sorted(rows)
        return header.path.read_bytes()

    found = shard(tmp_path / "a", (5, 0, 3, 1))
    monkeypatch.setattr(direct, "FLAG", 0)
    assert shard(tmp_path / "b", (0, 1, 3, 5)) == found
    data = found[-4 * tokens[0].nbytes - 4 * 24 : -4 * 24]
    np.testing.assert_array_equal(np.frombuffer(data, np.float32).reshape(4, *tokens.shape[1:]), tokens[[0, 1, 3, 5]])
