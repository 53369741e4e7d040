"""<run>/filter.html: the scores' histograms with pairs beside them, the yield, and pairs to look at.

One file that opens offline. Its script (page.js, which draws with charts.js) makes everything from
the scores inside it, so that the selection can be changed in the page.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.files import whole_file
from configs.runs import command, pairs_dir, run_dir
from configs.schema import Config
from filter.score_table import FLAGS, SCORES
from filter.selection import Criteria, Row, down_to
from generate.shards import finished_shards, locate, read_pair

HERE = Path(__file__).parent
CHARTS_SCRIPT = (HERE / "charts.js").read_text()
CHARTS_STYLE = (HERE / "charts.css").read_text()
PICTURED_PAIRS = 120  # bring their pictures, about 15 kB each; those of MAIN_SCORES and vetoes beside
SIDE = 256  # pixels of a picture, at most: enlarged it fills a screen's height
QUALITY = 80  # of the JPEG
NEAR_SHARE = 1 / 3  # of the pairs shown are those nearest to the bounds
# Which scores matter first, by docs/filter.md: the first so many that there are, with pairs beside them.
MAIN_SCORES = ("clip_gain", "lpips_generator", "overlap_iou", "lpips_input_edit", "clip_directional")
MAIN_COUNT = 3
EXTREMES = 4  # of the lowest and of the highest of each main score bring their pictures


def write_page(config: Config, rows: Sequence[Row], criteria: Criteria) -> Path:
    """Write <run>/filter.html for the scores and the selection; returns its path."""
    script = CHARTS_SCRIPT + (HERE / "page.js").read_text()
    data = page_data(config, rows, criteria)
    page = (HERE / "page.html").read_text()
    page = page.replace("__CHARTS_STYLE__", CHARTS_STYLE)
    page = page.replace("__SCRIPT__", script)
    page = page.replace("__HASH__", content_hash(script))
    page = page.replace("__DATA__", inline_json(data))  # last: nothing in it is replaced
    path = run_dir(config) / "filter.html"
    with whole_file(path) as stream:
        stream.write(page.encode())
    return path


def page_data(config: Config, rows: Sequence[Row], criteria: Criteria) -> dict[str, Any]:
    """What page.js reads."""
    at_least, at_most = bounds_of(rows, criteria)
    main = main_scores(rows, criteria)
    vetoed = [place for place, row in enumerate(rows) if row["key"] in set(criteria.veto)]
    pictured = {*choose(rows, at_least, at_most, PICTURED_PAIRS), *vetoed[:PICTURED_PAIRS]}
    for name in main:
        pictured |= extremes(rows, name, EXTREMES)
    task = config.task
    made_by = f"Task {task.name}, teacher {config.teacher.name}, scorer {config.scorer.model}"
    table = []
    for row in rows:
        scores = [None if row[name] is None else rounded(row[name]) for name in SCORES]
        table.append([row["key"], row["flags"], *scores])
    return {
        "title": f"{task.source} \N{RIGHTWARDS ARROW} {task.target}",
        "about": f"{made_by}. Selected: {criteria}.",
        "command": command("filter", run_dir(config)),
        "task": task.name,
        "scores": list(SCORES),
        "main": main,
        "meanings": SCORES,
        "rows": table,
        "at_least": {name: rounded(low) for name, low in criteria.at_least.items()},
        "at_most": {name: rounded(high) for name, high in criteria.at_most.items()},
        "keep": criteria.keep,
        "by": criteria.by,
        "reject": list(criteria.reject),
        "veto": [rows[place]["key"] for place in vetoed],
        "veto_file": criteria.veto_file,
        "flags": list(FLAGS),
        "pictures": _pictures(config, {rows[place]["key"]: place for place in pictured}),
    }


def main_scores(rows: Sequence[Row], criteria: Criteria) -> list[str]:
    """The scores that the page shows first: the first of MAIN_SCORES there are, and those selected by."""
    selected = [*criteria.at_least, *criteria.at_most]
    if criteria.keep is not None:
        selected.append(criteria.by_score)
    known = [name for name in MAIN_SCORES if any(row[name] is not None for row in rows)]
    return list(dict.fromkeys([*known[:MAIN_COUNT], *selected]))


def extremes(rows: Sequence[Row], name: str, count: int) -> set[int]:
    """Places of the `count` rows with the lowest of a score, and of those with the highest."""
    places = [place for place, row in enumerate(rows) if row[name] is not None]
    places.sort(key=lambda place: rows[place][name])
    return {*places[:count], *places[-count:]}


def bounds_of(rows: Sequence[Row], criteria: Criteria) -> tuple[dict[str, float], dict[str, float]]:
    """The lower and the upper bounds by score. A share of the best becomes a bound at its last pair."""
    at_least = dict(criteria.at_least)
    at_most = dict(criteria.at_most)
    last = down_to(rows, criteria)
    if last is not None:
        bounds = at_most if criteria.low_is_good else at_least
        bounds[criteria.by_score] = rounded(last)
    return at_least, at_most


def choose(
    rows: Sequence[Row], at_least: Mapping[str, float], at_most: Mapping[str, float], count: int
) -> list[int]:
    """Places of at most `count` rows: a third nearest to a bound, the others evenly from best to worst."""
    if not rows:
        return []
    margins = np.full(len(rows), np.inf)  # to the nearest bound, negative beyond it
    for name, low in at_least.items():
        margins = np.minimum(margins, _deviations_above(rows, name, low))
    for name, high in at_most.items():
        margins = np.minimum(margins, _deviations_below(rows, name, high))
    nearest = np.argsort(np.abs(margins), kind="stable")[: round(NEAR_SHARE * count)].tolist()
    best_last = np.argsort(margins, kind="stable").tolist()
    others = [place for place in best_last if place not in set(nearest)]
    steps = np.linspace(0, len(others) - 1, min(count - len(nearest), len(others)))
    evenly = [others[step] for step in steps.round().astype(int)]
    return sorted([*nearest, *evenly])


def _deviations_above(rows: Sequence[Row], name: str, limit: float) -> np.ndarray:
    """How far each row's score is above the limit, in standard deviations; -inf where it has none."""
    scores = np.array([row[name] for row in rows], np.float64)  # None is NaN
    known = scores[~np.isnan(scores)]
    deviation = known.std() if len(known) else 0.0
    margins = (scores - limit) / (deviation or 1.0)
    return np.where(np.isnan(margins), -np.inf, margins)


