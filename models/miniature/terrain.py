"""Sky, distance and ground of a scene, and what trees leave on the ground.

Sky, distance and ground share one random stream. They draw from it in the order of the functions here,
whatever the season, so that a scene keeps its forms from season to season. Lengths are canvas pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from models.miniature.canvas import CANVAS, Canvas, Colour, Point, around, blend, jitter, shade
from models.miniature.plants import LEAF_COLOURS, Tree
from models.miniature.textures import COLUMNS, RAMP_STEPS, textures

if TYPE_CHECKING:
    from models.miniature.scenes import Scene

SKY_SIZE = 64  # px; the sky is smooth, so it is computed at this size and enlarged
TREELINE_TREES = 34
HILL_HEIGHT = 22
FALLEN_LEAVES = ((206, 96, 34), (228, 160, 44), (168, 66, 36))
FLOWERS = ((250, 250, 240), (246, 214, 70), (226, 110, 140))
FLOWER_SHARE = 0.35  # of the summer scenes
DISTANT_NOUNS = {"mountains": "mountains", "hills": "hills", "treeline": "distant trees"}


@dataclass(frozen=True)
class Palette:
    """The colours of a season. A tint is a colour and how much of it is mixed in (0..1)."""

    sky_top_tint: tuple[Colour, float]
    sky_bottom_tint: tuple[Colour, float]
    far_range: Colour  # the farther of two ranges of mountains or hills
    near_range: Colour
    distant_trees: Colour
    distant_conifers: Colour
    far_ground: Colour
    near_ground: Colour
    path: Colour
    lake: Colour
    sky_in_lake: float  # share of the sky's colour in the lake's


@dataclass(frozen=True)
class Sky:
    """The sky of a time of the day, and the light that it throws on the ground."""

    top: Colour
    bottom: Colour
    clouds: Colour
    light: Colour | None  # what the ground is tinted with; None: the colour of the sky's bottom
    light_amount: float


@dataclass(frozen=True)
class Ground:
    """The y of the ground's skyline at each of COLUMNS, and the colour of its near part."""

    skyline: np.ndarray
    colour: Colour


PALETTES = {
    "summer": Palette(
        sky_top_tint=((0, 0, 0), 0),
        sky_bottom_tint=((0, 0, 0), 0),
        far_range=(112, 150, 128),
        near_range=(92, 142, 92),
        distant_trees=(66, 112, 62),
        distant_conifers=(60, 90, 70),
        far_ground=(146, 184, 92),
        near_ground=(74, 130, 52),
        path=(190, 160, 118),
        lake=(70, 130, 180),
        sky_in_lake=0.4,
    ),
    "autumn": Palette(
        sky_top_tint=((160, 176, 200), 0.22),
        sky_bottom_tint=((246, 226, 196), 0.3),
        far_range=(152, 138, 132),
        near_range=(176, 130, 78),
        distant_trees=(178, 104, 44),
        distant_conifers=(60, 90, 70),
        far_ground=(196, 166, 92),
        near_ground=(146, 112, 56),
        path=(172, 138, 98),
        lake=(92, 124, 150),
        sky_in_lake=0.35,
    ),
    "winter": Palette(
        sky_top_tint=((186, 202, 222), 0.42),
        sky_bottom_tint=((236, 240, 246), 0.45),
        far_range=(186, 200, 220),
        near_range=(220, 228, 238),
        distant_trees=(150, 162, 176),
        distant_conifers=(190, 204, 216),
        far_ground=(244, 247, 252),
        near_ground=(208, 220, 238),
        path=(206, 204, 206),
        lake=(200, 220, 234),
        sky_in_lake=0,
    ),
}
SKIES = {
    "day": Sky((84, 150, 222), (188, 220, 244), (255, 255, 255), None, 0.12),
    "morning": Sky((122, 172, 222), (252, 226, 198), (255, 255, 255), None, 0.25),
    "sunset": Sky((92, 96, 160), (252, 170, 104), (255, 214, 190), (214, 120, 90), 0.25),
    "overcast": Sky((158, 170, 184), (208, 214, 218), (226, 229, 233), (190, 196, 202), 0.28),
}


