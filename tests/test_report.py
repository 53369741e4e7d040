"""scripts/report.py: every section is there, everything is escaped, nothing comes from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from configs.files import write_json
from configs.loader import load
from configs.runs import run_dir
from configs.schema import Config
from distill.runlog import read_metrics
from distill.validation import Validation
from filter.report import CHARTS_SCRIPT
from filter.score_table import SCORES, read_scores, scores_path, write_scores
from filter.selection import Criteria, selection_of
from generate.shards import Pair, write_shard
from scripts.report import TRAINING_CHARTS, duration, main, smoothed, spread, write_report
from tests.helpers import browse, in_browser

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Collects tags, addresses and headings, and that every tag that opens closes."""

    VOID = {"meta", "img"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def parsed(path: Path) -> Tags:
    tags = Tags()
    tags.feed(path.read_text())
    assert not tags.open
    return tags


def make_run(tmp_path: Path, count: int = 60) -> Config:
    """A run with pairs, scores, a selection and metrics; texts of every kind carry HTML."""
    source = EVIL.replace('"', "")
    config = load([f"runs_dir={tmp_path}", "task.clip_gain=0.15", f'task.source="{source}"'])
    run = run_dir(config)
    (run / "pairs").mkdir(parents=True)
    (run / "train").mkdir()
    generator = np.random.default_rng(0)
    pairs = []
    rows = []
    for n in range(count):
        image, edit = generator.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
        pairs.append(Pair(f"k{n}", {"input": image, "edit": edit}, {"caption": f"k{n} {EVIL}"}))
        rows.append({"key": f"k{n}", **{name: generator.normal(0.15, 0.1) for name in SCORES}})
    shard = write_shard(run / "pairs", 0, pairs, {})
    rows[0]["clip_gain"] = rows[1]["overlap_iou"] = None
    write_scores(scores_path(config, shard), rows, {})
    write_json(run / "selection.json", selection_of(read_scores(config), Criteria({"clip_gain": 0.15})))
    lines = [{"images": 16 * n, "l1": 1 / n, "lpips": 2 / n, "kind": "train"} for n in range(1, 50)]
    for n in (1, 2):
        values = {"l1": 1 / n, "lpips": 1 / n, "psnr": 10.0 + n}
        lines.append({"images": 400 * n, "kind": "validation", **values})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "train/metrics.jsonl").write_text(text + '{"images": 9')
    return config


def extra() -> dict:
    image = np.zeros((6, 6, 3), np.uint8)
    images = {"input": image, "edit": image + 50, "generator": image + 99}
    return {
        "rows": [{"title": f"scene {EVIL}", "images": images}],
        "teacher_seconds": 4.2,
        "generator_seconds": 0.0105,
        "distances": [(f"Generator {EVIL}", 17.0, 0.25)],
        "timings": {f"generate {EVIL}": 130.0},
    }


