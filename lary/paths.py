"""Where the benchmark's files lie: names of tables and folders, as the published layout has them.

What differs from the default (the ``paper`` protocol, another kind of latent, random weights, pooled tokens) stands
behind the model's name in every file and folder name, as in ``lapa@paper``, so that numbers never mix. The default
has the published names.
"""

from __future__ import annotations

import re
from pathlib import Path

from lary.settings import Settings
from lary.types import RANDOM, BenchmarkProtocol, Media

TABLE_FOLDER = "data"


def tagged(
    model: str, protocol: BenchmarkProtocol, latent: str | None = None, weights: str | None = None,
    pool: str | None = None,
) -> str:  # fmt: skip
    """The model's name as it stands in file and folder names, where slashes and colons can't."""
    name = re.sub(r"[^\w.@+-]+", "_", model)
    pooled = f"pool-{pool.replace(':', '')}" if pool not in (None, "none") else None
    differences = (
        protocol if protocol != "corrected" else None, latent, weights if weights == RANDOM else None, pooled
    )  # fmt: skip
    return "@".join([name, *filter(None, differences)])


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
