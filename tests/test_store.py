"""The latent store: kinds alike to extraction and probes, resume, number formats, pooling."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from lary.configs import ExtractConfig
from lary.data.spec import DATASETS
from lary.data.tables import SampleTable, read_table
from lary.latents.npz import Stamp, read_stamp, write_latents
from lary.latents.pooling import PooledSource, parse_pool, pooled_latents, pooled_tokens
from lary.latents.ref import LatentsRef, open_latents
from lary.latents.shardfile import ShardSource, read_header, read_mode
from lary.latents.shards import ShardStore
from lary.latents.store import StoreIdentity, open_store, read_manifest
from lary.runs.extract import extract
from lary.settings import Settings, load_settings
from lary.types import LaryError, Latents, MediaError, UsageError
from tests.tiny import save_tiny
from tests.tree import make_calvin

IDENTITY = StoreIdentity("toy", "calvin", "val", "corrected", "record", "weights", 0)


def settings_of(root: Path, **more: str) -> Settings:
    return load_settings({"LARY_ROOT": str(root), "DATA_DIR": str(root / "data")}, environment=more)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    make_calvin(root, {"train": 4, "val": 3})
    return root


@pytest.fixture
def table(tree: Path) -> SampleTable:
    path = tree / "data" / "calvin_metadata_val.csv"
    return read_table(DATASETS.get("calvin"), "val", path=path, data_dir=tree / "data")


def draw(count: int, shape: tuple[int, ...] = (2, 3, 4), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def fill(store: Any, table: SampleTable, tokens: np.ndarray, rows: Any, codes: np.ndarray | None = None) -> None:
    """Write rows through writers of their units, from the last to the first."""
    for unit in sorted({row // store.unit_rows for row in rows}):
        with store.writer(unit) as writer:
            for row in sorted((row for row in rows if row // store.unit_rows == unit), reverse=True):
                writer.add(row, table[row].id, tokens[row], None if codes is None else codes[row])
    store.finish(table)


def shards_in(folder: Path, **changes: Any) -> ShardStore:
    store = open_store(
        folder, StoreIdentity(**(vars(IDENTITY) | changes)), {}, overwrite=False, kind="shards", unit_rows=4
    )  # fmt: skip
    assert isinstance(store, ShardStore)
    return store


def source_of(store: ShardStore, table: SampleTable, mode: str = "mmap") -> ShardSource:
    """The rows that are there, in the table's order."""
    headers = {header.path.name: header for header in store.headers()}
    names = list(headers)
    places = [store.places(table)[row] for row in sorted(store.places(table))]
    files = np.array([names.index(name) for name, _ in places])
    return ShardSource(list(headers.values()), files, np.array([at for _, at in places]), mode)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["mmap", "pread"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_shards_give_back_what_was_written(tmp_path: Path, table: SampleTable, dtype: Any, mode: str) -> None:
    tokens, codes = draw(9), np.arange(9 * 6).reshape(9, 2, 3)
    store = shards_in(tmp_path, dtype=dtype)
    assert store.missing(table) == list(range(9))
    fill(store, table, tokens, range(9), codes)
    assert store.missing(table) == []
    source = source_of(store, table, mode)
    expected = torch.from_numpy(tokens).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(source.read(np.arange(9)), expected)
    np.testing.assert_array_equal(source.read([7, 0, 7, 3]), expected[[7, 0, 7, 3]])
    np.testing.assert_array_equal(source.take([5, 2]).read([1, 0]), expected[[2, 5]])
    assert source.read([]).shape == (0, 2, 3, 4)
    np.testing.assert_array_equal(source.codes([8])[0], codes[8])
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own)
    np.testing.assert_array_equal(copy.read([4]), expected[[4]])
    assert (np.abs(expected - tokens) <= np.abs(tokens) * 2.0**-8).all()


