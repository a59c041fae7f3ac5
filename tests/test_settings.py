"""Settings: precedence, origins, the configuration file, and what is refused in it and in the environment."""

import os
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from lary.settings import VARIABLES, config_template, init_config, load_settings, set_config
from lary.types import UsageError
from tests.helpers import fails, lary, printed
from tests.hostile.harness import refused

ROOT = Path(__file__).parents[1]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_precedence_and_origin(tmp_path: Path) -> None:
    config = write(tmp_path / "lary.yaml", "LARY_ROOT: here\nDATA_DIR: data\nMODEL_DIR: models\n")
    environment = {"DATA_DIR": "/from/env", "MODEL_DIR": "/from/env", "LARY_CONFIG": "/none.yaml"}
    items = load_settings({"MODEL_DIR": "/from/cli"}, config=config, environment=environment).items
    assert {name: (items[name].value, items[name].origin) for name in list(VARIABLES)[:5] if name != "LARY_LA_DIR"} == {
        "MODEL_DIR": ("/from/cli", "command line"),
        "DATA_DIR": ("/from/env", "environment"),
        "LARY_ROOT": (f"{tmp_path}/here", str(config)),
        "LARY_LOG_DIR": (f"{tmp_path}/here/logs", "default"),
    }


def test_empty_values_count_as_not_given(tmp_path: Path) -> None:
    config = write(tmp_path / "lary.yaml", "DATA_DIR:\n")
    settings = load_settings({"DATA_DIR": None}, config=config, environment={"DATA_DIR": ""})
    fails(UsageError, r"DATA_DIR is not set.*lary config set DATA_DIR", settings.path, "DATA_DIR")
    fails(UsageError, "Did you mean DATA_DIR", settings.get, "DATADIR")


def test_hub_id_in_the_file_stays_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    config = write(tmp_path / "lary.yaml", "DINO_V2_PATH: facebook/dinov2-small\nDINO_V3_PATH: local\n")
    values = load_settings(config=config, environment={}).values()
    assert (values["DINO_V2_PATH"], values["DINO_V3_PATH"]) == ("facebook/dinov2-small", str(tmp_path / "local"))


def test_named_configuration_must_be_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "pipe.yaml", Path("/dev/zero")):
        refused(tmp_path, lambda path=path: load_settings(config=path, environment={}), "does not exist")  # type: ignore[misc]
    fails(UsageError, "does not exist", load_settings, environment={"LARY_CONFIG": str(tmp_path / "none.yaml")})


def test_init_and_set_keep_comments(tmp_path: Path) -> None:
    file = init_config(tmp_path / "lary.yaml")
    assert all(f"# {name}:" in config_template() for name in VARIABLES)
    fails(UsageError, "exists already; .* or pass --overwrite", init_config, file)
    assert load_settings(config=file, environment={}).get("DATA_DIR") is None
    for value in ("/data: with colon", r"/second\1"):
        set_config(file, "DATA_DIR", value)
        assert load_settings(config=file, environment={}).get("DATA_DIR") == value
    assert file.read_text().count("DATA_DIR:") == 1
    assert "# Folder that extraction writes latents to." in file.read_text()
    fails(UsageError, "Did you mean LARY_ROOT", set_config, file, "LARY_ROT", "x")
    printed("config", "set", "DATA_DIR", "here", "--config", file, has=[f"{file}: DATA_DIR = here"])
    (line,) = (line for line in lary("config", "show", "--config", file).out.splitlines() if "DATA_DIR" in line)
    assert line.split() == ["DATA_DIR", f"{tmp_path}/here", str(file)]
    printed("config", "init", file, "--overwrite", has=[f"Wrote {file}"])
    assert file.read_text() == config_template()


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_env_sh_exports_and_keeps_what_is_set(tmp_path: Path, shell: str) -> None:
    """The root is the folder of the file, from wherever it is sourced; sh knows it only in that folder."""
    shutil.copy(ROOT / "env.sh", tmp_path)
    script = f"cd {tmp_path if shell == 'sh' else '/'}; DATA_DIR=/kept; . {tmp_path / 'env.sh'}; env"
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True, env={"PATH": os.defpath})
    expected = {"DATA_DIR=/kept", f"LARY_ROOT={tmp_path}", f"LARY_LA_DIR={tmp_path}/latent_actions"}
    assert expected <= set(done.stdout.splitlines())


