"""Frames by ray casting: one `mj_multiRay` call per pass, shading and textures in NumPy.

What stands still is drawn once per episode; a frame casts rays only where something that moves can be seen or can
throw its shadow. Pixels on outlines and sharp patterns get several rays, the others one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from lary.simulate.kinematics import Array
from lary.simulate.scene import MOVING, STATIC, Lamp, Scene, View
from lary.simulate.shapes import PATTERNS

Frame = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

FURTHEST = 8.0
CONTRAST = 0.08
"""Difference to a neighbour, of a colour from 0 to 1, from which a still pixel gets three rays."""
LEVELS = 4096
DISPLAY = np.round(255 * (np.arange(LEVELS + 1) / LEVELS) ** (1 / 2.2)).astype(np.uint8)
"""From linear light in steps of 1 / LEVELS to what a file holds."""
OFF_SURFACE = 0.003
"""Metres by which shadow rays end above the surface."""
FLANKS = ((-0.32, -0.20), (0.32, 0.20))
"""Where in a pixel the further rays of outlines and patterns go, from its centre."""
LAMP_VIEW, LAMP_REACH = 320, 1.6
"""Size and half width (tangent) of the lamp's own view, in which shadows are looked for."""


@dataclass(frozen=True)
class Hits:
    """What unit rays (M, 3) met: geom (M,), -1 for nothing, distance (M,), normal (M, 3)."""

    origin: Array
    rays: Array
    geom: Ids
    distance: Array
    normal: Array

    @property
    def point(self) -> Array:
        """Where they met it, (M, 3)."""
        return np.asarray(self.origin + self.distance[:, None] * self.rays)

    def only(self, chosen: Mask) -> Hits:
        """Some of them."""
        return Hits(self.origin, self.rays[chosen], self.geom[chosen], self.distance[chosen], self.normal[chosen])


def dot(first: Array, second: Array) -> Array:
    """Row by row, (M, 3) and (M, 3) to (M,); several times faster than a sum along so short an axis."""
    return np.asarray(np.einsum("ij,ij->i", first, second))


def axes_towards(forward: Array) -> Array:
    """Unit vectors to the right, up and forward (3, 3) of a level view."""
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(right, forward), forward])


