"""``lary doctor``: what it finds on this machine, and what it reports as broken."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import av
import pytest

from lary.runs.doctor import examine
from lary.settings import load_settings
from tests.helpers import lary


def findings(**values: str) -> dict[str, tuple[bool, str]]:
    return {name: (broken, text) for broken, name, text in examine(load_settings(values, environment={}))}


def test_this_machine_is_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = lary("doctor", "--lary-root", tmp_path)
    assert (done.code, "hf_secret" in done.out) == (0, False), done.out
    words = ("h264 by PyAV", "av1 by PyAV", "vp9 by PyAV", "GB", "(default)", "Nothing is broken")
    assert [word for word in words if word not in done.out] == []
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_settings_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("")
    found = findings(
        LARY_ROOT=str(tmp_path), DATA_DIR=str(tmp_path / "none"), DINO_V2_PATH="facebook/dinov2-large",
        AE_MODEL_PATH=str(tmp_path / "weights.pt"), WAN22_VAE_PATH=str(tmp_path / "none.pth"),
        MODEL_DIR=str(tmp_path / "weights.pt"),
    )  # fmt: skip
    assert {name for name, (broken, _) in found.items() if broken} == {"DATA_DIR", "WAN22_VAE_PATH", "MODEL_DIR"}
    assert "hub id" in found["DINO_V2_PATH"][1]
    assert found["AE_MODEL_PATH"][1].endswith(": file")
    assert lary("doctor", "--lary-root", tmp_path, "--data-dir", tmp_path / "none").code == 1


def test_what_is_missing_old_or_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def memory() -> None:
        raise RuntimeError("the library is broken")

    wanted = ["numpy>=999", "no-such-package>=1", "torch>=2", "mujoco>=999; extra == 'demo'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    monkeypatch.setattr(av, "codecs_available", set())
    monkeypatch.setattr("psutil.virtual_memory", memory)
    found = findings(LARY_ROOT=str(tmp_path))
    broken = {name for name, (is_broken, _) in found.items() if is_broken}
    assert broken == {"numpy", "no-such-package", "h264 by PyAV", "av1 by PyAV", "vp9 by PyAV", "devices"}
    assert "RuntimeError: the library is broken" in found["devices"][1]
