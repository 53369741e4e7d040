"""models/segmenter.py: which of the proposed masks make the noun's mask, what the scorer is shown,
and how weights are read.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import batched_mask_to_box

import models.segmenter as module
from configs.errors import UserError
from configs.loader import load
from configs.schema import Segmenter as Settings
from models.clip_scorer import ClipScorer
from models.miniature.scenes import Look, render
from models.miniature.scenes import scene as scene_of
from models.segmenter import Proposals, Segmenter, build_sam, load_sam, masked_crop
from tests.helpers import TINY_SAM, tiny_sam

COLOURS = {"red square": (1.0, 0.0, 0.0), "blue square": (0.0, 0.0, 1.0), "grass": (0.0, 1.0, 0.0)}


class ColourScorer:
    """A stand-in for ClipScorer whose features are mean colours."""

    logit_scale = 100.0

    def text_features(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([COLOURS[text] for text in texts])

    def image_features(self, images: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.stack([image.mean((1, 2)) for image in images]), dim=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A segmenter folder with the tiny Sam."""
    (tmp_path / "config.json").write_text(json.dumps(TINY_SAM))
    state = {name: tensor.contiguous() for name, tensor in tiny_sam().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


def scene() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Grass with two red squares and a blue one, and the mask of each."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 1] = 255
    masks = {}
    for name, top, left, colour in (("red 1", 2, 3, 0), ("red 2", 20, 40, 0), ("blue", 5, 45, 2)):
        mask = np.zeros(image.shape[:2], bool)
        mask[top : top + 10, left : left + 10] = True
        image[mask] = np.eye(3, dtype=np.uint8)[colour] * 255
        masks[name] = mask
    masks["grass"] = ~(masks["red 1"] | masks["red 2"] | masks["blue"])
    return image, masks


def proposing(masks: list[np.ndarray]) -> Any:
    """A stand-in for Segmenter.propose that gives these masks for every picture."""
    if masks:
        mask_MHW = torch.from_numpy(np.stack(masks))
        proposals = Proposals(mask_MHW, batched_mask_to_box(mask_MHW))
    else:
        proposals = Proposals(torch.zeros(0, 40, 60, dtype=torch.bool), torch.zeros(0, 4).long())
    return lambda images: iter([proposals] * len(images))


def test_masks_that_show_the_noun_are_united(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTSIDE", 0.0)
    settings = Settings(model=str(folder), other_nouns=["grass", "red square", "blue square"])
    segmenter = Segmenter(settings, ColourScorer())  # type: ignore[arg-type]
    image, masks = scene()
    assert len(segmenter.settings.other_nouns) == 3  # a noun among the other nouns is not its own rival
    segmenter.propose = proposing([*masks.values(), np.zeros_like(masks["grass"])])
    red = segmenter.segment([image], "red square")[0]
    blue = segmenter.segment([image], "blue square")[0]
    np.testing.assert_array_equal(red, masks["red 1"] | masks["red 2"])
    np.testing.assert_array_equal(blue, masks["blue"])


def test_no_mask_shows_the_noun(folder: Path) -> None:
    segmenter = Segmenter(Settings(model=str(folder), other_nouns=["grass"]), ColourScorer())  # type: ignore[arg-type]
    image, masks = scene()
    for proposals in ([masks["grass"]], []):
        segmenter.propose = proposing(proposals)
        mask = segmenter.segment([image], "red square")[0]
        assert mask.dtype == bool and mask.shape == image.shape[:2] and not mask.any()


@pytest.mark.parametrize("least_iou, least_stability", [(-1e9, -1.0), (0.5, 0.8), (1e9, 0.0)])
def test_the_masks_are_segment_anythings(
    least_iou: float, least_stability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Picture by picture the library's own automatic masks, whatever the batches.

    With random weights, and with the miniature's on its scenes.
    """
    monkeypatch.setattr(module, "IMAGES_TOGETHER", {"cpu": 2})
    monkeypatch.setattr(module, "POINTS_TOGETHER", {"cpu": 2})
    if least_iou == 0.5:
        sam = load_sam(Settings(model="models/miniature/segmenter"))
        images = [np.asarray(render(scene_of(seed), Look()))[:, : 128 - 30 * seed] for seed in range(3)]
    else:
        sam = tiny_sam()
        generator = np.random.default_rng(0)
        sizes = ((48, 80, 3), (64, 64, 3), (90, 50, 3))
        images = [generator.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    limits = {"pred_iou_thresh": least_iou, "stability_score_thresh": least_stability}
    reference = SamAutomaticMaskGenerator(sam, points_per_side=5, points_per_batch=8, **limits)
    settings = Settings(points_per_side=5, min_predicted_iou=least_iou, min_stability=least_stability)
    segmenter = Segmenter(settings, ColourScorer(), sam=sam)  # type: ignore[arg-type]
    counts = []
    for image, proposals in zip(images, segmenter.propose(images), strict=True):
        wanted = reference.generate(image)
        counts.append(len(wanted))
        assert not proposals.box_M4.is_floating_point()
        assert proposals.mask_MHW.dtype == torch.bool
        assert proposals.mask_MHW.shape == (len(wanted), *image.shape[:2])
        ours = zip(proposals.mask_MHW.numpy(), proposals.box_M4.tolist(), strict=True)
        for (mask, (left, top, right, bottom)), theirs in zip(ours, wanted, strict=True):
            # A pixel on the edge may round the other way in another batch.
            assert (mask != theirs["segmentation"]).mean() < 1e-3
            assert theirs["bbox"] == [left, top, right - left, bottom - top]
    assert (max(counts) == 0) if least_iou > 1e8 else (min(counts) > 1)


def test_attention_head_by_head_is_the_librarys() -> None:
    """On a CPU, but for rounding; a layer that sees windows is left as it is."""
    encoder = {**TINY_SAM["encoder"], "depth": 2, "window_size": 3, "global_attn_indexes": [1]}
    torch.manual_seed(0)
    sam = build_sam({**TINY_SAM, "encoder": encoder})
    for name, parameter in sam.named_parameters():
        if "rel_pos" in name:  # zeros in a fresh one
            torch.nn.init.normal_(parameter)
    pictures_BCHW = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = sam.image_encoder(pictures_BCHW)
        Segmenter(Settings(points_per_side=2), ColourScorer(), sam=sam)  # type: ignore[arg-type]
        attentions = [block.attn for block in sam.image_encoder.blocks]
        assert ["forward" in vars(attention) for attention in attentions] == [False, True]
        torch.testing.assert_close(sam.image_encoder(pictures_BCHW), expected, rtol=0, atol=1e-4)


def test_bfloat16_changes_little() -> None:
    """What filter.dtype=bfloat16 does on a GPU, here with the CPU's autocast.

    The miniature's trees and features stay where they were.
    """
    config = load(["segmenter.points_per_side=6"])
    segmenter = Segmenter(config.segmenter, ClipScorer(config.scorer))
    images = [np.asarray(render(scene_of(seed), Look())) for seed in (1, 2)]
    exact = segmenter.segment(images, "tree")
    exact_BD = segmenter.scorer.image_features(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = segmenter.segment(images, "tree")
        rough_BD = segmenter.scorer.image_features(images)
    assert rough_BD.dtype == torch.float32
    assert (exact_BD * rough_BD).sum(1).min() > 0.999
    for mask, other in zip(exact, rough, strict=True):
        assert mask.any() and np.count_nonzero(mask & other) / np.count_nonzero(mask | other) > 0.9


def test_small_masks_are_not_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTSIDE", 0.0)
    image, masks = scene()
    segmenter = Segmenter(Settings(model=str(folder), other_nouns=["grass"]), ColourScorer())  # type: ignore[arg-type]
    segmenter.propose = proposing([masks["red 1"]])
    for least, looked_at in ((0.0, True), (0.05, False)):  # a square is 100 of 2400 pixels
        monkeypatch.setattr(module, "MIN_AREA", least)
        assert segmenter.segment([image], "red square")[0].any() == looked_at


def crop_of(image: np.ndarray, mask: np.ndarray, margin: float, outside: float) -> np.ndarray:
    """masked_crop as an array S x S x 3; the box is found by looking."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]
    image_CHW = torch.from_numpy(image).permute(2, 0, 1).float()
    crop = masked_crop(image_CHW, torch.from_numpy(mask), box, margin, outside)
    return crop.permute(1, 2, 0).numpy()


def test_the_crop_shows_the_mask_and_fades_the_rest() -> None:
    image, masks = scene()
    crop = crop_of(image, masks["red 2"], margin=0.1, outside=0.25)
    assert crop.shape == (12, 12, 3)
    assert (crop[1:11, 1:11] == [255, 0, 0]).all()
    assert (crop[0] == np.round(0.25 * np.array([0, 255, 0]) + 0.75 * 128)).all()
    corner = np.zeros((40, 60), bool)
    corner[:4, :8] = True
    # The box is 8 wide: 12 with its margins, 4 rows of them above the picture.
    beyond = crop_of(image, corner, margin=0.25, outside=1.0)
    assert beyond.shape == (12, 12, 3) and (beyond[:4] == 128).all() and (beyond[:, :2] == 128).all()
    np.testing.assert_array_equal(beyond[4:, 2:], image[:8, :10])


def test_registered_model_reads_plain_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sam_model_registry", {"vit_b": tiny_sam})
    weights, bad, trap = tmp_path / "sam.pth", tmp_path / "bad.pth", tmp_path / "trap.pth"
    state = tiny_sam().state_dict()
    torch.save(state, weights)
    loaded = load_sam(Settings(model="vit_b", checkpoint=str(weights))).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    torch.save(dict(list(state.items())[:-1]), bad)
    with pytest.raises(UserError, match="lacks 1 of the network"):
        load_sam(Settings(model="vit_b", checkpoint=str(bad)))

    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    trap.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="not a plain PyTorch checkpoint"):
        load_sam(Settings(model="vit_b", checkpoint=str(trap)))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        (Settings(model="vit_h"), "sam_vit_h"),
        (Settings(model="no/such/folder"), "vit_h, vit_l, vit_b"),
        (Settings(model="vit_x"), "config.json"),
    ],
)
def test_what_is_missing_is_named(settings: Settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sam(settings)
