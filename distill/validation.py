"""Validation: the averaged generator's edits of held-out inputs beside the teacher's.

Images are in [-1, 1]. B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.utils import save_image

from distill.pairs import PairDataset, images_on
from models.pictures import HALF_RANGE, sharpness

# Held-out pairs that are measured. They are always the same, so few suffice to tell checkpoints
# apart, and a validation takes seconds beside the minutes of training between two checkpoints.
MAX_PAIRS = 64
GRID_ROWS = 8  # of the sample sheet; a row is input, teacher's edit, generator's edit
LEAST_SHARPNESS = 1e-6  # of edits that are blank
NEAR_ENOUGH = 1.03  # times the lowest LPIPS of all validations: what the best checkpoint may have
LEAST_SQUARED_ERROR = 1e-10  # so that PSNR of equal images is 100 dB and not infinite


@dataclass
class Validation:
    """The result. metrics: means over `count` pairs. sheet_BCHW: rows of three images each."""

    metrics: dict[str, float]
    count: int
    sheet_BCHW: torch.Tensor

    def save_sheet(self, path: Path) -> None:
        """Write the sample sheet as a picture, three images wide."""
        path.parent.mkdir(exist_ok=True)
        save_image(self.sheet_BCHW, path, nrow=3, padding=0, normalize=True, value_range=(-1, 1))


@torch.no_grad()
def validate(
    generator: nn.Module, held_out: PairDataset, perceptual: nn.Module, batch: int, device: torch.device
) -> Validation:
    """Compare the generator's edits of the first MAX_PAIRS held-out inputs with the teacher's.

    perceptual: LPIPS of two batches of images, shape B. batch: pairs at a time.
    """
    count = min(len(held_out), MAX_PAIRS)
    sums: dict[str, float] = {}
    rows: list[torch.Tensor] = []
    for levels in DataLoader(Subset(held_out, range(count)), batch):
        input_BCHW, edit_BCHW = images_on(device, levels)
        fake_BCHW = generator(input_BCHW).float().clamp(-1, 1)
        if not rows:
            rows = [input_BCHW[:GRID_ROWS], edit_BCHW[:GRID_ROWS], fake_BCHW[:GRID_ROWS]]
        for name, values_B in metrics(fake_BCHW, edit_BCHW, perceptual).items():
            sums[name] = sums.get(name, 0.0) + values_B.sum().item()
    means = {name: total / count for name, total in sums.items()}
    means["sharpness"] /= max(means.pop("sharpness of the edits"), LEAST_SHARPNESS)
    sheet_BCHW = torch.stack(rows, dim=1).flatten(0, 1)  # row by row
    return Validation(means, count, sheet_BCHW)


def metrics(
    fake_BCHW: torch.Tensor, edit_BCHW: torch.Tensor, perceptual: nn.Module
) -> dict[str, torch.Tensor]:
    """L1, PSNR (dB), LPIPS and sharpness of each image, shape B. A further metric is an entry here.

    Of the sharpness the ratio of the two means is given: a single edit may be smooth.
    """
    error_BCHW = fake_BCHW - edit_BCHW
    # the largest error possible is 2, and PSNR is relative to it
    relative_B = (error_BCHW / 2).square().mean((1, 2, 3)).clamp_min(LEAST_SQUARED_ERROR)
    return {
        "l1": error_BCHW.abs().mean((1, 2, 3)),
        "psnr": -10 * torch.log10(relative_B),
        "lpips": perceptual(fake_BCHW, edit_BCHW),
        "sharpness": sharpness(HALF_RANGE * (fake_BCHW + 1)),
        "sharpness of the edits": sharpness(HALF_RANGE * (edit_BCHW + 1)),
    }


def best_of(entries: Sequence[Mapping[str, Any]], candidates: Collection[int]) -> int | None:
    """Of checkpoints after so many images the best by what validation said of each, None if it said nothing.

    It is the sharpest of those whose LPIPS is within 3 % of the lowest there was. LPIPS alone prefers the
    softest of an adversary's checkpoints, sharpness alone one that has collapsed. No edit is better for
    being sharper than the teacher's. entries: lines of metrics.jsonl.
    """
    validations = [entry for entry in entries if entry["kind"] == "validation"]
    lowest = min((entry["lpips"] for entry in validations), default=0.0)

    def rank(entry: Mapping[str, Any]) -> tuple[bool, float, float]:
        is_near = entry["lpips"] <= NEAR_ENOUGH * lowest
        return is_near, min(entry["sharpness"], 1.0) if is_near else 0.0, -entry["lpips"]

    known = [entry for entry in validations if entry["images"] in candidates]
    return max(known, key=rank)["images"] if known else None