def test_shards_are_files_of_the_library(tmp_path: Path, table: SampleTable) -> None:
    tokens, codes = draw(9), np.arange(9 * 6).reshape(9, 2, 3)
    store = shards_in(tmp_path, dtype="float16")
    fill(store, table, tokens, range(9), codes)
    parts = [load_file(tmp_path / name) for name in ("shard_00000.safetensors", "shard_00001.safetensors")]
    np.testing.assert_array_equal(np.concatenate([part["tokens"] for part in parts]), tokens[:8].astype(np.float16))
    np.testing.assert_array_equal(np.concatenate([part["codes"] for part in parts]), codes[:8])
    with safe_open(tmp_path / "shard_00002.safetensors", "np") as file:
        assert file.metadata()["samples"] == table[8].id
        assert file.metadata()["store"] == store.identity.key


def test_same_rows_same_bytes_in_any_order_and_whatever_came_between(tmp_path: Path, table: SampleTable) -> None:
    tokens = draw(9)
    folders = []
    for order in ((0, 1, 3), (3, 1, 0), (1, 3, 0)):
        store = shards_in(tmp_path / str(len(folders)))
        with store.writer(0) as writer:
            for row in order:
                writer.add(row, table[row].id, tokens[row], None)
                with pytest.raises(MediaError):
                    writer.add(2, table[2].id, np.full((2, 3, 4), np.nan, np.float32), None)
        store.finish(table)
        folders.append(contents(store.folder))
    assert folders[0] == folders[1] == folders[2]
    assert set(folders[0]) == {"shard_00000.safetensors", "index.parquet", "store.json"}
    assert store.entries(table, tmp_path, failed=[3]) == [
        "2/shard_00000.safetensors#0", "2/shard_00000.safetensors#1", *[""] * 7
    ]  # fmt: skip


def test_rows_done_later_come_in_a_further_shard(tmp_path: Path, table: SampleTable) -> None:
    tokens = draw(9)
    store = shards_in(tmp_path / "store")
    fill(store, table, tokens, [0, 1, 3, 4])
    before = contents(store.folder)
    assert store.missing(table) == [2, 5, 6, 7, 8]
    fill(store, table, tokens, [2, 5])
    after = contents(store.folder)
    kept = [name for name in before if name.startswith("shard")]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert set(after) - set(before) == {"shard_00000_1.safetensors", "shard_00001_1.safetensors"}
    assert store.entries(table, tmp_path)[2] == "store/shard_00000_1.safetensors#0"
    np.testing.assert_array_equal(source_of(store, table).read(range(6)), tokens[:6])
    fill(store, table, tokens, [2, 5])
    assert contents(store.folder) == after, "the same rows a second time leave no second copy"


