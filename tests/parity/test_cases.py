"""The folder of parity cases: it has cases, and every one of them is run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.conftest import CLAIMED, FOLDER, Case, models_of_cases


def test_every_case_of_the_folder_is_run_by_some_test() -> None:
    assert models_of_cases(), f"{FOLDER} holds no parity cases: correct LARY_PARITY_DIR"
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.parity.{file.stem}")
    unread = {name: model for name, model in models_of_cases().items() if name not in CLAIMED}
    assert not unread, f"no test is there for these cases and their models: {unread}"


def case_of(**about: Any) -> Case:
    return Case("made", {"keys": {"a.weight": [2, 3]}, "atol": 0.1, "rtol_of_max": 0.0, **about}, {})


def test_exceptions_of_a_fill_are_read_or_refused() -> None:
    plain = case_of().weights()["a.weight"]
    for rule, expected in ((2.5, np.full((2, 3), 2.5)), ("1.0 + fill_tensor(name, shape)", plain + 1)):
        np.testing.assert_allclose(case_of(fill_overrides={"a.weight": rule}).weights()["a.weight"], expected)
    with pytest.raises(AssertionError, match=r"no reading for the fill of a\.weight"):
        case_of(fill_overrides={"a.weight": "twice"}).weights()


def test_prefix_of_a_backbone_is_drawn_as_the_case_says() -> None:
    plain, keys = case_of().weights()["a.weight"], {"inner.a.weight": [2, 3]}
    for words, same in (("drawn under the key WITHOUT the prefix", True), ("the FULL key, with the prefix", False)):
        drawn = case_of(keys=keys, backbone={"prefix": "inner.", "fill": words}).weights()["inner.a.weight"]
        assert np.array_equal(drawn, plain) == same
    with pytest.raises(AssertionError, match="no reading for the fill of its backbone"):
        case_of(keys=keys, backbone={"prefix": "inner.", "fill": "somehow"}).weights()


@pytest.mark.parametrize(("part", "wrong"), [("first4096", 0), ("stats", 0), ("stats", 1), ("stats", 2)])
def test_summaries_of_large_outputs_are_held_against_all_values(part: str, wrong: int) -> None:
    values = np.linspace(-1, 1, 5000, dtype=np.float32).reshape(50, 100)
    arrays = {
        "tokens.first4096": values.ravel()[:4096].copy(),
        "tokens.stats": np.array([values.mean(), values.std(), np.linalg.norm(values)], dtype=np.float64),
    }
    case = Case("made", case_of(outputs={"tokens.first4096": "full shape [50, 100]"}).about, arrays)
    case.check_all(tokens=values)
    with pytest.raises(AssertionError, match="shape"):
        case.check("tokens", values.T)
    arrays[f"tokens.{part}"][wrong] += 0.11 * (values.size**0.5 if wrong == 2 else 1)
    with pytest.raises(AssertionError):
        case.check_all(tokens=values)
