"""Golden outputs of the probes and of all that is done with their results, made through commands alone.

The expected values are in ``probes.json``. Make them anew with ``LARY_GOLDEN_WRITE=1 pytest -n 0 tests/golden``: they
change only where a change of numbers is meant and written down. Numbers may differ by a part in ten thousand. Sentences
are kept there too, so that a change is seen, but compared by exit code, numbers and key words alone.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from tests.golden.probes_tools import (
    WRITES,
    Place,
    check,
    differences,
    files_below,
    numbers_of,
    run_facts,
    write_lossless,
)
from tests.tree import make_calvin, make_robot

DEMO = "--probe-preset demo"
CLASSIFY = f"classify --model pixels --dataset robot_1st {DEMO} --epochs 2"
DIFFERENCE = f"classify --model frame-difference --dataset robot_1st {DEMO} --epochs 2"
REGRESS = f"regress --model pixels --dataset calvin {DEMO}"
MLP, RIDGE = f"{REGRESS} --epochs 2", f"{REGRESS} --model-type ridge"
DIT = f"{REGRESS} --epochs 2 --model-type dit --sampler-steps 5"
TINY = f"regress --model pixels --dataset tiny {DEMO} --plugin ROOT/tiny.py"
PAPER = "--protocol paper"

PROBES = {
    "classify": CLASSIFY,
    "classify seeds": f"{CLASSIFY} --seeds 0,1",
    "classify static-pair": f"{CLASSIFY} --control static-pair",
    "classify shuffled-order": f"{CLASSIFY} --control shuffled-order",
    "classify shuffled-targets": f"{CLASSIFY} --control shuffled-targets",
    "classify project": f"{CLASSIFY} --project 8",
    "classify pool": f"{CLASSIFY} --pool mean --seed 3 --probe-batch-size 8",
    "classify differences": DIFFERENCE,
    "classify paper": f"{CLASSIFY} {PAPER}",
    "mlp": MLP,
    "mlp seeds": f"{MLP} --seeds 42,43",
    "mlp static-pair": f"{MLP} --control static-pair",
    "mlp shuffled-order": f"{MLP} --control shuffled-order",
    "mlp shuffled-targets": f"{MLP} --control shuffled-targets",
    "mlp project": f"{MLP} --project 8",
    "mlp pool": f"{MLP} --pool grid:2 --seed 1 --probe-batch-size 8",
    "mlp relative": f"{MLP} --action-mode relative",
    "mlp paper": f"{MLP} {PAPER}",
    "mlp unseen": f"{TINY} --epochs 2",
    "dit": DIT,
    "dit relative": f"{DIT} --action-mode relative",
    "dit paper": f"{DIT} {PAPER}",
    "ridge": RIDGE,
    "ridge local": f"{RIDGE} --action-mode relative --relative-frame local",
    "ridge seeds": f"{RIDGE} --seeds 0,1 --project 16",
    "ridge unseen": f"{TINY} --model-type ridge",
    "ridge paper": f"{RIDGE} {PAPER}",
}

TINY_DATASET = """
from dataclasses import replace
from lary.data.spec import DATASETS, Split, register_dataset

calvin = DATASETS.get("calvin")
register_dataset(replace(calvin, name="tiny", title="Tiny", integrity_group="", stride_series="", splits={
    "train": calvin.splits["train"], "val": calvin.splits["val"],
    "unseen": Split(calvin.splits["val"].root, table="calvin_metadata_val.csv")}, unseen="unseen"))
"""

SWEEP = """
options: {probe_preset: demo, workers: 1, model_type: ridge}
grid:
  model: [pixels, frame-difference]
  dataset: [calvin]
runs:
  - {model: pixels, dataset: calvin, project: 4}
"""


@pytest.fixture(autouse=True)
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are written, but nothing is drawn on them: that takes seconds each."""
    monkeypatch.setattr(matplotlib.figure.Figure, "draw", lambda *_: None)


