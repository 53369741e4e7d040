"""The report of a run as one HTML file that opens anywhere, offline: pairs, scores, training,
timings, configuration.

    zero2gan report task=tree2winter

Reads what the stages wrote below <run> (pairs, scores, selection.json, train/metrics.jsonl) and
writes <run>/report.html. What a stage has not written yet is left out, and the page says so.
scripts/demo.py adds held-out scenes and timings, which later reports show too.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from configs.cli import entry
from configs.errors import UserError
from configs.files import whole_file
from configs.loader import RUN_FILE, to_yaml
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from distill.runlog import read_metrics
from filter.report import CHARTS_SCRIPT, CHARTS_STYLE, content_hash, data_url, inline_json, rounded
from filter.score_table import SCORES, read_scores
from filter.selection import Row
from generate.shards import Pair, read_pair
from scripts import held_out
from scripts.held_out import HeldOut

SECTIONS = ("task", "generate", "scorer")
COLUMNS = {
    "input": "Input",
    "reconstruction": "Reconstruction",
    "edit": "Teacher's edit",
    "generator": "Generator",
    "truth": "Truth",
}
ROWS_SHOWN = 4  # of the sheet of samples; the others are folded away
PAIRS_SHOWN = 24  # of the accepted and of the rejected: enough to judge by, in a few megabytes
FIRST_CHARTS = (
    "clip_gain",
    "overlap_iou",
    "clip_directional",
    "image_image",
)  # the last ones are folded away
TRAINING_CHARTS = {  # name in metrics.jsonl -> title, unit
    "l1": ("L1 to the teacher's edit", "mean absolute difference, values in [\N{MINUS SIGN}1, 1]"),
    "lpips": ("LPIPS to the teacher's edit", "LPIPS (VGG16)"),
    "psnr": ("Validation PSNR", "dB"),
}
LINKS = {  # beside the report -> what it is
    "filter.html": "The filter: scores and pairs, to choose another selection",
    "export/index.html": "The generator in a browser",
}
SMOOTHED_SHARE = 0.04  # of the points that a moving average takes in
TEMPLATES = Environment(  # every text that enters them is escaped
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass
class Card:
    """One pair that the page shows."""

    pair: Pair
    scores: Row
    why: str | None  # it was rejected; None: it was not


@dataclass
class PairGroup:
    """The accepted or the rejected pairs: how many there are, and those that the page shows."""

    count: int
    cards: list[Card]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code."""

    def work(config: Config) -> None:
        print(write_report(config))

    def plan(config: Config) -> dict[str, Any]:
        return {"out": run_dir(config) / "report.html"}

    return entry(__doc__, SECTIONS, work, plan, argv)


