"""A pencil sketch of a picture: outlines, hatching that follows the tone, and paper with a fixed grain."""

import functools

import numpy as np
from PIL import Image, ImageFilter

from models.miniature.canvas import CANVAS
from models.miniature.textures import fractal_noise

PAPER = (248, 245, 236)
GRAPHITE = (58, 58, 64)
FINE_RADIUS = 0.8  # px; blur that leaves the detail that an outline follows
SURROUNDINGS_RADIUS = 2.5  # px; blur that gives what lies around a pixel: an outline is darker than that
TONE_RADIUS = 3.0  # px; blur that gives the tone of shading and hatching
OUTLINE_STRENGTH = 2.8
DARKEST_OUTLINE = 0.85  # ink
TEXTURE_CONTRAST = 0.03  # contrast that leaves no line, so that grass does not turn black
SHADING = 0.45  # ink of smooth shading at black
HATCH_STEPS = ((0.62, 1), (0.38, -1))  # tone below which strokes are laid, and their direction
HATCH_PERIOD = 7.0  # px between strokes; wide enough to survive the reduction by two and an autoencoder
HATCH_INK = 0.24
HAND_WOBBLE = 1.6  # px by which strokes stray
GRAIN = 0.014
NOISE_SEED = 11


def pencil_sketch(picture: Image.Image) -> Image.Image:
    """The RGB picture as a sketch, of the same size (CANVAS x CANVAS)."""
    grey = picture.convert("L")
    tone = _blurred(grey, TONE_RADIUS)
    grain, wobble = _paper()
    ink = SHADING * (1 - tone) ** 1.3
    for threshold, direction in HATCH_STEPS:
        ink += _hatching(tone, wobble, threshold, direction)
    ink = np.clip(ink + np.clip(_outline(grey), 0, DARKEST_OUTLINE) + GRAIN * grain, 0, 1)[:, :, None]
    sheet = np.array(PAPER, np.float32) * (1 - ink) + np.array(GRAPHITE, np.float32) * ink
    return Image.fromarray(np.clip(sheet, 0, 255).astype(np.uint8))


def _outline(grey: Image.Image) -> np.ndarray:
    """Ink (0 and more) where a pixel is darker than its surroundings."""
    fine = _blurred(grey, FINE_RADIUS)
    surroundings = _blurred(grey, SURROUNDINGS_RADIUS)
    contrast = 1 - fine / np.maximum(surroundings, 0.05)
    return np.clip(contrast - TEXTURE_CONTRAST, 0, 1) * OUTLINE_STRENGTH


def _hatching(tone: np.ndarray, wobble: np.ndarray, threshold: float, direction: int) -> np.ndarray:
    """Ink of diagonal strokes where the tone (0 black, 1 white) is below `threshold`."""
    rows, columns = np.mgrid[:CANVAS, :CANVAS].astype(np.float32)
    across = (columns + direction * rows) / 1.414  # px at a right angle to the strokes
    wave = np.cos(2 * np.pi * (across + HAND_WOBBLE * wobble) / HATCH_PERIOD)
    return HATCH_INK * np.clip(wave, 0, 1) * np.clip((threshold - tone) * 6, 0, 1)


def _blurred(grey: Image.Image, radius: float) -> np.ndarray:
    """float32 in [0, 1]."""
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


@functools.cache
def _paper() -> tuple[np.ndarray, np.ndarray]:
    """(grain of the paper, wobble of the hand): fixed noise, CANVAS x CANVAS."""
    rng = np.random.RandomState(NOISE_SEED)
    grain = fractal_noise(rng, CANVAS, 64, 3, 0.8)
    wobble = fractal_noise(rng, CANVAS, 6, 3, 0.5)
    return grain, wobble
