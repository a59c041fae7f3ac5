"""The data against the published code: indices of frames, regression targets, and what the tools write."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.data import clips, normalisation, sampling, splits, verify
from lary.data.configs import CheckConfig, RelativeConfig, SplitConfig
from lary.data.frames import count_frames
from lary.data.normalisation import Normaliser, Statistics, load_normaliser, load_targets, relative_stats_file
from lary.data.spec import DATASETS
from lary.data.tables import SampleTable, read_table
from lary.lam.data import parse_distance, pick_pair, pick_source, pick_unit
from lary.types import LaryError
from tests.helpers import fails, rows_of, settings_of
from tests.parity.conftest import FOLDER, Case, case_names, load_case
from tests.parity.fill import uniform
from tests.tree import SIZE, write_array, write_image, write_table, write_video


def value(text: str, x: np.ndarray) -> np.ndarray:
    """A number or a formula of x, such as ``x**2 * 0.3``."""
    assert re.fullmatch(r"[x\d.e*+\- ]+", text), text
    return np.asarray(eval(text, {"__builtins__": {}}, {"x": x})) * np.ones(len(x))


def sequence(case: Case, name: str) -> np.ndarray:
    """A drawn sequence of differences; the description says what becomes of each value x at position k.

    Forms: ``F``, ``F where C else F`` with a condition such as ``20 < k < 26``, ``F at k = N, F at k = N, else F``.
    """
    x = case.draw(name).astype(np.float64)
    text = re.fullmatch(r"float64, (.*) \(k = position\)", case.about["input"][name]["then"])
    assert text, name
    body, _, rest = text[1].partition(" else ")
    k, result = np.arange(len(x)), value(rest or body, x)
    chosen = [(formula, k == int(at)) for formula, at in re.findall(r"([^,]+?) at k = (\d+)", body)]
    if found := re.fullmatch(r"(.+) where (?:(\d+) < )?k (<|>) (\d+)", body):
        limit, least = int(found[4]), int(found[2] or -1)
        chosen = [(found[1], (k < limit if found[3] == "<" else k > limit) & (k > least))]
    for formula, where in chosen:
        result[where] = value(formula.strip(), x)[where]
    return result


@pytest.mark.parametrize("name", case_names(names="sampling*"))
def test_indices_are_the_published_ones(name: str) -> None:
    case = load_case(name)
    count = case.config["num_frames"]
    for key in case.arrays:
        source, _, what = key.rpartition("/")
        if source == "uniform":
            found: Any = sampling.stored_indices(sampling.uniform_picks(int(what), count), count)
        elif source.startswith("video/"):
            path = FOLDER / source.removeprefix("video/")
            if what == "differences":
                motion = count_frames(path) > 2 * count
                differences = sampling.frame_motion(sampling.gray_frames(path)) if motion else [-1.0]
                case.check(key, differences, case.about["tolerance"][what])
                continue
            found = sampling.sample_video(path, count)
        else:
            picks = sampling.motion_picks(sequence(case, source), count)
            found = picks if what == "raw" else sampling.stored_indices(picks, count)
        case.check(key, np.array(found, dtype=np.int64))


def save_drawn(root: Path, place: str, draw: str, shape: list[int], then: str) -> None:
    """An action chunk below `root`: scaled, a dimension set to a constant where the description says so."""
    scaled = re.match(r"x \* ([\d.]+) - ([\d.]+)", then)
    assert scaled, then
    chunk = uniform(draw, tuple(shape)) * np.float32(scaled[1]) - np.float32(scaled[2])
    if constant := re.search(r"dimension (\d+) set to ([\d.]+)", then):
        chunk[:, int(constant[1])] = float(constant[2])
    write_array(root / (place if "actions" in Path(place).parts else f"actions/{place}"), chunk)


def lay_out(folder: Path, entry: dict[str, Any]) -> SampleTable:
    """Write the action files, the statistics and the table of a case; returns the table."""
    spec, rows = DATASETS.get(entry["dataset"]), []
    for row, robot in enumerate(entry["robot_types"]):
        draw = f"{entry['draw']}/{row}"
        save_drawn(folder / spec.split(spec.train).root, f"{row}.npy", draw, entry["shape"], entry["then"])
        picture = f"ep_0/{row}.png"
        rows.append({"src_img": picture, "tgt_img": picture, "action": f"{row}.npy", "robot_type": robot})
    if "stats" in entry:
        rule = spec.actions.normalisation
        file = folder / str(relative_stats_file(spec) if entry["mode"] == "relative" else rule.stats_file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(entry["stats"]))
    return read_table(spec, spec.train, path=write_table(folder / "table.csv", rows), data_dir=folder)


@pytest.mark.parametrize("name", case_names(names="regression_targets*"))
def test_targets(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    for key, entry in case.about["input"].items():
        table, mode = lay_out(tmp_path / key, entry), entry["mode"]
        normaliser = load_normaliser(table.spec, tmp_path / key, mode)
        known = [normaliser.shared is not None or robot in normaliser.robots for robot in table.embodiments]
        found, size = np.empty_like(case.arrays[key]), len(table.spec.actions.dims)
        plain = Normaliser("the test", shared=Statistics(np.zeros(size), np.ones(size)))  # asked for by name
        for chosen, rows in ((normaliser, np.flatnonzero(known)), (plain, np.flatnonzero(~np.array(known)))):
            if len(rows):
                targets = load_targets(table.take(rows.tolist()), chosen, mode=mode)
                assert not targets.failures
                assert targets.readable.all()
                found[rows] = targets.values.reshape(len(rows), -1)
        case.check(key, found)
        if not all(known):
            fails(LaryError, f"row {known.index(False) + 1} ", load_targets, table, normaliser, mode=mode)


def assert_robots(found: Any, expected: Any, tolerance: float) -> None:
    """Statistics of each robot, or of all; ours have ``m2`` besides."""
    assert list(found) == list(expected)
    for robot, entry in expected.items():
        assert found[robot]["count"] == entry["count"]
        for key in ("mean", "std"):
            np.testing.assert_allclose(found[robot][key], entry[key], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", case_names(names="tools_robot_stats*"))
def test_robot_statistics(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    spec, root = DATASETS.get(case.config["dataset"]), tmp_path / "all"
    rows = case.about["input"]["rows"]
    for row in rows:
        if row["kind"] != "missing":
            place = root / spec.split(spec.train).root
            save_drawn(place, row["action"], row["draw"], row["shape"], row["then"])
    cells = [{"robot_type": row["robot_type"] or "", "action": row["action"]} for row in rows]
    table = write_table(tmp_path / "table.csv", cells)
    out, _ = normalisation.measure_table(spec, table, root, workers=2)
    found, expected = json.loads(out.read_text()), case.about["output"]
    assert out == root / str(spec.actions.normalisation.stats_file)
    expected["action_root"] = expected["action_root"].replace("<data-root>", str(root))
    for key in ("dataset", "action_mode", "action_dim", "missing_actions", "missing_action_examples", "action_root"):
        assert found[key] == expected[key], key
    both = [{"all": each["global"], **each["robot_stats"]} for each in (found, expected)]
    assert_robots(*both, case.about["atol"])


@pytest.mark.parametrize("name", case_names(names="tools_relative*"))
def test_relative_actions(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    spec, tables = DATASETS.get(case.config["dataset"]), []
    for file, entry in case.about["input"].items():
        folder = tmp_path / spec.split(normalisation.split_of(spec, Path(file))).root
        for number, row in enumerate(entry["rows"]):
            draw = entry["draw"].replace("<row>", str(number))
            save_drawn(folder, row["action"], draw, entry["shape"], entry["then"])
        tables.append(write_table(tmp_path / "tables" / file, entry["rows"]))
    config = RelativeConfig(dataset=spec.name, csv=tuple(tables), workers=2)
    first, second = (normalisation.write_relative(config, settings_of(tmp_path, DATA_DIR=tmp_path)) for _ in range(2))
    assert [[each.written, each.skipped] for each in second.tables] == case.about["second_run_written_skipped"]
    assert [each.written for each in first.tables] == [len(entry["rows"]) for entry in case.about["input"].values()]
    made = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "regression_relative").rglob("*.*")]
    assert sorted(made) == sorted(case.about["files"])
    for key, expected in case.arrays.items():
        case.check(key, values := np.load(tmp_path / key))
        assert values.dtype == expected.dtype
    for key, expected in case.about["stats"].items():
        found = json.loads((tmp_path / key).read_text())
        for field in ("action_mode", "definition", "dataset"):
            assert found[field] == expected[field]
        pair = [each.get("robot_stats", {"all": each}) for each in (found, expected)]
        assert_robots(*pair, case.about["atol"])


@pytest.mark.parametrize("name", case_names(names="tools_split*"))
def test_split(name: str, tmp_path: Path) -> None:
    case = load_case(name)
    labels, config = case.about["input"]["actions"], case.config
    rows = [{"video_path": f"{row}.mp4", "action": label} for row, label in enumerate(labels)]
    table = write_table(tmp_path / "all_clips.csv", rows)
    for kind, strata in (("stratified", labels), ("plain", None)):
        parts = splits.split_rows(len(labels), config["test_size"], strata, config["random_state"])
        case.check(f"{kind}/train", parts[0])
        case.check(f"{kind}/val", parts[1])
    report = splits.write_split(table, SplitConfig(seed=config["random_state"], share=config["test_size"]))
    for part, path in (("train", report.train), ("val", report.val)):
        assert path.name == f"{part}_clips.csv"
        order = [int(Path(cell).stem) for cell in (row["video_path"] for row in rows_of(path))]
        assert order == case.arrays[f"stratified/{part}"].tolist()


@pytest.mark.parametrize("name", case_names(names="tools_clips*"))
def test_clips(name: str) -> None:
    about = load_case(name).about
    for entry in about["table"]:
        found = [list(span) for span in clips.parse_clips(entry["input"], "published")]
        assert found == entry["clips"], entry["input"]
    naming = about["naming"]
    wanted, out, tasks = frozenset(naming["required"]), Path("<output>"), []
    for source in clips.SOURCES:
        seeds = [(row["video_path"], row["seed_output"]) for row in naming[f"seed_{source.lower()}"]]
        tasks += clips.clip_tasks(source, seeds, Path(f"<{source.lower()}-root>"), out, wanted, "published")
    fields = ("src", "start_t", "duration", "out_path", "rev")
    expected = [tuple(task[field] for field in fields) for task in naming["tasks"]]
    assert [(str(task[0]), task[1], task[2], str(task[3]), task[4]) for task in tasks] == expected


def plant(path: Path, state: str) -> None:
    """A file as the case describes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if state == "a directory":
        path.mkdir()
    elif state in ("not an image", "zero bytes"):
        path.write_bytes(b"text" if state == "not an image" else b"")
    elif state != "absent":
        assert state in ("valid", "accepted by ffprobe"), state
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        if path.suffix == ".npy":
            np.save(path, np.zeros((5, 7), np.float32))
        elif path.suffix == ".mp4":
            write_video(path, [picture] * 3)
        else:
            write_image(path, picture)


