"""The verbs: what the arm does, and what happens to the objects for it.

Every behaviour draws its own situation (objects, places, directions, pace) and returns a
`Script`. Nothing here is simulated physics: objects follow the tool by the geometry of the act,
which is the same every time and never fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lary.simulate import shapes
from lary.simulate.kinematics import CLOSED, OPEN, UP, Array, Motion, Path, Pose, carried, from_rpy, turn
from lary.simulate.shapes import TRAIN_COLOURS, Thing, build_thing, draw

BEADS = 20
CABINET, CHEST = (shapes.SCENERY["things"][kind]["sizes"] for kind in ("cabinet", "chest"))
"""Half sizes: a cabinet opens towards its +x; the lid of a chest turns about its edge at -x."""
HANDLE = 0.042
"""How far the handle of a drawer stands off its front."""
FINGER = 0.014
"""Metres from the tool's centre to the outside of the closed fingers."""


@dataclass(frozen=True)
class Placed:
    """A thing and where it stands; one that moves is moved by the script's motion of the same name."""

    thing: Thing
    pose: Pose
    moves: bool = False


@dataclass
class Script:
    """An episode before it is drawn: the tool's path, the things, and their motions."""

    path: Path
    placed: list[Placed] = field(default_factory=list)
    motions: dict[str, Motion] = field(default_factory=dict)

    def put(self, thing: Thing, pose: Pose) -> Script:
        """Add a thing that stands still."""
        self.placed.append(Placed(thing, pose))
        return self

    def move(self, thing: Thing, motion: Motion) -> Script:
        """Add a thing that moves."""
        self.placed.append(Placed(thing, motion(0.0), moves=True))
        self.motions[thing.name] = motion
        return self


@dataclass(frozen=True)
class Stage:
    """What a behaviour may choose from: kinds of objects, and the camera's side along y (-1, 1)."""

    rng: np.random.Generator
    kinds: Sequence[str]
    side: float

    def uniform(self, low: float, high: float) -> float:
        """A number between two, drawn."""
        return float(self.rng.uniform(low, high))


def spot(stage: Stage, x: tuple[float, float] = (0.40, 0.56), y: float = 0.16) -> Array:
    """A place on the table (3,)."""
    return np.array([stage.rng.uniform(*x), stage.rng.uniform(-y, y), 0.0])


def hover(stage: Stage, away: Array, distance: float = 0.22) -> Array:
    """A place above the table (3,), at least `distance` from `away` as seen from above."""
    for _ in range(100):
        place = np.array([stage.uniform(0.33, 0.52), stage.uniform(-0.28, 0.28), stage.uniform(0.20, 0.31)])
        if float(np.hypot(*(place - away)[:2])) >= distance:
            break
    return place


def facing(yaw: float) -> Array:
    """Hand hanging down, turned by `yaw` within a quarter turn: fingers look the same."""
    return from_rpy(0.0, 0.0, (yaw + math.pi / 2) % math.pi - math.pi / 2)


def some_thing(stage: Stage, rolls: bool = True) -> tuple[Thing, Array]:
    """An object to handle and its rotation; without `rolls` no ball, which fingers hide."""
    while True:
        thing = shapes.make_thing(draw(stage.rng, stage.kinds), stage.rng)
        if rolls or not thing.rolls:
            break
    return thing, from_rpy(0.0, 0.0, stage.uniform(-0.7, 0.7))


def grasp(path: Path, thing: Thing, place: Array, hand: Array, shares: tuple[float, float, float]) -> int:
    """Over the object, down, and close; returns the mark from which the object moves with the hand."""
    grip_at = place + thing.height * UP
    path.move(grip_at + 0.10 * UP, shares[0], hand)
    path.move(grip_at, shares[1])
    path.grip(thing.grip, CLOSED, shares[2])
    return path.mark()


def approach(stage: Stage, away: Array, distance: float = 0.22, width: float = 0.10, command: float = OPEN) -> Path:
    """A path that starts in the air with a free hand."""
    yaw = stage.uniform(-0.5, 0.5)
    return Path(hover(stage, away, distance), from_rpy(0.0, 0.0, yaw), width, command, stage.rng)


def held(stage: Stage, thing: Thing, place: Array, hand: Array) -> Path:
    """A path that starts with the object in the hand."""
    return Path(place + thing.height * UP, hand, thing.grip, CLOSED, stage.rng)


