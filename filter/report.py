"""<run>/filter.html: every score's histogram with its bounds, the yield, and accepted, rejected and borderline pairs to look at.

One file that opens offline; its script (page.html) draws everything from the scores inside it, so bounds can be moved in the page.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.files import whole_file
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from filter.score_table import FLAGS, SAYS, SCORES
from filter.selection import Criteria, down_to
from generate.shards import finished_shards, locate, read_pair

TEMPLATE = Path(__file__).with_name("page.html")
SIDE, QUALITY = 160, 80  # of the JPEGs: about 5 kB a picture
NEAR_SHARE = 1 / 3  # of the pairs shown are those nearest to the bounds


def write_page(config: Config, rows: Sequence[Mapping[str, Any]], asked: Criteria) -> Path:
    """Write <run>/filter.html for the scores and the selection; returns its path. At most filter.page_pairs pairs bring their pictures."""
    at_least, at_most = dict(asked.at_least), dict(asked.at_most)
    if (last := down_to(rows, asked)) is not None:  # a share is a bound at its last pair
        (at_most if asked.by.startswith("-") else at_least)[asked.by.removeprefix("-")] = _rounded(last)
    chosen = choose(rows, at_least, at_most, config.filter.page_pairs)
    data = {
        "title": f"{config.task.source} \N{RIGHTWARDS ARROW} {config.task.target}",
        "about": f"Task {config.task.name}, teacher {config.teacher.name}, scorer {config.scorer.model}. Selected: {asked}.",
        "command": f"python filter/run.py task={config.task.name} teacher={config.teacher.name}",
        "scores": SCORES,
        "says": SAYS,
        "rows": [
            [
                row["key"],
                row["flags"],
                *(None if row[name] is None else _rounded(row[name]) for name in SCORES),
            ]
            for row in rows
        ],
        "at_least": at_least,
        "at_most": at_most,
        "reject": list(asked.reject),
        "flags": list(FLAGS),
        "pictures": _pictures(config, {rows[place]["key"]: place for place in chosen}),
    }
    page = TEMPLATE.read_text()
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[-1]
    page = page.replace(
        "__HASH__", "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    )
    page = page.replace(
        "__DATA__", json.dumps(data).replace("<", "\\u003c")
    )  # no text of a caption can end the element
    path = run_dir(config) / "filter.html"
    with whole_file(path) as stream:
        stream.write(page.encode())
    return path


def choose(
    rows: Sequence[Mapping[str, Any]], at_least: Mapping[str, Any], at_most: Mapping[str, Any], count: int
) -> list[int]:
    """Places of at most `count` rows: a third of them the nearest to a bound, the others evenly from the best to the worst."""
    if not rows:
        return []
    margins = np.full(len(rows), np.inf)
    for limits, sign in ((at_least, 1), (at_most, -1)):
        for name, limit in limits.items():
            values = np.array([row[name] for row in rows], np.float64)  # None is NaN
            known = values[~np.isnan(values)]
            inside = sign * (values - limit) / ((known.std() if len(known) else 0) or 1)
            margins = np.minimum(margins, np.where(np.isnan(inside), -np.inf, inside))
    near = np.argsort(np.abs(margins), kind="stable")[: round(NEAR_SHARE * count)].tolist()
    others = [place for place in np.argsort(margins, kind="stable").tolist() if place not in set(near)]
    steps = np.linspace(0, len(others) - 1, min(count - len(near), len(others))).round().astype(int)
    return sorted([*near, *(others[step] for step in steps)])


def _rounded(score: float) -> float:
    return float(f"{score:.5g}")  # 15,000 pairs have 225,000 scores


def _pictures(config: Config, wanted: Mapping[str, int]) -> dict[int, list[str]]:
    """Place of the row -> input and edit as JPEG addresses, and the caption; reads only the pairs in `wanted` (key to place)."""
    found = {}
    for location in (
        place
        for shard in finished_shards(pairs_dir(config))
        for place in locate(shard)
        if place.key in wanted
    ):
        pair = read_pair(location, ("input", "edit"))
        pictures = (data_url(pair.images[name], SIDE, "JPEG", quality=QUALITY) for name in ("input", "edit"))
        found[wanted[pair.key]] = [*pictures, str(pair.record.get("caption", pair.key))]
    return found


def data_url(image: np.ndarray, max_side: int, kind: str = "PNG", **options: Any) -> str:
    """The RGB uint8 H x W x 3 image in a URL, scaled down to at most max_side pixels a side. options: Pillow's for that kind of file."""
    pillow, stream = Image.fromarray(image), io.BytesIO()
    pillow.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    pillow.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
