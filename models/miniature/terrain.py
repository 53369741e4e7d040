"""All of a scene but its trees: sky, distance and ground share one random stream, the things on the ground another, each drawn in the
order given here whatever the season. Lengths are canvas pixels.
"""

import math
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from models.miniature.canvas import CANVAS, COLUMNS, around, blend, jitter, shade, textures
from models.miniature.plants import LEAF_COLOURS

PALETTES = {  # sky_top and sky_bottom: by which colour the season tints them, and how much
    "summer": {"sky_top": ((0, 0, 0), 0), "sky_bottom": ((0, 0, 0), 0),
               "far": (112, 150, 128), "near": (92, 142, 92), "trees": (66, 112, 62), "conifers": (60, 90, 70),
               "ground_far": (146, 184, 92), "ground_near": (74, 130, 52), "path": (190, 160, 118), "lake": ((70, 130, 180), 0.4)},
    "autumn": {"sky_top": ((160, 176, 200), 0.22), "sky_bottom": ((246, 226, 196), 0.3),
               "far": (152, 138, 132), "near": (176, 130, 78), "trees": (178, 104, 44), "conifers": (60, 90, 70),
               "ground_far": (196, 166, 92), "ground_near": (146, 112, 56), "path": (172, 138, 98), "lake": ((92, 124, 150), 0.35)},
    "winter": {"sky_top": ((186, 202, 222), 0.42), "sky_bottom": ((236, 240, 246), 0.45),
               "far": (186, 200, 220), "near": (220, 228, 238), "trees": (150, 162, 176), "conifers": (190, 204, 216),
               "ground_far": (244, 247, 252), "ground_near": (208, 220, 238), "path": (206, 204, 206), "lake": ((200, 220, 234), 0)},
}  # fmt: skip
SKIES = {  # top, bottom, clouds; colour (None: the sky's) and amount by which the light of the day tints the ground
    "day": ((84, 150, 222), (188, 220, 244), (255, 255, 255), (None, 0.12)),
    "morning": ((122, 172, 222), (252, 226, 198), (255, 255, 255), (None, 0.25)),
    "sunset": ((92, 96, 160), (252, 170, 104), (255, 214, 190), ((214, 120, 90), 0.25)),
    "overcast": ((158, 170, 184), (208, 214, 218), (226, 229, 233), ((190, 196, 202), 0.28)),
}
FALLEN_LEAVES = ((206, 96, 34), (228, 160, 44), (168, 66, 36))
FLOWERS = ((250, 250, 240), (246, 214, 70), (226, 110, 140))
WALLS = ((226, 206, 170), (190, 90, 70), (236, 232, 222), (160, 120, 86), (150, 170, 190))
ROOFS = ((120, 60, 48), (86, 76, 80), (140, 84, 50))
FENCES = ((236, 232, 224), (128, 92, 62), (110, 86, 66))
DISTANT_NOUNS = {"mountains": "mountains", "hills": "hills", "treeline": "distant trees"}


def sky_colours(rng, scene):
    """(top, bottom) RGB of the sky."""
    top, bottom, *_ = SKIES[scene.time]
    top, bottom, palette = jitter(rng, top, 12), jitter(rng, bottom, 8), PALETTES[scene.season]
    return blend(top, *palette["sky_top"]), blend(bottom, *palette["sky_bottom"])


def paint_sky(rng, scene, top, bottom):
    """A canvas-sized RGB picture of sky and clouds, computed at 64x64 as it is smooth."""
    size = 64
    down = np.linspace(0, CANVAS / scene.horizon, size, dtype=np.float32).clip(0, 1)[:, None, None]
    sky = np.array(top, np.float32) * (1 - down) + np.array(bottom, np.float32) * down
    field = textures().clouds[rng.randrange(6)]
    left, upper = rng.randrange(128), rng.randrange(64)
    field = field[upper : upper + 2 * size : 2, left : left + size]
    cover = np.clip((field - 1.1 + scene.clouds) * 0.8, 0, 0.88)[:, :, None] * np.clip(
        1.15 - 0.5 * down, 0, 1
    )
    relief = np.clip((np.roll(field, 3, 0) - field) * 18, -26, 8)[:, :, None]
    sky = sky * (1 - cover) + (np.array(SKIES[scene.time][2], np.float32) + relief) * cover
    return Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)).resize((CANVAS, CANVAS), Image.BICUBIC)


