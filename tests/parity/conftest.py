"""Parity cases: what the published code of the benchmark computes, with weights made from names.

The cases are in the folder named by ``LARY_PARITY_DIR``, or else in ``cases`` beside this file. A case is
``<name>.json`` and, where it has arrays, ``<name>.npz``.
"""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.parity import fill

if TYPE_CHECKING:
    import torch

    from lary.models.running import LoadedEncoder
    from lary.models.spec import Preprocess

OWN = Path(__file__).parent / "cases"
FOLDER = Path(os.environ.get("LARY_PARITY_DIR") or OWN)
CLAIMED: set[str] = set()
"""Names of the cases that some test has asked for."""
SUMMARY = re.compile(r"[./](first4096|stats)$")
"""Ends of the names of arrays that stand for an output which is too large to be kept."""


@dataclass(frozen=True)
class Case:
    """One parity case: its description and its arrays."""

    name: str
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def config(self) -> dict[str, Any]:
        return self.about["config"]

    def weights(self, *, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """The state dict of the case, drawn from its key names, but for keys that begin with one of `without`."""
        shapes = self.about["keys"]
        return {key: self._weight(key, tuple(shapes[key])) for key in shapes if not key.startswith(without)}

    def _weight(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """One weight by the rule of `fill`, or by the case's exception from it."""
        name, backbone = key, self.about.get("backbone", {})
        if backbone.get("prefix"):  # the case says whether it is part of the name
            bare, whole = (words in backbone["fill"] for words in ("WITHOUT the prefix", "FULL key, with the prefix"))
            assert bare != whole, f"{self.name}: no reading for the fill of its backbone: {backbone['fill']}"
            name = key.removeprefix(backbone["prefix"]) if bare else key
        drawn, rule = np.asarray(fill.fill_tensor(name, shape)), self.about.get("fill_overrides", {}).get(key)
        if isinstance(rule, (int, float)):
            return np.full(shape, rule, dtype=np.float32)
        shift = re.fullmatch(r"([\d.]+) \+ fill_tensor\(name, shape\)", str(rule or "0 + fill_tensor(name, shape)"))
        assert shift, f"{self.name}: no reading for the fill of {key}: {rule}"
        return np.asarray(drawn + float(shift[1]), dtype=np.float32) if rule else drawn

    def draw(self, name: str, then: str = "") -> np.ndarray:
        """The named input before its transform, float32 in [0, 1), whose description has to begin with `then`."""
        entry = self.about["input"][name]
        described = entry.get("then", "")
        assert described.startswith(then), f"{self.name} {name}: no reading for the input '{described}'"
        return fill.uniform(entry["draw"], tuple(entry["shape"]))

    def check(self, name: str, value: Any) -> None:
        """Compare `value` with the output called `name`, whole or as its first values and statistics, in tolerance."""
        actual, where = np.asarray(value), f"{self.name} {name}"
        if name not in self.arrays:
            return self._check_summary(name, actual)
        expected = self.arrays[name]
        assert actual.shape == expected.shape, f"{where}: shape {actual.shape}, expected {expected.shape}"
        if expected.dtype.kind in "iub":
            np.testing.assert_array_equal(actual, expected, err_msg=where)
        else:
            np.testing.assert_allclose(actual, expected, rtol=0, atol=self._tolerance(expected), err_msg=where)

    def check_all(self, **values: Any) -> None:
        """Compare `values` with the outputs of the case, every one of them."""
        described = {SUMMARY.sub("", name) for name in self.about["outputs"]}
        assert values.keys() == described == {SUMMARY.sub("", name) for name in self.arrays}
        for name, value in values.items():
            self.check(name, value)

    def _check_summary(self, name: str, actual: np.ndarray) -> None:
        sign = next((sign for sign in "./" if f"{name}{sign}first4096" in self.arrays), None)
        assert sign, f"{self.name} has no output {name}"
        first, statistics = self.arrays[f"{name}{sign}first4096"], self.arrays[f"{name}{sign}stats"]
        outputs, where = self.about["outputs"], f"{self.name} {name}"
        shape = re.search(r"shape (\[[\d, ]*\])", outputs.get(name) or outputs[f"{name}{sign}first4096"])
        assert shape, f"{where}: the case names no shape"
        assert list(actual.shape) == json.loads(shape[1]), f"{where}: shape {actual.shape}, not {shape[1]}"
        flat = actual.astype(np.float64).ravel()
        tolerance = self._tolerance(flat)
        np.testing.assert_allclose(flat[: first.size], first, rtol=0, atol=tolerance, err_msg=where)
        # Values that differ by at most t have means and deviations within t, and norms within t * sqrt(count).
        limits = tolerance * np.array([1.0, 1.0, flat.size**0.5])
        difference = np.abs(np.array([flat.mean(), flat.std(), np.linalg.norm(flat)]) - statistics)
        assert (difference <= limits).all(), f"{where}: mean, std, norm differ by {difference}, not {limits}"

    def _tolerance(self, values: np.ndarray) -> float:
        largest = float(np.abs(values).max()) if values.size else 0.0
        return max(self.about["atol"], self.about["rtol_of_max"] * largest)


@functools.cache
def models_of_cases() -> dict[str, str]:
    """What model each case of the folder says it is of, by the name of its file."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    return {name: about["model"] for name, about in found.items() if "case" in about}


def model_cases(*patterns: str, names: str = "*", but: tuple[str, ...] = ()) -> list[Any]:
    """Names of the cases whose model matches one of the patterns, as parameters, of which full sizes are slow.

    `names` is a pattern of the file's name, which may begin like none of `but`.
    """
    found = [
        name
        for name, model in models_of_cases().items()
        if fnmatchcase(name, names)
        and not name.startswith(but)
        and any(fnmatchcase(model, pattern) for pattern in patterns)
    ]
    CLAIMED.update(found)
    return [pytest.param(name, marks=pytest.mark.slow) if "_full" in name else name for name in found]


def case_names(pattern: str, *, but: tuple[str, ...] = ()) -> list[Any]:
    """Names of the cases whose file has a name of this pattern, as parameters."""
    return model_cases("*", names=pattern, but=but)


def load_case(name: str, folder: Path = FOLDER) -> Case:
    """Read a case by name."""
    about = json.loads((folder / f"{name}.json").read_text())
    arrays = {}
    if (folder / f"{name}.npz").exists():
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    return Case(name, about, arrays)


# Inputs and encoders that tests of several modules need


def video_of(case: Case, preprocess: Preprocess) -> torch.Tensor:
    """The case's pairs (B, 2, 3, H, W), normalised as a record says."""
    import torch

    video = case.draw("video", "none: values in [0, 1)").swapaxes(1, 2)
    mean, std = (np.float32(value)[:, None, None] for value in (preprocess.mean, preprocess.std))
    return torch.from_numpy(np.ascontiguousarray((video - mean) / std))


def load_univla(case: Case, folder: Path, **changes: torch.Tensor) -> LoadedEncoder:
    """UniVLA from a Lightning file with the case's weights; small cases come with the training decoder, too."""
    import torch

    from lary.models.running import build
    from lary.models.spec import MODELS, ModelContext

    ignored = tuple(case.about["ignored_keys"]) if case.about["size"] != "small" else ()
    tensors = {key: torch.from_numpy(value) for key, value in case.weights(without=ignored).items()} | changes
    content = {"epoch": 3, "state_dict": {f"lam.{key}": value for key, value in tensors.items()}}
    torch.save({**content, "hyper_parameters": {"stage": "stage-2"}}, folder / "lam-stage-2.ckpt")
    backbone = {key: value for key, value in case.about["backbone"]["config"].items() if key not in ("hub", "name")}
    spec = MODELS.get("univla")
    assert backbone.keys() == spec.options["backbone"].keys()
    spec = replace(spec, options={"network": case.config, "backbone": backbone}, pair_shape=(), clip_shape=())
    return build(spec, ModelContext("cpu", "corrected", weights=str(folder)))


def save_villa(case: Case, folder: Path, changes: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    """villa-X's folder with the case's weights and configuration, some of them changed."""
    from safetensors.numpy import save_file

    ignored = tuple(case.about["ignored_keys"]) if case.about["size"] != "small" else ()
    folder.mkdir(parents=True, exist_ok=True)
    content = {"architecture": case.about["upstream_class"], "config": {**case.config, **config}}
    (folder / "model_config.json").write_text(json.dumps({**content, "description": "", "version": 0}))
    save_file({**case.weights(without=ignored), **(changes or {})}, folder / "model.safetensors")
    return folder


def open_villa(place: Path) -> LoadedEncoder:
    """villa-X from a folder or file."""
    from lary.models.running import build
    from lary.models.spec import MODELS, ModelContext

    spec = replace(MODELS.get("villa-x"), pair_shape=(), clip_shape=())
    return build(spec, ModelContext("cpu", "corrected", weights=str(place)))
