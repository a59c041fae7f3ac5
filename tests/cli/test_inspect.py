"""``lary doctor``: what it finds on this machine, and what it reports as broken."""

import os
from pathlib import Path

import pytest
import torch

from tests.helpers import lary, printed


def test_this_machine_is_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    words = ("cores", "GB of memory", "(default)", "weights", "not on this machine", "Nothing is broken")
    assert "hf_secret" not in printed("doctor", "--lary-root", tmp_path, has=words)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_one_device_of_three_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones

    def make(*given: int, device: str) -> torch.Tensor:
        if device == "cuda:1":
            raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable\nadvice")
        return ones(*given)

    monkeypatch.setattr(torch, "ones", make)
    for name, value in (("device_count", 3), ("mem_get_info", (60e9, 80e9)), ("get_device_name", "H100")):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    done = lary("doctor", "--lary-root", tmp_path)
    lines = [line[:9] + line[27:] for line in done.out.splitlines() if "cuda:" in line]
    well, busy = "H100, 60.0 of 80.0 GB free", "can't be used: CUDA-capable device(s) is/are busy or unavailable"
    assert (done.code, lines) == (1, [f"  cuda:0 {well}", f"! cuda:1 {busy}", f"  cuda:2 {well}"])


def test_settings_that_name_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.pt").write_text("")
    for name, value in (
        ("LARY_ROOT", tmp_path), ("DATA_DIR", tmp_path / "none"), ("DINO_V2_PATH", "facebook/dinov2-large"),
        ("AE_MODEL_PATH", tmp_path / "weights.pt"), ("WAN22_VAE_PATH", tmp_path / "none.pth"),
        ("MODEL_DIR", tmp_path / "weights.pt"), ("LARY_LA_DIR", tmp_path / "new"), ("VILLA_X_DIR", Path(__file__)),
    ):  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(os, "access", lambda path, mode: path != Path(__file__))  # root may read every file
    done = lary("doctor")
    lines = {line[2:].split()[0]: line for line in done.out.splitlines()}
    broken = {"DATA_DIR", "WAN22_VAE_PATH", "MODEL_DIR", "VILLA_X_DIR"}
    assert {name for name, line in lines.items() if line[0] == "!"} == broken
    assert "hub id" in lines["DINO_V2_PATH"]
    assert lines["AE_MODEL_PATH"].endswith(": file")
    assert (done.code, done.out.splitlines()[-1]) == (1, "4 broken")
