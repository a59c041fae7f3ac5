"""What probe runs read: wrong requests and wrong data are refused in a sentence; splits and frames that were chosen."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lary.configs import ClassifyConfig, ControlsConfig, ExtractConfig, RegressConfig, RunConfig
from lary.data.spec import DATASETS
from lary.results.compare import compare_results
from lary.results.record import EvalResult
from lary.runs.controls import run_controls
from lary.runs.extract import extract
from lary.runs.probe import classify, regress
from lary.runs.run import probe_config
from lary.runs.tasks import open_splits, shown
from lary.types import LaryError, UsageError
from tests.helpers import rows_of, settings_of
from tests.tree import make_calvin, make_robot, write_table

pytestmark = pytest.mark.usefixtures("no_figures")
MODEL = "pixels"
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of pairs and clips with latents of `MODEL`."""
    root = tmp_path_factory.mktemp("wrong")
    make_calvin(root, {"train": 6, "val": 2}, pairs=2)
    make_robot(root, {"train": 12, "val": 4})
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            extract(ExtractConfig(model=MODEL, dataset=dataset, split=split, workers=1), settings_of(root))
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The tree, to be spoilt."""
    shutil.copytree(made, tmp_path / "tree")
    return tmp_path / "tree"


def run_classify(place: Path, **options: Any) -> EvalResult:
    config = ClassifyConfig(model=MODEL, dataset="robot_1st", **{"probe_preset": "demo", "epochs": 1, **options})
    return classify(config, settings_of(place)).result


def run_regress(place: Path, **options: Any) -> EvalResult:
    config = RegressConfig(**{"model": MODEL, "dataset": "calvin", "probe_preset": "demo", "epochs": 1, **options})
    return regress(config, settings_of(place)).result


def change(place: Path, name: str, edit: Callable[[Rows], Any]) -> None:
    """Edit the rows of a table of clips with latents in place."""
    table = place / "data" / f"{name}_la_robot_1st_{MODEL}.csv"
    rows = rows_of(table)
    edit(rows)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "one"}, "--gpus 'one': expected device numbers such as 0 or 0,1,2,3"),
        ({"seeds": "0,-1"}, "--seeds -1: a seed is a number from 0 to 4294967295"),
        ({"epochs": 0}, "--epochs 0: must be at least 1, or leave the option out"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """By each command that takes them; tests/golden has more of them."""
    dataset = DATASETS.get("calvin")
    for work in (
        lambda: run_classify(tmp_path, **options),
        lambda: run_regress(tmp_path, **options),
        lambda: probe_config(RunConfig(model=MODEL, dataset="calvin", **options), dataset),
        lambda: run_controls(ControlsConfig(model=MODEL, dataset="calvin", **options), settings_of(tmp_path)),
    ):
        with pytest.raises(UsageError, match=message):
            work()


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (run_classify, {"dim": 32}, "--dim 32: the latents have dimension 50; leave the option out"),
        (run_classify, {"classes": 123}, "--classes 123: data set 'robot_1st' has 54 classes; leave the option out"),
        (run_classify, {"latent": "quantized"}, "--latent quantized: model 'pixels' has one kind of latent"),
        (run_regress, {"relative_frame": "local"}, "--relative-frame local: it needs --action-mode relative"),
        (run_regress, {"splits": "by-segment"}, "only the published ones"),
    ],
)
def test_options_that_contradict_the_data_are_refused(
    made: Path, run: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(made, **options)


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


@pytest.mark.parametrize(
    ("split", "edit", "message"),
    [
        ("val", lambda rows: rows[2].update(action="juggle"), r"row 3 \(line 4\): 'juggle' is no class of robot_1st"),
        ("train", lambda rows: [row.update(action="pick") for row in rows], "All 12 training samples are of the class"),
        ("train", few(("pick", "place"), 2), "2 samples of 2 episodes or videos: none can be held out"),
        ("val", lambda rows: borrow(rows[-1:]), r"row \d+: .*\.npz was made by another extraction than the rows befo"),
        ("train", shift, r"row 1: .*\.npz holds the latents of sample \w+ \(.*mp4\), not of sample"),
        ("val", borrow, r"row 1: .*\.npz holds the latents of sample \w+ \(.*mp4\), not of sample"),
    ],
)
def test_tables_with_wrong_rows_are_refused(
    place: Path, split: str, edit: Callable[[Rows], None], message: str
) -> None:
    change(place, split, edit)
    with pytest.raises(LaryError, match=message):
        run_classify(place)


def test_corrected_labels_keep_their_latents_and_classes_that_cannot_be_learned_are_named(place: Path) -> None:
    change(place, "train", lambda rows: rows[0].update(action="pour"))
    assert not any("classes are in the validation split" in warning for warning in run_classify(place).warnings)
    change(place, "train", few(("pick", "place"), 8))
    warnings = run_classify(place, overwrite=True).warnings
    assert any("classes are in the validation split" in warning for warning in warnings)


def test_latents_of_another_model_or_data_set_are_refused(place: Path) -> None:
    for split in ("train", "val"):
        rows = rows_of(place / "data" / f"{split}_la_calvin_5_{MODEL}.csv")
        folder = place / "latent_actions" / "calvin" / split
        shutil.copytree(folder / MODEL, folder / "random-vit")
        for row in rows:
            row["la_path"] = Path(row["la_path"]).name
        write_table(place / "data" / f"{split}_la_calvin_5_random-vit.csv", rows)
    with pytest.raises(UsageError, match="holds latents of --model pixels, not of random-vit"):
        run_regress(place, model="random-vit")
    for split in ("train", "val"):
        shutil.copytree(
            place / "latent_actions/calvin" / split / MODEL, place / "latent_actions/libero" / split / MODEL
        )
        rows = [{**row, "action": "Left"} for row in rows_of(place / "data" / f"{split}_la_calvin_5_{MODEL}.csv")]
        for row in rows:
            row["la_path"] = row["la_path"].replace("calvin/", "libero/")
        stride = DATASETS.get("libero").stride
        write_table(place / "data" / f"{split}_la_libero_{stride}_{MODEL}.csv".replace("_None", ""), rows)
    with pytest.raises(UsageError, match="holds latents of --dataset calvin, not of libero"):
        classify(ClassifyConfig(model=MODEL, dataset="libero", probe_preset="demo"), settings_of(place))


@pytest.mark.parametrize("probe", ["attentive", "mlp", "ridge"])
def test_latents_that_are_not_finite_name_their_sample(place: Path, probe: str) -> None:
    dataset = "robot_1st" if probe == "attentive" else "calvin"
    file = place / "latent_actions" / dataset / "val" / MODEL / "latent_action_00000001.npz"
    with np.load(file) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    found["tokens"][0, 0, 0] = np.nan
    np.savez(file, **found)
    run = run_classify if probe == "attentive" else run_regress
    options = {} if probe == "attentive" else {"model_type": probe, "epochs": 1 if probe == "mlp" else None}
    with pytest.raises(LaryError, match=r"latents of sample \w+ \(.*(1.mp4|/ep_0/.*)\) hold NaN or infinity: check"):
        run(place, **options)


def test_latents_that_are_gone_are_counted(place: Path) -> None:
    gone = sorted((place / "latent_actions" / "calvin" / "val" / MODEL).glob("latent_action_*.npz"))[2]
    gone.unlink()
    with pytest.raises(LaryError, match=rf"(?s)1 of 4 latent files .* are missing; extract again.*{gone.name}"):
        run_regress(place)


def test_every_split_goes_through_the_same_projection_and_orders_are_drawn_anew(made: Path) -> None:
    config = RegressConfig(model=MODEL, dataset="calvin", project=3)
    splits = open_splits(settings_of(made), DATASETS.get("calvin"), config)
    for asked, same in (
        (config, True),
        (RegressConfig(model=MODEL, dataset="calvin", control="shuffled-order"), False),
    ):
        train, validation = (
            shown(splits["train"], asked, 5, training=training).read(range(12)) for training in (True, False)
        )
        assert np.array_equal(train, validation) is same


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose published splits share their episodes, with latents of these splits and of those by episode."""
    root = tmp_path_factory.mktemp("mixed")
    make_calvin(root, {"train": 12}, pairs=4)
    (root / "data/regression/calvin/train_stride5").rename(root / "data/regression/vlabench")
    rows = rows_of(root / "data" / "calvin_metadata_train.csv")
    for split, part in (("train", [row for at, row in enumerate(rows) if at % 4]), ("val", rows[::4])):
        write_table(root / "data" / f"vlabench_metadata_{split}.csv", part)
    for split in ("train", "val", "train_by_episode", "val_by_episode"):
        extract(ExtractConfig(model=MODEL, dataset="vlabench", split=split, workers=1), settings_of(root))
    return root


