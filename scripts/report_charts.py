"""Small SVG charts for the report page: a histogram and a line chart. Text and colours come from the page's style
sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = (
    360,
    216,
)  # drawing units; a column of the page is about as many pixels wide, so that 11 units of text are about 11 pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 40
BINS = 24
HEADROOM = 1.15  # of a histogram's highest bar, so that the threshold's text stands free


@dataclass(frozen=True)
class Series:
    """One line: x and y of the same length. style: 'line', 'faint' (raw values behind a smoothed line) or 'dots' (a
    line with its points).
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"


class Frame:
    """Linear axes over the plotting area, with ticks at round numbers and a unit below and beside them."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]):
        self.x_low, self.x_high = _widened(*x_range)
        self.y_low, self.y_high = _widened(*y_range)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        base = HEIGHT - BOTTOM
        parts = []
        for tick in ticks(self.y_low, self.y_high, 4):
            at = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>')
        for tick in ticks(self.x_low, self.x_high, 5):
            parts.append(f'<text class="tick" x="{self.x(tick):.1f}" y="{base + 15}" text-anchor="middle">{number(tick)}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        centre = f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle"'
        parts.append(f'<text class="label" {centre}>{escape(x_label)}</text>')
        parts.append(f'<text class="label" x="{LEFT - 36}" y="{TOP - 12}">{escape(y_label)}</text>')
        return "".join(parts)

    def marker(self, value: float, text: str) -> str:
        """A dashed upright line at x = value with its text; nothing where it lies outside."""
        if not self.x_low <= value <= self.x_high:
            return ""
        at = self.x(value)
        anchor, shift = ("start", 4) if at < WIDTH / 2 else ("end", -4)
        return (
            f'<line class="marker" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="marker-text" x="{at + shift:.1f}" y="{TOP - 1}" text-anchor="{anchor}">{escape(text)}</text>'
        )


def histogram(title: str, values: Sequence[float], limit: float | None, x_label: str) -> str:
    """How many pairs have which score; bars below the limit are faint. The limit is drawn even where no pair reaches
    it.
    """
    low, high = min(values), max(values)
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    low, high = _widened(low, high)
    wide = (high - low) / BINS
    origin = low if limit is None else limit - math.ceil((limit - low) / wide - 1e-9) * wide  # no bar lies on both sides of the limit
    counts, edges = np.histogram(values, bins=origin + wide * np.arange(BINS + 2))
    frame = Frame((float(edges[0]), float(edges[-1])), (0.0, max(HEADROOM * counts.max(), 4.0)))
    bars = []
    for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            kind = "bar dropped" if limit is not None and (left + right) / 2 < limit else "bar"
            x, y, span = frame.x(left), frame.y(count), frame.x(right) - frame.x(left) - 1
            size = f'width="{span:.1f}" height="{HEIGHT - BOTTOM - y:.1f}"'
            bars.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size}/>')
    mark = frame.marker(limit, f"kept from {limit:.3g}") if limit is not None else ""
    return _chart(title, frame.axes(x_label, "pairs") + "".join(bars) + mark)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    zero: bool = True,
    marker: tuple[float, str] | None = None,
) -> str:
    """Lines over common axes; values that are not finite are left out. zero: the y axis begins at 0. marker: (x,
    text).
    """
    kept = [_finite(each) for each in series]
    kept = [each for each in kept if each.x]
    if not kept:
        return _chart(title, f'<text class="label" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no finite values</text>')
    all_x, all_y = [x for each in kept for x in each.x], [y for each in kept for y in each.y]
    frame = Frame((min(all_x), max(all_x)), (min([*all_y, 0.0]) if zero else min(all_y), max(all_y)))
    drawn, keys = [], []
    for each in kept:
        points = [(frame.x(x), frame.y(y)) for x, y in zip(each.x, each.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline class="line {each.style}" points="{path}"/>')
        if each.style == "dots" or len(points) == 1:
            drawn += [f'<circle class="dot {each.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points]
        if each.name:
            keys.append(f'<span><i class="key {each.style}"></i>{escape(each.name)}</span>')
    mark = frame.marker(*marker) if marker else ""
    return _chart(title, frame.axes(x_label, y_label) + "".join(drawn) + mark, "".join(keys) if len(keys) > 1 else "")


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


def _finite(series: Series) -> Series:
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Series(series.name, [x for x, _ in points], [y for _, y in points], series.style)


def _chart(title: str, content: str, key: str = "") -> str:
    legend = f'<div class="legend">{key}</div>' if key else ""
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{content}</svg>'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{legend}{svg}</figure>'