def draw_sun(canvas, rng, scene, bottom):
    """A setting sun; at other times only the draws are made, so that what follows does not depend on the time."""
    x, _ = rng.uniform(0.1, 0.9) * CANVAS, rng.uniform(0.08, 0.3) * CANVAS
    if scene.time == "sunset":
        y = scene.horizon - rng.uniform(10, 40)
        for radius, strength in ((22, 0.25), (15, 0.5), (9, 1.0)):
            canvas.ellipse(around(x, y, radius, radius), blend(bottom, (255, 240, 190), strength))


def draw_distance(canvas, rng, scene, bottom):
    """Mountains, hills or a line of trees on the horizon."""
    if scene.far == "none":
        return
    canvas.begin(DISTANT_NOUNS[scene.far])
    if scene.far == "treeline":
        _draw_treeline(canvas, rng, scene, bottom)
    else:
        for layer in range(2):
            _draw_range(canvas, rng, scene, bottom, layer)


def _smooth(ridge, reach):
    """The mean of the `reach` heights to either side."""
    return np.convolve(np.pad(ridge, reach, mode="edge"), np.ones(2 * reach + 1) / (2 * reach + 1), "valid")


def _curve(heights):
    return list(zip(COLUMNS.tolist(), heights.tolist(), strict=True))


def _below(heights):
    """The polygon between a curve and the bottom of the picture."""
    return [*_curve(heights), (CANVAS, CANVAS), (0, CANVAS)]


def _draw_range(canvas, rng, scene, bottom, layer):
    ridge, palette, mountains = (
        textures().ridges[rng.randrange(24)],
        PALETTES[scene.season],
        scene.far == "mountains",
    )
    steepness = rng.uniform(0.7, 1.1)
    if rng.random() < 0.5:
        ridge = ridge[::-1]
    if not mountains:
        ridge = _smooth(ridge, 12) * 1.3
    amplitude = CANVAS * ((0.2 - 0.07 * layer) if mountains else (0.1 - 0.02 * layer))
    base = scene.horizon - CANVAS * ((0.12 - 0.06 * layer) if mountains else (0.07 - 0.04 * layer))
    tops = base - amplitude * ridge * steepness
    canvas.polygon(
        _below(tops), blend(blend(palette["far"], palette["near"], layer), bottom, 0.5 - 0.28 * layer)
    )
    if mountains and layer == 0:  # snow caps, lower in winter
        limit = base - amplitude * steepness * (0.12 if scene.season != "winter" else -0.5)
        rim = np.minimum(tops + CANVAS * 0.055 + 3 * np.sin(COLUMNS * 0.6), limit + 4 * np.sin(COLUMNS * 0.8))
        canvas.polygon(
            _curve(tops) + _curve(np.maximum(tops, rim))[::-1], blend((242, 246, 252), bottom, 0.2)
        )


def _draw_treeline(canvas, rng, scene, bottom):
    horizon, palette = scene.horizon, PALETTES[scene.season]
    foliage = blend(palette["trees"], bottom, 0.25)
    conifer = blend(foliage, palette["conifers"], 0.5)
    for index in range(34):
        x = index / 33 * CANVAS + rng.uniform(-4, 4)
        size = rng.uniform(5, 11)
        y = horizon - rng.uniform(0, 8)
        if rng.random() < 0.4:
            outline = [(x - size * 0.6, horizon + 4), (x, y - size * 1.8), (x + size * 0.6, horizon + 4)]
            canvas.polygon(outline, jitter(rng, conifer, 8))
        else:
            canvas.ellipse(around(x, y, size, size), jitter(rng, foliage, 10))


def _crop(rng, pictures):
    picture = pictures[rng.randrange(3)]
    left, top = rng.randrange(256), rng.randrange(256)
    return Image.merge("RGB", (picture.crop((left, top, left + CANVAS, top + CANVAS)),) * 3)