@pytest.mark.parametrize("name", case_names(names="tools_integrity*"))
def test_integrity_report(name: str, tmp_path: Path) -> None:
    about = load_case(name).about
    root, groups, roots, states = tmp_path / "all", [], about["roots"], about["input"]["files"]
    ours = {spec.integrity_group: [spec.table_name(split) for split in spec.splits] for spec in DATASETS}
    assert {group: tables for group, tables in ours.items() if group} == about["groups"]
    for group, tables in about["groups"].items():
        for table in (table for table in tables if table in about["input"]):
            groups.append(group)
            entry = about["input"][table]
            rows = [dict(zip(entry["columns"], row, strict=True)) for row in entry["rows"]]
            write_table(tmp_path / "data" / table, rows)
            folder = root / (roots[group][table] if isinstance(roots[group], dict) else roots[group])
            for path in {cell for row in entry["rows"] for cell in row if cell in states}:
                if not (folder / path).exists():
                    plant(folder / path, states[path])
    output = tmp_path / "report.txt"
    config = CheckConfig(groups=tuple(groups), output=output, workers=1, timeout=60, depth="headers")
    report = verify.verify(config, settings_of(tmp_path, DATA_DIR=root))
    found = report.output.read_text().split("\n")
    expected = [line.replace("<data-root>", str(root)) for line in about["report"]]
    method = next(row for row, line in enumerate(expected) if line.startswith("Check method"))
    assert found[method].startswith("Check method: ")
    assert found[:method] + found[method + 1 :] == expected[:method] + expected[method + 1 :]


@pytest.mark.parametrize("name", case_names("lam-training-pairs"))
def test_pairs_for_training_are_the_published_ones(name: str) -> None:
    about = load_case(name).about
    drawn = re.match(r"(\d+), once, before index 0; indices asked for in order", about["python_random_seed"])
    assert drawn, name
    assert about["tolerance"] == "exact"
    frames = random.Random(int(drawn[1]))
    for sample in about["samples"]:
        seed = about["dataset_seed"], sample["index"]
        source = pick_source(*seed, about["weights"])
        folder = pick_unit(*seed, about["folders_per_dataset"][source])
        low, high = parse_distance(str(about["offsets"][source]), name)
        first, second = pick_pair(frames, sample["frames"], low, high)
        found = {"dataset": source, "folder": folder, "first": first, "second": second}
        assert found == {key: sample[key] for key in found}
