"""Trees: oaks and birches grow branches and leaves, pines tiers of needles.

A tree's form depends on its own seed only, never on the season. Lengths are canvas pixels, angles radians,
`light` is -1 or 1: the side that the light comes from.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from models.miniature.canvas import Canvas, Colour, Point, blend, jitter, shade
from models.miniature.textures import CLUMP_BORDER, CLUMP_RADII, textures

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
SUNLIT_LEAVES = {"summer": (255, 250, 170), "autumn": (255, 226, 120)}  # what lit leaves are tinted with
BARK = {"oak": (92, 68, 50), "birch": (222, 220, 212)}
WINTER_BARK = {"oak": (112, 104, 104), "birch": (226, 226, 228)}  # what the bark is tinted with
TWIGS = {"oak": (84, 64, 50), "birch": (120, 104, 92)}
BIRCH_MARK = (52, 48, 46)
NEEDLES = (36, 86, 52)
HIGHLIGHTS = {"summer": (150, 190, 110), "autumn": (150, 190, 110)}  # what lit needles are tinted with
NEEDLES_IN_SEASON = {"autumn": (70, 90, 46), "winter": (60, 92, 84)}  # what the needles are tinted with
SNOW = (244, 248, 253)
BIRCH_SIDE_BRANCHES = 7
HEM_POINTS = 8  # of a pine's tier: four teeth


@dataclass(frozen=True)
class Tree:
    """One tree: x, y of its foot and its height; `seed` decides its form."""

    species: str
    x: float
    y: float
    height: float
    seed: int


@dataclass(frozen=True)
class Segment:
    """A straight piece of trunk or branch from (x, y) to (end_x, end_y)."""

    x: float
    y: float
    end_x: float
    end_y: float
    width: float


@dataclass
class Skeleton:
    """What a broadleaf tree grows: its wood, and the places where leaves sit."""

    rng: random.Random
    spread: float  # angle between the outer branches of a fork and their stem
    upward: float  # share by which a branch turns towards the vertical
    trunk: Segment
    branches: list[Segment] = field(default_factory=list)
    tips: list[Point] = field(default_factory=list)

    def branch(self, x: float, y: float, angle: float, length: float, width: float, depth: int) -> None:
        """Grow a branch from (x, y) that forks `depth` times."""
        end_x = x + math.cos(angle) * length
        end_y = y - math.sin(angle) * length
        self.branches.append(Segment(x, y, end_x, end_y, width))
        if depth == 0:
            self.tips.append((end_x, end_y))
            return
        if depth <= 2:
            self.tips.append((0.5 * (x + end_x), 0.5 * (y + end_y)))
        forks = 3 if self.rng.random() < 0.35 else 2
        for fork in range(forks):
            side = 2 * fork / (forks - 1) - 1  # from -1 to 1
            turned = angle + self.spread * side * self.rng.uniform(0.7, 1.25) + self.rng.gauss(0, 0.1)
            turned += self.upward * (math.pi / 2 - turned)
            self.branch(end_x, end_y, turned, length * self.rng.uniform(0.66, 0.86), width * 0.66, depth - 1)


def draw_tree(canvas: Canvas, tree: Tree, season: str, light: int) -> None:
    """Draw the tree in that season."""
    DRAW_SPECIES[tree.species](canvas, tree, season, light)


def draw_broadleaf(canvas: Canvas, tree: Tree, season: str, light: int) -> None:
    """An oak or a birch."""
    rng = random.Random(tree.seed)
    crown_rng = random.Random(tree.seed + 1)
    birch = tree.species == "birch"
    skeleton = _grow_birch(rng, tree) if birch else _grow_oak(rng, tree)
    bark = jitter(rng, BARK[tree.species], 8)
    if season == "winter":
        bark = blend(bark, WINTER_BARK[tree.species], 0.35)
    twig = jitter(rng, TWIGS[tree.species], 6)
    _draw_trunk(canvas, skeleton.trunk, bark, light)
    _draw_branches(canvas, skeleton, bark, twig if birch else bark, light)
    if birch:
        _draw_birch_marks(canvas, crown_rng, tree.height, skeleton.trunk)
    if season == "winter":
        _draw_bare_crown(canvas, crown_rng, tree.height, skeleton, twig)
    else:
        _draw_leaves(canvas, crown_rng, tree, skeleton.tips, season, light)


def _grow_oak(rng: random.Random, tree: Tree) -> Skeleton:
    """A short trunk with three great limbs."""
    width = tree.height * 0.066 * rng.uniform(0.85, 1.2)
    trunk_height = tree.height * rng.uniform(0.24, 0.32)
    lean = rng.gauss(0, 0.05)
    spread = rng.uniform(0.5, 0.68)
    trunk = Segment(tree.x, tree.y, tree.x + lean * trunk_height, tree.y - trunk_height, width)
    skeleton = Skeleton(rng, spread, upward=0.06, trunk=trunk)
    limb = (tree.height - trunk_height) * 0.285
    for index in range(3):
        angle = math.pi / 2 - lean + spread * (index - 1) * rng.uniform(0.9, 1.25)
        length = limb * rng.uniform(0.9, 1.1)
        skeleton.branch(trunk.end_x, trunk.end_y, angle, length, width * 0.66, depth=3)
    return skeleton


def _grow_birch(rng: random.Random, tree: Tree) -> Skeleton:
    """A slender trunk that goes on as a straight leader, with side branches left and right in turn."""
    width = tree.height * 0.034 * rng.uniform(0.85, 1.2)
    trunk_height = tree.height * rng.uniform(0.30, 0.38)
    lean = rng.gauss(0, 0.05)
    rng.random()  # an oak's spread; drawn for a birch too, whose form the models were trained on
    trunk = Segment(tree.x, tree.y, tree.x + lean * trunk_height, tree.y - trunk_height, width)
    skeleton = Skeleton(rng, spread=0.42, upward=-0.02, trunk=trunk)
    top = tree.y - tree.height * 0.9
    leader = Segment(trunk.end_x, trunk.end_y, trunk.end_x + lean * 20, top, width * 0.6)
    skeleton.branches.append(leader)
    for index in range(BIRCH_SIDE_BRANCHES):
        part = index / BIRCH_SIDE_BRANCHES  # of the leader's length, from below
        side = 1 if index % 2 else -1
        angle = math.pi / 2 + side * rng.uniform(0.6, 0.95)
        length = tree.height * 0.17 * (1.1 - 0.75 * part)
        x = leader.x + lean * 20 * part
        y = leader.y + (top - leader.y) * part
        skeleton.branch(x, y, angle, length, width * 0.4, depth=2)
    skeleton.tips.append((leader.end_x, top))
    skeleton.tips.append((leader.end_x, top + 8))
    return skeleton


def _draw_trunk(canvas: Canvas, trunk: Segment, bark: Colour, light: int) -> None:
    """A trunk that widens towards its foot, with a lit face on the side of the light."""
    foot_x = trunk.x
    foot_y = trunk.y
    half = trunk.width * 0.5
    waist = foot_y - (foot_y - trunk.end_y) * 0.25
    outline = [
        (foot_x - half * 1.35, foot_y + 2),
        (foot_x - half * 0.95, waist),
        (trunk.end_x - half * 0.8, trunk.end_y),
        (trunk.end_x + half * 0.8, trunk.end_y),
        (foot_x + half * 0.95, waist),
        (foot_x + half * 1.35, foot_y + 2),
    ]
    canvas.polygon(outline, shade(bark, 0.82))
    shift = half * 0.35 * light
    face = [
        (foot_x - half * 0.6 + shift, foot_y + 1),
        (trunk.end_x - half * 0.45 + shift, trunk.end_y),
        (trunk.end_x + half * 0.4 + shift, trunk.end_y),
        (foot_x + half * 0.6 + shift, foot_y + 1),
    ]
    canvas.polygon(face, bark)


def _draw_branches(canvas: Canvas, skeleton: Skeleton, bark: Colour, twig: Colour, light: int) -> None:
    """Thick branches in the colour of the bark, with a lit side, and thin ones in that of twigs."""
    for branch in skeleton.branches:
        colour = bark if branch.width > skeleton.trunk.width * 0.45 else twig
        width = max(1, int(round(branch.width)))
        canvas.line((branch.x, branch.y, branch.end_x, branch.end_y), shade(colour, 0.86), width)
        if width >= 4:
            lit_side = (branch.x + light, branch.y, branch.end_x + light, branch.end_y)
            canvas.line(lit_side, shade(colour, 1.1), width // 2)


def _draw_birch_marks(canvas: Canvas, rng: random.Random, height: float, trunk: Segment) -> None:
    """Short dark strokes across the trunk and the lower part of the leader."""
    width = trunk.width
    for _ in range(9):
        part = rng.random()
        middle = trunk.x + (trunk.end_x - trunk.x) * min(1, part * 1.6)
        x = middle + rng.uniform(-0.4, 0.4) * width * 0.6
        y = trunk.y - part * height * 0.6
        canvas.line((x - width * 0.25, y, x + width * 0.2, y), BIRCH_MARK, 2 if width > 5 else 1)


def _draw_bare_crown(
    canvas: Canvas, rng: random.Random, height: float, skeleton: Skeleton, twig: Colour
) -> None:
    """Twigs at the tips, snow on flat or thick branches, and snow at some of the tips."""
    for x, y in skeleton.tips:
        for _ in range(3):
            angle = rng.uniform(0.1, 3.04)
            length = rng.uniform(0.028, 0.06) * height
            ends = (x, y, x + length * math.cos(angle), y - length * math.sin(angle))
            canvas.line(ends, shade(twig, 0.95))
    for branch in skeleton.branches:
        flat = abs(branch.end_x - branch.x) > 0.45 * abs(branch.end_y - branch.y)
        if flat or branch.width > skeleton.trunk.width * 0.3:
            lift = branch.width * 0.5 + 0.5
            upper_side = (branch.x, branch.y - lift, branch.end_x, branch.end_y - lift)
            canvas.line(upper_side, SNOW, max(1, int(branch.width * 0.5 + 0.7)))
    for x, y in skeleton.tips:
        if rng.random() < 0.55:
            radius = rng.choice((8, 11))
            _stamp_clump(canvas, rng, "sparse", radius, x, y - 1, jitter(rng, (236, 242, 250), 6))


def _draw_leaves(
    canvas: Canvas, rng: random.Random, tree: Tree, tips: Sequence[Point], season: str, light: int
) -> None:
    """Clumps of leaves at the tips, in three layers: shaded, of the leaves' own colour, and sunlit above."""
    leaf = jitter(rng, rng.choice(LEAF_COLOURS[tree.species][season]), 12)
    sunlit = blend(leaf, SUNLIT_LEAVES[season], 0.34)
    wanted_radius = tree.height * (0.062 if tree.species == "birch" else 0.088)
    differences = [abs(radius - wanted_radius) for radius in CLUMP_RADII]
    nearest = differences.index(min(differences))
    radius = CLUMP_RADII[nearest]
    smaller = CLUMP_RADII[max(0, nearest - 1)]
    middle = sum(y for _, y in tips) / len(tips)
    upper_tips = [(x, y) for x, y in tips if y < middle + tree.height * 0.12]
    for x, y in tips:
        _stamp_clump(canvas, rng, "full", radius, x - 2 * light, y + 3, jitter(rng, shade(leaf, 0.62), 6))
    for x, y in tips:
        _stamp_clump(canvas, rng, "mid", radius, x + light, y - 1, jitter(rng, leaf, 10))
    for x, y in upper_tips:
        _stamp_clump(canvas, rng, "sparse", smaller, x + 3 * light, y - 4, jitter(rng, sunlit, 10))


