"""Where the benchmark's files lie: names of tables and folders, as the published layout has them.

A run under the ``paper`` protocol has ``@paper`` behind the model's name in every file and folder name, so that
numbers of two protocols never mix. ``corrected``, the default, has the published names.
"""

from __future__ import annotations

from pathlib import Path

from lary.settings import Settings
from lary.types import BenchmarkProtocol, Media

TABLE_FOLDER = "data"


def tagged(model: str, protocol: BenchmarkProtocol) -> str:
    """The model's name as it stands in file and folder names."""
    return model if protocol == "corrected" else f"{model}@{protocol}"


def latent_table(settings: Settings, dataset: str, split: str, media: Media, stride: int | None, model: str) -> Path:
    """The table that extraction writes: the input's columns plus ``la_path``."""
    middle = f"_{stride}" if media == "pair" and stride is not None else ""
    return settings.path("LARY_ROOT") / TABLE_FOLDER / f"{split}_la_{dataset}{middle}_{model}.csv"


def latent_folder(settings: Settings, dataset: str, split: str, model: str) -> Path:
    """The folder of a split's latents."""
    return settings.path("LARY_LA_DIR") / dataset / split / model


def latent_name(row: int) -> str:
    """File name of the latents of a row."""
    return f"latent_action_{row:08d}.npz"


def classification_folder(settings: Settings, dataset: str, model: str) -> Path:
    """The folder of a classification run."""
    return settings.path("LARY_LOG_DIR") / "classification" / dataset / model


def regression_folder(
    settings: Settings, dataset: str, stride: int | None, model: str, probe: str, action_mode: str
) -> Path:
    """The folder of a regression run."""
    name = f"{dataset}_{stride}_{model}_{probe}_{action_mode}"
    return settings.path("LARY_LOG_DIR") / "regression" / "logs" / name
