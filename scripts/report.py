"""The report of a run as one HTML file that opens anywhere, offline: pairs, scores, training, timings, configuration.

    python scripts/report.py task=tree2winter

Reads what the stages wrote below <run> (pairs, scores, selection.json, train/metrics.jsonl) and writes
<run>/report.html. What a stage has not written yet is left out, and the page says so. scripts/demo.py adds held-out
scenes and timings (write_report's `extra`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from configs.cli import entry
from configs.errors import UserError
from configs.loader import pairs_dir, run_dir, to_yaml
from configs.schema import Config

SECTIONS = ("task", "generate", "scorer")
COLUMNS = {
    "input": "Input",
    "reconstruction": "Reconstruction",
    "edit": "Teacher's edit",
    "generator": "Generator",
    "truth": "Truth",
}
EXTRA = ("rows", "teacher_seconds", "generator_seconds", "distances", "timings")
PAIRS_SHOWN = 24  # of the accepted and of the rejected: enough to judge by, and the file stays a few megabytes
PAIRS_OPEN = 8  # of these, before "show more"
CHARTS_OPEN = 6  # of the scores, before "show more"
PAIR_SIDE, SCENE_SIDE = 256, 512  # pixels; larger images are scaled down in the page
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
    return entry(
        __doc__ or "",
        SECTIONS,
        lambda config: print(write_report(config)),
        lambda config: {"out": report_path(config)},
        argv,
    )


def report_path(config: Config) -> Path:
    """<run>/report.html."""
    return run_dir(config) / "report.html"


def write_report(config: Config, extra: Mapping[str, Any] | None = None) -> Path:
    """Write <run>/report.html and return its path. UserError where there is no such run.

    extra, each part optional: 'rows' of held-out scenes {'title': str, 'images': {name: RGB uint8 H x W x 3}} with
    the names of COLUMNS; 'teacher_seconds' and 'generator_seconds' an image; 'distances' {what: {'what was measured':
    number}}, one table row each; 'timings' {stage: seconds}.
    """
    from scripts.report_page import page

    extra = dict(extra or {})
    unknown = sorted(set(extra) - set(EXTRA))
    if unknown:
        raise ValueError(f"extra has {unknown}; it takes {EXTRA}")
    if not run_dir(config).is_dir():
        raise UserError(f"{run_dir(config)}: no such run; make its pairs with generate/run.py")
    rows, selection = _scores(config)
    metrics = read_metrics(run_dir(config) / "train" / "metrics.jsonl")
    task, side = config.task, config.teacher.resolution
    heading = (
        f"<h1>{escape(task.source)} <span>\N{RIGHTWARDS ARROW}</span> {escape(task.target)}</h1>"
        f'<p class="note">Task {escape(task.name)}, teacher {escape(config.teacher.name)}, '
        f"{side} \N{MULTIPLICATION SIGN} {side} pixels.</p>" + _headline(config, selection, metrics, extra)
    )
    sections = [
        _scenes(extra.get("rows", [])),
        _distances(extra.get("distances", {})),
        _training(metrics),
        _histograms(rows, selection),
        *_pairs(config, rows, selection),
        _timings(extra.get("timings", {})),
        _configuration(config),
    ]
    path = report_path(config)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page(f"zero2gan: {task.source} to {task.target}", heading, sections), encoding="utf-8")
    temporary.replace(path)
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, the numbers of validation as val_NAME; none where there is no file.

    A last line that is cut off (training goes on, or was killed) is left out.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    entries = []
    for index, line in enumerate(lines):
        try:
            entries.append(_named(json.loads(line)))
        except ValueError as error:
            if index < len(lines) - 1:
                raise UserError(f"{path}, line {index + 1} is not JSON ({error}): delete that line") from error
    return entries


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.get("kind") != "validation":
        return entry
    return {name if name == "images" else f"val_{name}": value for name, value in entry.items()}


def _scores(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of scores and selection.json; both empty before the filter ran."""
    from filter.score_table import read_scores

    path = run_dir(config) / "selection.json"
    return (read_scores(config), json.loads(path.read_text())) if path.exists() else ([], {})


