"""Small SVG charts for the report page: a histogram and a line chart. report.html draws them, report.css colours them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jinja2 import Environment

# drawing units; a column of the page is about as many pixels wide, so that 11 units of text are about 11 pixels
WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 46, WIDTH - 12, 26, HEIGHT - 40  # the plotting area
BINS = 24
HEADROOM = 1.15  # of a histogram's highest bar, so that the threshold's text stands free


@dataclass(frozen=True)
class Series:
    """One line: x and y of the same length. style: 'line', 'faint' (raw values behind a smooth line) or 'dots' (a line and its points)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"


@functools.cache
def templates() -> Environment:
    """The page's templates; every text that enters them is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class Frame:
    """Linear axes over the plotting area, with ticks at round numbers and a unit below and beside them."""

    def __init__(self, title: str, x_label: str, y_label: str, x_range: tuple[float, float], y_range: tuple[float, float]):
        self.x_low, self.x_high = _widened(*x_range)
        self.y_low, self.y_high = _widened(*y_range)
        self.labels = {"title": title, "x_label": x_label, "y_label": y_label}

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        return BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (BOTTOM - TOP)

    def draw(self, marker: tuple[float, str] | None = None, **drawn: Any) -> str:
        """The chart's HTML. marker: x of a dashed upright line and its text; left out where it lies outside. drawn: 'bars', 'lines'."""
        shown = marker and self.x_low <= marker[0] <= self.x_high
        return _chart(
            **self.labels,
            **drawn,
            x_ticks=[(self.x(tick), number(tick)) for tick in ticks(self.x_low, self.x_high, 5)],
            y_ticks=[(self.y(tick), number(tick)) for tick in ticks(self.y_low, self.y_high, 4)],
            marker=(self.x(marker[0]), marker[1]) if marker and shown else None,
        )


def _chart(**drawn: Any) -> str:
    area = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    return templates().get_template("report_chart.html").render(**area, **{"bars": [], "lines": [], **drawn})


def histogram(title: str, values: Sequence[float], limit: float | None, x_label: str) -> str:
    """How many pairs have which score; bars below the limit are faint. The limit is drawn even where no pair reaches it."""
    marks = [] if limit is None else [limit]
    low, high = _widened(min([*values, *marks]), max([*values, *marks]))
    wide = (high - low) / BINS
    origin = low if limit is None else limit - math.ceil((limit - low) / wide - 1e-9) * wide  # no bar lies on both sides of the limit
    counts, edges = np.histogram(values, bins=origin + wide * np.arange(BINS + 2))
    frame = Frame(title, x_label, "pairs", (float(edges[0]), float(edges[-1])), (0.0, max(HEADROOM * counts.max(), 4.0)))
    bars = [
        {"dropped": limit is not None and (left + right) / 2 < limit, "x": frame.x(left), "y": frame.y(count), "to": frame.x(right)}
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    ]
    return frame.draw((limit, f"kept from {limit:.3g}") if limit is not None else None, bars=bars)


def line_chart(
    title: str, series: Sequence[Series], x_label: str, y_label: str, zero: bool = True, marker: tuple[float, str] | None = None
) -> str:
    """Lines over common axes; values that are not finite are left out. zero: the y axis begins at 0. marker: (x, text)."""
    points = [(each, [pair for pair in zip(each.x, each.y, strict=True) if np.isfinite(pair).all()]) for each in series]
    every = np.array([pair for _, pairs in points for pair in pairs])
    if not len(every):
        return _chart(title=title, empty="no finite values")
    (x_low, y_low), (x_high, y_high) = every.min(0).tolist(), every.max(0).tolist()
    frame = Frame(title, x_label, y_label, (x_low, x_high), (min(y_low, 0.0) if zero else y_low, y_high))
    lines = [(each, [(frame.x(x), frame.y(y)) for x, y in pairs]) for each, pairs in points if pairs]
    return frame.draw(marker, lines=lines)


def smoothed(values: Sequence[float], share: float = 0.04) -> list[float]:
    """Centred moving average over `share` of the values, shorter at either end."""
    reach = max(1, round(len(values) * share / 2))
    return [float(np.mean(values[max(0, at - reach) : at + reach + 1])) for at in range(len(values))]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2, 5 times a power of ten apart) within [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short text: 1200 -> 1.2k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range of some width, also around equal values."""
    margin = abs(low) * 0.1 or 0.5
    return (low, high) if high - low > 1e-9 * max(abs(low), abs(high), 1e-9) else (low - margin, high + margin)
