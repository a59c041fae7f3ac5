"""What a store is: its identity, who may write into its folder, number formats, and pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.data.tables import SampleTable
from lary.latents.ref import open_store
from lary.latents.store import StoreIdentity, read_manifest
from lary.types import MediaError, UsageError
from tests.latents.conftest import IDENTITY, contents, draw, fill, shards_in


@pytest.mark.parametrize("kind", ["npz", "shards"])
def test_float16_tells_what_it_cannot_hold(tmp_path: Path, kind: Any) -> None:
    identity = StoreIdentity(**(vars(IDENTITY) | {"dtype": "float16"}))
    store = open_store(tmp_path, identity, {}, overwrite=False, kind=kind)
    with store.writer(0) as write:
        with pytest.raises(MediaError, match=r"7e[+]04 is too large for float16.*bfloat16"):
            write(0, "sample", np.full((1, 1, 2), 70000, np.float32), None)
        write(1, "sample", np.full((1, 1, 2), 60000, np.float32), None)


def test_stores_are_not_mixed(tmp_path: Path) -> None:
    shards_in(tmp_path)
    for changes, message in (
        ({"weights": "other"}, "weights 'weights' instead of 'other'"),
        ({"dtype": "float16"}, "dtype 'float32' instead of 'float16'"),
        ({"pool": "mean"}, "pool 'none' instead of 'mean'"),
        ({"revision": "2"}, "revision '' instead of '2'"),
    ):
        with pytest.raises(UsageError, match=message):
            shards_in(tmp_path, **changes)
    with pytest.raises(UsageError, match="store of kind shards"):
        open_store(tmp_path, IDENTITY, {}, overwrite=False, kind="npz")
    with pytest.raises(UsageError, match=r"--batch-size 3: the shards of .* hold 4 rows"):
        open_store(tmp_path, IDENTITY, {}, overwrite=False, kind="shards", batch_size=3)
    assert open_store(tmp_path, IDENTITY, {}, overwrite=False, kind="shards", unit_rows=99).unit_rows == 4


def test_units_hold_whole_batches(tmp_path: Path) -> None:
    store = open_store(tmp_path, IDENTITY, {}, overwrite=False, kind="shards", unit_rows=10, batch_size=4)
    assert store.unit_rows == 12
    assert read_manifest(tmp_path)["unit_rows"] == 12


def test_overwriting_removes_the_shards_of_another_extraction(tmp_path: Path, table: SampleTable) -> None:
    fill(shards_in(tmp_path), table, draw(9), range(9))
    other = StoreIdentity(**(vars(IDENTITY) | {"seed": 1}))
    open_store(tmp_path, other, {}, overwrite=True, kind="shards", unit_rows=4)
    assert set(contents(tmp_path)) == {"store.json"}


def test_a_key_stays_where_new_fields_have_their_old_meaning() -> None:
    assert IDENTITY.key == "58eb549664062730"
    assert len({StoreIdentity(**(vars(IDENTITY) | change)).key for change in (
        {}, {"dtype": "float16"}, {"pool": "mean"}, {"revision": "1"})}) == 4  # fmt: skip