def test_bare_lines_of_env_sh_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the benchmark's description: source env.sh with bare NAME=value lines exports nothing."""
    monkeypatch.chdir(tmp_path)
    words = ("extract", "--model", "pixels", "--dataset", "calvin", "--split", "val")
    assert "env.sh" not in lary(*words).err
    (tmp_path / "env.sh").write_text(f"LARY_ROOT={tmp_path}\nDATA_DIR=/data\nOTHER=1\n")
    for more in ((), ("--data-dir", tmp_path)):
        printed(*words, *more, code=2, has=["env.sh sets LARY_ROOT, DATA_DIR, but this process doesn't see it"])
    monkeypatch.setenv("LARY_ROOT", str(tmp_path))
    monkeypatch.setenv("DATA_DIR", "/data")
    assert "env.sh" not in lary(*words).err


def grown(form: str) -> str:
    """Lines that each hold the line before nine times over."""
    names = "abcdefghijklmno"
    return "".join(f"{own}: &{own} {form.format(', '.join([f'*{last}'] * 9))}\n" for last, own in pairwise(names))


YAML = {
    "DATA_DIRR: x": "unknown setting: DATA_DIRR. Did you mean DATA_DIR",
    "[1, 2]": "NAME: value",
    "DATA_DIR: [a, b]": "single value",
    "a: b: c": "can't be read",
    'DATA_DIR: !!python/object/apply:os.system ["touch executed"]': "the tag",
    "DATA_DIR: !!python/name:os.system": "the tag",
    "DATA_DIR: !include /etc/passwd": "the tag",
    "a: &a [x, x]\n" + grown("[{}]"): "anchors",
    "a: &a {k: v}\n" + grown("{{<<: [{}]}}"): "anchors",
    "DATA_DIR: " + "[" * 100_000: "nested too deeply",
    "DATA_DIR: " + "{a: " * 20_000: "nested too deeply",
    "\n".join(" " * depth + "a:" for depth in range(400)): "nested too deeply",
    "# " + "x" * (1 << 18): "more than the",
    "DATA_DIR: " + "9" * 10_000: "lary.yaml|DATA_DIR",
    'DATA_DIR: "a\\0b"': "control characters",
    "DATA_DIR: \udcff\udcfe": "can't be read",
    'LARY_LA_DIR: "a\\nb"': "control characters",
    "DATA_DIR: a\n---\nDATA_DIR: b": "can't be read",
}


@pytest.mark.parametrize("text", YAML, ids=range(len(YAML)))
def test_wrong_and_hostile_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lary.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    sentence = refused(tmp_path, lambda: load_settings(environment={}), YAML[text])
    assert re.search(r"lary\.yaml|DATA_DIR", sentence)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["DATA_DIR", "DINO_V2_PATH", "LARY_CONFIG"])
def test_variables_that_are_no_paths(tmp_path: Path, name: str) -> None:
    for value in ("/x" * 4000, "/data/" + "x" * 300, "/data/\x1b]0;title\x07", "/data\n/etc", "~nobody-here/data"):
        refused(tmp_path, lambda value=value: load_settings(environment={name: value}), f"{name}|no home folder")  # type: ignore[misc]


@pytest.mark.parametrize("name", ["LARY_ROOT", "DATA_DIR", "LARY_LA_DIR"])
def test_file_where_a_folder_is_meant(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    settings = load_settings(environment={name: str(tmp_path / "file")})
    refused(tmp_path, lambda: settings.path(name), "a file and no folder")


def test_plug_ins_of_the_file_run_and_their_variables_are_settings(tmp_path: Path) -> None:
    own = "name='own-lam', paradigm='lam', dim=8, preprocess=Preprocess(), weights=Weights(variable='OWN_LAM_PATH')"
    names = "ModelSpec, Preprocess, Weights, register_model"
    write(tmp_path / "lam.py", f"from lary import {names}\nregister_model(ModelSpec({own}))(object)\n")
    config = write(tmp_path / "lary.yaml", "PLUGIN: lam.py\nOWN_LAM_PATH: ckpt.pt\n")
    assert load_settings(config=config, environment={"OWN_LAM_PATH": "/env.pt"}).get("OWN_LAM_PATH") == "/env.pt"
    printed("models", "own-lam", "--config", config, has=["OWN_LAM_PATH points to ckpt.pt, which does not exist"])
    (tmp_path / "ckpt.pt").write_text("")
    printed("models", "own-lam", "--config", config, has=[f"{tmp_path}/ckpt.pt"])
    write(config, "PLUGIN:\n  - none.py\n  - lam.py\n")
    fails(UsageError, "none.py is not a Python file", load_settings, config=config, environment={})
    printed("config", "set", "PLUGIN", "lam.py", "--config", config)  # in place of the whole list
    printed("config", "set", "OWN_LAM_PATH", "ckpt.pt", "--config", config)
    assert config.read_text() == "PLUGIN: lam.py\nOWN_LAM_PATH: ckpt.pt\n"
