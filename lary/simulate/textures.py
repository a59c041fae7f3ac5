"""Procedural patterns: how much of a material's second colour shows at a point of a primitive, in its own frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lary.simulate.kinematics import Array

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
