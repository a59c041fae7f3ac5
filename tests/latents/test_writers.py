"""What stores write: whole files of the library, the same bytes for the same rows."""

import errno
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from lary.data.tables import SampleTable
from lary.files import WriteError
from lary.latents.sources import Stamp
from lary.latents.writers import ShardStore, write_latents
from lary.types import LaryError, MediaError
from tests.helpers import contents, fails
from tests.latents.conftest import IDENTITY, draw, fill, shards_in, source_of


def test_same_rows_same_bytes_in_any_order_and_whatever_came_between(tmp_path: Path, table: SampleTable) -> None:
    tokens = draw(9)
    folders: list[dict[str, bytes]] = []
    for order in ((0, 1, 3), (3, 1, 0), (1, 3, 0)):
        store = shards_in(tmp_path / str(len(folders)))
        with store.writer(0) as write:
            for row in order:
                write(row, table[row].id, tokens[row], None)
                fails(MediaError, "", write, 2, table[2].id, np.full((2, 3, 4), np.nan, np.float32), None)
        store.finish(table)
        folders.append(contents(store.folder))
    assert folders[0] == folders[1] == folders[2]
    assert set(folders[0]) == {"shard_00000.safetensors", "store.json"}
    name = "2/shard_00000.safetensors"
    assert store.entries(table, tmp_path, failed=[3]) == [f"{name}#0", f"{name}#1", *[""] * 7]


def test_rows_done_later_come_in_a_further_shard(tmp_path: Path, table: SampleTable) -> None:
    tokens = draw(9)
    store = shards_in(tmp_path / "store")
    fill(store, table, tokens, [0, 1, 3, 4])
    before = contents(store.folder)
    assert store.missing(table) == [2, 5, 6, 7, 8]
    fill(store, table, tokens, [2, 5])
    after = contents(store.folder)
    assert all(after[name] == data for name, data in before.items() if name.startswith("shard"))
    assert set(after) - set(before) == {"shard_00000_1.safetensors", "shard_00001_1.safetensors"}
    assert store.entries(table, tmp_path)[2] == "store/shard_00000_1.safetensors#0"
    np.testing.assert_array_equal(source_of(store, table).read(range(6)), tokens[:6])
    fill(store, table, tokens, [2, 5])
    assert contents(store.folder) == after, "the same rows a second time leave no second copy"


def test_an_exception_leaves_nothing(tmp_path: Path, table: SampleTable) -> None:
    store = shards_in(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.writer(0) as write:  # noqa: PT012 (the error comes in the middle)
        write(0, table[0].id, draw(1)[0], None)
        raise KeyboardInterrupt
    with store.writer(0):
        pass
    assert set(contents(tmp_path)) == {"store.json"}
    for name in (".shard_00001.safetensors.abc.tmp", "index.parquet"):
        (tmp_path / name).write_bytes(b"of a killed writer, of version 0.1")
    store.finish(table)
    assert set(contents(tmp_path)) == {"store.json"}


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
    row = {"row": 1, "sample": "sample-1", "tokens": tokens[1], "codes": None} | change
    with shards_in(tmp_path).writer(0) as write:
        write(0, "sample-0", tokens[0], None)
        fails(LaryError, message, write, *row.values())


@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate"])
def test_a_shard_on_a_full_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, call, Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    message = r"^Cannot write .*shard_00000.safetensors: No space left on device. Free"
    with pytest.raises(WriteError, match=message), ShardStore(tmp_path, IDENTITY, 4).writer(0) as write:
        write(1, "a", np.ones((2, 3, 4), np.float32), None)
    assert not list(tmp_path.iterdir())


def test_latents_larger_than_what_is_read_are_not_written(tmp_path: Path) -> None:
    huge = np.broadcast_to(np.float32(1), (2, 1 << 14, 1 << 14))
    fails(LaryError, "--pool mean", write_latents, tmp_path / "a.npz", huge, None, Stamp("a", "b", "c"))
    assert not list(tmp_path.iterdir())
