"""Folders of latents from strangers: links in the place of what lary writes itself, and records beside the latents."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lary.configs import ExtractConfig, LatentsConfig
from lary.latents.export import export
from lary.latents.ref import LatentsRef, open_latents
from lary.latents.tools import convert
from lary.locks import LOCK
from lary.runs.extract import FAILURES, TIMING, extract, read_timing
from lary.settings import Settings, load_settings
from tests.hostile.harness import bounded, refused
from tests.tree import make_calvin

ASKED = LatentsConfig(model="pixels", dataset="calvin", split="val")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    make_calvin(root, {"val": 1})
    extract(ask(), settings_of(root))
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody else."""
    folder = tmp_path / "victim"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "a.jpg").write_text("precious")
    (folder / "letter").write_text("precious")
    return folder


def settings_of(root: Path) -> Settings:
    return load_settings({"LARY_ROOT": str(root), "DATA_DIR": str(root / "data")}, environment={})


def ask(**options: Any) -> ExtractConfig:
    return ExtractConfig(**{"model": "pixels", "dataset": "calvin", "split": "val", "workers": 1, **options})


def store_of(root: Path) -> Path:
    return root / "latent_actions" / "calvin" / "val" / "pixels"


LOCKS: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda lock, victim: lock.symlink_to(victim / "letter"),
    "link to nowhere": lambda lock, victim: lock.symlink_to(victim / "new"),
    "second name": lambda lock, victim: os.link(victim / "letter", lock),
    "pipe": lambda lock, victim: os.mkfifo(lock),
    "device": lambda lock, victim: lock.symlink_to("/dev/zero"),
    "folder": lambda lock, victim: lock.mkdir(),
}


@pytest.mark.parametrize("case", LOCKS)
def test_lock_that_leads_elsewhere(root: Path, victim: Path, case: str) -> None:
    LOCKS[case](store_of(root) / LOCK, victim)
    calls: list[Callable[[], object]] = [
        lambda: extract(ask(), settings_of(root)),
        lambda: convert(ASKED, settings_of(root), kind="shards"),
    ]
    for call in calls:
        refused(root.parent, call, "can't be a lock|Is a directory")


@pytest.mark.parametrize("end", ["new", "old"])
def test_conversion_into_a_link(root: Path, victim: Path, end: str) -> None:
    (store_of(root).parent / f".pixels.{end}").symlink_to(victim)
    refused(root.parent, lambda: convert(ASKED, settings_of(root), kind="shards"), "is a link to another place")


@pytest.mark.parametrize("name", [FAILURES, TIMING])
def test_conversion_keeps_no_links(root: Path, name: str) -> None:
    for target in ("/dev/zero", "/etc/passwd"):
        file = store_of(root) / name
        file.unlink(missing_ok=True)
        file.symlink_to(target)
        with bounded():
            folder, rows = convert(ASKED, settings_of(root), kind="npz" if target == "/etc/passwd" else "shards")
        assert rows == 3
        assert not os.path.lexists(folder / name)


LISTS = {
    "bytes": b"\xff\xfe row",
    "giant cell": b"row,path\n" + b"1" * 200_000,
    "open quote": b'row,path\n"' + b"1\n" * 100_000,
}


@pytest.mark.parametrize("case", LISTS)
def test_list_of_failures_that_is_none(root: Path, case: str) -> None:
    (store_of(root) / FAILURES).write_bytes(LISTS[case])
    (store_of(root) / "latent_action_00000001.npz").unlink()
    files = sorted(root.rglob("*"))
    refused(root / "data", lambda: extract(ask(retry_failed=True), settings_of(root)), f"{FAILURES} can't be read")
    assert sorted(root.rglob("*")) == files
    assert extract(ask(), settings_of(root)).extracted == 1


TIMES = ["[]", "{}", "null", "x", '{"rows": "many", "seconds": 1}', '{"rows": 1e400, "seconds": 1}',
         '{"rows": 1, "seconds": NaN}', '{"rows": -1, "seconds": -1}', "[" * 10_000]  # fmt: skip


@pytest.mark.parametrize("text", TIMES)
def test_times_that_are_none_cost_no_extraction(root: Path, text: str) -> None:
    """They are written at the end of hours of work."""
    (store_of(root) / TIMING).write_text(text)
    (store_of(root) / "latent_action_00000001.npz").unlink()
    with bounded():
        assert extract(ask(), settings_of(root)).extracted == 1
    rows, seconds = read_timing(store_of(root))
    assert rows == 1
    assert seconds > 0


def test_ids_and_rows_without_end(root: Path, tmp_path: Path) -> None:
    def exported(**options: str) -> Callable[[], object]:
        return lambda: export(ASKED, settings_of(root), tmp_path / "out.npy", **options)

    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    refused(tmp_path, exported(ids=str(tmp_path / "bytes")), "can't be read")
    refused(tmp_path, exported(ids=str(tmp_path / "endless")), "no latents of the sample")
    refused(tmp_path, exported(ids="a\0b"), "no latents of the sample")
    refused(tmp_path, exported(rows="1-999999999"), "row 4 has no latents")
    refused(tmp_path, exported(rows="9" * 5000), "no row or range")
    opened = open_latents(settings_of(root), LatentsRef(model="pixels", dataset="calvin", split="val"))
    known = [sample.id for sample in opened.table]
    assert export(ASKED, settings_of(root), tmp_path / "out.npy", ids=",".join(known * 20)) == 3, "no path, but ids"