class Renderer:
    """Draws one scene from one camera; `frame` after every change of the state."""

    def __init__(self, scene: Scene, view: View, lamp: Lamp, size: int) -> None:
        self.scene, self.view, self.lamp, self.size = scene, view, lamp, size
        self.axes = axes_towards(view.target - view.position)
        self.reach = math.tan(view.angle / 2)
        looks = scene.materials
        self.first = np.array([look.first for look in looks]) ** 2.2
        self.second = np.array([look.second for look in looks]) ** 2.2
        self.period, self.gloss = np.array([look.period for look in looks]), np.array([look.gloss for look in looks])
        names = list(PATTERNS)
        self.plain = names.index("plain")
        self.pattern, self.patterns = np.array([names.index(look.pattern) for look in looks]), list(PATTERNS.values())
        self._balls()
        rows, columns = np.divmod(np.arange(size * size), size)
        self.rays = self.directions(columns + 0.5, rows + 0.5)
        self._background()

    def directions(self, x: Array, y: Array) -> Array:
        """Unit rays (M, 3) through image points, x to the right and y down in pixels."""
        u, v = (2 * x / self.size - 1) * self.reach, (1 - 2 * y / self.size) * self.reach
        right, up, forward = self.axes
        rays = forward + u[:, None] * right + v[:, None] * up
        return np.asarray(rays / np.sqrt(dot(rays, rays))[:, None])

    def cast(self, origin: Array, rays: Array, groups: tuple[int, ...]) -> Hits:
        """Nearest surface along unit rays (M, 3) from one point, among the geoms of some groups."""
        import mujoco

        count = len(rays)
        geom, distance, normal = np.full(count, -1, np.int32), np.full(count, -1.0), np.zeros((count, 3))
        if count:
            chosen = np.array([number in groups for number in range(6)], np.uint8)
            mujoco.mj_multiRay(
                self.scene.model, self.scene.data, origin, np.ascontiguousarray(rays).ravel(), chosen, True, -1,
                geom, distance, normal.reshape(-1), count, FURTHEST,
            )  # fmt: skip
        return Hits(origin, rays, geom, distance, normal)

    def lit(self, hits: Hits, groups: tuple[int, ...]) -> Mask:
        """Which surfaces (M,) the lamp reaches: rays go from the lamp, the one origin of all."""
        rays = hits.point + OFF_SURFACE * hits.normal - self.lamp.position
        distance = np.sqrt(dot(rays, rays))
        found = self.cast(self.lamp.position, rays / distance[:, None], groups)
        return np.asarray((found.geom < 0) | (found.distance > distance - OFF_SURFACE))

    def albedo(self, hits: Hits, point: Array) -> Array:
        """Linear colour (M, 3) of the surfaces."""
        data = self.scene.data
        colour = self.first[hits.geom]
        kinds = self.pattern[hits.geom]
        for number in np.flatnonzero(np.bincount(kinds, minlength=1)):
            if number == self.plain:
                continue
            chosen = np.flatnonzero(kinds == number)
            geom = hits.geom[chosen]
            rotations, rows = data.geom_xmat.reshape(-1, 3, 3)[geom], point[chosen] - data.geom_xpos[geom]
            local = rotations[:, 0] * rows[:, :1] + rotations[:, 1] * rows[:, 1:2] + rotations[:, 2] * rows[:, 2:]
            share = self.patterns[number](local, self.period[geom])
            colour[chosen] += share[:, None] * (self.second[geom] - colour[chosen])
        return np.asarray(colour)

    def shade(self, hits: Hits) -> tuple[Array, Array]:
        """Light from all around and of the lamp (M, 3) that surfaces send back, unshadowed."""
        point, normal = hits.point, hits.normal
        colour = self.albedo(hits, point)
        lamp = self.lamp.position - point
        nearness = 1 / np.sqrt(dot(lamp, lamp))
        to_lamp = np.maximum(dot(normal, lamp) * nearness, 0.0)
        to_eye = np.maximum(-dot(normal, hits.rays), 0.0)
        between = -dot(lamp, hits.rays) * nearness
        shine = np.minimum((to_lamp + to_eye) / np.sqrt(np.maximum(2 + 2 * between, 1e-9)), 1.0)
        for _ in range(5):
            shine *= shine
        shine *= 0.5 * self.gloss[hits.geom] * (to_lamp > 0)
        sky = 0.62 + 0.38 * normal[:, 2] + 0.35 * to_eye
        around = colour * (sky[:, None] * self.lamp.around)
        direct = (colour * to_lamp[:, None] + shine[:, None]) * self.lamp.direct
        return around, direct

    def _balls(self) -> None:
        """Spheres that hold each moving geom, so that few rays are cast in vain."""
        model = self.scene.model
        owners, offsets, radii = [], [], []
        for geom in np.flatnonzero(model.geom_group == MOVING):
            x, y, z = (float(value) for value in model.geom_size[geom])
            kind = int(model.geom_type[geom])
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

    def _background(self) -> None:
        """What stands still: colours with and without the lamp, and the distance of each pixel."""
        size = self.size
        self.still = self.cast(self.view.position, self.rays, (STATIC,))
        around, direct = self._still_light(self.still)
        shown = DISPLAY[self._levels(around + direct)].reshape(size, size, 3)
        contrast = cv2.dilate(shown, np.ones((3, 3))).astype(np.int16) - cv2.erode(shown, np.ones((3, 3)))
        pixels = np.flatnonzero((contrast.max(2) > 255 * CONTRAST).ravel())
        finer = self.cast(self.view.position, self._rays_within(pixels), (STATIC,))
        for image, light in zip((around, direct), self._still_light(finer), strict=True):
            image[pixels] = (image[pixels] + light.reshape(len(FLANKS), -1, 3).sum(0)) / (1 + len(FLANKS))
        self.direct = direct.astype(np.float32)
        self.unshadowed = (around + direct).astype(np.float32)
        self.shown = DISPLAY[self._levels(self.unshadowed)]
        stride = 2 if size >= 96 else 1
        self.coarse = np.arange(size * size).reshape(size, size)[::stride, ::stride]
        chosen = self.coarse.ravel()
        rays = self.still.point[chosen] + OFF_SURFACE * self.still.normal[chosen] - self.lamp.position
        self.coarse_distance = np.sqrt(dot(rays, rays))
        self.coarse_rays = rays / self.coarse_distance[:, None]
        self.lamp_axes = axes_towards(self.view.target - self.lamp.position)
        across, above, depth = (rays @ axis for axis in self.lamp_axes)
        scale, middle = LAMP_VIEW / (2 * LAMP_REACH), LAMP_VIEW / 2
        x, y = (middle + scale * sign * part / np.maximum(depth, 0.05) for sign, part in ((1, across), (-1, above)))
        self.coarse_inside = (depth > 0.05) & (np.minimum(x, y) >= 0) & (np.maximum(x, y) < LAMP_VIEW)
        self.coarse_place = np.where(self.coarse_inside, y.astype(np.int64) * LAMP_VIEW + x.astype(np.int64), 0)

    def _still_light(self, hits: Hits) -> tuple[Array, Array]:
        around, direct = self.shade(hits)
        return around, direct * self.lit(hits, (STATIC,))[:, None]

    def _rays_within(self, pixels: npt.NDArray[np.int64]) -> Array:
        """Further rays (places * M, 3) through each pixel, all pixels for the first place first."""
        rows, columns = np.divmod(pixels, self.size)
        return np.concatenate([self.directions(columns + 0.5 + dx, rows + 0.5 + dy) for dx, dy in FLANKS])

    @staticmethod
    def _levels(light: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        return np.asarray(np.minimum(light, 1.0) * LEVELS + 0.5, np.int32)

    def _covered(self, relative: Array, axes: Array, size: int, reach: float) -> Mask:
        """Pixels (size, size) that the balls of what moves may cover, seen along axes (3, 3)."""
        across, above, depth = (dot(relative, np.broadcast_to(axis, relative.shape)) for axis in axes)
        depth, scale = np.maximum(depth, 0.05), size / (2 * reach)
        x, y = size / 2 + scale * across / depth, size / 2 - scale * above / depth
        radius = 1.06 * scale * self.radius / np.maximum(depth - self.radius, 0.05) + 1.0
        mask = np.zeros((size, size), np.uint8)
        for cx, cy, r in np.stack([np.rint(x), np.rint(y), np.ceil(radius)], axis=1).astype(np.int32).tolist():
            cv2.circle(mask, (cx, cy), r, 1, -1)
        return mask.astype(bool)

    def _shadows(self, centres: Array) -> npt.NDArray[np.float32]:
        """How much of the lamp (H * W,) what moves leaves to the rest, from every other pixel."""
        covered = self._covered(centres - self.lamp.position, self.lamp_axes, LAMP_VIEW, LAMP_REACH)
        chosen = np.flatnonzero(covered.ravel()[self.coarse_place] & self.coarse_inside)
        hits = self.cast(self.lamp.position, self.coarse_rays[chosen], (MOVING,))
        free = np.ones(len(self.coarse_rays), np.float32)
        free[chosen] = (hits.geom < 0) | (hits.distance > self.coarse_distance[chosen] - OFF_SURFACE)
        image = cv2.blur(free.reshape(self.coarse.shape), (3, 3))
        if image.shape[0] != self.size:
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return np.asarray(image.ravel(), np.float32)

    def frame(self) -> Frame:
        """The scene as it is now, RGB (H, W, 3) uint8."""
        size, data = self.size, self.scene.data
        axes = data.geom_xmat.reshape(-1, 3, 3)[self.owner]
        centres = np.asarray(data.geom_xpos[self.owner] + (axes * self.offset[:, None, :]).sum(2))
        shadow = self._shadows(centres)
        dark = np.flatnonzero(shadow < 1)
        still = self.unshadowed.copy()
        still[dark] -= self.direct[dark] * (1 - shadow[dark])[:, None]
        image = still.copy()
        pixels = np.flatnonzero(self._covered(centres - self.view.position, self.axes, self.size, self.reach))
        hits = self.cast(self.view.position, self.rays[pixels], (MOVING,))
        seen = (hits.geom >= 0) & (hits.distance < self.still.distance[pixels])
        front, pixels = hits.only(seen), pixels[seen]
        ids = np.full(size * size, -1, np.int32)
        ids[pixels] = front.geom
        light = self._soft_light(front, pixels)
        around, direct = self.shade(front)
        image[pixels] = around + direct * light[pixels, None]
        edge = self._outlines(image, still, light, ids.reshape(size, size))
        changed, shown = np.concatenate([dark, pixels, edge]), self.shown.copy()
        shown[changed] = DISPLAY[self._levels(image[changed])]
        return shown.reshape(size, size, 3)

    def _soft_light(self, front: Hits, pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """How much of the lamp (H * W,) reaches what moves: one ray for four pixels, blurred."""
        flat = (self.size, self.size)
        asked = (pixels // self.size % 2 == 0) & (pixels % 2 == 0)
        light, known = np.zeros(flat, np.float32), np.zeros(flat, np.float32)
        light.ravel()[pixels[asked]] = self.lit(front.only(asked), (STATIC, MOVING))
        known.ravel()[pixels[asked]] = 1.0
        spread, weight = (np.asarray(cv2.blur(image, (3, 3)), np.float32) for image in (light, known))
        return np.where(weight > 0, spread / np.maximum(weight, 1e-6), np.float32(0.5)).ravel()

    def _outlines(
        self, image: npt.NDArray[np.float32], still: npt.NDArray[np.float32], light: npt.NDArray[np.float32], ids: Ids
    ) -> npt.NDArray[np.int64]:
        """Draw the pixels where geoms meet again, as the mean of three rays each; returns which."""
        edge = np.zeros(ids.shape, bool)
        across, down = ids[:, 1:] != ids[:, :-1], ids[1:] != ids[:-1]
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        edge[1:] |= down
        edge[:-1] |= down
        pixels = np.flatnonzero(edge)
        where = np.tile(pixels, len(FLANKS))
        hits = self.cast(self.view.position, self._rays_within(pixels), (MOVING,))
        seen = (hits.geom >= 0) & (hits.distance < self.still.distance[where])
        around, direct = self.shade(hits.only(seen))
        colours = still[where]
        colours[seen] = around + direct * light[where[seen], None]
        further = np.minimum(colours, 1).reshape(len(FLANKS), -1, 3).sum(0)
        image[pixels] = (np.minimum(image[pixels], 1) + further) / (1 + len(FLANKS))
        return pixels
