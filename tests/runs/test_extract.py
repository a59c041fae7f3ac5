"""Extraction: files and stamps, resume, failures, limits, other requests, what it needs beforehand."""

import os
import shutil
from pathlib import Path
from typing import Any

import av
import pytest

from lary.configs import ExtractConfig
from lary.files import media_facts
from lary.latents.store import MANIFEST
from lary.locks import LOCK, locked
from lary.models.running import LoadedEncoder
from lary.runs.cost import estimate
from lary.runs.extract import FAILURES, TIMING, extract, prepare_run, read_timing
from lary.types import LaryError, UsageError
from tests.helpers import fails, printed, rows_of, settings_of
from tests.hostile.harness import bounded, refused, snapshot
from tests.tree import frame, make_calvin, make_robot, write_table, write_video

MODEL = "pixels"
ASK = ("extract", "--model", MODEL, "--dataset", "calvin", "--split", "val")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_robot(make_calvin(tmp_path_factory.mktemp("template"), {"val": 4}), {"train": 16, "val": 8})


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "root")


def ask(split: str = "val", dataset: str = "calvin", **changes: Any) -> ExtractConfig:
    return ExtractConfig(**({"model": MODEL, "dataset": dataset, "split": split} | changes))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.glob("[!m]*")) if path.name not in (TIMING, MANIFEST)]
    return {path.name: path.read_bytes() for path in files}


def latents(root: Path, dataset: str = "calvin", split: str = "val", model: str = MODEL) -> Path:
    return root / "latent_actions" / dataset / split / model


def test_rows_behind_a_limit_come_in_further_shards(root: Path) -> None:
    options = {"store": "shards", "shard_rows": 4, "batch_size": 2}
    limited, report = (extract(ask(**options, limit=limit), settings_of(root)) for limit in (5, None))
    assert (limited.rows, limited.extracted, report.done_before, report.extracted) == (5, 5, 5, 7)
    files = sorted(path.stem for path in latents(root).glob("shard*"))
    assert files == ["shard_00000", "shard_00001", "shard_00001_1", "shard_00002"]


@pytest.mark.parametrize("kind", ["npz", "shards"])
def test_a_replaced_file_is_named_and_the_split_is_done_again(root: Path, kind: Any, caplog: Any) -> None:
    settings, options = settings_of(root), {"store": kind, "shard_rows": 4, "batch_size": 2}
    first, media = extract(ask(**options, limit=5), settings), root / "data/regression/calvin/val_stride5"
    rows = rows_of(root / "data" / "calvin_metadata_val.csv")
    one, *_, last = (media / row["tgt_img"] for row in rows)
    shutil.copytree(media, root / "copy", copy_function=shutil.copyfile)  # every file has another time
    shutil.rmtree(media)
    (root / "copy").rename(media)
    assert (first.extracted, extract(ask(**options), settings).done_before) == (5, 5)
    (record := latents(root) / "media_00000.txt").write_text(record.read_text() + "\ntorn")
    kept = one.read_bytes()
    one.write_bytes(last.read_bytes())
    message = rf"^1 media files were replaced .*{one.name}: put .* or pass --overwrite"
    fails(UsageError, message, extract, ask(**options), settings)
    one.write_bytes(kept)
    assert extract(ask(**options), settings).extracted == 0
    last.write_bytes(kept)
    fails(UsageError, last.name, extract, ask(**options, limit=5), settings)
    assert extract(ask(**options, overwrite=True), settings).extracted == 12
    last.unlink()
    assert extract(ask(**options), settings).extracted == 0
    assert "goes unnoticed" not in caplog.text
    for file in latents(root).glob("media*"):
        file.unlink()
    assert extract(ask(**options), settings).extracted == 0
    assert "replaced ones go unnoticed" in caplog.text


