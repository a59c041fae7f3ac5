"""What is imported from a LeRobot data set and how: every choice that the command leaves open, and a preview."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lary.data.configs import LeRobotConfig, MotionOptions
from lary.data.spec import Licence
from lary.importers.episodes import AtomicRule, Cut, MotionCut, PairCut
from lary.importers.lerobot_reader import Episode, Floats, LeRobot, flat_names
from lary.registry import suggest
from lary.settings import Settings
from lary.types import LaryError, UsageError

ACTION, STATE = "action", "observation.state"
VALIDATION = ("val", "validation", "valid", "eval", "test")
FREE = frozenset(("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc0-1.0", "cc-by-sa-4.0"))
"""Licences of data set cards that allow commercial use."""
PAIRS_PER_SECOND = 3


@dataclass(frozen=True, kw_only=True)
class LeRobotPlan:
    """What an import will do, every choice made.

    Attributes:
        name: key of the new data set.
        data_dir: ``$DATA_DIR``.
        tables: ``$LARY_ROOT/data``.
        camera: key of a video or image feature.
        actions: keys of features whose values are joined in a step.
        dims: names of these values.
        val: numbers of the episodes that validate.
    """

    data: LeRobot
    name: str
    data_dir: Path
    tables: Path
    camera: str
    actions: tuple[str, ...]
    dims: tuple[str, ...]
    robot: str
    episodes: tuple[Episode, ...]
    val: frozenset[int]
    licence: Licence
    cut: Cut
    overwrite: bool

    @property
    def root(self) -> str:
        """Folder of the new data set below ``DATA_DIR``."""
        return f"{self.cut.task}/{self.name}"

    @property
    def is_video(self) -> bool:
        """Whether the camera's frames are in videos."""
        return self.data.features[self.camera].dtype == "video"

    def by_split(self) -> dict[str, list[Episode]]:
        """Episodes by split."""
        val = [episode for episode in self.episodes if episode.index in self.val]
        return {"train": [episode for episode in self.episodes if episode.index not in self.val], "val": val}

    def files(self) -> set[Path]:
        """The tables, and the videos of the chosen camera, of the episodes that are used."""
        videos = {self.data.video(episode, self.camera)[0] for episode in self.episodes if self.is_video}
        return videos | {self.data.data_path(episode) for episode in self.episodes}

    def preview(self) -> str:
        """What will be imported, and from what it was chosen."""
        data, cut = self.data, self.cut
        if isinstance(cut, PairCut):
            rows, kind = {e.index: len(range(0, e.length - cut.stride, cut.stride)) for e in self.episodes}, "pairs"
            seconds, dims = cut.stride / data.fps, len(self.dims)
            details = [f"stride: {cut.stride} frames ({seconds:.2f} s); chunks {cut.stride} x {dims}"]
        else:
            values = read_values(data, self.episodes, self.actions)
            motions = {index: cut.segments(found) for index, found in values.items()}
            rows, kind = {index: 2 * len(found) for index, found in motions.items()}, "labelled pairs, both directions"
            details = self._labels(cut, [item.label for found in motions.values() for item in found])
        lines = [
            f"{data.origin or data.folder}: LeRobot {data.info['codebase_version']}",
            f"episodes: {len(data.episodes)} at {data.fps:g} frames/s",
            f"robot: {self.robot}",
            *(f"camera {'*' if key == self.camera else ' '} {key} {data.features[key]}" for key in data.cameras),
            *(
                f"values {'*' if key in self.actions else ' '} {key} ({data.features[key].shape[0]})"
                for key in data.vectors
            ),
            f"dimensions: {', '.join(self.dims)}",
            *details,
            f"used: {len(self.episodes)} episodes, {sum(episode.length for episode in self.episodes)} frames",
        ]
        for split, group in self.by_split().items():
            count = sum(rows.get(episode.index, 0) for episode in group)
            lines.append(f"{split}: {len(group)} episodes, {count} {kind}")
        return "\n".join(
            [*lines, f"licence: {self.licence.name}", f"to: {self.data_dir / self.root} and {self.tables}"]
        )

    def _labels(self, cut: MotionCut, labels: Sequence[str]) -> list[str]:
        grip = "none"
        if cut.gripper is not None:
            side = "above" if cut.rule.open_high else "below"
            grip = f"{self.dims[cut.gripper]}, open {side} {cut.rule.grip:.4g}"
        counts = ", ".join(f"{label} {count}" for label, count in Counter(labels).most_common())
        position = ", ".join(self.dims[column] for column in cut.position)
        return [f"labels: atomic motions of {position}; gripper: {grip}", f"motions: {counts or 'none'}"]


