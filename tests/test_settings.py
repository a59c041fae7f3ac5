"""Settings: precedence, origins, the configuration file, messages for what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lary.runtime import pick_devices, tell_once
from lary.settings import NAMES, config_template, init_config, load_settings, set_config
from lary.types import UsageError
from tests.helpers import lary

ROOT = Path(__file__).parents[1]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_precedence_and_origin(tmp_path: Path) -> None:
    config = write(tmp_path / "lary.yaml", "LARY_ROOT: here\nDATA_DIR: data\nMODEL_DIR: models\n")
    environment = {"DATA_DIR": "/from/env", "MODEL_DIR": "/from/env"}
    settings = load_settings({"MODEL_DIR": "/from/cli"}, config=config, environment=environment)
    origins = {name: settings.items[name].origin for name in ("MODEL_DIR", "DATA_DIR", "LARY_ROOT", "LARY_LOG_DIR")}
    assert settings.get("MODEL_DIR") == "/from/cli"
    assert settings.get("DATA_DIR") == "/from/env"
    assert settings.get("LARY_ROOT") == str(tmp_path / "here")
    assert settings.get("LARY_LOG_DIR") == str(tmp_path / "here" / "logs")
    assert origins == {
        "MODEL_DIR": "command line", "DATA_DIR": "environment", "LARY_ROOT": str(config), "LARY_LOG_DIR": "default",
    }  # fmt: skip


def test_empty_values_count_as_not_given(tmp_path: Path) -> None:
    config = write(tmp_path / "lary.yaml", "DATA_DIR:\n")
    settings = load_settings({"DATA_DIR": None}, config=config, environment={"DATA_DIR": ""})
    with pytest.raises(UsageError, match=r"DATA_DIR is not set.*lary config set DATA_DIR"):
        settings.path("DATA_DIR")


def test_hub_id_in_the_file_stays_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    config = write(tmp_path / "lary.yaml", "DINO_V2_PATH: facebook/dinov2-small\nDINO_V3_PATH: local\n")
    settings = load_settings(config=config, environment={})
    assert settings.get("DINO_V2_PATH") == "facebook/dinov2-small"
    assert settings.get("DINO_V3_PATH") == str(tmp_path / "local")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DATA_DIRR: x", "unknown setting: DATA_DIRR. Did you mean DATA_DIR"),
        ("[1, 2]", "NAME: value"),
        ("DATA_DIR: [a, b]", "single value"),
        ("a: b: c", "can't be read"),
        ("DATA_DIR: !!python/object/apply:os.system [true]", "can't be read"),
    ],
)
def test_wrong_configuration_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        load_settings(config=write(tmp_path / "lary.yaml", text), environment={})


def test_named_configuration_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_settings(config=tmp_path / "none.yaml", environment={})
    with pytest.raises(UsageError, match="does not exist"):
        load_settings(environment={"LARY_CONFIG": str(tmp_path / "none.yaml")})


def test_init_and_set_keep_comments(tmp_path: Path) -> None:
    file = init_config(tmp_path / "lary.yaml")
    with pytest.raises(UsageError, match="exists already"):
        init_config(file)
    assert load_settings(config=file, environment={}).get("DATA_DIR") is None
    set_config(file, "DATA_DIR", "/data: with colon")
    set_config(file, "DATA_DIR", r"/second\1")
    text = file.read_text()
    assert load_settings(config=file, environment={}).get("DATA_DIR") == r"/second\1"
    assert text.count("DATA_DIR:") == 1
    assert "# Folder that extraction writes latents to." in text
    with pytest.raises(UsageError, match="Did you mean LARY_ROOT"):
        set_config(file, "LARY_ROT", "x")


def test_template_lists_every_variable() -> None:
    assert all(f"# {name}:" in config_template() for name in NAMES)


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_env_sh_exports_and_keeps_what_is_set(tmp_path: Path, shell: str) -> None:
    """The root is the folder of the file, from wherever it is sourced; sh knows it only in that folder."""
    shutil.copy(ROOT / "env.sh", tmp_path)
    folder = tmp_path if shell == "sh" else Path("/")
    script = f"cd {folder}; DATA_DIR=/kept; . {tmp_path / 'env.sh'}; env"
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True, env={"PATH": os.defpath})
    lines = done.stdout.splitlines()
    assert "DATA_DIR=/kept" in lines
    assert f"LARY_ROOT={tmp_path}" in lines
    assert f"LARY_LA_DIR={tmp_path}/latent_actions" in lines


def test_bare_lines_of_env_sh_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the benchmark's description: source env.sh with bare NAME=value lines exports nothing."""
    monkeypatch.chdir(tmp_path)
    words = ("extract", "--model", "pixels", "--dataset", "calvin", "--split", "val")
    assert "env.sh" not in lary(*words).err
    (tmp_path / "env.sh").write_text(f"LARY_ROOT={tmp_path}\nDATA_DIR=/data\nOTHER=1\n")
    for more in ((), ("--data-dir", tmp_path)):
        done = lary(*words, *more)
        assert done.code == 2
        assert "env.sh sets LARY_ROOT, DATA_DIR, but this process doesn't see it" in done.err
    monkeypatch.setenv("LARY_ROOT", str(tmp_path))
    monkeypatch.setenv("DATA_DIR", "/data")
    assert "env.sh" not in lary(*words).err


def test_requirements_name_the_project_and_its_constraints() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert lines[1:] == ["--constraint constraints.txt", "--editable .[demo]"]


def test_devices_are_chosen_and_printed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("lary.runtime.log.propagate", True)
    for given, devices in (
        ({"gpus": None}, ["cuda:0"]),
        ({"gpus": None, "every": True}, ["cuda:0", "cuda:1", "cuda:2"]),
        ({"gpus": "0", "every": True}, ["cuda:0"]),
        ({"gpus": "2,1"}, ["cuda:2", "cuda:1"]),
        ({"gpus": None, "choice": "cpu", "every": True}, ["cpu"]),
    ):
        tell_once.cache_clear()
        caplog.clear()
        with caplog.at_level("INFO", "lary"):
            assert pick_devices(**given) == devices
        assert "cpu" in devices or f"working on {', '.join(devices)} of 3" in caplog.text
    with pytest.raises(UsageError, match="this machine has CUDA devices 0 to 2, not 3"):
        pick_devices("0,3")
