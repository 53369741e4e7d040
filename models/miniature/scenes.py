"""Scenes and their pictures.

A scene is a set of parameters drawn from a seed. A `Look` says how to show it, and one scene in two looks is a true
edit: everything that the looks do not name stays where it is, to the pixel where nothing else hides it.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops

from models.miniature.canvas import CANVAS, Canvas, textures
from models.miniature.plants import SPECIES, Tree, draw_tree
from models.miniature.sketch import pencil_sketch
from models.miniature.terrain import (
    THINGS,
    draw_distance,
    draw_ground,
    draw_sun,
    draw_tree_foot,
    draw_tree_shadows,
    paint_sky,
    sky_colours,
)

SIZE = CANVAS // 2  # px of the rendered pictures
SEASONS = ("summer", "autumn", "winter")
STYLES = ("photo", "sketch")
LIGHT_COLOURS = {"sunset": (255, 232, 212), "morning": (255, 246, 234), "overcast": (234, 238, 242)}


@dataclass(frozen=True)
class Look:
    """What may differ between an input and its true edit.

    `season` is one of SEASONS or "any", drawn from the scene's seed. `species` makes every tree of the scene an oak, a birch or a pine of
    the same place, height and seed; None keeps what the scene has. `style` is "photo" or "sketch".
    """

    season: str = "summer"
    species: str | None = None
    style: str = "photo"

    def __post_init__(self):
        for value, known in (
            (self.season, (*SEASONS, "any")),
            (self.species, (*SPECIES, None)),
            (self.style, STYLES),
        ):
            if value not in known:
                raise ValueError(f"unknown look {value!r}: one of {', '.join(map(str, known))}")


@dataclass(frozen=True)
class Scene:
    """Parameters of a scene; lengths are canvas pixels, two to a pixel of the picture. `trees` are sorted from far to near."""

    seed: int
    season: str
    time: str  # day, morning, sunset or overcast
    clouds: float
    horizon: float
    far: str  # mountains, hills, treeline or none
    trees: tuple[Tree, ...]
    on_hill: bool
    house: bool
    lake: bool
    path: bool
    fence: bool
    rocks: bool
    snowfall: bool
    light: int  # side that the light comes from: -1 left, 1 right


def scene(seed: int) -> Scene:
    """The scene of a seed. Training uses seeds below 1,000,000, validation from 2,000,000, tests from 3,000,000."""
    rng, season = random.Random(seed * 7919 + 13), random.Random(seed * 17 + 3).choice(SEASONS)
    time = rng.choices(["day", "morning", "sunset", "overcast"], [0.55, 0.13, 0.18, 0.14])[0]
    clouds, horizon = rng.uniform(-0.6, 1.2), rng.uniform(0.52, 0.68) * CANVAS
    far = rng.choices(["mountains", "hills", "treeline", "none"], [0.3, 0.3, 0.2, 0.2])[0]
    trees = _plant(rng, horizon)
    on_hill, house, lake = rng.random() < 0.25, rng.random() < 0.3, rng.random() < 0.2
    path = not lake and rng.random() < 0.28
    fence, rocks, snowfall = rng.random() < 0.22, rng.random() < 0.2, rng.random() < 0.3
    light = rng.choice([-1, 1])
    return Scene(
        seed,
        season,
        time,
        clouds,
        horizon,
        far,
        trees,
        on_hill,
        house,
        lake,
        path,
        fence,
        rocks,
        snowfall,
        light,
    )


def _plant(rng, horizon):
    count = rng.choices([1, 2, 3], [0.45, 0.33, 0.22])[0]
    main = rng.choices(SPECIES, [0.4, 0.27, 0.33])[0]
    mixed = count > 1 and rng.random() < 0.22
    edge = rng.uniform(0.14, 0.24)
    # every count's draws are made, so that the count changes nothing else of the scene
    places = {
        1: [rng.uniform(0.24, 0.76)],
        2: [edge + rng.uniform(0, 0.1), 1 - edge - rng.uniform(0, 0.1)],
        3: [edge, 0.5 + rng.uniform(-0.06, 0.06), 1 - edge],
    }[count]
    trees = []
    for place in places:
        depth = rng.uniform(0.25, 0.75)
        species = rng.choice(SPECIES) if mixed else main
        heights = {1: rng.uniform(0.6, 0.78), 2: rng.uniform(0.48, 0.66), 3: rng.uniform(0.4, 0.56)}
        height = heights[count] * (0.86 + 0.28 * depth)
        x, y = (place + rng.uniform(-0.02, 0.02)) * CANVAS, horizon + (0.95 * CANVAS - horizon) * depth
        trees.append(Tree(species, x, y, height * CANVAS, rng.randrange(1 << 30)))
    return tuple(sorted(trees, key=lambda tree: tree.y))


def shown(scene: Scene, look: Look) -> Scene:
    """The scene in the season and with the species that the look names; what it leaves open stays as the seed drew it."""
    trees = tuple(replace(tree, species=look.species or tree.species) for tree in scene.trees)
    return replace(scene, season=scene.season if look.season == "any" else look.season, trees=trees)


def render(scene: Scene, look: Look) -> Image.Image:
    """The picture of the scene in that look: RGB, 128x128."""
    return _draw(scene, look).picture


def instances(scene: Scene, look: Look) -> list[tuple[str, np.ndarray]]:
    """(noun, bool 128x128 mask) of every visible object, from back to front.

    Each tree is an object of its own; the others are house, lake, path, fence, rocks, mountains, hills, distant trees, sky, ground. Each
    pixel belongs to exactly one: what is in front hides what is behind. Shadows, fallen leaves, the snow around a trunk and falling snow
    belong to what they lie on.
    """
    return _draw(scene, look, labelled=True).visible()


def mask(scene: Scene, look: Look, noun: str) -> np.ndarray:
    """Bool 128x128 mask of everything of that noun."""
    return np.logical_or.reduce(
        [np.zeros((SIZE, SIZE), bool), *(area for name, area in instances(scene, look) if name == noun)]
    )


def _draw(scene, look, labelled=False):
    """A canvas with the finished picture, reduced and styled; its labels stay at canvas size."""
    scene = shown(scene, look)
    rng, rng_of_things = random.Random(scene.seed * 31 + 5), random.Random(scene.seed * 31 + 6)
    top, bottom = sky_colours(rng, scene)
    canvas = Canvas(paint_sky(rng, scene, top, bottom), labelled)
    canvas.begin("sky")
    draw_sun(canvas, rng, scene, bottom)
    draw_distance(canvas, rng, scene, bottom)
    skyline, ground_colour = draw_ground(canvas, rng, scene, bottom)
    for noun, draw in THINGS.items():
        if getattr(scene, noun):
            canvas.begin(noun)
            draw(canvas, rng_of_things, scene, top, skyline, ground_colour)
    draw_tree_shadows(canvas, scene)
    for tree in scene.trees:
        canvas.begin("tree")
        draw_tree(canvas, tree, scene.season, scene.light)
        draw_tree_foot(canvas, tree, scene.season, ground_colour)
    if scene.season == "winter" and scene.snowfall:
        canvas.picture.paste((255, 255, 255), (0, 0), textures().flakes[scene.seed % 4])
    if scene.time in LIGHT_COLOURS:
        canvas.picture = ImageChops.multiply(
            canvas.picture, Image.new("RGB", canvas.picture.size, LIGHT_COLOURS[scene.time])
        )
    if look.style == "sketch":
        canvas.picture = pencil_sketch(canvas.picture)
    canvas.picture = canvas.picture.reduce(CANVAS // SIZE)
    return canvas