def _headline(config: Config, selection: Mapping, metrics: Sequence[Mapping], extra: Mapping) -> str:
    from scripts.report_page import tiles

    items = []
    teacher, generator = extra.get("teacher_seconds"), extra.get("generator_seconds")
    if teacher and generator:
        items.append(("Speed-up", f"{_figure(teacher / generator)}\N{MULTIPLICATION SIGN}", "", "generator against teacher"))
    if generator:
        items.append(("Generator", *_duration(generator), "per image"))
    if teacher:
        items.append(("Teacher", *_duration(teacher), "per image"))
    if selection:
        items.append(("Pairs made", f"{selection['total']:,}", "", "input and edit"))
        items.append(("Pairs kept", f"{selection['yield']:.0%}", "", f"{len(selection['kept']):,} pass the filter"))
    shown = max((entry["images"] for entry in metrics), default=0)
    if shown:
        items.append(("Training images", f"{shown:,}", "", "shown to the generator"))
    return tiles(items) if items else ""


def _scenes(rows: Sequence[Mapping]) -> str:
    from scripts.report_page import scene_table, section

    title = "Scenes that training never saw"
    if not rows:
        return section(title, "None were given: scripts/demo.py adds them.")
    given = {name for row in rows for name in row["images"]}
    columns = {name: label for name, label in COLUMNS.items() if name in given}
    return section(title, "One scene a row, as each model renders it.", scene_table(columns, rows, SCENE_SIDE))


def _distances(distances: Mapping[str, Mapping[str, float]]) -> str:
    from scripts.report_page import section, table

    if not distances:
        return ""
    names = list(dict.fromkeys(name for row in distances.values() for name in row))
    body = [[what, *(f"{row[name]:.4g}" if name in row else "\N{EN DASH}" for name in names)] for what, row in distances.items()]
    return section("Distance to the truth", "On held-out scenes, each against its true edit.", table(["", *names], body))


def _pairs(config: Config, rows: Sequence[Mapping], selection: Mapping) -> list[str]:
    from scripts.report_page import gallery, section

    if not selection:
        return [section("Pairs", "Not scored yet: run filter/run.py.")]
    kept = set(selection["kept"])
    groups = {
        "Accepted pairs": [row for row in rows if row["key"] in kept],
        "Rejected pairs": [row for row in rows if row["key"] in selection["dropped"]],
    }
    chosen = {title: spread(group, PAIRS_SHOWN) for title, group in groups.items()}
    cards = _cards(config, [row for group in chosen.values() for row in group], selection["dropped"])
    sections = []
    for title, group in groups.items():
        note = f"{len(chosen[title])} of {len(group)}, from the highest CLIP gain down. Left: input, right: edit."
        shown = [cards[row["key"]] for row in chosen[title]]
        sections.append(section(title, note, gallery("pairs", shown, PAIRS_OPEN)) if group else section(title, "There are none."))
    return sections


def spread(rows: Sequence[Mapping], count: int) -> list[Mapping]:
    """At most `count` rows, evenly spaced in the order of falling CLIP gain: the best, the worst and what lies
    between.
    """
    ordered = sorted(rows, key=lambda row: -math.inf if row["clip_gain"] is None else row["clip_gain"], reverse=True)
    if len(ordered) <= count:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (count - 1))] for index in range(count)]


def _cards(config: Config, rows: Sequence[Mapping], dropped: Mapping[str, str]) -> dict[str, str]:
    """Key -> HTML of the pairs in rows; reads only those images."""
    from generate.shards import finished_shards, locate, read_pair
    from scripts.report_page import pair_card

    wanted = {row["key"]: row for row in rows}
    cards = {}
    for location in (place for shard in finished_shards(pairs_dir(config)) for place in locate(shard) if place.key in wanted):
        pair, row = read_pair(location, ("input", "edit")), wanted[location.key]
        parts = [f"CLIP gain {_signed(row['clip_gain'])}", f"directional {_signed(row['clip_directional'])}"]
        if row["overlap_iou"] is not None:
            parts.append(f"overlap {row['overlap_iou']:.2f}")
        caption = str(pair.record.get("caption", location.key))
        cards[location.key] = pair_card(
            list(pair.images.items()),
            caption,
            "\N{NO-BREAK SPACE}\N{MIDDLE DOT} ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts),
            dropped.get(location.key, ""),
            PAIR_SIDE,
        )
    return cards


