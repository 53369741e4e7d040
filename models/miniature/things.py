"""Things that stand or lie on the ground: path, lake, house, fence, rocks. They share one random stream, in this order."""

import math

import numpy as np

from models.miniature.canvas import blend, jitter, shade
from models.miniature.textures import CANVAS

WALLS = ((226, 206, 170), (190, 90, 70), (236, 232, 222), (160, 120, 86), (150, 170, 190))
ROOFS = ((120, 60, 48), (86, 76, 80), (140, 84, 50))
FENCES = ((236, 232, 224), (128, 92, 62), (110, 86, 66))


def _draw_path(canvas, rng, scene, season, sky_top, ground):
    near, far = rng.uniform(0.2, 0.8) * CANVAS, rng.uniform(0.3, 0.7) * CANVAS
    end = ground.height_at(far) + 2
    left, right = [], []
    for index in range(13):
        part = index / 12
        y = CANVAS + (end - CANVAS) * part
        x = near + (far - near) * part + math.sin(part * 4.2) * 14 * (1 - part)
        half = 24 * (1 - part) ** 1.3 + 2
        left.append((x - half, y))
        right.append((x + half, y))
    colour = {"summer": (190, 160, 118), "autumn": (172, 138, 98), "winter": (206, 204, 206)}[season]
    canvas.polygon(left + right[::-1], shade(colour, 0.9))
    canvas.polygon([(x + 2, y) for x, y in left] + [(x - 3, y) for x, y in right[::-1]], colour)


def _draw_lake(canvas, rng, scene, season, sky_top, ground):
    horizon = scene.horizon * CANVAS
    x, y = rng.uniform(0.25, 0.75) * CANVAS, horizon + rng.uniform(0.12, 0.24) * (CANVAS - horizon) + 12
    half_width, half_height = rng.uniform(46, 84), rng.uniform(9, 15)
    if season == "winter":
        water, shore = (200, 220, 234), (232, 238, 246)
    else:
        tint = {"summer": ((70, 130, 180), 0.4), "autumn": ((92, 124, 150), 0.35)}[season]
        water, shore = blend(tint[0], sky_top, tint[1]), shade(ground.colour, 0.8)
    canvas.ellipse((x - half_width - 3, y - half_height - 2, x + half_width + 3, y + half_height + 3), shore)
    canvas.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), water)
    for _ in range(7):
        start = rng.uniform(-0.7, 0.5) * half_width
        row = y + rng.uniform(-0.6, 0.7) * half_height
        canvas.line((x + start, row, x + start + rng.uniform(8, 22), row), blend(water, (255, 255, 255), 0.45))


def _draw_house(canvas, rng, scene, season, sky_top, ground):
    side = 1 if scene.trees[0].x < 0.5 else -1
    x = (0.5 + side * rng.uniform(0.12, 0.34)) * CANVAS
    half = rng.uniform(30, 44)
    height = half * rng.uniform(0.6, 0.75)
    foot = ground.height_at(x) + rng.uniform(6, 16)
    eaves = foot - height
    wall, roof = jitter(rng, rng.choice(WALLS), 8), jitter(rng, rng.choice(ROOFS), 8)
    winter = season == "winter"
    canvas.rectangle((x + half * 0.55, eaves - half * 0.52, x + half * 0.75, eaves), (120, 82, 70))  # chimney
    canvas.rectangle((x - half, eaves, x + half, foot), wall)
    canvas.rectangle((x - half, eaves, x - half * 0.35, foot), shade(wall, 0.9))
    left, right = (x - half * 1.15, eaves + 1), (x + half * 1.15, eaves + 1)
    ridge = [(x - half * 0.72, eaves - half * 0.56), (x + half * 0.72, eaves - half * 0.56)]
    canvas.polygon([left, *ridge, right], (240, 245, 251) if winter else roof)
    canvas.line((left, right), (176, 190, 208) if winter else shade(roof, 0.7), 2)
    if winter:
        canvas.rectangle((x + half * 0.53, eaves - half * 0.58, x + half * 0.77, eaves - half * 0.5), (245, 248, 252))
    window = (250, 226, 140) if scene.time == "sunset" or winter else (120, 150, 176)
    for place in (-0.62, 0.5):
        top = foot - height * 0.72
        canvas.rectangle((x + place * half - 5, top, x + place * half + 5, top + 10), (250, 250, 248))
        canvas.rectangle((x + place * half - 4, top + 1, x + place * half + 4, top + 9), window)
    canvas.rectangle((x - 5, foot - height * 0.62, x + 5, foot), shade(roof, 0.8))


def _draw_fence(canvas, rng, scene, season, sky_top, ground):
    horizon = scene.horizon * CANVAS
    foot = horizon + (CANVAS - horizon) * rng.uniform(0.18, 0.34)
    colour = rng.choice(FENCES)
    for lift in (7, 14):
        canvas.rectangle((0, foot - lift, CANVAS, foot - lift + 2), shade(colour, 0.9))
    for x in range(int(rng.uniform(0, 18)), CANVAS, 19):
        canvas.rectangle((x, foot - 19, x + 4, foot + 2), colour)
        canvas.line((x + 4, foot - 19, x + 4, foot + 2), shade(colour, 0.7))
        if season == "winter":
            canvas.rectangle((x - 1, foot - 21, x + 5, foot - 18), (248, 250, 254))
    if season == "winter":
        canvas.rectangle((0, foot - 16, CANVAS, foot - 15), (246, 249, 253))


def _draw_rocks(canvas, rng, scene, season, sky_top, ground):
    horizon = scene.horizon * CANVAS
    for _ in range(rng.randint(2, 4)):
        x, y = rng.uniform(0.08, 0.92) * CANVAS, horizon + rng.uniform(0.3, 0.9) * (CANVAS - horizon)
        size = rng.uniform(10, 18)
        outline = []
        for angle in np.linspace(0, math.pi, 8):
            u = x + size * math.cos(angle) * rng.uniform(0.85, 1.1)
            outline.append((u, y - size * 0.8 * math.sin(angle) * rng.uniform(0.85, 1.1)))
        colour = jitter(rng, (136, 134, 132), 12)
        canvas.polygon(outline, shade(colour, 0.8))
        canvas.polygon([(u + scene.light, v * 0.82 + (y - size * 0.5) * 0.18) for u, v in outline], colour)
        if season == "winter":
            canvas.polygon([(u, min(v, y - size * 0.3) - 1) for u, v in outline], (244, 248, 253))


DRAWN = {"path": _draw_path, "lake": _draw_lake, "house": _draw_house, "fence": _draw_fence, "rocks": _draw_rocks}


def draw_things(canvas, rng, scene, season, sky_top, ground):
    """Draw everything the scene has besides its trees."""
    for noun, draw in DRAWN.items():
        if getattr(scene, noun):
            canvas.begin(noun)
            draw(canvas, rng, scene, season, sky_top, ground)
