"""The things that may stand on the ground of a scene: path, lake, house, fence and rocks.

They share one random stream of their own. Lengths are canvas pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.miniature.canvas import CANVAS, Canvas, Colour, around, blend, jitter, shade
from models.miniature.terrain import PALETTES, Ground
from models.miniature.textures import COLUMNS

if TYPE_CHECKING:
    from models.miniature.scenes import Scene

WALLS = ((226, 206, 170), (190, 90, 70), (236, 232, 222), (160, 120, 86), (150, 170, 190))
ROOFS = ((120, 60, 48), (86, 76, 80), (140, 84, 50))
FENCES = ((236, 232, 224), (128, 92, 62), (110, 86, 66))
PATH_POINTS = 13
POST_DISTANCE = 19


@dataclass(frozen=True)
class Surroundings:
    """What a thing adapts to: the scene, the colour of the sky's top, and the ground."""

    scene: Scene
    sky_top: Colour
    ground: Ground

    @property
    def winter(self) -> bool:
        """Whether snow lies."""
        return self.scene.season == "winter"

    def skyline(self, x: float) -> float:
        """The y of the ground's upper edge at x."""
        return np.interp(x, COLUMNS, self.ground.skyline)


def draw_path(canvas: Canvas, rng: random.Random, surroundings: Surroundings) -> None:
    """A path from the bottom of the picture to the horizon: it swings, and narrows with the distance."""
    near = rng.uniform(0.2, 0.8) * CANVAS
    far = rng.uniform(0.3, 0.7) * CANVAS
    end = surroundings.skyline(far) + 2
    left = []
    right = []
    for index in range(PATH_POINTS):
        part = index / (PATH_POINTS - 1)  # of the way
        y = CANVAS + (end - CANVAS) * part
        x = near + (far - near) * part + math.sin(part * 4.2) * 14 * (1 - part)
        half_width = 24 * (1 - part) ** 1.3 + 2
        left.append((x - half_width, y))
        right.append((x + half_width, y))
    right.reverse()
    colour = PALETTES[surroundings.scene.season].path
    canvas.polygon(left + right, shade(colour, 0.9))
    inner_left = [(x + 2, y) for x, y in left]
    inner_right = [(x - 3, y) for x, y in right]
    canvas.polygon(inner_left + inner_right, colour)


def draw_lake(canvas: Canvas, rng: random.Random, surroundings: Surroundings) -> None:
    """An elliptic lake with a shore, a little of the sky in it, and short bright waves."""
    horizon = surroundings.scene.horizon
    palette = PALETTES[surroundings.scene.season]
    x = rng.uniform(0.25, 0.75) * CANVAS
    y = horizon + rng.uniform(0.12, 0.24) * (CANVAS - horizon) + 12
    half_width = rng.uniform(46, 84)
    half_height = rng.uniform(9, 15)
    water = blend(palette.lake, surroundings.sky_top, palette.sky_in_lake)
    shore = (232, 238, 246) if surroundings.winter else shade(surroundings.ground.colour, 0.8)
    shore_box = (x - half_width - 3, y - half_height - 2, x + half_width + 3, y + half_height + 3)
    canvas.ellipse(shore_box, shore)
    canvas.ellipse(around(x, y, half_width, half_height), water)
    for _ in range(7):
        start = x + rng.uniform(-0.7, 0.5) * half_width
        row = y + rng.uniform(-0.6, 0.7) * half_height
        canvas.line((start, row, start + rng.uniform(8, 22), row), blend(water, (255, 255, 255), 0.45))


@dataclass(frozen=True)
class House:
    """Place, size and colours of a house: x of its middle, y of its foot, height of its walls."""

    x: float
    foot: float
    half_width: float
    height: float
    wall: Colour
    roof: Colour

    @property
    def eaves(self) -> float:
        """The y of the walls' upper edge."""
        return self.foot - self.height


def draw_house(canvas: Canvas, rng: random.Random, surroundings: Surroundings) -> None:
    """A house on the other side of the picture than the first tree."""
    scene = surroundings.scene
    side = 1 if scene.trees[0].x < CANVAS / 2 else -1
    x = (0.5 + side * rng.uniform(0.12, 0.34)) * CANVAS
    half_width = rng.uniform(30, 44)
    height = half_width * rng.uniform(0.6, 0.75)
    foot = surroundings.skyline(x) + rng.uniform(6, 16)
    wall = jitter(rng, rng.choice(WALLS), 8)
    roof = jitter(rng, rng.choice(ROOFS), 8)
    house = House(x, foot, half_width, height, wall, roof)
    _draw_walls(canvas, house)
    _draw_roof(canvas, house, surroundings.winter)
    lit = scene.time == "sunset" or surroundings.winter
    _draw_openings(canvas, house, (250, 226, 140) if lit else (120, 150, 176))


