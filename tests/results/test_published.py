"""Files of the published code, and the arrays of a run."""

from pathlib import Path

import numpy as np
import pytest

from lary.results import figures, published
from lary.results.folder import FinishedRun
from lary.results.summarise import regression_result
from lary.types import LaryError
from tests import fake_results as fake
from tests.helpers import fails
from tests.hostile.harness import MEBIBYTE, Code, deflated_zeros, refused, zipped


def test_files_of_a_probe(tmp_path: Path) -> None:
    """Golden values name the files, and what is in them."""
    published.write_regression_files(tmp_path, fake.action_outcome(0.4), fake.frames, fake.UNITS)
    assert (tmp_path / "eval_vis" / "epoch_14" / "action.pdf").read_bytes().count(b"/Type /Page ") == 3


def test_figures_have_the_same_bytes_twice() -> None:
    example = next(published.examples_of(fake.split_outcome(0.4), ()))
    chunk = ("one", np.array(example.predicted), np.array(example.true))
    files = dict(figures.trajectory_files([chunk], fake.DIMS, fake.UNITS))
    assert files == dict(figures.trajectory_files([chunk], fake.DIMS, fake.UNITS))
    assert not any(b"CreationDate" in data for data in files.values())
    first, second = (figures.confusion_figure(np.eye(3, dtype=int), "abc", format="svg") for _ in range(2))
    assert (first == second, b"<svg" in first, b"dc:date" in first) == (True, True, False)


@pytest.mark.parametrize("name", ["predictions.npz", "actions.npz"])
def test_arrays_that_are_torn_or_hold_code_or_a_bomb_are_refused(tmp_path: Path, name: str) -> None:
    result = regression_result(fake.action_outcome(0.4), fake.facts("pixels", "arm"))
    path, mark, size = tmp_path / name, tmp_path / "executed", 3584 * MEBIBYTE
    reader = {"predictions.npz": published.read_scores, "actions.npz": published.read_predicted}[name]

    def read(role: str = "seen") -> object:
        return reader(FinishedRun(tmp_path, result), role)

    fails(LaryError, "does not exist: run the probe again with --overwrite", read)
    code = np.array([Code(mark)], dtype=object)
    np.savez(path, **{f"seen_{part}": code for part in ("ids", "groups", "media", "scores", "predicted", "true")})
    refused(tmp_path, read, "pickled objects")
    assert not mark.exists()
    fails(LaryError, "of the split 'unseen'", read, "unseen")
    zipped(path, "seen_ids.npy", deflated_zeros(size), size)
    refused(tmp_path, read, "which is refused")
    path.write_bytes(b"PK")
    refused(tmp_path, read, "can't be read")
