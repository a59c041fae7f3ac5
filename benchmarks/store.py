"""The latent store against plain ``.npz`` files: writing, random rows through the probe's loader, bytes on disk.

    OMP_NUM_THREADS=2 python benchmarks/store.py [--folder FOLDER] [--scale 1.0]

Random latents, 20,000 samples of 16 x 1024 and 1,000 of 2 x 196 x 1024 in float16, written by each kind of store, and
as a plain loop does with ``numpy.savez_compressed``. Rows are then read in random order through ``read_batches``, the
loader of the probes, after one pass that warms the page cache; the best of three. Shards are also read where the cache
has nothing of them, with one reading thread, as on a CPU, and with two, as on CUDA, beside the same files in order.
Limits: shards give 20,000 and 2,000 rows/s, and their bytes are within 1 % of the tokens'. All numbers are of one run;
the ratios are what counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pyarrow.parquet  # noqa: F401 (imports are not what is measured)

from lary.latents.ref import open_store
from lary.latents.sources import NpzSource, ShardSource
from lary.latents.store import StoreIdentity
from lary.probes.sources import finite_latents, read_batches

CASES = (((16, 1024), 20_000, 20_000), ((2, 196, 1024), 1_000, 2_000))
"""Shape, samples, rows/s that shards have to give."""

BATCH = {16: 256, 2: 32}
PASSES, NAME = 3, "latent_action_{:08d}.npz"


def draw(row: int, shape: tuple[int, ...]) -> np.ndarray:
    """The tokens of a row; a hundred different ones, so that drawing costs nothing."""
    if (shape, row % 100) not in DRAWN:
        DRAWN[shape, row % 100] = np.random.default_rng(row % 100).standard_normal(shape).astype(np.float32)
    return DRAWN[shape, row % 100]


DRAWN: dict[tuple[tuple[int, ...], int], np.ndarray] = {}


def write_store(folder: Path, kind: str, dtype: str, shape: tuple[int, ...], count: int) -> None:
    """Write all samples through a store."""
    identity = StoreIdentity("bench", "bench", "train", "corrected", "", "", 0, dtype=dtype)
    store = open_store(folder, identity, {}, overwrite=False, kind=kind, batch_size=16)
    for unit in range(-(-count // store.unit_rows)):
        with store.writer(unit) as write:
            for row in range(unit * store.unit_rows, min((unit + 1) * store.unit_rows, count)):
                write(row, f"{row:016x}", draw(row, shape), None)
    store.finish(Table(count))


class Table(list):
    """As much of a table as a store asks for."""

    path, digest = Path("bench.csv"), ""

    def __init__(self, count: int) -> None:
        super().__init__(SimpleNamespace(id=f"{row:016x}") for row in range(count))


def write_naive(folder: Path, dtype: str, shape: tuple[int, ...], count: int) -> None:
    """One compressed file per sample."""
    folder.mkdir()
    for row in range(count):
        np.savez_compressed(folder / NAME.format(row), tokens=draw(row, shape).astype(dtype), indices=np.array([]))


def sharded(folder: Path, dtype: str) -> ShardSource:
    """The rows of a store of shards."""
    identity = StoreIdentity("bench", "bench", "train", "corrected", "", "", 0, dtype=dtype)
    store = open_store(folder, identity, {}, overwrite=False, kind="shards", batch_size=16)
    headers = list(store.headers())
    files = np.concatenate([np.full(len(header.samples), at) for at, header in enumerate(headers)])
    return ShardSource(headers, files, np.concatenate([np.arange(len(header.samples)) for header in headers]))


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    os.sync()
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(source, batch: int, limit: int, before: Callable[[], object] = lambda: None) -> tuple[float, float]:
    """Rows/s and rows per CPU second in random order, the best of passes after `before`; at most `limit` rows."""
    rows = np.random.default_rng(1).permutation(len(source))[:limit]
    best, best_cpu = 0.0, 0.0
    for _ in range(PASSES + 1):
        before()
        started, cpu = time.perf_counter(), time.process_time()
        for _, tokens, _ in read_batches(finite_latents(source, str), rows, batch, "cpu"):
            assert tokens.dtype.is_floating_point
        best = max(best, len(rows) / (time.perf_counter() - started))
        best_cpu = max(best_cpu, len(rows) / (time.process_time() - cpu))
    return best, best_cpu


def size_of(folder: Path, pattern: str = "*") -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file())


def run(folder: Path, shape: tuple[int, ...], count: int, least: int) -> bool:
    """One shape: print a table; whether all limits hold."""
    payload, batch, few = count * int(np.prod(shape)) * 2, BATCH[shape[0]], min(count, 2_000_000 // int(np.prod(shape)))
    print(f"\n{count} samples of {' x '.join(map(str, shape))}, float16, {payload / 1e6:.0f} MB, batches of {batch}")
    print(f"{'':34}{'write MB/s':>12}{'CPU ms/row':>12}{'bytes/payload':>15}{'rows/s':>10}{'rows/CPU s':>12}")
    for row in range(100):
        draw(row, shape)
    writers = {
        "shards": (count, lambda place: write_store(place, "shards", "float16", shape, count)),
        "npz": (count, lambda place: write_store(place, "npz", "float16", shape, count)),
        "plain loop, compressed npz": (few, lambda place: write_naive(place, "float16", shape, few)),
    }
    fits, found = True, {}
    for name, (rows, write) in writers.items():
        place = folder / name.replace(" ", "_").replace(",", "")
        started, cpu = time.perf_counter(), time.process_time()
        write(place)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        share = size_of(place) / (payload * rows / count)
        files = [place / NAME.format(row) for row in range(rows)]
        source = NpzSource(files) if name != "shards" else sharded(place, "float16")
        found[name], per_cpu = rate(source, batch, 10 * few if isinstance(source, NpzSource) else count)
        first = f"{payload * rows / count / 1e6 / seconds:12.0f}{1e3 * cpu / rows:12.3f}{share:15.4f}"
        print(f"{name:34}{first}{found[name]:10.0f}{per_cpu:12.0f}")
        if name == "shards":
            for threads in (1, 2):
                pool = partial(ThreadPoolExecutor, threads)  # whatever the loader asks for
                with patch("lary.probes.sources.ThreadPoolExecutor", lambda _, pool=pool: pool()):
                    cold, per_cpu = rate(sharded(place, "float16"), batch, count, lambda: forget(folder / "shards"))
                print(f"{f'  not cached, {threads} reading threads':73}{cold:10.0f}{per_cpu:12.0f}")
            forget(place)
            started = time.perf_counter()
            for file in place.iterdir():
                file.read_bytes()
            print(f"{'  not cached, whole files in order':73}{count / (time.perf_counter() - started):10.0f}")
            fits = share < 1.01 and found[name] >= least
        shutil.rmtree(place)
    ratios = ", ".join(f"{found['shards'] / found[name]:.1f} times {name}" for name in list(writers)[1:])
    print(f"shards read {ratios}; {least} rows/s and 1 % of bytes: {'held' if fits else 'MISSED'}")
    return fits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full numbers of samples")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        held = [run(Path(temporary), shape, int(count * options.scale), least) for shape, count, least in CASES]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