def _stamp_clump(
    canvas: Canvas, rng: random.Random, density: str, radius: int, x: float, y: float, colour: Colour
) -> None:
    """A clump of leaves with its middle at (x, y)."""
    clumps = textures().clumps[density][radius]
    clump = clumps[int(rng.random() * len(clumps))]
    middle = radius + CLUMP_BORDER
    canvas.stamp(colour, clump, (int(x) - middle, int(y) - middle))


@dataclass(frozen=True)
class Tier:
    """One skirt of a pine: its tip at (x, top), its hem at about y = base, half_width to either side of x."""

    x: float
    top: float
    base: float
    half_width: float
    tree_height: float


def draw_pine(canvas: Canvas, tree: Tree, season: str, light: int) -> None:
    """A pine: a trunk and six to eight tiers, from the lowest to the highest."""
    rng = random.Random(tree.seed)
    _draw_pine_trunk(canvas, tree, light)
    tiers = rng.randint(6, 8)
    widest = tree.height * rng.uniform(0.21, 0.28)
    needles = jitter(rng, NEEDLES, 10)
    if season in NEEDLES_IN_SEASON:
        needles = blend(needles, NEEDLES_IN_SEASON[season], 0.35)
    lowest = tree.y - tree.height * 0.1
    highest = tree.y - tree.height
    for index in range(tiers):
        part = index / tiers
        tier = Tier(
            x=tree.x,
            top=lowest + (highest - lowest) * min(1, (index + 1.75) / tiers),
            base=lowest + (highest - lowest) * part,
            half_width=widest * (1 - part) ** 0.85 + 2,
            tree_height=tree.height,
        )
        hem = _ragged_hem(rng, tier)
        colour = jitter(rng, shade(needles, 0.8 + 0.3 * part), 5)
        _draw_needles(canvas, tier, hem, colour, light)
        _draw_highlights(canvas, rng, tier, blend(colour, HIGHLIGHTS.get(season, colour), 0.25))
        if season == "winter":
            _draw_tier_snow(canvas, tier, hem, light)


