"""A pencil sketch of a picture: outlines, hatching that follows the tone, paper. No randomness but one fixed grain."""

import functools

import numpy as np
from PIL import Image, ImageFilter

from models.miniature.canvas import CANVAS, fractal_noise

PAPER = (248, 245, 236)
GRAPHITE = (58, 58, 64)
OUTLINE_RADIUS = 2.5  # px; how far around a pixel its surroundings are averaged for an outline
OUTLINE_STRENGTH = 2.8
TEXTURE_CONTRAST = 0.03  # contrast that leaves no line, so that grass does not turn black
SHADING = 0.45  # ink of smooth shading at black
HATCH_STEPS = ((0.62, 1), (0.38, -1))  # tone below which strokes are laid, and their direction
HATCH_PERIOD = 7.0  # px between strokes; wide enough to survive the reduction by two and an autoencoder
HATCH_INK = 0.24
GRAIN = 0.014


@functools.cache
def _paper():
    """(grain, wobble): fixed noise of the paper and of the hand, CANVAS x CANVAS."""
    rng = np.random.RandomState(11)
    return fractal_noise(rng, CANVAS, 64, 3, 0.8), fractal_noise(rng, CANVAS, 6, 3, 0.5)


def _blurred(grey, radius):
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def pencil_sketch(picture: Image.Image) -> Image.Image:
    """The RGB picture as a sketch, of the same size (CANVAS x CANVAS)."""
    grey = picture.convert("L")
    fine, around, tone = (_blurred(grey, radius) for radius in (0.8, OUTLINE_RADIUS, 3.0))
    outline = np.clip(1 - fine / np.maximum(around, 0.05) - TEXTURE_CONTRAST, 0, 1) * OUTLINE_STRENGTH
    grain, wobble = _paper()
    rows, columns = np.mgrid[:CANVAS, :CANVAS].astype(np.float32)
    ink = SHADING * (1 - tone) ** 1.3
    for threshold, direction in HATCH_STEPS:
        wave = np.cos(2 * np.pi * ((columns + direction * rows) / 1.414 + 1.6 * wobble) / HATCH_PERIOD)
        ink += HATCH_INK * np.clip(wave, 0, 1) * np.clip((threshold - tone) * 6, 0, 1)
    ink = np.clip(ink + np.clip(outline, 0, 0.85) + GRAIN * grain, 0, 1)[:, :, None]
    sheet = np.array(PAPER, np.float32) * (1 - ink) + np.array(GRAPHITE, np.float32) * ink
    return Image.fromarray(np.clip(sheet, 0, 255).astype(np.uint8))
