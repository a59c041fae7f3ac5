"""Objects made of primitive shapes, with procedural patterns: what is on the table, held, opened, poured and swept.

The origin of a thing is the centre of its underside, so that it stands at (x, y, 0); sizes in metres, as MJCF counts
them (half lengths).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lary.simulate.kinematics import Array

Option = TypeVar("Option")
Colour = tuple[float, float, float]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """Two colours (sRGB, 0..1), the pattern that mixes them, its period in metres, and how much it shines."""

    first: Colour
    second: Colour = (0.0, 0.0, 0.0)
    pattern: str = "plain"
    period: float = 0.05
    gloss: float = 0.15


@dataclass(frozen=True)
class Geom:
    """One primitive: kind and size as in MJCF, place in the frame of its thing, Euler angles in radians."""

    kind: str
    size: tuple[float, ...]
    material: Material
    pos: Triple = (0.0, 0.0, 0.0)
    euler: Triple = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Thing:
    """An object: its primitives, the opening that grips it, the height to grip it at, and its radius on the table."""

    name: str
    geoms: tuple[Geom, ...]
    grip: float = 0.05
    height: float = 0.04
    radius: float = 0.04
    rolls: bool = False


TRAIN_COLOURS: tuple[Colour, ...] = (
    (0.80, 0.16, 0.14), (0.13, 0.33, 0.72), (0.95, 0.75, 0.12),
    (0.16, 0.55, 0.28), (0.90, 0.45, 0.10), (0.10, 0.60, 0.62),
)  # fmt: skip
UNSEEN_COLOURS: tuple[Colour, ...] = ((0.85, 0.25, 0.60), (0.45, 0.22, 0.65), (0.55, 0.80, 0.20))
PALE: tuple[Colour, ...] = ((0.95, 0.93, 0.88), (0.88, 0.90, 0.93), (0.97, 0.88, 0.75))
TRAIN_THINGS = ("block", "can", "ball", "mug", "bottle")
UNSEEN_THINGS = ("tower", "cross", "pear")


WOODS: tuple[tuple[Colour, Colour], ...] = (
    ((0.66, 0.46, 0.28), (0.50, 0.32, 0.18)), ((0.85, 0.80, 0.72), (0.75, 0.68, 0.58)),
    ((0.42, 0.28, 0.20), (0.30, 0.19, 0.13)),
)  # fmt: skip
METALS: tuple[Colour, ...] = ((0.85, 0.85, 0.87), (0.20, 0.20, 0.22), (0.85, 0.68, 0.25))


def draw(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of some options, drawn."""
    return options[int(rng.integers(len(options)))]


def wood(rng: np.random.Generator) -> Material:
    """The wood of furniture."""
    return Material(*draw(rng, WOODS), "wood", 0.03, 0.15)


def metal(rng: np.random.Generator) -> Material:
    """The metal of knobs and handles."""
    return Material(draw(rng, METALS), gloss=0.7)


def make_thing(kind: str, rng: np.random.Generator, name: str = "target") -> Thing:
    """An object of a kind of TRAIN_THINGS or UNSEEN_THINGS, with drawn sizes, colours and patterns."""
    colours = UNSEEN_COLOURS if kind in UNSEEN_THINGS else TRAIN_COLOURS
    colour, pale = draw(rng, colours), draw(rng, PALE)
    scale = float(rng.uniform(1.0, 1.2))
    if kind == "mug":
        return mug(name, colour, pale, 0.9 * scale)
    makers = {"block": _block, "can": _can, "ball": _ball, "bottle": _bottle, "tower": _tower, "cross": _cross}
    return {**makers, "pear": _pear}[kind](name, colour, pale, scale)


def _block(name: str, colour: Colour, pale: Colour, scale: float) -> Thing:
    a, b, c = 0.055 * scale, 0.032 * scale, 0.038 * scale
    body = Geom("box", (a, b, c), Material(colour, pale, "stripes_x", 0.032 * scale), (0, 0, c))
    return Thing(name, (body,), grip=2 * b, height=1.55 * c, radius=0.9 * a)


def _can(name: str, colour: Colour, pale: Colour, scale: float) -> Thing:
    r, h = 0.034 * scale, 0.055 * scale
    metal = Material((0.78, 0.79, 0.80), gloss=0.5)
    geoms = (
        Geom("cylinder", (r, h), Material(colour, pale, "sectors", 4.0, 0.4), (0, 0, h)),
        Geom("cylinder", (0.93 * r, h + 0.003), metal, (0, 0, h)),
    )
    return Thing(name, geoms, grip=2 * r, height=1.75 * h, radius=r)