def test_splits_by_episode_keep_episodes_apart(mixed: Path) -> None:
    options: dict[str, Any] = {"dataset": "vlabench", "model_type": "ridge", "epochs": None}
    published, drawn = (
        regress(RegressConfig(model=MODEL, probe_preset="demo", splits=splits, **options), settings_of(mixed))
        for splits in (None, "by-episode")
    )
    assert published.folder.name == "vlabench_5_pixels_ridge_absolute"
    warning = published.result.warnings[-1]
    assert warning.startswith("12 of the 12 episodes or videos of val are in train as well")
    assert "'--splits by-episode' keeps them apart" in warning
    assert drawn.folder.name == "vlabench_5_pixels@by-episode_ridge_absolute"
    sizes = drawn.result.dataset.splits
    assert (drawn.result.dataset.split_set, set(sizes)) == ("by-episode", {"train_by_episode", "val_by_episode"})
    assert (sum(size.groups for size in sizes.values()), sum(size.rows for size in sizes.values())) == (12, 48)
    assert not any("as well" in warning for warning in drawn.result.warnings)
    with pytest.raises(UsageError, match="their choice of splits is published and by-episode"):
        compare_results([published.folder, drawn.folder])
    with pytest.raises(UsageError, match="--dataset vlabench --split train_by_episode' first"):
        regress(RegressConfig(model="frame-difference", dataset="vlabench", splits="by-episode"), settings_of(mixed))
    with pytest.raises(UsageError, match="it has: by-episode"):
        regress(RegressConfig(model=MODEL, dataset="vlabench", splits="by-day"), settings_of(mixed))
