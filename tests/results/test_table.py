"""``lary table``: rows, columns, the best of each, and text that a format could take for markup."""

import csv
from pathlib import Path

import pytest

from tests import fake_results as fake
from tests.helpers import lary, printed

CALVIN = {
    "name": "calvin", "title": "CALVIN", "revision": "1", "tables": {}, "units": fake.UNITS,
    "splits": {"train": {"rows": 320, "groups": 160}, "val": {"rows": 120, "groups": 60}},
}  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, skill in (("a_b", 1), ("=1+1", 3), ("x&y", 2)):
        fake.write_classification(tmp_path / f"c{skill}", name, skill)
        fake.write_regression(tmp_path / f"r{skill}", name, skill / 10)
    fake.write_regression(tmp_path / "other", "a_b", 0.4, dataset=CALVIN)
    return tmp_path


def test_kinds_have_tables_and_the_best_of_each_column_is_bold(runs: Path) -> None:
    out = printed("table", runs)
    first, second = out.split("\n\n")[1::2]
    assert [line.split(" [")[0] for line in first.splitlines()[2:]] == [
        "| =1+1 | **85.8**", "| a\\_b | 35.0", "| x&y | 69.2"
    ]  # fmt: skip
    assert second.splitlines()[0] == "| Model | arm | CALVIN (calvin) |"
    rows = {line.split(" | ")[0][2:]: line for line in second.splitlines()[2:]}
    assert rows["a\\_b"].count("**") == 4, "the least error of both columns"
    assert rows["x&y"].endswith("| - |"), "a data set without a run"
    fake.write_regression(runs / "twice", "x&y", 0.5, protocol="paper")
    assert len(printed("table", runs).split("\n\n")) == 6, "another protocol is another table"


def test_markup_of_a_format_is_text_in_names(runs: Path) -> None:
    latex = printed("table", runs, "--format", "latex", has=[r"a\_b & ", r"x\&y & ", r"95 \% intervals"])
    assert latex.count(r"\textbf{") == 3
    assert latex.count(r"\begin{tabular}{lll}") == 1
    assert "<td>x&amp;y</td><td>69.2 [" in printed("table", runs, "--format", "html")
    rows = list(csv.reader(printed("table", runs, "--format", "csv").splitlines()))
    assert {row[1] for row in rows[1:]} == {"'=1+1", "a_b", "x&y"}
    assert all(float(low) < float(value) < float(high) for *_, value, low, high in rows[1:])


def test_published_rows_stand_beside_own_ones(runs: Path) -> None:
    out = printed("table", runs, "--published", "--out", runs / "table.md")
    assert out == ""
    lines = (runs / "table.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| vjepa2 (published)")] == ["| vjepa2 (published) | - | 0.270 |"]
    relative = {"action_mode": "relative", "dataset": CALVIN}
    fake.write_regression(runs / "relative" / "r", "a_b", 0.4, **relative)
    assert "published" not in printed("table", runs / "relative", "--published"), "the paper has absolute actions"
    (runs / "empty").mkdir()
    done = lary("table", runs / "empty")
    assert (done.code, "There is no finished run below" in done.err) == (2, True)
