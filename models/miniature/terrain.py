"""Sky, distance and ground of a scene. All share one random stream, drawn in this order whatever the season."""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from models.miniature.canvas import blend, jitter, shade
from models.miniature.textures import CANVAS, RIDGE_POINTS, textures

PALETTES = {
    "summer": {"far": (112, 150, 128), "near": (92, 142, 92), "trees": (66, 112, 62),
               "ground_far": (146, 184, 92), "ground_near": (74, 130, 52)},
    "autumn": {"far": (152, 138, 132), "near": (176, 130, 78), "trees": (178, 104, 44),
               "ground_far": (196, 166, 92), "ground_near": (146, 112, 56)},
    "winter": {"far": (186, 200, 220), "near": (220, 228, 238), "trees": (150, 162, 176),
               "ground_far": (244, 247, 252), "ground_near": (208, 220, 238)},
}  # fmt: skip
SKY_COLOURS = {  # top, bottom
    "day": ((84, 150, 222), (188, 220, 244)),
    "morning": ((122, 172, 222), (252, 226, 198)),
    "sunset": ((92, 96, 160), (252, 170, 104)),
    "overcast": ((158, 170, 184), (208, 214, 218)),
}
CLOUD_COLOURS = {"day": (255, 255, 255), "morning": (255, 255, 255), "sunset": (255, 214, 190), "overcast": (226, 229, 233)}
# colour (None: the sky's) and amount by which the light of the day tints the ground
HAZE = {"day": (None, 0.12), "morning": (None, 0.25), "sunset": ((214, 120, 90), 0.25), "overcast": ((190, 196, 202), 0.28)}
FALLEN_LEAVES = ((206, 96, 34), (228, 160, 44), (168, 66, 36))
FLOWERS = ((250, 250, 240), (246, 214, 70), (226, 110, 140))
DISTANT_NOUNS = {"mountains": "mountains", "hills": "hills", "treeline": "distant trees"}
_COLUMNS = np.linspace(0, CANVAS, RIDGE_POINTS)


@dataclass(frozen=True)
class Ground:
    """The surface that objects stand on: its skyline in canvas pixels and the colour of its near part."""

    skyline: np.ndarray
    colour: tuple

    def height_at(self, x):
        """y of the skyline at column x, in canvas pixels."""
        return float(np.interp(x, _COLUMNS, self.skyline))


def sky_colours(rng, time, season):
    """(top, bottom) RGB of the sky."""
    top, bottom = SKY_COLOURS[time]
    top, bottom = jitter(rng, top, 12), jitter(rng, bottom, 8)
    if season == "winter":
        return blend(top, (186, 202, 222), 0.42), blend(bottom, (236, 240, 246), 0.45)
    if season == "autumn":
        return blend(top, (160, 176, 200), 0.22), blend(bottom, (246, 226, 196), 0.3)
    return top, bottom


def paint_sky(rng, scene, top, bottom):
    """A canvas-sized RGB picture of sky and clouds, computed at 64x64 as it is smooth."""
    size = 64
    down = np.linspace(0, 1 / scene.horizon, size, dtype=np.float32).clip(0, 1)[:, None, None]
    sky = np.array(top, np.float32) * (1 - down) + np.array(bottom, np.float32) * down
    sky = np.repeat(sky, size, 1)
    field = textures().clouds[rng.randrange(6)]
    left, upper = rng.randrange(128), rng.randrange(64)
    field = field[upper : upper + 2 * size : 2, left : left + size]
    cover = np.clip((field - 1.1 + scene.clouds) * 0.8, 0, 0.88)[:, :, None] * np.clip(1.15 - 0.5 * down, 0, 1)
    colour = np.array(CLOUD_COLOURS[scene.time], np.float32)
    relief = np.clip((np.roll(field, 3, 0) - field) * 18, -26, 8)[:, :, None]
    sky = sky * (1 - cover) + (colour + relief) * cover
    return Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)).resize((CANVAS, CANVAS), Image.BICUBIC)


