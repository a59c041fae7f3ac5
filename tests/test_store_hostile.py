"""Files of latents that lie: each is refused with an error that names it, and nothing is unpickled or written."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lary.latents.npz import MOST_BYTES, NpzSource, read_tokens
from lary.latents.shardfile import ShardSource, read_header
from lary.latents.shards import ShardStore, header_bytes, index_problems
from lary.latents.store import INDEX, StoreIdentity
from lary.types import LaryError, MediaError

IDENTITY = StoreIdentity("toy", "calvin", "val", "corrected", "record", "weights", 0)
ROWS = 3


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    store = ShardStore(tmp_path, IDENTITY, ROWS)
    with store.writer(0) as writer:
        for row in range(ROWS):
            writer.add(row, f"{row:04d}", np.full((1, 2, 4), row, np.float32), np.full((1, 2), row))
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


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(shard: Path, lie: str) -> None:
    read_header(shard)
    rewritten(shard, LIES[lie])
    with pytest.raises(LaryError, match=r"shard_00000.safetensors is damaged or no shard"):
        read_header(shard)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"1234567", (1 << 63).to_bytes(8, "little") + b"{}", (99).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little") + b"null",
        (2).to_bytes(8, "little") + b"\xff\xff", (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (26).to_bytes(8, "little") + b'{"tokens":{}, "tokens":{}}', b"\x80\x04K\x01." * 9,
    ],
    ids=["empty", "short", "absurd length", "longer than the file", "a list", "null", "no text", "deep", "twice",
         "a pickle"],
)  # fmt: skip
def test_bytes_that_are_no_shard_are_refused(shard: Path, data: bytes) -> None:
    shard.write_bytes(data)
    with pytest.raises(LaryError, match=r"shard_00000.safetensors is damaged or no shard"):
        read_header(shard)


def test_bytes_behind_the_last_tensor_are_refused(shard: Path) -> None:
    rewritten(shard, lambda header: None)
    read_header(shard)
    rewritten(shard, lambda header: None, extra=b"x")
    with pytest.raises(LaryError, match="is damaged or no shard"):
        read_header(shard)


def test_links_and_other_kinds_of_files_are_refused(shard: Path, tmp_path: Path) -> None:
    link = tmp_path / "shard_00001.safetensors"
    link.symlink_to(shard)
    with pytest.raises(LaryError, match=r"shard_00001.safetensors is a link"):
        read_header(link)
    with pytest.raises(LaryError, match="Is a directory"):
        read_header(tmp_path)
    with pytest.raises(LaryError, match="can't be opened"):
        read_header(tmp_path / "nowhere.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LaryError, match="no regular file"):
        read_header(tmp_path / "pipe")
    with pytest.raises(MediaError, match="no regular file"):
        read_tokens(tmp_path / "pipe")


@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_a_file_that_is_exchanged_between_check_and_use_is_noticed(shard: Path, tmp_path: Path, mode: str) -> None:
    header = read_header(shard)
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
    header, folder = read_header(shard), shard.parent
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


# --- .npz -------------------------------------------------------------------------------------------------------------


def npy(shape: Any, descr: Any = "<f4", data: bytes = b"", order: Any = False, version: bytes = b"\x01\x00") -> bytes:
    text = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def archive(file: Path, member: bytes, name: str = "tokens.npy", method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", method) as found:
        found.writestr(name, member)


ARRAYS = {
    "a shape larger than the data": npy((1 << 40, 4), data=b"\0" * 64),
    "a shape smaller than the data": npy((1, 4), data=b"\0" * 64),
    "a negative shape": npy((-4, -4), data=b"\0" * 64),
    "objects": npy((2, 2), "|O", b"\0" * 32),
    "a structure": npy((2, 2), [("a", "<f4"), ("b", "|O")], b"\0" * 32),
    "text": npy((2, 2), "<U4", b"\0" * 64),
    "complex numbers": npy((2, 2), "<c8", b"\0" * 32),
    "code for a shape": b"\x93NUMPY\x01\x00\x1c\x00__import__('os').abort()   \n",
    "a header of megabytes": b"\x93NUMPY\x02\x00" + struct.pack("<I", 5_000_000) + b" " * 5_000_000,
    "an unknown version": npy((2, 2), data=b"\0" * 16, version=b"\x09\x00"),
    "deep nesting": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000,
    "no array": b"hello",
    "no axis": npy((), data=b"\0" * 4),
    "no values": npy((0, 4)),
    "a part type": npy((2, 2), "(1000000,)f4", b"\0" * 16),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_that_are_none_are_refused(tmp_path: Path, what: str) -> None:
    file = tmp_path / "latents.npz"
    archive(file, npy((2, 2), data=b"\0" * 16))
    assert read_tokens(file).shape == (2, 2)
    archive(file, ARRAYS[what])
    with pytest.raises(MediaError, match=r"latents\.npz"):
        read_tokens(file)


def test_pickles_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "latents.npz"
    np.savez(file, tokens=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(MediaError, match="pickled objects"):
        read_tokens(file)
    file.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(MediaError, match="can't be read"):
        read_tokens(file)


def test_zip_bombs_are_refused_before_they_unpack(tmp_path: Path) -> None:
    file = tmp_path / "latents.npz"
    count = 80 << 20
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as found,
        found.open("tokens.npy", "w") as out,
    ):
        out.write(npy((1, count // 4)))
        for _ in range(80):
            out.write(bytes(1 << 20))
    assert file.stat().st_size < count / 100
    with pytest.raises(MediaError, match="which is refused"):
        read_tokens(file)


def test_a_directory_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "latents.npz"
    archive(file, npy((2, 2), data=b"\0" * 16))
    data = bytearray(file.read_bytes())
    place = data.rfind(b"PK\x01\x02")
    for claimed in (MOST_BYTES + 1, 1 << 20):
        struct.pack_into("<L", data, place + 24, claimed)
        file.write_bytes(bytes(data))
        with pytest.raises(MediaError, match=r"latents\.npz"):
            read_tokens(file)


def test_damaged_bytes_and_odd_archives_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "latents.npz"
    archive(file, npy((2, 2), data=b"ABCDEFGHIJKLMNOP"))
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"ABCD", b"ABCE", 1))
    with pytest.raises(MediaError, match="CRC"):
        read_tokens(file)
    archive(file, npy((2, 2), data=b"\0" * 16), method=zipfile.ZIP_LZMA)
    with pytest.raises(MediaError, match="packed by method"):
        read_tokens(file)
    archive(file, npy((2, 2), data=b"\0" * 16), name="../tokens.npy")
    with pytest.raises(MediaError, match="no array 'tokens'"):
        read_tokens(file)
    encrypted = bytearray(whole)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.find(signature) + offset] |= 1
    file.write_bytes(bytes(encrypted))
    with pytest.raises(MediaError, match="encrypted"):
        read_tokens(file)


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "<i4", "|u1"])
def test_other_number_formats_and_orders_are_read(tmp_path: Path, kind: str) -> None:
    file, tokens = tmp_path / "latents.npz", np.arange(24).reshape(2, 3, 4).astype(kind)
    for array in (tokens, np.asfortranarray(tokens)):
        np.savez_compressed(file, tokens=array, indices=np.array([]))
        np.testing.assert_array_equal(NpzSource([file]).read([0])[0], tokens.astype(np.float32))
    buffer = io.BytesIO()
    np.save(buffer, tokens)
    archive(file, buffer.getvalue(), method=zipfile.ZIP_DEFLATED)
    assert NpzSource([file]).read([0]).dtype == np.float32


def test_a_header_can_be_longer_than_its_content() -> None:
    assert len(header_bytes({}, {"tokens": ("F32", (1, 2, 3), 24)})) % 64 == 0
