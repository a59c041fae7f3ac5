"""Golden outputs of the probes and of all that is done with their results; mistakes, and commands that are stopped.

Sentences may be rewritten: they are compared by exit code, numbers and key words alone.
"""

import csv
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.golden import COMMANDS, FILES, Golden, Place, differences, numbers_of
from tests.tree import make_calvin, make_robot

pytestmark = pytest.mark.usefixtures("no_figures")
GOLDEN = Golden("probes", digits=6, rel=1e-4, scaled=False)
LATENTS = (("pixels", "calvin"), ("pixels", "robot_1st"), ("frame-difference", "robot_1st"))
CONTROLS = "controls --model pixels --dataset calvin --model-type ridge DEMO --seeds 0"
VOLATILE = (
    "schema_version", "created", "identity", "provenance", "timings", "options_given", "dataset", "model", "interval",
    "warnings", "protocol_notes", "classes", "confusion", "examples", "options", "inputs", "extra", "files",
    "folds", "seal",
)  # fmt: skip
"""Fields of a result that differ between two machines, hold sentences, or are abridged below."""


# Facts of what is written


def files_below(folder: Path) -> dict[str, Path]:
    """Files by name below the folder, without locks, hidden ones and those in hidden folders."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not re.search(r"(^|/)(\.|lock$)", name)}


def runs_of(place: Place) -> dict[str, dict[str, Any]]:
    """The facts of all finished runs by folder."""
    files = sorted(place.logs.rglob("result.json"))
    return {file.parent.relative_to(place.logs).as_posix(): run_facts(file.parent) for file in files}


def run_facts(folder: Path) -> dict[str, Any]:
    """Numbers, names of files and contents of the published files of a finished run."""
    result = json.loads((folder / "result.json").read_text())
    matrix = np.array(result["confusion"])
    counted = [row for row in result["classes"] if any(row.get(name) for name in ("train", "true", "predicted"))]
    files = files_below(folder)
    facts: dict[str, Any] = {name: value for name, value in result.items() if name not in VOLATILE} | {
        "dataset": {name: result["dataset"][name] for name in ("name", "splits", "stride", "units", "revision")},
        "model": {name: result["model"][name] for name in ("name", "paradigm", "dim", "shape", "parameters_m")},
        "options": {name: value for name, value in result["options"].items() if name != "device"},
        "sentences": [bool(result["interval"]), len(result["warnings"]), len(result["protocol_notes"])],
        "classes": [len(result["classes"]), counted],
        "confusion": [[*map(int, at), int(matrix[tuple(at)])] for at in np.argwhere(matrix)],
        "examples": [[one["sample"], one["quantile"], one["mse"], one["predicted"]] for one in result["examples"]],
        "margins": [{**margin, "result": bool(margin["result"])} for margin in result["margins"]],
        "files": sorted(result["files"]),
        "on disk": list(files),
    }
    contents = {name: file_facts(path) for name, path in files.items()}
    return facts | {"contents": {name: content for name, content in contents.items() if content is not None}}


def file_facts(file: Path) -> Any:
    """What is in a file that a run is published with; None for others."""
    if file.suffix == ".csv":
        return [[number(cell) for cell in row] for row in csv_of(file)]
    if file.name == "case.txt":
        return file.read_text().splitlines()
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return {name: array_facts(arrays[name]) for name in sorted(arrays.files)}
    own = json.loads(file.read_text()) if file.suffix == ".json" else {}
    if file.name == "classification_stats.json":
        return [len(own), {name: row for name, row in own.items() if row["samples"] or row["precision"]}]
    if file.name == "confusion_matrix.json":
        return {name: np.array(value).shape if name == "matrix" else len(value) for name, value in own.items()}
    return None


def csv_of(file: Path) -> list[list[str]]:
    with file.open(newline="") as stream:
        return list(csv.reader(stream))


def number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def array_facts(array: Any) -> list[Any]:
    """Shape, kind and mean of an array; ends of one that holds no numbers."""
    if array.dtype.kind in "fiub":
        return [array.shape, array.dtype.kind, float(np.mean(array)) if array.size else 0.0]
    return [array.shape, array.dtype.kind, *(str(one) for one in array.reshape(-1)[[0, -1]] if array.size)]


def plain(value: Any) -> Any:
    """A record without its times, versions, paths and classes that never come; the first entries of long lists."""
    if isinstance(value, dict):
        out = ("created", "provenance", "timings", "seconds", "identity", "folder", "path", "run", "runs", "source")
        return {name: plain(one) for name, one in value.items() if name not in out}
    if isinstance(value, list):
        rows = [plain(one) for one in value if not isinstance(one, dict) or one.get("train", 1)]
        return rows if len(rows) < 40 else [len(rows), *rows[:8]]
    return value


# Places to work in


def make_place(root: Path, protocol: str = "corrected", data: Path | None = None) -> Place:
    """A tree with latents of two models, of one protocol."""
    if data is None:
        make_robot(make_calvin(root, {"train": 10, "val": 7}, pairs=2), {"train": 16, "val": 8}, "png")
    place = Place(root, data)
    (root / "tiny.py").write_text(FILES["tiny.py"])
    for model, dataset in LATENTS:
        for split in ("train", "val"):
            place(f"extract --model {model} --dataset {dataset} --split {split} --workers 1 --protocol {protocol}")
    return place


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("corrected"))
    tables = {split: f"calvin_metadata_{split}.csv" for split in ("train", "val")}
    for axes in ("world", "local"):
        words = " ".join(f"--csv ROOT/data/{table}" for table in tables.values())
        place(f"data relative --dataset calvin --input-root ROOT/data --frame {axes} {words}")
    for split, table in {**tables, "unseen": tables["val"]}.items():
        shutil.copy(place.data / table, place.data / f"tiny_metadata_{split}.csv")
        place(f"extract --model pixels --dataset tiny --split {split} --workers 1 --plugin ROOT/tiny.py")
    return place


@pytest.fixture(scope="module")
def paper(corrected: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("paper"), "paper", corrected.data)


@pytest.fixture(scope="module")
def finished(corrected: Place) -> Place:
    """Runs that differ in their controls, all below one folder."""
    place = Place(corrected.root)
    place.logs = corrected.root / "finished"
    for name in ("ridge", "mlp", "classify", "classify differences", "ridge unseen"):
        place(COMMANDS["probes"][name])
    for words in ("--control static-pair", "--project 8"):
        place(f"RIDGE {words}")
    return place


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with latents of one model and one result, where no motion between images has been written."""
    place = make_place(tmp_path_factory.mktemp("spoilt"))
    place("RIDGE")
    return place


