"""filter/report.py in a real browser: what the page counts, that its controls work, that captions
are text.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.loader import load
from configs.runs import run_dir
from configs.schema import Config
from filter import report
from filter.report import choose, write_page
from filter.score_table import SCORES
from filter.selection import Criteria, select
from generate.shards import Pair, write_shard
from tests.helpers import browse, in_browser

EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"console.error('broken')\">"


def make_page(tmp_path: Path, criteria: Criteria, count: int = 40) -> tuple[Config, list[dict], Path]:
    """A run of `count` pairs whose every caption is hostile.

    All scores rise evenly from 0 to 1, but for a random overlap, which a tenth of the pairs have
    not.
    """
    config = load([f"runs_dir={tmp_path}"])
    folder = run_dir(config) / "pairs"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 2, 24, 24, 3), dtype=np.uint8)
    rows: list[dict] = []
    pairs = []
    for n, (image, edit) in enumerate(images):
        row = {"key": f"k{n}", "flags": [], **dict.fromkeys(SCORES, n / (count - 1))}
        row["overlap_iou"] = None if n % 10 == 0 else float(generator.random())
        rows.append(row)
        pairs.append(Pair(f"k{n}", {"input": image, "edit": edit}, {"caption": f"k{n}{EVIL}"}))
    rows[-1]["flags"] = ["blank"]
    write_shard(folder, 0, pairs, {})
    return config, rows, write_page(config, rows, criteria)


def set_to(selector: str, value: str) -> str:
    """What a reader does who puts a value into a field of the page."""
    return (
        f"{{const field = document.querySelector('{selector}'); field.value = '{value}'; "
        "field.dispatchEvent(new Event('input'));}"
    )


def cards(document: str, kind: str = "(?:accepted|rejected)") -> int:
    return len(re.findall(f'<figure class="card {kind}"', document))


@in_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    criteria = Criteria({"clip_gain": 0.5, "overlap_iou": 0.2}, {"lpips_input_edit": 0.9}, reject=["blank"])
    _, rows, path = make_page(tmp_path, criteria)
    kept = len(select(rows, criteria)[0])
    document = browse(path)
    assert f"{kept} of 40 pairs pass" in document
    assert cards(document) == 24 and "1 to 24 of 40" in document
    assert "--select clip_gain=0.5 overlap_iou=0.2 lpips_input_edit=:0.9" in document
    assert document.count("<svg") == 1 + len(SCORES) and document.count('<polyline class="line line"') == 4
    assert "<title>zero2gan: the filter</title>" in document
    assert "&lt;img src=x" in document  # the hostile captions are text
    for show, count in (("accepted", kept), ("rejected", 40 - kept)):
        document = browse(path, set_to("#show", show) + set_to("#sort", "clip_gain"))
        assert cards(document) == cards(document, show) == min(count, 24) and f"of {count}<" in document
    near = browse(path, set_to("#show", "borderline"))
    assert 0 < cards(near) < 24
    move = set_to("[data-score=clip_gain]", "0.8") + set_to("[data-score=overlap_iou]", "")
    moved = browse(path, move + "document.querySelector('#next').click()")
    now = len(select(rows, Criteria({"clip_gain": 0.8}, {"lpips_input_edit": 0.9}))[0])
    assert f"{now} of 40 pairs pass" in moved and "25 to 40 of 40" in moved
    assert "--select clip_gain=0.8 lpips_input_edit=:0.9" in moved
    flagged = browse(path, set_to("#flag", "blank"))
    assert cards(flagged, "rejected") == cards(flagged) == 1
    assert "flagged blank" in flagged
    assert cards(browse(path, set_to("#text", "K39<"))) == 1


@in_browser
def test_bars_change_their_colour_at_the_bounds(tmp_path: Path) -> None:
    """Of 40 gains from 0 to 1 those from 0.5 to 0.9 are 0.51, 0.54, ... 0.9: 16 of them."""
    _, _, path = make_page(tmp_path, Criteria({"clip_gain": 0.5}, {"clip_gain": 0.9}))
    assert bars_of(browse(path), "clip_gain") == (16, 24)
    assert bars_of(browse(path, set_to("[data-score=clip_gain]", "0.8")), "clip_gain") == (4, 36)
    assert bars_of(browse(path), "image_image") == (40, 0)


def bars_of(document: str, score: str) -> tuple[int, int]:
    """How many pairs the bars of a score's chart stand for: those within the bounds, and those
    beyond.
    """
    chart = document.partition(f'aria-label="{score}"')[2].partition("</svg>")[0]
    inside = re.findall(r'class="bar"[^>]*data-count="(\d+)"', chart)
    outside = re.findall(r'class="bar out"[^>]*data-count="(\d+)"', chart)
    return sum(map(int, inside)), sum(map(int, outside))


@in_browser
def test_a_screenshot_shows_pictures_and_bars(tmp_path: Path) -> None:
    _, _, path = make_page(tmp_path, Criteria(keep=0.5))
    assert "20 of 40 pairs pass" in browse(path, "", f"--screenshot={tmp_path}/page.png")
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    accent = (np.abs(pixels.astype(int) - [0x1F, 0x5F, 0xA8]).max(1) < 8).mean()
    assert 0.005 < accent < 0.5  # bars
    colours = np.unique(pixels // 16 @ [256, 16, 1])
    assert len(colours) > 500  # pictures of noise


def test_the_page_brings_everything_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PICTURED_PAIRS", 6)
    config, _, path = make_page(tmp_path, Criteria())
    page = path.read_text()
    assert path == run_dir(config) / "filter.html" and page.count("data:image/jpeg;base64,") == 12
    assert "default-src 'none'" in page and "sha256-" in page
    assert page.count("<script") == 2 and EVIL not in page and "__" not in page.partition("<body>")[2]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)


@in_browser
def test_a_run_without_pairs_or_gain_still_makes_a_page(tmp_path: Path) -> None:
    config = load([f"runs_dir={tmp_path}"])
    (run_dir(config) / "pairs").mkdir(parents=True)
    write_shard(run_dir(config) / "pairs", 0, [], {})
    assert "no pairs" in browse(write_page(config, [], Criteria({"clip_gain": 0.5})))


def test_what_is_shown_lies_at_the_bounds_and_everywhere_else() -> None:
    rows = [{"clip_gain": n / 100, "image_image": None if n == 7 else 0.5} for n in range(101)]
    # 49 to 51, and every 19.4th of the other 98
    assert choose(rows, {"clip_gain": 0.5}, {}, 9) == [0, 19, 39, 49, 50, 51, 61, 81, 100]
    assert 7 in choose(rows, {"image_image": 0.1}, {"clip_gain": 0.9}, 12)  # the worst: it has no such score
    assert 7 in choose(rows, {}, {"image_image": 0.9, "clip_gain": 0.9}, 12)
    assert choose(rows, {}, {}, 200) == list(range(101))
    assert choose([], {"clip_gain": 0.5}, {}, 9) == []
