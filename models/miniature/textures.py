"""Textures that every scene shares: drawn once per process from one fixed seed, so that a scene's pixels depend on its seed alone."""

import functools
import math
import random
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 256  # px; scenes are drawn at this size and reduced by two, which smooths PIL's hard edges
CLUMP_RADII = (8, 11, 14, 18, 22)  # px on the canvas
CLUMP_LEAVES = {"full": 70, "mid": 34, "sparse": 14}  # leaves in a clump of radius 14
RIDGE_POINTS = 129
_TEXTURE_SEED = 7


def fractal_noise(rng, size, base, octaves, gain):
    """A (size, size) float32 field of summed noise octaves, zero mean and unit variance."""
    field = np.zeros((size, size), np.float32)
    amplitude, total = 1.0, 0.0
    for octave in range(octaves):
        cells = min(size, base * 2**octave)
        grid = Image.fromarray(rng.rand(cells, cells).astype(np.float32))
        field += amplitude * np.asarray(grid.resize((size, size), Image.BICUBIC))
        total, amplitude = total + amplitude, amplitude * gain
    field /= total
    return (field - field.mean()) / field.std()


def _grey(values):
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _ridge(rng):
    heights = np.zeros(RIDGE_POINTS)
    for octave in range(6):
        knots = 3 * 2**octave
        heights += 0.5**octave * np.interp(np.linspace(0, knots, RIDGE_POINTS), np.arange(knots + 1), rng.randn(knots + 1))
    return (heights - heights.mean()) / np.abs(heights).max()


def _clump(rng, radius, leaves):
    """A ragged ball of leaves, as a mask."""
    stamp = Image.new("L", (2 * radius + 6, 2 * radius + 6))
    pen = ImageDraw.Draw(stamp)
    middle = radius + 3
    for _ in range(leaves):
        angle = rng.uniform(0, 6.283)
        distance = radius * math.sqrt(rng.random()) * rng.uniform(0.75, 1.0)
        x, y = middle + distance * math.cos(angle), middle + 0.88 * distance * math.sin(angle)
        half_width, half_height = rng.uniform(1.4, 2.8), rng.uniform(1.2, 2.2)
        pen.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=255)
    return stamp


def _strewn(rng, count, mark):
    """A mask of `count` marks on the ground, each by mark(pen, rng, x, y, nearness): they grow towards the viewer."""
    layer = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(layer)
    for _ in range(count):
        y = CANVAS * (0.45 + 0.55 * rng.random())
        x = CANVAS * rng.random()
        mark(pen, rng, x, y, y / CANVAS - 0.45)
    return layer


def _dot(pen, rng, x, y, nearness):
    """A fallen leaf or a flower."""
    radius = 0.7 + 2.0 * nearness
    pen.ellipse((x - radius, y - radius * 0.6, x + radius, y + radius * 0.6), fill=255)


def _tuft(pen, rng, x, y, nearness):
    """Three blades of grass."""
    height = 2 + 9 * nearness
    for foot in (x, x + 1.6, x + 3.2):
        pen.line((foot, y, foot + rng.uniform(-2, 2), y - height * rng.uniform(0.6, 1.1)), fill=255)


def _snowfall(rng):
    layer = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(layer)
    for _ in range(170):
        x, y, radius = CANVAS * rng.random(), CANVAS * rng.random(), rng.uniform(0.8, 1.8)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=235)
    return layer


def _ramp(start):
    """0 down to `start` (a fraction of the canvas), then rising to 255 at the bottom."""
    rows = np.linspace(0, 1, CANVAS, dtype=np.float32)[:, None]
    return Image.fromarray((np.repeat(np.clip((rows - start) / (1 - start), 0, 1), CANVAS, 1) * 255).astype(np.uint8))


@functools.cache
def textures() -> SimpleNamespace:
    """The shared greyscale stamps and noise fields; about 0.3 s on the first call.

    `grain` and `soft` are 512 px noise pictures around 128; `clouds` 256x256 float arrays with zero mean and unit variance; `ridges` 129
    heights in [-1, 1]; `clumps[density][radius]` ten leaf-clump masks; the rest are canvas-sized masks.
    """
    arrays, shapes = np.random.RandomState(_TEXTURE_SEED), random.Random(_TEXTURE_SEED)
    return SimpleNamespace(
        grain=[_grey(128 + 20 * fractal_noise(arrays, 512, 32, 5, 0.8)) for _ in range(3)],
        soft=[_grey(128 + 16 * fractal_noise(arrays, 512, 6, 4, 0.5)) for _ in range(3)],
        clouds=[fractal_noise(arrays, 256, 4, 6, 0.55) for _ in range(6)],
        ridges=[_ridge(arrays) for _ in range(24)],
        clumps={
            density: {radius: [_clump(shapes, radius, int(leaves * (radius / 14) ** 1.6)) for _ in range(10)] for radius in CLUMP_RADII}
            for density, leaves in CLUMP_LEAVES.items()
        },
        speckles=[_strewn(shapes, 420, _dot) for _ in range(8)],
        tufts=[_strewn(shapes, 330, _tuft) for _ in range(6)],
        flakes=[_snowfall(shapes) for _ in range(4)],
        ramps=[_ramp(start / 32) for start in range(28)],
    )
