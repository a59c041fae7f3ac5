"""Controls of frames for models that mix their frames: the frames are changed before they are encoded."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.configs import ControlsConfig, ExtractConfig, ProbeControl, RegressConfig, RunConfig
from lary.data.spec import DATASETS
from lary.data.tables import INDEX_COLUMN, read_table
from lary.latents.ref import LatentsRef, open_latents
from lary.models.spec import MODELS
from lary.results.record import Margin, Metric
from lary.runs.controls import ControlReport, plan
from lary.runs.extract import CHANGED, changed_rows, extract, extract_changed, open_changed
from lary.runs.probe import regress
from lary.runs.run import run
from lary.settings import Settings
from lary.types import LaryError, UsageError
from tests.helpers import fails, printed, settings_of
from tests.tree import make_calvin, make_robot

MODEL = "frame-difference"
"""One step for the two frames of a pair."""
SIGNED = 48
"""Of its channels, the first: signed differences of three colours; 16 absolute ones and the place follow."""
STATIC: dict[str, Any] = {
    "model": MODEL, "dataset": "calvin", "model_type": "ridge", "probe_preset": "demo", "control": "static-pair"
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a tree of pairs with latents of `MODEL`."""
    make_calvin(tmp_path, {"train": 8, "val": 3})
    found = settings_of(tmp_path)
    for split in ("train", "val"):
        extract(asked(split), found)
    return found


def asked(split: str, model: str = MODEL) -> ExtractConfig:
    return ExtractConfig(model=model, dataset="calvin", split=split, workers=1)


def changed_split(settings: Settings, control: str) -> tuple[np.ndarray, np.ndarray, object]:
    """Tokens of the validation split from its own and from changed frames, and the control that these name."""
    ref = LatentsRef(model=MODEL, dataset="calvin", split="val")
    own = open_latents(settings, ref)
    other = open_changed(settings, own, LatentsRef(**vars(ref) | {"control": control}))
    rows = np.arange(len(own.table))
    return own.source.read(rows), other.source.read(rows), other.store[CHANGED]


@pytest.mark.parametrize("control", ["static-pair", "shuffled-order"])
def test_the_encoder_sees_changed_frames(settings: Settings, control: ProbeControl) -> None:
    message = f"--control {control}: .*1 steps for 2 frames.*Run 'lary controls', or 'lary"
    fails(UsageError, message, changed_split, settings, control)
    assert extract_changed(asked("val"), control, settings)
    own, other, named = changed_split(settings, control)
    assert (named, np.abs(own[..., :SIGNED]).max() > 1) == (control, True)
    if control == "static-pair":
        assert not other[..., :-2].any()
        return
    turned = own.copy()
    turned[..., :SIGNED] *= -1
    swapped = {(bool((a == c).all()), bool((b == c).all())) for a, b, c in zip(own, turned, other, strict=True)}
    assert swapped == {(True, False), (False, True)}, "each pair as it is or turned"


def test_controls_of_a_model_that_mixes_its_frames(settings: Settings, tmp_path: Path) -> None:
    """Every control is run; a margin stands in the model's result; nothing is left in the difference of a frame."""
    words = ("--model", MODEL, "--dataset", "calvin", "--model-type", "ridge", "--probe-preset", "demo")
    names = ("shuffled targets", "static pair", "shuffled order", "16 random dimensions", "pixels", "random-vit")
    out = printed("controls", *words, root=tmp_path, has=(*names, "no interval: 3 groups, and 6 are needed"))
    assert ("left out" in out, "alone" in out) == (False, False)
    out = printed("controls", *words, "--seeds", "0", "--overwrite", root=tmp_path, has=["this one training alone"])
    assert not re.search("  p |not significant|control is better", out)
    printed("controls", *words, "--overwrite", root=tmp_path)
    again = regress(RegressConfig(**STATIC), settings)
    assert not again.new
    assert ControlReport(again.result, ("a: why",)).text().endswith("\n  left out: a: why")
    worse = Margin(name="far", value=1, gain=Metric(value=0.2, low=0.1, high=0.3, higher_is_better=False), p=0.01)
    beaten = ControlReport(again.result.model_copy(update={"margins": (worse,)}), ())
    assert beaten.text().endswith("p 0.01  (the control is better)")
    nothing = again.result.controls["mean_action"].metrics["seen_mse"].value
    assert again.result.score.value == pytest.approx(nothing, rel=0.02)
    for project, listed in ((65, True), (66, False)):
        config = ControlsConfig(model=MODEL, dataset="calvin", project=project)
        options = [changes for _, changes in plan(config, MODELS.get(MODEL), again.result)]
        assert ({"project": project} in options) is listed, "66 dimensions of 66 are no control"
    assert {"weights": "random"} in [changes for _, changes in plan(config, MODELS.get("lapa"), again.result)]
    extract(replace(asked("val"), seed=1, overwrite=True), settings)
    words = (*words, "--overwrite")  # of results, never of latents
    printed("controls", *words, root=tmp_path, code=2, has=["holds latents of another extraction"])


def test_a_run_encodes_what_its_control_needs(settings: Settings) -> None:
    assert [run(RunConfig(**STATIC, workers=1), settings).extracted for _ in range(2)] == [24 + 9, 0]
    extract(asked("val", "pixels"), settings)
    assert extract_changed(asked("val", "pixels"), "static-pair", settings) is None, "it encodes single frames"


def test_changed_frames_of_another_table_are_refused(settings: Settings) -> None:
    extract_changed(asked("val"), "static-pair", settings)
    file = next(settings.path("LARY_LA_DIR").glob("controls/static-pair/data/val_la_*.csv"))
    file.write_text(file.read_text().replace("frame_000005.png", "frame_000010.png"))
    message = r"was made of another table than .*: run 'lary controls' again"
    fails(LaryError, message, changed_split, settings, "static-pair")


@pytest.mark.parametrize("control", ["static-pair", "shuffled-order"])
def test_frames_of_clips_are_changed_by_their_numbers(tmp_path: Path, control: ProbeControl) -> None:
    make_robot(tmp_path, {"val": 6})
    path = tmp_path / "data" / "robot_1st_metadata_val.csv"
    table = read_table(DATASETS.get("robot_1st"), "val", path=path, data_dir=tmp_path / "data")
    rows, again = (list(changed_rows(table, control)) for _ in range(2))
    assert rows == again
    at = list(table.frame.columns).index(INDEX_COLUMN)
    cells = [row.pop(at) for row in rows]
    assert rows == table.frame.drop(columns=INDEX_COLUMN).to_numpy().tolist()
    if control == "static-pair":
        assert cells == ["0,0,0,0,0,0,0,0,0"] * 6
    else:
        assert (cells[0], len(set(cells)) > 1) == ("5,7,2,8,4,11,10,0,1", True), "the seed of orders stays"
        assert {",".join(sorted(cell.split(","), key=int)) for cell in cells} == {"0,1,2,4,5,7,8,10,11"}
