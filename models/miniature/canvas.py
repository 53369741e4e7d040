"""The drawing surface, its colours, and the textures that every scene shares."""

import functools
import math
import random
from functools import partialmethod
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 256  # px; scenes are drawn at this size and reduced by two, which smooths PIL's hard edges
CLUMP_RADII = (8, 11, 14, 18, 22)  # px on the canvas
CLUMP_LEAVES = {"full": 70, "mid": 34, "sparse": 14}  # leaves in a clump of radius 14
COLUMNS = np.linspace(0, CANVAS, 129)  # x of the points of a ridge
_TEXTURE_SEED = 7  # fixed, so that a scene's pixels depend on its seed alone


class Canvas:
    """Every stroke goes to `picture` and, with `labelled=True`, to `labels` under the object begun last; `nouns[i]` names label i.

    Drawing both with the same coordinates makes the masks exact: what is drawn later hides what was there.
    """

    def __init__(self, picture, labelled=False):
        self.picture = picture
        self.nouns = []
        self.labels = Image.new("L", picture.size) if labelled else None
        self._pens = [ImageDraw.Draw(picture)] + ([ImageDraw.Draw(self.labels)] if labelled else [])

    def begin(self, noun):
        """Start a new object: what follows belongs to it."""
        self._label = len(self.nouns)
        self.nouns.append(noun)

    def resume(self, noun):
        """Go on with the one object of that name."""
        self._label = self.nouns.index(noun)

    def _draw(self, shape, place, colour, *width):
        """Draw ImageDraw's `shape` at `place`, points or a box (left, top, right, bottom) in canvas pixels."""
        for pen, ink in zip(
            self._pens, (colour, self._label), strict=False
        ):  # without labels, the second ink has no pen
            getattr(pen, shape)(place, ink, *width)

    polygon = partialmethod(_draw, "polygon")
    line = partialmethod(_draw, "line")
    ellipse = partialmethod(_draw, "ellipse")
    rectangle = partialmethod(_draw, "rectangle")  # the last row and column included

    def stamp(self, content, mask, corner=(0, 0)):
        """Paste `content`, a colour or a picture, where `mask` is set, with the mask's top left at `corner`."""
        self.picture.paste(content, corner, mask)
        if self.labels is not None:
            self.labels.paste(self._label, corner, mask)

    def visible(self):
        """[(noun, bool mask at half the canvas size)] of every object seen, in drawing order; each pixel is in exactly one mask."""
        labels = np.asarray(self.labels).reshape(CANVAS // 2, 2, CANVAS // 2, 2)
        votes = np.stack([(labels == index).sum((1, 3)) for index in range(len(self.nouns))])
        winner = len(self.nouns) - 1 - votes[::-1].argmax(0)  # a draw goes to the object in front
        return [(noun, winner == index) for index, noun in enumerate(self.nouns) if (winner == index).any()]


def around(x, y, half_width, half_height):
    """The box of an ellipse with that centre."""
    return x - half_width, y - half_height, x + half_width, y + half_height


def blend(first, second, amount):
    """The RGB colour `amount` of the way from `first` to `second`."""
    return tuple(int(a + (b - a) * amount) for a, b in zip(first, second, strict=True))


def shade(colour, factor):
    """`colour` times `factor`, within 0..255."""
    return tuple(min(255, max(0, int(channel * factor))) for channel in colour)


def jitter(rng, colour, spread):
    """`colour` with a random brightness of +-`spread` and a random tint of half that."""
    brightness = rng.uniform(-spread, spread)
    return shade([channel + brightness + (2 * rng.random() - 1) * spread * 0.5 for channel in colour], 1)


def fractal_noise(rng, size, base, octaves, gain):
    """A (size, size) float32 field of summed noise octaves, zero mean and unit variance."""
    field = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = min(size, base * 2**octave)
        grid = Image.fromarray(rng.rand(cells, cells).astype(np.float32))
        field += gain**octave * np.asarray(grid.resize((size, size), Image.BICUBIC))
    field /= sum(gain**octave for octave in range(octaves))
    return (field - field.mean()) / field.std()


def _grey(values):
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _ridge(rng):
    heights = np.zeros(len(COLUMNS))
    for octave in range(6):
        knots = 3 * 2**octave
        heights += 0.5**octave * np.interp(
            np.linspace(0, knots, len(COLUMNS)), np.arange(knots + 1), rng.randn(knots + 1)
        )
    return (heights - heights.mean()) / np.abs(heights).max()


def _strewn(side, count, mark, *about):
    """A mask of `count` marks, each by mark(pen, *about)."""
    layer = Image.new("L", (side, side))
    pen = ImageDraw.Draw(layer)
    for _ in range(count):
        mark(pen, *about)
    return layer


def _leaf(pen, rng, radius):
    """One leaf of a ragged ball of them."""
    angle = rng.uniform(0, 6.283)
    distance = radius * math.sqrt(rng.random()) * rng.uniform(0.75, 1.0)
    x, y = radius + 3 + distance * math.cos(angle), radius + 3 + 0.88 * distance * math.sin(angle)
    pen.ellipse(around(x, y, rng.uniform(1.4, 2.8), rng.uniform(1.2, 2.2)), 255)


def _flake(pen, rng):
    x, y, radius = CANVAS * rng.random(), CANVAS * rng.random(), rng.uniform(0.8, 1.8)
    pen.ellipse(around(x, y, radius, radius), 235)


def _on_ground(pen, rng, grass):
    """Three blades of grass, or a fallen leaf or flower; they grow towards the viewer."""
    nearness = 0.55 * rng.random()
    x, y = CANVAS * rng.random(), CANVAS * (0.45 + nearness)
    if grass:
        for foot in (x, x + 1.6, x + 3.2):
            pen.line(
                (foot, y, foot + rng.uniform(-2, 2), y - (2 + 9 * nearness) * rng.uniform(0.6, 1.1)), 255
            )
    else:
        radius = 0.7 + 2.0 * nearness
        pen.ellipse(around(x, y, radius, radius * 0.6), 255)


@functools.cache
def textures() -> SimpleNamespace:
    """The shared greyscale stamps and noise fields; about 0.3 s on the first call.

    `grain` and `soft` are 512 px noise pictures around 128; `clouds` 256x256 float arrays with zero mean and unit variance; `ridges` 129
    heights in [-1, 1]; `clumps[density][radius]` ten leaf-clump masks; `ramps` fall to nothing above i / 32 of the height; all others are
    canvas-sized masks.
    """
    arrays, rng = np.random.RandomState(_TEXTURE_SEED), random.Random(_TEXTURE_SEED)
    rows = np.repeat(np.linspace(0, 1, CANVAS, dtype=np.float32)[:, None], CANVAS, 1)
    return SimpleNamespace(
        grain=[_grey(128 + 20 * fractal_noise(arrays, 512, 32, 5, 0.8)) for _ in range(3)],
        soft=[_grey(128 + 16 * fractal_noise(arrays, 512, 6, 4, 0.5)) for _ in range(3)],
        clouds=[fractal_noise(arrays, 256, 4, 6, 0.55) for _ in range(6)],
        ridges=[_ridge(arrays) for _ in range(24)],
        clumps={
            density: {
                radius: [
                    _strewn(2 * radius + 6, int(leaves * (radius / 14) ** 1.6), _leaf, rng, radius)
                    for _ in range(10)
                ]
                for radius in CLUMP_RADII
            }
            for density, leaves in CLUMP_LEAVES.items()
        },
        speckles=[_strewn(CANVAS, 420, _on_ground, rng, False) for _ in range(8)],
        tufts=[_strewn(CANVAS, 330, _on_ground, rng, True) for _ in range(6)],
        flakes=[_strewn(CANVAS, 170, _flake, rng) for _ in range(4)],
        ramps=[_grey(255 * (rows - start / 32) / (1 - start / 32)) for start in range(28)],
    )
