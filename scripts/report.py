"""The report of a run as one HTML file that opens anywhere, offline: pairs, scores, training, timings, configuration.

    python scripts/report.py task=tree2winter

Reads what the stages wrote below <run> (pairs, scores, selection.json, train/metrics.jsonl) and writes <run>/report.html. What a stage has
not written yet is left out, and the page says so. scripts/demo.py adds held-out scenes and timings.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.cli import entry
from configs.errors import UserError
from configs.files import whole_file
from configs.loader import to_yaml
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from distill.runlog import read_metrics
from filter.report import data_url
from filter.score_table import SAYS, read_scores
from generate.shards import read_pair

SECTIONS = ("task", "generate", "scorer")
COLUMNS = {
    "input": "Input",
    "reconstruction": "Reconstruction",
    "edit": "Teacher's edit",
    "generator": "Generator",
    "truth": "Truth",
}
PAIRS_SHOWN = (
    24  # of the accepted and of the rejected: enough to judge by, and the file stays a few megabytes
)
FIRST_CHARTS = (
    "clip_gain",
    "overlap_iou",
    "clip_directional",
    "image_image",
)  # of the scores; the page folds the last ones away

TRAINING_CHARTS = {
    "l1": ("L1 to the teacher's edit", "mean absolute difference, values in [\N{MINUS SIGN}1, 1]"),
    "lpips": ("LPIPS to the teacher's edit", "LPIPS (VGG16)"),
    "psnr": ("Validation PSNR", "dB"),
}
# drawing units; a column of the page is about as many pixels wide, so that 11 units of text are about 11 pixels
WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 46, WIDTH - 12, 26, HEIGHT - 40  # the plotting area
BINS = 24
HEADROOM = 1.15  # of a histogram's highest bar, so that the threshold's text stands free
SMOOTHED_SHARE = 0.04  # of the points that a moving average takes in
TEMPLATES = Environment(  # every text that enters them is escaped
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code."""
    return entry(
        __doc__,
        SECTIONS,
        lambda config: print(write_report(config)),
        lambda config: {"out": run_dir(config) / "report.html"},
        argv,
    )


def write_report(
    config: Config,
    rows: Sequence[Mapping[str, Any]] = (),
    distances: Sequence[tuple[str, float, float]] = (),
    timings: Mapping[str, float] | None = None,
    teacher_seconds: float = 0.0,
    generator_seconds: float = 0.0,
) -> Path:
    """Write <run>/report.html and return its path. UserError where there is no such run.

    rows: held-out scenes {'title': str, 'images': {name: RGB uint8 H x W x 3}} with the names of COLUMNS. distances: what was compared, its
    PSNR in dB and its LPIPS. timings: seconds of each stage. *_seconds: of one image; 0 where it was not timed.
    """
    run = run_dir(config)
    if not run.is_dir():
        raise UserError(f"{run}: no such run; make its pairs with generate/run.py")
    selected = run / "selection.json"  # there are no scores before the filter wrote it
    selection = json.loads(selected.read_text()) if selected.exists() else {}
    scores = read_scores(config) if selection else []
    metrics = read_metrics(run / "train" / "metrics.jsonl")
    page = TEMPLATES.get_template("report.html").render(
        task=config.task,
        teacher=config.teacher,
        yaml=to_yaml(config),
        data_url=partial(data_url, optimize=True),
        figure=_figure,
        duration=_duration,
        teacher_seconds=teacher_seconds,
        generator_seconds=generator_seconds,
        images_shown=max((line["images"] for line in metrics), default=0),
        columns={
            name: label for name, label in COLUMNS.items() if any(name in row["images"] for row in rows)
        },
        rows=rows,
        distances=[(what, f"{psnr:.4g}", f"{lpips:.4g}") for what, psnr, lpips in distances],
        training=_training(metrics),
        selection=selection,
        scores=_score_charts(scores, selection["thresholds"]) if selection else [],
        groups=_groups(config, scores, selection) if selection else {},
        timings=[(name, _duration(seconds)) for name, seconds in (timings or {}).items()],
    )
    path = run / "report.html"
    with whole_file(path) as stream:
        stream.write(page.encode())
    return path


