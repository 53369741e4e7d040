"""The foreground mask of a noun: segment-anything proposes masks, the CLIP scorer says which of them show the noun.

Shapes: B images, H W pixels, M proposed masks, N nouns, D feature width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam

from configs.errors import UserError
from configs.loader import find_file
from configs.schema import Segmenter as Settings
from models.clip_scorer import ClipScorer

GREY = 128.0  # what the picture around a proposed mask is faded to
REGISTERED = ("vit_h", "vit_l", "vit_b")


class Segmenter:
    """Noun -> mask. UserError where the model or its weights cannot be found."""

    def __init__(self, segmenter: Settings, scorer: ClipScorer, device: torch.device | str = "cpu"):
        self.settings = segmenter
        self.scorer = scorer
        self.proposer = SamAutomaticMaskGenerator(
            load_sam(segmenter).to(device).eval().requires_grad_(False),
            points_per_side=segmenter.points_per_side,
            pred_iou_thresh=segmenter.min_predicted_iou,
            stability_score_thresh=segmenter.min_stability,
        )

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], noun: str) -> list[np.ndarray]:
        """Bool H x W mask of the noun in each RGB uint8 H x W x 3 image: the union of the proposed masks that show it.

        All False where no mask shows the noun: there is no foreground then, and no overlap to speak of.
        """
        nouns = [noun, *(other for other in self.settings.other_nouns if other != noun)]
        texts_ND = self.scorer.text_features(nouns)
        return [self._segment_one(image, texts_ND) for image in images]

    def _segment_one(self, image: np.ndarray, texts_ND: torch.Tensor) -> np.ndarray:
        masks = [proposal["segmentation"] for proposal in self.proposer.generate(image)]
        masks = [mask for mask in masks if mask.any()]
        if not masks:
            return np.zeros(image.shape[:2], dtype=bool)
        crops = [masked_crop(image, mask, self.settings.crop_margin, self.settings.outside) for mask in masks]
        logits_MN = self.scorer.logit_scale * self.scorer.image_features(crops) @ texts_ND.T
        shows_noun_M = logits_MN.softmax(dim=-1)[:, 0] >= self.settings.min_noun_probability
        return union([mask for mask, shows in zip(masks, shows_noun_M.tolist(), strict=True) if shows], image.shape[:2])


def union(masks: Sequence[np.ndarray], shape_HW: tuple[int, int]) -> np.ndarray:
    """Pixels in any of the bool masks; all False for none."""
    result = np.zeros(shape_HW, dtype=bool)
    for mask in masks:
        result |= mask
    return result


def masked_crop(image: np.ndarray, mask: np.ndarray, margin: float, outside: float) -> np.ndarray:
    """The square RGB uint8 crop around a mask that the scorer looks at.

    margin: added on each side of the box, as a share of its longer side. outside: how much of the picture beyond the
    mask remains, 0 (grey) to 1 (untouched): some context tells a crown from a bush, all of it tells nothing about
    this mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(1, round(max(bottom - top, right - left) * (1 + 2 * margin)))
    top, left = (top + bottom - side) // 2, (left + right - side) // 2
    faded = np.where(mask[..., None], image, outside * image + (1 - outside) * GREY)
    crop = np.full((side, side, 3), GREY)  # beyond the picture's edge: grey as well
    high, wide = mask.shape
    y0, y1, x0, x1 = max(top, 0), min(top + side, high), max(left, 0), min(left + side, wide)
    crop[y0 - top : y1 - top, x0 - left : x1 - left] = faded[y0:y1, x0:x1]
    return crop.round().astype(np.uint8)


def load_sam(segmenter: Settings) -> Sam:
    """The Sam of a registered size with its .pth, or of a folder with config.json and model.safetensors. UserError
    where it is not there.
    """
    if segmenter.model in REGISTERED:
        return _load_registered(segmenter.model, segmenter.checkpoint)
    folder = Path(find_file(segmenter.model))
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise UserError(
            f"segmenter.model={segmenter.model}: it is {', '.join(REGISTERED)}, or a folder with config.json and "
            f"model.safetensors, and {folder} has none; scripts/train_miniature.py makes the miniature's"
        )
    from safetensors.torch import load_file

    from models.segmenter_build import build_sam

    return _fill(build_sam(json.loads(config.read_text())), load_file(weights), weights)


def _load_registered(name: str, checkpoint: str) -> Sam:
    path = Path(checkpoint)
    if not checkpoint or not path.is_file():
        raise UserError(
            f"segmenter.checkpoint='{checkpoint}': no such file; download the {name} checkpoint (sam_{name}_*.pth) "
            "that the segment-anything project publishes and give its path"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)  # a plain unpickler would run code from the file
    except Exception as error:
        raise UserError(f"{path} is not a plain PyTorch checkpoint ({str(error).splitlines()[0][:120]}): download it again") from error
    return _fill(sam_model_registry[name](checkpoint=None), weights, path)


def _fill(sam: Sam, weights: dict[str, Any], path: Path) -> Sam:
    try:
        sam.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this segmenter ({str(error).splitlines()[0]}): wrong size, or a broken download") from error
    return sam
