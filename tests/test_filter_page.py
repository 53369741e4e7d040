"""filter/report.py in a real browser: what the page counts, that its controls work, that captions are text."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.loader import load
from configs.runs import run_dir
from configs.schema import Config
from filter.report import choose, write_page
from filter.score_table import SCORES
from filter.selection import Criteria, select
from generate.shards import Pair, write_shard

EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"console.error('broken')\">"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")


def make_page(
    tmp_path: Path, asked: Criteria, count: int = 40, **settings: int
) -> tuple[Config, list[dict], Path]:
    """A run of `count` pairs whose every caption is hostile; clip_gain rises evenly from 0 to 1, a tenth has no overlap."""
    config = load([f"runs_dir={tmp_path}", *(f"filter.{key}={value}" for key, value in settings.items())])
    folder = run_dir(config) / "pairs"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = [
        {
            "key": f"k{n}",
            "flags": ["blank"] if n == count - 1 else [],
            **dict.fromkeys(SCORES, n / (count - 1)),
        }
        for n in range(count)
    ]
    for n, row in enumerate(rows):
        row["overlap_iou"] = None if n % 10 == 0 else float(generator.random())
    images = generator.integers(0, 256, (count, 2, 24, 24, 3), dtype=np.uint8)
    write_shard(
        folder,
        0,
        [
            Pair(f"k{n}", {"input": a, "edit": b}, {"caption": f"k{n}{EVIL}"})
            for n, (a, b) in enumerate(images)
        ],
        {},
    )
    return config, rows, write_page(config, rows, asked)


def browse(path: Path, actions: str = "", *options: str) -> str:
    """The document after the page's own script and then `actions` ran. Fails where anything was written to the console."""
    page = (
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
        if actions
        else path.read_text()
    )
    driven = path.with_name("driven.html")
    driven.write_text(page.replace("</body>", f"<script>{actions}</script></body>") if actions else page)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=2000",
        "--window-size=1280,2400",
    ]
    command = [
        str(BROWSER),
        *flags,
        f"--user-data-dir={path.parent}/browser",
        *options,
        "--dump-dom",
        driven.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


def set_to(selector: str, value: str) -> str:
    return f"{{const e = document.querySelector('{selector}'); e.value = '{value}'; e.dispatchEvent(new Event('input'));}}"


def cards(document: str, kind: str = "(?:accepted|rejected)") -> int:
    return len(re.findall(f'<figure class="card {kind}"', document))


@in_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    asked = Criteria({"clip_gain": 0.5, "overlap_iou": 0.2}, {"lpips_input_edit": 0.9}, reject=["blank"])
    _, rows, path = make_page(tmp_path, asked)
    kept = len(select(rows, asked)[0])
    document = browse(path)
    assert f"{kept} of 40 pairs pass" in document and cards(document) == 24 and "1 to 24 of 40" in document
    assert "--select clip_gain=0.5 overlap_iou=0.2 lpips_input_edit=:0.9" in document
    assert document.count("<svg") == 1 + len(SCORES) and document.count('class="curve"') == 4
    assert (
        "<title>zero2gan: the filter</title>" in document and "&lt;img src=x" in document
    )  # the hostile captions are text
    for show, count in (("accepted", kept), ("rejected", 40 - kept)):
        document = browse(path, set_to("#show", show) + set_to("#sort", "clip_gain"))
        assert cards(document) == cards(document, show) == min(count, 24) and f"of {count}<" in document
    near = browse(path, set_to("#show", "borderline"))
    assert 0 < cards(near) < 24
    moved = browse(
        path,
        set_to("[data-score=clip_gain]", "0.8")
        + set_to("[data-score=overlap_iou]", "")
        + "document.querySelector('#next').click()",
    )
    now = len(select(rows, Criteria({"clip_gain": 0.8}, {"lpips_input_edit": 0.9}))[0])
    assert (
        f"{now} of 40 pairs pass" in moved
        and "--select clip_gain=0.8 lpips_input_edit=:0.9" in moved
        and "25 to 40 of 40" in moved
    )
    flagged = browse(path, set_to("#flag", "blank"))
    assert cards(flagged, "rejected") == cards(flagged) == 1 and "flagged blank" in flagged
    assert cards(browse(path, set_to("#text", "K39<"))) == 1


@in_browser
def test_a_screenshot_shows_pictures_and_bars(tmp_path: Path) -> None:
    _, _, path = make_page(tmp_path, Criteria(keep=0.5))
    assert "20 of 40 pairs pass" in browse(path, "", f"--screenshot={tmp_path}/page.png")
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    accent = (np.abs(pixels.astype(int) - [0x1F, 0x5F, 0xA8]).max(1) < 8).mean()
    assert 0.005 < accent < 0.5 and len(np.unique(pixels // 16, axis=0)) > 500  # bars, and pictures of noise


def test_the_page_brings_everything_along(tmp_path: Path) -> None:
    config, _, path = make_page(tmp_path, Criteria(), page_pairs=6)
    page = path.read_text()
    assert path == run_dir(config) / "filter.html" and page.count("data:image/jpeg;base64,") == 12
    assert (
        "default-src 'none'" in page and "sha256-" in page and page.count("<script") == 2 and EVIL not in page
    )
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)


@in_browser
def test_a_run_without_pairs_or_gain_still_makes_a_page(tmp_path: Path) -> None:
    config = load([f"runs_dir={tmp_path}"])
    (run_dir(config) / "pairs").mkdir(parents=True)
    write_shard(run_dir(config) / "pairs", 0, [], {})
    assert "no pairs" in browse(write_page(config, [], Criteria({"clip_gain": 0.5})))


def test_what_is_shown_lies_at_the_bounds_and_everywhere_else() -> None:
    rows = [{"clip_gain": n / 100, "image_image": None if n == 7 else 0.5} for n in range(101)]
    assert choose(rows, {"clip_gain": 0.5}, {}, 9) == [
        0,
        19,
        39,
        49,
        50,
        51,
        61,
        81,
        100,
    ]  # every 19.4th of the other 98
    assert 7 in choose(rows, {"image_image": 0.1}, {"clip_gain": 0.9}, 12)  # the worst: it has no such score
    assert choose(rows, {}, {}, 200) == list(range(101)) and choose([], {"clip_gain": 0.5}, {}, 9) == []
