"""The verbs: what the arm does, and what happens to the objects.

Every behaviour draws its own situation and returns a `Script`. No physics is
simulated: objects follow the tool by the geometry of the act. Units are
metres, radians, and shares of time. The order of the draws decides the data
set's bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.random import Generator

from lary.arrays import Doubles
from lary.simulate import shapes
from lary.simulate.kinematics import CLOSED, OPEN, UP, Motion, Path, Pose, carried, turn
from lary.simulate.shapes import Thing, build_thing, draw, paint

BEADS = 20
CABINET, CHEST = (shapes.SCENERY["things"][kind]["sizes"] for kind in ("cabinet", "chest"))
"""Half sizes; cabinets open to +x, lids of chests turn about the edge at -x."""
HANDLE = 0.042
"""Metres between the handle and the front of a drawer, as in ``scenery.json``."""
FINGER = 0.014
"""Metres from the tool's centre to the outside of the closed fingers."""


@dataclass(frozen=True)
class Placed:
    """A thing and its pose; if it `moves`, the script has a motion of its name."""

    thing: Thing
    pose: Pose
    moves: bool = False


@dataclass
class Script:
    """An episode before it is drawn."""

    path: Path
    placed: list[Placed] = field(default_factory=list)
    motions: dict[str, Motion] = field(default_factory=dict)

    def put(self, thing: Thing, pose: Pose) -> Script:
        self.placed.append(Placed(thing, pose))
        return self

    def move(self, thing: Thing, motion: Motion) -> Script:
        self.placed.append(Placed(thing, motion(0.0), moves=True))
        self.motions[thing.name] = motion
        return self


@dataclass(frozen=True)
class Stage:
    """What a behaviour draws from; `side` is -1 or 1, the camera's side along y."""

    rng: Generator
    kinds: Sequence[str]
    side: float

    def uniform(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)


def spot(stage: Stage, low: float = 0.40, high: float = 0.56, y: float = 0.16) -> Doubles:
    """Draw a place (3,) on the table: x from `low` to `high`, y within `y` of 0."""
    return np.append(stage.rng.uniform((low, -y), (high, y)), 0.0)


def some_thing(stage: Stage, rolls: bool = True) -> tuple[Thing, Doubles]:
    """Draw an object and its rotation; fingers would hide one that `rolls`."""
    while True:
        thing = shapes.make_thing(draw(stage.rng, stage.kinds), stage.rng)
        if rolls or not thing.rolls:
            return thing, turn(UP, stage.uniform(-0.7, 0.7))


def approach(stage: Stage, away: Doubles, distance: float, width: float = 0.10, command: float = OPEN) -> Path:
    """A path that starts in the air, `distance` or more beside `away`."""
    yaw = stage.uniform(-0.5, 0.5)
    for _ in range(100):
        place = stage.rng.uniform((0.33, -0.28, 0.20), (0.52, 0.28, 0.31))
        if np.hypot(*(place - away)[:2]) >= distance:
            break
    return Path(place, turn(UP, yaw), width, command, stage.rng)


def grasp(path: Path, place: Doubles, hand: Doubles, width: float, rise: float, *shares: float) -> int:
    """Go over a place, down, and close; returns the mark at which the hand holds."""
    path.move(place + rise * UP, shares[0], hand)
    path.move(place, shares[1])
    path.grip(width, CLOSED, shares[2])
    return path.mark()


def held(stage: Stage, thing: Thing, pose: Pose) -> Path:
    """A path that starts with the object in the hand."""
    return Path(pose[0] + thing.height * UP, pose[1], thing.grip, CLOSED, stage.rng)