def _ball(name: str, colour: Colour, pale: Colour, scale: float) -> Thing:
    r = 0.038 * scale
    body = Geom("sphere", (r,), Material(colour, pale, "sectors", 3.0, 0.5), (0, 0, r))
    return Thing(name, (body,), grip=2 * r, height=r, radius=r, rolls=True)


def mug(name: str, colour: Colour, pale: Colour, scale: float, content: Colour = (0.20, 0.12, 0.08)) -> Thing:
    """A mug whose handle points to -x; the content shows as a disc inside the rim."""
    r, h = 0.042 * scale, 0.055 * scale
    glaze = Material(colour, pale, "bands", 0.055 * scale, 0.5)
    plain = Material(colour, gloss=0.5)
    bar = r + 0.030
    geoms = (
        Geom("cylinder", (r, h), glaze, (0, 0, h)),
        Geom("cylinder", (0.86 * r, 0.004), Material(content, gloss=0.1), (0, 0, 2 * h - 0.0025)),
        Geom("capsule", (0.007, 0.024), plain, (-bar, 0, h)),
        Geom("capsule", (0.007, 0.018), plain, (-bar + 0.016, 0, h + 0.026), (0, math.pi / 2, 0)),
        Geom("capsule", (0.007, 0.018), plain, (-bar + 0.016, 0, h - 0.026), (0, math.pi / 2, 0)),
    )
    return Thing(name, geoms, grip=2 * r, height=1.75 * h, radius=r)


def _bottle(name: str, colour: Colour, pale: Colour, scale: float) -> Thing:
    r = 0.033 * scale
    glass = Material(colour, gloss=0.6)
    geoms = (
        Geom("cylinder", (r, 0.050 * scale), Material(colour, pale, "sectors", 2.0, 0.5), (0, 0, 0.050 * scale)),
        Geom("sphere", (r,), glass, (0, 0, 0.100 * scale)),
        Geom("cylinder", (0.014 * scale, 0.026), glass, (0, 0, 0.100 * scale + 0.04)),
        Geom("cylinder", (0.017 * scale, 0.008), Material(pale), (0, 0, 0.100 * scale + 0.066)),
    )
    return Thing(name, geoms, grip=2 * r, height=0.095 * scale, radius=r)


def _tower(name: str, colour: Colour, pale: Colour, scale: float) -> Thing:
    sizes = ((0.046, 0.014), (0.036, 0.014), (0.027, 0.014), (0.017, 0.014))
    geoms, z = [], 0.0
    for number, (r, h) in enumerate(sizes):
        material = Material(pale, colour, "sectors", 3.0) if number % 2 else Material(colour, pale, "sectors", 3.0)
        geoms.append(Geom("cylinder", (r * scale, h * scale), material, (0, 0, z + h * scale)))
        z += 2 * h * scale
    return Thing(name, tuple(geoms), grip=0.05 * scale, height=0.07 * scale, radius=0.046 * scale)


def _cross(name: str, colour: Colour, pale: Colour, scale: float) -> Thing:
    a, b, h = 0.055 * scale, 0.018 * scale, 0.035 * scale
    geoms = (
        Geom("box", (a, b, h), Material(colour, gloss=0.3), (0, 0, h)),
        Geom("box", (b, a, 0.999 * h), Material(pale, colour, "checker", 0.03), (0, 0, h)),
    )
    return Thing(name, geoms, grip=2 * b, height=1.6 * h, radius=a)


def _pear(name: str, colour: Colour, pale: Colour, scale: float) -> Thing:
    r = 0.042 * scale
    geoms = (
        Geom("sphere", (r,), Material(colour, pale, "sectors", 2.0, 0.3), (0, 0, r)),
        Geom("ellipsoid", (0.6 * r, 0.6 * r, 0.9 * r), Material(colour, gloss=0.3), (0, 0, 1.9 * r)),
        Geom("capsule", (0.005, 0.012), Material((0.3, 0.2, 0.1)), (0, 0, 2.9 * r)),
    )
    return Thing(name, geoms, grip=1.7 * r, height=1.45 * r, radius=r)


def bowl(rng: np.random.Generator) -> Thing:
    """A bowl: a foot, two widening rings and a pale inside."""
    colour = draw(rng, TRAIN_COLOURS)
    side, inside = Material(colour, gloss=0.5), Material((0.93, 0.92, 0.88), gloss=0.2)
    geoms = (
        Geom("cylinder", (0.036, 0.006), side, (0, 0, 0.006)),
        Geom("cylinder", (0.055, 0.008), side, (0, 0, 0.018)),
        Geom("cylinder", (0.068, 0.009), side, (0, 0, 0.034)),
        Geom("cylinder", (0.075, 0.007), side, (0, 0, 0.048)),
        Geom("cylinder", (0.067, 0.001), inside, (0, 0, 0.0555)),
    )
    return Thing("bowl", geoms, radius=0.075)


