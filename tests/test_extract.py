"""Extraction and the probes behind it: resume, identity, failures, several processes, wrong requests."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lary.cli import main
from lary.configs import ExtractConfig
from lary.latents.npz import read_stamp, read_tokens
from lary.runs import extract as extraction
from lary.runs.extract import extract
from lary.settings import Settings, load_settings
from tests.tree import make_calvin, make_robot

MODEL = "pixels"


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    make_calvin(folder, {"train": 12, "val": 4})
    make_robot(folder, {"train": 16, "val": 8})
    return folder


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "root")
    return tmp_path / "root"


def settings_of(root: Path) -> Settings:
    return load_settings({"LARY_ROOT": str(root), "DATA_DIR": str(root / "data")}, environment={})


def ask(split: str = "val", dataset: str = "calvin", **changes: object) -> ExtractConfig:
    return ExtractConfig(model=MODEL, dataset=dataset, split=split, **changes)  # type: ignore[arg-type]


def lary(root: Path, *words: str) -> int:
    """Run the command line in this process; returns the exit code."""
    places = ["--lary-root", str(root), "--data-dir", str(root / "data")]
    with pytest.raises(SystemExit) as stop:
        main([*words, *places])
    return int(stop.value.code or 0)


def contents(folder: Path) -> dict[str, bytes]:
    skipped = {extraction.TIMING, "store.json"}
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if path.name not in skipped}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_and_stamps(root: Path) -> None:
    report = extract(ask(), settings_of(root))
    rows = rows_of(report.table)
    assert (report.rows, report.extracted, report.done_before, report.failures) == (12, 12, 0, ())
    files = [root / "latent_actions" / row["la_path"] for row in rows]
    assert read_tokens(files[0]).shape == (2, 64, 50)
    stamps = [read_stamp(file) for file in files]
    assert len({stamp.sample for stamp in stamps if stamp}) == 12
    assert {stamp.model for stamp in stamps if stamp} == {MODEL}


def test_resume_gives_the_same_bits_and_redoes_nothing(root: Path) -> None:
    settings = settings_of(root)
    extract(ask(batch_size=5), settings)
    folder = root / "latent_actions" / "calvin" / "val" / MODEL
    before = contents(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    for row in (1, 7, 11):
        (folder / f"latent_action_{row:08d}.npz").unlink()
    (folder / "latent_action_00000003.npz").write_bytes(b"torn")
    report = extract(ask(batch_size=5), settings)
    assert (report.extracted, report.done_before) == (4, 8)
    assert contents(folder) == before
    kept = [name for name in times if int(name[-12:-4]) not in (1, 3, 7, 11)]
    assert all((folder / name).stat().st_mtime_ns == times[name] for name in kept)


def test_limit_then_all_is_as_all_at_once(root: Path) -> None:
    settings = settings_of(root)
    folder = root / "latent_actions" / "robot_1st" / "train" / MODEL
    limited = extract(ask("train", "robot_1st", limit=6, batch_size=4), settings)
    assert limited.rows == 6
    assert len(rows_of(limited.table)) == 6
    extract(ask("train", "robot_1st", batch_size=4), settings)
    pieces = contents(folder)
    shutil.rmtree(folder)
    extract(ask("train", "robot_1st", batch_size=4), settings)
    assert contents(folder) == pieces


def test_killed_and_started_again_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "lary.cli", "extract", "--model", "random-vit", "--dataset", "robot_1st", "--split",
        "train", "--batch-size", "2", "--lary-root", str(root), "--data-dir", str(root / "data"),
    ]  # fmt: skip
    folder = root / "latent_actions" / "robot_1st" / "train" / "random-vit"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.npz"))) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    torn = len(list(folder.glob("*.npz")))
    assert 4 <= torn <= 16
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    resumed = contents(folder)
    table = (root / "data" / "train_la_robot_1st_random-vit.csv").read_bytes()
    shutil.rmtree(folder)
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    whole = contents(folder)
    assert {name: data for name, data in resumed.items() if not name.endswith(".tmp")} == whole
    assert (root / "data" / "train_la_robot_1st_random-vit.csv").read_bytes() == table


def test_several_processes_give_the_same_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(root)
    single = extract(ask("train", batch_size=4), settings)
    folder = root / "latent_actions" / "calvin" / "train" / MODEL
    expected, table = contents(folder), single.table.read_bytes()
    shutil.rmtree(folder)
    monkeypatch.setattr(extraction, "pick_devices", lambda gpus, choice: ["cpu", "cpu"])
    extract(ask("train", batch_size=4), settings)
    assert contents(folder) == expected
    assert single.table.read_bytes() == table


def test_a_bad_image_costs_its_rows_and_the_exit_code(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(root / "data" / "calvin_metadata_val.csv")
    media = root / "data" / "regression" / "calvin" / "val_stride5"
    (media / rows[0]["src_img"]).write_bytes((media / rows[0]["src_img"]).read_bytes()[:60])
    (media / rows[5]["tgt_img"]).unlink()
    assert lary(root, "extract", "--model", MODEL, "--dataset", "calvin", "--split", "val") == 1
    failures = rows_of(root / "latent_actions" / "calvin" / "val" / MODEL / "failures.csv")
    assert [row["row"] for row in failures] == ["1", "6"]
    assert failures[0]["path"] == rows[0]["src_img"]
    assert all(row["reason"] for row in failures)
    written = rows_of(root / "data" / "val_la_calvin_5_pixels.csv")
    assert [index for index, row in enumerate(written) if not row["la_path"]] == [0, 5]
    assert "1 media files are missing" in capsys.readouterr().err
    good = read_tokens(root / "latent_actions" / written[1]["la_path"])
    assert np.isfinite(good).all()


def test_other_rows_do_not_feel_a_bad_one(root: Path) -> None:
    settings = settings_of(root)
    extract(ask("val", "robot_1st", batch_size=4), settings)
    folder = root / "latent_actions" / "robot_1st" / "val" / MODEL
    clean = contents(folder)
    shutil.rmtree(folder)
    (root / "data" / "classification" / "AgiBotWorld-Beta" / "val" / "2.mp4").write_bytes(b"no video")
    report = extract(ask("val", "robot_1st", batch_size=4), settings)
    assert [failure.row for failure in report.failures] == [2]
    dirty = contents(folder)
    assert dirty.pop("failures.csv")
    clean.pop("latent_action_00000002.npz")
    assert dirty == clean


WRONG = [
    (["--model", "pixel"], 2, "Unknown model 'pixel'. Did you mean pixels"),
    (["--dataset", "calvinn"], 2, "Did you mean calvin"),
    (["--split", "vall"], 2, "no split 'vall'. Did you mean val"),
    (["--mode", "video"], 2, "--mode video: data set 'calvin' holds pairs"),
    (["--stride", "10"], 2, "has stride 5"),
    (["--limit", "0"], 2, "--limit 0: must be at least 1"),
    (["--gpus", "a"], 2, "--gpus 'a'"),
    (["--dataset", "libero"], 2, "libero_metadata_val.csv"),
    (["--input", "nowhere.csv"], 2, "nowhere.csv"),
    (["--plugin", "nowhere.py"], 2, "nowhere.py"),
    (["--model", "dinov2-origin", "--weights", "./nowhere"], 2, "--weights points to ./nowhere"),
]


@pytest.mark.parametrize(
    ("options", "code", "message"), WRONG, ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else None
)
def test_wrong_requests(
    root: Path, options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"--model": MODEL, "--dataset": "calvin", "--split": "val"}
    words |= dict(zip(options[::2], options[1::2], strict=True))
    before = sorted(path for path in root.rglob("*"))
    assert lary(root, "extract", *(word for pair in words.items() for word in pair)) == code
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert sorted(path for path in root.rglob("*")) == before


def test_data_dir_unset(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["extract", "--model", MODEL, "--dataset", "calvin", "--split", "val", "--lary-root", str(root)])
    assert stop.value.code == 2
    assert "DATA_DIR is not set" in capsys.readouterr().err


def test_no_media_at_all(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "data" / "regression")
    assert lary(root, "extract", "--model", MODEL, "--dataset", "calvin", "--split", "val") == 1
    told = capsys.readouterr().err
    assert "None of the 16 media files" in told
    assert told.count("frame_") == 10
    assert "Check DATA_DIR" in told


def test_missing_column(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "data" / "calvin_metadata_val.csv").write_text("src_img,action\na.png,b.npy\n")
    assert lary(root, "extract", "--model", MODEL, "--dataset", "calvin", "--split", "val") == 2
    told = capsys.readouterr().err
    assert "tgt_img" in told
    assert "calvin_metadata_val.csv" in told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "latent_actions").mkdir(mode=0o500)
    assert lary(root, "extract", "--model", MODEL, "--dataset", "calvin", "--split", "val") == 1
    assert "Cannot write" in capsys.readouterr().err


def test_a_file_where_a_folder_belongs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "latent_actions").touch()
    assert lary(root, "extract", "--model", MODEL, "--dataset", "calvin", "--split", "val") == 2
    told = capsys.readouterr().err
    assert "a file and no folder" in told
    assert "Traceback" not in told


def test_a_folder_of_another_extraction_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "extract",
        "--model",
        "random-vit",
        "--dataset",
        "calvin",
        "--split",
        "val",
        "--limit",
        "2",
        "--batch-size",
        "2",
    )
    assert lary(root, *words) == 0
    folder = root / "latent_actions" / "calvin" / "val" / "random-vit"
    before = contents(folder)
    assert lary(root, *words, "--seed", "1") == 2
    assert "seed 0 instead of 1" in capsys.readouterr().err
    assert contents(folder) == before
    assert lary(root, *words, "--seed", "1", "--overwrite") == 0
    assert contents(folder) != before


def test_protocols_have_files_of_their_own(root: Path) -> None:
    words = ("extract", "--model", MODEL, "--dataset", "calvin", "--split", "val", "--limit", "2")
    assert lary(root, *words, "--protocol", "paper") == 0
    assert (root / "data" / "val_la_calvin_5_pixels@paper.csv").exists()
    assert not (root / "data" / "val_la_calvin_5_pixels.csv").exists()


# --- probes on extracted latents --------------------------------------------------------------------------------------

REGRESS = ("regress", "--model", MODEL, "--dataset", "calvin", "--probe-preset", "demo", "--epochs", "2")
CLASSIFY = ("classify", "--model", MODEL, "--dataset", "robot_1st", "--probe-preset", "demo", "--epochs", "1")


@pytest.fixture
def extracted(root: Path) -> Path:
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            extract(ask(split, dataset), settings_of(root))
    return root


def result_of(root: Path, *, kind: str) -> Path:
    return next((root / "logs" / kind).rglob("result.json"))


def test_probe_without_latents_names_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lary(root, *REGRESS) == 2
    told = capsys.readouterr().err
    assert "lary extract --model pixels --dataset calvin --split train" in told


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (CLASSIFY, ["--dim", "1024"], "the latents have dimension 50"),
        (CLASSIFY, ["--classes", "123"], "has 54 classes"),
        (CLASSIFY, ["--dataset", "calvin"], "use 'lary regress'"),
        (REGRESS, ["--stride", "15"], "has stride 5"),
        (REGRESS, ["--mode", "video"], "its mode is image"),
        (REGRESS, ["--dataset", "robot_1st"], "use 'lary classify'"),
        (REGRESS, ["--probe-preset", "papper"], "Did you mean paper"),
    ],
)
def test_wrong_probe_requests(
    extracted: Path, words: tuple[str, ...], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = list(words)
    if options[0] in replaced:
        replaced[replaced.index(options[0]) + 1] = options[1]
        options = []
    assert lary(extracted, *replaced, *options) == 2
    assert message in capsys.readouterr().err
    assert not (extracted / "logs").exists()


def test_result_records_what_was_run_and_is_not_overwritten(
    extracted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lary(extracted, *REGRESS) == 0
    file = result_of(extracted, kind="regression")
    first = file.read_bytes()
    result = json.loads(first)
    assert result["preset"] == "demo"
    assert result["protocol"] == "corrected"
    assert set(result["selections"]) == {"held_out", "best_on_validation"}
    assert result["headline"] == "held_out"
    assert "mean_action" in result["controls"]
    assert result["dataset"]["splits"] == {"train": {"rows": 36, "groups": 12}, "val": {"rows": 12, "groups": 4}}
    assert result["timings"]["probe"] > 0
    assert lary(extracted, *REGRESS) == 0
    assert file.read_bytes() == first
    capsys.readouterr()
    assert lary(extracted, *REGRESS, "--seed", "3") == 2
    assert "holds the result of another run" in capsys.readouterr().err
    assert file.read_bytes() == first
    assert lary(extracted, *REGRESS, "--seed", "3", "--overwrite") == 0
    assert json.loads(file.read_bytes())["seed"] == 3


def test_same_seed_same_numbers(extracted: Path) -> None:
    numbers = []
    for _ in range(2):
        assert lary(extracted, *CLASSIFY, "--overwrite") == 0
        result = json.loads(result_of(extracted, kind="classification").read_text())
        numbers.append((result["selections"], result["history"], result["confusion"]))
    assert numbers[0] == numbers[1]


def test_paper_protocol_reports_the_published_selection(extracted: Path) -> None:
    for split in ("train", "val"):
        extract(ask(split, protocol="paper"), settings_of(extracted))
    assert lary(extracted, *REGRESS, "--protocol", "paper") == 0
    file = extracted / "logs" / "regression" / "logs" / "calvin_5_pixels@paper_mlp_absolute" / "result.json"
    result = json.loads(file.read_text())
    assert result["headline"] == "best_on_validation"
    assert list(result["selections"]) == ["best_on_validation"]


def test_latents_of_another_model_are_refused(extracted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        table = extracted / "data" / f"{split}_la_calvin_5_pixels.csv"
        shutil.copy(table, table.with_name(f"{split}_la_calvin_5_random-vit.csv"))
    words = list(REGRESS)
    words[2] = "random-vit"
    assert lary(extracted, *words) == 2
    assert "latents of another model than 'random-vit'" in capsys.readouterr().err


def test_stamp_tells_another_model_behind_a_bare_name(extracted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        rows = rows_of(extracted / "data" / f"{split}_la_calvin_5_pixels.csv")
        shutil.copytree(
            extracted / "latent_actions" / "calvin" / split / "pixels",
            extracted / "latent_actions" / "calvin" / split / "random-vit",
        )
        for row in rows:
            row["la_path"] = Path(row["la_path"]).name
        with (extracted / "data" / f"{split}_la_calvin_5_random-vit.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    words = list(REGRESS)
    words[2] = "random-vit"
    assert lary(extracted, *words) == 2
    assert "holds latents of 'pixels', not of 'random-vit'" in capsys.readouterr().err


def test_missing_latent_files_are_counted(extracted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in (1, 4):
        (extracted / "latent_actions" / "calvin" / "train" / MODEL / f"latent_action_{row:08d}.npz").unlink()
    assert lary(extracted, *REGRESS) == 1
    told = capsys.readouterr().err
    assert "2 of 36 latent files" in told
    assert "latent_action_00000001.npz" in told


def test_unknown_label_names_its_row(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = root / "data" / "robot_1st_metadata_val.csv"
    table.write_text(table.read_text().replace(",place,", ",plase,", 1))
    assert lary(root, "extract", "--model", MODEL, "--dataset", "robot_1st", "--split", "val") == 2
    told = capsys.readouterr().err
    assert "plase" in told
    assert "place" in told


def test_bad_action_file_costs_its_row(extracted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(extracted / "data" / "calvin_metadata_val.csv")
    folder = extracted / "data" / "regression" / "calvin" / "val_stride5"
    (folder / rows[3]["action"]).write_bytes(b"torn")
    assert lary(extracted, *REGRESS) == 1
    result = json.loads(result_of(extracted, kind="regression").read_text())
    assert result["status"] == "incomplete"
    assert result["failures"] == 1
    failures = rows_of(result_of(extracted, kind="regression").parent / "failures.csv")
    assert [row["row"] for row in failures] == ["4"]
