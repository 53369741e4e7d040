"""Trees: oaks and birches grow branches and leaves, pines tiers. Their form depends on their own seed only, never on the season."""

import math
import random
from dataclasses import dataclass

from models.miniature.canvas import CLUMP_RADII, blend, jitter, shade, textures

SPECIES = ("oak", "birch", "pine")
LEAF_COLOURS = {
    "oak": {
        "summer": ((46, 104, 36), (58, 118, 40), (40, 98, 50)),
        "autumn": ((206, 92, 28), (190, 62, 30), (222, 138, 34)),
    },
    "birch": {
        "summer": ((92, 150, 56), (108, 160, 62), (82, 146, 70)),
        "autumn": ((236, 186, 48), (228, 166, 40), (240, 200, 74)),
    },
}
SNOW = (244, 248, 253)


@dataclass(frozen=True)
class Tree:
    """One tree: x, y of its foot and its height in canvas pixels; `seed` decides its form."""

    species: str
    x: float
    y: float
    height: float
    seed: int


def draw_tree(canvas, tree, season, light):
    """Draw the tree onto the canvas; `light` is -1 or 1, the side that the light comes from."""
    (_draw_pine if tree.species == "pine" else _draw_broadleaf)(canvas, tree, season, light)


def _grow(rng, tree):
    """(segments (x, y, x2, y2, width), the first the trunk; places (x, y) where leaves sit)."""
    birch, height, x, y = tree.species == "birch", tree.height, tree.x, tree.y
    width = height * (0.034 if birch else 0.066) * rng.uniform(0.85, 1.2)
    trunk = height * (rng.uniform(0.30, 0.38) if birch else rng.uniform(0.24, 0.32))
    lean = rng.gauss(0, 0.05)
    spread, upward = (
        rng.uniform(0.34, 0.46) if birch else rng.uniform(0.5, 0.68),
        0.06,
    )  # of the branches' forks
    if birch:
        spread, upward = 0.42, -0.02  # whatever was drawn
    fork_x, fork_y = x + lean * trunk, y - trunk
    segments, tips = [(x, y, fork_x, fork_y, width)], []

    def branch(x, y, angle, length, width, depth):
        x2, y2 = x + math.cos(angle) * length, y - math.sin(angle) * length
        segments.append((x, y, x2, y2, width))
        if depth == 0:
            tips.append((x2, y2))
            return
        if depth <= 2:
            tips.append((0.5 * (x + x2), 0.5 * (y + y2)))
        forks = 3 if rng.random() < 0.35 else 2
        for fork in range(forks):
            turned = (
                angle + spread * (2 * fork / (forks - 1) - 1) * rng.uniform(0.7, 1.25) + rng.gauss(0, 0.1)
            )
            turned += upward * (math.pi / 2 - turned)
            branch(x2, y2, turned, length * rng.uniform(0.66, 0.86), width * 0.66, depth - 1)

    if birch:  # a straight leader with side branches
        top, branches = y - height * 0.9, 7
        segments.append((fork_x, fork_y, fork_x + lean * 20, top, width * 0.6))
        for index in range(branches):
            part = index / branches
            angle = math.pi / 2 + (1 if index % 2 else -1) * rng.uniform(0.6, 0.95)
            length = height * 0.17 * (1.1 - 0.75 * part)
            branch(fork_x + lean * 20 * part, fork_y + (top - fork_y) * part, angle, length, width * 0.4, 2)
        tips += [(fork_x + lean * 20, top), (fork_x + lean * 20, top + 8)]
    else:  # three great limbs
        length = (height - trunk) * 0.285
        for index in range(3):
            angle = math.pi / 2 - lean + spread * (index - 1) * rng.uniform(0.9, 1.25)
            branch(fork_x, fork_y, angle, length * rng.uniform(0.9, 1.1), width * 0.66, 3)
    return segments, tips