def sky_colours(rng: random.Random, scene: Scene) -> tuple[Colour, Colour]:
    """(top, bottom) of the sky."""
    sky = SKIES[scene.time]
    palette = PALETTES[scene.season]
    top = jitter(rng, sky.top, 12)
    bottom = jitter(rng, sky.bottom, 8)
    return blend(top, *palette.sky_top_tint), blend(bottom, *palette.sky_bottom_tint)


def paint_sky(rng: random.Random, scene: Scene, top: Colour, bottom: Colour) -> Image.Image:
    """A canvas-sized picture of a sky from `top` to `bottom` at the horizon, with clouds."""
    down = np.linspace(0, CANVAS / scene.horizon, SKY_SIZE, dtype=np.float32).clip(0, 1)[:, None, None]
    sky = np.array(top, np.float32) * (1 - down) + np.array(bottom, np.float32) * down
    field = rng.choice(textures().clouds)
    left = rng.randrange(128)
    upper = rng.randrange(64)
    field = field[upper : upper + 2 * SKY_SIZE : 2, left : left + SKY_SIZE]  # clouds are wider than high
    thickness = np.clip((field - 1.1 + scene.clouds) * 0.8, 0, 0.88)[:, :, None]
    cover = thickness * np.clip(1.15 - 0.5 * down, 0, 1)  # thinner towards the horizon
    relief = np.clip((np.roll(field, 3, 0) - field) * 18, -26, 8)[:, :, None]  # lit from above
    sky = sky * (1 - cover) + (np.array(SKIES[scene.time].clouds, np.float32) + relief) * cover
    picture = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    return picture.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)


def draw_sun(canvas: Canvas, rng: random.Random, scene: Scene, bottom: Colour) -> None:
    """A setting sun; at other times of the day only x is drawn from the stream."""
    x = rng.uniform(0.1, 0.9) * CANVAS
    rng.random()  # not used; without it every later draw would be another, and so every scene
    if scene.time == "sunset":
        y = scene.horizon - rng.uniform(10, 40)
        for radius, strength in ((22, 0.25), (15, 0.5), (9, 1.0)):
            canvas.ellipse(around(x, y, radius, radius), blend(bottom, (255, 240, 190), strength))


def draw_distance(canvas: Canvas, rng: random.Random, scene: Scene, bottom: Colour) -> None:
    """Mountains, hills or a line of trees on the horizon. `bottom` is the sky's colour there."""
    if scene.far == "none":
        return
    canvas.begin(DISTANT_NOUNS[scene.far])
    if scene.far == "treeline":
        _draw_treeline(canvas, rng, scene, bottom)
    else:
        for layer in range(2):
            _draw_range(canvas, rng, scene, bottom, layer)


def _draw_range(canvas: Canvas, rng: random.Random, scene: Scene, bottom: Colour, layer: int) -> None:
    """A range of mountains or hills: layer 0 is the farther, 1 the nearer one."""
    palette = PALETTES[scene.season]
    ridge = rng.choice(textures().ridges)
    steepness = rng.uniform(0.7, 1.1)
    if rng.random() < 0.5:
        ridge = ridge[::-1]
    if scene.far == "mountains":
        amplitude = CANVAS * (0.2 - 0.07 * layer)
        base = scene.horizon - CANVAS * (0.12 - 0.06 * layer)
    else:
        ridge = _smooth(ridge, 12) * 1.3
        amplitude = CANVAS * (0.1 - 0.02 * layer)
        base = scene.horizon - CANVAS * (0.07 - 0.04 * layer)
    tops = base - amplitude * ridge * steepness
    colour = palette.far_range if layer == 0 else palette.near_range
    canvas.polygon(_below(tops), blend(colour, bottom, 0.5 - 0.28 * layer))
    if scene.far == "mountains" and layer == 0:
        snow_line = base - amplitude * steepness * (-0.5 if scene.season == "winter" else 0.12)
        _draw_snow_caps(canvas, tops, snow_line, bottom)


