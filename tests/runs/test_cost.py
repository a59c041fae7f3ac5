"""Dry runs of whole runs and of sweeps: what they print for both tasks, and that nothing is changed."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from lary.lam.configs import TrainLamConfig
from lary.runs.cost import Estimates
from lary.settings import load_settings
from tests.helpers import contents, lary, printed

pytestmark = pytest.mark.usefixtures("no_figures")
STAGES = ("start", "media", "encoding", "latents", "training", "evaluation", "scoring")
OPTIONS = ("--model", "frame-difference", "--probe-preset", "demo", "--workers", "1", "--dry-run")


def rows(*words: str | Path, root: Path) -> dict[str, list[float]]:
    """Numbers of the table of costs that a command prints, by the first words of its rows."""
    done = lary(*words, root=root)
    assert done.code == 0, done.err
    head, *lines = done.out[done.out.index("  start  media") :].splitlines()
    assert head.split() == [*STAGES, "all,", "s", "written,", "GB", "read,", "GB"]
    return {" ".join(line.split()[:-10]): list(map(float, line.split()[-10:])) for line in lines}


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("calvin", ("--model-type", "ridge", "--folds", "2")),
        ("calvin", ("--model-type", "dit", "--seeds", "0,1")),
        ("calvin", ("--model-type", "mlp", "--control", "static-pair", "--store", "shards", "--dtype", "float16")),
        ("robot_1st", ("--project", "8")),
    ],
)
def test_a_run_in_advance(place: Path, dataset: str, words: tuple[str, ...]) -> None:
    before = contents(place)
    ((title, found),) = rows("run", "--dataset", dataset, *OPTIONS, *words, root=place).items()
    assert title == f"frame-difference on {dataset}"
    assert sum(found[:7]) == pytest.approx(found[7], abs=0.5)
    assert min(found) >= 0
    assert min(found[8], found[9]) > 0, "bytes of latents"
    assert contents(place) == before, "nothing is changed"


def test_latents_of_a_sweep_count_once(place: Path) -> None:
    text = "options: {dataset: calvin, probe_preset: demo, model_type: ridge, workers: 1}\n"
    (place / "sweep.yaml").write_text(f"{text}grid: {{model: [optical-flow, frame-difference], project: [null, 4]}}")
    found = rows("sweep", place / "sweep.yaml", "--dry-run", root=place)
    written = [own[8] for own in found.values()]
    assert (len(written), written[1], written[3], min(written[0], written[2]) > 0) == (5, 0, 0, True)
    assert written[4] == pytest.approx(written[0] + written[2], rel=0.01)
    lary("sweep", place / "sweep.yaml", root=place)
    assert "start" not in printed("sweep", place / "sweep.yaml", "--dry-run", root=place), "all is done"


def test_bytes_in_advance_are_those_written(place: Path) -> None:
    words = ("run", "--dataset", "calvin", *OPTIONS, "--model-type", "ridge")
    first = rows(*words, root=place)["frame-difference on calvin"]
    printed(*(word for word in words if word != "--dry-run"), root=place)
    size = sum(map(len, contents(place / "latent_actions", "frame-difference/*").values()))
    assert first[8] == pytest.approx(size / 1e9, rel=0.2)
    again = rows(*words, root=place)["frame-difference on calvin"]
    assert (again[1], again[2], again[8]) == (0, 0, 0), "the latents are there"
    for table in (place / "data").glob("*_la_*"):
        table.unlink()
    extraction = printed("extract", "--dataset", "calvin", "--split", "train", *OPTIONS[:2], "--dry-run", root=place)
    assert " 0 to do" in extraction
    assert "has to write their table" in lary(*words, root=place).err, "as a stopped extraction leaves it"


def test_media_that_cant_be_read_leave_the_cost_unknown(place: Path) -> None:
    for picture in (place / "data" / "regression").rglob("*.png"):
        picture.write_bytes(b"")
    done = lary("run", "--dataset", "calvin", *OPTIONS, root=place)
    assert (done.code, "Nothing of train can be read: row 1: " in done.err) == (0, True), done.err


def test_a_trial_fits_devices_and_does_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Mock(return_value={"seconds": {"training": 1.0, "evaluation": 1.0}})
    monkeypatch.setattr("lary.lam.train_lam", train)
    monkeypatch.setattr("lary.runs.cost.pick_devices", lambda *words, every: [f"cuda:{at}" for at in range(16)])
    config = TrainLamConfig(backbone="lapa", dataset=("simarm",), out=tmp_path / "lam", stop_on_collapse=True)
    Estimates(load_settings(), tmp_path).of_training(config)
    for call in train.call_args_list:
        assert (call.args[0].batch_size >= 16, call.args[0].stop_on_collapse) == (True, False)
