"""Outputs of parity cases that are kept whole, or as a summary where they are large."""

from __future__ import annotations

import json
import re

import numpy as np
import torch

from tests.parity.conftest import Case


def check_input(case: Case, name: str, then: str) -> None:
    """Make sure that an input is transformed as the test does it: its description begins with `then`."""
    told = case.about["input"][name]["then"]
    assert told.startswith(then), f"{case.name} {name}: no reading for the input '{told}'"


def check_tokens(case: Case, name: str, tokens: torch.Tensor) -> None:
    """Hold `tokens` against an output, whole or summarised (first values, and mean, std, L2 norm), in tolerance."""
    values = tokens.numpy()
    told = re.search(r"shape (\[[\d, ]+\])", case.about["outputs"][name])
    assert told, f"{case.name} {name}: the case tells no shape"
    whole = json.loads(told[1])
    assert list(values.shape) == whole, f"{case.name} {name}: shape {list(values.shape)}, expected {whole}"
    if name in case.arrays:
        case.check(name, values)
        return
    first, statistics = case.arrays[f"{name}/first4096"], case.arrays[f"{name}/stats"]
    flat = values.reshape(-1).astype(np.float64)
    tolerance = max(case.about["atol"], case.about["rtol_of_max"] * float(np.abs(flat).max()))
    np.testing.assert_allclose(flat[: first.size], first, rtol=0, atol=tolerance, err_msg=f"{case.name} {name}")
    # Values that differ by at most t have means and deviations within t, and norms within t * sqrt(count).
    limits = tolerance * np.array([1.0, 1.0, flat.size**0.5])
    difference = np.abs(np.array([flat.mean(), flat.std(), np.linalg.norm(flat)]) - statistics)
    assert (difference <= limits).all(), f"{case.name} {name}: mean, std, norm differ by {difference}, not {limits}"