def _draw_wood(canvas, segments, bark, twig, light):
    x, y, x2, y2, trunk_width = segments[0]
    half, waist = trunk_width * 0.5, y - (y - y2) * 0.25
    left = [(x - half * 1.35, y + 2), (x - half * 0.95, waist), (x2 - half * 0.8, y2)]
    right = [(x2 + half * 0.8, y2), (x + half * 0.95, waist), (x + half * 1.35, y + 2)]
    canvas.polygon(left + right, shade(bark, 0.82))
    lit = half * 0.35 * light
    face = [
        (x - half * 0.6 + lit, y + 1),
        (x2 - half * 0.45 + lit, y2),
        (x2 + half * 0.4 + lit, y2),
        (x + half * 0.6 + lit, y + 1),
    ]
    canvas.polygon(face, bark)
    for x, y, x2, y2, width in segments[1:]:
        colour = bark if width > trunk_width * 0.45 else twig
        pixels = max(1, int(round(width)))
        canvas.line((x, y, x2, y2), shade(colour, 0.86), pixels)
        if pixels >= 4:
            canvas.line((x + light, y, x2 + light, y2), shade(colour, 1.1), pixels // 2)


def _draw_birch_marks(canvas, rng, height, trunk):
    foot_x, foot_y, fork_x, _, width = trunk
    for _ in range(9):
        part = rng.random()
        x = foot_x + (fork_x - foot_x) * min(1, part * 1.6) + rng.uniform(-0.4, 0.4) * width * 0.6
        y = foot_y - part * height * 0.6
        canvas.line((x - width * 0.25, y, x + width * 0.2, y), (52, 48, 46), 1 + (width > 5))


def _stamp_clump(canvas, rng, density, radius, x, y, colour):
    clump = textures().clumps[density][radius][int(rng.random() * 10)]
    canvas.stamp(colour, clump, (int(x) - radius - 3, int(y) - radius - 3))


def _draw_snowy_crown(canvas, rng, height, segments, tips, twig):
    for x, y in tips:
        for _ in range(3):
            angle, length = rng.uniform(0.1, 3.04), rng.uniform(0.028, 0.06) * height
            canvas.line((x, y, x + length * math.cos(angle), y - length * math.sin(angle)), shade(twig, 0.95))
    for x, y, x2, y2, width in segments[1:]:
        flat = abs(x2 - x) > 0.45 * abs(y2 - y)
        if flat or width > segments[0][4] * 0.3:  # snow stays on flat or thick branches
            lift = width * 0.5 + 0.5
            canvas.line((x, y - lift, x2, y2 - lift), SNOW, max(1, int(width * 0.5 + 0.7)))
    for x, y in tips:
        if rng.random() < 0.55:
            _stamp_clump(
                canvas, rng, "sparse", rng.choice((8, 11)), x, y - 1, jitter(rng, (236, 242, 250), 6)
            )


def _draw_leaves(canvas, rng, tree, tips, season, light):
    leaf = jitter(rng, rng.choice(LEAF_COLOURS[tree.species][season]), 12)
    wanted = tree.height * (0.062 if tree.species == "birch" else 0.088)
    index = min(range(len(CLUMP_RADII)), key=lambda i: abs(CLUMP_RADII[i] - wanted))
    radius, smaller = CLUMP_RADII[index], CLUMP_RADII[max(0, index - 1)]
    middle = sum(y for _, y in tips) / len(tips)
    high = [(x, y) for x, y in tips if y < middle + tree.height * 0.12]
    lit = blend(leaf, (255, 250, 170) if season == "summer" else (255, 226, 120), 0.34)
    for density, places, right, down, size, colour, spread in (
        ("full", tips, -2, 3, radius, shade(leaf, 0.62), 6),
        ("mid", tips, 1, -1, radius, leaf, 10),
        ("sparse", high, 3, -4, smaller, lit, 10),
    ):
        for x, y in places:
            _stamp_clump(canvas, rng, density, size, x + right * light, y + down, jitter(rng, colour, spread))


def _draw_broadleaf(canvas, tree, season, light):
    rng, crown_rng, birch = random.Random(tree.seed), random.Random(tree.seed + 1), tree.species == "birch"
    segments, tips = _grow(rng, tree)
    bark = jitter(rng, (222, 220, 212) if birch else (92, 68, 50), 8)
    if season == "winter":
        bark = blend(bark, (226, 226, 228) if birch else (112, 104, 104), 0.35)
    twig = jitter(rng, (120, 104, 92) if birch else (84, 64, 50), 6)
    _draw_wood(canvas, segments, bark, twig if birch else bark, light)
    if birch:
        _draw_birch_marks(canvas, crown_rng, tree.height, segments[0])
    if season == "winter":
        _draw_snowy_crown(canvas, crown_rng, tree.height, segments, tips, twig)
    else:
        _draw_leaves(canvas, crown_rng, tree, tips, season, light)


def _draw_pine(canvas, tree, season, light):
    rng, height, x, y = random.Random(tree.seed), tree.height, tree.x, tree.y
    trunk, trunk_top = height * 0.045, y - height * 0.16
    canvas.rectangle((x - trunk * 0.5, trunk_top, x + trunk * 0.5, y + 2), (84, 62, 46))
    lit = trunk * 0.2 * light
    canvas.rectangle((x - trunk * 0.1 + lit, trunk_top, x + trunk * 0.15 + lit, y + 2), (110, 84, 62))
    tiers = rng.randint(6, 8)
    widest = height * rng.uniform(0.21, 0.28)
    needles = jitter(rng, (36, 86, 52), 10)
    if season != "summer":
        needles = blend(needles, (70, 90, 46) if season == "autumn" else (60, 92, 84), 0.35)
    lowest, highest = y - height * 0.1, y - height
    for tier in range(tiers):
        part = tier / tiers
        base = lowest + (highest - lowest) * part
        top = lowest + (highest - lowest) * min(1, (tier + 1.75) / tiers)
        _draw_tier(
            canvas,
            rng,
            tree,
            season,
            light,
            shade(needles, 0.8 + 0.3 * part),
            base,
            top,
            widest * (1 - part) ** 0.85 + 2,
        )


def _draw_tier(canvas, rng, tree, season, light, green, base, top, half_width):
    """One skirt of a pine, from its tip at y = `top` to its ragged hem at y = `base`."""
    height, x, hem = tree.height, tree.x, []
    for j in range(8):
        across = j / 7 * 2 - 1
        hem_x = x + across * half_width * rng.uniform(0.92, 1.05)
        tooth = (height * 0.02 if j % 2 else -height * 0.006) * rng.uniform(0.6, 1.2)
        hem.append((hem_x, base + (1 - abs(across)) * height * 0.022 + tooth))
    colour = jitter(rng, green, 5)
    canvas.polygon([(x, top)] + hem[::-1], shade(colour, 0.78))
    inner = [
        (x + (u - x) * 0.86 + light * half_width * 0.1, base + (v - base) - height * 0.012) for u, v in hem
    ]
    canvas.polygon([(x + light, top)] + inner[::-1], colour)
    highlight = blend(colour, (150, 190, 110) if season != "winter" else colour, 0.25)
    for _ in range(6):
        across, down = rng.uniform(-0.8, 0.8), rng.uniform(0.25, 0.9)
        u, v = x + across * half_width * down, top + (base - top) * down
        canvas.line((u, v, u + (3 if across > 0 else -3), v + 4), highlight)
    if season == "winter":
        snow = [
            (x + (u - x) * 0.93, top + (v - top) * (0.60 if j % 2 else 0.78)) for j, (u, v) in enumerate(hem)
        ]
        canvas.polygon([(x, top - 1)] + snow[::-1], (226, 234, 245))
        lit = light * half_width * 0.16
        bright = [
            (x + (u - x) * 0.72 + lit, top + (v - top) * (0.48 if j % 2 else 0.64))
            for j, (u, v) in enumerate(hem)
        ]
        canvas.polygon([(x + light, top - 1)] + bright[::-1], (248, 251, 255))