def plan_lerobot(data: LeRobot, config: LeRobotConfig, name: str, settings: Settings) -> LeRobotPlan:
    """Make every choice that the command leaves open.

    The camera is the first one that is not on a wrist and shows no depth; the actions are ``action``, or else the
    state; the stride is a third of a second. Labels are made from the tables, which are fetched for that.

    Raises:
        UsageError: the data set has no such camera or feature, or too few or too short episodes.
        LaryError: the gripper's range is needed for labels, and no episode can be read.
    """
    if not data.cameras:
        raise UsageError(f"{data.folder} has no camera: there is no image for a model.")
    outside = [key for key in data.cameras if not re.search(r"wrist|hand|gripper|depth", key.rsplit(".", 1)[-1])]
    camera = config.camera or [*outside, *data.cameras][0]
    actions = config.actions or tuple(key for key in (ACTION, STATE) if key in data.vectors)[:1]
    for option, keys, known in (("--camera", (camera,), data.cameras), ("--actions", actions, data.vectors)):
        for key in keys:
            if key not in known:
                raise UsageError(f"{option} {key}: {data.folder} has none of this name.{suggest(key, known)}")
    if not actions:
        raise UsageError(f"Name what to decode with --actions: {', '.join(data.vectors) or 'there is nothing'}.")
    check_labels(config)
    usual = 1 if config.labels else max(1, round(data.fps / PAIRS_PER_SECOND))
    stride = config.stride if config.stride is not None else usual
    if stride < 1 or (config.episodes is not None and config.episodes < 2) or not 0 < config.share < 1:
        raise UsageError("--stride must be at least 1, --episodes at least 2, --val-share between 0 and 1.")
    episodes = tuple(episode for episode in data.episodes[: config.episodes] if episode.length > stride)
    if len(episodes) < 2:
        raise UsageError(
            f"{data.folder} has {len(episodes)} episodes of more than {stride} frames: at least two "
            "are needed, one to train and one to validate."
        )
    dims = dimension_names(data, actions)
    if config.labels:
        data.fetch(data.data_path(episode) for episode in episodes)
    cut = motion_cut(data, config, episodes, actions, dims) if config.labels else PairCut(stride)
    return LeRobotPlan(
        data=data,
        name=name,
        data_dir=settings.path("DATA_DIR"),
        tables=settings.path("LARY_ROOT") / "data",
        camera=camera,
        actions=actions,
        dims=dims,
        robot=config.robot or data.robot or "unknown",
        episodes=episodes,
        val=choose_validation(data, episodes, config.share, config.seed),
        licence=read_licence(data, config.licence),
        cut=cut,
        overwrite=config.overwrite,
    )


def check_labels(config: LeRobotConfig) -> None:
    """Raise UsageError for options of labels without labels, and for a stride with them."""
    if config.labels and config.stride is not None:
        raise UsageError(f"--stride {config.stride}: motions end where the hand stops; leave it out with --labels.")
    changed = any(getattr(config, name) != value for name, value in vars(MotionOptions()).items())
    if not config.labels and (changed or config.position is not None or config.gripper is not None):
        raise UsageError("--position, --gripper, --threshold and so on say how labels are made: add --labels atomic.")


