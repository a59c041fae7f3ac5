"""What a store is: its identity, who may write into its folder, number formats, and pooling."""

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from lary.data.spec import DATASETS
from lary.data.tables import SampleTable, read_table
from lary.files import csv_text, write_json
from lary.latents.ref import open_store
from lary.latents.store import StoreIdentity, narrow, pooled_latents, pooled_tokens, read_manifest
from lary.types import LaryError, Latents, MediaError, UsageError
from tests.helpers import contents, fails
from tests.latents.conftest import IDENTITY, draw, fill, shards_in


@pytest.mark.parametrize("kind", ["npz", "shards"])
def test_float16_says_what_it_cannot_hold(tmp_path: Path, table: SampleTable, kind: Any) -> None:
    identity = StoreIdentity(**(vars(IDENTITY) | {"dtype": "float16"}))
    store = open_store(tmp_path, identity, {}, overwrite=False, kind=kind)
    with store.writer(0) as write:
        for value, message in ((65520, r"6.552e[+]04 is too large for float16.*bfloat16"), (np.nan, "not finite")):
            fails(MediaError, message, write, 0, "sample", np.full((1, 1, 2), value, np.float32), None)
        for row in (1, 2):
            write(row, table[1].id, np.full((1, 1, 2), 65519, np.float32), None)
    assert store.missing(table) == [0, *range(2, 9)], "row 2 has the latents of another sample"
    message = "too large for bfloat16: extract with --dtype bfloat16 or float32"
    fails(MediaError, message, narrow, np.full(2, 3.4e38, np.float32), "bfloat16")


def test_stores_are_not_mixed(tmp_path: Path, table: SampleTable) -> None:
    fill(shards_in(tmp_path), table, draw(9), range(9))
    for name, other in {"weights": "other", "dtype": "float16", "pool": "mean", "revision": "2"}.items():
        message = f"{name} '{getattr(IDENTITY, name)}' instead of '{other}'.*Pass --overwrite"
        fails(UsageError, message, shards_in, tmp_path, **{name: other})
    fails(UsageError, "store of kind shards", open_store, tmp_path, IDENTITY, {}, overwrite=False, kind="npz")
    shards: Any = {"overwrite": False, "kind": "shards"}
    message = r"--batch-size 3: the shards of .* hold 4 rows; pass a batch size that divides this, such as 1"
    fails(UsageError, message, open_store, tmp_path, IDENTITY, {}, **shards, batch_size=3)
    assert open_store(tmp_path, IDENTITY, {}, **shards, unit_rows=99).unit_rows == 4
    other = StoreIdentity(**(vars(IDENTITY) | {"seed": 1}))
    store = open_store(tmp_path, other, {}, overwrite=True, kind="shards", unit_rows=10, batch_size=4)
    assert set(contents(tmp_path)) == {"store.json"}, "the shards of the other extraction are gone"
    assert store.unit_rows == read_manifest(tmp_path)["unit_rows"] == 12, "units hold whole batches"
    fill(store, table, draw(9), range(9))
    open_store(tmp_path, other, {}, overwrite=True, kind="npz")
    assert set(contents(tmp_path)) == {"store.json"}, "a store of files per sample leaves no shards either"
    for text, message in (("[]", "is no manifest"), ('{"format": 9}', "update lary"), ("{", r"store\.json")):
        (tmp_path / "store.json").write_text(text)
        fails(LaryError, message, read_manifest, tmp_path)
    for rows in ("0", "1048577", '"x"'):
        (tmp_path / "store.json").write_text(f'{{"key": "{IDENTITY.key}", "store": "shards", "unit_rows": {rows}}}')
        fails(LaryError, "rows per shard: it is no manifest", open_store, tmp_path, IDENTITY, {}, **shards)


@pytest.mark.parametrize("field", [{"dtype": "evil"}, {"model": None}, {"seed": "x"}, {"pool": [1]}])
def test_odd_identities_are_named(tmp_path: Path, field: dict[str, Any]) -> None:
    open_store(tmp_path, IDENTITY, {}, overwrite=False)
    found = read_manifest(tmp_path)
    write_json(tmp_path / "store.json", {**found, "identity": {**found["identity"], **field}})
    fails(LaryError, f"The identity in .*store.json is wrong at '{next(iter(field))}'", read_manifest, tmp_path)


def test_a_key_stays_where_new_fields_have_their_old_meaning() -> None:
    assert IDENTITY.key == "58eb549664062730"
    changes: tuple[dict[str, Any], ...] = ({}, {"dtype": "float16"}, {"pool": "mean"}, {"revision": "1"})
    assert len({StoreIdentity(**(vars(IDENTITY) | change)).key for change in changes}) == 4


