"""What the tests of the store share: an identity, drawn tokens, and stores of shards in small units."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.data.spec import DATASETS
from lary.data.tables import SampleTable, read_table
from lary.latents.ref import open_store
from lary.latents.sources import ShardSource
from lary.latents.store import StoreIdentity
from lary.latents.writers import ShardStore
from tests.tree import make_calvin

IDENTITY = StoreIdentity("toy", "calvin", "val", "corrected", "record", "weights", 0)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of 12 training and 9 validation rows."""
    return make_calvin(tmp_path_factory.mktemp("tree"), {"train": 4, "val": 3})


@pytest.fixture
def table(tree: Path) -> SampleTable:
    path = tree / "data" / "calvin_metadata_val.csv"
    return read_table(DATASETS.get("calvin"), "val", path=path, data_dir=tree / "data")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    """A copy of the tree, to be written to."""
    return shutil.copytree(tree, tmp_path / "root")


def draw(count: int, shape: tuple[int, ...] = (2, 3, 4), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def fill(store: Any, table: SampleTable, tokens: np.ndarray, rows: Any, codes: np.ndarray | None = None) -> None:
    """Write rows through writers of their units, from the last to the first."""
    for unit in sorted({row // store.unit_rows for row in rows}):
        with store.writer(unit) as write:
            for row in sorted((row for row in rows if row // store.unit_rows == unit), reverse=True):
                write(row, table[row].id, tokens[row], None if codes is None else codes[row])
    store.finish(table)


def shards_in(folder: Path, **changes: Any) -> ShardStore:
    identity = StoreIdentity(**(vars(IDENTITY) | changes))
    store = open_store(folder, identity, {}, overwrite=False, kind="shards", unit_rows=4)
    assert isinstance(store, ShardStore)
    return store


def source_of(store: ShardStore, table: SampleTable) -> ShardSource:
    """The rows that are there, in the table's order."""
    headers = {header.path.name: header for header in store.headers()}
    names, held = list(headers), dict(pair for own in store.held(table) for pair in zip(*own, strict=True))
    places = [held[row].split("#") for row in sorted(held)]
    files = np.array([names.index(name) for name, _ in places])
    return ShardSource(list(headers.values()), files, np.array([int(at) for _, at in places]))