def motion_cut(
    data: LeRobot, config: LeRobotConfig, episodes: Sequence[Episode], actions: Sequence[str], dims: Sequence[str]
) -> MotionCut:
    """How labels are made: which values are the end effector's position and the gripper, and what counts as open.

    Raises:
        UsageError, LaryError: as `plan_lerobot`.
    """
    position = find_position(config.position, dims)
    if config.gripper is None:
        gripper = next((number for number, name in enumerate(dims) if "grip" in name.lower()), None)
    else:
        gripper = None if config.gripper.lower() == "none" else find_column(dims, "--gripper", config.gripper)
    rule = AtomicRule.of(config)
    if gripper is not None and config.grip is None:
        columns = [values[:, gripper] for values in read_values(data, episodes, actions).values()]
        if not columns:
            raise LaryError("No episode can be read, so the gripper's range is not known: name --grip.")
        low, high = min(column.min() for column in columns), max(column.max() for column in columns)
        rule = replace(rule, grip=float(low + high) / 2)
    return MotionCut(position, gripper, rule)


def find_position(option: str | None, dims: Sequence[str]) -> tuple[int, ...]:
    """The columns of x, y and z: those that ``--position`` names, or the first three of these names."""
    if option is not None:
        found = tuple(find_column(dims, "--position", part) for part in option.split(","))
        if len(found) != 3 or len(set(found)) != 3:
            raise UsageError(f"--position {option}: expected three values, such as x,y,z or 0,1,2.")
        return found
    at = {name.lower(): number for number, name in reversed(list(enumerate(dims)))}
    heads = [name[:-1] for name in at if name == "x" or name.endswith(("_x", ".x", "/x"))]
    for head in reversed(heads):
        if {head + "y", head + "z"} <= set(at):
            return tuple(at[head + axis] for axis in "xyz")
    raise UsageError(
        f"None of the values is called x, y and z ({', '.join(dims)}): name the position of the end effector "
        "with --position, and other values with --actions."
    )


def find_column(dims: Sequence[str], option: str, text: str) -> int:
    """The column of a value by its name or number. Raises UsageError."""
    name = text.strip()
    if name in dims:
        return list(dims).index(name)
    if name.isdecimal() and int(name) < len(dims):
        return int(name)
    raise UsageError(f"{option} {text}: the values are {', '.join(dims)}.{suggest(name, dims)}")


def read_values(data: LeRobot, episodes: Sequence[Episode], actions: Sequence[str]) -> dict[int, Floats]:
    """Values (T, A) of the episodes that can be read, by number."""
    found = {}
    for episode in episodes:
        with contextlib.suppress(LaryError):  # the import names it as a failure
            found[episode.index] = data.values(data.table(episode, actions), actions)
    return found


def dimension_names(data: LeRobot, keys: Sequence[str]) -> tuple[str, ...]:
    """Distinct names of the values of some features, made up from the key where the data set has none."""
    names: list[str] = []
    for key in keys:
        feature = data.features[key]
        short = key.rsplit(".", 1)[-1]
        own = tuple(flat_names(feature.names))
        own = own if len(own) == feature.shape[0] else ()
        for at in range(feature.shape[0]):
            name = own[at] if own else f"{short}_{at}"
            names.append(name if name not in names else f"{short}_{at}_{name}")
    return tuple(names)


def choose_validation(data: LeRobot, episodes: Sequence[Episode], share: float, seed: int) -> frozenset[int]:
    """Episodes that validate: those that the data set declares as such (``"40:50"``), or a random share."""
    numbers = [episode.index for episode in episodes]
    for name in VALIDATION:
        declared = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str((data.meta.splits or {}).get(name)))
        first, end = map(int, declared.groups()) if declared else (0, 0)
        chosen = frozenset(number for number in numbers if first <= number < end)
        if 0 < len(chosen) < len(numbers):
            return chosen
    count = min(max(1, round(share * len(numbers))), len(numbers) - 1)
    return frozenset(int(number) for number in np.random.default_rng(seed).permutation(numbers)[:count])


def read_licence(data: LeRobot, name: str | None) -> Licence:
    """The licence that the command names, or that of the data set's card (``license:`` in the head of README.md)."""
    card = data.folder / "README.md"
    if name is None and card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
        found = re.search(r"^license:\s*([\w.+-]+)\s*$", head, re.MULTILINE)
        name = found[1] if found else None
    url = f"https://huggingface.co/datasets/{data.origin}" if data.origin else ""
    return Licence(data.origin or data.folder.name, name or "not stated", (name or "").lower() in FREE, url)
