"""What the golden tests share: a command run in this process, tiny checkpoints, and the comparison."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.fill import fill_tensor

EXPECTED = Path(__file__).parent / "expected"
CASES = Path(__file__).parents[1] / "parity" / "cases"
WRITE = "LARY_GOLDEN_WRITE"
SECONDS = re.compile(r"\b\d+(\.\d+)? (s|ms|seconds)\b")


def lary(*words: object, code: int = 0) -> str:
    """Run a command in this process; returns what it prints.

    Args:
        code: the exit code that it has to have.
    """
    from lary.cli import main

    out, status = io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
            raise
    assert (status or 0) == code, f"lary {' '.join(map(str, words))}: exit code {status}\n{out.getvalue()}"
    return out.getvalue()


def places(root: Path) -> tuple[object, ...]:
    return ("--lary-root", root, "--data-dir", root / "data")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def plain(text: str, *folders: Path) -> str:
    """A text without what differs from run to run: names of temporary folders, and times."""
    for number, folder in enumerate(folders):
        text = text.replace(str(folder), f"<{number}>")
    return SECONDS.sub("<time>", text)


def summary(values: Any) -> Any:
    """An array as JSON: whole if it is small, else its shape, some statistics and sixteen of its values."""
    array = np.asarray(values)
    if array.dtype.kind in "US":
        return array.tolist()
    if array.dtype.kind in "iub":
        return {"shape": list(array.shape), "values": array.ravel().astype(int).tolist()}
    flat = array.astype(np.float64).ravel()
    if flat.size <= 48:
        return {"shape": list(array.shape), "values": rounded(flat)}
    some = flat[np.linspace(0, flat.size - 1, 16).astype(int)]
    weights = np.cos(np.arange(flat.size))  # the order of the values counts, too
    return {
        "shape": list(array.shape),
        "mean, std, norm, min, max, weighted": rounded(
            [flat.mean(), flat.std(), np.linalg.norm(flat), flat.min(), flat.max(), (flat * weights).mean()]
        ),
        "values": rounded(some),
    }


def rounded(values: Any) -> list[float]:
    return [float(f"{value:.8g}") for value in values]


class Golden:
    """The expected values of one test module, or what writes them."""

    def __init__(self, name: str) -> None:
        self._file = EXPECTED / f"{name}.json"
        self._values: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def check(self, key: str, value: Any) -> None:
        """Compare `value` with what is expected under `key`, or write it there."""
        value = json.loads(json.dumps(value))
        if os.environ.get(WRITE):
            self._values[key] = value
            lines = [f"{json.dumps(name)}: {json.dumps(self._values[name])}" for name in sorted(self._values)]
            self._file.parent.mkdir(exist_ok=True)
            self._file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            return
        assert key in self._values, f"{self._file.name} has no {key}: write it with {WRITE}=1"
        same(value, self._values[key], key)


def same(found: Any, expected: Any, where: str) -> None:
    """Stop with the place where two JSON values differ."""
    if isinstance(expected, Mapping):
        assert isinstance(found, Mapping), where
        assert found.keys() == expected.keys(), f"{where}: {found.keys() ^ expected.keys()}"
        for name in expected:
            same(found[name], expected[name], f"{where}, {name}")
    elif isinstance(expected, list):
        assert isinstance(found, list), where
        assert len(found) == len(expected), f"{where}: {len(found)} entries, expected {len(expected)}: {found}"
        if expected and all(isinstance(value, float) for value in expected):
            limit = 1e-6 + 1e-5 * float(np.nanmax(np.abs(expected)))  # small values are differences of large ones
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=limit, err_msg=where)
            return
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{where}, {index}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True), f"{where}: {found}, not {expected}"
    else:
        assert found == expected, f"{where}: {found!r}, expected {expected!r}"


# Tiny checkpoints of models whose sizes only the record says: their keys and sizes are those of the parity cases.

PLUGIN = """
import json
from dataclasses import replace
from pathlib import Path
from lary.models.spec import MODELS, register_model
for name, (of, size, changes) in json.loads(Path(__file__).with_suffix(".json").read_text()).items():
    spec = MODELS.get(of)
    options = {**spec.options, **changes}
    for part in ("features", "network"):
        if isinstance(spec.options.get(part), dict):
            options[part] = {**spec.options[part], **changes.get(part, {})}
    shapes = dict.fromkeys(("pair_shape", "clip_shape", "pair_shape_paper", "clip_shape_paper"), ())
    sized = replace(spec.preprocess, size=size)
    register_model(replace(spec, name=name, dim=None, options=options, preprocess=sized, **shapes))(spec.factory)
"""


def case_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CASES / f"{name}_small.json").read_text())
    return found


def tensors_of(case: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Weights under the published names, drawn from the names."""
    import torch

    drawn = {key: torch.tensor(fill_tensor(key, tuple(shape))) for key, shape in case["keys"].items()}
    return {
        prefix + key: value for key, value in (drawn | dict.fromkeys(case["integer_keys"], torch.tensor(0))).items()
    }


def write_plugin(folder: Path, cases: tuple[str, ...]) -> Path:
    """A plug-in with the record ``tiny-CASE`` for each case, and its weights as ``CASE.pt`` beside it."""
    import torch

    records = {}
    for name in cases:
        case = case_of(name)
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
    (folder / "tiny_models.py").write_text(PLUGIN)
    return folder / "tiny_models.py"


def write_villa(folder: Path) -> Path:
    from safetensors.torch import save_file

    case = case_of("villa-x")
    folder.mkdir()
    (folder / "model_config.json").write_text(json.dumps({"architecture": "IgorModel", "config": case["config"]}))
    save_file(tensors_of(case), folder / "model.safetensors")
    return folder