def carry(path: Path, thing: Thing, rest: Pose, first: int = 0, last: int | None = None) -> Script:
    """A script of an object that moves with the tool between two marks."""
    end = 1.0 if last is None else path.time(last)
    return Script(path).move(thing, carried(path, rest, path.time(first), end))


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
    place, length = spot(stage, 0.38, 0.43, 0.12), stage.uniform(0.16, 0.22)
    thing, rotation = some_thing(stage)
    hand = turn(UP, stage.uniform(-0.45, 0.45))
    ahead = hand[:, 0]
    contact = place - (thing.radius + FINGER) * ahead + 0.035 * UP
    path = approach(stage, place, 0.15, width=0.0, command=CLOSED)
    path.move(contact - 0.03 * ahead + 0.08 * UP, 0.25, hand)
    path.move(contact - 0.02 * ahead, 0.15)
    path.move(contact + length * ahead, 0.55)
    path.wait(0.05)

    def motion(time: float) -> Pose:
        # At first the hand may be beyond the object, high above the table.
        gone = max(0.0, float((path.at(time).position - contact) @ ahead)) if time > 0.2 else 0.0
        if not thing.rolls:
            return place + gone * ahead, rotation
        rolled = turn(np.cross(UP, ahead), gone / thing.radius) @ rotation
        # A ball turns about its centre; its origin is the point it stood on.
        return place + gone * ahead + thing.radius * (UP - rolled @ UP), rolled

    return Script(path).move(thing, motion)


def take(stage: Stage, place: Doubles, distance: float, draw_way: Callable[[], Doubles], *shares: float) -> Script:
    """The hand grasps an object and moves it along a vector (3,), drawn after that."""
    thing, rotation = some_thing(stage)
    path = approach(stage, place, distance)
    mark = grasp(path, place + thing.height * UP, rotation, thing.grip, 0.10, *shares)
    path.shift(draw_way(), 0.55)
    path.wait(0.05)
    return carry(path, thing, (place, rotation), mark)


def pull(stage: Stage) -> Script:
    """The hand takes an object and drags it over the table towards the robot."""
    place, length = spot(stage, 0.56, 0.62, 0.14), stage.uniform(0.17, 0.23)
    return take(stage, place, 0.15, lambda: -length * turn(UP, stage.uniform(-0.4, 0.4))[:, 0], 0.20, 0.12, 0.08)


def raised(stage: Stage) -> Doubles:
    """Draw a displacement (3,) up from the table, not quite upright."""
    return stage.rng.uniform((-0.04, -0.04, 0.22), (0.04, 0.04, 0.30))


def lift(stage: Stage) -> Script:
    """The hand takes an object and raises it."""
    return take(stage, spot(stage), 0.10, lambda: raised(stage), 0.16, 0.14, 0.10)


def lower(stage: Stage) -> Script:
    """A held object is put down on the table and let go."""
    place = spot(stage)
    thing, rotation = some_thing(stage, rolls=False)
    above = place + raised(stage), rotation
    path = held(stage, thing, above)
    path.wait(0.08)
    path.move(place + thing.height * UP, 0.60)
    mark = path.mark()
    path.grip(0.10, OPEN, 0.10)
    path.shift(0.06 * UP, 0.20)
    return carry(path, thing, above, last=mark)


def rotate(stage: Stage) -> Script:
    """A held object is turned about the vertical, by about a third of a turn."""
    place = spot(stage) + stage.uniform(0.05, 0.14) * UP
    angle = float(stage.uniform(1.7, 2.7) * stage.rng.choice([-1.0, 1.0]))
    thing, _ = some_thing(stage, rolls=False)
    # Half of the turn to each side keeps the wrist away from its limits.
    pose = place, turn(UP, -angle / 2)
    path = held(stage, thing, pose)
    path.wait(0.08)
    path.swing(place, UP, angle, 0.84)
    path.wait(0.08)
    return carry(path, thing, pose)


