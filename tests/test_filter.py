"""Stage 2's arithmetic against numpy by hand and loops over pixels: CLIP scores, overlap, selection."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from configs.loader import load
from filter.score_table import CLIP_SCORES, PICTURE_SCORES, flags_of
from filter.scores import clip_scores, overlap_scores, picture_scores
from filter.selection import Criteria, criteria, select, selection_of
from models.perceptual import perceptual_loss
from tests.helpers import laplacian_variance


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, dtype=np.float64)
    return vector / math.sqrt(sum(value * value for value in values))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(a * b) / math.sqrt(sum(a * a) * sum(b * b)))


def test_clip_scores_by_hand() -> None:
    source, target = unit(1, 0, 0), unit(0, 1, 0)
    inputs, edits = [unit(3, 1, 1), unit(1, 2, 2)], [unit(1, 3, 1), unit(0, 2, -1)]
    scores = clip_scores(np.stack(inputs), np.stack(edits), source, target)
    assert tuple(scores) == tuple(CLIP_SCORES)
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
    assert (
        scores["clip_gain"][0] == 0
        and scores["image_image"][0] == pytest.approx(1)
        and math.isnan(scores["clip_directional"][0])
    )


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
    assert scores["overlap_dice"] == pytest.approx(
        2 * both / (sum(map(sum, a.tolist())) + sum(map(sum, b.tolist())))
    )
    assert scores["area_input"] == pytest.approx(a.mean()) and scores["area_edit"] == pytest.approx(b.mean())


def test_overlap_at_its_ends() -> None:
    full, none, half = np.ones((4, 6), bool), np.zeros((4, 6), bool), np.arange(24).reshape(4, 6) < 12
    assert overlap_scores(full, full)["overlap_iou"] == overlap_scores(full, full)["overlap_dice"] == 1
    assert overlap_scores(half, ~half)["overlap_iou"] == 0
    for a, b in ((full, none), (none, full), (none, none)):
        scores = overlap_scores(a, b)
        assert (
            scores["overlap_iou"] is None
            and scores["overlap_dice"] is None
            and scores["area_input"] == a.mean()
        )


def smooth_pictures(count: int, side: int = 32) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    coarse = [Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(count)]
    return [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in coarse]


def test_picture_scores_against_the_lpips_package_and_a_loop() -> None:
    import lpips

    perceptual = perceptual_loss()
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        reference = (
            lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
            .eval()
            .requires_grad_(False)
        )
    reference.load_state_dict(perceptual.lpips.state_dict(), assign=True)
    inputs, edits = smooth_pictures(4)[:2], smooth_pictures(4)[2:]
    inputs[1], edits[1] = (
        smooth_pictures(1, 48)[0],
        np.full((48, 48, 3), 77, np.uint8),
    )  # another size, and one colour
    scores = picture_scores(perceptual, inputs, edits)
    for row, (picture, edit) in enumerate(zip(inputs, edits, strict=True)):
        tensors = [
            torch.from_numpy(image / 127.5 - 1).float().permute(2, 0, 1)[None] for image in (picture, edit)
        ]
        before, after = laplacian_variance(picture), laplacian_variance(edit)
        wanted = dict(
            zip(PICTURE_SCORES, (float(reference(*tensors)), before, after, after / before), strict=True)
        )
        assert {name: values[row] for name, values in scores.items()} == pytest.approx(
            wanted, rel=1e-4, abs=1e-6
        )
    backwards = picture_scores(perceptual, edits[1:], inputs[1:])
    assert backwards["sharpness_ratio"] == [None] and backwards["sharpness_input"][0] == pytest.approx(
        0, abs=1e-6
    )


def test_flags() -> None:
    fine = {
        "sharpness_input": 900.0,
        "sharpness_edit": 700.0,
        "lpips_input_edit": 0.4,
        "area_input": 0.2,
        "area_edit": 0.1,
    }
    assert flags_of(fine) == [] == flags_of(dict.fromkeys(fine))
    assert (
        flags_of({**fine, "sharpness_edit": 0.0}) == ["blank"] == flags_of({**fine, "sharpness_input": 0.0})
    )
    assert flags_of({**fine, "lpips_input_edit": 0.0}) == ["unchanged"]
    assert flags_of({**fine, "area_input": 0.0, "area_edit": 0.0}) == [
        "no_foreground_input",
        "no_foreground_edit",
    ]


ROWS: list[dict[str, Any]] = [
    {"key": "a", "clip_gain": 0.25, "overlap_iou": 0.9, "lpips_input_edit": 0.5},
    {"key": "b", "clip_gain": 0.05, "overlap_iou": 0.9, "lpips_input_edit": 0.1},
    {"key": "c", "clip_gain": 0.30, "overlap_iou": 0.5, "lpips_input_edit": 0.2},
    {"key": "d", "clip_gain": 0.25, "overlap_iou": None, "lpips_input_edit": 0.3, "flags": ["blank"]},
    {"key": "e", "clip_gain": 0.10, "overlap_iou": 0.7, "lpips_input_edit": 0.4},
    {"key": "f", "clip_gain": None, "overlap_iou": 0.9, "lpips_input_edit": 0.6},
    {"key": "g", "clip_gain": math.nan, "overlap_iou": math.nan, "lpips_input_edit": 0.7},
]
MASKED = ["task.source_noun=tree", "task.target_noun=tree"]


@pytest.mark.parametrize(
    "asked, kept",
    [
        (Criteria({"clip_gain": 0.10, "overlap_iou": 0.70}), "ae"),
        (Criteria({"clip_gain": 0.10}), "acde"),
        (Criteria({"clip_gain": 0.10}, reject=["blank"]), "ace"),
        (Criteria({"overlap_iou": 0.70}), "abef"),
        (Criteria(), "abcdefg"),
        (Criteria({"clip_gain": 0.31}), ""),
        (Criteria({"clip_gain": -1.0, "overlap_iou": 0.0}), "abce"),
        (Criteria(at_most={"clip_gain": 0.10}), "be"),
        (Criteria({"lpips_input_edit": 0.2}, {"lpips_input_edit": 0.5}), "acde"),
        (Criteria(keep=0.3), "ac"),  # 2.1 of 7 pairs: two, and of the equals a and d the first
        (Criteria(keep=0.4), "acd"),
        (Criteria(keep=1.0), "abcde"),  # f and g have no gain
        (Criteria(keep=0.3, by="-lpips_input_edit"), "bc"),
        (Criteria({"overlap_iou": 0.6}, keep=0.3), "a"),  # the best of all pairs, whatever the bounds
    ],
)
def test_select(asked: Criteria, kept: str) -> None:
    keys, dropped = select(ROWS, asked)
    assert keys == list(kept)
    assert sorted([*keys, *dropped]) == list("abcdefg")


def test_every_dropped_pair_has_its_reason() -> None:
    _, dropped = select(
        ROWS, Criteria({"clip_gain": 0.10, "overlap_iou": 0.70}, {"lpips_input_edit": 0.4}, reject=["blank"])
    )
    assert dropped == {
        "a": "lpips_input_edit 0.5000 above 0.4",
        "b": "clip_gain 0.0500 below 0.1",
        "c": "overlap_iou 0.5000 below 0.7",
        "d": "flagged blank",
        "f": "no clip_gain",
        "g": "no clip_gain",
    }
    assert select(ROWS, Criteria({"overlap_iou": 0.70}))[1]["g"] == "no foreground"
    too_low = dict.fromkeys("bde", "not in the best 30% by clip_gain")
    assert select(ROWS, Criteria(keep=0.3))[1] == too_low | dict.fromkeys("fg", "no clip_gain")


def test_selection_counts() -> None:
    selection = selection_of(
        ROWS[:4], Criteria({"clip_gain": 0.1}, {"lpips_input_edit": 0.4}, keep=0.75, reject=["unchanged"])
    )
    assert selection["thresholds"] == {"clip_gain": 0.1, "overlap": None} and selection["at_most"] == {
        "lpips_input_edit": 0.4
    }
    assert (selection["kept"], selection["total"], selection["yield"]) == (["c", "d"], 4, 0.5)
    assert (
        selection["keep"] == {"share": 0.75, "by": "clip_gain", "down_to": 0.25}
        and selection["flags"]["blank"] == 1
    )
    empty = selection_of([], Criteria(keep=0.5))
    assert empty["yield"] == 0 and empty["keep"]["down_to"] is None


def test_the_tasks_thresholds_are_in_the_papers_unit() -> None:
    def of(*arguments: str) -> Criteria:
        return criteria(load(["task.clip_gain=0.1", *arguments]))

    assert of("scorer.gain_unit=1.5").at_least == {"clip_gain": pytest.approx(0.15)}
    assert of("task.clip_gain=0").at_least == {"clip_gain": 0}
    assert of("task.clip_gain=null", "task.overlap=0.7", *MASKED).at_least == {"overlap_iou": 0.7}
    assert str(of("task.clip_gain=null", "filter.reject=[]")) == "everything"
    for more in (
        ["task.overlap=0.7"],
        ["filter.select=[area_edit=0.1]"],
        ["filter.select=[keep=0.5,by=overlap]"],
    ):
        with pytest.raises(UserError, match="task.source_noun"):
            of(*more)


def test_filter_select_takes_the_tasks_place() -> None:
    asked = criteria(
        load(
            [
                "filter.select=[overlap=0.7,image_image=0.1:0.6,sharpness_ratio=:2,keep=0.6,by=-area_edit]",
                *MASKED,
            ]
        )
    )
    assert asked.at_least == {"overlap_iou": 0.7, "image_image": 0.1}
    assert asked.at_most == {"image_image": 0.6, "sharpness_ratio": 2}
    assert (asked.keep, asked.by, asked.reject) == (0.6, "-area_edit", ["blank"])
    bounds = "overlap_iou >= 0.7, image_image >= 0.1, image_image <= 0.6, sharpness_ratio <= 2"
    assert str(asked) == f"{bounds}, the best 60% by -area_edit, not blank"
    assert criteria(load(["filter.select=[keep=0.6]"])).by == "clip_gain"


@pytest.mark.parametrize(
    "item, message",
    [
        (
            "overlp=0.7",
            "'overlp'; did you mean overlap_iou or overlap_dice\\? There are: overlap, sim_input_source, .*sharpness_ratio",
        ),
        ("keep=0", "a share above 0"),
        ("keep=1.5", "a share above 0"),
        ("keep=", "a share above 0"),
        ("by=clip_gain", "add keep="),
        ("clip_gain=much", "'much' is no number"),
        ("clip_gain", "it is SCORE=LOW"),
        ("clip_gain=:", "it is SCORE=LOW"),
        ("keep=0.5,by=gain", "no score 'gain'"),
    ],
)
def test_what_cannot_be_selected_by_is_named(item: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        criteria(load(["filter.select=" + json.dumps(item.split(","))]))
    with pytest.raises(UserError, match="no flag 'blnk'. There are: blank, unchanged"):
        criteria(load(["filter.reject=[blnk]"]))