def _deviations_below(rows: Sequence[Row], name: str, limit: float) -> np.ndarray:
    """How far each row's score is below the limit, in standard deviations; -inf where it has none."""
    margins = -_deviations_above(rows, name, limit)
    return np.where(np.isinf(margins), -np.inf, margins)


def rounded(score: float) -> float:
    """Five digits, as 15,000 pairs have 225,000 scores."""
    return float(f"{score:.5g}")


def _pictures(config: Config, wanted: Mapping[str, int]) -> dict[int, list[str]]:
    """Place of the row -> input and edit as addresses of JPEGs, and the caption.

    wanted: key -> place of the row; only these pairs are read.
    """
    pictures = {}
    for shard in finished_shards(pairs_dir(config)):
        for location in locate(shard):
            if location.key not in wanted:
                continue
            pair = read_pair(location, ("input", "edit"))
            input_url = data_url(pair.images["input"], SIDE, "JPEG", quality=QUALITY)
            edit_url = data_url(pair.images["edit"], SIDE, "JPEG", quality=QUALITY)
            caption = str(pair.record.get("caption", pair.key))
            pictures[wanted[pair.key]] = [input_url, edit_url, caption]
    return pictures


def data_url(image: np.ndarray, max_side: int, kind: str = "PNG", **options: Any) -> str:
    """The RGB uint8 H x W x 3 image in an address, scaled down to at most max_side pixels a side.

    options: Pillow's for that kind of file.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def content_hash(script: str) -> str:
    """What a Content-Security-Policy says of the one script that may run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def inline_json(data: Any) -> str:
    """JSON to stand in a script element: no text in it can end the element."""
    return json.dumps(data).replace("<", "\\u003c")
