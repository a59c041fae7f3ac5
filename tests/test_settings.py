"""Settings: precedence, origins, the configuration file, messages for what is wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lary.settings import NAMES, config_template, init_config, load_settings, set_config
from lary.types import UsageError

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
        ("DATA_DIRR: x", "unknown setting 'DATA_DIRR'. Did you mean DATA_DIR"),
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


def test_env_sh_exports_and_keeps_what_is_set(tmp_path: Path) -> None:
    script = f"cd {tmp_path}; DATA_DIR=/kept; . {ROOT / 'env.sh'}; env"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env={})
    lines = done.stdout.splitlines()
    assert "DATA_DIR=/kept" in lines
    assert f"LARY_ROOT={tmp_path}" in lines
    assert f"LARY_LA_DIR={tmp_path}/latent_actions" in lines
