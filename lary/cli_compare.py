"""The commands ``lary compare`` and ``lary controls``: runs held against each other, and against their controls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lary.cli_data import PLACES
from lary.configs import ControlsConfig
from lary.registry import load_plugin
from lary.settings import load_settings

Star = Parameter(name="*")


@Parameter(name="*", group=PLACES)
@dataclass(frozen=True, kw_only=True)
class ControlPlaces:
    """Settings that the controls take.

    Attributes:
        lary_root: Folder whose data/ holds the tables (LARY_ROOT).
        data_dir: Folder with classification/ and regression/ (DATA_DIR).
        model_dir: Folder with weights (MODEL_DIR).
        lary_la_dir: Folder of latents (LARY_LA_DIR).
        lary_log_dir: Folder of results (LARY_LOG_DIR).
        config: Configuration file; default: lary.yaml in this folder.
        plugin: Python file that registers models or data sets; may be repeated.
    """

    lary_root: str | None = None
    data_dir: str | None = None
    model_dir: str | None = None
    lary_la_dir: str | None = None
    lary_log_dir: str | None = None
    config: Path | None = None
    plugin: Annotated[tuple[Path, ...], Parameter(negative=())] = ()


PLACES_DEFAULT = ControlPlaces()


def compare(*results: Path, role: Literal["seen", "unseen"] = "seen", seed: int = 0, json: Path | None = None) -> int:
    """Hold the first result against each of the others: paired difference, interval, p value corrected by Holm.

    Args:
        results: Folders of finished runs, or their result.json files.
        role: Split to compare on.
        seed: Seed of the resampling.
        json: File for the differences as JSON.
    """
    from lary.fileio import write_json
    from lary.results.compare import compare as run

    found = run(results, role, seed)
    print(found.text())
    if json is not None:
        rows = [
            {
                "other": str(each.other.folder), "gain": each.gain.model_dump(), "p": each.p,
                "samples": each.samples, "groups": each.groups,
            }
            for each in found.differences
        ]  # fmt: skip
        write_json(json, {"first": str(found.first.folder), "role": role, "differences": rows})
    return 0


def controls(config: Annotated[ControlsConfig, Star], places: ControlPlaces = PLACES_DEFAULT) -> int:
    """Run a model with its controls and state its margin over each."""
    for plugin in places.plugin:
        load_plugin(plugin)
    from lary.results.controls import run_controls

    names = ("lary_root", "data_dir", "model_dir", "lary_la_dir", "lary_log_dir")
    settings = load_settings({name.upper(): getattr(places, name) for name in names}, config=places.config)
    print(run_controls(config, settings).text())
    return 0
