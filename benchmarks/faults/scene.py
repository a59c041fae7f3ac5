"""What the scripts beside this one share: a small data set, commands, and comparisons of folders.

    python -m benchmarks.faults.scene FOLDER

makes the data set alone, to look at.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

REPOSITORY = Path(__file__).parents[2]
SIDE = 40
VERBS = ("pick", "place", "pour", "open")
MOVES = ((0, -1), (0, 1), (1, 0), (-1, 0))
BATCH, UNIT = 2, 16
"""Rows per batch and per unit of work: eight batches, in a store of either kind."""
UNSTABLE = ("extraction.json", "lock")
"""Of a store: how long it took, and who writes to it."""
TIMES = ("created", "provenance", "timings", "seal")
"""Of a result: what differs between two runs of one command."""

Picture = npt.NDArray[np.uint8]

PLUGIN = '''
"""Pixels, slowly: tells every row that it has encoded, and in which process.

On a CPU, rows are encoded one by one; a batch of several only checks that tokens repeat.
"""
import os, time, zlib
from lary.models.spec import MODELS, ModelSpec, register_model

base = MODELS.get("pixels")
counter = os.open({counter!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

@register_model(ModelSpec(name="slow", paradigm="baseline", dim=base.dim, preprocess=base.preprocess))
class Slow:
    def __init__(self, spec, context):
        self.inner = base.factory(base, context)

    def encode(self, clips):
        time.sleep({seconds!r})
        latents = self.inner.encode(clips)
        if len(clips) == 1:
            row = zlib.crc32(clips.numpy().tobytes())
            os.write(counter, f"{{os.getpid()}} {{row:08x}}\\n".encode())
        return latents
'''


def picture(x: float, y: float, colour: Sequence[int]) -> Picture:
    """(H, W, 3) uint8 with a bright square at (x, y) in [0, 1]."""
    found = np.full((SIDE, SIDE, 3), 40, dtype=np.uint8)
    row, column = (int(2 + value * (SIDE - 14)) for value in (y, x))
    found[row : row + 10, column : column + 10] = colour
    return found


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table as CSV."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def make_pairs(data: Path, counts: Mapping[str, int], *, damaged: bool) -> None:
    """Image pairs in CALVIN's form; the action says where the square goes. `damaged`: two pictures of every split."""
    from PIL import Image

    rng = np.random.default_rng(3)
    for split, count in counts.items():
        folder = data / "regression" / "calvin" / f"{split}_stride5"
        rows = []
        for index in range(count):
            episode, first = f"ep_{index // 4}", 10 * index
            points = rng.random((2, 2))
            names = [f"images/{episode}/frame_{first + step:06d}.png" for step in (0, 5)]
            action = f"actions/{episode}/action_{first:06d}to{first + 4:06d}.npy"
            for name, point in zip(names, points, strict=True):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture(point[0], point[1], (250, 200, 5 * (index % 40)))).save(folder / name)
            chunk = np.zeros((5, 7), dtype=np.float32)
            chunk[:, :2] = np.linspace(points[0], points[1], 5)
            (folder / action).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / action, chunk)
            rows.append({"dataset": "CALVIN", "src_img": names[0], "tgt_img": names[1], "action": action})
        if damaged:
            (folder / rows[count // 3]["src_img"]).write_bytes(b"")
            (folder / rows[count // 2]["tgt_img"]).unlink()
        write_rows(data / f"calvin_metadata_{split}.csv", rows)


def make_clips(data: Path, counts: Mapping[str, int]) -> None:
    """Clips in Robot_1st's form: squares that move in one of four directions, a verb each."""
    rng = np.random.default_rng(4)
    for split, count in counts.items():
        rows = []
        for index in range(count):
            start, move = 0.3 + 0.4 * rng.random(2), np.array(MOVES[index % len(VERBS)])
            name = f"AgiBotWorld-Beta/{split}/{index}.mp4"
            points = (np.clip(start + 0.04 * step * move, 0, 1) for step in range(9))
            write_video(data / "classification" / name, [picture(x, y, (200, 60, 60)) for x, y in points])
            rows.append({"dataset": "AgiBotWorld-Beta", "video_path": name, "action": VERBS[index % len(VERBS)],
                         "sample_indices": "0,1,2,3,4,5,6,7,8"})  # fmt: skip
        write_rows(data / f"robot_1st_metadata_{split}.csv", rows)


def write_video(file: Path, frames: Iterable[Picture]) -> None:
    """A clip in H.264."""
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def make_root(data: Path, root: Path) -> Path:
    """A folder of its own for latents, tables and results, over media that all share."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for table in data.glob("*_metadata_*.csv"):
        shutil.copy(table, root / "data")
    return root


def write_plugin(file: Path, counter: Path, seconds: float) -> Path:
    """The model ``slow``, which takes `seconds` per row and leaves a line per row in `counter`."""
    file.write_text(textwrap.dedent(PLUGIN.format(counter=str(counter), seconds=seconds)))
    return file


def encoded(counter: Path) -> list[str]:
    """A digest of every row that was encoded, in order."""
    return [line.split()[1] for line in counter.read_text().splitlines()] if counter.exists() else []


def command(data: Path, root: Path, *words: str) -> list[str]:
    """``lary WORDS`` in its own folders, as a process of its own."""
    places = ("--lary-root", str(root), "--data-dir", str(data))
    return [sys.executable, "-W", "ignore", "-m", "lary.cli", *words, *places]


def extract_words(plugin: Path, store: str) -> tuple[str, ...]:
    """An extraction with two reading workers and small units."""
    shards = ("--shard-rows", str(UNIT)) if store == "shards" else ()
    return ("extract", "--model", "slow", "--dataset", "calvin", "--split", "val", "--store", store, "--workers", "2",
            "--batch-size", str(BATCH), "--plugin", str(plugin), *shards)  # fmt: skip


def probe_words(kind: str, epochs: int) -> tuple[str, ...]:
    """A probe on the latents of ``pixels``, pooled: training is quick, starting takes most of the time."""
    dataset = {"classify": "robot_1st", "regress": "calvin"}[kind]
    return (kind, "--model", "pixels", "--dataset", dataset, "--pool", "mean", "--probe-preset", "demo",
            "--epochs", str(epochs))  # fmt: skip


def environment() -> dict[str, str]:
    """Of the commands: this copy of lary, no settings of the user, one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LARY_", "DATA_DIR"))}
    path = os.pathsep.join(part for part in (str(REPOSITORY), kept.get("PYTHONPATH")) if part)
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command as the head of a process group; what it says is added to `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            words, cwd=REPOSITORY, env=environment(), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip


def finish(words: Sequence[str], log: Path, *, expected: int = 0) -> int:
    """Run a command to its end. Raises RuntimeError for another exit code than expected."""
    code = start(words, log).wait()
    if code != expected:
        raise RuntimeError(f"exit code {code}, not {expected}: {' '.join(words)}\n{log.read_text()[-3000:]}")
    return code


def contents(root: Path) -> dict[str, bytes]:
    """All files below a folder by their places, without those that can't be the same; results without their times."""
    found = {}
    for file in files_below(root):
        if file.name not in UNSTABLE and not file.name.startswith("media_"):
            place = file.relative_to(root).as_posix()
            found[place] = stable_result(file) if file.name == "result.json" else file.read_bytes()
    return found


def files_below(root: Path) -> Iterator[Path]:
    """All files below a folder, in order."""
    return (file for file in sorted(root.rglob("*")) if file.is_file())


def stable_result(file: Path) -> bytes:
    """A result without times and provenance."""
    result = json.loads(file.read_text())
    return json.dumps({name: value for name, value in result.items() if name not in TIMES}).encode()


def differences(found: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> list[str]:
    """Files that one folder lacks, or that differ."""
    return [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]


def temporary(place: str) -> bool:
    """Whether a file is one that a writer was busy with."""
    name = Path(place).name
    return name.startswith(".") and name.endswith(".tmp")


if __name__ == "__main__":
    make_pairs(Path(sys.argv[1]), {"train": 32, "val": 16}, damaged=False)
    make_clips(Path(sys.argv[1]), {"train": 32, "val": 16})
