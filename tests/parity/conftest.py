"""Parity cases: what the published code of the benchmark computes, with weights made from names.

The cases lie in the folder named by ``LARY_PARITY_DIR``, or else in ``cases`` beside this file. A case is
``<name>.json`` and, where it has arrays, ``<name>.npz``.
"""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity import fill

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

    @property
    def outputs(self) -> set[str]:
        """Names of the outputs that the case describes."""
        return {SUMMARY.sub("", name) for name in self.about["outputs"]}

    def weights(self, *, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """The state dict of the case, drawn from its key names, but for keys that begin with one of `without`."""
        shapes = self.about["keys"]
        return {key: self._weight(key, tuple(shapes[key])) for key in shapes if not key.startswith(without)}

    def _weight(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """One weight by the rule of `fill`, or by the case's exception from it."""
        drawn = np.asarray(fill.fill_tensor(self._drawn_name(key), shape))
        rule = self.about.get("fill_overrides", {}).get(key)
        if rule is None:
            return drawn
        if isinstance(rule, (int, float)):
            return np.full(shape, rule, dtype=np.float32)
        shift = re.fullmatch(r"([\d.]+) \+ fill_tensor\(name, shape\)", str(rule))
        assert shift, f"{self.name}: no reading for the fill of {key}: {rule}"
        return np.asarray(float(shift[1]) + drawn, dtype=np.float32)

    def _drawn_name(self, key: str) -> str:
        """The name under which a weight is drawn: a case says whether its backbone's prefix is part of it."""
        backbone = self.about.get("backbone", {})
        if not backbone.get("prefix"):
            return key
        bare, whole = (words in backbone["fill"] for words in ("WITHOUT the prefix", "FULL key, with the prefix"))
        assert bare != whole, f"{self.name}: no reading for the fill of its backbone: {backbone['fill']}"
        return key.removeprefix(backbone["prefix"]) if bare else key

    def draw(self, name: str, then: str = "") -> np.ndarray:
        """The named input before its ``then`` transform, float32 in [0, 1). The test carries out `then`.

        Args:
            then: how the description of the transform has to begin.
        """
        entry = self.about["input"][name]
        told = entry.get("then", "")
        assert told.startswith(then), f"{self.name} {name}: no reading for the input '{told}'"
        return fill.uniform(entry["draw"], tuple(entry["shape"]))

    def check(self, name: str, value: Any) -> None:
        """Hold `value` against the output called `name`, whole or as its first values and statistics, in tolerance."""
        actual = np.asarray(value)
        if name in self.arrays:
            return self._compare(name, actual, self.arrays[name])
        for sign in "./":
            if f"{name}{sign}first4096" in self.arrays:
                return self._check_summary(name, sign, actual)
        raise AssertionError(f"{self.name} has no output {name}")

    def check_all(self, **values: Any) -> None:
        """Hold `values` against the outputs of the case, every one of them."""
        assert values.keys() == self.outputs == {SUMMARY.sub("", name) for name in self.arrays}
        for name, value in values.items():
            self.check(name, value)

    def _compare(self, name: str, actual: np.ndarray, expected: np.ndarray) -> None:
        assert actual.shape == expected.shape, f"{self.name} {name}: shape {actual.shape}, expected {expected.shape}"
        if expected.dtype.kind in "iub":
            np.testing.assert_array_equal(actual, expected, err_msg=f"{self.name} {name}")
            return
        tolerance = self._tolerance(expected)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=f"{self.name} {name}")

    def _check_summary(self, name: str, sign: str, actual: np.ndarray) -> None:
        first, statistics = self.arrays[f"{name}{sign}first4096"], self.arrays[f"{name}{sign}stats"]
        outputs = self.about["outputs"]
        told = re.search(r"shape (\[[\d, ]*\])", outputs.get(name) or outputs[f"{name}{sign}first4096"])
        assert told, f"{self.name} {name}: the case tells no shape"
        assert list(actual.shape) == json.loads(told[1]), f"{self.name} {name}: shape {actual.shape}, not {told[1]}"
        flat, where = actual.astype(np.float64).ravel(), f"{self.name} {name}"
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


def case_names(pattern: str, *, but: tuple[str, ...] = ()) -> list[Any]:
    """Names of the cases that match a pattern, as parameters; ``_full`` ones are marked slow.

    Names that begin like one of `but` are left out.
    """
    found = [name for name in models_of_cases() if fnmatchcase(name, pattern) and not name.startswith(but)]
    return _parameters(found)


def model_cases(*patterns: str) -> list[Any]:
    """Names of the cases whose model matches one of the patterns, whatever their files are called, as parameters."""
    models = models_of_cases()
    return _parameters([name for name in models if any(fnmatchcase(models[name], pattern) for pattern in patterns)])


def _parameters(names: list[str]) -> list[Any]:
    CLAIMED.update(names)
    return [pytest.param(name, marks=pytest.mark.slow) if "_full" in name else name for name in names]


def load_case(name: str, folder: Path = FOLDER) -> Case:
    """Read a case by name."""
    about = json.loads((folder / f"{name}.json").read_text())
    arrays = {}
    if (folder / f"{name}.npz").exists():
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    return Case(name, about, arrays)
