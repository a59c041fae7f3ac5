"""Frames by ray casting with MuJoCo; shading and textures in NumPy.

Ray casting needs no graphics library, which slim machines lack. What stands
still is drawn once per episode; a frame casts rays only where a moving thing
or its shadow can be seen, several on outlines and sharp patterns. M is a number
of rays, H = W the size of a frame; linear light 1 is white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lary.arrays import Array, Doubles, Floats, Ints, Pixels
from lary.simulate.kinematics import UP
from lary.simulate.scene import MOVING, STATIC, Lamp, Scene, View
from lary.simulate.shapes import PATTERNS

Mask = npt.NDArray[np.bool_]
Axes = tuple[Doubles, Doubles, Doubles]
"""Unit vectors to the right, up and forward of a level view."""

FURTHEST = 8.0
"""Metres that a ray goes; the walls are nearer, so every pixel shows something."""
CONTRAST = 0.08
"""Difference to a neighbour, in [0, 1], that gives still pixels three rays."""
LEVELS = 4096
DISPLAY = np.round(255 * (np.arange(LEVELS + 1) / LEVELS) ** (1 / 2.2)).astype(np.uint8)
"""Gamma-encoded value by linear light, in steps of 1 / LEVELS."""
OFF_SURFACE = 0.003
"""Metres above a surface where shadow rays end: it mustn't shade itself."""
FLANKS = ((-0.32, -0.20), (0.32, 0.20))
"""Offsets in pixels from the centre of further rays of outlines and patterns."""
LAMP_VIEW, LAMP_REACH = 320, 1.6
"""Pixels and half width (a tangent) of the lamp's view, which finds shadows."""
SQUARE = np.ones((3, 3), np.uint8)
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


@dataclass(frozen=True)
class Hits:
    """What unit rays (M, 3) met: geom (M,) or -1, distance (M,), normal (M, 3)."""

    origin: Doubles
    rays: Doubles
    geom: npt.NDArray[np.int32]
    distance: Doubles
    normal: Doubles

    @property
    def point(self) -> Doubles:
        """The points (M, 3) where the rays met a surface."""
        return self.origin + self.distance[:, None] * self.rays

    def only(self, chosen: Mask) -> Hits:
        """The hits that a mask (M,) chooses."""
        return Hits(self.origin, self.rays[chosen], self.geom[chosen], self.distance[chosen], self.normal[chosen])


def dot(first: Doubles, second: Doubles) -> Doubles:
    """Products of rows (M, 3) -> (M,), faster than a sum over an axis."""
    return np.asarray(np.einsum("ij,ij->i", first, second))


def axes_towards(forward: Doubles) -> Axes:
    """The axes of a view along a vector (3,) that isn't vertical."""
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, UP)
    right = right / np.linalg.norm(right)
    return right, np.cross(right, forward), forward


def displayed(light: Array) -> Pixels:
    """Linear light as gamma-encoded uint8, of the same shape."""
    return DISPLAY[(np.minimum(light, 1.0) * LEVELS + 0.5).astype(np.int32)]