# Probes, and what is made of their results


@pytest.mark.parametrize("name", COMMANDS["probes"])
def test_scores(name: str, corrected: Place, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    command = COMMANDS["probes"][name]
    place = request.getfixturevalue("paper") if "PAPER" in command else corrected
    monkeypatch.setattr(place, "logs", place.root / "runs" / name.replace(" ", "_"))
    out = place(command).out
    (file,) = place.logs.rglob("result.json")
    GOLDEN.check(f"scores: {name}", runs_of(place))
    GOLDEN.check(f"summary: {name}", numbers_of(out))
    before = file.stat().st_mtime_ns
    place(command)
    assert file.stat().st_mtime_ns == before, "a run that is done is not done again"


@pytest.mark.parametrize("name", COMMANDS["comparisons"])
def test_compare(name: str, finished: Place, tmp_path: Path) -> None:
    folders = [file.parent for file in finished.logs.rglob("result.json")]
    words = COMMANDS["comparisons"][name]
    found = [next((str(folder) for folder in folders if folder.match(word)), word) for word in words]
    out = finished("compare", *found, "--json", tmp_path / "out.json").out
    GOLDEN.check(f"compare: {name}", numbers_of(out))
    content = (tmp_path / "out.json").read_text().replace(str(finished.logs), "LOGS")
    GOLDEN.check(f"compare as JSON: {name}", json.loads(content))


@pytest.mark.parametrize(("model", "dataset"), LATENTS)
def test_diagnose(model: str, dataset: str, corrected: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corrected, "logs", tmp_path)
    out = corrected(f"diagnose --model {model} --dataset {dataset}").out
    numbers = json.loads((tmp_path / "diagnostics" / dataset / "val" / f"{model}.json").read_text())
    GOLDEN.check(f"diagnose: {model} {dataset}", [plain(numbers), numbers_of(out)])


def test_analyze(finished: Place, tmp_path: Path) -> None:
    finished("analyze all --count 1 --out", tmp_path)
    files = files_below(tmp_path).values()
    GOLDEN.check("analyze: files", [file.name for file in files])
    for file in files:
        if file.suffix == ".csv":
            header, *rows = csv_of(file)
            numbers = [numbers_of(" ".join(row)) for row in rows[:8]]
            GOLDEN.check(f"analyze: {file.name}", [header, len(rows) + 1, numbers])
        elif file.suffix == ".json":
            GOLDEN.check(f"analyze: {file.name}", plain(json.loads(file.read_text())))


def test_controls(corrected: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corrected, "logs", tmp_path)
    out = corrected(CONTROLS).out
    assert ("  p " in out, "this one training alone" in out) == (False, True)
    GOLDEN.check("controls", runs_of(corrected))
    GOLDEN.check("controls: summary", numbers_of(out.split("Written")[0]))


# Mistakes and stops


@pytest.mark.parametrize("name", COMMANDS["mistakes"])
def test_mistakes(name: str, spoilt: Place) -> None:
    """Mistakes are refused in a sentence, and leave no file behind."""
    mistake = COMMANDS["mistakes"][name]
    (spoilt.root / "wrong.yaml").write_text(mistake.get("file", ""))
    before = files_below(spoilt.root).keys()
    done = spoilt(mistake["command"], code=None)
    message = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.out + done.err).split())
    assert (done.code, [word for word in mistake["names"] if word not in message]) == (mistake["code"], []), message
    assert "Traceback" not in message
    assert files_below(spoilt.root).keys() == before


