"""Tables: paths that lead elsewhere, cells and headers without end, names that steer terminals and spreadsheets."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lary.cli import main
from lary.configs import ExtractConfig
from lary.data.spec import DATASETS
from lary.data.tables import SampleTable, read_table
from lary.files import write_failures
from lary.latents.npz import read_tokens
from lary.latents.ref import LatentsRef, open_latents
from lary.runs.extract import extract
from lary.runtime import PlainFormatter
from lary.settings import Settings, load_settings
from lary.types import Failure
from tests.hostile.harness import MEBIBYTE, bounded, refused, snapshot
from tests.tree import make_calvin

HEADER = "src_img,tgt_img,action\n"


def settings_of(root: Path) -> Settings:
    return load_settings({"LARY_ROOT": str(root), "DATA_DIR": str(root / "data")}, environment={})


def read(path: Path, dataset: str = "calvin") -> SampleTable:
    return read_table(DATASETS.get(dataset), "val", path=path, data_dir=path.parent)


ELSEWHERE = {
    "upwards": "../../secret.png",
    "upwards inside": "a/../../secret.png",
    "absolute": "/etc/passwd",
    "absolute in a home": "~/../../etc/passwd/../../..",
    "windows": "C:\\\\secret.png",
    "share": "\\\\\\\\host\\\\share\\\\secret.png",
    "backslashes": "..\\\\..\\\\secret.png",
    "address": "file:///etc/passwd",
}


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("case", ELSEWHERE)
def test_cells_that_lead_elsewhere(tmp_path: Path, case: str, column: int) -> None:
    path = tmp_path / "table.csv"
    cells = ["a.png", "b.png", "c.npy"]
    cells[column] = ELSEWHERE[case].encode().decode("unicode_escape")
    path.write_text(HEADER + ",".join(cells) + "\n")
    refused(tmp_path, lambda: read(path), "leaves its root")


def test_table_of_ten_million_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a," * 10_000_000 + "\n1\n")
    refused(tmp_path, lambda: read(path), r"names \d{7} columns, more than")
    path.write_text(",".join(map(str, range(100_000))) + "\n1\n")
    refused(tmp_path, lambda: read(path), "100000 columns")


def test_row_of_ten_million_cells(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "a.png,b.png,c.npy" + "," * 10_000_000 + "\n")
    refused(tmp_path, lambda: read(path), "a row has more than")


@pytest.mark.parametrize("column", [0, 2])
def test_giant_cell(tmp_path: Path, column: int) -> None:
    path = tmp_path / "table.csv"
    cells = ["a.png", "b.png", "c.npy"]
    cells[column] = "x" * (6 * MEBIBYTE)
    path.write_text(HEADER + "a.png,b.png,c.npy\n" + ",".join(cells) + "\n")
    sentence = refused(tmp_path, lambda: read(path), "row 2.*letters")
    assert "xxxxxxxx" * 20 not in sentence


def test_quote_that_never_ends(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(HEADER + 'a.png,b.png,"' + "x\n" * 2_000_000)
    refused(tmp_path, lambda: read(path), r"row 1 .*4000000 letters")


@pytest.mark.parametrize("text", ["src_img,tgt_img,act\0ion\na,b,c\n", HEADER + "a\0.png,b.png,c.npy\n"])
def test_nul_letters(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    refused(tmp_path, lambda: read(path), "NUL|control characters")


@pytest.mark.parametrize(
    "name", ["a\nb.png", "a\x1b]0;title\x07b.png", "a\rb.png", "a\x7f.png", "x" * 256, "y/" * 2100]
)
def test_names_that_no_file_should_have(tmp_path: Path, name: str) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["src_img", "tgt_img", "action"], [name, "b.png", "c.npy"]])
    sentence = refused(tmp_path, lambda: read(path), "control characters|too long|letters")
    assert "\x1b" not in sentence


@pytest.mark.parametrize("cell", ["9" * 5000, "1," * 100_000 + "1", "9999999999", "-1", "1e9", "٣٣٣٣٣٣٣٣٣٣"])
def test_frame_numbers_without_end(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["video_path", "sample_indices", "action"], ["a.mp4", cell, "pick"]])
    refused(tmp_path, lambda: read(path, "robot_1st"), "sample_indices|field limit")


@pytest.mark.parametrize("label", ["../../../../outside", "/etc/passwd", "pick\0", "a/b", "__import__('os')"])
def test_labels_that_are_paths_or_code(tmp_path: Path, label: str) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["video_path", "sample_indices", "action"], ["a.mp4", "0,1", label]])
    refused(tmp_path, lambda: read(path, "robot_1st"), "is no class|NUL")


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


def test_failures_file_is_one_row_per_failure(tmp_path: Path) -> None:
    odd = ('a\nb,"c"\r\n', "=cmd()", "\x1b[31m", "a;b\tc")
    write_failures(tmp_path / "failures.csv", [Failure(row, name, name) for row, name in enumerate(odd)])
    with (tmp_path / "failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(odd)


def test_log_lines_do_not_steer_the_terminal() -> None:
    import logging

    record = logging.LogRecord("lary", logging.ERROR, "", 0, "%s", ("a\x1b]0;title\x07\x9b31m\0\rb",), None)
    assert PlainFormatter("lary: %(message)s").format(record) == "lary: a\\x1b]0;title\\x07\\x9b31m\\x00\\x0db"


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


def test_link_in_the_place_of_a_latent_is_replaced_and_not_followed(extracted: Path) -> None:
    folder = extracted / "latent_actions" / "calvin" / "val" / "pixels"
    victim = extracted / "victim"
    victim.write_text("precious")
    latent = folder / "latent_action_00000001.npz"
    latent.unlink()
    latent.symlink_to(victim)
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


def test_link_in_the_place_of_a_table_is_replaced_and_not_followed(extracted: Path) -> None:
    table = extracted / "data" / "val_la_calvin_5_pixels.csv"
    victim = extracted / "victim"
    victim.write_text("precious")
    table.unlink()
    table.symlink_to(victim)
    extract(ExtractConfig(model="pixels", dataset="calvin", split="val", workers=1), settings_of(extracted))
    assert victim.read_text() == "precious"


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


def test_latents_read_back(extracted: Path) -> None:
    """What the checks above refuse differs from what they let pass."""
    files = sorted((extracted / "latent_actions").rglob("*.npz"))
    assert [np.isfinite(read_tokens(file)).all() for file in files] == [True] * 3
    opened(extracted)()
