"""JSON that others have written: nested, huge, of another kind; manifests of stores and records of data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from lary.configs import ExtractConfig
from lary.importers.records import load_record
from lary.latents.ref import LatentsRef, open_latents
from lary.latents.store import MANIFEST
from lary.runs.extract import extract
from lary.settings import Settings, load_settings
from lary.types import LaryError
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
