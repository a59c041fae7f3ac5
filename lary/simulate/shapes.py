"""Objects made of primitive shapes, with procedural patterns.

The shapes and colours are in ``scenery.json``. The origin of a thing is the
centre of its underside (of a bead its centre), so that it stands at (x, y, 0);
sizes are in metres and, as in MJCF, half lengths.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.random import PCG64, Generator

from lary.arrays import Doubles
from lary.data.spec import tupled
from lary.types import JsonDict

Option = TypeVar("Option")
Colour = tuple[float, ...]


@dataclass(frozen=True)
class Material:
    """Two colours (sRGB, 0 to 1), the pattern that mixes them, its period and gloss."""

    first: Colour
    second: Colour = (0.0, 0.0, 0.0)
    pattern: str = "plain"
    period: float = 0.05
    gloss: float = 0.15


@dataclass(frozen=True)
class Geom:
    """One primitive: kind and size as in MJCF, and its pose in the thing."""

    kind: str
    size: tuple[float, ...]
    material: Material
    pos: tuple[float, ...] = (0.0, 0.0, 0.0)
    euler: tuple[float, ...] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Thing:
    """An object: primitives, opening and height of a grip, radius on the table."""

    name: str
    geoms: tuple[Geom, ...]
    grip: float = 0.05
    height: float = 0.04
    radius: float = 0.04
    rolls: bool = False


SCENERY: JsonDict = tupled(json.loads(Path(__file__).with_name("scenery.json").read_bytes()))
"""Shapes and colours; ``about`` says how sizes and materials are written."""
TRAIN_COLOURS: tuple[Colour, ...] = SCENERY["colours"]["train"]
UNSEEN_COLOURS: tuple[Colour, ...] = SCENERY["colours"]["unseen"]
PALE: tuple[Colour, ...] = SCENERY["colours"]["pale"]
TRAIN_THINGS = ("block", "can", "ball", "mug", "bottle")
UNSEEN_THINGS = ("tower", "cross", "pear")
CONTENT: Colour = (0.20, 0.12, 0.08)
"""Colour of what is in a mug, unless beads are poured from it."""
SIZE = re.compile(r"(?:(-?[\d.]+)\*)?([a-z])([+-][\d.]+)?")


def draw(rng: Generator, options: Sequence[Option]) -> Option:
    return options[int(rng.integers(len(options)))]


def wood(rng: Generator) -> Material:
    first, second = draw(rng, SCENERY["colours"]["wood"])
    return Material(first, second, "wood", 0.03, 0.15)


def paint(rng: Generator) -> Colour:
    return draw(rng, TRAIN_COLOURS)


def metal(rng: Generator) -> Material:
    return Material(draw(rng, SCENERY["colours"]["metal"]), gloss=0.7)


def build_thing(kind: str, name: str = "", scale: float = 1.0, **looks: Any) -> Thing:
    """A thing of ``scenery.json``, called by its kind; `looks` are colours and materials by name."""
    entry = SCENERY["things"][kind]
    sizes: dict[str, float] = {"s": scale, **{letter: size * scale for letter, size in entry.get("sizes", {}).items()}}

    def number(value: float | str) -> float:
        found = SIZE.fullmatch(str(value))
        if found is None:
            return float(value)
        factor, letter, offset = found.groups()
        return float(factor or 1) * sizes[letter] + float(offset or 0)

    def material(value: str | JsonDict) -> Material:
        if isinstance(value, str):
            look: Material = looks[value]
            return look
        colours: JsonDict = {part: looks.get(value[part], value[part]) for part in ("first", "second") if part in value}
        return Material(**value | colours | {"period": number(value.get("period", Material.period))})

    geoms = []
    for shape, size, look, *places in entry["geoms"]:
        posed = (tuple(map(number, place)) for place in places)
        geoms.append(Geom(shape, tuple(map(number, size)), material(look), *posed))
    grips = {part: number(entry[part]) for part in ("grip", "height", "radius") if part in entry}
    return Thing(name or kind, tuple(geoms), **grips, rolls=entry.get("rolls", False))


def make_thing(kind: str, rng: Generator, name: str = "target") -> Thing:
    """Draw size and colours of a kind of TRAIN_THINGS or UNSEEN_THINGS."""
    colour = draw(rng, UNSEEN_COLOURS if kind in UNSEEN_THINGS else TRAIN_COLOURS)
    pale = draw(rng, PALE)
    scale = SCENERY["things"][kind].get("scale", 1.0) * rng.uniform(1.0, 1.2)
    return build_thing(kind, name, scale, colour=colour, pale=pale, content=CONTENT)


def crumb(name: str, rng: Generator) -> Thing:
    colour = paint(rng)
    half = rng.uniform(0.011, 0.016)
    return build_thing("round crumb" if rng.random() < 0.5 else "square crumb", name, half, colour=colour)


# Patterns: share of the second colour at a point in a primitive's frame

_LATTICE = Generator(PCG64(20260611)).random((64, 64))
Pattern = Callable[[Doubles, Doubles], Doubles]


def noise(u: Doubles, v: Doubles) -> Doubles:
    """Smooth value noise in [0, 1] with period 64 and a feature size of 1."""
    i, j = np.floor(u), np.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    left, top = i.astype(np.int64) & 63, j.astype(np.int64) & 63
    right, bottom = (left + 1) & 63, (top + 1) & 63
    low = _LATTICE[left, top] * (1 - a) + _LATTICE[right, top] * a
    return np.asarray(low * (1 - b) + (_LATTICE[left, bottom] * (1 - a) + _LATTICE[right, bottom] * a) * b)


def _edge(wave: Doubles, sharpness: float) -> Doubles:
    return np.clip(0.5 + sharpness * wave, 0.0, 1.0)


def _stripes(axis: int) -> Pattern:
    return lambda p, period: _edge(np.sin(2 * np.pi * p[:, axis] / period), 4.0)


def _checker(p: Doubles, period: Doubles) -> Doubles:
    across, along, _ = np.sin(np.pi * p.T / period + 0.4)
    return _edge(across * along, 8.0)


def _wood(p: Doubles, period: Doubles) -> Doubles:
    along, across = p[:, 0], p[:, 1] + 0.7 * p[:, 2]
    bend = noise(along * 5 + 7, across * 9 + 3)
    rings = (across + 0.035 * bend) / period
    grain = noise(along * 12, across * 260)
    return 0.55 * (rings - np.floor(rings)) ** 2 + 0.30 * grain + 0.15 * bend


def _stone(p: Doubles, period: Doubles) -> Doubles:
    u, v = (p[:, 0] + 0.6 * p[:, 2]) / period, (p[:, 1] + 0.5 * p[:, 2]) / period
    return 0.55 * noise(u, v) + 0.30 * noise(3.1 * u, 3.1 * v) + 0.15 * noise(9.7 * u, 9.7 * v)


def _bricks(p: Doubles, period: Doubles) -> Doubles:
    v = p[:, 1] / period
    row = np.floor(v)
    u = p[:, 0] / (2.4 * period) + 0.5 * (row % 2)
    column = np.floor(u)
    mortar = np.minimum(np.minimum(u - column, 1 - u + column) * 2.4, np.minimum(v - row, 1 - v + row))
    return np.clip(1.0 - (mortar - 0.03) * 25, 0, 1) * 0.8 + 0.2 * noise(column * 7.3, row * 5.1)


def _dots(p: Doubles, period: Doubles) -> Doubles:
    v = p[:, 1] / period
    row = np.floor(v)
    u = p[:, 0] / period + 0.5 * (row % 2)
    return np.clip((0.26 - np.hypot(u - np.floor(u) - 0.5, v - row - 0.5)) * 12, 0, 1)


PATTERNS: dict[str, Pattern] = {
    "stripes_x": _stripes(0),
    "stripes_y": _stripes(1),
    "stripes_z": _stripes(2),
    "sectors": lambda p, period: _edge(np.sin(period * np.arctan2(p[:, 1], p[:, 0])), 6.0),
    "bands": lambda p, period: _edge(0.35 - np.abs(p[:, 2] / period), 20.0),
    "checker": _checker,
    "wood": _wood,
    "stone": _stone,
    "bricks": _bricks,
    "dots": _dots,
}
"""Pattern by name: points (M, 3), periods (M,) -> share (M,) of the 2nd colour.

Both are in metres, but the period of ``sectors`` is their number; that of
``bands`` the half height of a primitive with a belt.
"""
