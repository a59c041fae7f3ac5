"""The record of a result: its schema, older versions, and files that are no results."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lary.results import record
from lary.results.compare import load_results, open_scored
from lary.results.folder import find_results
from lary.results.record import FILE_NAME, SCHEMA_VERSION, Metric, read_result, schema_text, seal_holds, write_result
from lary.results.report import write_report
from lary.types import LaryError
from tests import fake_results as fake
from tests.helpers import FIXTURES, fails, lary
from tests.hostile.harness import JSON, bounded, refused


def test_files_that_are_no_results_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = fake.write_regression(tmp_path, "pixels", 0.4, action_mode="relative")
    data = json.loads(path.read_text())
    future = {"schema_version": SCHEMA_VERSION + 1}
    for message, changes in {"schema version": future, "surprise": {"surprise": 1}, "seed": {"seed": "many"}}.items():
        path.write_text(json.dumps({**data, **changes}))
        fails(LaryError, message, read_result, path)
    path.write_text('{"top1": 3}')
    fails(LaryError, "no schema_version", read_result, path)
    assert data.pop("relative_frame") is None
    path.write_text(json.dumps({**data, "extra": {"acme": {"note": [1, 2]}}}))
    assert read_result(path).extra == {"acme": {"note": [1, 2]}}, "extensions have a place of their own"
    assert read_result(path).relative_frame == "world", "before there were frames, relative motion was the world's"


def test_a_seal_holds_until_a_byte_changes(tmp_path: Path) -> None:
    data = fake.write_regression(tmp_path, "pixels", 0.4, extra={"acme": {"seal": ""}}).read_bytes()
    assert (seal_holds(data), seal_holds(b"{}")) == (True, False)
    for place in (0, data.index(b'"seal"') + 12, len(data) // 2, len(data) - 1):
        assert not seal_holds(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]), place
    result = read_result(tmp_path / FILE_NAME)
    write_result(tmp_path / FILE_NAME, result)
    assert (tmp_path / FILE_NAME).read_bytes() == data, "a result that is written again has the same seal"


@pytest.mark.parametrize("case", JSON)
def test_hostile_result(tmp_path: Path, case: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(JSON[case].encode("utf-8", "surrogateescape"))
    refused(tmp_path, lambda: open_scored(tmp_path), re.escape(FILE_NAME))
    with bounded():
        page = write_report(tmp_path).read_text()
    assert [part for part in ("Unreadable files", f"<code>{FILE_NAME}</code>") if part not in page] == []
    assert str(tmp_path) not in page, "pages are passed on"


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_results_that_the_first_schema_wrote_are_brought_to_this_one(tmp_path: Path, task: str) -> None:
    file = FIXTURES / "results" / f"version_1_{task}.json"
    before, result = json.loads(file.read_text()), read_result(file)
    assert before["schema_version"] == 1
    after = result.model_dump(mode="json")
    assert (result.schema_version, result.seeds, result.task) == (SCHEMA_VERSION, (before["seed"],), task)
    assert after["files"] == dict.fromkeys(before.pop("files"), "")
    assert kept_in(before, {**after, "schema_version": 1})
    random = result.model_copy(update={"model": result.model.model_copy(update={"revision": "random"})})
    assert (random.label, random.is_control) == (f"{result.model.name} (random weights)", True)
    projected = result.model_copy(update={"probe": "ridge", "project": 4})
    assert projected.label == f"{result.model.name} (ridge probe, 4 random dimensions)"
    assert (projected.is_control, result.is_control) == (True, False)
    jsonschema.Draft202012Validator(json.loads(schema_text())).validate(after)
    write_result(tmp_path / FILE_NAME, result)
    assert (read_result(tmp_path / FILE_NAME), find_results(tmp_path)[1]) == (result, [])
    assert result.model.name in write_report(tmp_path).read_text()


def kept_in(before: Any, after: Any) -> bool:
    """Whether all that was in a result is still in it."""
    if isinstance(before, dict):
        return all(kept_in(value, after[name]) for name, value in before.items())
    if isinstance(before, list):
        return len(before) == len(after) and all(map(kept_in, before, after))
    return bool(before == after)


def test_schema_has_a_sentence_for_every_field_and_is_that_of_the_documentation(tmp_path: Path) -> None:
    schema = json.loads(schema_text())
    assert next(iter(record.EvalResult.model_fields)) == "schema_version"
    for name, part in {"EvalResult": schema, **schema["$defs"]}.items():
        assert part["additionalProperties"] is False
        assert part["description"].endswith("."), name
        for field, content in part["properties"].items():
            assert content["description"].endswith("."), f"{name}.{field}"
    kept = Path(__file__).parents[2] / "docs" / "result.schema.json"
    assert kept.read_text(encoding="utf-8") == schema_text(), "run: lary schema --out docs/result.schema.json"
    assert lary("schema").out == schema_text()
    lary("schema", "--out", tmp_path / "schema.json")
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == schema_text()


def test_written_results_fit_the_exported_schema(tmp_path: Path) -> None:
    fake.write_runs(tmp_path)
    checker = jsonschema.Draft202012Validator(json.loads(schema_text()))
    checker.check_schema(checker.schema)
    written = [json.loads(file.read_text()) for file in tmp_path.rglob(FILE_NAME)]
    assert [checker.is_valid(data) for data in written] == [True] * 6
    for broken in ({"seed": "0"}, {"surprise": 1}, {"task": "cooking"}, {"selections": None}):
        assert not checker.is_valid({**written[0], **broken})


def test_numbers_as_text_and_the_reading_of_a_difference_by_its_corrected_p() -> None:
    gain = Metric(value=-0.1, low=-0.2, high=-0.01, higher_is_better=False)
    assert [gain.reading(), gain.reading(0.01), gain.reading(0.2)] == ["better", "better", "even"]
    others = [gain.model_copy(update=changes) for changes in ({"higher_is_better": True}, {"high": 0.01})]
    assert [one.reading() for one in (*others, Metric(value=1.0))] == ["worse", "even", ""]
    texts = " ".join(Metric(value=value).text() for value in (0.0004, 0.0005, 999.4, 1234.5))
    assert texts == "0.0004 0.001 999.400 1.23e+03"


ODD: dict[str, Callable[[dict[str, Any]], object]] = {
    "part has no 'x'": lambda data: data.update(primary="x"),
    "has no 'seen_mse'": lambda data: data["controls"]["mean_action"].update(metrics={}),
    "no selection held_out": lambda data: data["selections"].pop("held_out"),
    "an example is no table": lambda data: data["examples"][1]["true"].append([1.0]),
    "the number 1e\\+200": lambda data: data["dimensions"][0].update(rmse=1e200),
    "the number inf": lambda data: data["extra"].update(note=[{"deep": float("inf")}]),
    "the number 1000": lambda data: data["provenance"]["machine"].update(cores=10**200),
    "too long, or broken": lambda data: data["provenance"].update(command=["lary", "\udc00"]),
    "'yyyyyyyyyyyyyyyyyyyy' is too long": lambda data: data["options"].update({"y" * 70_000: 1}),
    "control characters": lambda data: data["dataset"].update(name="a\x1b[2J"),
    "too long for a path": lambda data: data["model"].update(name="n" * 300),
}
"""Changes after which a result fits the JSON Schema, by what is said of each."""


@pytest.mark.parametrize("words", ODD)
def test_an_odd_result_costs_itself_alone(tmp_path: Path, words: str) -> None:
    good, odd = (fake.write_regression(tmp_path / "logs" / name, name, 0.4) for name in ("good", "odd"))
    data = json.loads(odd.read_text())
    ODD[words](data)
    odd.write_text(json.dumps(data))
    with bounded():
        fails(LaryError, words, read_result, odd)
    found, broken = find_results(tmp_path)
    assert ([run.folder for run in found], [path.name for path, _ in broken]) == ([good.parent], [FILE_NAME])
    page = write_report(tmp_path / "logs").read_text()
    assert ("Unreadable files" in page, "odd/result.json</code>" in page, 'id="run-1"' in page) == (True, True, True)
    assert len(load_results(tmp_path)) == 2, "two selections of the good one"