def test_large_media_are_known_by_head_tail_and_pieces(tmp_path: Path) -> None:
    file, content = tmp_path / "a.mp4", bytearray(9 << 20)
    file.write_bytes(content)
    os.utime(file, ns=(0, 7))
    first = media_facts(file)
    assert first[16:] == f" {9 << 20:016d} {7:020d}"
    for place in (0, 612_000, len(content) - 1):
        file.write_bytes(content[:place] + b"x" + content[place + 1 :])
        assert media_facts(file)[:16] != first[:16], place


def test_other_rows_do_not_feel_a_bad_one(root: Path) -> None:
    settings, folder = settings_of(root), latents(root, "robot_1st")
    extract(ask("val", "robot_1st", batch_size=4), settings)
    clean = contents(folder)
    shutil.rmtree(folder)
    (root / "data" / "classification" / "AgiBotWorld-Beta" / "val" / "2.mp4").write_bytes(b"no video")
    report = extract(ask("val", "robot_1st", batch_size=4), settings)
    assert [failure.row for failure in report.failures] == [2]
    dirty = contents(folder)
    assert dirty.pop("failures.csv")
    clean.pop("latent_action_00000002.npz")
    assert dirty == clean


def test_frames_behind_the_end_of_a_clip_fail_and_are_clamped_under_the_published_protocol(root: Path) -> None:
    table = root / "data" / "robot_1st_metadata_val.csv"
    found = rows_of(table)
    write_table(table, [*found[:-1], {**found[-1], "sample_indices": "0,1,2,4,5,7,8,10,900"}])
    (failure,) = extract(ask("val", "robot_1st"), settings_of(root)).failures
    assert failure.row == len(found) - 1
    assert failure.reason.endswith("ends with frame 11, and frame 900 is asked for.")
    assert extract(ask("val", "robot_1st", protocol="paper"), settings_of(root)).failures == ()


