"""A room with a table, an arm and things on it: MJCF, materials, camera and light."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from lary.arrays import Doubles
from lary.simulate import shapes
from lary.simulate.behaviours import Placed
from lary.simulate.kinematics import UP, quaternion, turn
from lary.simulate.shapes import SCENERY, Colour, Material
from lary.types import JsonDict

STATIC, MOVING = 0, 1
"""Geom groups: what stands still for a whole episode is drawn once."""


@dataclass(frozen=True)
class Room:
    """The look of one scene: its surfaces, light and two cameras.

    Attributes:
        looks: materials of ``table``, ``wall`` and ``floor``.
        camera: azimuth from the arm's front, elevation (degrees), distance.
        warmth: how much redder than white the lamp is; negative for bluer.
        pair_camera: that of pairs, nearly the same in all rooms.
    """

    looks: Mapping[str, Material]
    camera: tuple[float, float, float]
    warmth: float
    pair_camera: tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """A camera: its position and target (3,), and its angle of view in radians."""

    position: Doubles
    target: Doubles
    angle: float


@dataclass(frozen=True)
class Lamp:
    """A lamp's position (3,), its colour and that of ambient light, linear (3,)."""

    position: Doubles
    direct: Doubles
    around: Doubles


@dataclass(frozen=True)
class Arm:
    """One kind of arm, whose name is the robot type.

    Names of geoms in `xml` (MJCF) hold roles, as in ``arm_main_3``, of which
    palettes have materials; `home` is the posture that it is drawn to, seven
    joints.
    """

    xml: str
    home: tuple[float, ...]
    palettes: Sequence[Mapping[str, Material]]
    unseen_palette: Mapping[str, Material]


def _palette(main: Colour, accent: Colour) -> dict[str, Material]:
    painted = {"main": Material(main, gloss=0.45), "accent": Material(accent, gloss=0.45)}
    return painted | BARE


def _materials(entry: Mapping[str, Any]) -> JsonDict:
    return {part: Material(**look) for part, look in entry.items()}


BARE = _materials(SCENERY["bare"])
"""Materials of the parts of arms and tables that are not painted, by role."""
_MJCF = {name: Path(__file__).with_name(f"{name}.xml").read_text("utf-8") for name in ("room", *SCENERY["arms"])}
ARMS = {
    name: Arm(
        _MJCF[name], entry["home"], [_palette(*pair) for pair in entry["palettes"]], _palette(*entry["unseen_palette"])
    )
    for name, entry in SCENERY["arms"].items()
}
"""Two arms of seven joints and a gripper, each with a file of MJCF."""
ROOMS = {name: Room(_materials(entry["looks"]), **entry["light"]) for name, entry in SCENERY["rooms"].items()}
"""Pairs train in A, B and C and validate in D, which looks unlike them."""


@dataclass(frozen=True)
class Scene:
    """A compiled model, its state, materials by geom, mocap ids of what moves."""

    model: Any
    data: Any
    materials: tuple[Material, ...]
    movers: Mapping[str, int]

    def place(self, name: str, position: Doubles, rotation: Doubles) -> None:
        """Put a moving thing somewhere, by the next `mj_kinematics`."""
        number = self.movers[name]
        self.data.mocap_pos[number], self.data.mocap_quat[number] = position, quaternion(rotation)


def _numbers(values: Sequence[float] | Doubles) -> str:
    return " ".join(f"{float(value):.9g}" for value in values)


def build_scene(arm: Arm, palette: Mapping[str, Material], room: Room, placed: Sequence[Placed]) -> Scene:
    """Compile a scene, without contacts: scripts say where things are."""
    import mujoco

    materials: dict[str, Material] = {}
    things = "".join(_thing_xml(item, materials) for item in placed)
    model = mujoco.MjModel.from_xml_string(_MJCF["room"].format(arm=arm.xml, things=things))
    fixed = {**room.looks, **palette}
    names = [model.geom(number).name for number in range(model.ngeom)]
    looks = tuple(materials[name] if name in materials else fixed[name.split("_")[1]] for name in names)
    moving = [item.thing.name for item in placed if item.moves]
    movers = {name: int(model.body(name).mocapid[0]) for name in moving}
    return Scene(model, mujoco.MjData(model), looks, movers)


def _thing_xml(item: Placed, materials: dict[str, Material]) -> str:
    group = MOVING if item.moves else STATIC
    parts = []
    for number, geom in enumerate(item.thing.geoms):
        name = f"{item.thing.name}.{number}"
        materials[name] = geom.material
        parts.append(
            f'<geom name="{name}" type="{geom.kind}" group="{group}" size="{_numbers(geom.size)}" '
            f'pos="{_numbers(geom.pos)}" euler="{_numbers(geom.euler)}"/>'
        )
    mocap = ' mocap="true"' if item.moves else ""
    position, rotation = item.pose
    place = f'pos="{_numbers(position)}" quat="{_numbers(quaternion(rotation))}"'
    return f'<body name="{item.thing.name}" {place}{mocap}>{"".join(parts)}</body>'


def distractors(rng: Generator, kinds: Sequence[str], taken: Sequence[Doubles]) -> list[Placed]:
    """Draw one to three things on the table, away from `taken` points (3,)."""
    result = []
    points = [point[:2] for point in taken]
    for number in range(int(rng.integers(1, 4))):
        for _ in range(40):
            spot = rng.uniform((0.22, -0.46), (0.78, 0.46))
            if all(np.hypot(*(spot - point)) > 0.17 for point in points):
                thing = shapes.make_thing(shapes.draw(rng, kinds), rng, f"extra{number}")
                pose = np.append(spot, 0.0), turn(UP, rng.uniform(-3, 3))
                result.append(Placed(thing, pose))
                points.append(spot)
                break
    return result


def tinted(room: Room, rng: Generator) -> Room:
    """The room in drawn shades."""

    def tint(material: Material) -> Material:
        factor = rng.uniform(0.7, 1.25) * rng.uniform(0.88, 1.12, 3)
        colours = np.stack([material.first, material.second]) * factor
        first, second = np.clip(colours, 0.02, 0.95).tolist()
        return replace(material, first=tuple(first), second=tuple(second))

    return replace(room, looks={name: tint(look) for name, look in room.looks.items()})


def view_of(room: Room, rng: Generator, *, fixed: bool) -> View:
    """Draw a room's camera, moved a little, a `fixed` one less."""
    *angles, distance = room.pair_camera if fixed else room.camera
    azimuth, elevation = map(math.radians, angles)
    shake = 0.004
    if not fixed:
        azimuth += rng.normal(0, 0.05)
        elevation += rng.normal(0, 0.03)
        distance *= rng.uniform(0.95, 1.06)
        shake = 0.012
    target = np.array([0.43, 0.0, 0.125]) + rng.normal(0, shake, 3)
    flat = math.cos(elevation)
    offset = np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])
    return View(target + distance * offset, target, math.radians(36.0))


def lamp_of(room: Room, view: View, rng: Generator) -> Lamp:
    """Draw a lamp above and beside the camera."""
    side = math.copysign(1.0, view.position[1]) * float(rng.choice([-1.0, 0.6]))
    position = rng.uniform((0.5, 0.5, 1.5), (1.0, 1.1, 2.0)) * (1, side, 1)
    tint = np.array([1 + room.warmth, 1.0, 1 - room.warmth])
    return Lamp(position, tint * rng.uniform(0.80, 1.05), tint[::-1] * rng.uniform(0.30, 0.42))