def bead(name: str, colour: Colour) -> Thing:
    """One of the beads that are poured; its origin is its centre."""
    return Thing(name, (Geom("sphere", (0.010,), Material(colour, gloss=0.4)),))


def crumb(name: str, rng: np.random.Generator) -> Thing:
    """One of the small pieces that are swept."""
    colour = draw(rng, TRAIN_COLOURS)
    half = float(rng.uniform(0.011, 0.016))
    if rng.random() < 0.5:
        return Thing(name, (Geom("sphere", (half,), Material(colour, gloss=0.3), (0, 0, half)),), radius=half)
    return Thing(name, (Geom("box", (half, half, half), Material(colour), (0, 0, half)),), radius=half)


def brush(rng: np.random.Generator) -> Thing:
    """A hand brush: bristles, a back across them, and a grip that stands up. Swept along its y axis."""
    colour = draw(rng, TRAIN_COLOURS)
    bristles = Material((0.86, 0.78, 0.55), (0.62, 0.50, 0.28), "stripes_x", 0.010)
    geoms = (
        Geom("box", (0.075, 0.016, 0.020), bristles, (0, 0, 0.020)),
        Geom("box", (0.080, 0.020, 0.010), Material(colour, gloss=0.4), (0, 0, 0.050)),
        Geom("box", (0.016, 0.013, 0.025), Material(colour, gloss=0.4), (0, 0, 0.082)),
    )
    return Thing("brush", geoms, grip=0.026, height=0.085, radius=0.020)


CABINET = (0.10, 0.10, 0.075)
"""Half depth (x), half width (y) and half height of a cabinet; it opens towards its +x."""
CHEST = (0.085, 0.105, 0.045)
"""Half sizes of a chest; its lid turns about the edge at -x and lifts at +x."""
HANDLE = 0.042
"""How far a drawer's handle stands off its front."""


def cabinet(wood: Material) -> Thing:
    """The open shell that a drawer slides in."""
    x, y, z = CABINET
    t = 0.007
    geoms = (
        Geom("box", (x, y, t), wood, (0, 0, t)),
        Geom("box", (x, y, t), wood, (0, 0, 2 * z - t)),
        Geom("box", (x, t, z), wood, (0, y - t, z)),
        Geom("box", (x, t, z), wood, (0, t - y, z)),
        Geom("box", (t, y, z), wood, (t - x, 0, z)),
    )
    return Thing("cabinet", geoms, radius=0.15)


def drawer(front: Material, metal: Material) -> Thing:
    """The drawer, its origin under the cabinet's: front, handle, and a tray behind it."""
    x, y, z = CABINET
    w, h, t = y - 0.017, z - 0.018, 0.005
    tray = Material((0.70, 0.58, 0.42), (0.62, 0.50, 0.35), "wood", 0.03)
    geoms = (
        Geom("box", (0.008, w, h), front, (x + 0.002, 0, z)),
        Geom("capsule", (0.008, 0.050), metal, (x + HANDLE, 0, z + 0.012), (math.pi / 2, 0, 0)),
        Geom("capsule", (0.006, 0.012), metal, (x + HANDLE - 0.016, 0.045, z + 0.012), (0, math.pi / 2, 0)),
        Geom("capsule", (0.006, 0.012), metal, (x + HANDLE - 0.016, -0.045, z + 0.012), (0, math.pi / 2, 0)),
        Geom("box", (x - 0.02, w - 0.004, t), tray, (0, 0, z - h + t)),
        Geom("box", (x - 0.02, t, 0.6 * h), tray, (0, w - 0.009, z - 0.4 * h)),
        Geom("box", (x - 0.02, t, 0.6 * h), tray, (0, 0.009 - w, z - 0.4 * h)),
        Geom("box", (0.025, 0.025, 0.018), Material((0.85, 0.2, 0.15)), (0.055, 0.02, z - h + 0.028)),
    )
    return Thing("drawer", geoms)


def chest(side: Material) -> Thing:
    """The box under a lid."""
    x, y, z = CHEST
    t = 0.007
    geoms = (
        Geom("box", (x, y, t), Material((0.25, 0.2, 0.18)), (0, 0, t)),
        Geom("box", (x, t, z), side, (0, y - t, z)),
        Geom("box", (x, t, z), side, (0, t - y, z)),
        Geom("box", (t, y, z), side, (x - t, 0, z)),
        Geom("box", (t, y, z), side, (t - x, 0, z)),
    )
    return Thing("chest", geoms, radius=0.14)


