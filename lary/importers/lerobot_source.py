"""Where a LeRobot data set lies: in a folder, or on the hub, from which only what is used is fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lary.data.hubs import hub_errors
from lary.importers.lerobot_plan import Plan
from lary.importers.lerobot_reader import Episode, LeRobot
from lary.types import UsageError, as_path

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_source(source: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a data set, and its commit if it is of the hub, whence the metadata are fetched.

    Raises:
        UsageError: there is no such folder, and the text is no repository's name.
        LaryError: the hub doesn't give it.
    """
    folder = as_path(source)
    if folder.is_dir():
        return folder, ""
    if not REPOSITORY.fullmatch(source):
        raise UsageError(f"There is no folder {source}, and it is no data set on the hub, which are called owner/name.")
    import huggingface_hub

    with hub_errors("Hugging Face", source):
        commit = huggingface_hub.HfApi().dataset_info(source, revision=revision, timeout=30).sha
        return Path(_fetch(source, str(commit), ["meta/*", "meta/**", "README.md"])), str(commit)


def fetch_tables(source: str, commit: str, data: LeRobot, episodes: Sequence[Episode]) -> None:
    """Fetch the tables of some episodes, which labels are made from before a plan is there. Raises LaryError."""
    names = sorted({data.data_path(episode).relative_to(data.folder).as_posix() for episode in episodes})
    with hub_errors("Hugging Face", source):
        _fetch(source, commit, names)


def fetch_content(source: str, commit: str, data: LeRobot, plan: Plan) -> None:
    """Fetch the tables, and the videos of the chosen camera, of the episodes that are used. Raises LaryError."""
    paths = {data.data_path(episode) for episode in plan.episodes}
    if data.features[plan.camera].dtype == "video":
        paths |= {data.video(episode, plan.camera)[0] for episode in plan.episodes}
    names = sorted(path.relative_to(data.folder).as_posix() for path in paths)
    with hub_errors("Hugging Face", source):
        _fetch(source, commit, names)


def _fetch(source: str, commit: str, patterns: list[str]) -> str:
    import huggingface_hub

    return str(huggingface_hub.snapshot_download(source, repo_type="dataset", revision=commit, allow_patterns=patterns))
