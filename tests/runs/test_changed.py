"""Controls of frames for models that mix their frames: the frames are changed before they are encoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.configs import ControlsConfig, ExtractConfig, ProbeControl, RegressConfig, RunConfig
from lary.data.spec import DATASETS
from lary.data.tables import INDEX_COLUMN, read_table
from lary.results import figures
from lary.runs import changed, controls
from lary.runs import run as running
from lary.runs.changed import CHANGED, FRAME_CONTROLS, changed_rows, extract_changed, place_of
from lary.runs.extract import ExtractReport, extract
from lary.runs.probe import regress
from lary.runs.run import run
from lary.runs.tasks import open_splits, shown
from lary.settings import Settings, load_settings
from lary.types import LaryError, UsageError
from tests.tree import make_calvin, make_robot

MODEL = "frame-difference"
"""One step for the two frames of a pair."""
SIGNED = 48
"""Of its channels, the first: signed differences of three colours; 16 absolute ones and the place follow."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A tree of pairs with latents of `MODEL`; figures take seconds each and have tests of their own."""
    for name in ("trajectory_figure", "trajectory_book"):
        monkeypatch.setattr(figures, name, lambda *_: b"")
    make_calvin(tmp_path, {"train": 8, "val": 3})
    names = {"LARY_ROOT": "", "DATA_DIR": "data", "LARY_LA_DIR": "latents", "LARY_LOG_DIR": "logs"}
    found = load_settings({name: str(tmp_path / folder) for name, folder in names.items()}, environment={})
    for split in ("train", "val"):
        extract(asked(split), found)
    return found


def asked(split: str, model: str = MODEL) -> ExtractConfig:
    return ExtractConfig(model=model, dataset="calvin", split=split, workers=1)


def config_of(control: ProbeControl | None, model: str = MODEL) -> RegressConfig:
    return RegressConfig(model=model, dataset="calvin", probe_preset="demo", model_type="ridge", control=control)


def tokens_of(settings: Settings, control: ProbeControl | None) -> np.ndarray:
    """What a probe sees of the validation split."""
    config = config_of(control)
    split = open_splits(settings, DATASETS.get("calvin"), config)["seen"]
    return shown(split, config, 0, training=False).read(np.arange(len(split.table)))


@pytest.mark.parametrize("control", ["static-pair", "shuffled-order"])
def test_the_encoder_sees_changed_frames(settings: Settings, control: ProbeControl) -> None:
    with pytest.raises(UsageError, match=f"--control {control}: .*1 steps for 2 frames.*Run 'lary controls', or 'lary"):
        tokens_of(settings, control)
    for split in ("train", "val"):
        assert extract_changed(asked(split), control, settings)
    own, other = tokens_of(settings, None)[..., :-2], tokens_of(settings, control)[..., :-2]
    assert np.abs(own[..., :SIGNED]).max() > 1
    if control == "static-pair":
        assert not other.any()
        return
    turned = own.copy()
    turned[..., :SIGNED] *= -1
    swapped = [bool((row == theirs).all()) for row, theirs in zip(turned, other, strict=True)]
    kept = [bool((row == theirs).all()) for row, theirs in zip(own, other, strict=True)]
    assert sorted({*zip(swapped, kept, strict=True)}) == [(False, True), (True, False)], "each pair as it is or turned"


def test_controls_of_a_model_that_mixes_its_frames(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples keep their names and targets, so that the control stands beside the run."""
    whole = controls.plan

    def own_controls(*given: Any) -> Any:
        return [(model, changes) for model, changes in whole(*given) if changes.get("control") in FRAME_CONTROLS]

    monkeypatch.setattr(controls, "plan", own_controls)
    for name, module in (("extract", running), ("extract", changed)):
        monkeypatch.setattr(module, name, here)
    config = ControlsConfig(model=MODEL, dataset="calvin", model_type="ridge", probe_preset="demo")
    report = controls.run_controls(config, settings)
    assert not report.left_out
    assert [margin.name for margin in report.result.margins] == [
        f"{MODEL} (ridge probe, static pair)", f"{MODEL} (ridge probe, shuffled order)"
    ]  # fmt: skip
    again = regress(config_of("static-pair"), settings)
    assert not again.new
    nothing = again.result.controls["mean_action"].metrics["seen_mse"].value
    assert again.result.score.value == pytest.approx(nothing, rel=0.02), "nothing is left in the difference of a frame"


def here(config: ExtractConfig, settings: Settings) -> ExtractReport:
    """An extraction with one worker, which starts sooner."""
    return extract(replace(config, workers=1), settings)


def test_a_run_encodes_what_its_control_needs(settings: Settings) -> None:
    config = RunConfig(
        model=MODEL, dataset="calvin", model_type="ridge", probe_preset="demo", control="static-pair", workers=1
    )
    assert run(config, settings).extracted == 24 + 9
    assert run(config, settings).extracted == 0


def test_latents_of_single_frames_need_no_second_extraction(settings: Settings) -> None:
    extract(asked("val", "pixels"), settings)
    assert extract_changed(asked("val", "pixels"), "static-pair", settings) is None
    assert not place_of(settings, "static-pair").path("LARY_ROOT").exists()


def test_changed_frames_of_another_table_are_refused(settings: Settings) -> None:
    for split in ("train", "val"):
        extract_changed(asked(split), "static-pair", settings)
    file = next((place_of(settings, "static-pair").path("LARY_ROOT") / "data").glob("val_la_*.csv"))
    file.write_text(file.read_text().replace("frame_000005.png", "frame_000010.png"))
    with pytest.raises(LaryError, match=r"was made of another table than .*: run 'lary controls' again"):
        tokens_of(settings, "static-pair")


@pytest.mark.parametrize("control", ["static-pair", "shuffled-order"])
def test_frames_of_clips_are_changed_by_their_numbers(tmp_path: Path, control: ProbeControl) -> None:
    make_robot(tmp_path, {"val": 6})
    path = tmp_path / "data" / "robot_1st_metadata_val.csv"
    table = read_table(DATASETS.get("robot_1st"), "val", path=path, data_dir=tmp_path / "data")
    rows = list(changed_rows(table, control))
    at = list(table.frame.columns).index(INDEX_COLUMN)
    cells = [row.pop(at) for row in rows]
    assert rows == table.frame.drop(columns=INDEX_COLUMN).to_numpy().tolist()
    if control == "static-pair":
        assert cells == ["0,0,0,0,0,0,0,0,0"] * 6
    else:
        assert len(set(cells)) > 1
        assert {",".join(sorted(cell.split(","), key=int)) for cell in cells} == {"0,1,2,4,5,7,8,10,11"}
    assert list(changed_rows(table, control)) == list(changed_rows(table, control))


def test_a_store_of_changed_frames_says_so(settings: Settings) -> None:
    for split in ("train", "val"):
        extract_changed(asked(split), "static-pair", settings)
    found = open_splits(settings, DATASETS.get("calvin"), config_of("static-pair"))
    assert {split.store[CHANGED] for split in found.values()} == {"static-pair"}
    assert {len(split.table) for split in found.values()} == {24, 9}
