"""``lary verify``: what others recompute is what was recorded, and no byte of a run's folder changes unseen."""

import subprocess
import sys
from pathlib import Path

import pytest

from lary.data.spec import Orientation
from lary.results import published
from lary.results.folder import writing
from lary.results.record import FILE_NAME, RunFacts, read_result, write_result
from lary.results.summarise import classification_result, regression_result
from lary.results.verify import verify_run
from tests import fake_results as fake
from tests.helpers import FIXTURES, contents, printed

pytestmark = pytest.mark.usefixtures("no_figures")
SEEDS = (3, 4)
TURNS = (*fake.ORIENTATIONS, Orientation("turn", (0, 1, 2, 6), "quaternion_xyzw"))


def facts(**more: object) -> RunFacts:
    return fake.facts("pixels", "arm", seeds=SEEDS, **more)


@pytest.fixture(params=["classification", "regression", "two classes"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A finished run of two seeds, with more classes than five or not, or with two splits and two orientations."""
    with writing(tmp_path / "run", "one") as run:
        if request.param != "regression":
            names = fake.VERBS if request.param == "classification" else fake.VERBS[:2]
            classes = [fake.class_outcome(2.0 - 0.1 * seed, classes=names) for seed in SEEDS]
            published.write_classification_files(run.work, classes[0])
            answers = published.answers_of(classes)
            published.write_scores(run.work, published.class_scores(classes), SEEDS, **answers)
            run.publish(classification_result(classes[0], facts(), classes[1:]))
            return run.folder
        actions = [fake.action_outcome(0.1 * seed) for seed in SEEDS]
        for each in actions:  # no orientation recorded, and none predicted
            seen = each.splits["seen"]
            seen.mean[:], seen.std[:], seen.targets[0] = 0, 1, 0
            seen.selections["held_out"].values[1] = 0
        files = published.write_regression_files(run.work, actions[0], fake.frames, fake.UNITS)
        published.write_scores(run.work, published.action_scores(actions), SEEDS)
        published.write_actions(run.work, actions)
        about = facts(files=dict.fromkeys(files, ""))
        run.publish(regression_result(actions[0], about, actions[1:], TURNS))
    return run.folder


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
