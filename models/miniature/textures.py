"""Textures that all scenes share: noise, ridges, and masks of leaves, grass and snowflakes.

They are drawn once, from a fixed seed. Lengths are canvas pixels.
"""

import functools
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from models.miniature.canvas import CANVAS, around

SEED = 7  # fixed, so that a scene's pixels depend on its own seed alone
COLUMNS = np.linspace(0, CANVAS, 129)  # x of the points of a ridge
RIDGE_OCTAVES = 6
CLUMP_RADII = (8, 11, 14, 18, 22)
CLUMP_LEAVES = {"full": 70, "mid": 34, "sparse": 14}  # leaves in a clump of radius 14
CLUMP_BORDER = 3  # around a clump's radius, for the leaves at its rim
CLUMPS = 10  # of each density and radius
RAMPS = 28
RAMP_STEPS = 32  # in the canvas's height: ramp i begins at the i-th

Mask = Image.Image  # "L": 255 where something is drawn


@dataclass(frozen=True)
class Textures:
    """Lists to choose from. Every mask but a clump is as large as the canvas."""

    grain: list[Image.Image]  # 512 px, grey: fine noise around 128, its deviation 20
    soft: list[Image.Image]  # 512 px, grey: coarse noise around 128, its deviation 16
    clouds: list[np.ndarray]  # 256 x 256, float32: noise of zero mean and unit variance
    ridges: list[np.ndarray]  # heights in [-1, 1] at each of COLUMNS
    clumps: dict[str, dict[int, list[Mask]]]  # [density][radius]: CLUMPS clumps of leaves
    speckles: list[Mask]  # fallen leaves or flowers
    tufts: list[Mask]  # blades of grass
    flakes: list[Mask]  # falling snow
    ramps: list[Mask]  # nothing above i / RAMP_STEPS of the height, from there rising to full at the bottom


@functools.cache
def textures() -> Textures:
    """All textures; the first call takes about 0.3 s."""
    noise_rng = np.random.RandomState(SEED)
    rng = random.Random(SEED)
    return Textures(
        grain=[_grey(128 + 20 * fractal_noise(noise_rng, 512, 32, 5, 0.8)) for _ in range(3)],
        soft=[_grey(128 + 16 * fractal_noise(noise_rng, 512, 6, 4, 0.5)) for _ in range(3)],
        clouds=[fractal_noise(noise_rng, 256, 4, 6, 0.55) for _ in range(6)],
        ridges=[_ridge(noise_rng) for _ in range(24)],
        clumps=_clumps(rng),
        speckles=[_speckles(rng) for _ in range(8)],
        tufts=[_tufts(rng) for _ in range(6)],
        flakes=[_flakes(rng) for _ in range(4)],
        ramps=[_ramp(index) for index in range(RAMPS)],
    )


def fractal_noise(rng: np.random.RandomState, size: int, base: int, octaves: int, gain: float) -> np.ndarray:
    """A float32 field (size, size) of summed noise octaves, zero mean and unit variance.

    The first octave has `base` cells a side; each further one has twice as many at `gain` times the strength.
    """
    field = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = min(size, base * 2**octave)
        grid = Image.fromarray(rng.rand(cells, cells).astype(np.float32))
        field += gain**octave * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    field /= sum(gain**octave for octave in range(octaves))
    return (field - field.mean()) / field.std()


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _ridge(rng: np.random.RandomState) -> np.ndarray:
    """Heights in [-1, 1] at each of COLUMNS: octaves of straight pieces between random knots."""
    heights = np.zeros(len(COLUMNS))
    for octave in range(RIDGE_OCTAVES):
        knots = 3 * 2**octave
        places = np.linspace(0, knots, len(COLUMNS))
        heights += 0.5**octave * np.interp(places, np.arange(knots + 1), rng.randn(knots + 1))
    return (heights - heights.mean()) / np.abs(heights).max()


def _ramp(index: int) -> Mask:
    """0 down to `index` / RAMP_STEPS of the height, from there rising to 255 at the bottom."""
    start = index / RAMP_STEPS
    column = np.linspace(0, 1, CANVAS, dtype=np.float32)[:, None]
    rows = np.repeat(column, CANVAS, 1)
    return _grey(255 * (rows - start) / (1 - start))


def _clumps(rng: random.Random) -> dict[str, dict[int, list[Mask]]]:
    clumps: dict[str, dict[int, list[Mask]]] = {}
    for density, leaves in CLUMP_LEAVES.items():
        clumps[density] = {}
        for radius in CLUMP_RADII:
            count = int(leaves * (radius / 14) ** 1.6)
            clumps[density][radius] = [_clump(rng, radius, count) for _ in range(CLUMPS)]
    return clumps


def _clump(rng: random.Random, radius: int, leaves: int) -> Mask:
    """A ragged ball of leaves."""
    middle = radius + CLUMP_BORDER
    mask = Image.new("L", (2 * middle, 2 * middle))
    pen = ImageDraw.Draw(mask)
    for _ in range(leaves):
        angle = rng.uniform(0, 6.283)
        distance = radius * math.sqrt(rng.random()) * rng.uniform(0.75, 1.0)
        x = middle + distance * math.cos(angle)
        y = middle + 0.88 * distance * math.sin(angle)
        pen.ellipse(around(x, y, rng.uniform(1.4, 2.8), rng.uniform(1.2, 2.2)), 255)
    return mask


def _speckles(rng: random.Random) -> Mask:
    """Fallen leaves or flowers below the middle; they grow towards the viewer."""
    mask = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(mask)
    for _ in range(420):
        nearness = 0.55 * rng.random()
        x = CANVAS * rng.random()
        y = CANVAS * (0.45 + nearness)
        radius = 0.7 + 2.0 * nearness
        pen.ellipse(around(x, y, radius, radius * 0.6), 255)
    return mask


def _tufts(rng: random.Random) -> Mask:
    """Tufts of three blades of grass below the middle; they grow towards the viewer."""
    mask = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(mask)
    for _ in range(330):
        nearness = 0.55 * rng.random()
        x = CANVAS * rng.random()
        y = CANVAS * (0.45 + nearness)
        for foot in (x, x + 1.6, x + 3.2):
            tip_x = foot + rng.uniform(-2, 2)
            tip_y = y - (2 + 9 * nearness) * rng.uniform(0.6, 1.1)
            pen.line((foot, y, tip_x, tip_y), 255)
    return mask


def _flakes(rng: random.Random) -> Mask:
    """Falling snow all over the picture, not quite opaque."""
    mask = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(mask)
    for _ in range(170):
        x = CANVAS * rng.random()
        y = CANVAS * rng.random()
        radius = rng.uniform(0.8, 1.8)
        pen.ellipse(around(x, y, radius, radius), 235)
    return mask
