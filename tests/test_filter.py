"""Stage 2's arithmetic against numpy by hand and loops over pixels: CLIP scores, overlap,
selection.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from configs.loader import known_keys, load
from filter.score_table import FLAGS, FREE, GENERATOR_SCORES, OVERLAP_SCORES, SCORES, flags_of, made_with
from filter.scores import clip_scores, generator_scores, open_generator, overlap_scores, picture_scores
from filter.selection import Criteria, criteria, parse, select, selection_of, unknown_veto
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
        assert list(scores) == list(wanted)
        assert {name: values[row] for name, values in scores.items()} == pytest.approx(wanted, abs=1e-12)
    assert scores["clip_gain"][0] == pytest.approx(2 / math.sqrt(11))


def test_an_edit_that_changes_nothing_has_no_direction() -> None:
    same = unit(1, 2, 3)[None]
    scores = clip_scores(same, same, unit(1, 0, 0), unit(0, 1, 0))
    assert scores["clip_gain"][0] == 0
    assert scores["image_image"][0] == pytest.approx(1)
    assert math.isnan(scores["clip_directional"][0])


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
    of_a = sum(map(sum, a.tolist()))
    of_b = sum(map(sum, b.tolist()))
    assert scores["overlap_dice"] == pytest.approx(2 * both / (of_a + of_b))
    assert scores["area_input"] == pytest.approx(a.mean())
    assert scores["area_edit"] == pytest.approx(b.mean())


def test_overlap_at_its_ends() -> None:
    full = np.ones((4, 6), bool)
    none = np.zeros((4, 6), bool)
    half = np.arange(24).reshape(4, 6) < 12
    assert overlap_scores(full, full)["overlap_iou"] == overlap_scores(full, full)["overlap_dice"] == 1
    assert overlap_scores(half, ~half)["overlap_iou"] == 0
    for a, b in ((full, none), (none, full), (none, none)):
        scores = overlap_scores(a, b)
        assert scores["overlap_iou"] is None
        assert scores["overlap_dice"] is None
        assert scores["area_input"] == a.mean()


def smooth_pictures(count: int, side: int = 32) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    coarse = [Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(count)]
    return [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in coarse]


def test_picture_scores_against_the_lpips_package_and_a_loop() -> None:
    import lpips

    perceptual = perceptual_loss()
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        reference = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    reference.eval().requires_grad_(False)
    reference.load_state_dict(perceptual.lpips.state_dict(), assign=True)
    inputs = [smooth_pictures(4)[0], smooth_pictures(1, 48)[0]]
    edits = [smooth_pictures(4)[2], np.full((48, 48, 3), 77, np.uint8)]  # another size, and one colour
    scores = picture_scores(perceptual, inputs, edits)
    for row, (picture, edit) in enumerate(zip(inputs, edits, strict=True)):
        picture_1CHW = torch.from_numpy(picture / 127.5 - 1).float().permute(2, 0, 1)[None]
        edit_1CHW = torch.from_numpy(edit / 127.5 - 1).float().permute(2, 0, 1)[None]
        wanted = {
            "lpips_input_edit": float(reference(picture_1CHW, edit_1CHW)),
            "sharpness_input": laplacian_variance(picture),
            "sharpness_edit": laplacian_variance(edit),
            "sharpness_ratio": laplacian_variance(edit) / laplacian_variance(picture),
        }
        assert list(scores) == list(wanted)
        made = {name: values[row] for name, values in scores.items()}
        assert made == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    backwards = picture_scores(perceptual, edits[1:], inputs[1:])
    assert backwards["sharpness_ratio"] == [None]
    assert backwards["sharpness_input"][0] == pytest.approx(0, abs=1e-6)


class Inverting:
    """A generator of another side than the pictures, in the place of an exported one: it inverts colours."""

    side = 32

    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        assert image_HWC.shape == (32, 32, 3)
        return 255 - image_HWC


def test_the_generators_score_is_the_distance_to_its_own_edit() -> None:
    perceptual = perceptual_loss()
    inputs = [np.full((64, 64, 3), 200, np.uint8), smooth_pictures(1)[0]]
    edits = [np.full((64, 64, 3), 55, np.uint8), smooth_pictures(1)[0]]
    agrees, differs = generator_scores(perceptual, Inverting(), inputs, edits)["lpips_generator"]
    assert agrees == pytest.approx(0, abs=1e-6) and differs > 0.2


def test_a_file_that_is_no_generator_is_named(tmp_path: Path) -> None:
    file = tmp_path / "generator.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(UserError, match=f"filter.generator: .*{file}"):
        open_generator(str(file))


def test_a_selection_by_the_generators_score_needs_one() -> None:
    chosen = ["filter.select=[keep=0.6,by=-lpips_generator]"]
    with pytest.raises(UserError, match="lpips_generator needs a generator: set filter.generator"):
        criteria(load(chosen))
    assert criteria(load([*chosen, "filter.generator=a.onnx"])).by == "-lpips_generator"


def test_the_table_names_all_scores_and_no_other() -> None:
    same_BD = unit(1, 2, 3)[None]
    mask = np.ones((16, 16), bool)
    picture = np.zeros((16, 16, 3), np.uint8)
    clip = clip_scores(same_BD, same_BD, same_BD[0], same_BD[0])
    overlap = overlap_scores(mask, mask)
    pictures = picture_scores(perceptual_loss(), [picture], [picture])
    generator = generator_scores(perceptual_loss(), Inverting(), [picture], [picture])
    assert sorted([*clip, *overlap, *pictures, *generator]) == sorted(SCORES)
    assert tuple(overlap) == OVERLAP_SCORES and tuple(generator) == GENERATOR_SCORES


COUNTED = {"task.source", "task.target", "task.source_noun", "task.target_noun"}
COUNTED |= {"scorer.model", "scorer.pretrained", "filter.dtype", "scorer.files", "format"}
COUNTED |= {"lpips_generator.files"}
COUNTED_WITH_MASKS = {
    "segmenter.model",
    "segmenter.checkpoint",
    "segmenter.detector",
    "segmenter.points_per_side",
    "segmenter.min_predicted_iou",
    "segmenter.min_stability",
    "segmenter.other_nouns",
    "segmenter.model.files",
    "segmenter.checkpoint.files",
    "segmenter.detector.files",
}


def test_what_scores_are_made_with() -> None:
    assert set(made_with(load(["task=tree2winter"]))) == COUNTED
    assert set(made_with(load(["task=oak2pine"]))) == COUNTED | COUNTED_WITH_MASKS
    for name in FREE:
        assert not any(key == name or key.startswith(f"{name}.") for key in COUNTED | COUNTED_WITH_MASKS)
    with pytest.raises(UserError, match="name both or neither"):
        made_with(load(["task.source_noun=tree"]))


def test_flags() -> None:
    fine = {
        "sharpness_input": 900.0,
        "sharpness_edit": 700.0,
        "lpips_input_edit": 0.4,
        "area_input": 0.2,
        "area_edit": 0.1,
    }
    assert flags_of(fine) == []
    assert flags_of(dict.fromkeys(fine)) == []
    assert flags_of({}) == []
    assert flags_of({**fine, "sharpness_edit": 0.0}) == ["blank"]
    assert flags_of({**fine, "sharpness_input": 0.0}) == ["blank"]
    assert flags_of({**fine, "sharpness_input": 0.0, "sharpness_edit": 0.0}) == ["blank"]
    assert flags_of({**fine, "lpips_input_edit": 0.0}) == ["unchanged"]
    no_foreground = ["no_foreground_input", "no_foreground_edit"]
    assert flags_of({**fine, "area_input": 0.0, "area_edit": 0.0}) == no_foreground


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
    "wanted, kept",
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
        (Criteria(keep=0.3, veto=["a", "x"]), "c"),  # no other takes its place
    ],
)
def test_select(wanted: Criteria, kept: str) -> None:
    keys, dropped = select(ROWS, wanted)
    assert keys == list(kept)
    assert sorted([*keys, *dropped]) == list("abcdefg")


def test_every_dropped_pair_has_its_reason() -> None:
    at_least = {"clip_gain": 0.10, "overlap_iou": 0.70}
    _, dropped = select(ROWS, Criteria(at_least, {"lpips_input_edit": 0.4}, reject=["blank"]))
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
    wanted = Criteria({"clip_gain": 0.1}, {"lpips_input_edit": 0.4}, keep=0.75, reject=["unchanged"])
    selection = selection_of(ROWS[:4], wanted)
    assert selection["thresholds"] == {"clip_gain": 0.1, "overlap": None}
    assert selection["at_most"] == {"lpips_input_edit": 0.4}
    assert (selection["kept"], selection["total"], selection["yield"]) == (["c", "d"], 4, 0.5)
    assert selection["keep"] == {"share": 0.75, "by": "clip_gain", "down_to": 0.25}
    assert selection["flags"] == {**dict.fromkeys(selection["flags"], 0), "blank": 1}
    empty = selection_of([], Criteria(keep=0.5))
    assert empty["yield"] == 0
    assert empty["keep"]["down_to"] is None


def test_a_veto_file_drops_single_pairs(tmp_path: Path) -> None:
    (tmp_path / "veto.txt").write_bytes("# not these\r\n\r\n  c \nz\nc\n# größer\n".encode())
    items = [f"veto={tmp_path}/veto.txt", "clip_gain=0.1"]
    chosen = parse(items, [])
    assert chosen.veto == ["c", "z"] and chosen.at_least == {"clip_gain": 0.1}
    assert unknown_veto(ROWS, chosen) == ["z"]
    selection = selection_of(ROWS, chosen)
    assert selection["kept"] == list("ade")
    assert selection["veto"] == ["c"] and selection["dropped"]["c"] == "vetoed"
    assert str(chosen) == f"clip_gain >= 0.1, not the 2 of {tmp_path}/veto.txt"


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "veto=.*veto.txt cannot be read .*No such file.*a pair's key a line"),
        (b"\x89PNG\xff\xfe", "veto=.*veto.txt cannot be read .*a pair's key a line"),
        (b"y\nz\n", "veto=.*veto.txt names no pair of this run .'y'"),
    ],
)
def test_a_wrong_veto_file_is_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "veto.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        unknown_veto(ROWS, parse([f"veto={path}"], []))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--select veto=: it is SCORE=LOW"):
        parse(["veto="], [])


def test_the_tasks_thresholds_are_in_the_papers_unit() -> None:
    def of(*arguments: str) -> Criteria:
        return criteria(load(["task.clip_gain=0.1", *arguments]))

    assert of("scorer.gain_unit=1.5").at_least == {"clip_gain": pytest.approx(0.15)}
    assert of("task.clip_gain=0").at_least == {"clip_gain": 0}
    assert of("task.clip_gain=null", "task.overlap=0.7", *MASKED).at_least == {"overlap_iou": 0.7}
    assert str(of("task.clip_gain=null", "filter.reject=[]")) == "everything"
    for key in ("task.overlap=0.7", "filter.select=[area_edit=0.1]", "filter.select=[keep=0.5,by=overlap]"):
        with pytest.raises(UserError, match="task.source_noun"):
            of(key)


def test_filter_select_takes_the_tasks_place() -> None:
    items = "overlap=0.7,image_image=0.1:0.6,sharpness_ratio=:2,keep=0.6,by=-area_edit"
    chosen = criteria(load([f"filter.select=[{items}]", *MASKED]))
    assert chosen.at_least == {"overlap_iou": 0.7, "image_image": 0.1}
    assert chosen.at_most == {"image_image": 0.6, "sharpness_ratio": 2}
    assert (chosen.keep, chosen.by, chosen.reject) == (0.6, "-area_edit", ["blank"])
    assert chosen.by_score == "area_edit" and chosen.low_is_good
    bounds = "overlap_iou >= 0.7, image_image >= 0.1, image_image <= 0.6, sharpness_ratio <= 2"
    assert str(chosen) == f"{bounds}, the best 60% by -area_edit, not blank"
    assert criteria(load(["filter.select=[keep=0.6]"])).by == "clip_gain"


@pytest.mark.parametrize(
    "item, message",
    [
        (
            "overlp=0.7",
            "'overlp'; did you mean overlap_iou or overlap_dice\\? "
            "There are: overlap, sim_input_source, .*sharpness_ratio",
        ),
        ("keep=0", "a share above 0"),
        ("keep=1.5", "a share above 0"),
        ("keep=", "a share above 0"),
        ("by=clip_gain", "add keep="),
        ("clip_gain=much", "'much' is no number"),
        ("clip_gain=nan", "'nan' is no number"),
        ("clip_gain", "it is SCORE=LOW"),
        ("clip_gain=:", "it is SCORE=LOW"),
        ("keep=0.5,by=gain", "no score 'gain'"),
    ],
)
def test_what_cannot_be_selected_by_is_named(item: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        criteria(load(["filter.select=" + json.dumps(item.split(","))]))


def test_flags_to_reject_are_those_there_are() -> None:
    assert set(known_keys()["filter.reject"].metadata["limits"].choices) == set(FLAGS)
    with pytest.raises(UserError, match="filter.reject=.*blnk.*: it is blank, unchanged, "):
        load(["filter.reject=[blnk]"])