def _groups(config: Config, rows: Sequence[Mapping], selection: Mapping) -> dict[str, tuple[int, list[dict]]]:
    """Title -> (how many pairs there are, those shown with what the template says of them); reads only the images shown."""
    from distill.pairs import find_pairs

    dropped, groups = selection["dropped"], {}
    for title, keys in (("Accepted pairs", {*selection["kept"]}), ("Rejected pairs", dropped)):
        group = [row for row in rows if row["key"] in keys]
        shown = spread(group, PAIRS_SHOWN)
        pairs = [
            read_pair(location, ("input", "edit"))
            for location in find_pairs(pairs_dir(config), [row["key"] for row in shown])
        ]
        cards = [
            {"pair": pair, "scores": row, "why": dropped.get(pair.key)}
            for pair, row in zip(pairs, shown, strict=True)
        ]
        groups[title] = len(group), cards
    return groups


def spread(rows: Sequence[Mapping], count: int) -> list[Mapping]:
    """At most `count` rows, evenly spaced in the order of falling CLIP gain: the best, the worst and what lies between."""
    ordered = sorted(
        rows, key=lambda row: -math.inf if row["clip_gain"] is None else row["clip_gain"], reverse=True
    )
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _score_charts(rows: Sequence[Mapping], thresholds: Mapping[str, float | None]) -> list[str]:
    """Histograms of the scores, and after that of the CLIP gain what share of the pairs each threshold would keep."""
    charts = []
    for name in dict.fromkeys((*FIRST_CHARTS, *SAYS)):
        values = sorted(row[name] for row in rows if row[name] is not None)
        limit = thresholds.get("overlap" if name == "overlap_iou" else name)
        if values:
            charts.append(histogram(name, values, limit, SAYS[name]))
        if values and name == "clip_gain":
            line = Series(
                "", [(value, 100 * (len(values) - place) / len(rows)) for place, value in enumerate(values)]
            )
            marker = None if limit is None else (limit, "threshold")
            charts.append(
                line_chart(
                    "Yield by threshold",
                    [line],
                    "CLIP gain asked for",
                    "pairs that have it, %",
                    marker=marker,
                )
            )
    return charts


def _training(metrics: Sequence[Mapping]) -> list[str]:
    """The TRAINING_CHARTS that have finite values, over the images shown."""

    def points(kind: str, name: str) -> list[tuple[float, float]]:
        return [
            (line["images"], line[name])
            for line in metrics
            if line["kind"] == kind and math.isfinite(line.get(name, math.nan))
        ]

    charts = []
    for name, (title, unit) in TRAINING_CHARTS.items():
        trained, validated = points("train", name), points("validation", name)
        lines = [
            Series("training", trained, "faint"),
            Series("smoothed", smoothed(trained)),
            Series("validation", validated, "dots"),
        ]
        if trained or validated:
            charts.append(line_chart(title, lines, "training images shown", unit, zero=name != "psnr"))
    return charts


def _duration(seconds: float) -> str:
    """A time as figure and unit: 0.0042 -> '4.2 ms'."""
    scales = ((1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min"), (math.inf, 1 / 3600, "h"))
    return next(f"{_figure(seconds * scale)} {unit}" for limit, scale, unit in scales if seconds < limit)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"


class Series(NamedTuple):
    """One line through points (x, y). style: 'line', 'faint' (raw values behind a smooth line) or 'dots' (a line and its points)."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line"


def histogram(title: str, values: Sequence[float], limit: float | None, x_label: str) -> str:
    """How many pairs have which score; bars below the limit are faint. The limit is drawn even where no pair reaches it."""
    marks = [] if limit is None else [limit]
    low, high = _widened(min([*values, *marks]), max([*values, *marks]))
    wide = (high - low) / BINS
    origin = (
        low if limit is None else limit - math.ceil((limit - low) / wide - 1e-9) * wide
    )  # no bar lies on both sides of the limit
    counts, edges = np.histogram(values, bins=origin + wide * np.arange(BINS + 2))
    bars = [
        {
            "dropped": limit is not None and (left + right) / 2 < limit,
            "left": left,
            "right": right,
            "count": count,
        }
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    ]
    marker = None if limit is None else (limit, f"kept from {limit:.3g}")
    y_range = 0.0, max(HEADROOM * counts.max(), 4.0)
    return _chart(
        (edges[0], edges[-1]),
        y_range,
        title=title,
        x_label=x_label,
        y_label="pairs",
        bars=bars,
        marker=marker,
    )


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    zero: bool = True,
    marker: tuple[float, str] | None = None,
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
    return (
        (low, high) if high - low > 1e-9 * max(abs(low), abs(high), 1e-9) else (low - margin, high + margin)
    )


if __name__ == "__main__":
    raise SystemExit(main())