def sweep_crumbs(stage: Stage) -> Script:
    """A brush in the hand goes to the camera's side and gathers small pieces."""
    tool = build_thing("brush", colour=paint(stage.rng))
    centre = spot(stage, 0.42, 0.52, 0.04)
    hand = turn(UP, stage.uniform(-0.45, 0.45))
    across, along = stage.side * hand[:, 1], hand[:, 0]
    begin = centre - stage.uniform(0.19, 0.22) * across + 0.09 * UP
    path = held(stage, tool, (begin, hand))
    path.shift(-0.09 * UP, 0.15)
    path.shift(stage.uniform(0.36, 0.40) * across, 0.78)
    path.wait(0.07)
    script = carry(path, tool, (begin, hand))
    for number in range(int(stage.rng.integers(8, 12))):
        piece = shapes.crumb(f"crumb{number}", stage.rng)
        where = stage.uniform(-0.13, 0.12)
        start = centre + where * across + stage.uniform(-0.065, 0.065) * along
        # Pieces pile up before the brush at different distances.
        slack = tool.radius + piece.radius + stage.rng.exponential(0.012)
        spin = turn(UP, stage.uniform(-1.5, 1.5))

        # Defaults keep these values: motions run after the loop.
        def motion(
            time: float, where: float = where, start: Doubles = start, slack: float = slack, spin: Doubles = spin
        ) -> Pose:
            gone = max(0.0, float((path.at(time).position - centre) @ across) + slack - where)
            return start + gone * across, turn(UP, 6.0 * gone) @ spin

        script.move(piece, motion)
    return script


def pour(stage: Stage) -> Script:
    """A mug is raised by its handle and tilted: beads fall into a bowl."""
    rng = stage.rng
    towards = float(rng.choice([-1.0, 1.0]))
    content, colour = paint(rng), paint(rng)
    cup = build_thing("mug", "target", colour=colour, pale=draw(rng, shapes.PALE), content=content)
    target = build_thing("bowl", colour=paint(rng))
    upright = turn(UP, stage.uniform(-0.2, 0.2))
    place = spot(stage, 0.46, 0.54, 0.02) - 0.13 * towards * np.array([0, 1.0, 0])
    across, along = towards * upright[:, 1], upright[:, 0]
    dish = place + stage.uniform(0.24, 0.27) * across
    # The middle of the mug's handle, as in ``scenery.json``.
    hand = place + 0.055 * UP - 0.072 * along
    path = Path(hand, upright @ turn((0, 1, 0), -stage.uniform(0.8, 1.0)), 0.020, CLOSED, rng)
    path.move(hand + 0.17 * UP, 0.17)
    path.move(dish + hand - place - 0.085 * across + 0.17 * UP, 0.23)
    begin = path.mark()
    path.swing(path.state.position + 0.072 * along, along, -towards * stage.uniform(1.9, 2.1), 0.45)
    end = path.mark()
    path.wait(0.15)
    script = carry(path, cup, (place, upright))
    script.put(target, (dish, np.eye(3)))
    first, last = path.time(begin), path.time(end)
    for number in range(BEADS):
        released = first + (0.40 + 0.60 * number / BEADS) * (last - first)
        radius, turned = 0.052 * math.sqrt(rng.random()), stage.uniform(0, 2 * math.pi)
        # The second half of the beads comes to rest on the first.
        height = 0.064 + 0.012 * (2 * number > BEADS)
        landing = dish + np.array([radius * math.cos(turned), radius * math.sin(turned), height])
        mouth = np.array([stage.uniform(-0.02, 0.02), towards * stage.uniform(0.015, 0.03), 0.115])
        bead = build_thing("bead", f"bead{number}", colour=content)
        script.move(bead, _poured(script.motions["target"], mouth, released, landing))
    return script


def _poured(mug_motion: Motion, mouth: Doubles, released: float, landing: Doubles) -> Motion:
    """The motion of a bead from `mouth` (3,), in the mug's frame, to `landing` (3,)."""
    position, rotation = mug_motion(released)
    begin = position + rotation @ mouth

    def motion(time: float) -> Pose:
        if time < released:
            place, turned = mug_motion(time)
            return place + turned @ (0.4 * mouth), np.eye(3)
        fallen = min(1.0, (time - released) / 0.09)
        x, y, _ = begin + min(1.0, 1.5 * fallen) * (landing - begin)
        return np.array([x, y, begin[2] + fallen**2 * (landing[2] - begin[2])]), np.eye(3)

    return motion


