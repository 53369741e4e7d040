"""Stage 2's arithmetic against numpy by hand and loops over pixels: CLIP scores, overlap, selection."""

from __future__ import annotations

import math

import numpy as np
import pytest

from configs.errors import UserError
from configs.schema import Task
from filter.clip_gain import CLIP_SCORES, clip_scores
from filter.overlap import overlap_scores
from filter.selection import select, selection_of, thresholds


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, dtype=np.float64)
    return vector / math.sqrt(sum(value * value for value in values))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(a * b) / math.sqrt(sum(a * a) * sum(b * b)))


def test_clip_scores_by_hand() -> None:
    source, target = unit(1, 0, 0), unit(0, 1, 0)
    inputs, edits = [unit(3, 1, 1), unit(1, 2, 2)], [unit(1, 3, 1), unit(0, 2, -1)]
    scores = clip_scores(np.stack(inputs), np.stack(edits), source, target)
    assert tuple(scores) == CLIP_SCORES
    for row, (picture, edit) in enumerate(zip(inputs, edits, strict=True)):
        wanted = {
            "sim_input_source": cosine(picture, source),
            "sim_input_target": cosine(picture, target),
            "sim_edit_source": cosine(edit, source),
            "sim_edit_target": cosine(edit, target),
            "clip_gain": cosine(edit, target) - cosine(picture, target),
            "clip_directional": cosine(edit - picture, target - source),
            "image_image": cosine(picture, edit),
        }
        assert {name: values[row] for name, values in scores.items()} == pytest.approx(wanted, abs=1e-12)
    assert scores["clip_gain"][0] == pytest.approx(2 / math.sqrt(11))


def test_an_edit_that_changes_nothing_has_no_direction() -> None:
    same = unit(1, 2, 3)[None]
    scores = clip_scores(same, same, unit(1, 0, 0), unit(0, 1, 0))
    assert scores["clip_gain"][0] == 0 and scores["image_image"][0] == pytest.approx(1) and math.isnan(scores["clip_directional"][0])


@pytest.mark.parametrize("seed", range(5))
def test_overlap_against_a_loop(seed: int) -> None:
    a, b = np.random.default_rng(seed).random((2, 9, 13)) < [[[0.3]], [[0.6]]]
    both = either = 0
    for y in range(9):
        for x in range(13):
            both += bool(a[y, x] and b[y, x])
            either += bool(a[y, x] or b[y, x])
    scores = overlap_scores(a, b)
    assert scores["overlap_iou"] == pytest.approx(both / either)
    assert scores["overlap_dice"] == pytest.approx(2 * both / (sum(map(sum, a.tolist())) + sum(map(sum, b.tolist()))))
    assert scores["area_input"] == pytest.approx(a.mean()) and scores["area_edit"] == pytest.approx(b.mean())


def test_overlap_at_its_ends() -> None:
    full, none, half = np.ones((4, 6), bool), np.zeros((4, 6), bool), np.arange(24).reshape(4, 6) < 12
    assert overlap_scores(full, full)["overlap_iou"] == overlap_scores(full, full)["overlap_dice"] == 1
    assert overlap_scores(half, ~half)["overlap_iou"] == 0
    for a, b in ((full, none), (none, full), (none, none)):
        scores = overlap_scores(a, b)
        assert scores["overlap_iou"] is None and scores["overlap_dice"] is None and scores["area_input"] == a.mean()


ROWS = [
    {"key": "a", "clip_gain": 0.25, "overlap_iou": 0.9},
    {"key": "b", "clip_gain": 0.05, "overlap_iou": 0.9},
    {"key": "c", "clip_gain": 0.25, "overlap_iou": 0.5},
    {"key": "d", "clip_gain": 0.25, "overlap_iou": None},
    {"key": "e", "clip_gain": 0.10, "overlap_iou": 0.7},
    {"key": "f", "clip_gain": None, "overlap_iou": 0.9},
    {"key": "g", "clip_gain": math.nan, "overlap_iou": math.nan},
]


@pytest.mark.parametrize(
    "clip_gain, overlap, kept",
    [
        (0.10, 0.70, "ae"),
        (0.10, None, "acde"),
        (None, 0.70, "abef"),
        (None, None, "abcdefg"),
        (0.30, None, ""),
        (-1.0, 0.0, "abce"),
    ],
)
def test_select(clip_gain: float | None, overlap: float | None, kept: str) -> None:
    keys, dropped = select(ROWS, clip_gain, overlap)
    assert keys == list(kept)
    assert sorted([*keys, *dropped]) == list("abcdefg")


def test_every_dropped_pair_has_its_reason() -> None:
    _, dropped = select(ROWS, 0.10, 0.70)
    assert dropped == {
        "b": "CLIP gain 0.0500 below 0.1",
        "c": "overlap 0.5000 below 0.7",
        "d": "no foreground",
        "f": "no CLIP score",
        "g": "no CLIP score",
    }
    assert select(ROWS, None, 0.70)[1]["g"] == "no foreground"


def test_selection_counts() -> None:
    selection = selection_of(ROWS[:4], {"clip_gain": 0.1, "overlap": None})
    assert selection["thresholds"] == {"clip_gain": 0.1, "overlap": None}
    assert (selection["kept"], selection["total"], selection["yield"]) == (["a", "c", "d"], 4, 0.75)
    assert selection_of([], {"clip_gain": 0.1, "overlap": None})["yield"] == 0


def test_thresholds_are_in_the_scorers_unit() -> None:
    assert thresholds(Task(clip_gain=0.1), gain_unit=1.5) == {"clip_gain": pytest.approx(0.15), "overlap": None}
    assert thresholds(Task(clip_gain=None, overlap=0.7, source_noun="cat", target_noun="dog"), 2.0) == {
        "clip_gain": None,
        "overlap": 0.7,
    }
    with pytest.raises(UserError, match="task.source_noun"):
        thresholds(Task(overlap=0.7), 1.0)
