"""The demo as a whole, small: undisturbed, killed and started again, and once more when all is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lary.models.spec import MODELS

COMMAND = [sys.executable, "-m", "lary.cli", "demo", "--pairs", "40", "--clips", "40", "--size", "48", "--out"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PYTHONPATH = {"PYTHONPATH": str(Path(__file__).parents[2])}
WEIGHTLESS = [spec.name for spec in MODELS if spec.weights is None]
VOLATILE = ("created", "timings", "provenance")


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, str(folder)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done


def kill_when(folder: Path, reached: Any) -> None:
    """Start the demo and kill it with all its workers as soon as `reached()`."""
    process = subprocess.Popen(
        [*COMMAND, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 250
    while not reached() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the demo ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def state(folder: Path) -> dict[str, Any]:
    """Everything that a demo leaves, without what tells when and where it ran."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "result.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key not in VOLATILE}
        elif path.suffix in (".npz", ".csv", ".npy", ".png", ".mp4"):
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run(folder).stdout


def test_demo_scores_every_baseline_and_control(undisturbed: tuple[Path, str]) -> None:
    folder, printed = undisturbed
    for name in (*WEIGHTLESS, "mean action", "majority class"):
        assert printed.count(name) >= 1
    results = [json.loads(path.read_text()) for path in (folder / "logs").rglob("result.json")]
    assert len(results) == 2 * len(WEIGHTLESS)
    assert {result["preset"] for result in results} == {"demo"}
    regressions = [result for result in results if result["task"] == "regression"]
    assert all("unseen_mse" in result["selections"]["held_out"]["metrics"] for result in regressions)
    page = (folder / "report.html").read_text()
    assert all(name in page for name in WEIGHTLESS)


def test_killed_demo_ends_like_an_undisturbed_one(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    kill_when(folder, lambda: len(list(folder.rglob("*.png"))) > 5)
    kill_when(folder, lambda: len(list(folder.rglob("latent_action_*.npz"))) > 30)
    kill_when(folder, lambda: len(list(folder.rglob("result.json"))) > 2)
    printed = run(folder).stdout
    expected = state(undisturbed[0])
    found = state(folder)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert printed.splitlines()[:-1] == undisturbed[1].splitlines()[:-1]


def test_second_run_redoes_nothing(undisturbed: tuple[Path, str]) -> None:
    folder, printed = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    again = run(folder).stdout
    assert "nothing was run again" in again
    assert again.splitlines()[0] == printed.splitlines()[0]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")} == before


def test_demo_with_other_options_is_refused(undisturbed: tuple[Path, str]) -> None:
    done = subprocess.run([*COMMAND, str(undisturbed[0]), "--seed", "5"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "dataset"), [("regress", "simarm"), ("classify", "simarm_actions")])
def test_commands_find_the_probes_of_the_demo(undisturbed: tuple[Path, str], command: str, dataset: str) -> None:
    asked = [
        sys.executable,
        "-m",
        "lary.cli",
        command,
        "--model",
        "pixels",
        "--dataset",
        dataset,
        "--probe-preset",
        "demo",
    ]
    done = subprocess.run(asked, cwd=undisturbed[0], capture_output=True, text=True, env=ENVIRONMENT | PYTHONPATH)
    assert done.returncode == 0, done.stderr
    assert "result.json is done" in done.stderr
