"""The distillation loss (Parmar et al. 2023, section 3.4): L1 + LPIPS between the generator's picture and the teacher's edit.

B batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import nn

from configs.schema import Distill


class DistillationLoss(nn.Module):
    """l1 * L1 + lpips * LPIPS; LPIPS on one random window of `lpips_crop` pixels, which costs (crop / side)^2 of the whole."""

    def __init__(self, config: Distill, perceptual: nn.Module) -> None:
        super().__init__()
        self.perceptual = perceptual
        self.l1, self.lpips, self.crop = config.l1, config.lpips, config.lpips_crop

    def forward(self, fake_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scalars 'l1' (images in [-1, 1]), 'lpips' and their weighted sum 'loss'. The window is the same for the whole batch."""
        fake_BCHW = fake_BCHW.float()
        parts = {"l1": (fake_BCHW - target_BCHW).abs().mean(), "lpips": fake_BCHW.new_zeros(())}
        if self.lpips > 0:
            side = fake_BCHW.shape[-1]
            if 0 < self.crop < side:
                top, left = torch.randint(side - self.crop + 1, (2,)).tolist()
                window = (..., slice(top, top + self.crop), slice(left, left + self.crop))
                fake_BCHW, target_BCHW = fake_BCHW[window], target_BCHW[window]
            parts["lpips"] = self.perceptual(fake_BCHW, target_BCHW).mean()
        parts["loss"] = self.l1 * parts["l1"] + self.lpips * parts["lpips"]
        return parts