def make_place(root: Path, protocol: str = "corrected", data: Path | None = None) -> Place:
    """A tree with latents of two models, of one protocol."""
    if data is None:
        make_calvin(root, {"train": 10, "val": 7}, pairs=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.tree.write_video", write_lossless)
            make_robot(root, {"train": 16, "val": 8})
    place = Place(root, data)
    (root / "tiny.py").write_text(TINY_DATASET)
    for model, dataset in (("pixels", "calvin"), ("pixels", "robot_1st"), ("frame-difference", "robot_1st")):
        for split in ("train", "val"):
            words = f"extract --model {model} --dataset {dataset} --split {split} --workers 1 --protocol {protocol}"
            place(*words.split())
    return place


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("corrected"))
    tables = [word for split in ("train", "val") for word in ("--csv", f"ROOT/data/calvin_metadata_{split}.csv")]
    for frame in ("world", "local"):
        place("data", "relative", "--dataset", "calvin", "--input-root", "ROOT/data", "--frame", frame, *tables)
    for split in ("train", "val", "unseen"):
        words = f"extract --model pixels --dataset tiny --split {split} --workers 1 --plugin ROOT/tiny.py"
        (place.root / "data" / f"tiny_metadata_{split}.csv").write_bytes(
            (place.root / "data" / f"calvin_metadata_{'train' if split == 'train' else 'val'}.csv").read_bytes()
        )
        place(*words.split())
    return place


@pytest.fixture(scope="module")
def paper(corrected: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("paper"), "paper", corrected.data)


@pytest.mark.parametrize("name", PROBES)
def test_scores(name: str, corrected: Place, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    place = request.getfixturevalue("paper") if PAPER in PROBES[name] else corrected
    monkeypatch.setattr(place, "logs", place.root / "runs" / name.replace(" ", "_"))
    _, out, _ = place(*PROBES[name].split())
    assert len(place.runs()) == 1
    check(f"scores: {name}", place.runs())
    check(f"summary: {name}", numbers_of(out))
    before = (file := next(place.logs.rglob("result.json"))).stat().st_mtime_ns
    place(*PROBES[name].split())
    assert file.stat().st_mtime_ns == before, "a run that is done is not done again"


# What is made of results


@pytest.fixture(scope="module")
def finished(corrected: Place) -> Place:
    """Runs that differ in their controls, all below one folder."""
    place = Place(corrected.root)
    place.logs = corrected.root / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "draw", lambda *_: None)
        for words in (RIDGE, f"{RIDGE} --control static-pair", f"{RIDGE} --project 8", MLP, CLASSIFY, DIFFERENCE,
                      f"{TINY} --model-type ridge"):  # fmt: skip
            place(*words.split())
    return place


