"""Arrays: latents, actions and scores that hold code, lie about their size, or are no files."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.arrays import array_of, npy_bytes, read_npz
from lary.data.actions import LARGEST_ACTIONS, read_chunk
from lary.data.spec import DATASETS
from lary.latents.sources import read_tokens
from tests.helpers import fails
from tests.hostile.harness import MEBIBYTE, Code, refused, write_zip

SPACE = DATASETS.get("calvin").actions
GIANT = 16 * 1024 * MEBIBYTE


def npy(header: bytes, version: tuple[int, int] = (1, 0), data: bytes = bytes(140)) -> bytes:
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + data


def announce(shape: str, kind: Any = "<f4") -> bytes:
    return f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()


READERS: dict[str, Callable[[Path], Any]] = {"latents": read_tokens, "actions": lambda path: read_chunk(path, SPACE)}


def put(folder: Path, reader: str, data: bytes) -> Path:
    """An array in the kind of file that a reader takes."""
    path = folder / reader
    if reader == "actions":
        path.write_bytes(data)
    else:
        write_zip(path, {"tokens.npy": data}, zipfile.ZIP_STORED)
    return path


ODD_HEADERS = {
    "giant": npy(announce(f"({GIANT}, 7)")),
    "more data than announced": npy(announce("(1, 7)")),
    "format 3": npy(announce("(5, 7)"), (3, 0)),
    "below zero": npy(announce("(-1, 7)")),
    **{str(kind): npy(announce("(1, 7)", kind)) for kind in ("<U5", [("a", "<f4"), ("b", "|O")], "(1000000,)f4", "|O")},
    "complex numbers": npy(announce("(1, 7)", "<c16"), data=bytes(112)),
    "code": npy(b"__import__('os').abort()   \n"),
    "brackets, format 2": npy(b"[" * 9000, (2, 0)),
    "long header": npy(b" " * (1 << 20), (2, 0)),
    "no values": npy(announce("(0, 7)"), data=b""),
    "no array": b"hello",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", ODD_HEADERS)
def test_hostile_headers(tmp_path: Path, case: str, reader: str) -> None:
    path = put(tmp_path, reader, ODD_HEADERS[case])
    refused(tmp_path, lambda: READERS[reader](path), reader)


@pytest.mark.parametrize("reader", READERS)
def test_arrays_with_code_run_nothing(tmp_path: Path, reader: str) -> None:
    mark, data = tmp_path / "executed", io.BytesIO()
    np.save(data, np.array([Code(mark)] * 35, dtype=object), allow_pickle=True)
    path = put(tmp_path, reader, data.getvalue())
    refused(tmp_path, lambda: READERS[reader](path), reader)
    path.write_bytes(pickle.dumps(Code(mark)))
    refused(tmp_path, lambda: READERS[reader](path), reader)
    assert not mark.exists()


def test_action_file_that_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "action.npy"
    path.write_bytes(b"\x93NUMPY")
    os.truncate(path, 1 << 40)  # a sparse terabyte
    refused(tmp_path, lambda: read_chunk(path, SPACE), f"more than the {LARGEST_ACTIONS} allowed")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_arrays_that_are_no_files(tmp_path: Path, reader: str, make: Callable[[Path], object]) -> None:
    make(tmp_path / "array")
    refused(tmp_path, lambda: READERS[reader](tmp_path / "array"), "no regular file|directory")


def test_honest_arrays_pass(tmp_path: Path) -> None:
    """The limits refuse nothing that numpy writes."""
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", tokens=np.asfortranarray(values), indices=np.array([]))
        tokens, indices = read_npz(tmp_path / "a.npz", "tokens", "indices")
        assert (np.array_equal(tokens, values), indices.size) == (True, 0)
        fails(ValueError, "which is refused", read_npz, tmp_path / "a.npz", "tokens", largest=100)
    data = io.BytesIO()
    np.lib.format.write_array(data, np.ones((5, 7)), version=(2, 0))
    (tmp_path / "action.npy").write_bytes(data.getvalue())
    assert read_chunk(tmp_path / "action.npy", SPACE).sum() == 35
    packed = npy_bytes(values.T)
    assert np.array_equal(array_of(io.BytesIO(packed), len(packed)), values.T)
