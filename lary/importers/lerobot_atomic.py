"""Labels of atomic motions for a LeRobot data set: which values tell the hand's place, and what they give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lary.importers.motions import AtomicRule, Segment, atomic_segments
from lary.registry import suggest
from lary.types import LaryError, UsageError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AtomicRequest:
    """Labels of atomic motions in place of action chunks.

    Attributes:
        rule: how a trajectory is cut; its ``grip`` counts where `measure_grip` is off.
        position: names or numbers of the values with the end effector's x, y and z, with commas; None looks for
            these names.
        gripper: name or number of the gripper's value, or ``none``; None looks for the name.
        measure_grip: the middle between the lowest and the highest value of the gripper parts open from closed.
    """

    rule: AtomicRule
    position: str | None = None
    gripper: str | None = None
    measure_grip: bool = True


@dataclass(frozen=True)
class AtomicPlan:
    """How labels are made: positions of x, y and z and of the gripper among the values, and the rule."""

    position: tuple[int, ...]
    gripper: int | None
    rule: AtomicRule


def plan_atomic(request: AtomicRequest, dims: Sequence[str], read: Callable[[], Mapping[int, Floats]]) -> AtomicPlan:
    """Which of the values are the hand's place and the gripper, and what lies between open and closed.

    Args:
        dims: names of the values.
        read: gives the values (frames, A) of the episodes; asked only where the gripper's range is measured.

    Raises:
        UsageError: values that were named aren't there, or none are called x, y and z.
        LaryError: the gripper's range is asked for and no episode can be read.
    """
    at = {name.lower(): number for number, name in reversed(list(enumerate(dims)))}
    if request.position is not None:
        position = tuple(column_of(dims, "--position", part) for part in request.position.split(","))
    else:
        heads = [name[:-1] for name in at if name == "x" or name.endswith(("_x", ".x", "/x"))]
        found = [[at[head + axis] for axis in "xyz"] for head in reversed(heads) if {head + "y", head + "z"} <= set(at)]
        if not found:
            raise UsageError(
                f"None of the values is called x, y and z ({', '.join(dims)}): name the place of the end effector "
                "with --position, and other values with --actions."
            )
        position = tuple(found[0])
    if len(set(position)) != 3:
        raise UsageError(f"--position {request.position}: expected three values, such as x,y,z or 0,1,2.")
    if request.gripper is None:
        gripper = next((number for number, name in enumerate(dims) if "grip" in name.lower()), None)
    else:
        gripper = None if request.gripper.lower() == "none" else column_of(dims, "--gripper", request.gripper)
    rule = request.rule
    if gripper is not None and request.measure_grip:
        columns = [values[:, gripper] for values in read().values()]
        if not columns:
            raise LaryError("No episode can be read, so the gripper's range is not known: name --grip.")
        low, high = min(column.min() for column in columns), max(column.max() for column in columns)
        rule = replace(rule, grip=float(low + high) / 2)
    return AtomicPlan(position, gripper, rule)


def column_of(dims: Sequence[str], option: str, text: str) -> int:
    """The position of a value by its name or number. Raises UsageError."""
    name = text.strip()
    if name in dims:
        return list(dims).index(name)
    if name.isdecimal() and int(name) < len(dims):
        return int(name)
    raise UsageError(f"{option} {text}: the values are {', '.join(dims)}.{suggest(name, dims)}")


def labels_told(atomic: AtomicPlan, dims: Sequence[str], found: Mapping[int, Sequence[Segment]]) -> list[str]:
    """What labels are made from, and how often each comes, seen from start to end."""
    place = ", ".join(dims[column] for column in atomic.position)
    grip = "none"
    if atomic.gripper is not None:
        side = "above" if atomic.rule.open_high else "below"
        grip = f"{dims[atomic.gripper]}, open {side} {atomic.rule.grip:.4g}"
    counts = Counter(item.label for segments in found.values() for item in segments).most_common()
    return [
        f"labels: atomic motions of {place}; gripper: {grip}",
        f"motions: {', '.join(f'{label} {count}' for label, count in counts) or 'none'}",
    ]


def segments_of(atomic: AtomicPlan, values: npt.NDArray[np.float32]) -> list[Segment]:
    """The atomic motions of an episode's values (frames, A)."""
    grip = None if atomic.gripper is None else values[:, atomic.gripper]
    return atomic_segments(values[:, list(atomic.position)], grip, atomic.rule)
