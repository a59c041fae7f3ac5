"""``lary verify``: what others recompute is what was recorded, and no byte of a run's folder changes unseen."""

import subprocess
import sys
from pathlib import Path

import pytest

from lary.results.record import FILE_NAME, read_result, write_result
from lary.results.verify import verify_run
from tests import fake_results as fake
from tests.helpers import FIXTURES, contents, printed

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(params=["classification", "regression", "two classes"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return fake.write_whole(tmp_path / "run", request.param)


def test_every_metric_is_recomputed(folder: Path) -> None:
    result = read_result(folder / FILE_NAME)
    metrics = [len(own.metrics) for own in (*result.selections.values(), *result.per_seed)]
    assert (len(result.per_seed), len(metrics)) == (2, 4)
    text = printed("verify", folder, folder, has=["All digests hold", "Not checked: latents, media", "p values"])
    assert text.count(" ok\n") == 2 * (sum(metrics) + len(result.orientations))


def test_a_byte_that_changes_in_any_file_is_found(folder: Path) -> None:
    for name, data in contents(folder).items():
        for place in (0, len(data) // 2, len(data) - 1):
            changed = bytearray(data)
            changed[place] ^= 1
            (folder / name).write_bytes(changed)
            assert name in printed("verify", folder, code=1), (name, place)
        (folder / name).write_bytes(data)
    assert verify_run(folder)[1] == []


def test_a_metric_that_was_edited_is_found(folder: Path) -> None:
    result = read_result(folder / FILE_NAME)
    data = result.model_dump(mode="json")
    data["selections"]["held_out"]["metrics"][result.primary]["value"] += 1e-4
    write_result(folder / FILE_NAME, type(result).model_validate(data))  # sealed anew
    text, wrong = verify_run(folder)
    assert (wrong, text.count(" DIFFERS\n")) == ([f"held_out {result.primary} is not what was recorded."], 1)


def test_files_that_are_missing_or_foreign_and_torn_results_are_named(folder: Path) -> None:
    (folder / "notes.txt").touch()
    (folder / "predictions.npz").unlink()
    printed("verify", folder, code=1, has=["notes.txt does not belong to the run", "predictions.npz can't be read"])
    (folder / FILE_NAME).write_bytes((folder / FILE_NAME).read_bytes()[:-100])
    assert "result.json can't be read: " in printed("verify", folder, code=1)


def test_an_older_result_says_what_it_lacks() -> None:
    old = [file.parent for file in (FIXTURES / "v0_1" / "results").rglob(FILE_NAME)]
    lacks = [
        "a digest of result.json itself",
        "digests of the other files",
        "the arrays that metrics are recomputed from",
    ]
    text = printed("verify", *old, has=lacks)
    assert text.count("This older result lacks") == 3 * len(old) > 3


CODE = r"""
import sys, pathlib
from lary.results.verify import verify_run
print(verify_run(pathlib.Path(sys.argv[1]))[0].count(" ok\n"), *sys.modules)
"""


def test_our_own_scorers_are_not_used(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, folder], capture_output=True, text=True, check=True)
    count, *loaded = done.stdout.split()
    own = {f"lary.results.{name}" for name in ("statistics", "scores", "summarise", "published")}
    assert (int(count) > 10, own & set(loaded), "sklearn.metrics" in loaded) == (True, set(), True)
