"""JSON that others have written: nested, huge, of another kind; manifests of stores and records of data sets."""

from pathlib import Path

import pytest

from lary.configs import ExtractConfig
from lary.importers.records import load_record
from lary.latents.ref import LatentsRef, open_latents
from lary.latents.store import MANIFEST
from lary.runs.extract import extract
from lary.types import LaryError
from tests.helpers import settings_of
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


def test_hostile_manifest_of_a_store(tmp_path: Path) -> None:
    make_calvin(tmp_path, {"val": 1})
    asked = ExtractConfig(model="pixels", dataset="calvin", split="val", workers=1)
    settings = settings_of(tmp_path)
    extract(asked, settings)
    manifest = tmp_path / "latent_actions" / "calvin" / "val" / "pixels" / MANIFEST
    ref = LatentsRef(model="pixels", dataset="calvin", split="val")
    for case in ("nested lists", "list", "text", "null", "no text", "huge whole number"):
        manifest.write_bytes(JSON[case].encode("utf-8", "surrogateescape"))
        for call in (lambda: open_latents(settings, ref), lambda: extract(asked, settings)):
            with pytest.raises(LaryError, match=MANIFEST), bounded():
                call()
