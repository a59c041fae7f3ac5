"""Latents of a split by their reference: both kinds of stores, pooled when written or read, rows of other samples."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lary.configs import ExtractConfig
from lary.latents.ref import LatentsRef, PooledSource, SplitLatents, find_latent_table, open_latents
from lary.latents.sources import ShardSource
from lary.latents.store import MANIFEST
from lary.runs.extract import extract
from lary.types import RANDOM, LaryError, UsageError
from tests.helpers import fails, rows_of, settings_of
from tests.hostile.harness import refused
from tests.tiny import save_tiny
from tests.tree import write_table

REF = LatentsRef(model="pixels", dataset="calvin", split="val")


def config(split: str, model: str = "pixels", **changes: Any) -> ExtractConfig:
    return ExtractConfig(**{"model": model, "dataset": "calvin", "split": split, "batch_size": 2, **changes})


def opened(root: Path, **changes: Any) -> SplitLatents:
    return open_latents(settings_of(root), replace(REF, **changes))


def test_tables_and_folders_have_the_published_names_and_differences_behind_them(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    paper = {"protocol": "paper", "latent": "noisy", "weights": RANDOM, "pool": "grid:4"}
    given: dict[str, dict[str, Any]] = {
        "pixels": {"weights": "/weights/laq.pt", "pool": "none"},
        "hf_a_b": {"model": "hf:a/b"},
        "pixels@paper@noisy@random@pool-grid4": paper,
    }
    for tag, changes in given.items():
        ref = replace(REF, **changes)
        assert (ref.tag, ref.folder(settings)) == (tag, tmp_path / "latent_actions" / "calvin" / "val" / tag)
        assert ref.table(settings) == tmp_path / "data" / f"val_la_calvin_5_{tag}.csv"
    changed, clips = replace(REF, control="static-pair"), replace(REF, dataset="human_1st")
    assert changed.table(settings) == tmp_path / "latent_actions/controls/static-pair/data/val_la_calvin_5_pixels.csv"
    assert (clips.table(settings).name, find_latent_table(settings, REF)) == ("val_la_human_1st_pixels.csv", None)
    fails(UsageError, r"'lary extract --model pixels --dataset calvin --split val' first", open_latents, settings, REF)


def test_latents_of_a_program_that_nobody_knows_are_opened(root: Path) -> None:
    """A table and files of a name without a record, with tokens of four axes and no codes."""
    folder = root / "latent_actions" / "calvin" / "val" / "stranger"
    folder.mkdir(parents=True)
    rows = rows_of(root / "data" / "calvin_metadata_val.csv")
    for at, row in enumerate(rows):
        np.savez(folder / f"own_{at}.npz", tokens=np.full((2, 3, 4, 5), at, np.float32))
        row["la_path"] = f"own_{at}.npz" if at else ""
    write_table(root / "data" / "val_la_calvin_5_stranger.csv", rows)
    found = opened(root, model="stranger")
    assert (found.source.shape, found.left_out, found.source.read([3]).mean()) == ((2, 12, 5), 1, 4)
    assert "another program" in found.store["origin"]
    table = root / "data" / "val_la_calvin_5_stranger.csv"
    (root / "data" / "val_la_calvin_5_other.csv").write_text(table.read_text().replace("own_1", "a/stranger/own_1"))
    fails(UsageError, "latents of another model than 'other'", opened, root, model="other")
    write_table(table, [row | {"la_path": ""} for row in rows])
    fails(LaryError, "No row of .* has latents: the failures file", opened, root, model="stranger")
    table.write_text(table.read_text().replace("la_path", "path"))
    fails(UsageError, "has no column la_path", opened, root, model="stranger")


def test_both_kinds_give_the_same_latents(root: Path) -> None:
    extract(config("val"), settings_of(root))
    plain = opened(root)
    expected = plain.source.read(range(9))
    shutil.rmtree(root / "latent_actions")
    report = extract(config("val", store="shards", shard_rows=4), settings_of(root))
    assert (report.extracted, report.failures) == (9, ())
    assert "pixels/shard_00001.safetensors#1" in report.table.read_text()
    found = opened(root)
    np.testing.assert_array_equal(found.source.read(np.arange(9)), expected)
    assert (found.store["key"], found.store["table"]["rows"]) == (plain.store["key"], 9)
    taken = found.take([4, 1])
    assert [sample.id for sample in taken.table] == [found.table[4].id, found.table[1].id]
    assert (taken.left_out, len(taken.source)) == (7, 2)
    manifest = found.folder / MANIFEST
    manifest.write_text(manifest.read_text().replace('"key": "', '"key": "x'))
    fails(UsageError, "of another store than store.json beside them: extract again", opened, root)


def test_a_row_of_another_sample_is_noticed(root: Path) -> None:
    report = extract(config("val", store="shards", shard_rows=4), settings_of(root))
    text = report.table.read_text()
    first, none = "shard_00000.safetensors#", "names no row of a shard"
    cells = {
        f"{first}2": r"row 2: .*shard_00000.safetensors has the latents of another sample in row 2",
        f"{first}99": "fewer rows",
        f"{first}x": none,
        first: none,
        "latent_action_00000001.npz": none,
        "shard_00009.safetensors#1": r"(?s)1 of 4 latent files .* missing; extract again.*shard_00009",
        f"../../../../{first}1": "leaves its root",
    }
    for cell, message in cells.items():
        report.table.write_text(text.replace(f"{first}1", cell, 1))
        fails(LaryError, message, opened, root)


def test_pooled_when_written_or_when_read(root: Path) -> None:
    extract(config("val"), settings_of(root))
    plain = opened(root).source.read(range(9))
    for pool, shape in (("mean", (2, 1, 50)), ("grid:4", (2, 16, 50))):
        on_the_fly = opened(root, pool=pool)
        assert (type(on_the_fly.source), on_the_fly.source.shape) == (PooledSource, shape)
        extract(config("val", pool=pool, store="shards"), settings_of(root))
        stored = opened(root, pool=pool)
        assert (type(stored.source), stored.folder.name) == (ShardSource, f"pixels@pool-{pool.replace(':', '')}")
        np.testing.assert_array_equal(stored.source.read(range(9)), on_the_fly.source.read(range(9)))
        np.testing.assert_array_equal(on_the_fly.take([3]).source.read([0]), on_the_fly.source.read([3]))
    np.testing.assert_allclose(opened(root, pool="mean").source.read([2])[0], plain[2].mean(1, keepdims=True), 1e-5)
    cells = plain[2].reshape(2, 4, 2, 4, 2, 50).mean((2, 4)).reshape(2, 16, 50)
    np.testing.assert_allclose(opened(root, pool="grid:4").source.read([2])[0], cells, 1e-5, 1e-6)
    fails(UsageError, "grid of 8 x 8", opened, root, pool="grid:9")
    fails(UsageError, "extract with --pool cls", opened, root, pool="cls")
    fails(UsageError, "expected none, mean, cls or grid:K", opened, root, pool="max")


def test_class_tokens_of_a_backbone_are_stored(root: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "vit", "dinov2")
    asked: dict[str, Any] = {"model": "dinov2-origin", "weights": str(folder), "limit": 2}
    for pool in ("none", "cls"):
        extract(config("val", **asked, pool=pool), settings_of(root))
    every, cls = (opened(root, model="dinov2-origin", pool=pool).source for pool in (None, "cls"))
    assert cls.shape == (2, 1, every.shape[-1])
    assert not (cls.read([0]) == every.read([0])).all(-1).any(), "a class token is none of the patch tokens"


def test_latent_paths_that_lead_elsewhere(root: Path) -> None:
    table = extract(config("val"), settings_of(root)).table
    rows = rows_of(table)
    for words, cells in {
        "leaves its root": ("../../secret.npz", "/etc/passwd"), "control characters": ("calvin/val/pixels/a\x01b.npz",),
        "too long": ("calvin/val/pixels/" + "x" * 300,),
        "another model": ("calvin/val/random-vit/latent_action_00000000.npz",),
    }.items():  # fmt: skip
        for cell in cells:
            write_table(table, [rows[0] | {"la_path": cell}, *rows[1:]])
            refused(root, lambda: opened(root), words)


def test_files_that_become_something_else_are_not_followed(root: Path) -> None:
    """Between check and use, and where outputs belong."""
    table, latents = extract(config("val"), settings_of(root)).table, opened(root)
    makers: list[Callable[[Path], object]] = [
        os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path), Path.mkdir
    ]  # fmt: skip
    for row, make in enumerate(makers):
        path = latents.folder / f"latent_action_{row:08d}.npz"
        path.unlink()
        make(path)
        refused(root, lambda row=row: latents.source.read([row]), "can't be read")  # type: ignore[misc]
    path.rmdir()
    (root / "victim").write_text("precious")
    for file in (path, table):
        file.unlink(missing_ok=True)
        file.symlink_to(root / "victim")
    assert extract(config("val"), settings_of(root)).extracted == 4
    assert (path.is_symlink(), (root / "victim").read_text()) == (False, "precious")
