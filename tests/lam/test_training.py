"""Trainings of latent action models: resuming, processes, files, the monitor, and mistakes in sentences."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lary.files import file_digest
from tests.lam.made import made_training

WORK = """
import sys, torch
from pathlib import Path
from tests.lam.made import made_training
torch.set_num_threads(1)
made_training(folder=Path(sys.argv[1]), steps=60, checkpoint_minutes=0.0).run()
"""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_training_resumes_with_the_same_bits(kills: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    made_training(folder=tmp_path / "whole", steps=60).run()
    folder, draw, seen = tmp_path / "parts", random.Random(3), []
    state = folder / ".work" / "state.pt"
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", WORK, str(folder)], stderr=subprocess.DEVNULL)
        before = state.stat().st_mtime_ns if state.exists() else 0
        while not state.exists() or state.stat().st_mtime_ns == before:  # it has begun to train
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(torch.load(state, weights_only=True)["step"])
    assert seen == sorted(seen)
    assert 0 < seen[0] <= seen[-1] < 60, seen
    subprocess.run([sys.executable, "-c", WORK, str(folder)], check=True)
    assert_same(weights(folder), weights(tmp_path / "whole"))
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "parts")]
    assert records[0]["curves"] == records[1]["curves"]
    assert records[0]["weights_digest"] == file_digest(folder / "model.safetensors", 64)
