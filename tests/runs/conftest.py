"""A tree of pairs and clips with latents, which the tests of runs share, and probes that are run on it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from lary.configs import ClassifyConfig, ExtractConfig, RegressConfig
from lary.data.spec import DATASETS, ActionSpace
from lary.runs.extract import extract
from lary.runs.probe import ProbeRun, run_probe
from tests.helpers import settings_of
from tests.tree import make_calvin, make_robot

MODEL = "pixels"
"""Encodes each frame by itself, without weights."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, to be read: 10 + 7 episodes of three pairs, 24 + 12 clips, latents of `MODEL` of all of them."""
    root = make_calvin(tmp_path_factory.mktemp("made"), {"train": 10, "val": 7})
    make_robot(root, {"train": 24, "val": 12})
    for dataset in ("calvin", "robot_1st"):
        for split in ("train", "val"):
            extract(ExtractConfig(model=MODEL, dataset=dataset, split=split, workers=1), settings_of(root))
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of the tree, to be spoilt."""
    return shutil.copytree(made, tmp_path / "tree")


def config_of(dataset: str = "calvin", **options: Any) -> ClassifyConfig | RegressConfig:
    kind = RegressConfig if isinstance(DATASETS.get(dataset).target, ActionSpace) else ClassifyConfig
    return kind(**{"model": MODEL, "dataset": dataset, "probe_preset": "demo", "epochs": 2, **options})


def probe(root: Path, dataset: str = "calvin", logs: Path | None = None, **options: Any) -> ProbeRun:
    """Run a probe on latents below `root`."""
    return run_probe(config_of(dataset, **options), settings_of(root, LARY_LOG_DIR=logs or root / "logs"))