COMPARISONS = {
    "ridge and its projection": ("calvin_5_pixels_ridge_absolute", "calvin_5_pixels@project8_ridge_absolute"),
    "three": (
        "calvin_5_pixels_ridge_absolute",
        "calvin_5_pixels_mlp_absolute",
        "calvin_5_pixels@static-pair_ridge_absolute",
    ),
    "classification": ("robot_1st/pixels", "robot_1st/frame-difference"),
    "seed": ("robot_1st/pixels", "robot_1st/frame-difference", "--seed 5"),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_compare(name: str, finished: Place, tmp_path: Path) -> None:
    folders, options = [], []
    for part in COMPARISONS[name]:
        if part.startswith("--"):
            options += part.split()
            continue
        found = [file.parent for file in finished.logs.rglob("result.json") if file.parent.match(part)]
        assert len(found) == 1, (part, found, list(finished.runs()))
        folders.append(str(found[0]))
    _, out, _ = finished("compare", *folders, *options, "--json", str(tmp_path / "out.json"))
    check(f"compare: {name}", numbers_of(out))
    check(
        f"compare as JSON: {name}", json.loads((tmp_path / "out.json").read_text().replace(str(finished.logs), "LOGS"))
    )


def test_diagnose(corrected: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corrected, "logs", tmp_path)
    for model, dataset in (("pixels", "calvin"), ("pixels", "robot_1st"), ("frame-difference", "robot_1st")):
        _, out, _ = corrected("diagnose", "--model", model, "--dataset", dataset)
        numbers = json.loads((tmp_path / "diagnostics" / dataset / "val" / f"{model}.json").read_text())
        check(f"diagnose: {model} {dataset}", [plain(numbers), numbers_of(out)])


def test_analyze(finished: Place, tmp_path: Path) -> None:
    finished("analyze", "all", "--out", str(tmp_path), "--count", "1")
    check("analyze: files", [file.name for file in files_below(tmp_path)])
    for file in files_below(tmp_path):
        if file.suffix == ".csv":
            with file.open(newline="") as stream:
                rows = list(csv.reader(stream))
            check(f"analyze: {file.name}", [rows[0], len(rows), [numbers_of(" ".join(row)) for row in rows[1:9]]])
        elif file.suffix == ".json":
            check(f"analyze: {file.name}", plain(json.loads(file.read_text())))


def test_report(finished: Place, tmp_path: Path) -> None:
    finished("report", "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//[^"'>]*\.(?:js|css|png|svg|woff2?)""", page)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=\s*[\"']?https?:", page)
    assert not re.findall(r"(?:fetch|import)\(\s*[\"']https?:|@import|url\(\s*[\"']?https?:", page)
    for folder, facts in finished.runs().items():
        value = facts["selections"][facts["headline"]]["metrics"][facts["primary"]]["value"]
        shown = f"{100 * value:.1f}" if facts["primary"] == "top1" else f"{value:.3f}"
        assert facts["model"]["name"] in page, folder
        assert shown in page, (folder, shown)


def test_schema(corrected: Place) -> None:
    schema = json.loads(corrected("schema")[1])
    parts = {name: sorted(part.get("properties", part.get("enum", ()))) for name, part in schema["$defs"].items()}
    check("schema", {"fields": sorted(schema.get("properties", ())), "parts": parts})


def test_controls(corrected: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corrected, "logs", tmp_path)
    words = f"controls --model pixels --dataset calvin --model-type ridge {DEMO} --seeds 0"
    _, out, _ = corrected(*words.split())
    check("controls", corrected.runs())
    check("controls: summary", numbers_of(out.split("Written")[0]))


def test_run_and_sweep(corrected: Place, tmp_path: Path) -> None:
    one, many = (Place(tmp_path / name, corrected.data) for name in ("one", "many"))
    one(*f"run --model pixels --dataset calvin --workers 1 {DEMO} --model-type ridge".split())
    check("run", [one.runs(), [path.name for path in files_below(one.root / "latents")][:4]])
    (many.root / "sweep.yaml").write_text(SWEEP)
    _, out, _ = many("sweep", "ROOT/sweep.yaml", "--dry-run")
    assert not many.runs()
    assert all(name in out for name in ("pixels", "frame-difference", "calvin"))
    check("sweep: plan", numbers_of(out))
    many("sweep", "ROOT/sweep.yaml")
    found = many.runs()
    assert len(found) == 3
    check("sweep", found)
    same = {name: [facts[part] for part in ("selections", "history")] for name, facts in one.runs().items()}
    assert same == {name: [found[name][part] for part in ("selections", "history")] for name in same}
    times = {path: path.stat().st_mtime_ns for path in many.logs.rglob("result.json")}
    many("sweep", "ROOT/sweep.yaml", "--part", "1/2")
    many("sweep", "ROOT/sweep.yaml")
    assert times == {path: path.stat().st_mtime_ns for path in many.logs.rglob("result.json")}


def plain(value: Any) -> Any:
    """A record without its times, versions, paths and classes that never come; the first entries of long lists."""
    if isinstance(value, dict):
        out = ("created", "provenance", "timings", "seconds", "identity", "folder", "path", "run", "runs", "source")
        return {name: plain(one) for name, one in value.items() if name not in out}
    if isinstance(value, list):
        rows = [plain(one) for one in value if not isinstance(one, dict) or one.get("train", 1)]
        return rows if len(rows) < 40 else [len(rows), *rows[:8]]
    return value


# Mistakes

MISTAKES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "unknown model": ("regress --model pixel --dataset calvin", 2, ("pixel", "pixels")),
    "unknown data set": ("regress --model pixels --dataset calvi", 2, ("calvi", "calvin")),
    "unknown command": ("regres --model pixels", 2, ("regres", "regress")),
    "unknown option": (f"{MLP} --epoch 3", 2, ("--epoch", "--epochs")),
    "missing option": ("regress --model pixels", 2, ("--dataset",)),
    "no number": (f"{REGRESS} --epochs many", 2, ("epochs", "many")),
    "no choice": (f"{MLP} --model-type dits", 2, ("dits", "dit")),
    "wrong stride": (f"{MLP} --stride 6", 2, ("--stride 6", "calvin", "5")),
    "wrong mode": (f"{MLP} --mode video", 2, ("--mode video", "image")),
    "wrong dimension": (f"{CLASSIFY} --dim 32", 2, ("--dim 32", "50")),
    "wrong classes": (f"{CLASSIFY} --classes 123", 2, ("--classes 123", "54")),
    "wide projection": (f"{MLP} --project 50", 2, ("--project 50", "49")),
    "no epochs": (f"{REGRESS} --epochs 0", 2, ("--epochs 0", "1")),
    "no batch": (f"{MLP} --probe-batch-size -4", 2, ("--probe-batch-size -4", "1")),
    "seed twice": (f"{MLP} --seeds 3,3", 2, ("--seeds 3,3",)),
    "seeds of letters": (f"{MLP} --seeds 0,a", 2, ("--seeds", "0,a", "0,1,2")),
    "large seed": (f"{MLP} --seed 4294967296", 2, ("--seed", "4294967296")),
    "wrong device": (f"{MLP} --gpus 1,1", 2, ("--gpus 1,1",)),
    "wrong preset": ("regress --model pixels --dataset calvin --probe-preset dem", 2, ("dem", "demo")),
    "wrong splits": (f"{MLP} --splits by-day", 2, ("--splits by-day", "calvin")),
    "wrong pooling": (f"{MLP} --pool max", 2, ("max", "mean")),
    "steps of a ridge": (f"{RIDGE} --project 9 --sampler-steps 5", 2, ("--sampler-steps 5", "ridge")),
    "steps of an mlp": (f"{MLP} --sampler-steps 5", 2, ("--sampler-steps", "dit")),
    "classes of actions": (f"classify --model pixels --dataset calvin {DEMO}", 2, ("calvin", "regress")),
    "actions of classes": (f"regress --model pixels --dataset robot_1st {DEMO}", 2, ("robot_1st", "classify")),
    "other protocol": (f"{MLP} {PAPER}", 2, ("paper", "corrected", "extract")),
    "no latents": (f"regress --model optical-flow --dataset calvin {DEMO}", 2, ("optical-flow", "calvin", "extract")),
    "no table": ("extract --model pixels --dataset human_1st --split val", 2, ("human_1st_metadata_val.csv",)),
    "no weights": ("extract --model dinov2-origin --dataset calvin --split val", 2, ("DINO_V2_PATH",)),
    "no split": ("extract --model pixels --dataset calvin --split test", 2, ("test", "train", "val")),
    "no statistics": (f"{MLP} --action-mode relative", 1, ("relative_action_stats_calvin.json",)),
    "no result": ("compare ROOT/data ROOT/logs", 2, ("ROOT/data", "result.json")),
    "one result": ("compare ROOT/data", 2, ("two",)),
    "no runs": ("report ROOT/data", 2, ("result.json", "ROOT/data")),
    "no plug-in": (f"{MLP} --plugin ROOT/absent.py", 2, ("ROOT/absent.py",)),
    "no sweep file": ("sweep ROOT/absent.yaml", 2, ("ROOT/absent.yaml",)),
    "wrong sweep key": ("sweep ROOT/wrong.yaml", 2, ("modle", "model")),
    "no configuration": (f"{MLP} --config ROOT/absent.yaml", 2, ("ROOT/absent.yaml",)),
    "result of another run": (f"{RIDGE} --seeds 4", 2, ("--overwrite", "--lary-log-dir")),
}