class Renderer:
    """Draws one scene from one camera; `frame` after every `mj_kinematics`."""

    def __init__(self, scene: Scene, view: View, lamp: Lamp, size: int) -> None:
        self.scene, self.view, self.lamp, self.size = scene, view, lamp, size
        self.axes = axes_towards(view.target - view.position)
        self.reach = math.tan(view.angle / 2)
        looks = scene.materials
        self.first = np.array([look.first for look in looks]) ** 2.2
        self.second = np.array([look.second for look in looks]) ** 2.2
        self.period = np.array([look.period for look in looks])
        self.gloss = np.array([look.gloss for look in looks])
        self.wearing = {name: np.array([look.pattern == name for look in looks]) for name in PATTERNS}
        self._wrap_moving()
        self.rays = self.through(np.arange(size * size), [(0.0, 0.0)])
        self._draw_still()

    def through(self, pixels: Ints, places: Sequence[tuple[float, float]]) -> Doubles:
        """Unit rays (places * M, 3) through pixels (M,), by offset from the centre."""
        rows, columns = np.divmod(pixels, self.size)
        x = np.hstack([columns + 0.5 + across for across, _ in places])
        y = np.hstack([rows + 0.5 + down for _, down in places])
        u, v = (2 * x / self.size - 1) * self.reach, (1 - 2 * y / self.size) * self.reach
        right, up, forward = self.axes
        rays = forward + u[:, None] * right + v[:, None] * up
        return rays / np.sqrt(dot(rays, rays))[:, None]

    def cast(self, origin: Doubles, rays: Doubles, *groups: int) -> Hits:
        """Nearest surface of some groups along unit rays (M, 3) from one point."""
        import mujoco

        count, flat = len(rays), np.ascontiguousarray(rays).ravel()
        geom, distance = np.full(count, -1, np.int32), np.full(count, -1.0)
        normal = np.zeros((count, 3))
        if count:
            # MuJoCo has six groups; static geoms count, no body is left out.
            chosen = np.array([number in groups for number in range(6)], np.uint8)
            met = geom, distance, normal.reshape(-1)
            mujoco.mj_multiRay(self.scene.model, self.scene.data, origin, flat, chosen, True, -1, *met, count, FURTHEST)
        return Hits(origin, rays, geom, distance, normal)

    def lit(self, hits: Hits, *groups: int) -> Mask:
        """Which surfaces (M,) the lamp, the origin of all rays, reaches."""
        rays, distance = self._from_lamp(hits)
        return self._passes(self.cast(self.lamp.position, rays / distance[:, None], *groups), distance)

    def _from_lamp(self, hits: Hits) -> tuple[Doubles, Doubles]:
        """Rays (M, 3) from the lamp to just above surfaces, and their lengths (M,)."""
        rays = hits.point + OFF_SURFACE * hits.normal - self.lamp.position
        distance = np.sqrt(dot(rays, rays))
        return rays, distance

    @staticmethod
    def _passes(found: Hits, distance: Doubles) -> Mask:
        """Which rays (M,) meet nothing before a distance (M,)."""
        return (found.geom < 0) | (found.distance > distance - OFF_SURFACE)

    def albedo(self, hits: Hits, point: Doubles) -> Doubles:
        """Linear colour (M, 3) of the surfaces at points (M, 3)."""
        data = self.scene.data
        colour = self.first[hits.geom]
        for name, pattern in PATTERNS.items():
            chosen = np.flatnonzero(self.wearing[name][hits.geom])
            geom = hits.geom[chosen]
            axes = data.geom_xmat.reshape(-1, 3, 3)[geom]
            rows = point[chosen] - data.geom_xpos[geom]
            local = axes[:, 0] * rows[:, :1] + axes[:, 1] * rows[:, 1:2] + axes[:, 2] * rows[:, 2:]
            share = pattern(local, self.period[geom])
            colour[chosen] += share[:, None] * (self.second[geom] - colour[chosen])
        return colour

    def shade(self, hits: Hits) -> tuple[Doubles, Doubles]:
        """Ambient and lamp light (M, 3) that surfaces reflect without shadows."""
        point, normal = hits.point, hits.normal
        colour = self.albedo(hits, point)
        lamp = self.lamp.position - point
        nearness = 1 / np.sqrt(dot(lamp, lamp))
        to_lamp = np.maximum(dot(normal, lamp) * nearness, 0.0)
        to_eye = np.maximum(-dot(normal, hits.rays), 0.0)
        between = -dot(lamp, hits.rays) * nearness
        # Blinn's highlight: cosine to the halfway vector, to the power 32.
        halfway = np.sqrt(np.maximum(2 + 2 * between, 1e-9))
        shine = np.minimum((to_lamp + to_eye) / halfway, 1.0)
        for _ in range(5):
            shine *= shine
        shine *= 0.5 * self.gloss[hits.geom] * (to_lamp > 0)
        sky = 0.62 + 0.38 * normal[:, 2] + 0.35 * to_eye
        around = colour * (sky[:, None] * self.lamp.around)
        direct = (colour * to_lamp[:, None] + shine[:, None]) * self.lamp.direct
        return around, direct

    def _draw_still(self) -> None:
        """Draw what stands still, once: its light and distance by pixel."""
        size = self.size
        self.still = self.cast(self.view.position, self.rays, STATIC)
        around, direct = self._still_light(self.still)
        image = displayed(around + direct).reshape(size, size, 3)
        contrast = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, SQUARE)
        pixels = np.flatnonzero(contrast.max(2) > 255 * CONTRAST)
        finer = self.cast(self.view.position, self.through(pixels, FLANKS), STATIC)
        for part, light in zip((around, direct), self._still_light(finer), strict=True):
            further = light.reshape(len(FLANKS), -1, 3).sum(0)
            part[pixels] = (part[pixels] + further) / (1 + len(FLANKS))
        self.direct = direct.astype(np.float32)
        self.unshadowed = (around + direct).astype(np.float32)
        self.shown = displayed(self.unshadowed)
        # Shadows are soft: in large frames every other pixel is enough.
        stride = 2 if size >= 96 else 1
        coarse = np.zeros((size, size), bool)
        coarse[::stride, ::stride] = True
        rays, distance = self._from_lamp(self.still.only(coarse.ravel()))
        self.lamp_axes = axes_towards(self.view.target - self.lamp.position)
        across, above, depth = (rays @ axis for axis in self.lamp_axes)
        scale, middle = LAMP_VIEW / (2 * LAMP_REACH), LAMP_VIEW / 2
        x = middle + scale * across / np.maximum(depth, 0.05)
        y = middle - scale * above / np.maximum(depth, 0.05)
        inside = (depth > 0.05) & (np.minimum(x, y) >= 0) & (np.maximum(x, y) < LAMP_VIEW)
        place = np.where(inside, y.astype(np.int64) * LAMP_VIEW + x.astype(np.int64), 0)
        self.coarse = rays / distance[:, None], distance, inside, place

    def _still_light(self, hits: Hits) -> tuple[Doubles, Doubles]:
        """As `shade`, with the shadows of what stands still."""
        around, direct = self.shade(hits)
        return around, direct * self.lit(hits, STATIC)[:, None]

    def _wrap_moving(self) -> None:
        """Cover moving geoms with balls, so that few rays are cast in vain."""
        model = self.scene.model
        owners, offsets, radii = [], [], []
        for geom in np.flatnonzero(model.geom_group == MOVING):
            x, y, z = model.geom_size[geom].tolist()
            kind = int(model.geom_type[geom])
            # mjtGeom: 2 is a sphere, 3 a capsule, 5 a cylinder, 6 a box.
            halves = {2: (x, x, x), 3: (x, x, x + y), 5: (x, x, y)}.get(kind, (x, y, z))
            axis = int(np.argmax(halves))
            flat = [half for number, half in enumerate(halves) if number != axis]
            width = math.hypot(*flat) if kind == 6 or (kind == 5 and axis != 2) else max(flat)
            count = math.ceil(1.6 * halves[axis] / width) if halves[axis] > 1.2 * width else 1
            step = halves[axis] / count
            for number in range(count):
                offset = np.zeros(3)
                offset[axis] = (2 * number + 1 - count) * step
                owners.append(geom)
                offsets.append(offset)
                radii.append(math.hypot(step, width))
        self.owner, self.offset, self.radius = np.array(owners), np.array(offsets), np.array(radii)

    def _covered(self, centres: Doubles, origin: Doubles, axes: Axes, size: int, reach: float) -> Mask:
        """Pixels (size * size,) of a view that balls may cover."""
        relative = centres - origin
        across, above, depth = (dot(relative, np.broadcast_to(axis, relative.shape)) for axis in axes)
        depth, scale = np.maximum(depth, 0.05), size / (2 * reach)
        x, y = size / 2 + scale * across / depth, size / 2 - scale * above / depth
        # Balls look larger off the middle of a view, and pixels are rounded.
        radius = 1.06 * scale * self.radius / np.maximum(depth - self.radius, 0.05) + 1.0
        mask = np.zeros((size, size), np.uint8)
        discs = np.stack([np.rint(x), np.rint(y), np.ceil(radius)], 1)
        # Four times as fast as products of all balls and rays.
        for cx, cy, r in discs.astype(np.int32).tolist():
            cv2.circle(mask, (cx, cy), r, 1, -1)
        return mask.astype(bool).ravel()

    def _shadows(self, centres: Doubles) -> Floats:
        """Share (H * W,) of the lamp that moving things leave to still ones."""
        rays, distance, inside, place = self.coarse
        covered = self._covered(centres, self.lamp.position, self.lamp_axes, LAMP_VIEW, LAMP_REACH)
        chosen = np.flatnonzero(covered[place] & inside)
        hits = self.cast(self.lamp.position, rays[chosen], MOVING)
        free = np.ones(len(rays), np.float32)
        free[chosen] = self._passes(hits, distance[chosen])
        side = math.isqrt(len(rays))
        image = cv2.blur(free.reshape(side, side), (3, 3))
        if side != self.size:
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return np.asarray(image.ravel(), np.float32)

    def frame(self) -> Pixels:
        """The scene now, RGB (H, W, 3) uint8."""
        data = self.scene.data
        axes = data.geom_xmat.reshape(-1, 3, 3)[self.owner]
        centres = data.geom_xpos[self.owner] + (axes * self.offset[:, None, :]).sum(2)
        shadow = self._shadows(centres)
        dark = np.flatnonzero(shadow < 1)
        still = self.unshadowed.copy()
        still[dark] -= self.direct[dark] * (1 - shadow[dark])[:, None]
        image = still.copy()
        covered = self._covered(centres, self.view.position, self.axes, self.size, self.reach)
        pixels = np.flatnonzero(covered)
        hits = self.cast(self.view.position, self.rays[pixels], MOVING)
        seen = (hits.geom >= 0) & (hits.distance < self.still.distance[pixels])
        front, pixels = hits.only(seen), pixels[seen]
        light = self._soft_light(front, pixels)
        around, direct = self.shade(front)
        image[pixels] = around + direct * light[pixels, None]
        ids = np.full(self.size**2, -1, np.float32)
        ids[pixels] = front.geom
        edge = self._outlines(image, still, light, ids)
        changed, result = np.hstack([dark, pixels, edge]), self.shown.copy()
        result[changed] = displayed(image[changed])
        return result.reshape(self.size, self.size, 3)

    def _soft_light(self, front: Hits, pixels: Ints) -> Floats:
        """Share (H * W,) of the lamp that moving things get: a ray per 4 pixels."""
        asked = (pixels // self.size % 2 == 0) & (pixels % 2 == 0)
        light, known = np.zeros((2, self.size, self.size), np.float32)
        light.ravel()[pixels[asked]] = self.lit(front.only(asked), STATIC, MOVING)
        known.ravel()[pixels[asked]] = 1.0
        # Where no neighbour was asked, half of the light is a guess.
        spread, weight = cv2.blur(light, (3, 3)), cv2.blur(known, (3, 3))
        return np.where(weight > 0, spread / np.maximum(weight, 1e-6), np.float32(0.5)).ravel()

    def _outlines(self, image: Floats, still: Floats, light: Floats, ids: Floats) -> Ints:
        """Draw pixels where geoms meet with three rays each; returns which."""
        square = ids.reshape(self.size, self.size)
        pixels = np.flatnonzero(cv2.morphologyEx(square, cv2.MORPH_GRADIENT, CROSS))
        where = np.tile(pixels, len(FLANKS))
        hits = self.cast(self.view.position, self.through(pixels, FLANKS), MOVING)
        seen = (hits.geom >= 0) & (hits.distance < self.still.distance[where])
        around, direct = self.shade(hits.only(seen))
        colours = still[where]
        colours[seen] = around + direct * light[where[seen], None]
        # Clipped before the mean, or highlights would have jagged outlines.
        further = np.minimum(colours, 1).reshape(len(FLANKS), -1, 3).sum(0)
        image[pixels] = (np.minimum(image[pixels], 1) + further) / (1 + len(FLANKS))
        return pixels
