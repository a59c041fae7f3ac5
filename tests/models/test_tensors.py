"""Files of tensors: code is never run, bombs and false headers are refused, and every model names what it was given."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lary.models.spec import MODELS
from lary.models.tensors import Layout, read_tensors
from lary.types import LaryError
from tests.helpers import fails
from tests.hostile.harness import Code, refused, write_zip
from tests.models.test_weights import make
from tests.tiny_networks import PUBLISHED

REMEDY = r"(Fetch it again|Is it the right file|Convert them to safetensors|be of one checkpoint)"
WITH_CODE = r"refused: besides tensors they hold \w+\.system, and reading that would run code"


def read(path: Path) -> dict[str, torch.Tensor]:
    return read_tensors([path], Layout(sections=("model",), wrappers=("module.",)))


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file) if file.suffix == ".safetensors" else torch.save(tensors, file)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "text": lambda file, mark: file.write_text('{"a": 1}'),
    "empty": lambda file, mark: file.write_bytes(b""),
    "cut": lambda file, mark: (save({"a": torch.zeros(3000)}, file), file.write_bytes(file.read_bytes()[:-4000])),
    "other model": lambda file, mark: save({"conv1.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)}, file),
    "code": lambda file, mark: torch.save({"a": Code(mark)}, file),
    "list": lambda file, mark: torch.save([torch.zeros(2)], file),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_model_refuses_what_is_no_checkpoint_of_it(name: str, tmp_path: Path) -> None:
    config = {**MODELS.get(name).options.get("config", {}), "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_config.json").write_text(json.dumps({"architecture": "IgorModel", "config": {}}))
    for file in (tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors"):
        for damage, damaged in DAMAGES.items():
            damaged(file, tmp_path / "ran")
            with pytest.raises(LaryError, match=REMEDY) as caught:
                make(name, file)
            said = str(caught.value)
            assert (str(file.parent) in said, "\n" in said) == (True, False), damage
            assert "system" in said or (damage, file.suffix) != ("code", ".bin")
            assert not (tmp_path / "ran").exists(), f"{damage} {file}: code of the file was run"


@pytest.mark.parametrize("form", [True, False, 0, 2, 4, 5])
def test_files_with_code_run_nothing(tmp_path: Path, form: bool | int) -> None:
    """Torch's forms, in a zip and older, and plain pickles of all protocols."""
    path, mark = tmp_path / "latest.pt", tmp_path / "executed"
    if isinstance(form, bool):
        content = {"model": {"w": torch.ones(2)}, "extra": Code(mark)}
        torch.save(content, path, _use_new_zipfile_serialization=form)
    else:
        path.write_bytes(pickle.dumps(Code(mark), protocol=form))
    refused(tmp_path, lambda: read(path), WITH_CODE)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"config\nmodel\n", pickle.dumps([1] * 99)[:50], b"PK\x03\x04" * 9])
def test_files_that_are_no_pickle_come_without_advice_to_run_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    words = r"can't be read as plain tensors: the file is damaged, cut off or of another kind\. Fetch it again\.$"
    refused(tmp_path, lambda: read(tmp_path / "model.pt"), words)


def test_bombs_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    grown: Any = ["lol"]
    for _ in range(60):
        grown = [grown, grown]  # 2**60 leaves, sixty lists
    torch.save({"state": grown}, path)
    refused(tmp_path, lambda: read(path), "no tensors by name")
    write_zip(path, {"archive/data.pkl": bytes(1 << 26)})
    refused(tmp_path, lambda: read(path), "compressed")

    torch.save({"w": torch.ones(4096)}, path)
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    length = data.index(b"PK\x01\x02", at + 4) - at
    many = data[at : at + length] * 2000  # the same entry over and over, without its bytes
    path.write_bytes(data[:at] + many + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 2000, 2000, len(many), at, 0))
    refused(tmp_path, lambda: read(path), "announce more bytes than it has")

    for tensor in (torch.zeros(1).expand(1 << 20, 1 << 20), torch.zeros(1).as_strided((1 << 40,), (0,))):
        torch.save({"w": tensor}, path)
        refused(tmp_path, lambda: read(path), "tensors announce")
        torch.save({"nested": [{"w": tensor}]}, path)  # never copied
        refused(tmp_path, lambda: read(path), "no tensors by name")


@pytest.mark.parametrize(("shape", "offsets", "length"), [
    ([4], [0, 16], 1 << 63), ([400], [0, 1600], None), ([5], [0, 16], None), ([1 << 62, 1 << 62], [0, 16], None),
])  # fmt: skip
def test_false_headers_of_safetensors(tmp_path: Path, shape: list[int], offsets: list[int], length: int | None) -> None:
    text = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(16))
    refused(tmp_path, lambda: read(tmp_path / "model.safetensors"), "can't be read")


def test_honest_files_pass(tmp_path: Path) -> None:
    """The limits refuse nothing that torch writes: shared, empty, wrapped tensors, whole numbers, half precision."""
    shared, file = torch.randn(64, 64), tmp_path / "model.pt"
    tensors = {"a": shared, "module.b": shared, "c": shared.T, "d": torch.zeros(0), "e": torch.tensor(3)}
    torch.save({"model": {**tensors, "f": shared.half()}, "step": 7}, file)
    found = read(file)
    assert torch.equal(found["b"], shared)
    assert (found["e"].dtype, found["f"].dtype) == (torch.int64, torch.float32)
    torch.save({"model": {"a": shared, "module.a": shared}}, file)
    fails(LaryError, r"model\.pt hold a twice", read, file)
