"""What the golden tests of the probes share: commands, facts of a run folder, expected values, and planned stops."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lary.cli import main

EXPECTED = Path(__file__).with_name("probes.json")
WRITES = bool(os.environ.get("LARY_GOLDEN_WRITE"))
REPOSITORY = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
VOLATILE = (
    "schema_version", "created", "identity", "provenance", "timings", "options_given", "dataset", "model", "interval",
    "warnings", "protocol_notes", "classes", "confusion", "examples", "options",
    "inputs", "extra", "files",
)  # fmt: skip
"""Fields of a result that differ between two machines, hold sentences, or are abridged below."""

STOPPER = """
import os, signal, sys
root, wanted, sent, main_process = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), os.getpid()
count = 0
def watch(event, arguments):
    global count
    if event != "os.rename" or os.getpid() != main_process or "__pycache__" in str(arguments[1]):
        return
    if not os.path.abspath(os.fsdecode(arguments[1])).startswith(root):
        return
    count += 1
    if count == wanted:
        os.kill(main_process, sent)
sys.addaudithook(watch)
from lary.cli import main
main(sys.argv[4:])
"""
"""Runs a command that gets a signal when it is about to give its N-th file its name: no clock decides the moment."""


def write_lossless(path: Path, frames: Sequence[Any]) -> None:
    """A clip of PNG frames in an MP4: x264 gives one of several encodings, depending on where its buffers are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("png", rate=Fraction(10))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


