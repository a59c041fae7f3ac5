"""Tables of latents and extractions from untrusted tables: nothing is run, followed or written elsewhere."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lary.cli import main
from lary.configs import ExtractConfig
from lary.latents.ref import LatentsRef, open_latents
from lary.runs.extract import extract
from tests.helpers import settings_of
from tests.hostile.harness import bounded, refused, snapshot
from tests.tree import make_calvin

FORMULAS = (
    "=HYPERLINK(1)",
    "@SUM(1)",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "$(touch executed)",
    "`touch executed`",
    "%n%n%s{0}",
)


def test_formulas_and_commands_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for as files, named as they stand, and nothing runs them."""
    monkeypatch.chdir(tmp_path)
    make_calvin(tmp_path, {"val": 1})
    table = tmp_path / "data" / "calvin_metadata_val.csv"
    lines = list(csv.reader(table.read_text().splitlines()))
    column = lines[0].index("tgt_img")
    for formula in FORMULAS:
        lines.append([*lines[1][:column], formula, *lines[1][column + 1 :]])
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    report = extract(ExtractConfig(model="pixels", dataset="calvin", split="val", workers=1), settings_of(tmp_path))
    assert [failure.row for failure in report.failures] == list(range(3, 3 + len(FORMULAS)))
    assert not (tmp_path / "executed").exists()


LATENTS = {
    "upwards": ("../../secret.npz", "leaves its root"),
    "absolute": ("/etc/passwd", "leaves its root"),
    "nul": ("calvin/val/pixels/a\x01b.npz", "control characters"),
    "long": ("calvin/val/pixels/" + "x" * 300, "too long"),
    "another model's": ("calvin/val/random-vit/latent_action_00000000.npz", "another model"),
}


@pytest.fixture
def extracted(tmp_path: Path) -> Path:
    make_calvin(tmp_path, {"val": 1})
    extract(ExtractConfig(model="pixels", dataset="calvin", split="val", workers=1), settings_of(tmp_path))
    return tmp_path


def opened(root: Path) -> Callable[[], object]:
    return lambda: open_latents(settings_of(root), LatentsRef(model="pixels", dataset="calvin", split="val"))


@pytest.mark.parametrize("case", LATENTS)
def test_latent_paths_that_lead_elsewhere(extracted: Path, case: str) -> None:
    cell, words = LATENTS[case]
    table = extracted / "data" / "val_la_calvin_5_pixels.csv"
    lines = list(csv.reader(table.read_text().splitlines()))
    lines[1][-1] = cell
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    refused(extracted, opened(extracted), words)


def test_links_in_the_place_of_outputs_are_replaced_and_not_followed(extracted: Path) -> None:
    victim = extracted / "victim"
    victim.write_text("precious")
    latent = extracted / "latent_actions" / "calvin" / "val" / "pixels" / "latent_action_00000001.npz"
    for file in (latent, extracted / "data" / "val_la_calvin_5_pixels.csv"):
        file.unlink()
        file.symlink_to(victim)
    again = ExtractConfig(model="pixels", dataset="calvin", split="val", workers=1)
    assert extract(again, settings_of(extracted)).extracted == 1
    assert victim.read_text() == "precious"
    assert not latent.is_symlink()


def test_latent_that_becomes_something_else_between_check_and_use(extracted: Path) -> None:
    split = open_latents(settings_of(extracted), LatentsRef(model="pixels", dataset="calvin", split="val"))
    folder = extracted / "latent_actions" / "calvin" / "val" / "pixels"
    for row, make in enumerate((lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero"),
                                lambda path: path.symlink_to(path), lambda path: path.mkdir())):  # fmt: skip
        path = folder / f"latent_action_{row % 3:08d}.npz"
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        make(path)
        refused(extracted, lambda row=row: split.source.read([row % 3]), "can't be read")  # type: ignore[misc]


@pytest.mark.parametrize("words", [
    ["extract", "--model", "pixels", "--dataset", "calvin", "--split", "val", "--input", "x" * 5000],
    ["extract", "--model", "../../x", "--dataset", "calvin", "--split", "val"],
    ["extract", "--model", "pixels", "--dataset", "../../calvin", "--split", "val"],
    ["extract", "--model", "pixels", "--dataset", "calvin", "--split", "../../val"],
    ["classify", "--model", "pixels", "--dataset", "robot_1st", "--seeds", "9" * 6000],
    ["report", "x" * 5000],
    ["extract", "--model", "pixels", "--dataset", "calvin", "--split", "val", "--lary-root", "~nobody-here/x"],
])  # fmt: skip
def test_odd_options_end_in_a_sentence(tmp_path: Path, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    before = snapshot(tmp_path)
    places = [] if "--lary-root" in words else ["--lary-root", str(tmp_path)]
    with bounded(), pytest.raises(SystemExit) as stop:
        main([*words, *places, "--data-dir", str(tmp_path)])
    assert stop.value.code in (1, 2)
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert told.startswith("lary: ")
    assert snapshot(tmp_path) == before