def draw_ground(canvas, rng, scene, bottom):
    """The ground with grass, fallen leaves, flowers or snow; returns (y of its skyline at each of COLUMNS, colour of its near part)."""
    shapes, palette, season, size = textures(), PALETTES[scene.season], scene.season, (CANVAS, CANVAS)
    ridge = shapes.ridges[rng.randrange(24)]
    swell = (22 if scene.on_hill else 0) * np.exp(-(((COLUMNS / CANVAS - 0.5) / 0.32) ** 2))
    skyline = scene.horizon - (6 + swell) - 5 * _smooth(ridge, 20)
    area = Image.new("L", size)
    ImageDraw.Draw(area).polygon(_below(skyline), 255)

    far, near = jitter(rng, palette["ground_far"], 12), jitter(rng, palette["ground_near"], 12)
    haze, amount = SKIES[scene.time][3]
    far, near = blend(far, haze or bottom, amount), blend(near, haze or bottom, amount * 0.6)
    ramp = shapes.ramps[min(27, max(0, int(scene.horizon * 32 / CANVAS) - 1))]
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
        ground.paste(
            rng.choice(FLOWERS), (0, 0), ImageChops.multiply(dots, dots.transpose(Image.FLIP_LEFT_RIGHT))
        )
    canvas.begin("ground")
    canvas.stamp(ground, area)
    return skyline, near


def _draw_path(canvas, rng, scene, sky_top, skyline, ground_colour):
    near, far = rng.uniform(0.2, 0.8) * CANVAS, rng.uniform(0.3, 0.7) * CANVAS
    end = np.interp(far, COLUMNS, skyline) + 2
    left, right = [], []
    for index in range(13):
        part = index / 12
        y = CANVAS + (end - CANVAS) * part
        x = near + (far - near) * part + math.sin(part * 4.2) * 14 * (1 - part)
        half = 24 * (1 - part) ** 1.3 + 2
        left.append((x - half, y))
        right.insert(0, (x + half, y))
    colour = PALETTES[scene.season]["path"]
    canvas.polygon(left + right, shade(colour, 0.9))
    canvas.polygon([(x + 2, y) for x, y in left] + [(x - 3, y) for x, y in right], colour)


def _draw_lake(canvas, rng, scene, sky_top, skyline, ground_colour):
    x, y = (
        rng.uniform(0.25, 0.75) * CANVAS,
        scene.horizon + rng.uniform(0.12, 0.24) * (CANVAS - scene.horizon) + 12,
    )
    half_width, half_height = rng.uniform(46, 84), rng.uniform(9, 15)
    tint, clearness = PALETTES[scene.season]["lake"]
    water = blend(tint, sky_top, clearness)
    shore = shade(ground_colour, 0.8) if scene.season != "winter" else (232, 238, 246)
    canvas.ellipse((x - half_width - 3, y - half_height - 2, x + half_width + 3, y + half_height + 3), shore)
    canvas.ellipse(around(x, y, half_width, half_height), water)
    for _ in range(7):
        start = x + rng.uniform(-0.7, 0.5) * half_width
        row = y + rng.uniform(-0.6, 0.7) * half_height
        canvas.line((start, row, start + rng.uniform(8, 22), row), blend(water, (255, 255, 255), 0.45))


def _draw_house(canvas, rng, scene, sky_top, skyline, ground_colour):
    side = 1 if scene.trees[0].x < CANVAS / 2 else -1
    x = (0.5 + side * rng.uniform(0.12, 0.34)) * CANVAS
    half = rng.uniform(30, 44)
    height = half * rng.uniform(0.6, 0.75)
    foot = np.interp(x, COLUMNS, skyline) + rng.uniform(6, 16)
    eaves = foot - height
    wall, roof = jitter(rng, rng.choice(WALLS), 8), jitter(rng, rng.choice(ROOFS), 8)
    winter = scene.season == "winter"
    canvas.rectangle((x + half * 0.55, eaves - half * 0.52, x + half * 0.75, eaves), (120, 82, 70))  # chimney
    canvas.rectangle((x - half, eaves, x + half, foot), wall)
    canvas.rectangle((x - half, eaves, x - half * 0.35, foot), shade(wall, 0.9))
    left, right = (x - half * 1.15, eaves + 1), (x + half * 1.15, eaves + 1)
    ridge = [(x - half * 0.72, eaves - half * 0.56), (x + half * 0.72, eaves - half * 0.56)]
    canvas.polygon([left, *ridge, right], (240, 245, 251) if winter else roof)
    canvas.line((left, right), (176, 190, 208) if winter else shade(roof, 0.7), 2)
    if winter:
        canvas.rectangle(
            (x + half * 0.53, eaves - half * 0.58, x + half * 0.77, eaves - half * 0.5), (245, 248, 252)
        )
    window = (250, 226, 140) if scene.time == "sunset" or winter else (120, 150, 176)
    for middle in (x - 0.62 * half, x + 0.5 * half):
        top = foot - height * 0.72
        canvas.rectangle((middle - 5, top, middle + 5, top + 10), (250, 250, 248))
        canvas.rectangle((middle - 4, top + 1, middle + 4, top + 9), window)
    canvas.rectangle((x - 5, foot - height * 0.62, x + 5, foot), shade(roof, 0.8))


