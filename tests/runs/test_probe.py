"""Probe runs from tables and latents to results: what is recorded, resumed, shared by processes, or refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.configs import ExtractConfig, RunConfig
from lary.data.spec import DATASETS
from lary.probes.team import launch
from lary.results.folder import finished_run
from lary.results.published import SampleScores, read_arrays
from lary.results.record import DatasetFacts, read_result
from lary.runs.extract import extract
from lary.runs.probe import run_member, summary
from lary.runs.run import run
from lary.runs.tasks import ActionTask
from lary.types import LaryError, UsageError
from tests.helpers import fails, printed, rows_of, settings_of
from tests.runs.conftest import MODEL, config_of, probe
from tests.tree import make_calvin, write_array, write_table

pytestmark = pytest.mark.usefixtures("no_figures")


def test_a_result_records_what_was_run_and_is_not_overwritten(made: Path, tmp_path: Path) -> None:
    done = probe(made, logs=tmp_path, tracker="tensorboard")
    folder, result = done.folder, done.result
    assert list((folder / "tensorboard").iterdir())
    first = (file := folder / "result.json").read_bytes()
    assert read_result(file) == result
    assert (result.preset, result.protocol, result.headline) == ("demo", "corrected", "held_out")
    assert result.created.endswith("+00:00")
    kinds = [f"{what} {role}" for role in ("train", "seen") for what in ("table", "latents")]
    assert {"options", *kinds} <= {one.name for one in result.inputs if one.digest}
    assert [line.split()[0] for line in summary(result).splitlines() if "<- headline" in line] == ["held_out"]
    sizes = {name: (size.rows, size.groups) for name, size in result.dataset.splits.items()}
    assert sizes == {"train": (30, 10), "val": (21, 7)}
    stages = {"extract train", "extract val", "probe", "waiting for latents"}
    assert (min(result.timings.values()) > 0, set(result.timings)) == (True, stages)
    assert result.timings["waiting for latents"] < result.timings["probe"]
    assert (result.options["precision"], result.options["encoder_precision"]) == ("fp32", "fp32")
    assert [len(digest) for digest in result.dataset.tables.values()] == [16, 16]
    source = result.provenance
    assert (source.devices, source.processes, source.threads) == (("cpu",), 1, torch.get_num_threads())
    assert result.dataset.revision_source == "declared"
    words = [str(tmp_path / "other") if word == str(tmp_path) else word for word in source.probe_command[1:]]
    printed(*words)
    (other,) = (tmp_path / "other").rglob("result.json")
    assert read_result(other).identity == result.identity, "the recorded command does the same run"
    again = probe(made, logs=tmp_path, resume=False, device="cpu")  # nor a tracker: no part of a run's identity
    assert (again.new, again.result, file.read_bytes()) == (False, result, first)
    assert not probe(made, logs=tmp_path, seeds="0,1,2").new, "the default"
    assert "note: intervals" not in summary(result)
    fails(UsageError, r"another run .*--seeds 0,1,2, .*--overwrite to replace it", probe, made, logs=tmp_path, seed=3)
    assert file.read_bytes() == first
    single = probe(made, logs=tmp_path, seed=3, overwrite=True).result
    assert (single.seed, single.seeds) == (3, (3,))
    assert "note: intervals are for this one training alone, and differences have no p value" in summary(single)
    scores = read_arrays(SampleScores, finished_run(folder))
    assert scores.scores.mean() == pytest.approx(read_result(file).score.value, rel=1e-5)
    assert probe(made, "robot_1st", logs=tmp_path, precision="bf16").result.options["precision"] == "bf16"
    fails(UsageError, "another run", probe, made, "robot_1st", logs=tmp_path)
    ridge = probe(made, logs=tmp_path, model_type="ridge", epochs=None, tracker="tensorboard").folder
    assert not (ridge / "tensorboard").exists(), "nothing to track"
    (folder / "predictions.npz").write_bytes(b"PK")
    fails(LaryError, "is not the file that the run wrote", read_arrays, SampleScores, finished_run(folder))


def test_a_result_is_not_returned_for_other_targets_statistics_or_tokens(place: Path, tmp_path: Path) -> None:
    folder = place / "data" / "regression_relative" / "calvin" / "relative_action_stats_calvin.json"
    folder.parent.mkdir(parents=True)
    folder.write_text(json.dumps({"mean": [0.0] * 7, "std": [1.0] * 7}))
    actions = sorted((place / "data/regression/calvin/val_stride5").rglob("*.npy"))
    latents = sorted((place / "latent_actions/calvin").rglob("*.npz"))
    for file in latents:  # as another program leaves them
        np.savez(file, tokens=np.load(file)["tokens"])
    options: dict[str, Any] = {"model_type": "ridge", "epochs": None, "action_mode": "relative"}
    first = probe(place, **options)
    kinds = ("table", "latents", "tokens", "targets", "media")
    roles = [f"{kind} {role}" for role in ("train", "seen") for kind in kinds]
    assert {each.name for each in first.result.inputs} == {"options", "statistics", *roles}
    for files, change, words in (
        (actions[:1], lambda file: np.save(file, np.load(file) * 2), "targets of val"),
        ([folder], lambda file: file.write_text(file.read_text().replace("1.0", "2.0")), "statistics"),
        (latents[-1:], lambda file: np.savez(file, tokens=np.load(file)["tokens"] + 1), "tokens of val"),
        (latents[-1:], lambda file: file.write_bytes(b"PK"), ""),
    ):
        before = {file: file.read_bytes() for file in files}
        for file in files:
            change(file)
        wanted = rf"seeds? .*; since then, there are other {words}\. Pass --overwrite" if words else "can't be read"
        fails(UsageError if words else LaryError, wanted, probe, place, **options)
        for file, content in before.items():
            file.write_bytes(content)
    for file in actions:  # the same numbers in another format
        np.save(file, np.load(file).astype(np.float64))
    assert not probe(place, **options).new
    record = place / "latent_actions/calvin/val/pixels/media_00000.txt"
    record.write_text("\nfff" + record.read_text()[4:])  # as of a store that was made again of another image
    fails(UsageError, "there are other media of val", probe, place, **options)


def test_an_earlier_result_says_which_inputs_it_does_not_name(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    for dataset, words in (
        ("calvin", "media of train, media of val, targets of train, targets of val, statistics"),
        ("robot_1st", "media of train, media of val, classes"),
    ):
        file = probe(place, dataset).folder / "result.json"
        facts = json.loads(file.read_text())
        facts["inputs"] = [each for each in facts["inputs"] if each["name"].startswith(("options", "table", "latents"))]
        del facts["options"]["choice"]
        file.write_text(json.dumps(facts))
        assert not probe(place, dataset).new
        said = f"names no digest of: {words}; changes", "picked on a held-out tenth, by an earlier rule"
        assert all(part in caplog.text for part in said)


def test_a_revision_is_verified_by_the_digests_of_its_samples(made: Path, tmp_path: Path) -> None:
    """Which are those of every model's latents; a record without digests declares its revision."""
    calvin = DATASETS.get("calvin")

    def facts(name: str, **digests: str) -> DatasetFacts:
        DATASETS._records["calvin"] = replace(calvin, digests=digests)
        return probe(made, logs=tmp_path / name, model_type="ridge", epochs=None).result.dataset

    found = facts("one")
    assert (found.revision_source, found.samples.keys()) == ("declared", {"train", "val"})
    assert facts("two", **found.samples).revision_source == "verified"
    assert facts("three", **{**found.samples, "val": "0" * 16}).revision_source == "declared"


