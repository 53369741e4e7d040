"""filter/report.py in a real browser: what the page counts, that its controls work, that captions
are text.
"""

from __future__ import annotations

import dataclasses
import html
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.loader import load
from configs.runs import run_dir
from configs.schema import Config
from filter import report
from filter.report import choose, write_page
from filter.score_table import SCORES
from filter.selection import Criteria, parse, select
from generate.shards import Pair, write_shard
from tests.helpers import browse, in_browser, opened_page

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
    # the yield, the three first scores and another that is selected by; the others are folded
    assert document.count("<svg") == 1 + 3 + 1
    assert document.count('<polyline class="line line"') == 4
    unfolded = browse(path, "document.querySelector('#folded').open = true")
    assert unfolded.count("<svg") == 1 + len(SCORES)
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
    assert bars_of(browse(path, "document.querySelector('#folded').open = true"), "image_image") == (40, 0)


@in_browser
@pytest.mark.parametrize(
    "criteria",
    [
        Criteria(keep=0.3125),  # 12.5 pairs: Python rounds to the even 12
        Criteria(keep=0.6, by="-overlap_iou"),
        Criteria({"clip_gain": 0.2}, {"overlap_iou": 0.9}, keep=0.5, by="overlap_iou", reject=["blank"]),
        Criteria({"clip_gain": 0.2}, keep=0.5, veto=["k30", "k31", "k2"], veto_file="some where/veto.txt"),
    ],
)
def test_the_page_selects_as_the_command_does(tmp_path: Path, criteria: Criteria) -> None:
    _, rows, path = make_page(tmp_path, criteria)
    keys, _ = select(rows, criteria)
    document = browse(path, set_to("#show", "accepted"))
    assert f"{len(keys)} of 40 pairs pass" in document
    shown = re.findall(r'<figcaption title="(k\d+)"', document)
    assert sorted(shown) == sorted(keys)
    command = re.search(r'<code id="command">.*--select ([^<]*)</code>', document)
    assert command is not None
    items = shlex.split(html.unescape(command[1]))
    veto = [item for item in items if item.startswith("veto=")]
    assert veto == ([f"veto={criteria.veto_file}"] if criteria.veto else [])
    printed = parse([item for item in items if item not in veto], criteria.reject)
    assert printed == dataclasses.replace(criteria, veto=[], veto_file="")


@in_browser
def test_a_share_is_asked_for_in_the_page(tmp_path: Path) -> None:
    _, rows, path = make_page(tmp_path, Criteria({"clip_gain": 0.1}))
    document = browse(path, set_to("#keep", "25") + set_to("#by", "lpips_input_edit"))
    # low is good of an LPIPS: k0 to k9 less k0 to k3, whose gain is below 0.1
    assert "6 of 40 pairs pass" in document and "keep=0.25 by=-lpips_input_edit" in document
    assert select(rows, parse(["clip_gain=0.1", "keep=0.25", "by=-lpips_input_edit"], []))[0] == [
        f"k{n}" for n in range(4, 10)
    ]
    none = browse(path, set_to("#keep", "25") + "document.querySelector('#no-share').click()")
    assert "36 of 40 pairs pass" in none and "--select clip_gain=0.1<" in none


def test_a_bound_is_dragged_and_dragged_away(tmp_path: Path) -> None:
    _, rows, path = make_page(tmp_path, Criteria({"clip_gain": 0.5}))
    with opened_page(viewport={"width": 1280, "height": 900}) as page:
        page.goto(path.as_uri())
        drag(page, "clip_gain", "low", 0.7)
        assert 0.68 < float(page.input_value("[data-score=clip_gain]")) < 0.72
        assert page.inner_text("#counts").startswith("12 of 40")  # 28/39 is the first above 0.7
        beside = page.locator(".row").first.locator(".thumb")
        values = [float(text) for text in beside.all_inner_texts()]
        assert values == [pytest.approx(n / 39, abs=1e-4) for n in (28, 29, 30, 31, 27, 26, 25, 24)]
        drag(page, "clip_gain", "high", 0.8)
        assert page.inner_text("#counts").startswith("4 of 40")
        drag(page, "clip_gain", "low", -1)
        assert page.input_value("[data-score=clip_gain]") == ""
        assert "--select clip_gain=:0.8" in page.inner_text("#command")


def drag(page: Any, score: str, bound: str, to: float) -> None:
    """Drag a grip of a histogram whose scores go from 0 to 1 to a place on its axis."""
    chart = page.locator(f"svg[aria-label={score}]")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    knob = page.locator(f"svg[aria-label={score}] .grip[data-bound={bound}] .knob").bounding_box()
    middle = knob["y"] + knob["height"] / 2
    # charts.js: from 46 to 348 of 360 units across, a bin of 24 beyond either end
    across = 46 + (348 - 46) * (to + 1 / 24) / (1 + 2 / 24)
    page.mouse.move(knob["x"] + knob["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * across / 360, middle, steps=4)
    page.mouse.up()
    page.wait_for_timeout(100)  # a frame


def test_pairs_are_enlarged_and_vetoed(tmp_path: Path) -> None:
    config, rows, path = make_page(tmp_path, Criteria({"clip_gain": 0.5}))
    with opened_page(viewport={"width": 390, "height": 800}) as page:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.locator(".card .veto").nth(1).click()  # k38: the best are first
        page.locator(".card .open").nth(2).click()
        assert page.inner_text("#large-key") == "k37, 3 of 40"
        page.keyboard.press("v")
        page.keyboard.press("PageDown")
        assert page.inner_text("#large-key") == "k36, 4 of 40"
        assert page.locator("#large-input").get_attribute("src").startswith("data:image/jpeg")
        page.keyboard.press("Escape")
        assert page.inner_text("#counts").startswith("18 of 40")
        assert page.inner_text("#vetoed") == "2 vetoed, not saved yet"
        with page.expect_download() as download:
            page.click("#save")
        assert page.inner_text("#vetoed") == "2 vetoed"
        name = download.value.suggested_filename
        assert page.inner_text("#command").endswith(f"--select clip_gain=0.5 veto=~/Downloads/{name}")
        download.value.save_as(tmp_path / name)

    chosen = parse(["clip_gain=0.5", f"veto={tmp_path / name}"], [])
    assert chosen.veto == ["k37", "k38"]
    again = write_page(config, rows, chosen)
    with opened_page() as page:
        page.goto(again.as_uri())
        assert page.inner_text("#counts").startswith("18 of 40")
        assert page.inner_text("#command").endswith(f"veto={tmp_path / name}")
        page.select_option("#show", "vetoed")
        page.locator(".card .veto").first.click()  # taken back: another file
        assert page.inner_text("#vetoed") == "1 vetoed, not saved yet"
        assert not page.inner_text("#command").endswith(name)


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
    monkeypatch.setattr(report, "EXTREMES", 1)
    config, rows, path = make_page(tmp_path, Criteria(veto=["k5"]))
    page = path.read_text()
    assert path == run_dir(config) / "filter.html"
    overlaps = {row["key"]: row["overlap_iou"] for row in rows if row["overlap_iou"] is not None}
    extremes = {"k0", "k39", min(overlaps, key=overlaps.__getitem__), max(overlaps, key=overlaps.__getitem__)}
    evenly = {f"k{n}" for n in (0, 1, 2, 14, 27, 39)}  # two at the bounds, which are none; four of the others
    pictured = set(re.findall(r'"(k\d+)</script', page.replace("\\u003c", "<")))
    assert pictured == {"k5", *extremes, *evenly}
    assert page.count("data:image/jpeg;base64,") == 2 * len(pictured)
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