def _draw_pine_trunk(canvas: Canvas, tree: Tree, light: int) -> None:
    x = tree.x
    y = tree.y
    width = tree.height * 0.045
    top = y - tree.height * 0.16
    canvas.rectangle((x - width * 0.5, top, x + width * 0.5, y + 2), (84, 62, 46))
    shift = width * 0.2 * light
    canvas.rectangle((x - width * 0.1 + shift, top, x + width * 0.15 + shift, y + 2), (110, 84, 62))


def _ragged_hem(rng: random.Random, tier: Tier) -> list[Point]:
    """The hem from left to right: every second point is a tooth, and the middle hangs lower than the ends."""
    height = tier.tree_height
    hem = []
    for index in range(HEM_POINTS):
        across = index / (HEM_POINTS - 1) * 2 - 1
        x = tier.x + across * tier.half_width * rng.uniform(0.92, 1.05)
        tooth = (height * 0.02 if index % 2 else -height * 0.006) * rng.uniform(0.6, 1.2)
        hem.append((x, tier.base + (1 - abs(across)) * height * 0.022 + tooth))
    return hem


def _draw_needles(canvas: Canvas, tier: Tier, hem: Sequence[Point], colour: Colour, light: int) -> None:
    """A dark skirt, and a lighter one inside it towards the light."""
    canvas.polygon([(tier.x, tier.top), *reversed(hem)], shade(colour, 0.78))
    inner = []
    for x, y in hem:
        inner_x = tier.x + (x - tier.x) * 0.86 + light * tier.half_width * 0.1
        inner.append((inner_x, tier.base + (y - tier.base) - tier.tree_height * 0.012))
    canvas.polygon([(tier.x + light, tier.top), *reversed(inner)], colour)


