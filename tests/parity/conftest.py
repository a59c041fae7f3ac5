"""Parity cases: what the published code of the benchmark computes, with weights made from names.

The cases lie in the folder named by ``LARY_PARITY_DIR``, or else in ``cases`` beside this file. A case is
``<name>.json`` and, where it has arrays, ``<name>.npz``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity import fill

SHIPPED = Path(__file__).parent / "cases"
FOLDER = Path(os.environ.get("LARY_PARITY_DIR") or SHIPPED)


@dataclass(frozen=True)
class Case:
    """One parity case: its description and its arrays."""

    name: str
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def config(self) -> dict[str, Any]:
        return self.about["config"]

    def weights(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The state dict of the case, drawn from its key names."""
        shapes = {key: tuple(shape) for key, shape in self.about["keys"].items() if key.startswith(prefix)}
        weights = fill.fill_state_dict(shapes)
        for key, value in self.about.get("fill_overrides", {}).items():
            if key in weights and not isinstance(value, str):
                weights[key] = np.full(shapes[key], value, dtype=np.float32)
        return weights

    def draw(self, name: str) -> np.ndarray:
        """The named input before its ``then`` transform, float32 in [0, 1)."""
        entry = self.about["input"][name]
        return fill.uniform(entry["draw"], tuple(entry["shape"]))

    def check(self, name: str, value: Any) -> None:
        """Hold `value` against the output called `name`, within the case's tolerance."""
        expected, actual = self.arrays[name], np.asarray(value)
        assert actual.shape == expected.shape, f"{self.name} {name}: shape {actual.shape}, expected {expected.shape}"
        if expected.dtype.kind in "iub":
            np.testing.assert_array_equal(actual, expected, err_msg=f"{self.name} {name}")
            return
        largest = float(np.abs(expected).max()) if expected.size else 0.0
        tolerance = max(self.about["atol"], self.about["rtol_of_max"] * largest)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=f"{self.name} {name}")


def case_names(pattern: str, *, but: tuple[str, ...] = ()) -> list[Any]:
    """Names of the cases that match a glob pattern, as parameters; ``_full`` ones are marked slow.

    Names that begin like one of `but` are left out.
    """
    found = sorted(path.stem for path in FOLDER.glob(f"{pattern}.json") if not path.stem.startswith(but))
    return [pytest.param(name, marks=pytest.mark.slow) if "_full" in name else name for name in found]


def load_case(name: str, folder: Path = FOLDER) -> Case:
    """Read a case by name."""
    about = json.loads((folder / f"{name}.json").read_text())
    arrays = {}
    if (folder / f"{name}.npz").exists():
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    return Case(name, about, arrays)