@pytest.fixture(scope="module")
def spoilt(corrected: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with latents of one model and one result, where no motion between images has been written."""
    place = make_place(tmp_path_factory.mktemp("spoilt"))
    (place.root / "wrong.yaml").write_text("grid: {modle: [pixels]}")
    place(*RIDGE.split())
    return place


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, spoilt: Place) -> None:
    words, code, wanted = MISTAKES[name]
    found, out, err = spoilt(*words.split(), expected=None)
    told = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out + err).split())
    lines = [line for line in (err + out).splitlines() if "no CUDA device" not in line]
    assert (found, [word for word in wanted if word not in told]) == (code, []), told
    assert "Traceback" not in told
    if not WRITES:
        return
    check(f"message: {name}", lines[0] if lines else "")


# Stops

EXTRACT = "extract --model frame-difference --dataset calvin --split val --workers 1 --batch-size 2"
TRAINING = "--pool mean --epochs 6"
STOPS = {
    "extract npz": (EXTRACT, (1, 6, 14)),
    "extract shards": (f"{EXTRACT} --store shards --shard-rows 4", (1, 3)),
    "regress": (f"{REGRESS} {TRAINING}", (3, 7)),
    "classify": (f"classify --model pixels --dataset robot_1st {DEMO} {TRAINING}", (4,)),
    "sweep": ("sweep ROOT/sweep.yaml", (20,)),
    "data check": ("data check --data-root ROOT/data --groups CALVIN --output ROOT/check.txt --workers 1", (2,)),
}
STOPPED = [(name, count, signal.SIGKILL) for name, (_, counts) in STOPS.items() for count in counts]
STOPPED += [("extract shards", 2, signal.SIGINT), ("regress", 4, signal.SIGINT), ("sweep", 15, signal.SIGINT)]


def contents(place: Place) -> dict[str, Any]:
    """All that commands have written here; times and places left out."""
    found: dict[str, Any] = {}
    for path in files_below(place.root):
        name = path.relative_to(place.root).as_posix()
        if path.name == "result.json":
            found[name] = run_facts(path.parent)
        elif path.suffix in (".npz", ".safetensors", ".csv") and "logs" not in name:
            found[name] = path.read_bytes()
        elif path.suffix == ".txt" and "logs" not in name:
            found[name] = re.sub(r"\d{4}-\d\d-\d\d.*|[\d.]+ s\b", "", path.read_text().replace(str(place.root), ""))
        else:
            found[name] = None
    return found


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """What each command of `STOPS` writes when nothing stops it, made when it is asked for."""
    return {}


@pytest.mark.parametrize(("name", "count", "sent"), STOPPED, ids=lambda value: str(value).replace(" ", "-"))
def test_stops(
    name: str, count: int, sent: signal.Signals, spoilt: Place, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    words = STOPS[name][0].split()

    def prepared(folder: str) -> Place:
        place = Place(tmp_path / folder / "root")
        shutil.copytree(spoilt.root, place.root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("logs"))
        (place.root / "sweep.yaml").write_text(SWEEP)
        return place

    if name not in undisturbed:
        whole = prepared("whole")
        whole(*words)
        undisturbed[name] = contents(whole)
    place = prepared("stopped")
    before = contents(place)
    code = place.stopped(words, count, sent)
    assert code == (130 if sent == signal.SIGINT else -sent), code
    for file, content in contents(place).items():
        if file.endswith((".npz", ".safetensors")) and file not in before and "logs" not in file:
            assert content == undisturbed[name][file], f"{file} is there, but not whole"
    place(*words)
    found = contents(place)
    assert found.keys() == undisturbed[name].keys()
    wrong = differences(found, undisturbed[name])
    assert not wrong, "\n".join(wrong[:10])[:3000]
