"""The drawing surface of a scene, and arithmetic of colours.

Lengths are canvas pixels, colours RGB of 0..255.
"""

import random
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 256  # px; scenes are drawn at this size and reduced by two, which smooths PIL's hard edges

Colour = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Canvas:
    """A picture and, with `labelled=True`, a picture of labels: which object each pixel shows.

    Every stroke goes to both, to `picture` with its colour and to `labels` with the number of the object that
    was begun last; `nouns[i]` names object i. The same coordinates make the masks exact: what is drawn later
    hides what was there.
    """

    def __init__(self, picture: Image.Image, labelled: bool = False) -> None:
        self.picture = picture
        self.labels: Image.Image | None = None
        self.nouns: list[str] = []
        self._label = 0
        self._picture_pen = ImageDraw.Draw(picture)
        self._label_pen: ImageDraw.ImageDraw | None = None
        if labelled:
            self.labels = Image.new("L", picture.size)
            self._label_pen = ImageDraw.Draw(self.labels)

    def begin(self, noun: str) -> None:
        """Start a new object of that name: the strokes that follow belong to it."""
        self._label = len(self.nouns)
        self.nouns.append(noun)

    def resume(self, noun: str) -> None:
        """Let the strokes that follow belong to the first object of that name."""
        self._label = self.nouns.index(noun)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill the polygon."""
        self._picture_pen.polygon(points, colour)
        if self._label_pen is not None:
            self._label_pen.polygon(points, self._label)

    def line(self, ends: Box, colour: Colour, width: int = 1) -> None:
        """Draw a straight line from `ends[:2]` to `ends[2:]`."""
        self._picture_pen.line(ends, colour, width)
        if self._label_pen is not None:
            self._label_pen.line(ends, self._label, width)

    def ellipse(self, box: Box, colour: Colour) -> None:
        """Fill the ellipse that the box holds."""
        self._picture_pen.ellipse(box, colour)
        if self._label_pen is not None:
            self._label_pen.ellipse(box, self._label)

    def rectangle(self, box: Box, colour: Colour) -> None:
        """Fill the box, its last row and column included."""
        self._picture_pen.rectangle(box, colour)
        if self._label_pen is not None:
            self._label_pen.rectangle(box, self._label)

    def stamp(
        self, content: Colour | Image.Image, mask: Image.Image, corner: tuple[int, int] = (0, 0)
    ) -> None:
        """Paste a colour or a picture where `mask` is set, with the mask's top left at `corner`."""
        self.picture.paste(content, corner, mask)
        if self.labels is not None:
            self.labels.paste(self._label, corner, mask)

    def visible(self) -> list[tuple[str, np.ndarray]]:
        """(noun, bool mask at half the canvas size) of every object seen, in drawing order.

        Each pixel is in exactly one mask: that of the object that most of its 2 x 2 canvas pixels show.
        """
        labels = np.asarray(self.labels).reshape(CANVAS // 2, 2, CANVAS // 2, 2)
        votes = np.stack([(labels == index).sum((1, 3)) for index in range(len(self.nouns))])
        last_index = len(self.nouns) - 1
        winner = last_index - votes[::-1].argmax(0)  # reversed: in a draw the object in front wins
        seen = []
        for index, noun in enumerate(self.nouns):
            area = winner == index
            if area.any():
                seen.append((noun, area))
        return seen


def around(x: float, y: float, half_width: float, half_height: float) -> Box:
    """The box with its centre at (x, y)."""
    return x - half_width, y - half_height, x + half_width, y + half_height


def blend(first: Colour, second: Colour, amount: float) -> Colour:
    """The colour `amount` (0..1) of the way from `first` to `second`."""
    red, green, blue = (int(a + (b - a) * amount) for a, b in zip(first, second, strict=True))
    return red, green, blue


def shade(colour: Iterable[float], factor: float) -> Colour:
    """The colour times `factor`, cut to integers within 0..255."""
    red, green, blue = (min(255, max(0, int(channel * factor))) for channel in colour)
    return red, green, blue


def jitter(rng: random.Random, colour: Colour, spread: float) -> Colour:
    """The colour with a random brightness of +-`spread` and a random tint of half that."""
    brightness = rng.uniform(-spread, spread)
    channels = []
    for channel in colour:
        channels.append(channel + brightness + (2 * rng.random() - 1) * spread * 0.5)
    return shade(channels, 1)
