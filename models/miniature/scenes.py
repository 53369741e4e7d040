"""Scenes and their pictures.

A scene is a set of parameters drawn from a seed. A `Look` says how to show it, and one scene in two looks is
a true edit: everything that the looks do not name stays where it is, to the pixel where nothing hides it.
"""

import operator
import random
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops

from models.miniature.canvas import CANVAS, Canvas
from models.miniature.plants import SPECIES, Tree, draw_tree
from models.miniature.sketch import pencil_sketch
from models.miniature.terrain import (
    draw_distance,
    draw_ground,
    draw_sun,
    draw_tree_foot,
    draw_tree_shadows,
    paint_sky,
    sky_colours,
)
from models.miniature.textures import textures
from models.miniature.things import THINGS, Surroundings

SIZE = CANVAS // 2  # px of the rendered pictures
SEASONS = ("summer", "autumn", "winter")
STYLES = ("photo", "sketch")
LIGHT_COLOURS = {"sunset": (255, 232, 212), "morning": (255, 246, 234), "overcast": (234, 238, 242)}


@dataclass(frozen=True)
class Look:
    """What may differ between an input and its true edit. ValueError for a name that is none of those below.

    `season` is one of SEASONS, or "any": the one drawn from the scene's seed. `species` is one of SPECIES and
    makes every tree of the scene one of that species, of the same place, height and seed; None keeps what the
    scene has. `style` is one of STYLES.
    """

    season: str = "summer"
    species: str | None = None
    style: str = "photo"

    def __post_init__(self) -> None:
        _check_known(self.season, (*SEASONS, "any"))
        _check_known(self.species, (*SPECIES, None))
        _check_known(self.style, STYLES)


def _check_known(value: str | None, known: Collection[str | None]) -> None:
    if value not in known:
        raise ValueError(f"unknown look {value!r}: one of {', '.join(map(str, known))}")


@dataclass(frozen=True)
class Scene:
    """Parameters of a scene; lengths are canvas pixels, two to a pixel of the picture."""

    seed: int
    season: str
    time: str  # day, morning, sunset or overcast
    clouds: float  # -0.6 (clear) to 1.2 (covered)
    horizon: float
    far: str  # mountains, hills, treeline or none
    trees: tuple[Tree, ...]  # one to three, from far to near
    on_hill: bool
    house: bool
    lake: bool
    path: bool
    fence: bool
    rocks: bool
    snowfall: bool  # in winter
    light: int  # side that the light comes from: -1 left, 1 right


def scene(seed: int) -> Scene:
    """The scene of a seed: below 1,000,000 for training, from 2,000,000 validation, from 3,000,000 tests."""
    season = random.Random(seed * 17 + 3).choice(SEASONS)
    rng = random.Random(seed * 7919 + 13)
    time = rng.choices(["day", "morning", "sunset", "overcast"], [0.55, 0.13, 0.18, 0.14])[0]
    clouds = rng.uniform(-0.6, 1.2)
    horizon = rng.uniform(0.52, 0.68) * CANVAS
    far = rng.choices(["mountains", "hills", "treeline", "none"], [0.3, 0.3, 0.2, 0.2])[0]
    trees = _plant(rng, horizon)
    on_hill = rng.random() < 0.25
    house = rng.random() < 0.3
    lake = rng.random() < 0.2
    path = not lake and rng.random() < 0.28
    return Scene(
        seed=seed,
        season=season,
        time=time,
        clouds=clouds,
        horizon=horizon,
        far=far,
        trees=trees,
        on_hill=on_hill,
        house=house,
        lake=lake,
        path=path,
        fence=rng.random() < 0.22,
        rocks=rng.random() < 0.2,
        snowfall=rng.random() < 0.3,
        light=rng.choice([-1, 1]),
    )