def test_an_exception_leaves_nothing(tmp_path: Path, table: SampleTable) -> None:
    store = shards_in(tmp_path)

    def stop_in_the_middle() -> None:
        with store.writer(0) as writer:
            writer.add(0, table[0].id, draw(1)[0], None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert set(contents(tmp_path)) == {"store.json"}
    with store.writer(0):
        pass
    assert set(contents(tmp_path)) == {"store.json"}
    (tmp_path / ".shard_00001.safetensors.abc.tmp").write_bytes(b"of a killed writer")
    store.finish(table)
    assert set(contents(tmp_path)) == {"store.json", "index.parquet"}


def test_a_damaged_shard_is_done_again_under_its_name(tmp_path: Path, table: SampleTable) -> None:
    tokens = draw(9)
    store = shards_in(tmp_path)
    fill(store, table, tokens, range(9))
    whole = contents(tmp_path)
    file = tmp_path / "shard_00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert store.missing(table) == [4, 5, 6, 7]
    fill(store, table, tokens, store.missing(table))
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": 4}, "Row 4 is none of unit 0"),
        ({"tokens": np.ones((2, 3, 5), np.float32)}, "latents of one shape"),
        ({"codes": np.ones((2, 3), np.int64)}, "latents of one shape"),
        ({"sample": "abc"}, "latents of one shape"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tokens = draw(2)
    with shards_in(tmp_path).writer(0) as writer:
        writer.add(0, "sample-0", tokens[0], None)
        with pytest.raises(LaryError, match=message):
            writer.add(**({"row": 1, "sample": "sample-1", "tokens": tokens[1], "codes": None} | change))


@pytest.mark.parametrize("kind", ["npz", "shards"])
def test_float16_tells_what_it_cannot_hold(tmp_path: Path, kind: Any) -> None:
    identity = StoreIdentity(**(vars(IDENTITY) | {"dtype": "float16"}))
    store = open_store(tmp_path, identity, {}, overwrite=False, kind=kind)
    with store.writer(0) as writer:
        with pytest.raises(MediaError, match=r"7e[+]04 is too large for float16.*bfloat16"):
            writer.add(0, "sample", np.full((1, 1, 2), 70000, np.float32), None)
        writer.add(1, "sample", np.full((1, 1, 2), 60000, np.float32), None)


def test_npz_refuses_bfloat16(tree: Path) -> None:
    with pytest.raises(UsageError, match="--store shards"):
        extract(config("val", dtype="bfloat16"), settings_of(tree))


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


# --- extraction and probes --------------------------------------------------------------------------------------------


def config(split: str, model: str = "pixels", **changes: Any) -> ExtractConfig:
    return ExtractConfig(**({"model": model, "dataset": "calvin", "split": split, "batch_size": 2} | changes))


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    shutil.copytree(tree, tmp_path / "root")
    return tmp_path / "root"


def opened(root: Path, split: str = "val", pool: str | None = None, model: str = "pixels", **more: Any) -> Any:
    environment = more.pop("environment", {})
    ref = LatentsRef(model=model, dataset="calvin", split=split, pool=pool, **more)
    return open_latents(settings_of(root, **environment), ref)


def test_both_kinds_give_the_same_latents(root: Path) -> None:
    extract(config("val"), settings_of(root))
    plain = opened(root)
    expected = plain.source.read(range(9))
    shutil.rmtree(root / "latent_actions")
    report = extract(config("val", store="shards", shard_rows=4), settings_of(root))
    assert (report.extracted, report.failures) == (9, ())
    assert "pixels/shard_00001.safetensors#1" in report.table.read_text()
    for environment in ({}, {"LARY_READ": "pread"}):
        found = opened(root, environment=environment)
        rows = np.arange(9)
        np.testing.assert_array_equal(found.source.read(rows), expected)
        assert found.store["key"] == plain.store["key"]
        assert found.store["table"]["rows"] == 9
    taken = found.take([4, 1])
    assert [sample.id for sample in taken.table] == [found.table[4].id, found.table[1].id]
    assert (taken.left_out, len(taken.source)) == (7, 2)
    assert extract(config("val", store="shards", shard_rows=4), settings_of(root)).extracted == 0
    with pytest.raises(UsageError, match="LARY_READ=slowly: expected mmap or pread"):
        opened(root, environment={"LARY_READ": "slowly"})


def test_a_limit_changes_nothing_for_the_rows_before(root: Path) -> None:
    extract(config("val", store="shards", shard_rows=4, limit=5), settings_of(root))
    report = extract(config("val", store="shards", shard_rows=4), settings_of(root))
    assert (report.done_before, report.extracted) == (5, 4)
    files = sorted(path.name for path in (root / "latent_actions" / "calvin" / "val" / "pixels").glob("shard*"))
    assert files == ["shard_00000.safetensors", "shard_00001.safetensors", "shard_00001_1.safetensors",
                     "shard_00002.safetensors"]  # fmt: skip
    assert opened(root).source.read(range(9)).shape[0] == 9


def test_a_row_of_another_sample_is_noticed(root: Path) -> None:
    report = extract(config("val", store="shards", shard_rows=4), settings_of(root))
    text = report.table.read_text()
    report.table.write_text(text.replace("shard_00000.safetensors#1", "shard_00000.safetensors#2", 1))
    with pytest.raises(LaryError, match=r"row 2: .*shard_00000.safetensors has the latents of another sample in row 2"):
        opened(root)
    for cell, message in (
        ("0.safetensors#99", "fewer rows"),
        ("0.safetensors#x", "names no row of a shard"),
        ("0.safetensors#", "names no row of a shard"),
        ("9.safetensors#1", "1 of 4 latent files"),
    ):
        report.table.write_text(text.replace("0.safetensors#1", cell, 1))
        with pytest.raises(LaryError, match=message):
            opened(root)
    report.table.write_text(text.replace("calvin/val/pixels/shard_00000", "../../val/pixels/shard_00000", 1))
    with pytest.raises(UsageError, match="leaves its root"):
        opened(root)
    report.table.write_text(text.replace("shard_00000.safetensors#1", "latent_action_00000001.npz", 1))
    with pytest.raises(UsageError, match="shards in some rows"):
        opened(root)


def test_pooled_when_written_or_when_read(root: Path) -> None:
    extract(config("val"), settings_of(root))
    plain = opened(root).source.read(range(9))
    for pool, shape in (("mean", (2, 1, 50)), ("grid:4", (2, 16, 50))):
        on_the_fly = opened(root, pool=pool)
        assert on_the_fly.source.shape == shape
        assert isinstance(on_the_fly.source, PooledSource)
        extract(config("val", pool=pool, store="shards"), settings_of(root))
        stored = opened(root, pool=pool)
        assert isinstance(stored.source, ShardSource)
        assert stored.folder.name == f"pixels@pool-{pool.replace(':', '')}"
        np.testing.assert_array_equal(stored.source.read(range(9)), on_the_fly.source.read(range(9)))
        np.testing.assert_array_equal(on_the_fly.take([3]).source.read([0]), on_the_fly.source.read([3]))
    np.testing.assert_allclose(opened(root, pool="mean").source.read([2])[0], plain[2].mean(1, keepdims=True), 1e-5)
    cells = plain[2].reshape(2, 4, 2, 4, 2, 50).mean((2, 4)).reshape(2, 16, 50)
    np.testing.assert_allclose(opened(root, pool="grid:4").source.read([2])[0], cells, 1e-5, 1e-6)
    with pytest.raises(UsageError, match="grid of 8 x 8"):
        opened(root, pool="grid:9")
    with pytest.raises(UsageError, match="extract with --pool cls"):
        opened(root, pool="cls")
    with pytest.raises(UsageError, match="expected none, mean, cls or grid:K"):
        opened(root, pool="max")


def test_class_tokens_are_refused_where_there_are_none(root: Path) -> None:
    with pytest.raises(UsageError, match=r"'pixels' gives no class token; these models do: .*dinov2-origin"):
        extract(config("val", pool="cls"), settings_of(root))


def test_class_tokens_of_an_encoder() -> None:
    cls = torch.arange(12.0).reshape(2, 2, 3)
    found = pooled_latents(Latents(torch.zeros(2, 2, 5, 3), cls=cls), "cls")
    assert torch.equal(found.tokens, cls[:, :, None])
    with pytest.raises(UsageError, match="no class token"):
        pooled_latents(Latents(torch.zeros(2, 2, 5, 3)), "cls")


def test_class_tokens_of_a_backbone_are_stored(root: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "vit", "dinov2")
    asked: dict[str, Any] = {"model": "dinov2-origin", "weights": str(folder), "limit": 2}
    for pool in ("none", "cls"):
        extract(config("val", **asked, pool=pool), settings_of(root))
    every, cls = (opened(root, model="dinov2-origin", pool=pool).source for pool in (None, "cls"))
    assert cls.shape == (2, 1, every.shape[-1])
    assert not (cls.read([0]) == every.read([0])).all(-1).any(), "a class token is none of the patch tokens"


@given(side=st.integers(1, 7), cells=st.integers(1, 7), steps=st.sampled_from([(), (3,)]))
@limits(max_examples=30, deadline=None)
def test_grid_cells_are_means_of_their_tokens(side: int, cells: int, steps: tuple[int, ...]) -> None:
    tokens = torch.randn(2, *steps, side * side, 3, generator=torch.Generator().manual_seed(0))
    if cells > side:
        with pytest.raises(UsageError):
            pooled_tokens(tokens, parse_pool(f"grid:{cells}"))
        return
    found = pooled_tokens(tokens, parse_pool(f"grid:{cells}")).unflatten(-2, (cells, cells))
    grid = tokens.unflatten(-2, (side, side))
    for row in range(cells):
        for column in range(cells):
            top, bottom = row * side // cells, -(-(row + 1) * side // cells)
            left, right = column * side // cells, -(-(column + 1) * side // cells)
            expected = grid[..., top:bottom, left:right, :].mean((-3, -2))
            torch.testing.assert_close(found[..., row, column, :], expected)


@given(
    rows=st.lists(st.integers(0, 11), max_size=12, unique=True),
    shape=st.sampled_from([(1, 1), (2, 3), (2, 1, 5), (1, 2, 3, 2)]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    coded=st.booleans(),
    seed=st.integers(0, 99),
)
@limits(max_examples=60, deadline=None)
def test_any_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], shape: tuple[int, ...], dtype: Any, coded: bool,
    seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("any")
    tokens = draw(12, shape, seed)
    codes = np.random.default_rng(seed).integers(0, 99, (12, *shape[:-1])) if coded else None
    store = ShardStore(folder, StoreIdentity(**(vars(IDENTITY) | {"dtype": dtype})), 12)
    with store.writer(0) as writer:
        for row in rows:
            writer.add(row, f"{row:04d}", tokens[row], None if codes is None else codes[row])
    if not rows:
        assert not list(folder.iterdir())
        return
    header = read_header(folder / "shard_00000.safetensors")
    assert header.rows.tolist() == sorted(rows)
    assert header.samples == tuple(f"{row:04d}" for row in sorted(rows))
    expected = torch.from_numpy(tokens[sorted(rows)]).to(getattr(torch, dtype)).float().numpy()
    order = np.random.default_rng(seed).permutation(len(rows))
    for mode in ("mmap", "pread"):
        source = ShardSource([header], np.zeros(len(rows), np.int64), np.arange(len(rows)), mode)
        np.testing.assert_array_equal(source.read(order), expected[order])
        for at, found in zip(order, source.codes(order.tolist()), strict=True):
            if codes is None:
                assert found is None
            else:
                np.testing.assert_array_equal(found, codes[sorted(rows)[at]])
    loaded = load_file(header.path) if dtype != "bfloat16" else None
    assert loaded is None or set(loaded) == ({"tokens", "codes"} if coded else {"tokens"})


@pytest.mark.parametrize(("kind", "mode"), [("nfs4", "pread"), ("fuse.sshfs", "pread"), ("ext4", "mmap")])
def test_network_file_systems_are_read_by_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str
) -> None:
    mounts = [
        SimpleNamespace(mountpoint=str(place), fstype=name)
        for place, name in (("/", "xfs"), (tmp_path / "data", kind), (f"{tmp_path}/dat", "lustre"))
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    (tmp_path / "data" / "store").mkdir(parents=True)
    assert read_mode(tmp_path / "data" / "store") == mode
    assert read_mode(tmp_path) == "mmap"


def test_stamps_are_read_from_the_end(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    stamp = Stamp("0123", "abcd", "modèle")
    write_latents(file, draw(1)[0], np.arange(6).reshape(2, 3), stamp)
    assert read_stamp(file) == stamp
    with np.load(file, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["tokens"], draw(1)[0])
        np.testing.assert_array_equal(found["indices"], np.arange(6).reshape(2, 3))
    whole = file.read_bytes()
    for torn in (whole[:-1], whole[1:], whole + b"x", whole[: len(whole) // 2], b"", b"PK\x05\x06"):
        file.write_bytes(torn)
        assert read_stamp(file) is None
    np.savez(file, tokens=draw(1)[0])
    assert read_stamp(file) is None