def _draw_walls(canvas: Canvas, house: House) -> None:
    """Chimney, front and its shaded left part."""
    x = house.x
    half = house.half_width
    eaves = house.eaves
    canvas.rectangle((x + half * 0.55, eaves - half * 0.52, x + half * 0.75, eaves), (120, 82, 70))
    canvas.rectangle((x - half, eaves, x + half, house.foot), house.wall)
    canvas.rectangle((x - half, eaves, x - half * 0.35, house.foot), shade(house.wall, 0.9))


def _draw_roof(canvas: Canvas, house: House, winter: bool) -> None:
    """The roof with its lower edge; in winter it is white, and snow lies on the chimney."""
    x = house.x
    half = house.half_width
    eaves = house.eaves
    left = (x - half * 1.15, eaves + 1)
    right = (x + half * 1.15, eaves + 1)
    ridge_left = (x - half * 0.72, eaves - half * 0.56)
    ridge_right = (x + half * 0.72, eaves - half * 0.56)
    canvas.polygon([left, ridge_left, ridge_right, right], (240, 245, 251) if winter else house.roof)
    canvas.line((*left, *right), (176, 190, 208) if winter else shade(house.roof, 0.7), 2)
    if winter:
        chimney_top = (x + half * 0.53, eaves - half * 0.58, x + half * 0.77, eaves - half * 0.5)
        canvas.rectangle(chimney_top, (245, 248, 252))


def _draw_openings(canvas: Canvas, house: House, glass: Colour) -> None:
    """Two windows with white frames, and a door."""
    half = house.half_width
    for middle in (house.x - 0.62 * half, house.x + 0.5 * half):
        top = house.foot - house.height * 0.72
        canvas.rectangle((middle - 5, top, middle + 5, top + 10), (250, 250, 248))
        canvas.rectangle((middle - 4, top + 1, middle + 4, top + 9), glass)
    door = (house.x - 5, house.foot - house.height * 0.62, house.x + 5, house.foot)
    canvas.rectangle(door, shade(house.roof, 0.8))


def draw_fence(canvas: Canvas, rng: random.Random, surroundings: Surroundings) -> None:
    """Two rails from one side of the picture to the other, and posts; in winter snow lies on both."""
    horizon = surroundings.scene.horizon
    foot = horizon + (CANVAS - horizon) * rng.uniform(0.18, 0.34)
    colour = rng.choice(FENCES)
    for lift in (7, 14):
        canvas.rectangle((0, foot - lift, CANVAS, foot - lift + 2), shade(colour, 0.9))
    for x in range(int(rng.uniform(0, 18)), CANVAS, POST_DISTANCE):
        canvas.rectangle((x, foot - 19, x + 4, foot + 2), colour)
        canvas.line((x + 4, foot - 19, x + 4, foot + 2), shade(colour, 0.7))
        if surroundings.winter:
            canvas.rectangle((x - 1, foot - 21, x + 5, foot - 18), (248, 250, 254))
    if surroundings.winter:
        canvas.rectangle((0, foot - 16, CANVAS, foot - 15), (246, 249, 253))


def draw_rocks(canvas: Canvas, rng: random.Random, surroundings: Surroundings) -> None:
    """Two to four rocks, brighter on the side of the light; in winter snow lies on them."""
    scene = surroundings.scene
    for _ in range(rng.randint(2, 4)):
        x = rng.uniform(0.08, 0.92) * CANVAS
        y = scene.horizon + rng.uniform(0.3, 0.9) * (CANVAS - scene.horizon)
        size = rng.uniform(10, 18)
        outline = []
        for angle in np.linspace(0, math.pi, 8):
            outline_x = x + size * math.cos(angle) * rng.uniform(0.85, 1.1)
            outline_y = y - size * 0.8 * math.sin(angle) * rng.uniform(0.85, 1.1)
            outline.append((outline_x, outline_y))
        lit = []
        snow = []
        for outline_x, outline_y in outline:
            lit.append((outline_x + scene.light, outline_y * 0.82 + (y - size * 0.5) * 0.18))
            snow.append((outline_x, min(outline_y, y - size * 0.3) - 1))
        colour = jitter(rng, (136, 134, 132), 12)
        canvas.polygon(outline, shade(colour, 0.8))
        canvas.polygon(lit, colour)
        if surroundings.winter:
            canvas.polygon(snow, (244, 248, 253))


# By the Scene's field that says whether it is there, in the order in which they are drawn.
THINGS: dict[str, Callable[[Canvas, random.Random, Surroundings], None]] = {
    "path": draw_path,
    "lake": draw_lake,
    "house": draw_house,
    "fence": draw_fence,
    "rocks": draw_rocks,
}
