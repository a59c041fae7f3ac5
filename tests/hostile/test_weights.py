"""Weights: code, bombs, lying headers, and names that lead elsewhere."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lary.configs import ExtractConfig
from lary.models.laq import LAYOUT
from lary.models.released import read_checkpoint
from lary.models.spec import MODELS, ModelContext, locate_weights
from lary.models.weights import find_weights, read_config, read_tensors, weight_files
from lary.runs.extract import extract
from lary.settings import load_settings
from tests.hostile.harness import MEBIBYTE, Code, deflated_zeros, refused
from tests.hostile.test_arrays import zipped


@pytest.mark.parametrize("zipped_form", [True, False])
def test_torch_file_with_code_runs_nothing(tmp_path: Path, zipped_form: bool) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "executed"
    torch.save({"model": {"w": torch.ones(2)}, "extra": Code(mark)}, path, _use_new_zipfile_serialization=zipped_form)
    told = r"refused: besides tensors they hold \w+\.system, and reading that would run code"
    refused(tmp_path, lambda: read_checkpoint(path, LAYOUT), told)
    refused(tmp_path, lambda: read_tensors([path]), told)
    assert not mark.exists()


@pytest.mark.parametrize("version", [0, 2, 4, 5])
def test_plain_pickle_with_code_runs_nothing(tmp_path: Path, version: int) -> None:
    path, mark = tmp_path / "latest.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Code(mark), protocol=version))
    told = r"refused: besides tensors they hold \w+\.system, and reading that would run code"
    refused(tmp_path, lambda: read_checkpoint(path, LAYOUT), told)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"config\nmodel\n", pickle.dumps([1] * 99)[:50], b"PK\x03\x04" * 9])
def test_files_that_are_no_pickle_are_told_without_advice_to_run_them(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    told = r"can't be read as plain tensors: the file is damaged, cut off or of another kind\. Fetch it again\.$"
    refused(tmp_path, lambda: read_checkpoint(path, LAYOUT), told)


def test_pickle_that_doubles_with_every_line(tmp_path: Path) -> None:
    grown: Any = ["lol"]
    for _ in range(60):
        grown = [grown, grown]  # 2**60 leaves, sixty lists
    path = tmp_path / "latest.pt"
    torch.save({"state": grown}, path)
    refused(tmp_path, lambda: read_checkpoint(path, LAYOUT), "no tensors by name")


def test_compressed_torch_file_is_a_bomb(tmp_path: Path) -> None:
    size = 3584 * MEBIBYTE
    path = zipped(tmp_path / "model.pt", "archive/data.pkl", deflated_zeros(size), size)
    refused(tmp_path, lambda: read_checkpoint(path, LAYOUT), "compressed")


def test_torch_file_whose_entries_share_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(4096)}, path)
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    length = data.index(b"PK\x01\x02", at + 4) - at
    many = data[at : at + length] * 2000  # the same entry over and over, without its bytes
    path.write_bytes(data[:at] + many + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 2000, 2000, len(many), at, 0))
    refused(tmp_path, lambda: read_checkpoint(path, LAYOUT), "announce more bytes than it has")


def test_four_bytes_spread_over_a_giant_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    refused(tmp_path, lambda: read_checkpoint(path, LAYOUT), "tensors announce")
    torch.save({"nested": [{"w": torch.zeros(1).as_strided((1 << 40,), (0,))}]}, path)
    refused(tmp_path, lambda: read_checkpoint(path, LAYOUT), "tensors announce")


def header(entries: object, length: int | None = None, data: bytes = bytes(16)) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], offsets: list[int], kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


LIES = {
    "length beyond the file": header({"w": tensor([4], [0, 16])}, 1 << 20),
    "length of exabytes": header({"w": tensor([4], [0, 16])}, (1 << 63) - 1),
    "length all ones": header({"w": tensor([4], [0, 16])}, (1 << 64) - 1),
    "no length": b"\x10\0\0",
    "offsets beyond the file": header({"w": tensor([400], [0, 1600])}),
    "offsets backwards": header({"w": tensor([4], [16, 0])}),
    "offsets below zero": header({"w": tensor([4], [-16, 0])}),
    "overlap": header({"v": tensor([4], [0, 16]), "w": tensor([4], [0, 16])}),
    "gap": header({"v": tensor([1], [0, 4]), "w": tensor([1], [12, 16])}),
    "size": header({"w": tensor([5], [0, 16])}),
    "overflow": header({"w": tensor([1 << 62, 1 << 62], [0, 16])}),
    "dtype": header({"w": tensor([4], [0, 16], "O8")}),
    "nested": header(b'{"w":' + b"[" * 100_000),
    "no text": header(b"\xff\xfe{}"),
    "bytes behind": header({"w": tensor([4], [0, 16])}, data=bytes(20)),
}


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_that_lie(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(LIES[lie])
    refused(tmp_path, lambda: read_tensors([path]), "can't be read")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "C:\\x.safetensors"])
def test_index_that_names_files_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.safetensors").write_bytes(header({"w": tensor([4], [0, 16])}))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    refused(tmp_path, lambda: weight_files(folder), "leaves its root")


def test_configuration_of_nested_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    refused(tmp_path, lambda: read_config(tmp_path), "nested too deeply")
    (tmp_path / "config.json").write_text('{"model_type": ' + "9" * 10_000 + "}")
    refused(tmp_path, lambda: read_config(tmp_path), "can't be read|no model_type")


@pytest.mark.parametrize(
    "name", ["../outside", "a/..", "../../etc/passwd", "/etc/passwd", "a/b/../../c", "~nobody-here/x"]
)
def test_hub_ids_that_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    spec = MODELS.get("dinov2-origin")

    def load() -> None:
        found = locate_weights(spec, {}, name)
        find_weights(spec, ModelContext("cpu", "corrected", found))

    refused(tmp_path, load, "does not exist|neither on this|no weight file|no home folder|holds no weights")


@pytest.mark.parametrize("revision", ["../../../outside", "a\nb", "/etc"])
def test_revisions_that_lead_elsewhere(tmp_path: Path, revision: str) -> None:
    spec = MODELS.get("dinov2-origin")
    words = "expected a branch"
    refused(tmp_path, lambda: find_weights(spec, ModelContext("cpu", "corrected", "a/b", revision)), words)


@pytest.mark.parametrize("name", ["hf:../../etc", "hf:a/../../b", "hf:/etc/passwd"])
def test_backbones_that_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"LARY_ROOT": str(tmp_path), "DATA_DIR": str(tmp_path)}, environment={})
    asked = ExtractConfig(model=name, dataset="calvin", split="val")
    refused(tmp_path, lambda: extract(asked, settings), "no table|can't be used|does not exist|neither on this")


def test_honest_torch_files_pass(tmp_path: Path) -> None:
    """The limits refuse nothing that torch writes: shared, empty, mapped and nested tensors."""
    shared = torch.randn(64, 64)
    torch.save({"model": {"a": shared, "b": shared, "c": shared.T, "d": torch.zeros(0)}}, tmp_path / "model.pt")
    assert torch.equal(read_checkpoint(tmp_path / "model.pt", LAYOUT)["b"], shared)
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
