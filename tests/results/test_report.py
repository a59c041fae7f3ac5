"""The report: one page that stands alone, names what it cannot read, escapes what it is given, sorts in a browser."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from lary.models.overview import paper_rows
from lary.results.folder import finished_run
from lary.results.record import FILE_NAME, EvalResult, read_result, write_result
from lary.results.report import (
    PICTURE_BYTES,
    PUBLISHED,
    _confusion_picture,
    contests_of,
    published_score,
    settings_of,
    write_report,
)
from lary.results.summarise import classification_result
from lary.types import UsageError
from tests import fake_results as fake
from tests.helpers import fails
from tests.results.test_ranking import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOADING = {"src", "srcset", "poster", "data", "xlink:href", "action", "background"}
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'></style></title>&lt;${version}{{version}}javascript:"
KEPT = ("schema_version", "status", "task", "unit", "headline", "primary", "created", "protocol", "control", "seed",
        "action_mode", "revision_source")  # fmt: skip
FREE = ("options", "options_given", "timings", "versions", "tables", "splits", "controls")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


class Page(HTMLParser):
    """Elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]

    def harmless(self) -> bool:
        """Whether nothing runs but the page's own script, and nothing is loaded from elsewhere."""
        pairs = [(tag, name, str(value)) for tag, own in self.found for name, value in own.items()]
        loaded = [value for tag, name, value in pairs if name in LOADING or (name == "href" and tag != "a")]
        links = [value for tag, name, value in pairs if name == "href" and tag == "a"]
        own = all(text.startswith("data:image/") for text in loaded) and len(self.all("script")) == 1
        known = all(
            address.startswith(("#", "https://arxiv.org/")) or re.fullmatch(r"[\w./%@-]+/result\.json", address)
            for address in links
        )
        return own and known and not any(name.startswith("on") for _, name, _ in pairs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("logs")
    fake.write_runs(root)
    return root


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    return write_report(runs).read_text(encoding="utf-8")


def test_page_stands_alone_is_accessible_and_the_same_again(runs: Path, page: str) -> None:
    found = Page(page)
    assert (found.harmless(), "default-src 'none'" in page) == (True, True)
    assert not re.search(r"url\(|@import", page)
    assert len(page) < 1_500_000
    assert len(found.all("table")) == len(found.all("caption")) > 10
    names = [str(own["id"]) for _, own in found.found if "id" in own]
    assert len(names) == len(set(names)), "ids are unique"
    assert {str(own["href"])[1:] for own in found.all("a") if str(own["href"])[0] == "#"} <= set(names)
    files = {str(own["href"]) for own in found.all("a") if str(own["href"]).endswith(FILE_NAME)}
    assert {(runs / name).resolve() for name in map(unquote, files)} == {*runs.resolve().rglob(FILE_NAME)}
    assert all(own["aria-sort"] == "none" for own in found.all("th") if own["scope"] == "col")
    assert all(
        ["alt" in own for own in found.all("img")]
        + [own.get("aria-label") for own in found.all("svg") if "role" in own]
    )
    assert write_report(runs, runs / "again.html").read_text(encoding="utf-8") == page


def test_page_holds_runs_controls_and_published_tables(page: str) -> None:
    told = "optical-flow|majority class|mean action|At a glance|Best on validation|jackknife|demo, seed 0|MSE, unseen"
    assert all(text in page for text in told.split("|"))
    counts = [page.count(text) for text in ('<details class="run card"', "data:image/jpeg", 'class="panel"')]
    assert counts == [6, 3 * 3 * 2, 3 * 3 * len(fake.DIMS)], "two frames of three samples of three regressions"
    cards = re.findall(r"<summary><h3>([\w-]+)", page)
    assert cards == ["acme", "pixels", "pixels", "optical-flow", "pixels", "acme"], "the best first"
    titles = re.findall(r"<h3>(verbs [^<]*)", page)
    assert titles[:2] == [f"verbs · attentive probe, preset demo, protocol {name}" for name in ("corrected", "paper")]
    boards = [{row[0].split()[0] for row in rows(page, f"board-{number}")} for number in (2, 3)]
    assert boards == [{"optical-flow", "pixels", "majority"}, {"acme", "majority"}], "protocols are not ranked together"
    board = rows(page, "board-1")
    assert (board[2][0], len(board)) == ("pixels (static pair) control", 4), "the mean action stands there once"
    assert not any("static" in row[0] for row in rows(page, "overview")), "controls are in no overview"
    assert "static pair" not in page.split('id="heat-1"')[1].split("</table>")[0]
    assert _confusion_picture([[1, 0], [3, 2]]) == _confusion_picture([[2, 0], [6, 2]]), "shares of the true class"
    for name in PUBLISHED:
        assert f'id="published-{name}"' in page
        assert all(value in page for row in paper_rows(name) for value in row.values())


def rows(page: str, table: str) -> list[list[str]]:
    """Cells of a table's body as text."""
    body = page.split(f'id="{table}"')[1].split("<tbody>")[1].split("</tbody>")[0]
    cells = (re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in body.split("</tr>")[:-1])
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


def charts(page: str) -> dict[str, list[tuple[str, str, float, str]]]:
    """Of every chart by its name: label, reading, place from the left in per cent and printed number of each mark."""
    found = {}
    for chart in re.findall(r'<svg class="chart".*?better on the right', page, re.DOTALL):
        marks = []
        for mark in re.split("<g class=", chart)[1:-1]:
            lines = re.findall(r'class="name" y="\d+">([^<]*)', mark)
            reading = re.findall(r'class="reading"[^>]*>([^<]*)', mark)[0]
            place, number = re.findall(r'<svg x="([\d.]+)%"', mark)[0], re.findall(r'"number"[^>]*>([^<]*)', mark)[0]
            marks.append((" ".join(lines), html.unescape(reading), float(place), number.strip()))
        found[re.findall(r'data-name="([^"]*)"', chart)[0]] = marks
    return found


def test_the_page_starts_with_charts_of_the_best_where_better_is_on_the_right(page: str, tmp_path: Path) -> None:
    found = charts(page)
    arm = found["arm · mlp probe, preset demo, protocol corrected: MSE"]
    assert [mark[:2] for mark in arm] == [
        ("acme", "best"), ("pixels", "no test: no scores of samples"), ("pixels (static pair)", "control"),
        ("mean action", "control"),
    ]  # fmt: skip
    for name, marks in found.items():
        assert [mark[2] for mark in marks] == sorted((mark[2] for mark in marks), reverse=True), name
    assert page.index('class="chart"') < page.index("<table")
    for draw, (name, rate) in enumerate((("first", 0.9), ("second", 0.89), ("third", 0.4), ("a-" * 30 + "z", 0.3))):
        write_run(tmp_path, name, rate, draw=draw)
    page = write_report(tmp_path).read_text()
    ((_, marks),) = charts(page).items()
    assert [mark[1].partition(",")[0] for mark in marks] == ["best", "not told apart", "worse", "worse", "control"]
    assert marks[3][0].replace(" ", "") == "a-" * 30 + "z", "long names are wrapped, never cut"
    told = " ".join(re.sub(r"<[^>]+>", "", page.split('class="verdict">')[1].split("</p>")[0]).split())
    assert re.fullmatch(
        r"(first|second) has the best Top-1: [\d.]+ % \[.*\]\. Not told apart from it: (first|second)\. "
        r"The difference is real to third, (a-)+z\.", told,
    ), told  # fmt: skip


def test_models_are_at_a_glance_by_their_mean_rank_and_options_are_a_table(page: str) -> None:
    glance = {row[0]: row[1:] for row in rows(page, "overview")}
    assert list(glance) == ["pixels", "acme", "optical-flow"], "those that have all data sets first"
    assert [own[0] for own in glance.values()] == ["2", "–", "–"]
    assert glance["acme"][1].startswith("◆ 0.")
    options = {row[0]: row[1] for row in rows(page, "run-1-options")}
    assert (options["epochs"], "{&#34;" in page) == ("10", False)


def test_a_run_shows_its_margins_seeds_robots_angles_warnings_and_how_intervals_were_made(
    runs: Path, page: str
) -> None:
    result = read_result(runs / "regression" / "acme" / "result.json")
    anchor = re.findall(r'id="(run-\d+)"[^>]*><summary><h3>acme', page)[0]  # regressions come first
    card = html.unescape(page.split(f'id="{anchor}"')[1].split("</details>")[0])
    margins = rows(page, f"{anchor}-margins")
    assert [row[0] for row in margins] == ["mean action", "optical-flow", "acme (static pair)"]
    assert margins[1][2:] == ["-0.010 [-0.070, 0.040]", "0.64", "no clear difference"]
    assert margins[2][3:] == ["0.0021", "a clear gain"]
    assert [row[0] for row in rows(page, f"{anchor}-seeds")] == ["0", "1", "2"]
    robots = rows(page, f"{anchor}-robots")
    assert [row[:2] for row in robots] == [[name, split] for split in ("seen", "unseen") for name in ("arm_a", "arm_b")]
    position = result.robots[0].physical["position"]
    assert robots[0][6] == f"{position.mse.value**0.5:.3f} {position.unit}"
    (seen, _) = rows(page, f"{anchor}-angles")
    assert seen[2].startswith(f"{result.orientations[0].degrees.value:.1f} [")
    groups = {row[0]: row for row in rows(page, f"{anchor}-seen")}
    assert groups["all of position"][2] == f"{result.dimension_groups[0].r2:.3f}"
    for sentence in (result.interval, *result.warnings, "2 samples were left out"):
        assert sentence in card
    assert "this one training alone" not in card


def test_a_single_training_has_no_p_value_and_no_reading(tmp_path: Path) -> None:
    """Results of former versions may hold p values that leave the seed out."""
    path = fake.write_regression(tmp_path, "acme", 0.2)
    path.write_text(json.dumps({**json.loads(path.read_text()), "margins": fake.MARGINS}))
    page = write_report(tmp_path).read_text()
    assert [row[3:] for row in rows(page, "run-1-margins")] == [["–", ""]] * 3
    assert "intervals are for this one training alone" in page
    assert not re.search("no clear difference|a clear gain|clearly worse", page)


def test_published_number_is_that_of_the_same_model_and_nothing_to_report_is_a_sentence(tmp_path: Path) -> None:
    fails(UsageError, r"No result\.json below", write_report, tmp_path)
    fails(UsageError, "no folder", write_report, tmp_path / "missing")
    known = paper_rows("leaderboard_classification")[0]
    facts = fake.facts(known["model"], "robot_1st", known["paradigm"])
    write_result(tmp_path / FILE_NAME, classification_result(fake.class_outcome(2.0), facts))
    run = finished_run(tmp_path)
    found = published_score(run.result)
    assert found
    assert found.value == pytest.approx(float(known["robot_1st"]) / 100)
    for title, changes in (
        (" (relative actions)", {"action_mode": "relative"}),
        (" (local relative actions)", {"action_mode": "relative", "relative_frame": "local"}),
        (" (splits mine)", {"dataset": run.result.dataset.model_copy(update={"split_set": "mine"})}),
        ("", {"project": 4}),
    ):
        other = replace(run, result=run.result.model_copy(update=changes))
        assert (contests_of([other])[0]["name"].partition(" · ")[0], published_score(other.result)) == (
            f"robot_1st{title}",
            None,
        )


def poisoned(value: Any, key: str = "") -> Any:
    """A result whose every free text and every key of a free table holds a script."""
    if isinstance(value, dict):
        return {(name + SCRIPT if key in FREE else name): poisoned(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, key) for item in value]
    return value + SCRIPT if isinstance(value, str) and key not in KEPT else value


def test_scripts_in_every_name_stay_text(tmp_path: Path) -> None:
    fake.write_runs(tmp_path)
    for path in tmp_path.rglob(FILE_NAME):
        path.write_text(json.dumps(poisoned(json.loads(path.read_text()))))
        read_result(path)
    page = write_report(tmp_path).read_text()
    assert ("alert(1)" in page, SCRIPT in page, Page(page).harmless()) == (True, False, True), "names are shown as text"


def test_pictures_that_are_large_or_outside_the_run_are_not_read(tmp_path: Path) -> None:
    path = fake.write_regression(tmp_path / "runs" / "one", "pixels", 0.4)
    assert "data:image/jpeg" in write_report(tmp_path / "runs").read_text()
    data = json.loads(path.read_text())
    os.truncate(path.parent / data["examples"][0]["pictures"][0], PICTURE_BYTES + 1)
    assert write_report(tmp_path / "runs").read_text().count("data:image/jpeg") == 5
    shutil.copy(path.parent / data["examples"][0]["pictures"][0], tmp_path / "secret.png")
    for example in data["examples"]:
        example["pictures"] = ["../../secret.png", str(tmp_path / "secret.png")]
    path.write_text(json.dumps(data))
    assert "data:image/jpeg" not in write_report(tmp_path / "runs").read_text()


@needs_browser
def test_tables_are_sorted_in_a_browser_which_asks_for_nothing(page: str, tmp_path: Path) -> None:
    def order(document: str, table: str) -> list[str]:
        return [row[0].split()[0] for row in rows(document, table)]

    path = tmp_path / "report.html"
    # Headers are buttons: Enter and Space on them are clicks to the script, too. The picture may not be asked for.
    search = "document.forms[0].text.value = 'acme'; document.forms[0].dispatchEvent(new Event('input'))"
    clicks = f"<script>document.querySelectorAll('#board-2 th button')[0].click(); {search}</script>"
    slipped = page.replace("<main", '<img src="http://127.0.0.1:9/x.png" alt=""><main')
    path.write_text(slipped.replace("</body>", f"{clicks}</body>"), encoding="utf-8")
    assert order(page, "board-1") == ["acme", "pixels", "pixels", "mean"]
    assert order(page, "board-2")[0] == "optical-flow"
    log = tmp_path / "log.json"
    names = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
    flags = [f"--{name}" for name in f"{names} disable-component-update virtual-time-budget=2000 dump-dom".split()]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", f"{path.as_uri()}#sort=board-1,2,desc"]
    document = subprocess.run([str(BROWSER), *flags], capture_output=True, text=True, timeout=600, check=True).stdout
    asked = re.findall(r'"initiator":"([^"]*)"', log.read_text(encoding="utf-8", errors="replace"))
    assert set(asked) <= {"not an origin"}, "the browser's own requests have no origin"
    assert order(document, "board-1") == ["mean", "pixels", "pixels", "acme"]
    assert order(document, "board-2") == ["majority", "optical-flow", "pixels"]
    board = document.split('id="board-1"')[1].split("</thead>")[0]
    assert re.findall(r'aria-sort="(\w+)"', board)[:4] == ["none", "none", "descending", "none"]
    assert re.search(r'<tr[^>]*data-text="pixels[^>]* hidden', document)
    assert not re.search(r'<tr[^>]*data-text="acme[^>]* hidden', document)


def test_details_of_many_runs_are_in_files_beside_the_page(
    runs: Path, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lary.results.report.MOST_WHOLE", 5)
    short = write_report(runs, tmp_path / "all.html").read_text()
    links = re.findall(r'<a href="(all_runs/run-[0-9]+[.]html)">Details of this run</a>', short)
    assert len(links) == 6 == page.count('<details class="run card"')
    assert len(short) < 0.6 * len(page)
    for link in links:
        anchor = Path(link).stem
        own = (tmp_path / link).read_text()
        assert f'id="{anchor}"' in short
        assert own.count('<details class="run card"') == 1 == own.count(f'id="{anchor}" ')
        target = re.search(r'<a href="([^"]+)/result.json">', own)[1]
        assert (tmp_path / link).parent.joinpath(unquote(target)).resolve().is_relative_to(runs)


def test_a_run_that_can_not_be_drawn_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good", "odd", "better"):
        fake.write_classification(tmp_path / name, name, 0.9)

    def unforeseen(result: EvalResult) -> str:
        if result.model.name == "odd":
            raise OverflowError("too large")
        return settings_of(result)

    unforeseen.__name__ = "settings_of"
    monkeypatch.setattr("lary.results.report.settings_of", unforeseen)
    page = write_report(tmp_path).read_text()
    assert "<code>odd/result.json</code>: it can&#39;t be shown: OverflowError: too large" in page
    assert [f'id="run-{number}"' in page for number in (1, 2, 3)] == [True, True, False]