def write_report(
    config: Config,
    rows: Sequence[Mapping[str, Any]] = (),
    distances: Sequence[tuple[str, float, float]] = (),
    timings: Mapping[str, float] | None = None,
    teacher_seconds: float = 0.0,
    generator_seconds: float = 0.0,
) -> Path:
    """Write <run>/report.html and return its path. UserError where there is no such run.

    rows: held-out scenes {'title': str, 'images': {name: RGB uint8 H x W x 3}} with the names of
    COLUMNS. distances: what was compared, its PSNR in dB and its LPIPS. timings: seconds of each
    stage. *_seconds: of one image; 0 where it was not timed. They are kept in the run; where there
    are no rows, those that are kept there are shown.
    """
    run = run_dir(config)
    if not run.is_dir():
        raise UserError(f"{run}: no such run; make its pairs with `zero2gan generate`")
    if rows:
        seen = held_out.images_seen(run)
        results = HeldOut(rows, distances, timings or {}, teacher_seconds, generator_seconds, seen)
        held_out.keep(run, results)
    else:
        results = held_out.kept(run)
    remembered = run / RUN_FILE
    page = TEMPLATES.get_template("report.html").render(
        task=config.task,
        teacher=config.teacher,
        yaml=remembered.read_text() if remembered.is_file() else to_yaml(config),
        links={text: path for path, text in LINKS.items() if (run / path).exists()},
        teacher_seconds=results.teacher_seconds,
        generator_seconds=results.generator_seconds,
        columns=_columns(results.rows),
        rows=results.rows,
        made_with=results.images_seen,
        exported=held_out.images_seen(run),
        distances=[(what, f"{psnr:.4g}", f"{lpips:.4g}") for what, psnr, lpips in results.distances],
        timings=[(name, duration(seconds)) for name, seconds in results.timings.items()],
        **_training(run),
        **_selection(config),
        **_page_parts(),
    )
    path = run / "report.html"
    with whole_file(path) as stream:
        stream.write(page.encode())
    return path


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Those of COLUMNS that any row has a picture for."""
    columns = {}
    for name, label in COLUMNS.items():
        if any(name in row["images"] for row in rows):
            columns[name] = label
    return columns


def _training(run: Path) -> dict[str, Any]:
    """What the template shows of the training."""
    metrics = read_metrics(run / "train" / "metrics.jsonl")
    charts = training_charts(metrics)
    return {
        "images_shown": max((line["images"] for line in metrics), default=0),
        "training": charts,
        "is_above": any(ends_above_validation(chart) for chart in charts),
        "validation": headline_validation(metrics, held_out.images_seen(run)),
        "sheet": sample_sheet(run / "train" / "samples"),
    }


def headline_validation(
    metrics: Sequence[Mapping[str, Any]], exported: int | None
) -> Mapping[str, Any] | None:
    """The validation of the exported generator, else the newest; None without an LPIPS."""
    validations = [line for line in metrics if line["kind"] == "validation" and "lpips" in line]
    of_export = [line for line in validations if line["images"] == exported]
    return next(reversed(of_export or validations), None)


def sample_sheet(folder: Path) -> dict[str, Any]:
    """The newest sheet of samples: 'images', as many as training had shown then, and 'rows' of one pair each
    with the names of COLUMNS; no rows where there is none.
    """
    paths = sorted(folder.glob("*.png"))
    if not paths:
        return {"images": 0, "rows": []}
    with Image.open(paths[-1]) as sheet:
        sheet_HWC = np.asarray(sheet.convert("RGB"))
    names = ("input", "edit", "generator")  # as distill/validation.py lays them out
    side = sheet_HWC.shape[1] // len(names)
    rows = []
    for top in range(0, sheet_HWC.shape[0] - side + 1, side):
        pictures = {}
        for place, name in enumerate(names):
            pictures[name] = sheet_HWC[top : top + side, place * side : (place + 1) * side]
        rows.append({"title": "", "images": pictures})
    return {"images": int(paths[-1].stem), "rows": rows}


def _selection(config: Config) -> dict[str, Any]:
    """What the template shows of the scores and of the pairs, once the filter has selected."""
    path = run_dir(config) / "selection.json"
    if not path.exists():
        return {"selection": None, "scores": [], "groups": {}}
    selection = json.loads(path.read_text())
    rows = read_scores(config)
    dropped = selection["dropped"]
    groups = {
        "Accepted pairs": pair_group(config, rows, selection["kept"], dropped),
        "Rejected pairs": pair_group(config, rows, dropped, dropped),
    }
    return {"selection": selection, "scores": score_charts(rows, selection), "groups": groups}


def _page_parts() -> dict[str, Any]:
    """The functions and files with which the template is filled."""
    return {
        "data_url": partial(data_url, optimize=True),
        "figure": figure,
        "COLUMNS": COLUMNS,
        "ROWS_SHOWN": ROWS_SHOWN,
        "duration": duration,
        "inline_json": inline_json,
        "content_hash": content_hash,
        "charts_script": CHARTS_SCRIPT,
        "charts_style": CHARTS_STYLE,
    }


def pair_group(
    config: Config, rows: Sequence[Row], keys: Collection[str], dropped: Mapping[str, str]
) -> PairGroup:
    """The pairs of these keys; only the pictures that are shown are read. dropped: key -> reason."""
    from distill.pairs import find_pairs

    wanted = set(keys)
    group = [row for row in rows if row["key"] in wanted]
    shown = spread(group, PAIRS_SHOWN)
    cards = []
    locations = find_pairs(pairs_dir(config), [row["key"] for row in shown])
    for location, row in zip(locations, shown, strict=True):
        pair = read_pair(location, ("input", "edit"))
        cards.append(Card(pair, row, dropped.get(pair.key)))
    return PairGroup(len(group), cards)


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, evenly spaced in the order of falling CLIP gain, from the best to the worst."""

    def gain(row: Row) -> float:
        return -math.inf if row["clip_gain"] is None else row["clip_gain"]

    ordered = sorted(rows, key=gain, reverse=True)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def score_charts(rows: Sequence[Row], selection: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A histogram of each score, and after that of the CLIP gain the yield by threshold."""
    charts = []
    for name in dict.fromkeys((*FIRST_CHARTS, *SCORES)):
        values = [rounded(row[name]) for row in rows if row[name] is not None]
        if not values:
            continue
        low = selection["thresholds"].get("overlap" if name == "overlap_iou" else name)
        chart = {"kind": "histogram", "title": name, "xLabel": SCORES[name], "values": values}
        charts.append(chart | {"low": low, "high": selection["at_most"].get(name)})
        if name == "clip_gain":
            charts.append(yield_chart(values, len(rows), low))
    return charts


def yield_chart(values: Sequence[float], total: int, low: float | None) -> dict[str, Any]:
    """How many of `total` pairs have at least which CLIP gain, %."""
    return {
        "kind": "yield",
        "title": "Yield by threshold",
        "xLabel": "CLIP gain asked for",
        "yLabel": "pairs that have it, %",
        "values": values,
        "total": total,
        "marker": None if low is None else {"at": low, "text": "threshold"},
    }


def training_charts(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The TRAINING_CHARTS that have finite values, over the images shown."""
    charts = []
    for name, (title, unit) in TRAINING_CHARTS.items():
        trained = metric_points(metrics, "train", name)
        validated = metric_points(metrics, "validation", name)
        if not trained and not validated:
            continue
        charts.append(
            {
                "kind": "lines",
                "title": title,
                "xLabel": "training images shown",
                "yLabel": unit,
                "fromZero": name != "psnr",
                "lines": [
                    {"name": "training", "style": "faint", "points": trained},
                    {"name": "smoothed", "style": "line", "points": smoothed(trained)},
                    {"name": "validation", "style": "dots", "points": validated},
                ],
            }
        )
    return charts


def ends_above_validation(chart: Mapping[str, Any]) -> bool:
    """Whether a chart of a loss ends with a training that lies above the validation."""
    _, trained, validated = (line["points"] for line in chart["lines"])
    return bool(trained and validated and trained[-1][1] > validated[-1][1])


def metric_points(metrics: Sequence[Mapping[str, Any]], kind: str, name: str) -> list[tuple[float, float]]:
    """(images shown, value) of each line of that kind with a finite value."""
    points = []
    for line in metrics:
        if line["kind"] == kind and math.isfinite(line.get(name, math.nan)):
            points.append((line["images"], line[name]))
    return points


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points with the centred moving average of their y, over fewer of them at either end."""
    reach = max(1, round(len(points) * SMOOTHED_SHARE / 2))
    y = [point[1] for point in points]
    averages = []
    for place, (x, _) in enumerate(points):
        neighbours = y[max(0, place - reach) : place + reach + 1]
        averages.append((x, float(np.mean(neighbours))))
    return averages


def duration(seconds: float) -> str:
    """A time as figure and unit: 0.0042 -> '4.2 ms'."""
    if seconds < 1:
        return f"{figure(seconds * 1000)} ms"
    if seconds < 120:
        return f"{figure(seconds)} s"
    if seconds < 7200:
        return f"{figure(seconds / 60)} min"
    return f"{figure(seconds / 3600)} h"


def figure(value: float) -> str:
    """Two or three digits: 1234.5 -> '1,234', 12.34 -> '12.3', 1.234 -> '1.2'."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    raise SystemExit(main())
