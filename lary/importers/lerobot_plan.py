"""What is imported from a LeRobot data set and how: every choice that can be made, and a preview of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lary.data.spec import Licence
from lary.importers.lerobot_atomic import AtomicPlan, AtomicRequest, labels_told, plan_atomic, segments_of
from lary.importers.lerobot_reader import Episode, LeRobot
from lary.registry import suggest
from lary.types import LaryError, UsageError

ACTION, STATE = "action", "observation.state"
VALIDATION = ("val", "validation", "valid", "eval", "test")
FREE = frozenset(("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc0-1.0", "cc-by-sa-4.0"))
"""Licences of data set cards that allow commercial use."""
PAIRS_PER_SECOND = 3


@dataclass(frozen=True, kw_only=True)
class LeRobotRequest:
    """What to import and how; None lets the data set decide (`make_plan`).

    Attributes:
        source: folder of the data set.
        name: key of the new data set.
        data_dir: ``$DATA_DIR``.
        tables: ``$LARY_ROOT/data``.
        camera: key of a video or image feature.
        actions: keys of features whose values stand side by side in a step.
        stride: frames between source and target.
        atomic: labels of atomic motions in place of action chunks; None for chunks.
        robot: robot type.
        share: of the episodes that validate.
        seed: of the choice of these episodes.
        episodes: import this many, the first ones.
        licence: name of the licence.
        origin: where the data set is from, for the record.
        overwrite: replace an import of the same name.
    """

    source: Path
    name: str
    data_dir: Path
    tables: Path
    camera: str | None = None
    actions: tuple[str, ...] = ()
    stride: int | None = None
    atomic: AtomicRequest | None = None
    robot: str | None = None
    share: float = 0.25
    seed: int = 0
    episodes: int | None = None
    licence: str | None = None
    origin: str = ""
    overwrite: bool = False


@dataclass(frozen=True)
class Plan:
    """What an import will do, every choice made. ``val`` holds the numbers of the validating episodes."""

    camera: str
    actions: tuple[str, ...]
    dims: tuple[str, ...]
    stride: int
    robot: str
    episodes: tuple[Episode, ...]
    val: frozenset[int]
    licence: Licence
    atomic: AtomicPlan | None = None


def make_plan(data: LeRobot, request: LeRobotRequest) -> Plan:
    """Make every choice that the request leaves open.

    The camera is the first one that is not on a wrist and shows no depth; the actions are ``action``, or else the
    state; the stride is a third of a second.

    Raises:
        UsageError: the data set has no such camera or feature, or too few or too short episodes.
    """
    if not data.cameras:
        raise UsageError(f"{request.source} has no camera: nothing to show a model.")
    outside = [key for key in data.cameras if not re.search(r"wrist|hand|gripper|depth", key.rsplit(".", 1)[-1])]
    camera = request.camera or [*outside, *data.cameras][0]
    if camera not in data.cameras:
        raise UsageError(f"--camera {camera}: {request.source} has none of this name.{suggest(camera, data.cameras)}")
    actions = request.actions or tuple(key for key in (ACTION, STATE) if key in data.vectors)[:1]
    for key in actions:
        if key not in data.vectors:
            raise UsageError(f"--actions {key}: {request.source} has none of this name.{suggest(key, data.vectors)}")
    if not actions:
        raise UsageError(f"Name what to decode with --actions: {', '.join(data.vectors) or 'there is nothing'}.")
    if request.atomic is not None and request.stride is not None:
        raise UsageError(f"--stride {request.stride}: motions end where the hand says; leave it out with --labels.")
    usual = 1 if request.atomic is not None else max(1, round(data.fps / PAIRS_PER_SECOND))
    stride = request.stride if request.stride is not None else usual
    if stride < 1 or (request.episodes is not None and request.episodes < 2) or not 0 < request.share < 1:
        raise UsageError("--stride must be at least 1, --episodes at least 2, --val-share between 0 and 1.")
    episodes = tuple(episode for episode in data.episodes[: request.episodes] if episode.length > stride)
    if len(episodes) < 2:
        raise UsageError(f"{request.source} has {len(episodes)} episodes of more than {stride} frames: at least two "
                         "are needed, one to train and one to validate.")  # fmt: skip
    plan = Plan(
        camera, actions, dimension_names(data, actions), stride, request.robot or data.robot or "unknown", episodes,
        choose_validation(data, episodes, request.share, request.seed), read_licence(request),
    )  # fmt: skip
    if request.atomic is None:
        return plan
    return replace(plan, atomic=plan_atomic(request.atomic, plan.dims, lambda: episode_values(data, plan)))


def episode_values(data: LeRobot, plan: Plan) -> dict[int, npt.NDArray[np.float32]]:
    """Values (frames, A) of the episodes that can be read, by number."""
    found = {}
    for episode in plan.episodes:
        with contextlib.suppress(LaryError):  # the import names it
            found[episode.index] = data.values(data.table(episode, plan.actions), plan.actions)
    return found


def dimension_names(data: LeRobot, keys: Sequence[str]) -> tuple[str, ...]:
    """Distinct names of the values of some features, made up from the key where the data set has none."""
    names: list[str] = []
    for key in keys:
        feature = data.features[key]
        short = key.rsplit(".", 1)[-1]
        own = feature.names if len(feature.names) == feature.shape[0] else ()
        for at in range(feature.shape[0]):
            name = own[at] if own else f"{short}_{at}"
            names.append(name if name not in names else f"{short}_{at}_{name}")
    return tuple(names)


def choose_validation(data: LeRobot, episodes: Sequence[Episode], share: float, seed: int) -> frozenset[int]:
    """Episodes that validate: those that the data set declares as such, or a random share."""
    declared = data.declared_splits()
    numbers = [episode.index for episode in episodes]
    for name in VALIDATION:
        chosen = frozenset(number for number in numbers if number in declared.get(name, range(0)))
        if 0 < len(chosen) < len(numbers):
            return chosen
    count = min(max(1, round(share * len(numbers))), len(numbers) - 1)
    return frozenset(int(number) for number in np.random.default_rng(seed).permutation(numbers)[:count])


def read_licence(request: LeRobotRequest) -> Licence:
    """The licence of the request, or of the data set's card (``license:`` in the head of README.md)."""
    name, card = request.licence, request.source / "README.md"
    if name is None and card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
        found = re.search(r"^license:\s*([\w.+-]+)\s*$", head, re.MULTILINE)
        name = found[1] if found else None
    origin = request.origin or request.source.name
    url = f"https://huggingface.co/datasets/{origin}" if re.fullmatch(r"[\w.-]+/[\w.-]+", request.origin) else ""
    return Licence(origin, name or "not stated", (name or "").lower() in FREE, url)


