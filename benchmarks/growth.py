"""What grows with the rows of a table and with the number of results: seconds and memory, each at most linear.

    python -m benchmarks.growth [--rows 1000 10000 100000 1000000 2000000] [--results 3 30 300]

Load, audit of tables, plan (``extract --dry-run`` of an empty store), restart of a store of shards that is done, and of
one of ``npz`` with 5 rows done, then report and compare. Each runs in a process of its own. Printed are its seconds by
the clock and of the CPU, the largest resident memory, and what a million more would add to these: the constant of a
linear growth. It fails where this is more than twice what it was between the two counts before.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.pipeline import make_pairs, settings_of
from lary.configs import ExtractConfig

IMAGES, DONE, LINEAR = 100, 5, 2.0
PAGE = "report.html"
SMALL = """
import os, sys, time
started = time.monotonic()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, used = os.wait4(child, 0)
print(time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A small process that runs a command: a child's peak of memory begins with that of the process that starts it."""
ASKED = {"model": "pixels", "dataset": "calvin", "split": "val", "device": "cpu"}


def make_table(root: Path, rows: int) -> None:
    """A table of pairs in CALVIN's layout: a few pictures, and an action of its own for every row."""
    make_pairs(root, IMAGES)
    with (root / "data" / "calvin_metadata_val.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["src_img", "tgt_img", "action"])
        for row in range(rows):
            at = f"images/ep/{row % IMAGES}"
            writer.writerow([f"{at}_a.png", f"{at}_b.png", f"actions/ep_{row // 60}/action_{row:09d}.npy"])


def make_store(root: Path, kind: str, rows: int | None) -> None:
    """A store of small latents for the first rows of a table, or all, as an extraction leaves it."""
    from lary.runs.extract import open_run, prepare_run

    run = prepare_run(ExtractConfig(**ASKED, store=kind), settings_of(root))  # type: ignore[arg-type]
    store, ids, tokens = open_run(run), run.table.ids[:rows], np.zeros((1, 4), np.float32)
    for start in range(0, len(ids), store.unit_rows):
        with store.writer(start // store.unit_rows) as write:
            for row in range(start, min(len(ids), start + store.unit_rows)):
                write(row, ids[row], tokens, None)


def make_results(root: Path, count: int) -> None:
    """Results of one data set and its predictions, copies of three that differ."""
    from tests.fake_results import write_whole

    kinds = [write_whole(root / "logs" / "regression" / f"arm_{number}", "regression", f"model-{number}")
             for number in range(min(3, count))]  # fmt: skip
    for number in range(3, count):
        folder = root / "logs" / "regression" / f"arm_{number}"
        shutil.copytree(kinds[number % 3], folder)
        text = (folder / "result.json").read_text()
        (folder / "result.json").write_text(text.replace(f"model-{number % 3}", f"model-{number}"))


def command(root: Path, *words: str) -> list[str]:
    places = ("--lary-root", str(root), "--data-dir", str(root / "data"), "--lary-la-dir", str(root / "latent_actions"))
    return [sys.executable, "-m", "lary.cli", *words, *places]


def extract(root: Path, *words: str) -> list[str]:
    return command(root, "extract", *(part for name, value in ASKED.items() for part in (f"--{name}", value)), *words)


def python(root: Path, *lines: str) -> list[str]:
    """A program that knows the table of a folder as `path`, its record as `spec`."""
    begin = ("from pathlib import Path", "from lary.data.spec import DATASETS", "spec = DATASETS.get('calvin')",
             f"root = Path({str(root)!r})", "path = root / 'data' / 'calvin_metadata_val.csv'")  # fmt: skip
    return [sys.executable, "-c", "\n".join((*begin, *lines))]


def timed(words: Sequence[str]) -> dict[str, float]:
    """Seconds, CPU seconds with those of ended children, and peak memory in MiB of a command."""
    done = subprocess.run([sys.executable, "-S", "-c", SMALL, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[:300]} failed: {done.stderr[-600:]}")
    seconds, cpu, peak = map(float, done.stdout.split())
    return {"seconds": seconds, "cpu": cpu, "MiB": peak / 1024}


def of_rows(folder: Path, rows: int) -> dict[str, dict[str, float]]:
    """What is done with a table of so many rows."""
    read = "from lary.data.tables import read_table; read_table(spec, 'val', path=path, data_dir=root)"
    audit = ("from lary.data.audit import audit", "from lary.data.configs import AuditConfig",
             "from lary.settings import load_settings",
             "audit(spec, AuditConfig(table=(f'val={path}',)), load_settings({'LARY_ROOT': str(root)}))")  # fmt: skip
    found = {}
    for kind, count in (("npz", DONE), ("shards", None)):
        root = folder / kind
        make_table(root, rows)
        if not found:
            found["load"] = timed(python(root, read))
            found["audit"] = timed(python(root, *audit))
            found["plan"] = timed(extract(root, "--dry-run"))
        make_store(root, kind, count)
        found[f"restart {kind}, {count or 'all'} done"] = timed(extract(root, "--store", kind, "--dry-run"))
        shutil.rmtree(root)
    return found


def of_results(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """What is done with so many results; the report also in MB of its page."""
    make_results(folder, count)
    logs = folder / "logs"
    found = {"report": timed(command(folder, "report", str(logs), "--out", str(folder / PAGE)))}
    found["report"]["MB of the page"] = (folder / PAGE).stat().st_size / 1e6
    runs = sorted(str(path) for path in (logs / "regression").iterdir())[:20]
    found[f"compare, at most {len(runs)}"] = timed([sys.executable, "-m", "lary.cli", "compare", *runs])
    shutil.rmtree(folder)
    return found


def measure(counts: Sequence[int], work: Callable[[Path, int], dict[str, dict[str, float]]], unit: str) -> bool:
    """Print what `work` takes at each count, and what one more costs; returns whether all is at most linear."""
    before: dict[str, tuple[int, dict[str, float]]] = {}
    slopes: dict[tuple[str, str], float] = {}
    linear = True
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            found = work(Path(folder), count)
        for name, values in found.items():
            line = f"{name:28}{count:>9} {unit}"
            for what, value in values.items():
                line += f"  {value:9.2f} {what}"
                if name in before and what != "seconds":
                    slope = (value - before[name][1][what]) / (count - before[name][0])
                    line += f" ({1e6 * slope:.3g} per million)"
                    known = slopes.get((name, what), 0.0)
                    # Starts scatter: what is below a fifth of the whole tells nothing.
                    wrong = slope > LINEAR * known > 0 and known * before[name][0] > 0.2 * before[name][1][what]
                    linear, line = linear and not wrong, line + " MORE THAN LINEAR" * wrong
                    slopes[name, what] = slope
            print(line, flush=True)
            before[name] = count, values
    return linear


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000, 2_000_000])
    parser.add_argument("--results", type=int, nargs="*", default=[3, 30, 300])
    options = parser.parse_args()
    found = [measure(options.rows, of_rows, "rows"), measure(options.results, of_results, "results")]
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
