"""Frame sampling against the published indices."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from lary.data import sampling
from tests.parity.conftest import FOLDER, Case, case_names, load_case


def value(text: str, x: np.ndarray) -> np.ndarray:
    """A number or a formula of x, such as ``x**2 * 0.3``."""
    assert re.fullmatch(r"[x\d.e*+\- ]+", text), text
    return np.asarray(eval(text, {"__builtins__": {}}, {"x": x})) * np.ones(len(x))


def sequence(case: Case, name: str) -> np.ndarray:
    """A drawn sequence of differences; the description says what becomes of each value x at position k.

    Forms: ``F``, ``F where C else F`` with a condition such as ``20 < k < 26``, ``F at k = N, F at k = N, else F``.
    """
    x = case.draw(name).astype(np.float64)
    text = re.fullmatch(r"float64, (.*) \(k = position\)", case.about["input"][name]["then"])
    assert text, name
    body, _, rest = text[1].partition(" else ")
    k, result = np.arange(len(x)), value(rest or body, x)
    if chosen := re.fullmatch(r"(.+) where (?:(\d+) < )?k (<|>) (\d+)", body):
        limit = int(chosen[4])
        where = (k < limit) if chosen[3] == "<" else (k > limit)
        where &= k > int(chosen[2] or -1)
        result[where] = value(chosen[1], x)[where]
        return result
    for formula, position in re.findall(r"([^,]+?) at k = (\d+)", body):
        result[int(position)] = value(formula.strip(), x)[int(position)]
    return result


@pytest.mark.parametrize("name", case_names("sampling*"))
def test_indices_are_the_published_ones(name: str) -> None:
    case = load_case(name)
    count, seen = case.config["num_frames"], set()
    for key, expected in case.arrays.items():
        source, _, what = key.rpartition("/")
        if source == "uniform":
            found: Any = sampling.stored_indices(sampling.uniform_picks(int(what), count), count)
        elif source.startswith("video/"):
            clip = FOLDER / source.removeprefix("video/")
            sampled = sampling.sample_video(clip, count)
            if what == "differences":
                values = [-1.0] if sampled.differences is None else sampled.differences
                tolerance = case.about["tolerance"]["differences"]
                np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance, err_msg=key)
                seen.add(key)
                continue
            found = sampled.indices
        else:
            picks = sampling.motion_picks(sequence(case, source), count)
            found = picks if what == "raw" else sampling.stored_indices(picks, count)
        np.testing.assert_array_equal(np.array(found, dtype=np.int64), expected, err_msg=key)
        seen.add(key)
    assert seen == set(case.arrays)
