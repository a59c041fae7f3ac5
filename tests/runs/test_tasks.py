"""What probe runs read: wrong requests and wrong data are refused in a sentence; splits and frames that were chosen."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.configs import ExtractConfig
from lary.data.spec import DATASETS
from lary.results.compare import compare
from lary.runs.extract import extract
from lary.runs.tasks import open_splits, seeds_of, shown
from lary.types import LaryError, UsageError
from tests.helpers import fails, rows_of, settings_of
from tests.runs.conftest import MODEL, config_of, probe
from tests.tree import make_calvin, write_table

pytestmark = pytest.mark.usefixtures("no_figures")
Rows = list[dict[str, str]]


def change(place: Path, name: str, edit: Callable[[Rows], Any]) -> None:
    """Edit the rows of a table of clips with latents in place."""
    table = place / "data" / f"{name}_la_robot_1st_{MODEL}.csv"
    rows = rows_of(table)
    edit(rows)
    write_table(table, rows)


def few(verbs: tuple[str, ...], count: int) -> Callable[[Rows], Any]:
    """Leave so many rows of these verbs."""
    return lambda rows: rows.__setitem__(slice(None), [row for row in rows if row["action"] in verbs][:count])


def shift(rows: Rows) -> None:
    """Give every row the latents of the next one."""
    for row, name in zip(rows, [other["la_path"] for other in (*rows[1:], rows[0])], strict=True):
        row["la_path"] = name


def borrow(rows: Rows) -> None:
    """Give rows the latents of another split."""
    for row in rows:
        row["la_path"] = row["la_path"].replace("/val/", "/train/")


@pytest.mark.parametrize(("dataset", "options", "seeds"), [
    ("calvin", {}, (0, 1, 2)), ("calvin", {"model_type": "ridge", "probe_preset": "paper"}, (0, 1, 2)),
    ("calvin", {"protocol": "paper"}, (42,)), ("calvin", {"seed": 3}, (3,)),
    ("robot_1st", {}, (0, 1, 2)), ("robot_1st", {"probe_preset": "paper"}, (0,)),
    ("robot_1st", {"protocol": "paper", "seeds": "5,6"}, (5, 6)),
])  # fmt: skip
def test_default_seeds(dataset: str, options: dict[str, Any], seeds: tuple[int, ...]) -> None:
    """Several where p values need them; one where the published settings have it, or several cost days."""
    assert seeds_of(config_of(dataset, **options)) == seeds


@pytest.mark.parametrize(("split", "edit", "message"), [
    ("val", lambda rows: rows[2].update(action="juggle"), r"row 3 \(line 4\): 'juggle' is no class of robot_1st"),
    ("train", lambda rows: [row.update(action="pick") for row in rows], "All 24 training samples are of the class"),
    ("val", lambda rows: borrow(rows[-1:]), r"row \d+: .*\.npz was made by another extraction than the rows befo"),
    ("train", shift, r"row 1: .*\.npz holds the latents of sample \w+ \(.*mp4\), not of sample"),
    ("val", borrow, r"row 1: .*\.npz holds the latents of sample \w+ \(.*mp4\), not of sample"),
])  # fmt: skip
def test_tables_with_wrong_rows_are_refused(place: Path, split: str, edit: Any, message: str) -> None:
    change(place, split, edit)
    fails(LaryError, message, probe, place, "robot_1st")


def test_corrected_labels_keep_their_latents_and_classes_that_cannot_be_learned_are_named(place: Path) -> None:
    change(place, "train", lambda rows: rows[0].update(action="pour"))
    unlearned = "classes are in the validation split"
    assert unlearned not in str(probe(place, "robot_1st").result.warnings)
    change(place, "train", few(("pick", "place"), 8))
    assert unlearned in str(probe(place, "robot_1st", overwrite=True).result.warnings)


def test_latents_of_another_model_or_data_set_are_refused(place: Path) -> None:
    for split in ("train", "val"):
        rows = rows_of(place / "data" / f"{split}_la_calvin_5_{MODEL}.csv")
        for folder in (f"calvin/{split}/random-vit", f"libero/{split}/{MODEL}"):
            shutil.copytree(place / "latent_actions/calvin" / split / MODEL, place / "latent_actions" / folder)
        short = [{**row, "la_path": Path(row["la_path"]).name} for row in rows]
        write_table(place / "data" / f"{split}_la_calvin_5_random-vit.csv", short)
        moved = [{**row, "action": "Left", "la_path": row["la_path"].replace("calvin/", "libero/")} for row in rows]
        write_table(place / "data" / f"{split}_la_libero_{MODEL}.csv", moved)
    fails(UsageError, "holds latents of --model pixels: extract", probe, place, model="random-vit")
    fails(UsageError, "holds latents of --dataset calvin: extract", probe, place, "libero")


@pytest.mark.parametrize(("dataset", "options"), [
    ("robot_1st", {}), ("calvin", {"model_type": "mlp"}), ("calvin", {"model_type": "ridge", "epochs": None}),
])  # fmt: skip
def test_latents_that_are_not_finite_name_their_sample(place: Path, dataset: str, options: dict[str, Any]) -> None:
    file = place / "latent_actions" / dataset / "val" / MODEL / "latent_action_00000001.npz"
    with np.load(file) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    found["tokens"][0, 0, 0] = np.nan
    np.savez(file, **found)
    with pytest.raises(LaryError, match=r"latents of sample \w+ \(.*(1.mp4|/ep_0/.*)\) hold NaN or infinity: check"):
        probe(place, dataset, **options)


def test_every_split_goes_through_the_same_projection_and_orders_are_drawn_anew(made: Path) -> None:
    splits = open_splits(settings_of(made), DATASETS.get("calvin"), config_of())
    for asked, same in ((config_of(project=3), True), (config_of(control="shuffled-order"), False)):
        both = (shown(splits["train"], asked, 5, training=training).read(range(12)) for training in (True, False))
        assert np.array_equal(*both) is same


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose published splits share their episodes, with latents of these splits and of those by episode."""
    root = make_calvin(tmp_path_factory.mktemp("mixed"), {"train": 12}, pairs=4)
    (root / "data/regression/calvin/train_stride5").rename(root / "data/regression/vlabench")
    rows = rows_of(root / "data" / "calvin_metadata_train.csv")
    for split, part in (("train", [row for at, row in enumerate(rows) if at % 4]), ("val", rows[::4])):
        write_table(root / "data" / f"vlabench_metadata_{split}.csv", part)
    for split in ("train", "val", "train_by_episode", "val_by_episode"):
        extract(ExtractConfig(model=MODEL, dataset="vlabench", split=split, workers=1), settings_of(root))
    return root


def test_splits_by_episode_keep_episodes_apart(mixed: Path) -> None:
    options: dict[str, Any] = {"dataset": "vlabench", "model_type": "ridge", "epochs": None}
    published, drawn = (probe(mixed, splits=splits, **options) for splits in (None, "by-episode"))
    assert published.folder.name == "vlabench_5_pixels_ridge_absolute"
    warning = published.result.warnings[-1]
    assert warning.startswith("12 of the 12 episodes of val are in train as well")
    assert "'--splits by-episode' keeps them apart" in warning
    assert drawn.folder.name == "vlabench_5_pixels@by-episode_ridge_absolute"
    sizes = drawn.result.dataset.splits
    assert (drawn.result.dataset.split_set, set(sizes)) == ("by-episode", {"train_by_episode", "val_by_episode"})
    assert (sum(size.groups for size in sizes.values()), sum(size.rows for size in sizes.values())) == (12, 48)
    assert not any("as well" in warning for warning in drawn.result.warnings)
    with pytest.raises(UsageError, match="their choice of splits is published and by-episode"):
        compare(published.folder, drawn.folder)
    with pytest.raises(UsageError, match="--dataset vlabench --split train_by_episode' first"):
        probe(mixed, model="frame-difference", splits="by-episode", **options)