def draw_sun(canvas, rng, scene, bottom):
    """A setting sun; at other times only the draws are made, so that what follows does not depend on the time."""
    x, _ = rng.uniform(0.1, 0.9) * CANVAS, rng.uniform(0.08, 0.3) * CANVAS
    if scene.time == "sunset":
        y = scene.horizon * CANVAS - rng.uniform(10, 40)
        for radius, strength in ((22, 0.25), (15, 0.5), (9, 1.0)):
            box = (x - radius, y - radius, x + radius, y + radius)
            canvas.ellipse(box, blend(bottom, (255, 240, 190), strength))


def draw_distance(canvas, rng, scene, season, bottom):
    """Mountains, hills or a line of trees on the horizon."""
    if scene.far == "none":
        return
    canvas.begin(DISTANT_NOUNS[scene.far])
    if scene.far == "treeline":
        _draw_treeline(canvas, rng, scene, season, bottom)
    else:
        for layer in range(2):
            _draw_range(canvas, rng, scene, season, bottom, layer)


def _curve(heights):
    return list(zip(_COLUMNS.tolist(), heights.tolist(), strict=True))


def _below(heights):
    """The polygon between a curve and the bottom of the picture."""
    return [*_curve(heights), (CANVAS, CANVAS), (0, CANVAS)]


def _draw_range(canvas, rng, scene, season, bottom, layer):
    ridge = textures().ridges[rng.randrange(24)]
    steepness = rng.uniform(0.7, 1.1)
    if rng.random() < 0.5:
        ridge = ridge[::-1]
    mountains = scene.far == "mountains"
    if not mountains:
        ridge = np.convolve(np.pad(ridge, 12, mode="edge"), np.ones(25) / 25, "valid") * 1.3
    amplitude = (0.2 - 0.07 * layer) if mountains else (0.1 - 0.02 * layer)
    base = scene.horizon * CANVAS - CANVAS * ((0.12 - 0.06 * layer) if mountains else (0.07 - 0.04 * layer))
    tops = base - amplitude * CANVAS * ridge * steepness
    palette = PALETTES[season]
    colour = blend(blend(palette["far"], palette["near"], layer), bottom, 0.5 - 0.28 * layer)
    canvas.polygon(_below(tops), colour)
    if mountains and layer == 0:  # snow caps, lower in winter
        limit = base - amplitude * CANVAS * steepness * (0.12 if season != "winter" else -0.5)
        rim = np.minimum(tops + CANVAS * 0.055 + 3 * np.sin(_COLUMNS * 0.6), limit + 4 * np.sin(_COLUMNS * 0.8))
        rim = np.maximum(tops, rim)
        canvas.polygon(_curve(tops) + _curve(rim)[::-1], blend((242, 246, 252), bottom, 0.2))


def _draw_treeline(canvas, rng, scene, season, bottom):
    horizon = scene.horizon * CANVAS
    foliage = blend(PALETTES[season]["trees"], bottom, 0.25)
    conifer = blend(foliage, (60, 90, 70) if season != "winter" else (190, 204, 216), 0.5)
    for index in range(34):
        x = index / 33 * CANVAS + rng.uniform(-4, 4)
        size = rng.uniform(5, 11)
        y = horizon - rng.uniform(0, 8)
        if rng.random() < 0.4:
            outline = [(x - size * 0.6, horizon + 4), (x, y - size * 1.8), (x + size * 0.6, horizon + 4)]
            canvas.polygon(outline, jitter(rng, conifer, 8))
        else:
            canvas.ellipse((x - size, y - size, x + size, y + size), jitter(rng, foliage, 10))


def _crop(rng, pictures):
    picture = pictures[rng.randrange(3)]
    left, top = rng.randrange(256), rng.randrange(256)
    return Image.merge("RGB", (picture.crop((left, top, left + CANVAS, top + CANVAS)),) * 3)