def preview(data: LeRobot, plan: Plan, request: LeRobotRequest) -> str:
    """What would be imported, and from what it was chosen."""
    frames = sum(episode.length for episode in plan.episodes)
    counts = {split: sum(len(sources(e, plan.stride)) for e in group) for split, group in by_split(plan).items()}
    kind, told = "pairs", [
        f"stride: {plan.stride} frames ({plan.stride / data.fps:.2f} s); chunks {plan.stride} x {len(plan.dims)}"
    ]  # fmt: skip
    if plan.atomic is not None:
        found = {index: segments_of(plan.atomic, values) for index, values in episode_values(data, plan).items()}
        counts = {split: sum(2 * len(found.get(e.index, ())) for e in group) for split, group in by_split(plan).items()}
        kind, told = "labelled pairs, both directions", labels_told(plan.atomic, plan.dims, found)
    lines = [
        f"{request.source}: LeRobot {data.info['codebase_version']}",
        f"episodes: {len(data.episodes)} at {data.fps:g} frames/s",
        f"robot: {plan.robot}",
        *(f"camera {'*' if key == plan.camera else ' '} {key} {_size(data, key)}" for key in data.cameras),
        *(
            f"values {'*' if key in plan.actions else ' '} {key} ({data.features[key].shape[0]})"
            for key in data.vectors
        ),
        f"dimensions: {', '.join(plan.dims)}",
        *told,
        f"used: {len(plan.episodes)} episodes, {frames} frames",
        *(f"{split}: {len(group)} episodes, {counts[split]} {kind}" for split, group in by_split(plan).items()),
        f"licence: {plan.licence.name}",
        f"to: {request.data_dir / root_of(request.name, plan)} and {request.tables}",
    ]
    return "\n".join(lines)


def _size(data: LeRobot, key: str) -> str:
    feature = data.features[key]
    return f"({feature.dtype}, {' x '.join(map(str, feature.shape))})"


def by_split(plan: Plan) -> dict[str, list[Episode]]:
    """Episodes by split."""
    return {
        "train": [episode for episode in plan.episodes if episode.index not in plan.val],
        "val": [episode for episode in plan.episodes if episode.index in plan.val],
    }


def sources(episode: Episode, stride: int) -> range:
    """Frames that a pair of an episode starts at."""
    return range(0, episode.length - stride, stride)


def root_of(name: str, plan: Plan) -> str:
    """Folder of an imported data set below ``DATA_DIR``."""
    return f"{'regression' if plan.atomic is None else 'classification'}/{name}"
