"""Pairs for training: which ones, how they look, what is held out, and what is left out."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lary.data.spec import DATASETS
from lary.files import write_json
from lary.lam.data import PairMixture, open_mixture
from lary.types import LaryError, UsageError
from tests.helpers import fails, printed, settings_of
from tests.tree import frame, make_calvin, make_robot, write_image, write_video


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes, clips, and a folder with a video and two folders of images whose frames tell their number."""
    root = make_calvin(tmp_path_factory.mktemp("pairs"), {"train": 4, "val": 2})
    make_robot(root, {"train": 8, "val": 2}, codec="png")
    for name in ("a", "b"):
        for number in range(12):
            write_image(root / "own" / name / f"{number}.png", np.full((10, 14, 3), 20 * number, np.uint8))
    write_video(root / "own" / "c.mp4", [np.full((16, 16, 3), 20 * number, np.uint8) for number in range(9)], "png")
    write_image(root / "own" / "single" / "0.png", np.zeros((9, 9, 3), np.uint8))
    return root


def mixture(root: Path, *names: str, size: int = 8, seed: int = 0, **options: Any) -> PairMixture:
    made.append(open_mixture(names, settings_of(root), seed, size, workers=2, **options))
    return made[-1]


made: list[PairMixture] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Reading processes are free again for the next test."""
    yield
    while made:
        made.pop().close()


def test_samples_are_functions_of_seed_and_number(root: Path) -> None:
    """Whatever the batch, what was read before, and after a restart."""
    data = mixture(root, "calvin", "robot_1st", str(root / "own"))
    first = [data.batch(step, range(4 * step, 4 * step + 4)) for step in range(4)]
    data.close()
    again = mixture(root, "calvin", "robot_1st", str(root / "own"))
    assert first[0].dtype == torch.uint8
    assert first[0].shape == (4, 2, 3, 8, 8)
    assert torch.equal(again.batch(0, [14, 3, 9]), torch.cat(first)[[14, 3, 9]])
    assert torch.equal(again.batch(1, range(2, 8)), torch.cat(first)[2:8])
    assert again.ids(range(16)) == data.ids(range(16))
    assert mixture(root, "calvin", "robot_1st", seed=1).ids(range(16)) != data.ids(range(16))


def test_batches_are_read_ahead_at_the_distance_of_the_last_two(root: Path) -> None:
    """As one of two processes asks for them: from the third on, what is asked for is already planned."""
    data = mixture(root, "calvin")
    streams = []
    for step in range(5):
        data.batch(step, range(8 * step + 4, 8 * step + 8))
        streams.append(data._stream)
    assert streams[1] is not streams[0]
    assert streams[1] is streams[2] is streams[3] is streams[4]


def test_frames_are_resized_as_published(root: Path) -> None:
    """Both sides to the square, aspect not kept, by Pillow's bilinear filter."""
    data = mixture(root, "calvin", size=20)
    part, unit, pair = data.pick(5)
    assert pair == (0, 1)
    expected = [np.asarray(Image.open(path).resize((20, 20), Image.Resampling.BILINEAR)) for path in unit.paths]
    assert part.name == "calvin:train"
    np.testing.assert_array_equal(data.batch(0, [5])[0].permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_distance_is_in_its_range_and_clamped(root: Path) -> None:
    data = mixture(root, str(root / "own"), distances=["4-6"])
    found = data.batch(0, range(200))[:, :, 0, 0, 0].long() // 20
    apart = found[:, 1] - found[:, 0]
    last = torch.tensor([8 if "mp4" in data.pick(number)[1].paths[0] else 11 for number in range(200)])
    clamped = found[:, 1] == last
    assert set(apart[~clamped].tolist()) == {4, 5, 6}
    assert (found[:, 1] <= last).all()
    assert set(apart[clamped].tolist()) == set(range(7))  # shorter at the end, down to the same frame


def test_pairs_of_clips_stay_in_the_span_of_their_row(root: Path) -> None:
    data = mixture(root, "robot_1st", distances=["1-2"])
    for number in range(100):
        _, unit, (first, last) = data.pick(number)
        assert (unit.start, unit.frames) == (0, 12)
        assert 0 <= first <= last <= 11


def test_weights_are_shares_of_samples(root: Path) -> None:
    data = mixture(root, "calvin", "robot_1st", weights=(3, 1))
    names = [data.pick(number)[0].name for number in range(400)]
    assert 270 < names.count("calvin:train") < 330
    fails(UsageError, "weights that are not negative", PairMixture, [], 0, 8)
    fails(UsageError, "weights that are not negative", mixture, root, "calvin", weights=[-1.0])


def test_held_out_groups_are_never_trained_on(root: Path) -> None:
    data = mixture(root, "calvin", "robot_1st")
    seen = {data.pick(number)[1].id for number in range(300)}
    kept = {data.pick(number, heldout=True)[1].id for number in range(300)}
    assert seen
    assert kept
    assert not seen & kept
    assert torch.equal(data.heldout(40), mixture(root, "robot_1st", "calvin").heldout(40)) is False
    assert torch.equal(data.heldout(40), mixture(root, "calvin", "robot_1st").heldout(40))


def test_evaluation_is_left_out_and_the_manifest_names_the_rest(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = root / "data" / "calvin_metadata_train.csv"
    before = table.read_text()
    try:
        rows = (root / "data" / "calvin_metadata_val.csv").read_text().splitlines()[1:]
        table.write_text(before + "\n".join(rows) + "\n")
        logger = logging.getLogger("lary")
        logger.addHandler(caplog.handler)
        with caplog.at_level("INFO", "lary"):
            clean, all_of_it = mixture(root, "calvin"), mixture(root, "calvin", exclude=False)
        logger.removeHandler(caplog.handler)
    finally:
        table.write_text(before)
    # The folders of both splits have the same names in this tree, so that episodes 0 and 1 are shared.
    assert "rows are left out, since evaluation has their groups" in caplog.text
    part, whole = (each.manifest()["parts"][0] for each in (clean, all_of_it))
    assert part["excluded"] == 12
    assert len(part["samples"]) + part["heldout"] == 6
    assert len(whole["samples"]) + whole["heldout"] == 18
    assert len(part["digests"]) == len(part["samples"])
    assert part["licences"][0]["source"] == DATASETS.get("calvin").licences[0].source
    assert part["table"]


def test_an_unreadable_file_costs_its_own_samples_alone(root: Path, tmp_path: Path) -> None:
    make_calvin(tmp_path, {"train": 4})
    data = mixture(tmp_path, "calvin")
    before, (_, unit, _) = data.batch(0, range(6)), data.pick(2)
    data.close()
    Path(unit.paths[0]).write_bytes(b"no picture")
    broken = mixture(tmp_path, "calvin").batch(0, range(6))
    touched = [unit.paths[0] in data.pick(number)[1].paths for number in range(6)]
    assert touched[2]
    for number in range(6):
        assert torch.equal(broken[number], before[number]) is not touched[number]
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no picture")
    fails(LaryError, r"is broken.* Nor can the 10 samples behind it", mixture(tmp_path, "calvin").batch, 0, [0])


def test_what_gives_no_pairs_is_one_sentence(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    fails(UsageError, "There are no pairs in .*empty", mixture, root, str(tmp_path / "empty"))
    fails(UsageError, "--dataset calvn: it is neither a folder nor a data set. Did you", mixture, root, "calvn")
    for option in ("weights", "distances"):
        words = f"--{option[:-1]}: there are 3 for 2 data sets"
        wrong = {option: [1, 2, 3]}
        fails(UsageError, words, open_mixture, ["calvin", "robot_1st"], settings_of(root), 0, 8, **wrong)
    for wrong in ("0", "5-3", "-1", "x"):
        fails(UsageError, "--distance .* of .*own: expected frames", mixture, root, f"{root}/own", distances=[wrong])
    for name in ("a", "b"):
        for number in range(40):
            write_image(tmp_path / "still" / name / f"{number}.png", frame(0.5, 0.5, (200, 0, 0)))
    fails(UsageError, "All pairs of .*still are static", mixture(root, str(tmp_path / "still")).heldout, 16)
    logger = logging.getLogger("lary")
    logger.addHandler(caplog.handler)
    mixture(root, str(root / "own"), distances=["9"]).heldout(64)
    logger.removeHandler(caplog.handler)
    assert "% of the pairs of" in caplog.text
    assert "are static: both frames are equal" in caplog.text


def test_the_audit_finds_evaluation_in_a_training(root: Path, tmp_path: Path) -> None:
    """By sample, by episode, and by content under another name."""
    own = mixture(root, "robot_1st", exclude=False).manifest()
    other = mixture(root, str(root / "data" / "classification" / "AgiBotWorld-Beta" / "val"), exclude=False).manifest()
    audit = ("data", "audit", "robot_1st", "--training", tmp_path)
    for manifest, code, words in ((own, 0, ()), (other, 1, ("1 of 2 files of val have the content of files",))):
        write_json(tmp_path / "training.json", {"manifest": manifest})
        printed(*audit, root=root, code=code, has=words)
    seen = mixture(root, "robot_1st:val", exclude=False).manifest()
    write_json(tmp_path / "training.json", {"manifest": seen})
    printed(*audit, root=root, code=1, has=("1 of 2 samples of val", "1 of 2 clips of val are in the training of"))
    write_json(tmp_path / "training.json", {"manifest": {}})
    printed(*audit, root=root, code=2, has=("it names no samples; expected a training's folder",))
