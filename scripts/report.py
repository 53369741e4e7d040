"""The report of a run as one HTML file that opens anywhere, offline: pairs, scores, training, timings, configuration.

    python scripts/report.py task=tree2winter

Reads what the stages wrote below <run> (pairs, scores, selection.json, train/metrics.jsonl) and writes <run>/report.html. What a stage has
not written yet is left out, and the page says so. scripts/demo.py adds held-out scenes and timings (write_report's `extra`).
"""

from __future__ import annotations

import base64
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.cli import entry
from configs.errors import UserError
from configs.loader import pairs_dir, run_dir, to_yaml
from configs.schema import Config
from scripts.report_charts import Series, histogram, line_chart, smoothed, templates

SECTIONS = ("task", "generate", "scorer")
COLUMNS = {"input": "Input", "reconstruction": "Reconstruction", "edit": "Teacher's edit", "generator": "Generator", "truth": "Truth"}
EXTRA = ("rows", "teacher_seconds", "generator_seconds", "distances", "timings")
PAIRS_SHOWN = 24  # of the accepted and of the rejected: enough to judge by, and the file stays a few megabytes
CHARTED = {
    "clip_gain": ("CLIP gain", "cos(edit, target text) \N{MINUS SIGN} cos(input, target text)"),
    "overlap_iou": ("Foreground overlap", "intersection over union of the masks"),
    "clip_directional": ("Directional similarity", "cosine of the change in picture and in text"),
    "image_image": ("Image similarity", "cosine of input and edit"),
    "sim_edit_target": ("Edit and target text", "cosine"),
    "sim_input_target": ("Input and target text", "cosine"),
    "sim_edit_source": ("Edit and source text", "cosine"),
    "sim_input_source": ("Input and source text", "cosine"),
    "overlap_dice": ("Foreground overlap, Dice", "twice the intersection over the sum of the masks"),
    "area_input": ("Foreground of the input", "share of the picture"),
    "area_edit": ("Foreground of the edit", "share of the picture"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code."""
    return entry(__doc__ or "", SECTIONS, lambda config: print(write_report(config)), lambda config: {"out": report_path(config)}, argv)


def report_path(config: Config) -> Path:
    """<run>/report.html."""
    return run_dir(config) / "report.html"


def write_report(config: Config, extra: Mapping[str, Any] | None = None) -> Path:
    """Write <run>/report.html and return its path. UserError where there is no such run.

    extra, each part optional: 'rows' of held-out scenes {'title': str, 'images': {name: RGB uint8 H x W x 3}} with the names of COLUMNS;
    'teacher_seconds' and 'generator_seconds' an image; 'distances' {what: {'what was measured': number}}, one table row each; 'timings'
    {stage: seconds}.
    """
    from filter.score_table import read_scores

    extra = dict(extra or {})
    unknown = sorted(set(extra) - set(EXTRA))
    if unknown:
        raise ValueError(f"extra has {unknown}; it takes {EXTRA}")
    run = run_dir(config)
    if not run.is_dir():
        raise UserError(f"{run}: no such run; make its pairs with generate/run.py")
    selected = run / "selection.json"  # there are no scores before the filter wrote it
    selection = json.loads(selected.read_text()) if selected.exists() else {}
    scores = read_scores(config) if selection else []
    metrics = read_metrics(run / "train" / "metrics.jsonl")
    rows = extra.get("rows", [])
    templates().filters["data_url"] = data_url
    shown = {
        "tiles": _tiles(selection, metrics, extra),
        "columns": {name: label for name, label in COLUMNS.items() if any(name in row["images"] for row in rows)},
        "rows": rows,
        "distances": _distances(extra.get("distances", {})),
        "training": _training(metrics),
        "scores": _score_charts(scores, selection),
        "groups": _groups(config, scores, selection) if selection else {},
        "timings": [(name, " ".join(_duration(seconds))) for name, seconds in extra.get("timings", {}).items()],
    }
    template = templates().get_template("report.html")
    page = template.render(task=config.task, teacher=config.teacher, selection=selection, yaml=to_yaml(config), **shown)
    path = report_path(config)
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, the numbers of validation as val_NAME; none where there is no file.

    A last line that is cut off (training goes on, or was killed) is left out.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    entries = []
    for index, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except ValueError as error:
            if index < len(lines):
                raise UserError(f"{path}, line {index} is not JSON ({error}): delete that line") from error
            continue
        prefix = "val_" if found.get("kind") == "validation" else ""
        entries.append({name if name == "images" else prefix + name: value for name, value in found.items()})
    return entries


def _tiles(selection: Mapping, metrics: Sequence[Mapping], extra: Mapping) -> list[tuple[str, str, str, str]]:
    """Headline figures: (name, figure, unit, what it means)."""
    items = []
    teacher, generator = extra.get("teacher_seconds"), extra.get("generator_seconds")
    if teacher and generator:
        items.append(("Speed-up", f"{_figure(teacher / generator)}\N{MULTIPLICATION SIGN}", "", "generator against teacher"))
    items += [(name, *_duration(seconds), "per image") for name, seconds in (("Generator", generator), ("Teacher", teacher)) if seconds]
    if selection:
        items.append(("Pairs made", f"{selection['total']:,}", "", "input and edit"))
        items.append(("Pairs kept", f"{selection['yield']:.0%}", "", f"{len(selection['kept']):,} pass the filter"))
    shown = max((entry["images"] for entry in metrics), default=0)
    return items + [("Training images", f"{shown:,}", "", "shown to the generator")] * bool(shown)


def _distances(distances: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows of the table; None without any."""
    names = list(dict.fromkeys(name for row in distances.values() for name in row))
    body = [[what, *(f"{row[name]:.4g}" if name in row else "\N{EN DASH}" for name in names)] for what, row in distances.items()]
    return (["", *names], body) if body else None


def _groups(config: Config, rows: Sequence[Mapping], selection: Mapping) -> dict[str, tuple[int, list[dict]]]:
    """Title -> (how many pairs there are, those shown as {'images', 'caption', 'scores', 'why'}); reads only the images shown."""
    from distill.pairs import find_pairs
    from generate.shards import read_pair

    groups = {}
    for title, keys in (("Accepted pairs", set(selection["kept"])), ("Rejected pairs", selection["dropped"])):
        group = [row for row in rows if row["key"] in keys]
        chosen = spread(group, PAIRS_SHOWN)
        cards = []
        for row, location in zip(chosen, find_pairs(pairs_dir(config), [row["key"] for row in chosen]), strict=True):
            pair = read_pair(location, ("input", "edit"))
            parts = [f"CLIP gain {_signed(row['clip_gain'])}", f"directional {_signed(row['clip_directional'])}"]
            parts += [f"overlap {row['overlap_iou']:.2f}"] if row["overlap_iou"] is not None else []
            caption = pair.record.get("caption", row["key"])
            why = selection["dropped"].get(row["key"], "")
            scores = " \N{MIDDLE DOT}\n".join(parts).replace(" ", "\N{NO-BREAK SPACE}")  # lines break between the scores only
            cards.append({"images": pair.images, "caption": caption, "scores": scores, "why": why})
        groups[title] = len(group), cards
    return groups


def spread(rows: Sequence[Mapping], count: int) -> list[Mapping]:
    """At most `count` rows, evenly spaced in the order of falling CLIP gain: the best, the worst and what lies between."""
    ordered = sorted(rows, key=lambda row: -math.inf if row["clip_gain"] is None else row["clip_gain"], reverse=True)
    if len(ordered) <= count:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (count - 1))] for index in range(count)]