def carry(path: Path, thing: Thing, rest: Pose, first: float = 0.0, last: float = 1.0) -> Script:
    """A script in which an object moves with the tool from time `first` to time `last`."""
    return Script(path).move(thing, carried(path, rest, first, last))


def reach(stage: Stage) -> Script:
    """The open, empty hand goes to an object and stops around it."""
    place = spot(stage)
    thing, rotation = some_thing(stage)
    path = approach(stage, place, 0.26)
    path.wait(0.05)
    path.move(place + (thing.height + 0.07) * UP, 0.55, rotation)
    path.move(place + (thing.height + 0.01) * UP, 0.25)
    path.wait(0.15)
    return Script(path).put(thing, (place, rotation))


def push(stage: Stage) -> Script:
    """The closed hand shoves an object over the table, away from the robot."""
    place, length = spot(stage, (0.38, 0.43), 0.12), stage.uniform(0.16, 0.22)
    thing, rotation = some_thing(stage)
    yaw = stage.uniform(-0.45, 0.45)
    ahead = turn(UP, yaw)[:, 0]
    contact = place - (thing.radius + FINGER) * ahead + 0.035 * UP
    path = approach(stage, place, 0.15, width=0.0, command=CLOSED)
    path.move(contact - 0.03 * ahead + 0.08 * UP, 0.25, from_rpy(0.0, 0.0, yaw))
    path.move(contact - 0.02 * ahead, 0.15)
    path.move(contact + length * ahead, 0.55)
    path.wait(0.05)

    def motion(time: float) -> Pose:
        gone = max(0.0, float((path.at(time).position - contact) @ ahead)) if time > 0.2 else 0.0
        if not thing.rolls:
            return place + gone * ahead, rotation
        rolled = turn(np.cross(UP, ahead), gone / thing.radius) @ rotation
        return place + gone * ahead + thing.radius * (UP - rolled @ UP), rolled

    return Script(path).move(thing, motion)


def pull(stage: Stage) -> Script:
    """The hand takes an object and drags it over the table to the robot."""
    place, length = spot(stage, (0.56, 0.62), 0.14), stage.uniform(0.17, 0.23)
    thing, rotation = some_thing(stage)
    path = approach(stage, place, 0.15)
    mark = grasp(path, thing, place, rotation, (0.20, 0.12, 0.08))
    back = turn(UP, stage.uniform(-0.4, 0.4)) @ np.array([-1.0, 0, 0])
    path.move(path.state.position + length * back, 0.55)
    path.wait(0.05)
    return carry(path, thing, (place, rotation), path.time(mark))


def lift(stage: Stage) -> Script:
    """The hand takes an object and raises it."""
    place = spot(stage)
    thing, rotation = some_thing(stage)
    path = approach(stage, place, 0.10)
    mark = grasp(path, thing, place, rotation, (0.16, 0.14, 0.10))
    aside = stage.rng.uniform(-0.04, 0.04, 2)
    path.move(path.state.position + np.array([*aside, stage.uniform(0.22, 0.30)]), 0.55)
    path.wait(0.05)
    return carry(path, thing, (place, rotation), path.time(mark))


def lower(stage: Stage) -> Script:
    """A held object is put down on the table and let go."""
    place = spot(stage)
    thing, rotation = some_thing(stage, rolls=False)
    aside = stage.rng.uniform(-0.04, 0.04, 2)
    above = place + np.array([*aside, stage.uniform(0.22, 0.30)])
    path = held(stage, thing, above, rotation)
    path.wait(0.08)
    path.move(place + thing.height * UP, 0.60)
    mark = path.mark()
    path.grip(0.10, OPEN, 0.10)
    path.move(path.state.position + 0.06 * UP, 0.20)
    return carry(path, thing, (above, rotation), 0.0, path.time(mark))


def rotate(stage: Stage) -> Script:
    """A held object is turned about the upright axis, by a quarter to nearly half a turn."""
    place = spot(stage) + stage.uniform(0.05, 0.14) * UP
    angle = float(stage.uniform(1.7, 2.7) * stage.rng.choice([-1.0, 1.0]))
    thing, _ = some_thing(stage, rolls=False)
    rotation = from_rpy(0.0, 0.0, -angle / 2)
    path = held(stage, thing, place, rotation)
    path.wait(0.08)
    path.swing(place, UP, angle, 0.84)
    path.wait(0.08)
    return carry(path, thing, (place, rotation), 0.0)


