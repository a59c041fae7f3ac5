"""Settings, sweeps' relatives in YAML, and plug-ins: values that are no paths, files that grow, files that are none."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from lary.configs import ExtractConfig
from lary.models.lapa import read_tokenizer_config
from lary.registry import load_plugin
from lary.runs.extract import extract
from lary.settings import load_settings
from tests.hostile.harness import refused


def grown(form: str) -> list[str]:
    """Lines that each hold the line before nine times over."""
    names = "abcdefghijklmno"
    return [f"{own}: &{own} {form.format(', '.join([f'*{last}'] * 9))}\n" for last, own in pairwise(names)]


YAML = {
    "code": 'DATA_DIR: !!python/object/apply:os.system ["touch executed"]',
    "name": "DATA_DIR: !!python/name:os.system",
    "tag": "DATA_DIR: !include /etc/passwd",
    "aliases": "a: &a [x, x]\n" + "".join(grown("[{}]")),
    "merges": "a: &a {k: v}\n" + "".join(grown("{{<<: [{}]}}")),
    "nested lists": "DATA_DIR: " + "[" * 100_000,
    "nested maps": "DATA_DIR: " + "{a: " * 20_000,
    "nested blocks": "\n".join(" " * depth + "a:" for depth in range(400)),
    "size": "# " + "x" * (1 << 18),
    "number": "DATA_DIR: " + "9" * 10_000,
    "nul": 'DATA_DIR: "a\\0b"',
    "bytes": "DATA_DIR: \udcff\udcfe",
    "line": 'LARY_LA_DIR: "a\\nb"',
    "several files": "DATA_DIR: a\n---\nDATA_DIR: b",
}  # fmt: skip


@pytest.mark.parametrize("case", YAML)
def test_hostile_lary_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lary.yaml").write_bytes(YAML[case].encode("utf-8", "surrogateescape"))
    refused(tmp_path, lambda: load_settings(environment={}), r"lary\.yaml|DATA_DIR")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("case", ["code", "merges", "nested lists", "size"])
def test_hostile_tokenizer_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(YAML[case])
    refused(tmp_path, lambda: read_tokenizer_config(path), "can't be read")
    assert not (tmp_path / "executed").exists()


VALUES = {
    "long": "/x" * 4000,
    "long name": "/data/" + "x" * 300,
    "escape": "/data/\x1b]0;title\x07",
    "line": "/data\n/etc",
    "nobody's home": "~nobody-here/data",
}


@pytest.mark.parametrize("name", ["DATA_DIR", "LARY_LA_DIR", "DINO_V2_PATH", "LARY_CONFIG"])
@pytest.mark.parametrize("case", VALUES)
def test_variables_that_are_no_paths(tmp_path: Path, name: str, case: str) -> None:
    words = f"{name}|no home folder"
    refused(tmp_path, lambda: load_settings(environment={name: VALUES[case]}), words)


@pytest.mark.parametrize("name", ["LARY_ROOT", "DATA_DIR", "LARY_LA_DIR"])
def test_file_where_a_folder_is_meant(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    places = {"LARY_ROOT": str(tmp_path), "DATA_DIR": str(tmp_path), name: str(tmp_path / "file")}
    asked = ExtractConfig(model="pixels", dataset="calvin", split="val")
    if name != "LARY_ROOT":
        refused(tmp_path, lambda: load_settings(environment=places).path(name), "a file and no folder")
    else:
        refused(tmp_path, lambda: extract(asked, load_settings(environment=places)), "a file and no folder")


def test_configuration_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lary.yaml")
    for path in (tmp_path, tmp_path / "lary.yaml", Path("/dev/zero")):
        refused(tmp_path, lambda path=path: load_settings(config=path, environment={}), "does not exist")  # type: ignore[misc]


PLUGINS = {
    "missing": "no-such.py",
    "folder": "folder.py",
    "text": "notes.txt",
    "pipe": "pipe.py",
    "device": "/dev/zero",
    "long": "x" * 5000 + ".py",
    "nul": "a\0b.py",
    "line": "a\nb.py",
    "nobody's home": "~nobody-here/a.py",
    "bytes": "bytes.py",
    "exits": "exits.py",
    "recurses": "recurses.py",
    "another format": "model.py",
}


@pytest.mark.parametrize("case", PLUGINS)
def test_plugins_that_are_none(tmp_path: Path, case: str) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "notes.txt").write_text("import os\nos.system('touch executed')\n")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "bytes.py").write_bytes(bytes(range(256)))
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "recurses.py").write_text("def f():\n    f()\nf()\n")
    (tmp_path / "model.py").write_text("raise ValueError('first line\\nsecond line')\n")
    name = PLUGINS[case]
    path = name if name.startswith(("/", "~")) else f"{tmp_path}/{name}"
    refused(tmp_path, lambda: load_plugin(path), "Plug-in|no home folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_plugin_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    (tmp_path / "a.py").chmod(0)
    refused(tmp_path, lambda: load_plugin(tmp_path / "a.py"), "Plug-in")