def lid(top: Material, metal: Material) -> Thing:
    """The lid of a chest, its origin at the hinge, its knob near the far edge."""
    x, y, _ = CHEST
    geoms = (
        Geom("box", (x + 0.004, y + 0.004, 0.008), top, (x, 0, 0.008)),
        Geom("capsule", (0.009, 0.018), metal, (2 * x - 0.025, 0, 0.030), (math.pi / 2, 0, 0)),
        Geom("cylinder", (0.006, 0.010), metal, (2 * x - 0.025, 0, 0.022)),
    )
    return Thing("lid", geoms)


# Patterns: how much of a material's second colour shows at a point of a primitive, in its own frame

_LATTICE = np.random.Generator(np.random.PCG64(20260611)).random((64, 64))


def noise(u: Array, v: Array) -> Array:
    """Smooth value noise in [0, 1] with period 64 and a feature size of 1."""
    i, j = np.floor(u), np.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    i0, j0 = i.astype(np.int64) & 63, j.astype(np.int64) & 63
    i1, j1 = (i0 + 1) & 63, (j0 + 1) & 63
    low = _LATTICE[i0, j0] * (1 - a) + _LATTICE[i1, j0] * a
    return np.asarray(low * (1 - b) + (_LATTICE[i0, j1] * (1 - a) + _LATTICE[i1, j1] * a) * b)


def _edge(wave: Array, sharpness: float = 4.0) -> Array:
    return np.clip(0.5 + sharpness * wave, 0.0, 1.0)


def _stripes(axis: int) -> Callable[[Array, Array], Array]:
    return lambda p, period: _edge(np.sin(2 * np.pi * p[:, axis] / period))


def _sectors(p: Array, period: Array) -> Array:
    return _edge(np.sin(period * np.arctan2(p[:, 1], p[:, 0])), 6.0)


def _bands(p: Array, period: Array) -> Array:
    return _edge(np.abs(p[:, 2] / period) * -1 + 0.35, 20.0)


def _checker(p: Array, period: Array) -> Array:
    waves = np.sin(np.pi * p[:, 0] / period + 0.4) * np.sin(np.pi * p[:, 1] / period + 0.4)
    return _edge(waves, 8.0)


def _wood(p: Array, period: Array) -> Array:
    along, across = p[:, 0], p[:, 1] + 0.7 * p[:, 2]
    bend = noise(along * 5 + 7, across * 9 + 3)
    rings = (across + 0.035 * bend) / period
    grain = noise(along * 12, across * 260)
    return np.asarray(0.55 * (rings - np.floor(rings)) ** 2 + 0.30 * grain + 0.15 * bend)


def _stone(p: Array, period: Array) -> Array:
    u, v = (p[:, 0] + 0.6 * p[:, 2]) / period, (p[:, 1] + 0.5 * p[:, 2]) / period
    return np.asarray(0.55 * noise(u, v) + 0.30 * noise(3.1 * u, 3.1 * v) + 0.15 * noise(9.7 * u, 9.7 * v))


def _bricks(p: Array, period: Array) -> Array:
    row = np.floor(p[:, 1] / period)
    u = p[:, 0] / (2.4 * period) + 0.5 * (row % 2)
    v = p[:, 1] / period
    mortar = np.minimum(np.minimum(u - np.floor(u), 1 - u + np.floor(u)) * 2.4, np.minimum(v - row, 1 - v + row))
    return np.asarray(np.clip(1.0 - (mortar - 0.03) * 25, 0, 1) * 0.8 + 0.2 * noise(np.floor(u) * 7.3, row * 5.1))


def _dots(p: Array, period: Array) -> Array:
    row = np.floor(p[:, 1] / period)
    u, v = p[:, 0] / period + 0.5 * (row % 2), p[:, 1] / period
    return np.clip((0.26 - np.hypot(u - np.floor(u) - 0.5, v - row - 0.5)) * 12, 0, 1)


PATTERNS: dict[str, Callable[[Array, Array], Array]] = {
    "plain": lambda p, _period: np.zeros(len(p)),
    "stripes_x": _stripes(0), "stripes_y": _stripes(1), "stripes_z": _stripes(2),
    "sectors": _sectors, "bands": _bands, "checker": _checker, "wood": _wood, "stone": _stone,
    "bricks": _bricks, "dots": _dots,
}  # fmt: skip
"""Pattern by name: points (M, 3) in metres and periods (M,) to the share (M,) of the second colour.

The period of ``sectors`` is a number of sectors, that of ``bands`` the height in which a belt is drawn.
"""
