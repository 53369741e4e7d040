"""What the pixels of a pair say by themselves: how far the edit is from the input, how sharp both are, what is plainly wrong with it.

B pairs, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from models.perceptual import Perceptual

PICTURE_SCORES = ("lpips_input_edit", "sharpness_input", "sharpness_edit", "sharpness_ratio")
LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as OpenCV and Pillow make grey
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
UNCHANGED_LPIPS = 0.02  # JPEG of quality 90 does more (.04 to .09 on the miniature's scenes), its reconstructions .10 and more
BLANK_SHARPNESS = 1.0  # one colour has 0; the softest of 32 of the miniature's edits has 234
# What is plainly wrong with a pair. blank: input or edit is of one colour (a safety checker's black picture). unchanged: the edit is the
# input. no_foreground_*: the segmenter found no such object.
FLAGS: dict[str, Callable[[Mapping[str, float | None]], bool]] = {
    "blank": lambda row: _below(row["sharpness_input"], BLANK_SHARPNESS) or _below(row["sharpness_edit"], BLANK_SHARPNESS),
    "unchanged": lambda row: _below(row["lpips_input_edit"], UNCHANGED_LPIPS),
    "no_foreground_input": lambda row: row["area_input"] == 0,
    "no_foreground_edit": lambda row: row["area_edit"] == 0,
}


def score_pictures(perceptual: Perceptual, inputs: Sequence[np.ndarray], edits: Sequence[np.ndarray]) -> dict[str, list[float | None]]:
    """PICTURE_SCORES of B pairs of RGB uint8 images, sides of 16 pixels or more; input and edit of a pair are of one size.

    lpips_input_edit: LPIPS (VGG16), at least 0. sharpness_*: variance of the Laplacian (4 neighbours) of the grey levels 0 to 255, inside
    the picture's edge; it grows with detail and shrinks when the same picture is enlarged. sharpness_ratio: edit over input, None for an
    input of one colour.
    """
    import torch

    scores: dict[str, list[float | None]] = {name: [] for name in PICTURE_SCORES}
    one_size = len({image.shape for image in inputs}) == 1
    for part in [range(len(inputs))] if one_size else [range(row, row + 1) for row in range(len(inputs))]:
        with torch.inference_mode():
            input_BCHW, edit_BCHW = (_levels([images[row] for row in part], perceptual) for images in (inputs, edits))
            distances = perceptual(input_BCHW / 127.5 - 1, edit_BCHW / 127.5 - 1).tolist()
            of_input, of_edit = sharpness(input_BCHW).tolist(), sharpness(edit_BCHW).tolist()
        ratios = [edit / before if before > 0 else None for before, edit in zip(of_input, of_edit, strict=True)]
        for name, values in zip(PICTURE_SCORES, (distances, of_input, of_edit, ratios), strict=True):
            scores[name] += values
    return scores


def sharpness(levels_BCHW: torch.Tensor) -> torch.Tensor:
    """Variance of the Laplacian of the grey levels, B, from RGB levels 0 to 255."""
    import torch

    luma_C11 = levels_BCHW.new_tensor(LUMA)[:, None, None]
    grey_B1HW = (levels_BCHW * luma_C11).sum(1, keepdim=True)
    edges_B1HW = torch.nn.functional.conv2d(grey_B1HW, levels_BCHW.new_tensor(LAPLACIAN)[None, None])
    return edges_B1HW.flatten(1).var(dim=1, correction=0)


def flags_of(row: Mapping[str, float | None]) -> list[str]:
    """The names of FLAGS that a pair's raw scores raise; a score that there is not raises none."""
    return [name for name, raised in FLAGS.items() if raised(row)]


def _below(value: float | None, limit: float) -> bool:
    return value is not None and value < limit


def _levels(images: Sequence[np.ndarray], perceptual: Perceptual) -> torch.Tensor:
    import torch

    device = next(perceptual.parameters()).device
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float()
