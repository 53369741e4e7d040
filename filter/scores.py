"""The raw scores of a pair (score_table.py says what each means), from its features, masks and pixels.

Shapes: B pairs, C channels, H W pixels, D feature width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import conv2d

from filter.score_table import PICTURE_SCORES
from models.perceptual import Perceptual

LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as OpenCV and Pillow make grey
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def clip_scores(
    input_BD: np.ndarray, edit_BD: np.ndarray, source_D: np.ndarray, target_D: np.ndarray
) -> dict[str, np.ndarray]:
    """CLIP_SCORES from unit features of the pictures and texts: cosines in [-1, 1], differences of two in [-2, 2].

    clip_gain: Parmar et al. 2023, section 3.4. clip_directional: the cosine between what changed in the picture and what changes in the
    text (Brooks et al. 2023, InstructPix2Pix, section 3.1.2); NaN where the picture did not change.
    """
    change_BD, wanted_D = edit_BD - input_BD, target_D - source_D
    lengths_B = np.linalg.norm(change_BD, axis=1) * np.linalg.norm(wanted_D)
    return {
        "sim_input_source": input_BD @ source_D,
        "sim_input_target": input_BD @ target_D,
        "sim_edit_source": edit_BD @ source_D,
        "sim_edit_target": edit_BD @ target_D,
        "clip_gain": edit_BD @ target_D - input_BD @ target_D,
        "clip_directional": (change_BD @ wanted_D) / np.where(lengths_B > 0, lengths_B, np.nan),
        "image_image": (input_BD * edit_BD).sum(axis=1),
    }


def overlap_scores(input_mask: np.ndarray, edit_mask: np.ndarray) -> dict[str, float | None]:
    """OVERLAP_SCORES of two bool H x W masks, all in [0, 1]; IoU and Dice are None where either mask is empty."""
    both = np.count_nonzero(input_mask & edit_mask)
    size_input, size_edit = np.count_nonzero(input_mask), np.count_nonzero(edit_mask)
    found = size_input > 0 and size_edit > 0
    return {
        "overlap_iou": both / (size_input + size_edit - both) if found else None,
        "overlap_dice": 2 * both / (size_input + size_edit) if found else None,
        "area_input": size_input / input_mask.size,
        "area_edit": size_edit / edit_mask.size,
    }


@torch.inference_mode()
def picture_scores(
    perceptual: Perceptual, inputs: Sequence[np.ndarray], edits: Sequence[np.ndarray]
) -> dict[str, list[float | None]]:
    """PICTURE_SCORES of B pairs of RGB uint8 images, sides of 16 pixels or more; input and edit of a pair are of one size.

    Sharpness, of the pixels inside the picture's edge, grows with detail and shrinks when the same picture is enlarged.
    """
    device = next(perceptual.parameters()).device
    scores: dict[str, list[float | None]] = {name: [] for name in PICTURE_SCORES}
    together = len(inputs) if len({image.shape for image in inputs}) == 1 else 1
    for start in range(0, len(inputs), together):
        parts = (np.stack(images[start : start + together]) for images in (inputs, edits))
        input_BCHW, edit_BCHW = (
            torch.from_numpy(part).to(device).permute(0, 3, 1, 2).float() for part in parts
        )
        distances = perceptual(input_BCHW / 127.5 - 1, edit_BCHW / 127.5 - 1).tolist()
        of_input, of_edit = sharpness(input_BCHW).tolist(), sharpness(edit_BCHW).tolist()
        ratios = [
            edit / before if before > 0 else None for before, edit in zip(of_input, of_edit, strict=True)
        ]
        for name, values in zip(PICTURE_SCORES, (distances, of_input, of_edit, ratios), strict=True):
            scores[name] += values
    return scores


def sharpness(levels_BCHW: torch.Tensor) -> torch.Tensor:
    """Variance of the Laplacian of the grey levels, B, from RGB levels 0 to 255."""
    grey_B1HW = (levels_BCHW * levels_BCHW.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    edges_B1HW = conv2d(grey_B1HW, levels_BCHW.new_tensor(LAPLACIAN)[None, None])
    return edges_B1HW.flatten(1).var(dim=1, correction=0)
