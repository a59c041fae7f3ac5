"""A Ray cluster of two nodes on this machine whose workers are killed, and one of whose nodes dies.

    python -m benchmarks.faults.ray_worker [--kills 3] [--rows 96] [--seed 0]        # needs lary[ray]

An extraction on the cluster loses `kills` actor processes by SIGKILL at random moments, a second one the node that its
actor works on, as a machine that loses its power. Both have to give the bits of the local engine: latents, table and
``failures.csv`` (two pictures are damaged). Prints the kills that met a living process and the rows encoded twice; an
actor is given rows by tasks, so a kill costs at most a task's. Exit code 1 if anything differs or no kill landed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults import scene
from lary.configs import ExtractConfig
from lary.registry import load_plugin
from lary.runs import engines as engine
from lary.runs.extract import extract
from lary.settings import load_settings

SECONDS_PER_ROW = 0.1
TASK_ROWS = 16
"""Rows per task in place of 1,024, so that few rows make several tasks."""
LOOK = 0.02


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster whose second node can be taken away."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=2)
            yield cluster
        finally:
            cluster.shutdown()


def lines_of(counter: Path) -> list[tuple[int, str]]:
    """Process and digest of every row that was encoded."""
    text = counter.read_text() if counter.exists() else ""
    return [(int(pid), row) for pid, row in (line.split() for line in text.splitlines())]


def kill_actors(counter: Path, kills: int, draw: random.Random, stop: threading.Event, landed: list[int]) -> None:
    """Kill whichever process encoded a row last, after a few more rows each time."""
    seen = 0
    while len(landed) < kills and not stop.is_set():
        lines = lines_of(counter)
        alive = [pid for pid, _ in lines[seen:] if pid not in landed]
        if not alive or len(lines) - seen < 2:
            time.sleep(LOOK)
            continue
        time.sleep(draw.random() * 5 * SECONDS_PER_ROW)
        with contextlib.suppress(ProcessLookupError):
            os.kill(alive[-1], signal.SIGKILL)
            landed.append(alive[-1])
        seen = len(lines_of(counter))


def remove_node(cluster: Any, counter: Path, stop: threading.Event, landed: list[int]) -> None:
    """Take the second node away once two processes have encoded rows."""
    while not stop.is_set():
        if len({pid for pid, _ in lines_of(counter)}) > 1:
            landed.append(0)
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
            return
        time.sleep(LOOK)


def on_ray(
    name: str, root: Path, data: Path, plugin: Path, counter: Path, wanted: dict[str, bytes], cluster: Any,
    trouble: Callable[[threading.Event, list[int]], None],
) -> list[str]:  # fmt: skip
    """Extract on the cluster while `trouble` goes on; returns what is wrong."""
    counter.unlink()
    stop, landed = threading.Event(), list[int]()
    thread = threading.Thread(target=trouble, args=(stop, landed))
    thread.start()
    begun = time.monotonic()
    try:
        run(root, data, plugin, engine="ray", address=cluster.address)
    finally:
        stop.set()
        thread.join()
    found, rows = scene.contents(root), [row for _, row in lines_of(counter)]
    wrong = [f"{name}: {place}" for place in scene.differences(found, wanted)]
    twice = len(rows) - len(set(rows))
    if twice > max(1, len(landed)) * TASK_ROWS * 2:
        wrong.append(f"{name}: {twice} rows encoded twice")
    print(
        f"{name:7} {len(landed)} landed, {len(rows)} rows encoded for {len(set(rows))}, {twice} twice, "
        f"{len(wanted)} files compared, {len(wrong)} differences, {time.monotonic() - begun:.0f} s",
        flush=True,
    )
    return wrong if landed else [*wrong, f"{name}: nothing was killed"]


def run(root: Path, data: Path, plugin: Path, **options: Any) -> None:
    """An extraction in this process."""
    settings = load_settings({"LARY_ROOT": str(root), "DATA_DIR": str(data)}, environment={})
    config = ExtractConfig(
        model="slow", dataset="calvin", split="val", batch_size=scene.BATCH, workers=1, store="shards",
        shard_rows=scene.UNIT, **options,
    )  # fmt: skip
    load_plugin(plugin)
    extract(config, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do both cases and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    engine.TASK_ROWS = TASK_ROWS
    os.environ["PYTHONPATH"] = scene.environment()["PYTHONPATH"]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        data, counter = home / "pairs", home / "counter"
        scene.make_pairs(data, {"val": options.rows}, damaged=True)
        plugin = scene.write_plugin(home / "slow.py", counter, SECONDS_PER_ROW)
        load_plugin(plugin)
        run(scene.make_root(data, home / "whole"), data, plugin)
        wanted, wrong = scene.contents(home / "whole"), []
        draw = random.Random(options.seed)

        def killing(stop: threading.Event, landed: list[int]) -> None:
            kill_actors(counter, options.kills, draw, stop, landed)

        for name in ("workers", "node"):
            with two_nodes() as cluster:

                def losing(stop: threading.Event, landed: list[int], cluster: Any = cluster) -> None:
                    remove_node(cluster, counter, stop, landed)

                root = scene.make_root(data, home / name)
                trouble = killing if name == "workers" else losing
                wrong += on_ray(name, root, data, plugin, counter, wanted, cluster, trouble)
            shutil.rmtree(root)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