def _draw_highlights(canvas: Canvas, rng: random.Random, tier: Tier, colour: Colour) -> None:
    """A few short strokes that slope away from the trunk."""
    for _ in range(6):
        across = rng.uniform(-0.8, 0.8)
        down = rng.uniform(0.25, 0.9)
        x = tier.x + across * tier.half_width * down
        y = tier.top + (tier.base - tier.top) * down
        canvas.line((x, y, x + (3 if across > 0 else -3), y + 4), colour)


def _draw_tier_snow(canvas: Canvas, tier: Tier, hem: Sequence[Point], light: int) -> None:
    """Snow on a tier: a cover that leaves the hem's teeth green, and a brighter one towards the light."""
    cover = []
    bright = []
    shift = light * tier.half_width * 0.16
    for index, (x, y) in enumerate(hem):
        tooth = index % 2 == 1
        across = x - tier.x
        down = y - tier.top
        cover.append((tier.x + across * 0.93, tier.top + down * (0.60 if tooth else 0.78)))
        bright.append((tier.x + across * 0.72 + shift, tier.top + down * (0.48 if tooth else 0.64)))
    canvas.polygon([(tier.x, tier.top - 1), *reversed(cover)], (226, 234, 245))
    canvas.polygon([(tier.x + light, tier.top - 1), *reversed(bright)], (248, 251, 255))


DRAW_SPECIES: dict[str, Callable[[Canvas, Tree, str, int], None]] = {
    "oak": draw_broadleaf,
    "birch": draw_broadleaf,
    "pine": draw_pine,
}
