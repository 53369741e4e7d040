"""<run>/filter.html: every score's histogram with its bounds, the yield, and accepted, rejected and borderline pairs to look at.

One file that opens offline. The page's script (page.html) draws everything from the scores inside it, so bounds can be moved in the page;
it shows the command that selects the same.
"""

from __future__ import annotations

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

from configs.loader import pairs_dir, run_dir
from configs.schema import Config
from filter.pictures import FLAGS
from filter.score_table import SCORES
from filter.selection import Criteria, best_keys

TEMPLATE = Path(__file__).with_name("page.html")
SIDE, QUALITY = 160, 80  # of the JPEGs: about 5 kB a picture
NEAR_SHARE = 1 / 3  # of the pairs shown are those nearest to the bounds
SAYS = {
    "sim_input_source": "cosine of input and source text",
    "sim_input_target": "cosine of input and target text",
    "sim_edit_source": "cosine of edit and source text",
    "sim_edit_target": "cosine of edit and target text",
    "clip_gain": "how much nearer to the target text the edit is than the input",
    "clip_directional": "cosine of the change in picture and the change in text",
    "image_image": "cosine of input and edit",
    "overlap_iou": "foreground masks: intersection over union",
    "overlap_dice": "foreground masks: twice the intersection over the sum",
    "area_input": "foreground of the input, share of the picture",
    "area_edit": "foreground of the edit, share of the picture",
    "lpips_input_edit": "LPIPS between input and edit",
    "sharpness_input": "variance of the Laplacian",
    "sharpness_edit": "variance of the Laplacian",
    "sharpness_ratio": "sharpness of the edit over that of the input",
}


def write_page(config: Config, rows: Sequence[Mapping[str, Any]], asked: Criteria) -> Path:
    """Write <run>/filter.html for the scores and the selection; returns its path. At most filter.page_pairs pairs bring their pictures."""
    at_least: dict[str, float | None] = dict(asked.at_least)
    at_most: dict[str, float | None] = dict(asked.at_most)
    if asked.keep is not None and (best := list(best_keys(rows, asked).values())):  # a share is a bound at its last pair
        limits, name = (at_most, asked.by[1:]) if asked.by.startswith("-") else (at_least, asked.by)
        limits[name] = _rounded(best[-1])
    chosen = choose(rows, at_least, at_most, config.filter.page_pairs)
    data = {
        "title": f"{config.task.source} \N{RIGHTWARDS ARROW} {config.task.target}",
        "about": f"Task {config.task.name}, teacher {config.teacher.name}, scorer {config.scorer.model}. Selected: {asked}.",
        "command": f"python filter/run.py task={config.task.name} teacher={config.teacher.name}",
        "scores": SCORES,
        "says": SAYS,
        "rows": [[row["key"], row["flags"], *(_rounded(row[name]) for name in SCORES)] for row in rows],
        "at_least": at_least,
        "at_most": at_most,
        "reject": list(asked.reject),
        "flags": list(FLAGS),
        "pictures": _pictures(config, {rows[place]["key"]: place for place in chosen}),
    }
    page = TEMPLATE.read_text()
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[-1]
    page = page.replace("__HASH__", "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())
    page = page.replace("__DATA__", json.dumps(data).replace("<", "\\u003c"))  # no text of a caption can end the element
    path = run_dir(config) / "filter.html"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def choose(rows: Sequence[Mapping[str, Any]], at_least: Mapping[str, Any], at_most: Mapping[str, Any], count: int) -> list[int]:
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


def _rounded(score: float | None) -> float | None:
    return None if score is None else float(f"{score:.5g}")  # 15,000 pairs have 225,000 scores


def _pictures(config: Config, wanted: Mapping[str, int]) -> dict[int, list[str]]:
    """Place of the row -> input and edit as JPEG addresses, and the caption; reads only the pairs in `wanted` (key to place)."""
    from generate.shards import finished_shards, locate, read_pair

    found = {}
    for location in (place for shard in finished_shards(pairs_dir(config)) for place in locate(shard) if place.key in wanted):
        pair = read_pair(location, ("input", "edit"))
        found[wanted[pair.key]] = [*(_jpeg(pair.images[name]) for name in ("input", "edit")), str(pair.record.get("caption", pair.key))]
    return found


def _jpeg(image: np.ndarray) -> str:
    pillow, stream = Image.fromarray(image), io.BytesIO()
    pillow.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    pillow.save(stream, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