def test_what_the_paper_protocol_changes_is_named(place: Path) -> None:
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            extract(ExtractConfig(model=MODEL, dataset=dataset, split=split, protocol="paper"), settings_of(place))
    epoch, head = "the epoch is picked", "the head, in the last epoch, is"
    for kind, first in (("mlp", epoch), ("ridge", "the penalty is picked"), ("attentive", head)):
        options = {} if kind == "attentive" else {"model_type": kind, "epochs": None if kind == "ridge" else 2}
        done = probe(place, "robot_1st" if kind == "attentive" else "calvin", protocol="paper", **options)
        notes = done.result.protocol_notes
        assert notes[0].startswith(first)
        assert "on the reported split itself" in notes[0]
        assert len(notes) == (1 if kind == "ridge" else 2)
        assert kind == "ridge" or "256 in each of eight processes (2,048 together) and drops the last" in notes[1]
        assert f"note: {notes[-1]}" in summary(done.result)
    assert probe(place).result.protocol_notes == ()


@pytest.mark.usefixtures("forked")
def test_every_device_of_a_list_trains(made: Path, tmp_path: Path) -> None:
    """Two processes leave one result, whose numbers are those of one process."""
    alone = probe(made, logs=tmp_path / "one").result
    launch(run_member, (config_of(), settings_of(made, LARY_LOG_DIR=tmp_path / "two"), ()), ("cpu", "cpu"))
    pair = read_result(next((tmp_path / "two").rglob("result.json")))
    assert pair.score.value == pytest.approx(alone.score.value, rel=1e-3)
    assert pair.dataset.splits == alone.dataset.splits
    for one, two in zip(alone.history, pair.history, strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_relative_files_are_read_where_they_are(place: Path) -> None:
    """Files with other values than the chunks' own motion show which ones were read."""
    data, folder = place / "data" / "regression", place / "data" / "regression_relative"
    (folder / "calvin").mkdir(parents=True)
    stats = {"mean": [0.0] * 7, "std": [0.5, 0.5, *([1.0] * 5)]}
    (folder / "calvin" / "relative_action_stats_calvin.json").write_text(json.dumps(stats))
    computed = probe(place, action_mode="relative").result
    moves = np.stack([chunk[-1] - chunk[0] for chunk in map(np.load, (data / "calvin/val_stride5").rglob("*.npy"))])
    assert np.abs(moves - np.array(computed.examples[0].true[0])).max(axis=1).min() < 1e-4
    for source in data.rglob("*.npy"):
        write_array(folder / source.relative_to(data), np.arange(7, dtype=np.float32))
    result = probe(place, action_mode="relative", overwrite=True).result
    np.testing.assert_allclose(result.examples[0].true, [np.arange(7)], atol=1e-4)


def test_a_bad_action_file_costs_its_row(place: Path) -> None:
    for split, number in (("train", 1), ("val", 3)):
        row = rows_of(place / "data" / f"calvin_metadata_{split}.csv")[number]
        (place / "data" / "regression" / "calvin" / f"{split}_stride5" / row["action"]).write_bytes(b"torn")
    shutil.rmtree(place / "data" / "regression" / "calvin" / "val_stride5" / "images")
    done = probe(place)
    assert {path.name[9:] for path in done.folder.rglob("sample_*.png")} == {"action.png"}, "no pictures without images"
    assert (done.result.status, done.result.failures) == ("incomplete", 2)
    assert [row["row"] for row in rows_of(done.folder / "failures.csv")] == ["2", "4"]
    again = run(RunConfig(model=MODEL, dataset="calvin", probe_preset="demo", epochs=2, workers=1), settings_of(place))
    assert (again.probe.new, again.failures) == (False, 2)


@pytest.mark.parametrize("shape", [(2, 4, 6), (4, 6), (6,), (2, 2, 2, 6)])
def test_latents_of_a_model_without_a_record_are_probed(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """As the benchmark's description promises: another program's table and files, with tokens of any shape alone."""
    make_calvin(tmp_path, {"train": 8, "val": 5})
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        rows = rows_of(tmp_path / "data" / f"calvin_metadata_{split}.csv")
        for number, row in enumerate(rows):
            row["la_path"] = f"calvin/stride_5/{split}/my-model/latent_action_{number}.npz"
            file = tmp_path / "latent_actions" / row["la_path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, tokens=generator.normal(size=shape).astype(np.float32))
        write_table(tmp_path / "data" / f"{split}_la_calvin_5_my-model.csv", rows)
    words = ("regress", "--dataset", "calvin", "--stride", "5", "--model-type", "ridge", "--probe-preset", "demo")
    printed(*words, "--model", "my-model", root=tmp_path, has=["The model 'my-model' is unregistered"])
    result = read_result(next((tmp_path / "logs").rglob("result.json")))
    assert (result.model.paradigm, result.model.dim) == ("unregistered", 6)


def test_an_unwritable_folder_stops_a_probe_before_its_training(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.optim, "AdamW", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "regression").touch()
    fails(LaryError, r"Cannot write .*regression.*: ", probe, made, logs=tmp_path)


def test_latents_that_are_extracted_anew_while_they_are_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ActionTask.train

    def changing(task: ActionTask, session: Any) -> Any:
        file = task.splits["train"].folder / "store.json"
        file.write_text(file.read_text().replace(task.splits["train"].store["key"], "f" * 16))
        return train(task, session)

    monkeypatch.setattr(ActionTask, "train", changing)
    fails(LaryError, "The latents changed while the probe read them", probe, place)
    assert not list(place.rglob("result.json"))