def test_every_section_is_there_and_nothing_is_foreign(tmp_path: Path) -> None:
    config = make_run(tmp_path)
    path = write_report(config, **extra())
    assert path == run_dir(config) / "report.html" and [p.name for p in path.parent.glob(".*tmp")] == []
    page, tags = path.read_text(), parsed(path)
    assert tags.headings == [
        "Scenes that training never saw",
        "Distance to the truth",
        "Training",
        "Scores",
        "Accepted pairs",
        "Rejected pairs",
        "Timings",
        "Configuration",
    ]
    assert tags.tags.count("script") == 2 and "onerror" not in tags.attributes
    assert not {"link", "iframe", "object"} & set(tags.tags)
    assert tags.addresses and all(address.startswith("data:image/png;base64,") for address in tags.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", page)
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in page and f"script-src 'sha256-{digest}'" in page
    assert re.search(r"k\d+ &lt;script&gt;", page) and "<img src=x" not in page
    for text in (
        "<b>400×</b>",
        "<b>10.5 <small>ms<",
        "<b>4.2 <small>s<",
        "<td>2.2 min<",
        "<td>17<",
        "<td>0.25<",
        "<b>60<",
    ):
        assert text in page, text
    assert "Reconstruction" not in page  # a column that no row has is left out
    assert tags.tags.count("img") == 3 + 2 * (24 + 24)
    assert page.count('<figure class="chart">') == len(TRAINING_CHARTS) + 1 + len(SCORES)
    assert tags.tags.count("noscript") == 2  # where there are charts


def test_a_later_report_keeps_what_the_demo_measured(tmp_path: Path) -> None:
    config = make_run(tmp_path)
    run = run_dir(config)
    exported = run / "export/config.json"
    exported.parent.mkdir()
    write_json(exported, {"images_seen": 400})
    before = write_report(config, **extra()).read_text()
    page = write_report(config).read_text()
    assert page == before and "<b>400×</b>" in page and "<td>2.2 min<" in page

    write_json(exported, {"images_seen": 12_345})
    told = "after 400 training images; the exported one has seen\n12,345: run scripts/demo.py again"
    assert told in write_report(config).read_text() and told not in page
    first = next((run / "demo").glob("*-generator.png"))
    first.write_bytes(b"no picture")
    with pytest.raises(
        UserError, match="results.json cannot be read .*delete .*demo, or run scripts/demo.py"
    ):
        write_report(config)
    assert "12,345: run" not in write_report(config, **extra()).read_text()


def test_the_newest_samples_are_shown_row_by_row(tmp_path: Path) -> None:
    config = make_run(tmp_path, count=2)
    pictures = np.random.default_rng(3).integers(0, 256, (5, 3, 8, 8, 3), dtype=np.uint8)
    sheet_BCHW = torch.from_numpy(pictures.reshape(15, 8, 8, 3)).permute(0, 3, 1, 2) / 127.5 - 1
    folder = run_dir(config) / "train/samples"
    Validation({}, 5, sheet_BCHW.flip(0)).save_sheet(folder / "000000400.png")
    Validation({}, 5, sheet_BCHW).save_sheet(folder / "000000800.png")
    path = write_report(config)
    page, tags = path.read_text(), parsed(path)
    assert tags.headings[:2] == ["Held-out pairs", "Scenes that training never saw"]
    assert "the generator after 800 training images" in page and "Show 1 more" in page
    shown = []
    for address in tags.addresses[:15]:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            shown.append(np.asarray(image))
    np.testing.assert_array_equal(shown, pictures.reshape(15, 8, 8, 3))


def test_the_validation_of_what_was_exported_is_the_headline(tmp_path: Path) -> None:
    config = make_run(tmp_path, count=2)
    headline = '<b>{}</b>\n  <span class="hint">to the teacher&#39;s edits, after {} images'
    assert headline.format("0.500", 800) in write_report(config).read_text()
    run = run_dir(config)
    (run / "export").mkdir()
    write_json(run / "export/config.json", {"images_seen": 400})
    assert headline.format("1.000", 400) in write_report(config).read_text()


def test_the_other_pages_are_linked_where_they_are(tmp_path: Path) -> None:
    config = make_run(tmp_path, count=2)
    run = run_dir(config)
    links = {"filter.html", "export/index.html"}
    assert not links & set(parsed(write_report(config)).addresses)
    for link in links:
        (run / link).parent.mkdir(exist_ok=True)
        (run / link).write_text("a page")
    assert links <= set(parsed(write_report(config)).addresses)


@pytest.mark.parametrize("validation, is_told", [(0.2, True), (0.4, False)])
def test_a_training_above_its_validation_is_explained(
    tmp_path: Path, validation: float, is_told: bool
) -> None:
    config = make_run(tmp_path, count=2)
    lines = [
        {"images": 10, "kind": "train", "l1": 0.3},
        {"images": 10, "kind": "validation", "l1": validation, "psnr": 20.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir(config) / "train/metrics.jsonl").write_text(text)
    page = write_report(config).read_text()
    assert ("augmented pictures, with dropout" in page) == is_told


@in_browser
def test_a_chart_of_few_values_says_how_many(tmp_path: Path) -> None:
    for count, is_told in ((3, True), (29, True), (30, False)):
        values = json.dumps(list(range(count)))
        document = draw_alone(tmp_path, f"drawHistogram(figure, {{title: 't', values: {values}}})")
        assert (f">n = {count}<" in document) == is_told


def test_pictures_come_back_as_they_were(tmp_path: Path) -> None:
    config = make_run(tmp_path, count=2)
    address = parsed(write_report(config, **extra())).addresses[2]
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        np.testing.assert_array_equal(np.asarray(image), np.full((6, 6, 3), 99))


def test_stages_that_have_not_run_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load([f"runs_dir={tmp_path}"])
    run_dir(config).mkdir(parents=True)
    assert main([f"runs_dir={tmp_path}"]) == 0
    path = run_dir(config) / "report.html"
    assert capsys.readouterr().out.strip() == str(path)
    assert "zero2gan filter" in path.read_text() and "zero2gan train" in path.read_text()
    assert main([f"runs_dir={tmp_path}/none"]) == 2 and "zero2gan generate" in capsys.readouterr().err


def test_metrics_may_end_in_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text(
        '{"images": 1, "kind": "train", "l1": 3}\n{"images": 1, "kind": "validation", "l1": 2}\n{"ima'
    )
    train, validation = read_metrics(path)
    assert (train["kind"], train["l1"], validation["kind"], validation["l1"]) == ("train", 3, "validation", 2)
    path.write_text('{"ima\n{"images": 1}\n')
    with pytest.raises(UserError, match="line 1"):
        read_metrics(path)


def test_spread_takes_both_ends() -> None:
    rows = [{"key": str(gain), "clip_gain": gain} for gain in (0.1, None, 0.5, 0.3, 0.2, 0.4)]
    assert [row["clip_gain"] for row in spread(rows, 3)] == [0.5, 0.3, None]
    assert [row["clip_gain"] for row in spread(rows, 9)] == [0.5, 0.4, 0.3, 0.2, 0.1, None]


@in_browser
def test_the_charts_in_a_browser(tmp_path: Path) -> None:
    """Each line of the training with all its points, each score's bars with all its pairs, the
    threshold where it is.
    """
    document = browse(write_report(make_run(tmp_path)))
    assert lines_drawn(document) == {"faint": [49, 49], "line": [49, 49], "dots": [2, 2, 2]}
    assert document.count("<svg") == len(TRAINING_CHARTS) + 1 + len(SCORES)
    assert document.count('<circle class="dot dots"') == 6
    assert (
        sum(map(len, bars_drawn(document, "overlap_iou"))) > 1 and not bars_drawn(document, "overlap_iou")[1]
    )
    texts = set(re.findall(r"<text[^>]*>([^<]*)</text>", document))
    assert {"kept from 0.15", "threshold", "CLIP gain asked for", "training images shown", "dB"} <= texts
    legend = re.findall(r'<i class="key (\w+)"[^>]*></i>(\w+)</span>', document)
    assert legend == 2 * [("faint", "training"), ("line", "smoothed"), ("dots", "validation")]


@in_browser
def test_no_bar_lies_on_both_sides_of_the_threshold(tmp_path: Path) -> None:
    config = make_run(tmp_path)
    gains = [row["clip_gain"] for row in read_scores(config) if row["clip_gain"] is not None]
    below = sum(gain < 0.15 for gain in gains)
    kept, dropped = bars_drawn(browse(write_report(config)), "clip_gain")
    assert (sum(kept), sum(dropped)) == (len(gains) - below, below)


def draw_alone(tmp_path: Path, call: str) -> str:
    """The document after one call of charts.js."""
    page = f"<html><body><figure id=f></figure><script>{CHARTS_SCRIPT}</script></body></html>"
    (tmp_path / "alone.html").write_text(page)
    return browse(tmp_path / "alone.html", f"const figure = document.getElementById('f'); {call}")


@in_browser
def test_ticks_are_round(tmp_path: Path) -> None:
    ranges = {(0, 1): [0, 0.5, 1], (-0.3, 0.3): [-0.2, 0, 0.2], (0, 7000): [0, 5000], (-3, -1): [-3, -2, -1]}
    call = f"{json.dumps(list(ranges))}.map(range => roundTicks(range, 3))"
    document = draw_alone(tmp_path, f"figure.textContent = JSON.stringify({call})")
    drawn = json.loads(re.findall(r"(\[\[.*\]\])</figure>", document)[0])
    for ticks, wanted in zip(drawn, ranges.values(), strict=True):
        assert ticks == pytest.approx(wanted)
    numbers = "figure.textContent = [12000, 1200, -0.25, 1e6, 0, 0.123456].map(shortNumber).join(' ')"
    assert "12k 1200 \N{MINUS SIGN}0.25 1M 0 0.1235</figure>" in draw_alone(tmp_path, numbers)


@in_browser
def test_bars_of_few_values_and_of_values_beyond_the_bounds(tmp_path: Path) -> None:
    for few in ("[0.5]", "[0.5, 0.5]", "[0, 0]"):
        document = draw_alone(tmp_path, f"drawHistogram(figure, {{title: 't', values: {few}}})")
        kept, dropped = bars_drawn(document, "t")
        assert kept == [len(json.loads(few))] and dropped == []
    chart = "{title: 't', values: [0.1, 0.2], low: 0.9}"  # the bound is drawn even where no value reaches it
    document = draw_alone(tmp_path, f"drawHistogram(figure, {chart})")
    assert "kept from 0.9" in document and bars_drawn(document, "t") == ([], [1, 1])
    chart = "{title: 't', values: [0.1, 0.2, 0.3, 0.4], low: 0.2, high: 0.3}"  # a value on a bound is within
    kept, dropped = bars_drawn(draw_alone(tmp_path, f"drawHistogram(figure, {chart})"), "t")
    assert (sum(kept), sum(dropped)) == (2, 2)


@in_browser
def test_a_line_may_have_one_point_and_its_marker_lie_outside(tmp_path: Path) -> None:
    lines = "[{name: 'a', points: [[1, 2]], style: 'line'}, {name: 'b', points: [], style: 'line'}]"
    chart = f"{{title: 't', lines: {lines}, xLabel: 'x', yLabel: 'y', marker: {{at: 5, text: 'here'}}}}"
    document = draw_alone(tmp_path, f"drawLines(figure, {chart}); drawLines(figure, {chart});")
    body = document.rpartition("</script><script>")[0].partition("<script>")[0]
    assert body.count("<svg") == body.count("<polyline") == body.count("<circle") == 1
    assert ">here<" in body and ">5<" in body and "legend" not in body


@in_browser
def test_the_yield_falls_to_the_last_pair(tmp_path: Path) -> None:
    document = draw_alone(tmp_path, "figure.textContent = JSON.stringify(yieldLine([3, 1, 2], 4).points)")
    assert "[[1,75],[2,50],[3,25]]</figure>" in document
    many = "yieldLine(Array.from({length: 9999}, (_, n) => n), 9999).points"
    document = draw_alone(tmp_path, f"figure.textContent = JSON.stringify([{many}.length, {many}.at(-1)[0]])")
    assert "[200,9998]</figure>" in document


def bars_drawn(document: str, title: str) -> tuple[list[int], list[int]]:
    """How many pairs each bar of a chart stands for: the bars within the bounds, and those beyond."""
    chart = document.partition(f'aria-label="{title}"')[2].partition("</svg>")[0]
    kept = re.findall(r'class="bar"[^>]*data-count="(\d+)"', chart)
    dropped = re.findall(r'class="bar out"[^>]*data-count="(\d+)"', chart)
    return [int(count) for count in kept], [int(count) for count in dropped]


def lines_drawn(document: str) -> dict[str, list[int]]:
    """The number of points of each line below the heading Training, by its style."""
    styles: dict[str, list[int]] = {}
    training = document.partition("<h2>Training")[2].partition("<h2>")[0]
    for style, points in re.findall(r'<polyline class="line (\w+)" points="([^"]*)"', training):
        styles.setdefault(style, []).append(points.count(","))
    return styles


def test_the_data_of_the_charts(tmp_path: Path) -> None:
    charts = chart_data(write_report(make_run(tmp_path)))
    titles = [chart["title"] for chart in charts]
    training = [title for title, _ in TRAINING_CHARTS.values()]
    first = ["clip_gain", "Yield by threshold", "overlap_iou", "clip_directional", "image_image"]
    assert titles[:3] == training and titles[3:8] == first
    assert set(titles[3:]) == {"Yield by threshold", *SCORES}
    psnr, gain, by_threshold, overlap = charts[2:6]
    assert psnr["fromZero"] is False and [line["style"] for line in psnr["lines"]] == [
        "faint",
        "line",
        "dots",
    ]
    assert [len(line["points"]) for line in psnr["lines"]] == [0, 0, 2]
    assert gain["low"] == 0.15 and gain["high"] is None and len(gain["values"]) == 59
    assert by_threshold["total"] == 60 and by_threshold["marker"] == {"at": 0.15, "text": "threshold"}
    assert overlap["low"] is None and len(overlap["values"]) == 59


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    config = make_run(tmp_path, count=2)
    lines = [
        {"images": 1, "l1": 1.0},
        {"images": 2, "l1": float("nan")},
        {"images": 3, "l1": 2.0, "lpips": float("inf")},
    ]
    metrics = run_dir(config) / "train/metrics.jsonl"
    metrics.write_text("".join(json.dumps(line | {"kind": "train"}) + "\n" for line in lines))
    path = write_report(config)
    training = [chart for chart in chart_data(path) if chart["kind"] == "lines"]
    assert [chart["title"] for chart in training] == ["L1 to the teacher's edit"]
    assert training[0]["lines"][0]["points"] == [[1, 1.0], [3, 2.0]]
    assert training[0]["lines"][2]["points"] == []
    assert "LPIPS to the teacher" not in path.read_text()


def chart_data(path: Path) -> list[dict]:
    """What the page hands to its script."""
    return json.loads(re.findall(r'<script id="data"[^>]*>(.*?)</script>', path.read_text())[0])


def test_smoothed_is_the_mean_of_the_neighbours() -> None:
    points = [(float(x), float(x * x)) for x in range(100)]
    assert smoothed(points)[0] == (0, (0 + 1 + 4) / 3)
    assert smoothed(points)[50] == (50, sum(x * x for x in range(48, 53)) / 5)


@pytest.mark.parametrize(
    "seconds, text",
    [(0.0042, "4.2 ms"), (0.5, "500 ms"), (59.96, "60 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")],
)
def test_a_time_has_its_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
