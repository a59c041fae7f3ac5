"""``lary doctor``: what it finds on this machine, and what it reports as broken."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import av
import pytest

from lary.runs.doctor import Finding, examine
from lary.settings import load_settings
from tests.helpers import lary


def findings(**values: str) -> dict[str, Finding]:
    return {each.name: each for each in examine(load_settings(values, environment={})).findings}


def test_this_machine_is_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = lary("doctor", "--lary-root", tmp_path)
    assert done.code == 0, done.out
    for words in ("H.264 by PyAV", "AV1 by PyAV", "VP9 by PyAV", "GB", "pixels", "(default)", "Nothing is broken"):
        assert words in done.out
    assert "hf_secret" not in done.out
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_json_and_exit_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for data, code in (("file", 1), ("", 0)):
        done = lary("doctor", "--json", "--lary-root", tmp_path, "--data-dir", tmp_path / data)
        assert done.code == code
        found = json.loads(done.out)
        assert found["broken"] == bool(code)
    (line,) = [each for each in found["findings"] if each["name"] == "DATA_DIR"]
    assert line["text"].endswith("(command line): folder")


def test_settings_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("")
    found = findings(
        LARY_ROOT=str(tmp_path), DATA_DIR=str(tmp_path / "none"), DINO_V2_PATH="facebook/dinov2-large",
        AE_MODEL_PATH=str(tmp_path / "weights.pt"), WAN22_VAE_PATH=str(tmp_path / "none.pth"),
    )  # fmt: skip
    assert (found["DATA_DIR"].state, found["WAN22_VAE_PATH"].state) == ("broken", "broken")
    assert "hub id" in found["DINO_V2_PATH"].text
    assert found["AE_MODEL_PATH"].text.endswith(": file")
    assert found["LARY_LOG_DIR"].state == "ok"


def test_what_is_missing_old_or_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def decoder(name: str, mode: str) -> None:
        raise ValueError(name)

    def memory() -> None:
        raise RuntimeError("the library is broken")

    wanted = ["numpy>=999", "no-such-package>=1", "torch>=2", "mujoco>=999; extra == 'demo'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    monkeypatch.setattr(av.codec, "Codec", decoder)
    monkeypatch.setattr("psutil.virtual_memory", memory)
    found = findings(LARY_ROOT=str(tmp_path))
    states = {name: found[name].state for name in ("numpy", "no-such-package", "torch", "AV1 by PyAV", "devices")}
    assert states == dict.fromkeys(states, "broken") | {"torch": "ok"}
    assert "can't be examined: RuntimeError: the library is broken" in found["devices"].text
    assert found.get("mujoco", found["torch"]).state != "broken", "an extra is not needed"
