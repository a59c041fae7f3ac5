"""Peak memory of an extraction, which must not depend on how many samples there are.

    python -m benchmarks.memory [--samples 1000 20000] [--store npz]

Each count is extracted by a process of its own, with a model that hands out ready latents. The figures are the largest
resident sizes of that process and of one of its readers.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.pipeline import make_pairs, ready_latents, settings_of
from lary.configs import ExtractConfig
from lary.data.tables import write_csv
from lary.latents import reading
from lary.runs.extract import extract
from lary.workers import Worker

IMAGES = 200
SHAPE = (4, 256)


def make(root: Path, count: int) -> None:
    """`count` pairs of a few pictures, each with a target of its own."""
    make_pairs(root, IMAGES)
    rows = [[f"images/ep/{index % IMAGES}_{side}.png" for side in "ab"] + [f"actions/ep/{index}.npy"]
            for index in range(count)]  # fmt: skip
    write_csv(root / "data" / "calvin_metadata_val.csv", ["src_img", "tgt_img", "action"], rows)


def inside(store: str, count: int) -> None:
    """Extract `count` pairs and print the peak in MB of this process and of its readers."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), count)
        config = ExtractConfig(model=ready_latents(SHAPE), dataset="calvin", split="val", store=store)  # type: ignore[arg-type]
        report = extract(config, settings_of(Path(folder)))
        assert report.extracted == count
    # A child's own figure starts with the size of the process that it was forked from: ask the kernel for the peak
    # since its start. Linux alone tells it.
    readers = [peak for own in reading.idle for worker in own.pool.workers if (peak := peak_of(worker))]
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} {max(readers):.1f}")


def peak_of(worker: Worker) -> float:
    """The largest resident size of a worker so far, in MB; 0 if it doesn't run."""
    if worker._process is None:
        return 0.0
    status = Path(f"/proc/{worker._process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def main() -> None:
    """Measure each count in a process of its own and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--store", default="npz")
    parser.add_argument("--inside", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.store, options.inside)
        return
    first: list[float] = []
    for count in options.samples:
        command = [sys.executable, "-m", "benchmarks.memory", "--store", options.store, "--inside", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks = [float(part) for part in done.stdout.split()[-2:]]
        first = first or peaks
        print(f"{count:>7} samples: extraction {peaks[0]:7.1f} MB ({peaks[0] / first[0]:.3f}), one reader "
              f"{peaks[1]:7.1f} MB ({peaks[1] / first[1]:.3f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