def _score_charts(rows: Sequence[Mapping], selection: Mapping) -> list[str]:
    """Histograms of the scores, and after the first of them what share of the pairs each threshold would keep."""
    limits = {"clip_gain": selection["thresholds"]["clip_gain"], "overlap_iou": selection["thresholds"]["overlap"]} if rows else {}
    charts = []
    for name, (title, x_label) in CHARTED.items():
        values = sorted(row[name] for row in rows if row[name] is not None)
        limit = limits.get(name)
        if values:
            charts.append(histogram(title, values, limit, x_label))
        if values and name == "clip_gain":
            line = Series("", values, [100 * (len(values) - index) / len(rows) for index in range(len(values))])
            marker = (limit, "threshold") if limit is not None else None
            charts.append(line_chart("Yield by threshold", [line], "CLIP gain asked for", "pairs that have it, %", marker=marker))
    return charts


def _training(metrics: Sequence[Mapping]) -> list[str]:
    def series(name: str) -> tuple[list[float], list[float]]:
        found = [(entry["images"], entry[name]) for entry in metrics if isinstance(entry.get(name), int | float)]
        return [x for x, _ in found], [y for _, y in found]

    charts = []
    x_label = "training images shown"
    units = {"l1": ("L1", "mean absolute difference, values in [\N{MINUS SIGN}1, 1]"), "lpips": ("LPIPS", "LPIPS (VGG16)")}
    for name, (title, unit) in units.items() if metrics else ():
        x, y = series(name)
        lines = [
            Series("training", x, y, "faint"),
            Series("smoothed", x, smoothed(y)),
            Series("validation", *series(f"val_{name}"), "dots"),
        ]
        charts.append(line_chart(f"{title} to the teacher's edit", lines, x_label, unit))
    decibels = Series("validation", *series("val_psnr"), "dots")
    return charts + ([line_chart("Validation PSNR", [decibels], x_label, "dB", zero=False)] if decibels.x else [])


def _duration(seconds: float) -> tuple[str, str]:
    """A time as (figure, unit): (0.0042) -> ('4.2', 'ms')."""
    scales = ((1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min"), (math.inf, 1 / 3600, "h"))
    scale, unit = next((scale, unit) for limit, scale, unit in scales if seconds < limit)
    return _figure(seconds * scale), unit


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


if __name__ == "__main__":
    sys.exit(main())