class Place:
    """Folders of one series of runs; the media may be those of another place."""

    def __init__(self, root: Path, data: Path | None = None) -> None:
        self.root, self.data, self.logs = root, data or root / "data", root / "logs"
        (root / "data").mkdir(parents=True, exist_ok=True)
        for table in self.data.glob("*_metadata_*.csv") if data else ():
            (root / "data" / table.name).write_bytes(table.read_bytes())

    def environment(self) -> dict[str, str]:
        """The variables of env.sh."""
        return {
            "LARY_ROOT": str(self.root), "DATA_DIR": str(self.data), "LARY_LA_DIR": str(self.root / "latents"),
            "LARY_LOG_DIR": str(self.logs), "MODEL_DIR": str(self.root / "models"), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip

    def __call__(self, *words: str, expected: int | None = 0) -> tuple[int, str, str]:
        """Run a command here: exit code, stdout and stderr, with the folders' names replaced."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            for name, value in self.environment().items():
                patch.setenv(name, value)
            patch.chdir(self.root)
            with pytest.raises(SystemExit) as stop:
                main([word.replace("ROOT", str(self.root)) for word in words])
        code = int(stop.value.code or 0)
        found = [part.getvalue().replace(str(self.root), "ROOT") for part in (out, err)]
        assert expected is None or code == expected, (words, code, *found)
        return code, found[0], found[1]

    def stopped(self, words: Sequence[str], count: int, signal: int) -> int:
        """Run a command in a process of its own that gets `signal` at the naming of its file number `count`."""
        path = os.pathsep.join((str(REPOSITORY), os.environ.get("PYTHONPATH", "")))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", STOPPER, str(self.root), str(count), str(int(signal)),
             *(word.replace("ROOT", str(self.root)) for word in words)],
            env=os.environ | self.environment() | {"PYTHONPATH": path}, cwd=self.root, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    def runs(self) -> dict[str, dict[str, Any]]:
        """The facts of all finished runs by folder."""
        return {
            file.parent.relative_to(self.logs).as_posix(): run_facts(file.parent)
            for file in sorted(self.logs.rglob("result.json"))
        }


def files_below(folder: Path) -> list[Path]:
    """Files without locks, hidden ones and those in hidden folders."""
    return [
        path for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.name != "lock"
    ]  # fmt: skip


def rows_of(file: Path) -> list[list[Any]]:
    """Rows of a CSV with numbers as numbers, the header first."""
    with file.open(newline="") as stream:
        return [[number(cell) for cell in row] for row in csv.reader(stream)]


def number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def counted(rows: Iterable[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Rows of a table per class in which a count is not zero."""
    return [row for row in rows if any(row.get(name) for name in names)]


def run_facts(folder: Path) -> dict[str, Any]:
    """Numbers, names of files and contents of the published files of a finished run."""
    result = json.loads((folder / "result.json").read_text())
    facts: dict[str, Any] = {name: value for name, value in result.items() if name not in VOLATILE}
    facts["dataset"] = {name: result["dataset"][name] for name in ("name", "splits", "stride", "units", "revision")}
    facts["model"] = {name: result["model"][name] for name in ("name", "paradigm", "dim", "shape", "parameters_m")}
    facts["options"] = {name: value for name, value in result["options"].items() if name != "device"}
    facts["sentences"] = [bool(result["interval"]), len(result["warnings"]), len(result["protocol_notes"])]
    facts["classes"] = [len(result["classes"]), counted(result["classes"], "train", "true", "predicted")]
    matrix = np.array(result["confusion"])
    facts["confusion"] = [[*map(int, at), int(matrix[tuple(at)])] for at in np.argwhere(matrix)]
    facts["examples"] = [[one["sample"], one["quantile"], one["mse"], one["predicted"]] for one in result["examples"]]
    facts["margins"] = [{**margin, "result": bool(margin["result"])} for margin in result["margins"]]
    facts["files"] = sorted(result["files"])  # schema 3 has a digest of each
    names = [path.relative_to(folder).as_posix() for path in files_below(folder)]
    facts["on disk"] = names
    facts["contents"] = {name: contents for name in names if (contents := file_facts(folder / name)) is not None}
    return facts


def file_facts(file: Path) -> Any:
    """What is in a file that a run is published with; None for others."""
    if file.suffix == ".csv":
        return rows_of(file)
    if file.name == "case.txt":
        return file.read_text().splitlines()
    if file.name == "classification_stats.json":
        own = json.loads(file.read_text())
        return [len(own), {name: row for name, row in own.items() if row["samples"] or row["precision"]}]
    if file.name == "confusion_matrix.json":
        own = json.loads(file.read_text())
        return {name: np.array(value).shape if name == "matrix" else len(value) for name, value in own.items()}
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return {name: array_facts(arrays[name]) for name in sorted(arrays.files)}
    return None


def array_facts(array: Any) -> list[Any]:
    """Shape, kind and mean of an array; ends of one that holds no numbers."""
    if array.dtype.kind in "fiub":
        return [array.shape, array.dtype.kind, float(np.mean(array)) if array.size else 0.0]
    return [array.shape, array.dtype.kind, *(str(one) for one in array.reshape(-1)[[0, -1]] if array.size)]


def numbers_of(text: str) -> list[float]:
    """All numbers of a text but those in paths: its words may be rewritten."""
    return [float(found) for found in NUMBER.findall(re.sub(r"\S*/\S*", "", text))]


def rounded(value: Any) -> Any:
    """Plain JSON with six significant digits."""
    if isinstance(value, dict):
        return {str(name): rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def differences(found: Any, wanted: Any, at: str = "") -> list[str]:
    """Where two trees of plain values differ; numbers may do so by a part in ten thousand."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs: Any = [(name, found.get(name, "absent"), wanted.get(name, "absent")) for name in {**wanted, **found}]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(number, *both) for number, both in enumerate(zip(found, wanted, strict=True))]
    else:
        real = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (found, wanted))
        same = found == pytest.approx(wanted, rel=1e-4, abs=1e-6, nan_ok=True) if real else found == wanted
        return [] if same else [f"{at}: {found!r}, expected {wanted!r}"]
    return [line for name, one, other in pairs for line in differences(one, other, f"{at}/{name}")]


def check(name: str, found: Any) -> None:
    """Compare with the expected value of a name, or make it the expected one."""
    found = json.loads(json.dumps(rounded(found)))
    if not WRITES:
        wrong = differences(found, json.loads(EXPECTED.read_text())[name])
        assert not wrong, f"{name}: {len(wrong)} differences\n" + "\n".join(wrong[:20])
        return
    with Path(f"{EXPECTED}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
        known[name] = found
        lines = [f"{json.dumps(key)}: {json.dumps(known[key])}" for key in sorted(known)]
        EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        os.unlink(lock.name)