def draw_ground(canvas, rng, scene, season, bottom):
    """The ground with grass, fallen leaves, flowers or snow; returns it as a `Ground`."""
    shapes, palette = textures(), PALETTES[season]
    horizon = scene.horizon * CANVAS
    ridge = shapes.ridges[rng.randrange(24)]
    swell = (22 if scene.on_hill else 0) * np.exp(-(((_COLUMNS / CANVAS - 0.5) / 0.32) ** 2))
    smooth = np.convolve(np.pad(ridge, 20, mode="edge"), np.ones(41) / 41, "valid")
    skyline = horizon - (6 + swell) - 5 * smooth
    area = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(area).polygon(_below(skyline), fill=255)

    far, near = jitter(rng, palette["ground_far"], 12), jitter(rng, palette["ground_near"], 12)
    haze, amount = HAZE[scene.time]
    haze = haze or bottom
    far, near = blend(far, haze, amount), blend(near, haze, amount * 0.6)
    ramp = shapes.ramps[min(27, max(0, int(scene.horizon * 32) - 1))]
    size = (CANVAS, CANVAS)
    ground = Image.composite(Image.new("RGB", size, near), Image.new("RGB", size, far), ramp)
    soft, grain = _crop(rng, shapes.soft), _crop(rng, shapes.grain)
    ground = ImageChops.overlay(ground, soft)
    tuft, speckle = shapes.tufts[rng.randrange(6)], rng.randrange(8)
    if season != "winter":
        ground = ImageChops.overlay(ground, grain)
        ground.paste(shade(near, 0.84), (0, 0), tuft)
        ground.paste(blend(far, (255, 255, 190), 0.12), (0, 0), ImageChops.offset(tuft, 37, 3))
    if season == "autumn":
        for index, colour in enumerate(FALLEN_LEAVES):
            ground.paste(colour, (0, 0), shapes.speckles[(speckle + index) % 8])
    elif season == "summer" and rng.random() < 0.35:
        dots = shapes.speckles[speckle]
        ground.paste(rng.choice(FLOWERS), (0, 0), ImageChops.multiply(dots, dots.transpose(Image.FLIP_LEFT_RIGHT)))
    canvas.begin("ground")
    canvas.stamp(ground, area)
    return Ground(skyline, near)


def draw_tree_shadows(canvas, scene, season):
    """Flat ellipses on the ground; they darken the picture and belong to no object."""
    depth = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(depth)
    for tree in scene.trees:
        x, y, height = tree.x * CANVAS, tree.y * CANVAS, tree.height * CANVAS
        width = height * (0.3 if tree.species == "oak" else 0.2)
        shift = -scene.light * height * 0.16
        box = (x + shift - width, y - height * 0.03, x + shift + width, y + height * 0.045)
        pen.ellipse(box, fill=80 if scene.time != "overcast" else 40)
    canvas.picture.paste((30, 44, 40) if season != "winter" else (96, 116, 160), (0, 0), depth)


def draw_tree_foot(canvas, tree, season, ground, leaf_colours):
    """What lies around a trunk: a heap of snow, leaves, or grass."""
    canvas.resume("ground")
    x, y = tree.x * CANVAS, tree.y * CANVAS
    reach = tree.height * 14
    if season == "winter":
        canvas.ellipse((x - reach, y - reach * 0.22, x + reach, y + reach * 0.35), (246, 249, 253))
        return
    rng = random.Random(tree.seed + 3)
    if season == "autumn":
        for _ in range(26):
            u, v = x + rng.gauss(0, 22), y + abs(rng.gauss(0, 7)) - 1
            canvas.ellipse((u - 1.6, v - 1, u + 1.6, v + 1), rng.choice(leaf_colours))
    else:
        for _ in range(8):
            u = x + rng.uniform(-reach, reach)
            blade = (u, y + 3, u + rng.uniform(-2, 2), y - rng.uniform(1, 6))
            canvas.line(blade, shade(ground.colour, rng.uniform(0.8, 1.1)))