def _draw_fence(canvas, rng, scene, sky_top, skyline, ground_colour):
    foot, winter = (
        scene.horizon + (CANVAS - scene.horizon) * rng.uniform(0.18, 0.34),
        scene.season == "winter",
    )
    colour = rng.choice(FENCES)
    for lift in (7, 14):
        canvas.rectangle((0, foot - lift, CANVAS, foot - lift + 2), shade(colour, 0.9))
    for x in range(int(rng.uniform(0, 18)), CANVAS, 19):
        canvas.rectangle((x, foot - 19, x + 4, foot + 2), colour)
        canvas.line((x + 4, foot - 19, x + 4, foot + 2), shade(colour, 0.7))
        if winter:
            canvas.rectangle((x - 1, foot - 21, x + 5, foot - 18), (248, 250, 254))
    if winter:
        canvas.rectangle((0, foot - 16, CANVAS, foot - 15), (246, 249, 253))


def _draw_rocks(canvas, rng, scene, sky_top, skyline, ground_colour):
    for _ in range(rng.randint(2, 4)):
        x, y = (
            rng.uniform(0.08, 0.92) * CANVAS,
            scene.horizon + rng.uniform(0.3, 0.9) * (CANVAS - scene.horizon),
        )
        size = rng.uniform(10, 18)
        outline = []
        for angle in np.linspace(0, math.pi, 8):
            u = x + size * math.cos(angle) * rng.uniform(0.85, 1.1)
            outline.append((u, y - size * 0.8 * math.sin(angle) * rng.uniform(0.85, 1.1)))
        colour = jitter(rng, (136, 134, 132), 12)
        canvas.polygon(outline, shade(colour, 0.8))
        canvas.polygon([(u + scene.light, v * 0.82 + (y - size * 0.5) * 0.18) for u, v in outline], colour)
        if scene.season == "winter":
            canvas.polygon([(u, min(v, y - size * 0.3) - 1) for u, v in outline], (244, 248, 253))


THINGS = {
    "path": _draw_path,
    "lake": _draw_lake,
    "house": _draw_house,
    "fence": _draw_fence,
    "rocks": _draw_rocks,
}  # drawn in this order


def draw_tree_shadows(canvas, scene):
    """Flat ellipses on the ground; they darken the picture and belong to no object."""
    depth = Image.new("L", (CANVAS, CANVAS))
    for tree in scene.trees:
        width = tree.height * (0.3 if tree.species == "oak" else 0.2)
        x = tree.x - scene.light * tree.height * 0.16
        box = (x - width, tree.y - tree.height * 0.03, x + width, tree.y + tree.height * 0.045)
        ImageDraw.Draw(depth).ellipse(box, 80 if scene.time != "overcast" else 40)
    canvas.picture.paste((30, 44, 40) if scene.season != "winter" else (96, 116, 160), (0, 0), depth)


def draw_tree_foot(canvas, tree, season, ground_colour):
    """What lies around a trunk: a heap of snow, leaves, or grass."""
    canvas.resume("ground")
    x, y, reach, rng = tree.x, tree.y, tree.height * 14 / CANVAS, random.Random(tree.seed + 3)
    if season == "winter":
        canvas.ellipse((x - reach, y - reach * 0.22, x + reach, y + reach * 0.35), (246, 249, 253))
    elif season == "autumn":
        for _ in range(26):
            u, v = x + rng.gauss(0, 22), y + abs(rng.gauss(0, 7)) - 1
            canvas.ellipse(
                around(u, v, 1.6, 1),
                rng.choice(LEAF_COLOURS["birch" if tree.species == "birch" else "oak"][season]),
            )
    else:
        for _ in range(8):
            u = x + rng.uniform(-reach, reach)
            blade = (u, y + 3, u + rng.uniform(-2, 2), y - rng.uniform(1, 6))
            canvas.line(blade, shade(ground_colour, rng.uniform(0.8, 1.1)))