def sweep_crumbs(stage: Stage) -> Script:
    """A brush in the hand goes sideways, to the camera's side, and gathers small pieces before it."""
    tool = build_thing("brush", "brush", colour=draw(stage.rng, TRAIN_COLOURS))
    centre, yaw = spot(stage, (0.42, 0.52), 0.04), stage.uniform(-0.45, 0.45)
    across, along = stage.side * turn(UP, yaw)[:, 1], turn(UP, yaw)[:, 0]
    begin = centre - stage.uniform(0.19, 0.22) * across
    path = held(stage, tool, begin + 0.09 * UP, from_rpy(0.0, 0.0, yaw))
    path.move(path.state.position - 0.09 * UP, 0.15)
    path.move(path.state.position + stage.uniform(0.36, 0.40) * across, 0.78)
    path.wait(0.07)
    script = carry(path, tool, (begin + 0.09 * UP, from_rpy(0.0, 0.0, yaw)), 0.0)
    for number in range(int(stage.rng.integers(8, 12))):
        piece = shapes.crumb(f"crumb{number}", stage.rng)
        where = stage.uniform(-0.13, 0.12)
        start = centre + where * across + stage.uniform(-0.065, 0.065) * along
        slack = tool.radius + piece.radius + float(stage.rng.exponential(0.012))
        spin = from_rpy(0.0, 0.0, stage.uniform(-1.5, 1.5))
        script.move(piece, _swept(path, start, centre, where, across, slack, spin))
    return script


def _swept(path: Path, start: Array, centre: Array, where: float, across: Array, slack: float, spin: Array) -> Motion:
    def motion(time: float) -> Pose:
        front = float((path.at(time).position - centre) @ across) + slack
        gone = max(0.0, front - where)
        return start + gone * across, turn(UP, 6.0 * gone) @ spin

    return motion


def pour(stage: Stage) -> Script:
    """A mug is taken by its handle, raised over a bowl and tilted: beads fall into the bowl."""
    rng = stage.rng
    towards = float(rng.choice([-1.0, 1.0]))
    content, colour, pale = (draw(rng, colours) for colours in (TRAIN_COLOURS, TRAIN_COLOURS, shapes.PALE))
    cup = build_thing("mug", "target", colour=colour, pale=pale, content=content)
    target = build_thing("bowl", "bowl", colour=draw(rng, TRAIN_COLOURS))
    yaw = stage.uniform(-0.2, 0.2)
    upright, place = from_rpy(0.0, 0.0, yaw), spot(stage, (0.46, 0.54), 0.02) - 0.13 * towards * np.array([0, 1.0, 0])
    across, along = towards * upright[:, 1], upright[:, 0]
    dish = place + stage.uniform(0.24, 0.27) * across
    centre = 0.055 * UP
    hand = place + centre - 0.072 * along
    path = Path(hand, upright @ turn((0, 1, 0), -stage.uniform(0.8, 1.0)), 0.020, CLOSED, rng)
    path.move(hand + 0.17 * UP, 0.17)
    path.move(dish + hand - place - 0.085 * across + 0.17 * UP, 0.23)
    begin = path.mark()
    angle = -towards * stage.uniform(1.9, 2.1)
    path.swing(path.state.position + 0.072 * along, along, angle, 0.45)
    end = path.mark()
    path.wait(0.15)
    script = Script(path)
    mug_motion = carried(path, (place, upright), 0.0)
    script.move(cup, mug_motion)
    script.put(target, (dish, np.eye(3)))
    first, last = path.time(begin), path.time(end)
    for number in range(BEADS):
        released = first + (0.40 + 0.60 * number / BEADS) * (last - first)
        radius, turned = 0.052 * math.sqrt(float(rng.random())), stage.uniform(0, 2 * math.pi)
        height = 0.064 + 0.012 * (2 * number > BEADS)
        landing = dish + np.array([radius * math.cos(turned), radius * math.sin(turned), height])
        mouth = np.array([stage.uniform(-0.02, 0.02), towards * stage.uniform(0.015, 0.03), 0.115])
        bead = build_thing("bead", f"bead{number}", colour=content)
        script.move(bead, _poured(mug_motion, mouth, released, landing))
    return script


def _poured(mug_motion: Motion, mouth: Array, released: float, landing: Array) -> Motion:
    """A bead hides in the mug, leaves its mouth at a time, falls, and lies in the bowl."""
    position, rotation = mug_motion(released)
    begin = position + rotation @ mouth

    def motion(time: float) -> Pose:
        if time < released:
            place, turned = mug_motion(time)
            return place + turned @ (0.4 * mouth), np.eye(3)
        fallen = min(1.0, (time - released) / 0.09)
        flat = begin + min(1.0, 1.5 * fallen) * (landing - begin)
        return np.array([flat[0], flat[1], begin[2] + fallen**2 * (landing[2] - begin[2])]), np.eye(3)

    return motion


