"""CLIP scores of a pair: does the edit look more like the target than the input did?

All are cosines of unit features in [-1, 1] (differences of two: [-2, 2]). Shapes: B pairs, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from models.clip_scorer import ClipScorer

CLIP_SCORES = (
    "sim_input_source",
    "sim_input_target",
    "sim_edit_source",
    "sim_edit_target",
    "clip_gain",
    "clip_directional",
    "image_image",
)


def score_clip(
    scorer: ClipScorer, inputs: Sequence[np.ndarray], edits: Sequence[np.ndarray], texts: tuple[str, str]
) -> dict[str, np.ndarray]:
    """CLIP_SCORES of B pairs of RGB uint8 images for (source text, target text): a float64 array of B each."""
    source_D, target_D = scorer.text_features(texts).double().cpu().numpy()
    input_BD = scorer.image_features(inputs).double().cpu().numpy()
    edit_BD = scorer.image_features(edits).double().cpu().numpy()
    return clip_scores(input_BD, edit_BD, source_D, target_D)


def clip_scores(input_BD: np.ndarray, edit_BD: np.ndarray, source_D: np.ndarray, target_D: np.ndarray) -> dict[str, np.ndarray]:
    """CLIP_SCORES from unit features.

    clip_gain = cos(edit, target) - cos(input, target) (Parmar et al. 2023, section 3.4). clip_directional = cosine
    between what changed in the picture and what changes in the text (Brooks et al. 2023, InstructPix2Pix, section
    3.1.2); NaN where the picture did not change.
    """
    scores = {
        "sim_input_source": input_BD @ source_D,
        "sim_input_target": input_BD @ target_D,
        "sim_edit_source": edit_BD @ source_D,
        "sim_edit_target": edit_BD @ target_D,
        "image_image": (input_BD * edit_BD).sum(axis=1),
    }
    scores["clip_gain"] = scores["sim_edit_target"] - scores["sim_input_target"]
    change_BD, wanted_D = edit_BD - input_BD, target_D - source_D
    lengths_B = np.linalg.norm(change_BD, axis=1) * np.linalg.norm(wanted_D)
    unmoved_B = np.where(lengths_B > 0, lengths_B, np.nan)
    scores["clip_directional"] = (change_BD @ wanted_D) / unmoved_B
    return {name: scores[name] for name in CLIP_SCORES}
