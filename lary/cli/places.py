"""Where things lie, as options: what every command takes besides its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from lary.registry import load_plugin
from lary.settings import Settings, load_settings

PLACES = Group("Places (command line > environment > lary.yaml > default)", sort_key=9)


@Parameter(name="*", group=PLACES)
@dataclass(frozen=True, kw_only=True)
class Places:
    """Settings that every command takes.

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

    def settings(self) -> Settings:
        """The resolved settings."""
        names = ("lary_root", "data_dir", "model_dir", "lary_la_dir", "lary_log_dir")
        return load_settings({name.upper(): getattr(self, name) for name in names}, config=self.config)

    def load_plugins(self) -> None:
        """Run the plug-ins."""
        for plugin in self.plugin:
            load_plugin(plugin)


ALL_DEFAULT = Places()
