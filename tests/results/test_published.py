"""Files of the published code, and the arrays of a run."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from lary.results import figures, published
from lary.results.folder import FinishedRun
from lary.results.summarise import regression_result
from lary.types import LaryError
from tests import fake_results as fake
from tests.helpers import fails
from tests.hostile.harness import MEBIBYTE, Code, deflated_zeros, refused, zipped


def test_files_of_a_probe_and_what_is_drawn(tmp_path: Path) -> None:
    """Golden values name the files, and what is in them."""
    outcome, place = fake.action_outcome(0.4), tmp_path / "eval_vis" / "epoch_14"
    published.write_regression_files(tmp_path, outcome, fake.frames, fake.UNITS)
    assert (place / "action.pdf").read_bytes().count(b"/Type /Page ") == 3
    row = published.example_rows(outcome.splits["seen"])[0][0]
    assert (place / "sample_0_tgt.png").read_bytes() == published.png_of(fake.frames(row)[1])
    figures.plot_pair(axes := Mock(), [0], [1], [2], None)
    assert {call.kwargs["label"]: call.args[1] for call in axes.plot.call_args_list} == {"true": [1], "predicted": [2]}
    with figures._trajectory(("one", *np.zeros((2, 5, 7))), fake.DIMS, fake.UNITS) as figure:
        assert [axes.get_title() for axes in figure.axes[:7:3]] == ["x [m]", "roll [rad]", "gripper"]


def test_figures_have_the_same_bytes_twice() -> None:
    example = next(published.examples_of(fake.split_outcome(0.4), ()))
    chunk = ("one", np.array(example.predicted), np.array(example.true))
    files = dict(figures.trajectory_files([chunk], fake.DIMS, fake.UNITS))
    assert files == dict(figures.trajectory_files([chunk], fake.DIMS, fake.UNITS))
    assert not any(b"CreationDate" in data for data in files.values())
    matrix, twice = np.random.default_rng(0).integers(1, 9, (16, 16)), [2, *[1] * 15]
    first, second, other = (
        figures.confusion_figure(one, "abcdefghijklmnop", format="svg") for one in (matrix, matrix * twice, matrix.T)
    )
    assert (first == second, first == other, b"<svg" in first, b"dc:date" in first) == (True, False, True, False)
    assert first.index(b"true class") < first.index(b"predicted class"), "true classes are in columns, by their shares"


@pytest.mark.parametrize("name", ["predictions.npz", "actions.npz"])
def test_arrays_that_are_torn_or_hold_code_or_a_bomb_are_refused(tmp_path: Path, name: str) -> None:
    result = regression_result(fake.action_outcome(0.4), fake.facts("pixels", "arm"))
    path, mark, size = tmp_path / name, tmp_path / "executed", 3584 * MEBIBYTE
    kind = published.SampleScores if name == "predictions.npz" else published.Chunks

    def read(role: str = "seen") -> object:
        return published.read_arrays(kind, FinishedRun(tmp_path, result), role)

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
