"""What the golden tests share: a place to run commands in, expected values, what is in a file, tiny checkpoints."""

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lary.cli import main
from tests.helpers import FORKED, Done, lary
from tests.parity.conftest import OWN, load_case
from tests.parity.fill import fill_tensor

REPOSITORY = Path(__file__).parents[2]
EXPECTED = Path(__file__).parent / "expected"
CASES = REPOSITORY / "tests" / "parity" / "cases"
WRITE = "LARY_GOLDEN_WRITE"
COMMANDS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("commands.yaml").read_text())
FILES: dict[str, str] = COMMANDS["files"]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")


def run_until(count: int, sent: int, words: list[str], variables: dict[str, str], root: str, told: str) -> None:
    """A command that gets a signal when it is about to give its file number `count` its name: no clock decides."""
    left, main_process = count, os.getpid()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event != "os.rename" or os.getpid() != main_process or "__pycache__" in str(arguments[1]):
            return
        if os.path.abspath(os.fsdecode(arguments[1])).startswith(root):
            left -= 1
            if not left:
                os.kill(main_process, sent)

    warnings.simplefilter("ignore")
    os.environ.update(variables)
    os.chdir(root)
    with open(told, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.addaudithook(watch)
    main(words)


def words_of(command: str, root: Path) -> list[str]:
    """The words of a command of commands.yaml in a folder."""

    def expanded(text: str) -> str:
        return re.sub(r"[A-Z]{3,}", lambda found: expanded(COMMANDS["words"].get(found[0], "")) or found[0], text)

    return [word.replace("ROOT", str(root)) for word in expanded(command).split()]


class Place:
    """Folders of one series of commands; the media may be those of another place."""

    def __init__(self, root: Path, data: Path | None = None) -> None:
        self.root, self.data, self.logs = root, data or root / "data", root / "logs"
        (root / "data").mkdir(parents=True, exist_ok=True)
        for table in self.data.glob("*_metadata_*.csv") if data else ():
            (root / "data" / table.name).write_bytes(table.read_bytes())

    def environment(self) -> dict[str, str]:
        """The variables of env.sh."""
        folders = {"LARY_ROOT": self.root, "DATA_DIR": self.data, "LARY_LOG_DIR": self.logs}
        return {name: str(folder) for name, folder in folders.items()} | {"HF_HUB_OFFLINE": "1"}

    def __call__(self, command: str, *words: object, code: int | None = 0) -> Done:
        """Run a command here; it has to have the exit code. Names of its folders are replaced in what it prints."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment().items():
                patch.setenv(name, value)
            patch.chdir(self.root)
            done = lary(*words_of(command, self.root), *map(str, words))
        assert code is None or done.code == code, (command, words, done)
        return Done(done.code, *(text.replace(str(self.root), "ROOT") for text in (done.out, done.err)))

    def stopped(self, command: str, count: int, signal: int) -> int:
        """Run a command in a process of its own that gets `signal` at the naming of its file number `count`."""
        told, words = self.root.with_name(f"{self.root.name}_told"), words_of(command, self.root)
        given = (count, int(signal), words, self.environment(), str(self.root), str(told))
        process = FORKED.Process(target=run_until, args=given)
        process.start()
        process.join()
        assert "Traceback" not in told.read_text(), told.read_text()
        assert process.exitcode is not None
        return process.exitcode


class Golden:
    """The expected values of one test module, or what writes them: with so many digits, compared that closely.

    Where `scaled` is set, a list of numbers is an array: its small values are differences of large ones, so that they
    are compared by the scale of the largest.
    """

    def __init__(self, name: str, digits: int = 8, rel: float = 1e-5, *, scaled: bool = True) -> None:
        self._file, self._digits, self._how = EXPECTED / f"{name}.json", digits, (rel, scaled)
        self._values: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def check(self, key: str, value: Any, rel: float | None = None) -> None:
        """Compare `value` with what is expected under `key` (as closely as `rel`), or write it there."""
        value = json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.{self._digits}g}"))
        if os.environ.get(WRITE):
            self._values[key] = value
            lines = [f"{json.dumps(name)}: {json.dumps(self._values[name])}" for name in sorted(self._values)]
            self._file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            return
        assert key in self._values, f"{self._file.name} has no {key}: write it with {WRITE}=1"
        wrong = differences(value, self._values[key], rel or self._how[0], self._how[1])
        assert not wrong, f"{key}: {len(wrong)} differences\n" + "\n".join(wrong[:20])


def differences(found: Any, wanted: Any, rel: float = 1e-4, scaled: bool = False, at: str = "") -> list[str]:
    """Where two trees of plain values differ: whole numbers and texts at all, others by more than a part."""

    def differ(one: Any, other: Any, place: str, limit: float = 1e-6) -> list[str]:
        if isinstance(one, dict) and isinstance(other, dict):
            pairs: Any = [(name, one.get(name, "absent"), other.get(name, "absent")) for name in {**other, **one}]
        elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            pairs = [(number, *both) for number, both in enumerate(zip(one, other, strict=True))]
            if scaled and all(isinstance(value, float) for value in other):
                limit += rel * max((abs(value) for value in other if value == value), default=0)
        else:
            real = isinstance(other, float) and isinstance(one, int | float)
            same = one == pytest.approx(other, rel=rel, abs=limit, nan_ok=True) if real else one == other
            return [] if same else [f"{place}: {one!r}, expected {other!r}"]
        return [line for name, a, b in pairs for line in differ(a, b, f"{place}/{name}", limit)]

    return differ(found, wanted, at)


def numbers_of(text: str) -> list[float]:
    """All numbers of a text but those in paths: its words may be rewritten."""
    return [float(found) for found in NUMBER.findall(re.sub(r"\S*/\S*", "", text))]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def summary(values: Any) -> Any:
    """An array as JSON: whole if it is small, else its shape, some statistics and sixteen of its values."""
    array = np.asarray(values)
    if array.dtype.kind in "US":
        return array.tolist()
    if array.dtype.kind in "iub":
        return {"shape": array.shape, "values": array.ravel().astype(int).tolist()}
    flat = array.astype(np.float64).ravel()
    if flat.size <= 48:
        return {"shape": array.shape, "values": flat.tolist()}
    weighted = flat * np.cos(np.arange(flat.size))  # the order of the values counts, too
    numbers = (flat.mean(), flat.std(), np.linalg.norm(flat), flat.min(), flat.max(), weighted.mean())
    return {
        "shape": array.shape,
        "mean, std, norm, min, max, weighted": [float(number) for number in numbers],
        "values": flat[np.linspace(0, flat.size - 1, 16).astype(int)].tolist(),
    }


def summaries(file: Path) -> dict[str, Any]:
    """The arrays of an npz file."""
    with np.load(file, allow_pickle=False) as arrays:
        return {name: summary(arrays[name]) for name in sorted(arrays)}


# Tiny checkpoints of models whose sizes only the record says: their keys and sizes are those of the parity cases.


def tensors_of(case: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Weights under the published names, drawn from the names."""
    import torch

    drawn = {key: torch.tensor(fill_tensor(key, tuple(shape))) for key, shape in case["keys"].items()}
    drawn |= dict.fromkeys(case["integer_keys"], torch.tensor(0))
    return {prefix + key: value for key, value in drawn.items()}


def write_plugin(folder: Path, cases: tuple[str, ...]) -> Path:
    """A plug-in with the record ``tiny-CASE`` for each case, and its weights as ``CASE.pt`` beside it."""
    import torch

    records = {}
    for name in cases:
        case = load_case(f"{name}_small", OWN).about
        config, backbone = dict(case["config"]), dict(case.get("backbone", {}).get("config", {}))
        kind = config.pop("model_type", None)
        changes: dict[str, Any] = {"network": config}
        if name == "univla":
            changes["backbone"] = backbone
        elif "ddconfig" in backbone:
            sizes = {key: value for key, value in backbone["ddconfig"].items() if key not in ("double_z", "resolution")}
            changes["features"] = {"config": {**sizes, "model_type": kind, "use_ema": backbone["use_ema"]}}
        elif backbone:
            changes["features"] = {"config": backbone}
        records[f"tiny-{name}"] = (case["model"], config.get("image_size", 56), changes)
        torch.save({"state_dict": tensors_of(case, "lam." if name == "univla" else "")}, folder / f"{name}.pt")
    (folder / "tiny_models.json").write_text(json.dumps(records))
    (folder / "tiny_models.py").write_text(FILES["tiny_models.py"])
    return folder / "tiny_models.py"
