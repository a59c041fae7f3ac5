"""Files of latents in the published layout: stamps, and what other programs may have written."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.latents.npz import MOST_BYTES, NpzSource, Stamp, read_stamp, read_tokens, write_latents
from lary.types import LaryError, MediaError
from tests.hostile.harness import Code, refused
from tests.latents.conftest import draw


def test_stamps_are_read_from_the_end(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    stamp = Stamp("0123", "abcd", "modèle")
    write_latents(file, draw(1)[0], np.arange(6).reshape(2, 3), stamp)
    assert read_stamp(file) == stamp
    with np.load(file, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["tokens"], draw(1)[0])
        np.testing.assert_array_equal(found["indices"], np.arange(6).reshape(2, 3))
    whole = file.read_bytes()
    for torn in (whole[:-1], whole[1:], whole + b"x", whole[: len(whole) // 2], b"", b"PK\x05\x06"):
        file.write_bytes(torn)
        assert read_stamp(file) is None
    np.savez(file, tokens=draw(1)[0])
    assert read_stamp(file) is None


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


def test_stamp_of_nested_json_belongs_to_nobody(tmp_path: Path) -> None:
    path = tmp_path / "latent.npz"
    write_latents(path, np.zeros((1, 2), np.float32), None, Stamp("a", "b", "c"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"[" * 60_000
    assert read_stamp(path) is None


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((5,), (1, 5)),
        ((3, 5), (3, 5)),
        ((2, 3, 5), (2, 3, 5)),
        ((9, 2, 2, 24), (9, 4, 24)),
        ((2, 3, 2, 2, 5), (2, 12, 5)),
    ],
)
def test_all_axes_between_the_first_and_the_last_are_tokens(
    tmp_path: Path, shape: tuple[int, ...], read: tuple[int, ...]
) -> None:
    tokens = draw(1, shape)[0]
    np.savez(tmp_path / "a.npz", tokens=tokens)
    source = NpzSource([tmp_path / "a.npz"])
    assert source.shape == read
    np.testing.assert_array_equal(source.read([0])[0], tokens.reshape(read))
    assert source.codes([0]) == [None]


def test_latents_larger_than_what_is_read_are_not_written(tmp_path: Path) -> None:
    huge = np.broadcast_to(np.float32(1), (2, 1 << 14, 1 << 14))
    with pytest.raises(LaryError, match="--pool mean"):
        write_latents(tmp_path / "a.npz", huge, None, Stamp("a", "b", "c"))
    assert not list(tmp_path.iterdir())


def test_latents_with_code_run_nothing(tmp_path: Path) -> None:
    path, code = tmp_path / "latent.npz", Code(tmp_path / "executed")
    for save in (np.savez, np.savez_compressed):
        save(path, tokens=np.array([code], dtype=object), indices=np.array([]))  # type: ignore[arg-type]
        refused(tmp_path, lambda: read_tokens(path), "pickled objects")
    path.write_bytes(pickle.dumps(code))
    refused(tmp_path, lambda: read_tokens(path), "zip")
    assert not (tmp_path / "executed").exists()
