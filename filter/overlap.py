"""How much of the foreground stayed where it was: IoU and Dice of the input's and the edit's masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from models.segmenter import NounSegmenter

OVERLAP_SCORES = ("overlap_iou", "overlap_dice", "area_input", "area_edit")


def score_overlap(
    segmenter: NounSegmenter, inputs: Sequence[np.ndarray], edits: Sequence[np.ndarray], nouns: tuple[str, str]
) -> dict[str, list[float | None]]:
    """OVERLAP_SCORES of B pairs of RGB uint8 images, for (the input's noun, the edit's noun): a list of B each."""
    masks = zip(segmenter.segment(inputs, nouns[0]), segmenter.segment(edits, nouns[1]), strict=True)
    rows = [overlap_scores(*pair) for pair in masks]
    return {name: [row[name] for row in rows] for name in OVERLAP_SCORES}


def overlap_scores(input_mask: np.ndarray, edit_mask: np.ndarray) -> dict[str, float | None]:
    """OVERLAP_SCORES of two bool H x W masks, all in [0, 1]; IoU and Dice are None where either mask is empty: no
    foreground, no score.
    """
    both = np.count_nonzero(input_mask & edit_mask)
    size_input, size_edit = np.count_nonzero(input_mask), np.count_nonzero(edit_mask)
    found = size_input > 0 and size_edit > 0
    return {
        "overlap_iou": both / (size_input + size_edit - both) if found else None,
        "overlap_dice": 2 * both / (size_input + size_edit) if found else None,
        "area_input": size_input / input_mask.size,
        "area_edit": size_edit / edit_mask.size,
    }
