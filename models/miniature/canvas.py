"""The drawing surface: a picture and, on demand, a map that says which object each pixel shows."""

from functools import partialmethod

import numpy as np
from PIL import Image, ImageDraw

from models.miniature.textures import CANVAS


class Canvas:
    """Every stroke goes to `picture` and, with `labelled=True`, to `labels` under the object begun last; `nouns[i]` names label i.

    Drawing both with the same coordinates makes the masks exact: what is drawn later hides what was there.
    """

    def __init__(self, picture, labelled=False):
        self.picture = picture
        self.nouns = []
        self.labels = Image.new("L", picture.size) if labelled else None
        self._pens = [ImageDraw.Draw(picture)] + ([ImageDraw.Draw(self.labels)] if labelled else [])
        self._label = 0

    def begin(self, noun):
        """Start a new object: what follows belongs to it."""
        self._label = len(self.nouns)
        self.nouns.append(noun)

    def resume(self, noun):
        """Go on with the one object of that name."""
        self._label = self.nouns.index(noun)

    def _draw(self, shape, place, colour, *width):
        """Draw ImageDraw's `shape` at `place`, points or a box (left, top, right, bottom) in canvas pixels."""
        for pen, ink in zip(self._pens, (colour, self._label), strict=False):  # without labels, the second ink has no pen
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
        """[(noun, bool mask at half the canvas size)] of every object, in drawing order; each pixel is in exactly one mask."""
        half = CANVAS // 2
        labels = np.asarray(self.labels).reshape(half, 2, half, 2)
        votes = np.stack([(labels == index).sum((1, 3)) for index in range(len(self.nouns))])
        winner = len(self.nouns) - 1 - votes[::-1].argmax(0)  # a draw goes to the object in front
        return [(noun, winner == index) for index, noun in enumerate(self.nouns)]


def _byte(value):
    return min(255, max(0, int(value)))


def blend(first, second, amount):
    """The RGB colour `amount` of the way from `first` to `second`."""
    return tuple(int(a + (b - a) * amount) for a, b in zip(first, second, strict=True))


def shade(colour, factor):
    """`colour` times `factor`, within 0..255."""
    return tuple(_byte(channel * factor) for channel in colour)


def jitter(rng, colour, spread):
    """`colour` with a random brightness of +-`spread` and a random tint of half that."""
    brightness = rng.uniform(-spread, spread)
    return tuple(_byte(channel + brightness + (2 * rng.random() - 1) * spread * 0.5) for channel in colour)
