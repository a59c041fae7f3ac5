"""Cross-validation over episodes: what is held out together, how predictions are put together, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.probes import regress
from lary.results.compare import compare, load_samples
from lary.results.folder import finished_run
from lary.results.report import contests_of
from lary.types import UsageError
from tests.helpers import fails, printed
from tests.runs.conftest import MODEL, probe

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize(("dataset", "rows", "groups"), [("calvin", 30 + 21, 17), ("robot_1st", 24 + 12, 36)])
def test_every_episode_is_scored_once(made: Path, tmp_path: Path, dataset: str, rows: int, groups: int) -> None:
    """Episodes of both splits."""
    done = probe(made, dataset, logs=tmp_path, folds=3, seeds="0,1")
    assert (done.result.folds, done.folder.name.count("@folds3")) == (3, 1)
    samples = load_samples(done.folder)
    assert (len(samples), samples["sample"].nunique(), samples["group"].nunique()) == (rows, rows, groups)
    assert samples["score"].mean() == pytest.approx(done.result.score.value, rel=1e-5)
    assert done.result.label == f"{MODEL} (3 folds)"
    assert not probe(made, dataset, logs=tmp_path, folds=3, seeds="0,1").new
    other = probe(made, dataset, logs=tmp_path, seeds="0,1").folder
    fails(UsageError, "number of folds is 3 and None", compare, done.folder, other)
    assert len(contests_of([finished_run(folder) for folder in (done.folder, other)])) == 2


def test_probes_predict_what_they_have_not_seen(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have their own latents, targets and groups, in training and evaluation, also those of shuffled targets."""
    seen: list[Any] = []
    train = regress.train_regressor
    monkeypatch.setattr(regress, "train_regressor", lambda inputs, *more: seen.append(inputs) or train(inputs, *more))
    known: dict[bytes, bytes] = {}
    for control in (None, "shuffled-targets"):
        seen.clear()
        done = probe(place, model_type="ridge", epochs=None, folds=3, seeds="0,1", control=control)
        assert len(seen) == 6
        for inputs in seen:
            own = inputs.evaluated["seen"]
            assert len(inputs.train) + len(own.latents) == 51
            assert not set(inputs.train_groups) & set(own.samples.groups)
            rows = [split.read(np.arange(len(split))) for split in (inputs.train, own.latents)]
            pairs = zip(np.concatenate(rows), [*inputs.train_targets, *own.targets], strict=True)
            found = {token.tobytes(): target.tobytes() for token, target in pairs}
            assert (found == (known := known or found), set(found) == set(known)) == (control is None, True)
    held = [inputs.evaluated["seen"] for inputs in seen[:3]]
    values, mean, std = (np.concatenate([getattr(each, name) for each in held]) for name in ("targets", "mean", "std"))
    with np.load(done.folder / "actions.npz") as arrays:
        np.testing.assert_allclose(arrays["seen_true"], values * std[:, None] + mean[:, None], rtol=1e-5, atol=1e-6)


def test_wrong_folds_are_refused_and_few_episodes_are_told(made: Path, tmp_path: Path) -> None:
    fails(UsageError, "--folds 1: must be at least 2", probe, made, folds=1)
    fails(UsageError, "--folds 3: paper scores the published split alone", probe, made, folds=3, protocol="paper")
    message = "--folds 18: training and validation split have 17 episodes or videos together; take at most"
    fails(UsageError, message, probe, made, logs=tmp_path, folds=18)
    words = ("run", "--model", MODEL, "--dataset", "calvin", "--model-type", "ridge", "--probe-preset", "demo")
    words = (*words, "--lary-root", made, "--data-dir", made / "data", "--lary-log-dir", tmp_path)
    offer = "Only 7 episodes or videos validate, which leaves wide intervals or none: 'lary run --folds 5'"
    printed(*words, has=[offer])
    assert offer not in printed(*words, "--folds", "2", has=["(ridge probe, 2 folds)"])