def _histograms(rows: Sequence[Mapping], selection: Mapping) -> str:
    from scripts.report_charts import Series, histogram, line_chart
    from scripts.report_page import gallery, section

    if not rows:
        return section("Scores", "Not scored yet: run filter/run.py.")
    limits = {"clip_gain": selection["thresholds"]["clip_gain"], "overlap_iou": selection["thresholds"]["overlap"]}
    charts = []
    for name, (title, x_label) in CHARTED.items():
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            charts.append(histogram(title, values, limits.get(name), x_label))
    gains = sorted(row["clip_gain"] for row in rows if row["clip_gain"] is not None)
    if gains:
        shares = [100 * (len(gains) - index) / len(rows) for index in range(len(gains))]
        marker = (limits["clip_gain"], "threshold") if limits["clip_gain"] is not None else None
        charts.insert(
            1,
            line_chart(
                "Yield by threshold",
                [Series("", gains, shares)],
                "CLIP gain asked for",
                "pairs that have it, %",
                marker=marker,
            ),
        )
    note = f"All {len(rows)} pairs; the dashed line is the threshold."
    return section("Scores", note, gallery("charts", charts, CHARTS_OPEN))


def _training(metrics: Sequence[Mapping]) -> str:
    from scripts.report_charts import Series, line_chart, smoothed
    from scripts.report_page import section

    if not metrics:
        return section("Training", "No training yet: run distill/train.py.")

    def series(name: str) -> tuple[list[float], list[float]]:
        found = [(entry["images"], entry[name]) for entry in metrics if isinstance(entry.get(name), int | float)]
        return [x for x, _ in found], [y for _, y in found]

    charts = []
    for name, title, unit in (
        ("l1", "L1", "mean absolute difference, values in [\N{MINUS SIGN}1, 1]"),
        ("lpips", "LPIPS", "LPIPS (VGG16)"),
    ):
        (x, y), (val_x, val_y) = series(name), series(f"val_{name}")
        lines = [
            Series("training", x, y, "faint"),
            Series("smoothed", x, smoothed(y)),
            Series("validation", val_x, val_y, "dots"),
        ]
        charts.append(line_chart(f"{title} to the teacher's edit", lines, "training images shown", unit))
    x, y = series("val_psnr")
    if x:
        charts.append(line_chart("Validation PSNR", [Series("validation", x, y, "dots")], "training images shown", "dB", zero=False))
    return section(
        "Training",
        "The generator learns to do in one pass what the teacher did.",
        f'<div class="charts">{"".join(charts)}</div>',
    )


def _timings(timings: Mapping[str, float]) -> str:
    from scripts.report_page import section, table

    if not timings:
        return ""
    body = [[name, " ".join(_duration(seconds))] for name, seconds in timings.items()]
    return section("Timings", "Wall clock on the machine that made this report.", table(["Stage", "Time"], body))


def _configuration(config: Config) -> str:
    from scripts.report_page import section

    inner = f"<details><summary>Show all keys</summary><pre>{escape(to_yaml(config))}</pre></details>"
    return section("Configuration", "Everything needed to make this run again.", inner)


def _duration(seconds: float) -> tuple[str, str]:
    """A time as (figure, unit): (0.0042) -> ('4.2', 'ms')."""
    for limit, scale, unit in ((1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min"), (math.inf, 1 / 3600, "h")):
        if seconds < limit:
            return _figure(seconds * scale), unit
    raise ValueError(f"not a time: {seconds}")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


if __name__ == "__main__":
    sys.exit(main())
