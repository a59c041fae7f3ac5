"""Tables of full size: a clip table of 1.2 million rows and a pair table of 600,000; load time, memory, audit time.

    python benchmarks/tables.py [--rows-scale 1.0] [--folder FOLDER]

Each measurement runs in a process of its own. Both tables are then split by row, 70:30 and 75:25, and audited without
opening a file; a planted leak of one episode has to be found. Limits: loading 5 s and 1 GiB, the audit 60 s.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLIPS, PAIRS = 1_200_000, 600_000
LOAD_SECONDS, LOAD_MIB, AUDIT_SECONDS = 5.0, 1024.0, 60.0


def clip_rows(count: int, classes: list[str]):
    """Rows in the form of robot_1st; twenty clips per folder."""
    draw = random.Random(1)
    for row in range(count):
        frames = sorted(draw.randrange(200) for _ in range(9))
        path = f"AgiBotWorld-Beta/{row // 4000}/{600000 + row // 20}/head_color/{row}.mp4"
        yield row, ["AgiBotWorld-Beta", path, draw.choice(classes), ",".join(map(str, frames))]


def pair_rows(count: int):
    """Rows in the form of vlabench; sixty pairs per episode."""
    for row in range(count):
        episode, start, end = row // 60, row * 5, row * 5 + 5
        places = [f"{kind}s/ep_{episode}/{name}_{at:06d}" for at in (start, end) for kind, name in KINDS]
        files = [f"{places[0]}.png", f"{places[1]}.npy", f"{places[2]}.png", f"{places[3]}.npy"]
        yield (
            episode,
            ["VLABench", "robot", "3rd", *files, f"actions/ep_{episode}/action_{start:06d}to{end - 1:06d}.npy"],
        )


KINDS = (("image", "frame"), ("state", "state"))
CLIP_COLUMNS = ["dataset", "video_path", "action", "sample_indices"]
PAIR_COLUMNS = ["dataset", "type", "perspective", "src_img", "src_state", "tgt_img", "tgt_state", "action"]


def write_tables(path: Path, columns: list[str], rows, share: float) -> None:
    """The whole table, and the same split by whole groups (`rows` gives them first) with one row on both sides."""
    names = ("all", "train", "val")
    files = [path.with_name(f"{path.name}_{name}.csv").open("w", newline="") for name in names]
    whole, train, val = (csv.writer(file) for file in files)
    for writer in (whole, train, val):
        writer.writerow(columns)
    for group, row in rows:
        validates = group % 100 < share * 100
        whole.writerow(row)
        (val if validates else train).writerow(row)
        if group == 0:
            train.writerow(row)  # the planted leak
    for file in files:
        file.close()


def measure(what: str, dataset: str, folder: Path) -> dict[str, float]:
    """Load or audit in this process."""
    import pandas  # noqa: F401 (its import is not what is measured)

    from lary.data.audit import audit
    from lary.data.configs import AuditConfig
    from lary.data.spec import DATASETS
    from lary.data.tables import read_table
    from lary.settings import load_settings

    spec, started, cpu = DATASETS.get(dataset), time.perf_counter(), time.process_time()
    if what == "load":
        rows = len(read_table(spec, "train", path=folder / f"{dataset}_all.csv", data_dir=folder))
    else:
        tables = tuple(f"{split}={folder / dataset}_{split}.csv" for split in ("train", "val"))
        report = audit(spec, AuditConfig(table=tables), load_settings({"LARY_ROOT": str(folder)}))
        if not report.leaks:
            raise SystemExit("The planted leak was not found.")
        rows = sum(facts["rows"] for facts in report.splits)
    return {
        "rows": rows,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows-scale", type=float, default=1.0, help="part of the full numbers of rows")
    parser.add_argument("--folder", type=Path, help="where to write the tables; default: a temporary folder")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "DATASET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.folder)))
        return 0
    from lary.data.spec import DATASETS

    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        clips = clip_rows(int(CLIPS * options.rows_scale), list(DATASETS.get("robot_1st").labels.classes))
        write_tables(folder / "robot_1st", CLIP_COLUMNS, clips, 0.3)
        write_tables(folder / "vlabench", PAIR_COLUMNS, pair_rows(int(PAIRS * options.rows_scale)), 0.25)
        print(f"{'table':12}{'':8}{'rows':>10}{'seconds':>10}{'CPU s':>8}{'peak MiB':>10}  within limits")
        for dataset in ("robot_1st", "vlabench"):
            for what, limit in (("load", LOAD_SECONDS), ("audit", AUDIT_SECONDS)):
                command = [sys.executable, __file__, "--measure", what, dataset, "--folder", str(folder)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                fits = found["seconds"] < limit and (what == "audit" or found["peak_mib"] < LOAD_MIB)
                failed += not fits
                print(
                    f"{dataset:12}{what:8}{found['rows']:>10}{found['seconds']:>10.2f}{found['cpu_seconds']:>8.2f}"
                    f"{found['peak_mib']:>10.0f}  {'yes' if fits else 'NO'}"
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
