"""The report of a run as one HTML file that opens anywhere, offline: pairs, scores, training, timings, configuration.

    python scripts/report.py task=tree2winter

Reads what the stages wrote below <run> (pairs, scores, selection.json, train/metrics.jsonl) and writes <run>/report.html. What a stage has
not written yet is left out, and the page says so. scripts/demo.py adds held-out scenes and timings.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.cli import entry
from configs.errors import UserError
from configs.loader import pairs_dir, run_dir, to_yaml
from configs.schema import Config
from distill.log import read_metrics
from filter.report import SAYS
from filter.score_table import read_scores
from generate.shards import read_pair
from scripts.report_charts import TEMPLATES, Series, histogram, line_chart, smoothed

SECTIONS = ("task", "generate", "scorer")
COLUMNS = {"input": "Input", "reconstruction": "Reconstruction", "edit": "Teacher's edit", "generator": "Generator", "truth": "Truth"}
PAIRS_SHOWN = 24  # of the accepted and of the rejected: enough to judge by, and the file stays a few megabytes
FIRST_CHARTS = ("clip_gain", "overlap_iou", "clip_directional", "image_image")  # of the scores; the page folds the last ones away

TRAINING_CHARTS = {
    "l1": ("L1 to the teacher's edit", "mean absolute difference, values in [\N{MINUS SIGN}1, 1]"),
    "lpips": ("LPIPS to the teacher's edit", "LPIPS (VGG16)"),
    "psnr": ("Validation PSNR", "dB"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code."""
    return entry(
        __doc__, SECTIONS, lambda config: print(write_report(config)), lambda config: {"out": run_dir(config) / "report.html"}, argv
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
    TEMPLATES.filters["data_url"] = data_url
    page = TEMPLATES.get_template("report.html").render(
        task=config.task,
        teacher=config.teacher,
        yaml=to_yaml(config),
        figure=_figure,
        duration=_duration,
        teacher_seconds=teacher_seconds,
        generator_seconds=generator_seconds,
        images_shown=max((line["images"] for line in metrics), default=0),
        columns={name: label for name, label in COLUMNS.items() if any(name in row["images"] for row in rows)},
        rows=rows,
        distances=[(what, f"{psnr:.4g}", f"{lpips:.4g}") for what, psnr, lpips in distances],
        training=_training(metrics),
        selection=selection,
        scores=_score_charts(scores, selection["thresholds"]) if selection else [],
        groups=_groups(config, scores, selection) if selection else {},
        timings=[(name, _duration(seconds)) for name, seconds in (timings or {}).items()],
    )
    path = run / "report.html"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def data_url(image: np.ndarray, max_side: int) -> str:
    """The RGB uint8 H x W x 3 image as PNG in a URL, scaled down to at most max_side pixels a side."""
    pillow = Image.fromarray(image)
    pillow.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    pillow.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _groups(config: Config, rows: Sequence[Mapping], selection: Mapping) -> dict[str, tuple[int, list[dict]]]:
    """Title -> (how many pairs there are, those shown with what the template says of them); reads only the images shown."""
    from distill.pairs import find_pairs

    groups = {}
    for title, keys in (("Accepted pairs", set(selection["kept"])), ("Rejected pairs", selection["dropped"])):
        group = [row for row in rows if row["key"] in keys]
        shown = spread(group, PAIRS_SHOWN)
        locations = find_pairs(pairs_dir(config), [row["key"] for row in shown])
        cards = [
            {"pair": read_pair(location, ("input", "edit")), "scores": row, "why": selection["dropped"].get(row["key"])}
            for location, row in zip(locations, shown, strict=True)
        ]
        groups[title] = len(group), cards
    return groups


def spread(rows: Sequence[Mapping], count: int) -> list[Mapping]:
    """At most `count` rows, evenly spaced in the order of falling CLIP gain: the best, the worst and what lies between."""
    ordered = sorted(rows, key=lambda row: -math.inf if row["clip_gain"] is None else row["clip_gain"], reverse=True)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _score_charts(rows: Sequence[Mapping], thresholds: Mapping[str, float | None]) -> list[str]:
    """Histograms of the scores, and after that of the CLIP gain what share of the pairs each threshold would keep."""
    limits = {**thresholds, "overlap_iou": thresholds["overlap"]}
    charts = []
    for name in dict.fromkeys((*FIRST_CHARTS, *SAYS)):
        values = sorted(row[name] for row in rows if row[name] is not None)
        limit = limits.get(name)
        if values:
            charts.append(histogram(name, values, limit, SAYS[name]))
        if values and name == "clip_gain":
            line = Series("", [(value, 100 * (len(values) - place) / len(rows)) for place, value in enumerate(values)])
            marker = None if limit is None else (limit, "threshold")
            charts.append(line_chart("Yield by threshold", [line], "CLIP gain asked for", "pairs that have it, %", marker=marker))
    return charts


def _training(metrics: Sequence[Mapping]) -> list[str]:
    """The TRAINING_CHARTS that have finite values, over the images shown."""

    def points(kind: str, name: str) -> list[tuple[float, float]]:
        return [(line["images"], line[name]) for line in metrics if line["kind"] == kind and math.isfinite(line.get(name, math.nan))]

    charts = []
    for name, (title, unit) in TRAINING_CHARTS.items():
        trained, validated = points("train", name), points("validation", name)
        lines = [Series("training", trained, "faint"), Series("smoothed", smoothed(trained))] if trained else []
        lines.append(Series("validation", validated, "dots"))
        if trained or validated:
            charts.append(line_chart(title, lines, "training images shown", unit, zero=name != "psnr"))
    return charts


def _duration(seconds: float) -> str:
    """A time as figure and unit: 0.0042 -> '4.2 ms'."""
    scales = ((1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min"), (math.inf, 1 / 3600, "h"))
    return next(f"{_figure(seconds * scale)} {unit}" for limit, scale, unit in scales if seconds < limit)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    raise SystemExit(main())
