"""scripts/report.py: every section is there, everything is escaped, nothing comes from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from configs.files import write_json
from configs.loader import load
from configs.runs import run_dir
from configs.schema import Config
from distill.runlog import read_metrics
from filter.score_table import SCORES, read_scores, scores_path, write_scores
from filter.selection import Criteria, selection_of
from generate.shards import Pair, write_shard
from scripts.report import Series, histogram, line_chart, main, smoothed, spread, ticks, write_report

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Collects tags, addresses and headings, and that every tag that opens closes."""

    VOID = {"meta", "img", "line", "rect", "polyline", "circle"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.headings: list[str] = []
        self.svg_text: list[str] = []

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
        if self.open and self.open[-1] == "text":
            self.svg_text.append(data)


def parsed(path: Path) -> Tags:
    tags = Tags()
    tags.feed(path.read_text())
    assert not tags.open
    return tags


def make_run(tmp_path: Path, count: int = 60) -> Config:
    """A run with pairs, scores, a selection and metrics; texts of every kind carry HTML."""
    config = load(
        [f"runs_dir={tmp_path}", "task.clip_gain=0.15", f'task.source="{EVIL.replace(chr(34), "")}"']
    )
    run = run_dir(config)
    (run / "pairs").mkdir(parents=True)
    (run / "train").mkdir()
    generator = np.random.default_rng(0)
    keys = [f"k{index}" for index in range(count)]
    images = generator.integers(0, 256, (count, 2, 8, 8, 3), dtype=np.uint8)
    pairs = [
        Pair(k, {"input": a, "edit": b}, {"caption": f"{k} {EVIL}"})
        for k, (a, b) in zip(keys, images, strict=True)
    ]
    shard = write_shard(run / "pairs", 0, pairs, {})
    rows = [
        {"key": key, **dict(zip(SCORES, generator.normal(0.15, 0.1, len(SCORES)), strict=True))}
        for key in keys
    ]
    rows[0]["clip_gain"] = rows[1]["overlap_iou"] = None
    write_scores(scores_path(config, shard), rows, {})
    write_json(run / "selection.json", selection_of(read_scores(config), Criteria({"clip_gain": 0.15})))
    lines = [{"images": 16 * n, "l1": 1 / n, "lpips": 2 / n, "kind": "train"} for n in range(1, 50)]
    lines += [
        {"images": 400 * n, "kind": "validation", "l1": 1 / n, "lpips": 1 / n, "psnr": 10.0 + n}
        for n in (1, 2)
    ]
    (run / "train/metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"images": 9'
    )
    return config


def extra() -> dict:
    image = np.zeros((6, 6, 3), np.uint8)
    return {
        "rows": [
            {
                "title": f"scene {EVIL}",
                "images": {"input": image, "edit": image + 50, "generator": image + 99},
            }
        ],
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
    assert (
        "script" not in tags.tags
        and "onerror" not in tags.attributes
        and not {"link", "iframe", "object"} & set(tags.tags)
    )
    assert tags.addresses and all(address.startswith("data:image/png;base64,") for address in tags.addresses)
    assert not re.search(r"https?:|url\(|@import", page) and "default-src 'none'" in page
    assert re.search(r"k\d+ &lt;script&gt;", page) and "<script" not in page and "<img src=x" not in page
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
    assert {"kept from 0.15", "CLIP gain asked for", "training images shown", "dB"} <= set(tags.svg_text)
    assert tags.tags.count("img") == 3 + 2 * (24 + 24)
    assert drawn(page) == {"faint": [49, 49], "line": [49, 49], "dots": [2, 2, 2]}


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
    assert "run filter/run.py" in path.read_text() and "run distill/train.py" in path.read_text()
    assert main([f"runs_dir={tmp_path}/none"]) == 2 and "generate/run.py" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    "low, high, wanted", [(0, 1, [0, 0.5, 1]), (-0.3, 0.3, [-0.2, 0, 0.2]), (0, 7000, [0, 5000])]
)
def test_ticks_are_round(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high, 3) == pytest.approx(wanted)


def heights(svg: str, kind: str) -> list[float]:
    return [float(h) for h in re.findall(rf'<rect class="{kind}" [^>]*height="([\d.]+)"', svg)]


def test_no_bar_lies_on_both_sides_of_the_threshold() -> None:
    values = np.random.default_rng(1).normal(0.1, 0.2, 500)
    svg = histogram("t", values.tolist(), 0.137, "x")
    below, above = sum(heights(svg, "bar dropped")), sum(heights(svg, "bar"))
    assert below / (below + above) == pytest.approx(
        (values < 0.137).mean(), abs=0.005
    )  # heights are drawn to a tenth
    for few in ([0.5], [0.5, 0.5], [0.0, 0.0]):
        assert len(heights(histogram("t", few, None, "x"), "bar")) == 1
    assert "kept from 0.9" in histogram("t", [0.1, 0.2], 0.9, "x")


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    config = make_run(tmp_path, count=2)
    lines = [
        {"images": 1, "l1": 1.0},
        {"images": 2, "l1": float("nan")},
        {"images": 3, "l1": 2.0, "lpips": float("inf")},
    ]
    metrics = run_dir(config) / "train/metrics.jsonl"
    metrics.write_text("".join(json.dumps(line | {"kind": "train"}) + "\n" for line in lines))
    page = write_report(config).read_text()
    assert drawn(page) == {"faint": [2], "line": [2]} and "LPIPS to the teacher" not in page


def drawn(page: str) -> dict[str, list[int]]:
    """The number of points of each line below the heading Training, by its style."""
    styles: dict[str, list[int]] = {}
    training = page.partition("<h2>Training")[2].partition("<h2>")[0]
    for style, points in re.findall(r'<polyline class="line (\w+)" points="([^"]*)"', training):
        styles.setdefault(style, []).append(points.count(","))
    return styles


def test_a_line_may_have_one_point_and_its_marker_lie_outside() -> None:
    svg = line_chart("t", [Series("a", [(1, 2.0)]), Series("b", [])], "x", "y", marker=(5.0, "here"))
    assert (
        svg.count("<polyline") == svg.count("<circle") == 1
        and ">here<" in svg
        and ">5<" in svg
        and "legend" not in svg
    )


def test_smoothed_is_the_mean_of_the_neighbours() -> None:
    points = [(float(x), float(x * x)) for x in range(100)]
    assert smoothed(points)[0] == (0, (0 + 1 + 4) / 3) and smoothed(points)[50] == (
        50,
        sum(x * x for x in range(48, 53)) / 5,
    )
