"""Small SVG charts for the report page: a histogram and a line chart. report_chart.html draws them, report.css colours them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

# drawing units; a column of the page is about as many pixels wide, so that 11 units of text are about 11 pixels
WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 46, WIDTH - 12, 26, HEIGHT - 40  # the plotting area
BINS = 24
HEADROOM = 1.15  # of a histogram's highest bar, so that the threshold's text stands free
SMOOTHED_SHARE = 0.04  # of the points that a moving average takes in
TEMPLATES = Environment(  # every text that enters them is escaped
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True)
class Series:
    """One line through points (x, y). style: 'line', 'faint' (raw values behind a smooth line) or 'dots' (a line and its points)."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line"


def histogram(title: str, values: Sequence[float], limit: float | None, x_label: str) -> str:
    """How many pairs have which score; bars below the limit are faint. The limit is drawn even where no pair reaches it."""
    marks = [] if limit is None else [limit]
    low, high = _widened(min([*values, *marks]), max([*values, *marks]))
    wide = (high - low) / BINS
    origin = low if limit is None else limit - math.ceil((limit - low) / wide - 1e-9) * wide  # no bar lies on both sides of the limit
    counts, edges = np.histogram(values, bins=origin + wide * np.arange(BINS + 2))
    bars = [
        {"dropped": limit is not None and (left + right) / 2 < limit, "left": left, "right": right, "count": count}
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    ]
    marker = None if limit is None else (limit, f"kept from {limit:.3g}")
    y_range = 0.0, max(HEADROOM * counts.max(), 4.0)
    return _chart((edges[0], edges[-1]), y_range, title=title, x_label=x_label, y_label="pairs", bars=bars, marker=marker)


def line_chart(
    title: str, series: Sequence[Series], x_label: str, y_label: str, zero: bool = True, marker: tuple[float, str] | None = None
) -> str:
    """Lines over common axes; one at least has points. zero: the y axis begins at 0. marker: x of a dashed upright line, and its text."""
    x, y = zip(*(point for each in series for point in each.points), strict=True)
    x_all = [*x, marker[0]] if marker else x
    y_all = [*y, 0.0] if zero else y
    lines = [each for each in series if each.points]
    ranges = (min(x_all), max(x_all)), (min(y_all), max(y_all))
    return _chart(*ranges, title=title, x_label=x_label, y_label=y_label, lines=lines, marker=marker)


def _chart(x_range: tuple[float, float], y_range: tuple[float, float], **drawn: Any) -> str:
    """The chart's HTML, `drawn` being what the template asks for; it places values by the functions x and y."""
    x_range, y_range = _widened(*x_range), _widened(*y_range)
    return TEMPLATES.get_template("report_chart.html").render(
        x=partial(np.interp, xp=x_range, fp=(LEFT, RIGHT)),
        y=partial(np.interp, xp=y_range, fp=(BOTTOM, TOP)),
        x_ticks=ticks(*x_range, 5),
        y_ticks=ticks(*y_range, 4),
        number=number,
        area={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        **drawn,
    )


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points with the centred moving average of their y, over fewer of them at either end."""
    reach = max(1, round(len(points) * SMOOTHED_SHARE / 2))
    y = [y for _, y in points]
    return [(x, float(np.mean(y[max(0, at - reach) : at + reach + 1]))) for at, (x, _) in enumerate(points)]


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