def _draw_snow_caps(canvas: Canvas, tops: np.ndarray, snow_line: float, bottom: Colour) -> None:
    """Snow between the mountains' tops and a wavy rim below them, which ends at the snow line."""
    below_tops = tops + CANVAS * 0.055 + 3 * np.sin(COLUMNS * 0.6)
    rim = np.minimum(below_tops, snow_line + 4 * np.sin(COLUMNS * 0.8))
    cap = _curve(tops) + _curve(np.maximum(tops, rim))[::-1]
    canvas.polygon(cap, blend((242, 246, 252), bottom, 0.2))


def _draw_treeline(canvas: Canvas, rng: random.Random, scene: Scene, bottom: Colour) -> None:
    """A row of small round trees and conifers."""
    horizon = scene.horizon
    palette = PALETTES[scene.season]
    foliage = blend(palette.distant_trees, bottom, 0.25)
    conifer = blend(foliage, palette.distant_conifers, 0.5)
    for index in range(TREELINE_TREES):
        x = index / (TREELINE_TREES - 1) * CANVAS + rng.uniform(-4, 4)
        size = rng.uniform(5, 11)
        y = horizon - rng.uniform(0, 8)
        if rng.random() < 0.4:
            outline = [(x - size * 0.6, horizon + 4), (x, y - size * 1.8), (x + size * 0.6, horizon + 4)]
            canvas.polygon(outline, jitter(rng, conifer, 8))
        else:
            canvas.ellipse(around(x, y, size, size), jitter(rng, foliage, 10))


def draw_ground(canvas: Canvas, rng: random.Random, scene: Scene, bottom: Colour) -> Ground:
    """Draw the ground in its season. `bottom` is the sky's colour at the horizon."""
    skyline = _skyline(rng, scene)
    palette = PALETTES[scene.season]
    far = jitter(rng, palette.far_ground, 12)
    near = jitter(rng, palette.near_ground, 12)
    sky = SKIES[scene.time]
    light = sky.light or bottom
    far = blend(far, light, sky.light_amount)
    near = blend(near, light, sky.light_amount * 0.6)

    picture = _ground_picture(rng, scene, far, near)
    area = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(area).polygon(_below(skyline), 255)
    canvas.begin("ground")
    canvas.stamp(picture, area)
    return Ground(skyline, near)


def _skyline(rng: random.Random, scene: Scene) -> np.ndarray:
    """The y of the ground's upper edge at each of COLUMNS: a little uneven, a hill in the middle or none."""
    ridge = rng.choice(textures().ridges)
    height = HILL_HEIGHT if scene.on_hill else 0
    hill = height * np.exp(-(((COLUMNS / CANVAS - 0.5) / 0.32) ** 2))
    return scene.horizon - (6 + hill) - 5 * _smooth(ridge, 20)


