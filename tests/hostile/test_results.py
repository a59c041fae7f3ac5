"""Results and manifests: nested, huge, of another kind, and with scripts in every name."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lary.configs import ExtractConfig
from lary.importers.records import load_record
from lary.latents.ref import LatentsRef, open_latents
from lary.latents.store import MANIFEST
from lary.results.compare import open_run
from lary.results.record import FILE_NAME, read_result
from lary.results.report import write_report
from lary.runs.extract import extract
from lary.settings import Settings, load_settings
from lary.types import LaryError
from tests import fake_results as fake
from tests.hostile.harness import bounded, refused
from tests.tree import make_calvin

JSON = {
    "nested lists": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "huge whole number": '{"schema_version": ' + "9" * 20_000 + "}",
    "large version": '{"schema_version": ' + "9" * 4_000 + "}",
    "huge number": '{"schema_version": 1e999999}',
    "list": "[1, 2]",
    "text": '"schema_version"',
    "null": "null",
    "not a number": '{"schema_version": NaN}',
    "truth": '{"schema_version": true}',
    "no text": "\udcff\udcfe\udcfd",
    "half a letter": '{"schema_version": 2, "task": "\\ud800"}',
    "fields": '{"schema_version": 2, "__class__": "x", "model": {"__init__": 1}}',
}


@pytest.mark.parametrize("case", JSON)
def test_hostile_result(tmp_path: Path, case: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(JSON[case].encode("utf-8", "surrogateescape"))
    refused(tmp_path, lambda: read_result(path), re.escape(FILE_NAME))
    refused(tmp_path, lambda: open_run(tmp_path), re.escape(FILE_NAME))
    with bounded():
        page = write_report(tmp_path).read_text()
    assert "Unreadable files" in page


@pytest.mark.parametrize("case", ["nested lists", "list", "null", "fields", "huge whole number"])
def test_hostile_record_of_a_data_set(tmp_path: Path, case: str) -> None:
    (tmp_path / "a_dataset.json").write_text(JSON[case])
    refused(tmp_path, lambda: load_record(tmp_path / "a_dataset.json"), "a_dataset.json")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extracted")
    make_calvin(root, {"val": 1})
    extract(ask(), settings_of(root))
    return root


def ask() -> ExtractConfig:
    return ExtractConfig(model="pixels", dataset="calvin", split="val", workers=1)


def settings_of(root: Path) -> Settings:
    return load_settings({"LARY_ROOT": str(root), "DATA_DIR": str(root / "data")}, environment={})


@pytest.mark.parametrize("case", ["nested lists", "list", "text", "null", "no text", "huge whole number"])
def test_hostile_manifest_of_a_store(extracted: Path, case: str) -> None:
    manifest = extracted / "latent_actions" / "calvin" / "val" / "pixels" / MANIFEST
    before = manifest.read_bytes()
    manifest.write_bytes(JSON[case].encode("utf-8", "surrogateescape"))

    def opened() -> object:
        return open_latents(settings_of(extracted), LatentsRef(model="pixels", dataset="calvin", split="val"))

    try:
        refused(extracted, opened, MANIFEST)
        with bounded(), pytest.raises(LaryError, match=MANIFEST):
            extract(ask(), settings_of(extracted))
    finally:
        manifest.write_bytes(before)


SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'></style></title>&lt;${version}javascript:alert(3)"


class Tags(HTMLParser):
    """Elements and attributes of a page, as a browser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.odd: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attributes:
            address = name in ("href", "src") and not str(value).startswith(("#", "data:image/", "https://arxiv.org/"))
            if name.startswith("on") or address:
                self.odd.append((tag, name, value))


def poisoned(value: Any, key: str = "") -> Any:
    """A result whose every free text and every key of a free table holds a script."""
    kept = (
        "schema_version",
        "status",
        "task",
        "unit",
        "headline",
        "primary",
        "created",
        "protocol",
        "control",
        "seed",
        "action_mode",
    )
    if isinstance(value, dict):
        free = key in ("options", "options_given", "timings", "versions", "tables", "splits", "controls")
        return {(name + SCRIPT if free else name): poisoned(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, key) for item in value]
    return value + SCRIPT if isinstance(value, str) and key not in kept else value


def write_runs(folder: Path) -> None:
    fake.write_classification(folder / "pixels", "pixels", 0.9)
    fake.write_classification(folder / "acme", "acme", 2.0, "general LAM", protocol="paper")
    fake.write_regression(folder / "regression" / "acme", "acme", 0.2, "general LAM", failures=2)


def test_scripts_in_every_name_stay_text(tmp_path: Path) -> None:
    write_runs(tmp_path)
    clean = Tags()
    clean.feed(write_report(tmp_path).read_text())
    changed = 0
    for path in tmp_path.rglob(FILE_NAME):
        data = json.loads(path.read_text())
        path.write_text(json.dumps(poisoned(data)))
        read_result(path)
        changed += 1
    assert changed > 2
    page = write_report(tmp_path).read_text()
    assert "alert(1)" in page, "the names are shown"
    found = Tags()
    found.feed(page)
    assert found.scripts == clean.scripts
    assert found.odd == []


def test_pictures_of_a_result_stay_in_its_folder(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs")
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    for path in (tmp_path / "runs").rglob(FILE_NAME):
        data = json.loads(path.read_text())
        for example in data.get("examples", []):
            example["pictures"] = ["../" * 8 + str(secret).lstrip("/"), str(secret)]
        path.write_text(json.dumps(data))
    import base64

    page = write_report(tmp_path / "runs").read_text()
    assert base64.b64encode(secret.read_bytes()).decode()[:20] not in page