def test_class_tokens_of_an_encoder() -> None:
    cls = torch.arange(12.0).reshape(2, 2, 3)
    found = pooled_latents(Latents(torch.zeros(2, 2, 5, 3), cls=cls), "cls")
    assert torch.equal(found.tokens, cls[:, :, None])
    fails(UsageError, "no class token", pooled_latents, Latents(torch.zeros(2, 2, 5, 3)), "cls")


@given(side=st.integers(1, 7), cells=st.integers(1, 7), steps=st.sampled_from([(), (3,)]))
@limits(max_examples=30, deadline=None)
def test_grid_cells_are_means_of_their_tokens(side: int, cells: int, steps: tuple[int, ...]) -> None:
    tokens = torch.randn(2, *steps, side * side, 3, generator=torch.Generator().manual_seed(0))
    if cells > side:
        fails(UsageError, "grid", pooled_tokens, tokens, f"grid:{cells}")
        return
    found = pooled_tokens(tokens, f"grid:{cells}").reshape(2, *steps, cells, cells, 3)
    grid = tokens.reshape(2, *steps, side, side, 3)
    edges = [(cell * side // cells, -(-(cell + 1) * side // cells)) for cell in range(cells)]
    for row, (top, bottom) in enumerate(edges):
        for column, (left, right) in enumerate(edges):
            expected = grid[..., top:bottom, left:right, :].mean((-3, -2))
            torch.testing.assert_close(found[..., row, column, :], expected)


ROWS = 50_000


@pytest.fixture(scope="module")
def long_table(tmp_path_factory: pytest.TempPathFactory) -> SampleTable:
    root = tmp_path_factory.mktemp("long")
    cells = (f"images/ep_{row}/a.png,images/ep_{row}/b.png,actions/ep_{row}/a.npy\n" for row in range(ROWS))
    (root / "table.csv").write_text("src_img,tgt_img,action\n" + "".join(cells))
    return read_table(DATASETS.get("calvin"), "val", path=root / "table.csv", data_dir=root)


def test_a_restart_opens_only_the_files_that_exist(tmp_path: Path, long_table: SampleTable, monkeypatch: Any) -> None:
    """Two million rows once took 3.8 GB and two minutes: a future, its locks and an open for every row."""
    store = open_store(tmp_path, IDENTITY, {}, overwrite=False)
    rows = [0, 3, ROWS - 1]
    with store.writer(0) as write:
        for row in rows:
            write(row, long_table.take([row])[0].id, draw(1)[0], None)
        write(7, "of another sample", draw(1)[0], None)
    opened: list[str] = []
    opening = os.open
    monkeypatch.setattr(os, "open", lambda path, *more: opened.append(str(path)) or opening(path, *more))
    tracemalloc.start()
    missing = store.missing(long_table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert missing == sorted(set(range(ROWS)) - set(rows))
    assert len(opened) == 4
    assert all(name.endswith(".npz") for name in opened)
    assert peak < 120 * ROWS, "the list of rows, and a little"


def test_tables_are_quoted_as_the_csv_module_does(tmp_path: Path, table: SampleTable) -> None:
    store = shards_in(tmp_path / "store")
    fill(store, table, draw(9), range(9))
    cells = ['say "x"', "a,b", "two\nlines", "", " ", "ä", "plain", "'", '"']
    noted = replace(table, frame=table.frame.assign(note=cells))
    store.write_table(noted, tmp_path / "out.csv", tmp_path, {2})
    columns = [*noted.frame.columns, "la_path"]
    entries = store.entries(noted, tmp_path, {2})
    rows = [[*cells, entry] for cells, entry in zip(noted.frame.to_numpy().tolist(), entries, strict=True)]
    assert entries[1:3] == ["store/shard_00000.safetensors#1", ""]
    assert (tmp_path / "out.csv").read_bytes().decode() == csv_text([columns, *rows])
    written = (tmp_path / "out.csv").stat()
    store.write_table(noted, tmp_path / "out.csv", tmp_path, {2}, new=False)
    assert (tmp_path / "out.csv").stat() == written, "it is as it was written"
    (tmp_path / "out.csv").write_text("of a user")
    store.write_table(noted, tmp_path / "out.csv", tmp_path, {2}, new=False)
    assert (tmp_path / "out.csv").read_bytes().decode() == csv_text([columns, *rows])
