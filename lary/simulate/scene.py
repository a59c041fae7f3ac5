"""A room with a table, an arm and things on it: MJCF, materials by geom, camera and light."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lary.simulate import shapes
from lary.simulate.arms import Arm
from lary.simulate.behaviours import Placed
from lary.simulate.kinematics import Array, from_rpy, quaternion
from lary.simulate.shapes import Material, Thing

STATIC, MOVING = 0, 1
"""Geom groups: what stands still for a whole episode is drawn once."""


@dataclass(frozen=True)
class Room:
    """The look of one scene: surfaces, the colour of its light, and two cameras.

    A camera is its azimuth from the arm's front and its elevation in degrees, and its distance. The one of pairs is
    fixed and nearly the same in all scenes, as in CALVIN; clips look from the rooms' own sides.
    """

    table: Material
    wall: Material
    floor: Material
    camera: tuple[float, float, float]
    warmth: float
    pair_camera: tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """Camera: place (3,), the point it looks at (3,), and its vertical angle of view in radians."""

    position: Array
    target: Array
    angle: float


@dataclass(frozen=True)
class Lamp:
    """A lamp at a place (3,), the colour of its light and of the light from all around, linear (3,)."""

    position: Array
    direct: Array
    around: Array


ROOMS: dict[str, Room] = {
    "A": Room(
        Material((0.72, 0.53, 0.34), (0.54, 0.36, 0.20), "wood", 0.09, 0.12),
        Material((0.80, 0.82, 0.80), (0.74, 0.77, 0.76), "stone", 0.3),
        Material((0.45, 0.45, 0.47), (0.38, 0.38, 0.40), "checker", 0.3),
        (42, 34, 1.24), 0.04, (42.0, 34.0, 1.24),
    ),
    "B": Room(
        Material((0.86, 0.87, 0.89), (0.45, 0.56, 0.72), "checker", 0.06, 0.08),
        Material((0.60, 0.71, 0.80), (0.53, 0.64, 0.74), "stripes_x", 0.16),
        Material((0.55, 0.47, 0.38), (0.45, 0.37, 0.29), "wood", 0.12),
        (-38, 31, 1.22), 0.0, (36.0, 32.0, 1.22),
    ),
    "C": Room(
        Material((0.56, 0.56, 0.55), (0.36, 0.36, 0.38), "stone", 0.05, 0.25),
        Material((0.66, 0.36, 0.27), (0.80, 0.76, 0.70), "bricks", 0.085),
        Material((0.30, 0.33, 0.36), gloss=0.3),
        (58, 37, 1.20), 0.06, (48.0, 36.0, 1.20),
    ),
    "D": Room(
        Material((0.30, 0.46, 0.38), (0.38, 0.55, 0.45), "stripes_y", 0.11, 0.1),
        Material((0.88, 0.83, 0.72), (0.76, 0.55, 0.42), "dots", 0.13),
        Material((0.62, 0.60, 0.56), (0.50, 0.48, 0.45), "stone", 0.2),
        (-55, 40, 1.16), -0.03, (40.0, 35.0, 1.21),
    ),
}  # fmt: skip
"""Scenes A, B and C are trained on; D shares no texture with them."""


@dataclass(frozen=True)
class Scene:
    """A compiled model, its state, the material of every geom, and the mocap number of every moving thing."""

    model: Any
    data: Any
    materials: tuple[Material, ...]
    movers: Mapping[str, int]

    def place(self, name: str, position: Array, rotation: Array) -> None:
        """Put a moving thing somewhere; seen after the next kinematics."""
        number = self.movers[name]
        self.data.mocap_pos[number], self.data.mocap_quat[number] = position, quaternion(rotation)


def _numbers(values: Sequence[float] | Array) -> str:
    return " ".join(f"{float(value):.9g}" for value in values)


def _room_geoms(room: Room) -> list[tuple[str, str, Material]]:
    wall = 'type="plane" group="0" size="4 4 1"'
    leg = Material((0.25, 0.25, 0.27))
    legs = [
        (f"leg{i}", f'type="cylinder" group="0" size="0.03 0.34" pos="{x} {y} -0.40"', leg)
        for i, (x, y) in enumerate(((0.85, 0.7), (0.85, -0.7), (-0.25, 0.7), (-0.25, -0.7)))
    ]
    return [
        ("table", 'type="box" group="0" size="0.65 0.80 0.02" pos="0.30 0 -0.02"', room.table),
        ("floor", f'{wall} pos="0 0 -0.74"', room.floor),
        ("wall_back", f'{wall} pos="-0.75 0 0" xyaxes="0 1 0 0 0 1"', room.wall),
        ("wall_left", f'{wall} pos="0 1.5 0" xyaxes="1 0 0 0 0 1"', room.wall),
        ("wall_right", f'{wall} pos="0 -1.5 0" xyaxes="-1 0 0 0 0 1"', room.wall),
        *legs,
    ]


def build_scene(arm: Arm, palette: Mapping[str, Material], room: Room, placed: Sequence[Placed]) -> Scene:
    """Compile a scene. Things never collide: the scripts say where they are."""
    import mujoco

    materials: dict[str, Material] = {}
    world = []
    for name, attributes, material in _room_geoms(room):
        materials[name] = material
        world.append(f'<geom name="{name}" {attributes}/>')
    world += [_thing_xml(item, materials) for item in placed]
    xml = (
        '<mujoco><compiler angle="radian" autolimits="true"/><option gravity="0 0 0"><flag contact="disable"/></option>'
        '<default><geom contype="0" conaffinity="0" density="1000"/></default>'
        f"<worldbody>{arm.xml}{''.join(world)}</worldbody></mujoco>"
    )
    model = mujoco.MjModel.from_xml_string(xml)
    looks = []
    for number in range(model.ngeom):
        name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, number)
        looks.append(palette[name.split("_")[1]] if name.startswith("arm_") else materials[name])
    movers = {
        item.thing.name: int(model.body_mocapid[mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, item.thing.name)])
        for item in placed if item.moves
    }  # fmt: skip
    return Scene(model, mujoco.MjData(model), tuple(looks), movers)


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


def distractors(rng: np.random.Generator, kinds: Sequence[str], taken: Sequence[Array]) -> list[Placed]:
    """Up to three things at the rim of the table, away from every point (3,) where something happens."""
    result: list[Placed] = []
    points = [point[:2] for point in taken]
    for number in range(int(rng.integers(1, 4))):
        for _ in range(40):
            place = np.array([rng.uniform(0.22, 0.78), rng.uniform(-0.46, 0.46), 0.0])
            if all(float(np.hypot(*(place[:2] - point))) > 0.17 for point in points) and place[0] > 0.2:
                thing: Thing = shapes.make_thing(kinds[int(rng.integers(len(kinds)))], rng, f"extra{number}")
                result.append(Placed(thing, (place, from_rpy(0.0, 0.0, float(rng.uniform(-3, 3))))))
                points.append(place[:2])
                break
    return result


def tinted(room: Room, rng: np.random.Generator) -> Room:
    """The room in other shades, as paint and cloth differ from one day to the next."""

    def tint(material: Material) -> Material:
        factor = rng.uniform(0.7, 1.25) * rng.uniform(0.88, 1.12, 3)
        red, green, blue = (np.clip(np.stack([material.first, material.second]) * factor, 0.02, 0.95)).T.tolist()
        return replace(material, first=(red[0], green[0], blue[0]), second=(red[1], green[1], blue[1]))

    return replace(room, table=tint(room.table), wall=tint(room.wall), floor=tint(room.floor))


def view_of(room: Room, rng: np.random.Generator) -> View:
    """The room's camera, nudged by a few degrees and centimetres."""
    azimuth, elevation, distance = room.camera
    azimuth = math.radians(azimuth) + float(rng.normal(0, 0.05))
    elevation = math.radians(elevation) + float(rng.normal(0, 0.03))
    return _look(azimuth, elevation, distance * float(rng.uniform(0.95, 1.06)), rng.normal(0, 0.012, 3))


def fixed_view(room: Room, rng: np.random.Generator) -> View:
    """The camera that records poses in a room, nudged by what a tripod gives way."""
    azimuth, elevation, distance = room.pair_camera
    return _look(math.radians(azimuth), math.radians(elevation), distance, rng.normal(0, 0.004, 3))


def _look(azimuth: float, elevation: float, distance: float, shift: Array) -> View:
    target = np.array([0.43, 0.0, 0.125]) + shift
    flat = math.cos(elevation)
    offset = np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])
    return View(target + distance * offset, target, math.radians(36.0))


def lamp_of(room: Room, view: View, rng: np.random.Generator) -> Lamp:
    """A lamp above and to one side of the camera, brighter or dimmer by the draw."""
    side = math.copysign(1.0, view.position[1]) * float(rng.choice([-1.0, 0.6]))
    position = np.array([rng.uniform(0.5, 1.0), side * rng.uniform(0.5, 1.1), rng.uniform(1.5, 2.0)])
    tint = np.array([1 + room.warmth, 1.0, 1 - room.warmth])
    return Lamp(position, tint * float(rng.uniform(0.80, 1.05)), tint[::-1] * float(rng.uniform(0.30, 0.42)))