def _hinged(stage: Stage, opening: bool) -> Script:
    x, z = CHEST["x"], CHEST["z"]
    base, front, hand = _furniture(stage)
    base = base - np.array([0.08, 0.0, 0.0])
    angle = -stage.uniform(1.4, 1.7)
    hinge = base + front @ np.array([-x, 0.0, 2 * z])
    colour, metal = paint(stage.rng), shapes.metal(stage.rng)
    chest = build_thing("chest", wood=shapes.wood(stage.rng))
    lid = build_thing("lid", colour=colour, metal=metal)
    # The knob of the lid, as in ``scenery.json``.
    start = hinge + front @ np.array([2 * x - 0.025, 0.0, 0.030])
    side, axis = front[:, 0], front[:, 1]
    turned = 0.0
    if not opening:
        turned, angle = angle, -angle
        start = hinge + turn(axis, turned) @ (start - hinge)
        hand = turn(axis, 0.25 * turned) @ hand
    path = approach(stage, start, 0.10, 0.07)
    mark = grasp(path, start, hand, 0.020, 0.07, 0.15, 0.10, 0.08)
    # The hand turns a quarter as far as the lid: fingers slip.
    path.swing(hinge, axis, angle, 0.60, hand=0.25)
    path.wait(0.07)
    first = path.time(mark)

    def elevation(time: float) -> float:
        arm = path.at(time).position - hinge
        return math.atan2(arm @ UP, arm @ side)

    def motion(time: float) -> Pose:
        gone = elevation(max(time, first)) - elevation(first)
        return hinge, turn(axis, turned - gone) @ front

    return Script(path).put(chest, (base, front)).move(lid, motion)


def _sliding(stage: Stage, opening: bool) -> Script:
    base, front, hand = _furniture(stage)
    out, way = front[:, 0], stage.uniform(0.11, 0.14)
    handle = base + front @ np.array([CABINET["x"] + HANDLE, 0.0, CABINET["z"] + 0.012])
    rest = base
    if not opening:
        handle, rest, way = handle + way * out, base + way * out, -way
    colour = paint(stage.rng)
    path = approach(stage, handle, 0.10, 0.07)
    mark = grasp(path, handle, hand, 0.018, 0.09, 0.15, 0.12, 0.08)
    path.move(handle + way * out, 0.58)
    path.wait(0.07)
    shell = build_thing("cabinet", wood=shapes.wood(stage.rng))
    drawer = build_thing("drawer", colour=colour, metal=shapes.metal(stage.rng))
    return carry(path, drawer, (rest, front), mark).put(shell, (base, front))


def _furniture(stage: Stage) -> tuple[Doubles, Doubles, Doubles]:
    """Draw place and rotation of furniture, facing robot and camera, and a hand's rotation."""
    angle = stage.uniform(0.5, 1.1)
    front = turn(UP, math.atan2(stage.side * math.sin(angle), -math.cos(angle)))
    place = np.array([stage.uniform(0.50, 0.58), -stage.side * stage.uniform(0.02, 0.12), 0.0])
    # Folded to a quarter turn: fingers look the same after half a turn.
    across = math.atan2(front[1, 0], front[0, 0]) - math.pi / 2
    return place, front, turn(UP, (across + math.pi / 2) % math.pi - math.pi / 2)


def use_furniture(stage: Stage, *, opening: bool) -> Script:
    """A drawer is drawn out or shut, or a lid is lifted or let down."""
    return (_sliding if stage.rng.random() < 0.5 else _hinged)(stage, opening)


BEHAVIOURS: dict[str, Callable[[Stage], Script]] = {
    "close": partial(use_furniture, opening=False),
    "lift": lift,
    "lower": lower,
    "open": partial(use_furniture, opening=True),
    "pour": pour,
    "pull": pull,
    "push": push,
    "reach": reach,
    "rotate": rotate,
    "sweep": sweep_crumbs,
}