STOPPED = [
    pytest.param(name, count, sent, id=f"{name}-{count}-{sent.name}")
    for name, stops in COMMANDS["stops"].items()
    for kind, sent in (("killed at", signal.SIGKILL), ("interrupted at", signal.SIGINT))
    for count in stops.get(kind, ())
]


def contents(place: Place) -> dict[str, Any]:
    """All that commands have written here; times and places left out."""
    found: dict[str, Any] = {}
    for name, path in files_below(place.root).items():
        found[name] = None
        if path.name == "result.json":
            found[name] = run_facts(path.parent)
        elif path.suffix in (".npz", ".safetensors", ".csv") and "logs" not in name:
            found[name] = path.read_bytes()
        elif path.name.startswith("media"):  # a stopped extraction reads some files twice
            found[name] = sorted(set(path.read_text().splitlines()))
        elif path.suffix == ".txt" and "logs" not in name:
            found[name] = re.sub(r"\d{4}-\d\d-\d\d.*|[\d.]+ s\b", "", path.read_text().replace(str(place.root), ""))
    return found


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """What each command writes when nothing stops it, made when it is asked for."""
    return {}


@pytest.mark.parametrize(("name", "count", "sent"), STOPPED)
def test_stops(name: str, count: int, sent: signal.Signals, spoilt: Place, undisturbed: Any, tmp_path: Path) -> None:
    """Files are whole or absent, and the same command ends as if nothing had happened."""
    command = COMMANDS["stops"][name]["command"]

    def prepared(folder: str) -> Place:
        place = Place(tmp_path / folder / "root")
        shutil.copytree(spoilt.root, place.root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("logs"))
        (place.root / "sweep.yaml").write_text(FILES["sweep.yaml"])
        return place

    if name not in undisturbed:
        whole = prepared("whole")
        whole(command)
        undisturbed[name] = contents(whole)
    place = prepared("stopped")
    before = contents(place)
    code = place.stopped(command, count, sent)
    assert code == (130 if sent == signal.SIGINT else -sent)
    for file, content in contents(place).items():
        if file.endswith((".npz", ".safetensors")) and file not in before and "logs" not in file:
            assert content == undisturbed[name][file], f"{file} is there, but not whole"
    place(command)
    found = contents(place)
    assert found.keys() == undisturbed[name].keys()
    wrong = differences(found, undisturbed[name])
    assert not wrong, "\n".join(wrong[:10])[:3000]
