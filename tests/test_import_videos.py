"""Plain videos with a table of labels become clips that the benchmark reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cyclopts import App

from lary.cli import benchmark as cli_run
from lary.cli import data as cli_data
from lary.data.frames import read_clip
from lary.data.spec import DATASETS, DatasetSpec
from lary.data.tables import SampleTable, read_table
from lary.importers.records import load_record
from lary.importers.videos import VideosReport, VideosRequest, import_videos
from lary.types import LaryError, UsageError
from tests.tree import frame, write_table, write_video

LABELS = ("push", "pull")


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    DATASETS.names()
    monkeypatch.setattr(DATASETS, "_records", dict(DATASETS._records))


def write_videos(tmp_path: Path, count: int = 8, **columns: Sequence[str]) -> VideosRequest:
    """`count` videos of 12 frames in which a square moves, labels by turns, and a request for them."""
    folder, rows = tmp_path / "videos", []
    for number in range(count):
        sign = 1 if number % 2 else -1
        steps = [frame(0.5 + sign * 0.03 * step, 0.1 + 0.8 * number / count, (220, 60, 60)) for step in range(12)]
        write_video(folder / f"day{number % 3}" / f"{number}.mp4", steps)
        row = {"file": f"day{number % 3}/{number}.mp4", "label": LABELS[number % 2]}
        rows.append(row | {name: values[number] for name, values in columns.items()})
    write_table(tmp_path / "labels.csv", rows)
    return VideosRequest(
        folder=folder, table=tmp_path / "labels.csv", name="own", share=0.25,
        data_dir=tmp_path / "data", tables=tmp_path / "root" / "data",
    )  # fmt: skip


def tables(report: VideosReport, request: VideosRequest) -> tuple[DatasetSpec, dict[str, SampleTable]]:
    spec = load_record(report.plugin.with_suffix(".json"))
    return spec, {
        split: read_table(spec, split, path=request.tables / spec.table_name(split), data_dir=request.data_dir)
        for split in spec.splits
    }


def test_videos_become_clips(tmp_path: Path) -> None:
    request = write_videos(tmp_path)
    report = import_videos(request)
    assert report.failures == ()
    assert dict(report.rows) == {"train": 6, "val": 2}
    spec, splits = tables(report, request)
    assert spec.labels.classes == ("pull", "push")
    for table in splits.values():
        assert {sample.target for sample in table} == set(LABELS), "classes keep their shares"
        for sample in table:
            assert len(sample.frame_index) == 9
            (path,) = table.media_path(sample)
            assert path.samefile(request.folder / sample.media[0]), "linked, not copied"
            assert read_clip([path], sample.frame_index, clamp=False).shape == (9, 48, 48, 3)
    groups = [{sample.group for sample in table} for table in splits.values()]
    assert not groups[0] & groups[1]


def test_columns_of_the_table_are_used(tmp_path: Path) -> None:
    request = write_videos(
        tmp_path, split=["train", "test"] * 2 + ["train", "VAL", "train", "train"], embodiment=["arm", "hand"] * 4,
        sample_indices=["0,3,11"] * 8,
    )  # fmt: skip
    spec, splits = tables(import_videos(request), request)
    assert {split: len(table) for split, table in splits.items()} == {"train": 5, "val": 3}
    assert spec.embodiment_column == "embodiment"
    assert {sample.embodiment for sample in splits["train"]} == {"arm", "hand"}
    assert {sample.frame_index for sample in splits["val"]} == {(0, 3, 11)}


def test_a_video_and_its_reversal_stay_together(tmp_path: Path) -> None:
    request = write_videos(tmp_path)
    lines = ["video_path,action"]
    for number in range(8):
        path = request.folder / f"day{number % 3}" / f"{number}.mp4"
        path.with_name(f"{number}_rev.mp4").write_bytes(path.read_bytes())
        lines += [
            f"day{number % 3}/{number}.mp4,{LABELS[number % 2]}",
            f"day{number % 3}/{number}_rev.mp4,{LABELS[1 - number % 2]}",
        ]
    request.table.write_text("\n".join(lines))
    _, splits = tables(import_videos(request), request)
    names = [{sample.media[0].replace("_rev", "") for sample in table} for table in splits.values()]
    assert not names[0] & names[1]
    assert len(splits["train"]) + len(splits["val"]) == 16


def test_broken_videos_are_named_and_left_out(tmp_path: Path) -> None:
    request = write_videos(tmp_path)
    (request.folder / "day0" / "0.mp4").write_bytes(b"no video")
    (request.folder / "day1" / "1.mp4").unlink()
    write_video(request.folder / "day2" / "2.mp4", [frame(0.5, 0.5, (9, 9, 9))])
    report = import_videos(request)
    assert [failure.row for failure in report.failures] == [0, 1, 2]
    assert sum(report.rows.values()) == 5
    assert (request.tables / "own_import_failures.csv").read_text().count("\n") == 4
    assert not (request.data_dir / "classification" / "own" / "day0" / "0.mp4").exists()


def test_indices_behind_the_end_are_a_failure(tmp_path: Path) -> None:
    request = write_videos(tmp_path, sample_indices=["0,11"] * 7 + ["0,12"])
    assert [failure.row for failure in import_videos(request).failures] == [7]


def test_a_second_import_keeps_what_is_there(tmp_path: Path) -> None:
    request = write_videos(tmp_path)
    first = import_videos(request)
    assert import_videos(request) == first
    place = request.data_dir / "classification" / "own" / "day0" / "0.mp4"
    place.unlink()
    place.write_bytes(b"another video")
    report = import_videos(request)
    assert ["other content" in failure.reason for failure in report.failures] == [True]


def test_copied_where_links_are_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    request = write_videos(tmp_path)
    assert import_videos(request).failures == ()
    place = request.data_dir / "classification" / "own" / "day0" / "0.mp4"
    assert place.read_bytes() == (request.folder / "day0" / "0.mp4").read_bytes()
    assert not place.samefile(request.folder / "day0" / "0.mp4")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\n../evil.mp4,push\nb.mp4,pull", "leaves its root"),
        ("file,label\n/etc/passwd,push\nb.mp4,pull", "leaves its root"),
        ("file,label\na.mp4,push\nb.mp4,push", "one class only"),
        ("file,label\na.mp4,\nb.mp4,push", "row 1: the video or the label is empty"),
        ("file,label,split\na.mp4,push,dev\nb.mp4,pull,val", "no split"),
        ("file,label,split\na.mp4,push,\nb.mp4,pull,val", "some rows only"),
        ("file,label,sample_indices\na.mp4,push,x\nb.mp4,pull,1", "no list of frame numbers"),
        ("clip,label\na.mp4,push", "--video-column"),
        ("file,kind\na.mp4,push", "--label-column"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, words: str) -> None:
    request = write_videos(tmp_path, 2)
    request.table.write_text(text)
    with pytest.raises(UsageError, match=words):
        import_videos(request)
    assert not request.data_dir.exists()


def test_columns_can_be_named(tmp_path: Path) -> None:
    request = write_videos(tmp_path)
    request.table.write_text(request.table.read_text().replace("file,label", "clip,kind"))
    assert import_videos(replace(request, video_column="clip", label_column="kind")).failures == ()


def test_wrong_requests(tmp_path: Path) -> None:
    request = write_videos(tmp_path, 2)
    with pytest.raises(UsageError, match="exists already"):
        import_videos(replace(request, name="human_1st"))
    with pytest.raises(UsageError, match="does not exist"):
        import_videos(replace(request, folder=tmp_path / "nowhere"))
    for path in request.folder.rglob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(LaryError, match="None of the 2 videos"):
        import_videos(request)


def test_imported_videos_run_through_extraction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_videos(tmp_path, method_note=[""] * 8)
    app = App(name="lary")
    app.command(cli_run.extract)
    app.command(cli_data.import_videos)

    def call(*tokens: str) -> Any:
        places = ["--lary-root", str(tmp_path / "root"), "--data-dir", str(tmp_path / "data")]
        return app([*tokens, *places], exit_on_error=False, result_action="return_value")

    labels = str(tmp_path / "labels.csv")
    assert call("import-videos", str(tmp_path / "videos"), "--labels", labels, "--method", "uniform") == 0
    assert "0 failed" in capsys.readouterr().out
    plugin = str(tmp_path / "root" / "data" / "videos_dataset.py")
    assert (
        call("extract", "--model", "pixels", "--dataset", "videos", "--split", "val", "--plugin", plugin,
             "--lary-la-dir", str(tmp_path / "la")) == 0
    )  # fmt: skip
    written = next((tmp_path / "root" / "data").glob("val_la_videos_pixels.csv"))
    assert "la_path" in written.read_text()
    assert np.all([path.stat().st_size for path in (tmp_path / "la").rglob("*") if path.is_file()])
