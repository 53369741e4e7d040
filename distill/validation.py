"""How near the generator is to the teacher on source images it never saw, and a picture of it.

B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from distill.pairs import PairDataset, to_unit

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = ("input", "teacher", "generator")
GRID_ROWS = 8
CAPTION_HEIGHT = 14  # pixels, of Pillow's built-in font


@torch.no_grad()
def measure(
    generator: nn.Module, perceptual: nn.Module, pairs: PairDataset, batch: int, device: torch.device, z_1D: torch.Tensor | None
) -> dict[str, float]:
    """Means over `pairs`, generator against the teacher's edit: 'l1' (images in [-1, 1]), 'psnr' (dB, mean over images), 'lpips'."""
    sums = {"l1": 0.0, "psnr": 0.0, "lpips": 0.0}
    for input_BCHW, edit_BCHW in _batches(pairs, batch, device):
        fake_BCHW = run(generator, input_BCHW, z_1D)
        sums["l1"] += (fake_BCHW - edit_BCHW).abs().mean((1, 2, 3)).sum().item()
        error_B = ((fake_BCHW - edit_BCHW) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
        sums["psnr"] += (-10 * torch.log10(error_B)).sum().item()
        sums["lpips"] += perceptual(fake_BCHW, edit_BCHW).sum().item()
    return {name: value / len(pairs) for name, value in sums.items()}


def run(generator: nn.Module, input_BCHW: torch.Tensor, z_1D: torch.Tensor | None) -> torch.Tensor:
    """The generator's picture in [-1, 1], clamped, float32; one latent for all images."""
    return generator(input_BCHW, z_1D).float().clamp(-1, 1)


def grid(generator: nn.Module, pairs: PairDataset, device: torch.device, z_1D: torch.Tensor | None) -> Image.Image:
    """Rows of held-out pairs under the captions input, teacher, generator."""
    from PIL import Image, ImageDraw

    shown = PairDataset(pairs.locations[:GRID_ROWS], pairs.resolution)
    with torch.no_grad():
        input_BCHW, edit_BCHW = next(_batches(shown, GRID_ROWS, device))
        columns = [to_uint8(image) for image in (input_BCHW, edit_BCHW, run(generator, input_BCHW, z_1D))]
    picture_HWC = np.concatenate([column_BHWC.reshape(-1, *column_BHWC.shape[2:]) for column_BHWC in columns], axis=1)
    sheet = Image.new("RGB", (picture_HWC.shape[1], picture_HWC.shape[0] + CAPTION_HEIGHT), "white")
    sheet.paste(Image.fromarray(picture_HWC), (0, CAPTION_HEIGHT))
    draw = ImageDraw.Draw(sheet)
    for place, caption in enumerate(COLUMNS):
        draw.text((place * pairs.resolution + 2, 1), caption, fill="black")
    return sheet


def to_uint8(image_BCHW: torch.Tensor) -> np.ndarray:
    """[-1, 1] -> uint8 B x H x W x 3, rounded, clamped."""
    return ((image_BCHW + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _batches(pairs: PairDataset, batch: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(pairs), batch):
        chosen = [pairs[position] for position in range(start, min(start + batch, len(pairs)))]
        _, input_BCHW, edit_BCHW = default_collate(chosen)
        yield to_unit(input_BCHW.to(device)), to_unit(edit_BCHW.to(device))
