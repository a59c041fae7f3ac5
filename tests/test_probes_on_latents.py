"""Probes on extracted latents: requests, results, latents of other models or samples, damaged action files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from lary.cli import main
from lary.configs import ExtractConfig
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


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
