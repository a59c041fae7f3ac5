"""``lary doctor``: what it finds here, and what it says of what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lary.cli import main
from lary.runs import doctor
from lary.runs.doctor import Report, examine, numbers, package
from lary.settings import load_settings


def report_of(**values: str) -> Report:
    return examine(load_settings(values, environment={}))


def test_this_machine_is_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    report = report_of(LARY_ROOT=str(tmp_path))
    assert not report.broken, report.text()
    told = report.text()
    for words in (
        "H.264 by PyAV",
        "AV1 by PyAV",
        "VP9 by PyAV",
        "PNG by OpenCV",
        "GB",
        "files free",
        "pixels",
        "(default)",
    ):
        assert words in told
    assert "hf_secret" not in told
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_json_and_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for data, code in (("file", 1), ("", 0)):
        with pytest.raises(SystemExit) as stop:
            main(["doctor", "--json", "--lary-root", str(tmp_path), "--data-dir", str(tmp_path / data)])
        assert stop.value.code == code
        found = json.loads(capsys.readouterr().out)
        assert found["broken"] == bool(code)
    (line,) = [each for each in found["findings"] if each["name"] == "DATA_DIR"]
    assert "(command line): folder, writable" in line["text"]


def test_settings_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("")
    report = report_of(
        LARY_ROOT=str(tmp_path), DATA_DIR=str(tmp_path / "none"), DINO_V2_PATH="facebook/dinov2-large",
        AE_MODEL_PATH=str(tmp_path / "weights.pt"), WAN22_VAE_PATH=str(tmp_path / "none.pth"),
    )  # fmt: skip
    settings = {each.name: each for each in report.findings if each.group == "settings"}
    assert (settings["DATA_DIR"].state, settings["WAN22_VAE_PATH"].state) == ("broken", "broken")
    assert "hub id" in settings["DINO_V2_PATH"].text
    assert settings["AE_MODEL_PATH"].text.endswith(": file")
    assert settings["LARY_LOG_DIR"].state == "ok"


def test_a_package_that_is_old_or_missing() -> None:
    assert package("no-such-package", "1.2").state == "broken"
    assert package("numpy", "999.1").state == "broken"
    assert package("numpy", "1.0").state == "ok"
    assert numbers("2.13.0+cpu") == (2, 13, 0)
    assert numbers("1.26.4rc1") < numbers("1.27")


def test_a_part_that_can_not_be_examined_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("the library is broken")

    monkeypatch.setattr(doctor, "decoders", fails)
    report = report_of(LARY_ROOT=str(tmp_path))
    assert report.broken
    assert "can't be examined: RuntimeError: the library is broken" in report.text()


def test_a_codec_without_a_decoder_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    import av
    import numpy as np

    real = av.codec.Codec

    def without(name: str, mode: str = "r") -> object:
        if (name, mode) == ("av1", "r"):
            raise ValueError(name)
        return real(name, mode)

    monkeypatch.setattr(av.codec, "Codec", without)
    picture = np.zeros((64, 64, 3), np.uint8)
    assert doctor.codec("AV1", "libsvtav1", "mp4", picture).state == "broken"
    assert doctor.codec("H.264", "libx264", "mp4", picture).state == "ok"
    assert doctor.codec("VP9", "no-such-encoder", "webm", picture).state == "note"