def _plant(rng: random.Random, horizon: float) -> tuple[Tree, ...]:
    """One to three trees, from far to near; most often all of one species.

    The draws of every count are made, so that the count changes nothing else of the scene.
    """
    count = rng.choices([1, 2, 3], [0.45, 0.33, 0.22])[0]
    main_species = rng.choices(SPECIES, [0.4, 0.27, 0.33])[0]
    mixed = count > 1 and rng.random() < 0.22
    edge = rng.uniform(0.14, 0.24)
    places = {  # by count: shares of the width
        1: [rng.uniform(0.24, 0.76)],
        2: [edge + rng.uniform(0, 0.1), 1 - edge - rng.uniform(0, 0.1)],
        3: [edge, 0.5 + rng.uniform(-0.06, 0.06), 1 - edge],
    }
    trees = []
    for place in places[count]:
        depth = rng.uniform(0.25, 0.75)  # from the horizon (0) to the viewer (1)
        species = rng.choice(SPECIES) if mixed else main_species
        heights = {  # by count: shares of the height; more trees are smaller
            1: rng.uniform(0.6, 0.78),
            2: rng.uniform(0.48, 0.66),
            3: rng.uniform(0.4, 0.56),
        }
        height = heights[count] * (0.86 + 0.28 * depth)
        x = (place + rng.uniform(-0.02, 0.02)) * CANVAS
        y = horizon + (0.95 * CANVAS - horizon) * depth
        trees.append(Tree(species, x, y, height * CANVAS, seed=rng.randrange(1 << 30)))
    return tuple(sorted(trees, key=operator.attrgetter("y")))


def shown(scene: Scene, look: Look) -> Scene:
    """The scene with the look's season and species; what the look leaves open stays as the seed drew it."""
    season = scene.season if look.season == "any" else look.season
    trees = tuple(replace(tree, species=look.species or tree.species) for tree in scene.trees)
    return replace(scene, season=season, trees=trees)


def render(scene: Scene, look: Look) -> Image.Image:
    """The picture of the scene in that look: RGB, 128 x 128."""
    return _draw(scene, look).picture


def instances(scene: Scene, look: Look) -> list[tuple[str, np.ndarray]]:
    """(noun, bool 128 x 128 mask) of every visible object, from back to front.

    Each tree is an object of its own; the others are house, lake, path, fence, rocks, mountains, hills,
    distant trees, sky, ground. Each pixel belongs to exactly one: what is in front hides what is behind.
    Shadows, fallen leaves, the snow around a trunk and falling snow belong to what they lie on.
    """
    return _draw(scene, look, labelled=True).visible()


def mask(scene: Scene, look: Look, noun: str) -> np.ndarray:
    """Bool 128 x 128 mask of everything of that noun."""
    union = np.zeros((SIZE, SIZE), bool)
    for name, area in instances(scene, look):
        if name == noun:
            union |= area
    return union


def _draw(scene: Scene, look: Look, labelled: bool = False) -> Canvas:
    """A canvas with the finished picture, reduced to 128 x 128 and styled; its labels stay at canvas size."""
    scene = shown(scene, look)
    rng = random.Random(scene.seed * 31 + 5)
    rng_of_things = random.Random(scene.seed * 31 + 6)

    # From back to front.
    sky_top, sky_bottom = sky_colours(rng, scene)
    canvas = Canvas(paint_sky(rng, scene, sky_top, sky_bottom), labelled)
    canvas.begin("sky")
    draw_sun(canvas, rng, scene, sky_bottom)
    draw_distance(canvas, rng, scene, sky_bottom)
    ground = draw_ground(canvas, rng, scene, sky_bottom)
    for noun, draw_thing in THINGS.items():
        if getattr(scene, noun):
            canvas.begin(noun)
            draw_thing(canvas, rng_of_things, Surroundings(scene, sky_top, ground))
    draw_tree_shadows(canvas, scene)
    for tree in scene.trees:
        canvas.begin("tree")
        draw_tree(canvas, tree, scene.season, scene.light)
        draw_tree_foot(canvas, tree, scene.season, ground.colour)

    # Over everything.
    if scene.season == "winter" and scene.snowfall:
        flakes = textures().flakes
        canvas.picture.paste((255, 255, 255), (0, 0), flakes[scene.seed % len(flakes)])
    if scene.time in LIGHT_COLOURS:
        light = Image.new("RGB", canvas.picture.size, LIGHT_COLOURS[scene.time])
        canvas.picture = ImageChops.multiply(canvas.picture, light)
    if look.style == "sketch":
        canvas.picture = pencil_sketch(canvas.picture)
    canvas.picture = canvas.picture.reduce(CANVAS // SIZE)
    return canvas
