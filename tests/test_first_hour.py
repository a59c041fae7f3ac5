"""The first hour on a GPU, tried on a CPU with tiny data: its steps pass, are kept, and are resumed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "first_hour.py"


def hour(out: Path, *steps: int) -> tuple[int, str]:
    command = [sys.executable, str(SCRIPT), str(out), "--device", "cpu", "--steps", *map(str, steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_steps_are_kept_resumed_and_named_with_their_log(tmp_path: Path) -> None:
    (tmp_path / "simulated").write_text("where data should be made")
    code, text = hour(tmp_path, 0, 6, 8)
    assert (code, "FAILED" in text, f"see {tmp_path / 'logs' / '6_speed.txt'}" in text) == (1, True, True), text
    states = {name: row["state"] for name, row in json.loads((tmp_path / "steps.json").read_text()).items()}
    others = {"machine": "passed", "devices": "skipped: it takes two GPUs"}
    assert (states.pop("speed")[:6], states) == ("FAILED", others)
    (tmp_path / "simulated").unlink()
    code, text = hour(tmp_path, 0, 4)
    assert ("step 0" in text, "step 4: stores" in text, "stores" in text) == (False, True, True), text
    assert json.loads((tmp_path / "steps.json").read_text())["stores"]["state"] == "passed", text


@pytest.mark.slow
def test_all_steps_of_one_device_pass(tmp_path: Path) -> None:
    code, text = hour(tmp_path, *range(8))
    assert (code, text.count("  passed"), text.count(", bare ")) == (0, 8, 4), text