def damage(folder: Path) -> dict[str, str]:
    """Nine clips, each damaged in its own way; the reason that each one has to get."""
    good = (folder / "0.mp4").read_bytes()
    (folder / "1.mp4").write_bytes(good[: len(good) // 2])
    (folder / "2.mp4").write_bytes(b"")
    (folder / "3.mp4").write_bytes(b"\x89PNG\r\n\x1a\n" + good)
    with av.open(str(folder / "4.mp4"), "w") as container:
        container.add_stream("libx264", rate=10)
        container.start_encoding()
    for number in (5, 6, 9):
        (folder / f"{number}.mp4").unlink()
    os.mkfifo(folder / "6.mp4")
    (folder / "7.mp4").rename(folder / "hangs.mp4")
    (folder / "8.mp4").rename(folder / "crashes.mp4")
    (folder / "9.mp4").symlink_to("9.mp4")
    return {
        "1.mp4": "", "2.mp4": "", "3.mp4": "", "4.mp4": "video stream", "5.mp4": "No such file",
        "6.mp4": "no regular file", "hangs.mp4": "no answer within 6 s", "crashes.mp4": "crashed (signal 9)",
        "9.mp4": "symbolic links",
    }  # fmt: skip


def test_five_percent_damaged_files(tmp_path: Path, handicap: None) -> None:
    folder = tmp_path / "data" / "classification" / "AgiBotWorld-Beta" / "val"
    write_video(folder / "0.mp4", [frame(0.1 * step, 0.5, (200, 60, 60)) for step in range(9)])
    for index in range(1, 180):
        shutil.copy(folder / "0.mp4", folder / f"{index}.mp4")
    reasons, names = damage(folder), ["hangs" if at == 7 else "crashes" if at == 8 else at for at in range(180)]
    cells = {"action": "pick", "sample_indices": "0,2,4"}
    rows = [{"video_path": f"AgiBotWorld-Beta/val/{name}.mp4", **cells} for name in names]
    write_table(tmp_path / "data" / "robot_1st_metadata_val.csv", rows)
    words = ("extract", "--model", MODEL, "--dataset", "robot_1st", "--split", "val", "--read-timeout", "6")
    printed(*words, "--workers", "5", root=tmp_path, code=1)  # more readers than other tests have left
    found = {Path(row["path"]).name: row["reason"] for row in rows_of(latents(tmp_path, "robot_1st") / FAILURES)}
    assert sorted(found) == sorted(reasons)
    assert all(reasons[name] in reason and name in reason for name, reason in found.items())
    written = rows_of(tmp_path / "data" / "val_la_robot_1st_pixels.csv")
    assert [index for index, row in enumerate(written) if not row["la_path"]] == [*range(1, 10)]
    assert len(list(latents(tmp_path, "robot_1st").glob("*.npz"))) == 171


def test_retry_failed_takes_only_the_failed_rows(root: Path) -> None:
    rows = rows_of(root / "data" / "calvin_metadata_val.csv")
    media = root / "data" / "regression" / "calvin" / "val_stride5"
    printed(*ASK, "--retry-failed", root=root, code=2, has=["the last run had no failures"])
    kept = (media / rows[5]["tgt_img"]).read_bytes()
    (media / rows[5]["tgt_img"]).write_bytes(kept[:100])
    (media / rows[11]["tgt_img"]).unlink()
    printed(*ASK, root=root, code=1, has=["1 media files of the first 12 rows are missing"])
    found = rows_of(latents(root) / "failures.csv")
    assert [(row["row"], row["path"]) for row in found] == [("6", rows[5]["tgt_img"]), ("12", rows[11]["tgt_img"])]
    (latents(root) / "latent_action_00000009.npz").unlink()
    (media / rows[5]["tgt_img"]).write_bytes(kept)
    printed(*ASK, "--retry-failed", root=root, code=1, has=["1 of 12 rows are still to be done"])
    assert [row["row"] for row in rows_of(latents(root) / "failures.csv")] == ["12"]
    assert len(list(latents(root).glob("*.npz"))) == 12 - 2
    printed(*ASK, root=root, code=1, has=["12 rows, 1 extracted now, 1 failed"])


COUNTS = ("limit", "batch-size", "workers", "shard-rows", "read-timeout")
WRONG = [
    (["--dataset", "calvinn"], "Did you mean calvin"),
    (["--split", "vall"], "no split 'vall'. Did you mean val"),
    (["--mode", "video"], "--mode video: data set 'calvin' holds pairs and has mode image"),
    (["--stride", "10"], "has stride 5"),
    *(([f"--{name}", "0"], f"--{name} 0: must be more than 0") for name in COUNTS),
    (["--gpus", "a"], "--gpus 'a'"),
    (["--input", "nowhere.csv"], "nowhere.csv"),
    (["--plugin", "nowhere.py"], "nowhere.py"),
    (["--dtype", "bfloat16"], "--store shards"),
    (["--pool", "cls"], "'pixels' gives no class token; these models do: "),
    (["--model", "dinov2-origin", "--weights", "./nowhere"], "--weights points to ./nowhere"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[f"{words[0]}-{words[1][:9]}" for words, _ in WRONG])
def test_wrong_requests(root: Path, options: list[str], message: str) -> None:
    words = {"--model": MODEL, "--dataset": "calvin", "--split": "val"}
    words |= dict(zip(options[::2], options[1::2], strict=True))
    before = snapshot(root)
    with bounded():
        printed("extract", *(word for pair in words.items() for word in pair), root=root, code=2, has=[message])
    assert snapshot(root) == before


def test_what_is_wrong_with_the_folders_is_one_sentence(root: Path) -> None:
    shutil.rmtree(root / "data" / "regression")
    printed(*ASK, root=root, code=1, has=["None of the 16 media files", "Check DATA_DIR"])
    shutil.rmtree(root / "latent_actions", ignore_errors=True)
    (root / "latent_actions").touch()
    printed(*ASK, root=root, code=2, has=["a file and no folder"])


def test_formulas_and_commands_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for as files, named as they stand, and nothing runs them."""
    monkeypatch.chdir(tmp_path)
    make_calvin(tmp_path, {"val": 1})
    formulas = ("=HYPERLINK(1)", "+cmd|' /C calc'!A0", "-2+3", "$(touch executed)", "`touch executed`", "%n%n%s{0}")
    rows = rows_of(table := tmp_path / "data" / "calvin_metadata_val.csv")
    write_table(table, rows + [rows[0] | {"tgt_img": each} for each in formulas])
    report = extract(ask(workers=1), settings_of(tmp_path))
    assert [failure.row for failure in report.failures] == list(range(3, 3 + len(formulas)))
    assert not (tmp_path / "executed").exists()
    assert [row["path"] for row in rows_of(latents(tmp_path) / FAILURES)] == [f"images/{each}" for each in formulas]


def test_a_folder_of_another_extraction_is_refused(root: Path) -> None:
    words = ("extract", "--model", "random-vit", *ASK[3:], "--limit", "2", "--batch-size", "2")
    printed(*words, root=root)
    before = contents(latents(root, model="random-vit"))
    printed(*words, "--seed", "1", root=root, code=2, has=["seed 0 instead of 1"])
    assert contents(latents(root, model="random-vit")) == before
    printed(*words, "--seed", "1", "--overwrite", root=root)
    assert contents(latents(root, model="random-vit")) != before
    for own in ({"precision": "bf16"}, {"protocol": "paper"}, {"pool": "mean"}, {"dtype": "float16"}):
        identities = [prepare_run(ask(**changes), settings_of(root)).identity.key for changes in ({}, own)]
        assert identities[0] != identities[1], own


def test_a_second_writer_is_told_who_is_at_work(root: Path) -> None:
    with locked(latents(root)):
        printed(*ASK, root=root, code=1, has=[f"by process {os.getpid()} on "])
        assert [path.name for path in latents(root).iterdir()] == [LOCK]
    (torn := root / "data" / ".val_la_calvin_5_pixels.csv.x1.tmp").touch()
    printed(*ASK, root=root)
    assert not torn.exists(), "what a killed run was writing"


def test_too_little_disk_is_refused_before_anything_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)._replace(free=12 * 2 * 64 * 50 * 4 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    message = r"12 rows of 2x64x50 float32 need 0\.0 GB.* free some, choose --dtype or --pool"
    fails(LaryError, message, extract, ask(), settings_of(root))
    assert not contents(latents(root))
    assert f"into {latents(root)}: NOT ENOUGH SPACE" in estimate(ask(), settings_of(root))


def test_dry_run_measures_and_changes_nothing(root: Path) -> None:
    before = snapshot(root)
    words = (": 12 rows, 0 done, 12 to do", "measured      12 rows in", " s on 1 devices", "free there")
    printed(*ASK, "--dry-run", "--batch-size", "4", root=root, has=words)
    assert snapshot(root) == before
    extract(ask(batch_size=4, limit=8), settings_of(root))
    before, size = snapshot(root), sum(map(len, contents(latents(root)).values())) / 8
    found = estimate(ask(batch_size=4), settings_of(root))
    words = ("12 rows, 8 done, 4 to do", f"to write      {4 * size / 1e9:.3f} GB into {latents(root)}\n")
    assert ([part for part in words if part not in found], snapshot(root)) == ([], before)
    for picture in (root / "data" / "regression").rglob("*.png"):
        picture.write_bytes(b"")
    found = estimate(ask(batch_size=4), settings_of(root))
    assert [part for part in ("time, bytes   unknown", "unreadable    row 9: ") if part not in found] == []


@pytest.mark.parametrize(
    "data", [b"\xff\xfe row\n1\n", b"row,path\n" + b"1" * 200_000, b'row,path\n"' + b"1\n" * 100_000], ids=range(3)
)
def test_list_of_failures_that_is_none(root: Path, data: bytes) -> None:
    extract(ask(), settings_of(root))
    (latents(root) / FAILURES).write_bytes(data)
    (latents(root) / "latent_action_00000001.npz").unlink()
    refused(root / "data", lambda: extract(ask(retry_failed=True), settings_of(root)), f"{FAILURES} can't be read")
    assert extract(ask(), settings_of(root)).extracted == 1
    assert not (latents(root) / FAILURES).exists()


def test_times_that_are_none_cost_no_extraction(root: Path) -> None:
    """They are written at the end of hours of work."""
    settings, file = settings_of(root), latents(root) / TIMING
    extract(ask(), settings)
    for text in (
        "[]", "{}", "null", "x", '{"rows": "many", "seconds": 1}', '{"rows": 1e400, "seconds": 1}',
        '{"rows": 1, "seconds": NaN}', '{"rows": -1, "seconds": -1}', "[" * 10_000,
    ):  # fmt: skip
        file.write_text(text)
        assert read_timing(file.parent) == (0, 0.0)
    for known, least in ((text, 0), ('{"rows": 8, "seconds": 1000}', 1000)):
        file.write_text(known)
        (latents(root) / "latent_action_00000001.npz").unlink()
        assert extract(ask(), settings).extracted == 1
        rows, seconds = read_timing(file.parent)
        assert (rows, seconds > least) == (9 if least else 1, True), "times of interrupted runs add up"
    fails(UsageError, "Unknown", extract, ask(model="nobody"), settings)


CHANGING = """
import torch
from lary.models.spec import ModelSpec, Preprocess, register_model
from lary.types import WeightsIdentity

def means(clips):
    return clips.mean((-2, -1))[:, :, None]  # (B, T, 1, 3)

KINDS = {
    "chance": lambda clips: means(clips) + 0.1 * torch.rand_like(means(clips)),
    "company": lambda clips: means(clips) - 0.01 * means(clips).mean(0),
    "position": lambda clips: means(clips) + 0.01 * torch.arange(len(clips))[:, None, None, None],
    "rounding": lambda clips: means(clips) * (1 + 1e-5 * torch.rand(len(clips), 1, 1, 1)),
}

class Changing:
    identity = WeightsIdentity("none")
    def __init__(self, spec, context):
        self.encode = KINDS[spec.name.removeprefix("changing-")]

for kind in KINDS:
    register_model(ModelSpec(f"changing-{kind}", "baseline", 3, Preprocess(size=16)))(Changing)
"""


def test_tokens_that_change_between_passes_or_with_the_batch_are_refused(root: Path) -> None:
    (root / "changing.py").write_text(CHANGING)
    common = ["--dataset", "calvin", "--split", "val", "--plugin", root / "changing.py"]
    for kind in ("chance", "company", "position"):
        model = f"changing-{kind}"
        command = ["extract", "--model", model, *common]
        for limit in (1, 8):
            found = [f"'{model}' depend on chance or on the batch that a sample is in"]
            printed(*command, "--limit", str(limit), root=root, code=1, has=found)
            assert not list(latents(root, model=model).glob("*.npz"))
        printed(*command, "--protocol", "paper", root=root)
    printed("extract", "--model", "changing-rounding", *common, root=root)


def test_a_cpu_encodes_row_by_row_unless_it_is_asked_for_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = LoadedEncoder.encode
    monkeypatch.setattr(LoadedEncoder, "encode", lambda self, clips: sizes.append(len(clips)) or encode(self, clips))
    found = []
    for batch in (False, True):
        sizes.clear()
        folder = root / str(batch)
        extract(ask(cpu_batch=batch, batch_size=4, device="cpu"), settings_of(root, LARY_LA_DIR=folder))
        found.append(contents(folder / "calvin" / "val" / MODEL))
        assert set(sizes[2:]) == {4 if batch else 1}, "the first two are to see whether tokens repeat"
    assert found[0] == found[1], "this model's tokens don't round with the batch"