def _ground_picture(rng: random.Random, scene: Scene, far: Colour, near: Colour) -> Image.Image:
    """A canvas-sized picture of the ground, from `far` at the horizon to `near` at the bottom.

    Grass grows but in winter, leaves lie in autumn, flowers bloom in some summers.
    """
    size = (CANVAS, CANVAS)
    shapes = textures()
    ramp_index = int(scene.horizon * RAMP_STEPS / CANVAS) - 1
    ramp = shapes.ramps[min(len(shapes.ramps) - 1, max(0, ramp_index))]
    ground = Image.composite(Image.new("RGB", size, near), Image.new("RGB", size, far), ramp)
    soft = _crop(rng, shapes.soft)
    grain = _crop(rng, shapes.grain)
    tufts = rng.choice(shapes.tufts)
    first_speckles = rng.randrange(len(shapes.speckles))
    ground = ImageChops.overlay(ground, soft)
    if scene.season != "winter":
        ground = ImageChops.overlay(ground, grain)
        ground.paste(shade(near, 0.84), (0, 0), tufts)
        ground.paste(blend(far, (255, 255, 190), 0.12), (0, 0), ImageChops.offset(tufts, 37, 3))
    if scene.season == "autumn":
        for index, colour in enumerate(FALLEN_LEAVES):
            speckles = shapes.speckles[(first_speckles + index) % len(shapes.speckles)]
            ground.paste(colour, (0, 0), speckles)
    if scene.season == "summer" and rng.random() < FLOWER_SHARE:
        speckles = shapes.speckles[first_speckles]
        mirrored = speckles.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        flowers = ImageChops.multiply(speckles, mirrored)  # few: where both have a speckle
        ground.paste(rng.choice(FLOWERS), (0, 0), flowers)
    return ground


def _crop(rng: random.Random, pictures: Sequence[Image.Image]) -> Image.Image:
    """A canvas-sized RGB piece of one of the grey noise pictures, from a random place."""
    picture = rng.choice(pictures)
    left = rng.randrange(256)
    top = rng.randrange(256)
    piece = picture.crop((left, top, left + CANVAS, top + CANVAS))
    return Image.merge("RGB", (piece, piece, piece))


def draw_tree_shadows(canvas: Canvas, scene: Scene) -> None:
    """Flat ellipses on the ground; they darken the picture and belong to no object."""
    depth = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(depth)
    for tree in scene.trees:
        width = tree.height * (0.3 if tree.species == "oak" else 0.2)
        x = tree.x - scene.light * tree.height * 0.16
        box = (x - width, tree.y - tree.height * 0.03, x + width, tree.y + tree.height * 0.045)
        pen.ellipse(box, 40 if scene.time == "overcast" else 80)
    colour = (96, 116, 160) if scene.season == "winter" else (30, 44, 40)
    canvas.picture.paste(colour, (0, 0), depth)


def draw_tree_foot(canvas: Canvas, tree: Tree, season: str, ground_colour: Colour) -> None:
    """What lies around a trunk, as a part of the ground: a heap of snow, fallen leaves, or grass."""
    canvas.resume("ground")
    rng = random.Random(tree.seed + 3)
    x = tree.x
    y = tree.y
    reach = tree.height * 14 / CANVAS
    if season == "winter":
        canvas.ellipse((x - reach, y - reach * 0.22, x + reach, y + reach * 0.35), (246, 249, 253))
    elif season == "autumn":
        colours = LEAF_COLOURS["birch" if tree.species == "birch" else "oak"]["autumn"]
        for _ in range(26):
            leaf_x = x + rng.gauss(0, 22)
            leaf_y = y + abs(rng.gauss(0, 7)) - 1
            canvas.ellipse(around(leaf_x, leaf_y, 1.6, 1), rng.choice(colours))
    else:
        for _ in range(8):
            blade_x = x + rng.uniform(-reach, reach)
            blade = (blade_x, y + 3, blade_x + rng.uniform(-2, 2), y - rng.uniform(1, 6))
            canvas.line(blade, shade(ground_colour, rng.uniform(0.8, 1.1)))


def _smooth(ridge: np.ndarray, reach: int) -> np.ndarray:
    """The mean of each height and the `reach` heights to either side of it."""
    window = np.ones(2 * reach + 1) / (2 * reach + 1)
    return np.convolve(np.pad(ridge, reach, mode="edge"), window, "valid")


def _curve(heights: np.ndarray) -> list[Point]:
    """The points of a curve with these y at COLUMNS."""
    return list(zip(COLUMNS.tolist(), heights.tolist(), strict=True))


def _below(heights: np.ndarray) -> list[Point]:
    """The polygon between a curve and the bottom of the picture."""
    return [*_curve(heights), (CANVAS, CANVAS), (0, CANVAS)]