def _hinged(stage: Stage, opening: bool) -> Script:
    """A chest whose lid is lifted by its knob, or let down."""
    x, z = CHEST["x"], CHEST["z"]
    front, base = _furniture(stage)
    base = base - np.array([0.08, 0.0, 0.0])
    angle = -stage.uniform(1.4, 1.7)
    hinge = base + front @ np.array([-x, 0.0, 2 * z])
    colour = draw(stage.rng, TRAIN_COLOURS)
    metal, wood = shapes.metal(stage.rng), shapes.wood(stage.rng)
    knob = hinge + front @ np.array([2 * x - 0.025, 0.0, 0.030])
    side, axis = front[:, 0], front[:, 1]
    hand = facing(math.atan2(side[1], side[0]) - math.pi / 2)
    if opening:
        start, turned = knob, 0.0
    else:
        start, turned = hinge + turn(axis, angle) @ (knob - hinge), angle
        hand = turn(axis, 0.25 * angle) @ hand
    path = approach(stage, start, 0.10, 0.07)
    path.move(start + 0.07 * UP, 0.15, hand)
    path.move(start, 0.10)
    path.grip(0.020, CLOSED, 0.08)
    mark = path.mark()
    path.swing(hinge, axis, angle if opening else -angle, 0.60, hand=0.25)
    path.wait(0.07)
    first = path.time(mark)

    def elevation(time: float) -> float:
        arm = path.at(time).position - hinge
        return math.atan2(arm @ UP, arm @ side)

    def motion(time: float) -> Pose:
        gone = elevation(max(time, first)) - elevation(first)
        return hinge, turn(axis, turned - gone) @ front

    chest = build_thing("chest", "chest", wood=wood)
    lid = build_thing("lid", "lid", colour=colour, metal=metal)
    return Script(path).put(chest, (base, front)).move(lid, motion)


def _sliding(stage: Stage, opening: bool) -> Script:
    """A drawer that is drawn out by its handle, or shut."""
    front, base = _furniture(stage)
    out, way = front[:, 0], stage.uniform(0.11, 0.14)
    handle = base + front @ np.array([CABINET["x"] + HANDLE, 0.0, CABINET["z"] + 0.012])
    rest = base
    if not opening:
        handle, rest, way = handle + way * out, base + way * out, -way
    colour = draw(stage.rng, TRAIN_COLOURS)
    hand = facing(math.atan2(out[1], out[0]) - math.pi / 2)
    path = approach(stage, handle, 0.10, 0.07)
    path.move(handle + 0.09 * UP, 0.15, hand)
    path.move(handle, 0.12)
    path.grip(0.018, CLOSED, 0.08)
    mark = path.mark()
    path.move(handle + way * out, 0.58)
    path.wait(0.07)
    shell = build_thing("cabinet", "cabinet", wood=shapes.wood(stage.rng))
    drawer = build_thing("drawer", "drawer", colour=colour, metal=shapes.metal(stage.rng))
    motion = carried(path, (rest, front), path.time(mark))
    return Script(path).put(shell, (base, front)).move(drawer, motion)


def _furniture(stage: Stage) -> tuple[Array, Array]:
    """Rotation and place of something that opens: towards the robot and the camera."""
    angle = stage.uniform(0.5, 1.1)
    out = np.array([-math.cos(angle), stage.side * math.sin(angle), 0.0])
    front = from_rpy(0.0, 0.0, math.atan2(out[1], out[0]))
    return front, np.array([stage.uniform(0.50, 0.58), -stage.side * stage.uniform(0.02, 0.12), 0.0])


def open_(stage: Stage) -> Script:
    """A drawer is drawn out, or a lid is lifted."""
    return (_sliding if stage.rng.random() < 0.5 else _hinged)(stage, True)


def close(stage: Stage) -> Script:
    """A drawer is shut, or a lid is let down."""
    return (_sliding if stage.rng.random() < 0.5 else _hinged)(stage, False)


BEHAVIOURS: dict[str, Callable[[Stage], Script]] = {
    "close": close, "lift": lift, "lower": lower, "open": open_, "pour": pour,
    "pull": pull, "push": push, "reach": reach, "rotate": rotate, "sweep": sweep_crumbs,
}  # fmt: skip
