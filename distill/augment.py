"""What a training pair goes through before the generator sees it: colour, geometry, noise.

Colour jitter and geometry are one draw for both images, so that what the edit changes stays the only difference between them. Every draw
comes from torch's global generator, which the training loop seeds anew for each step.

B batch, C channels, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from configs.schema import Augment


class PairAugment(nn.Module):
    """Augments a batch of pairs of `resolution` pixels on the device they lie on."""

    def __init__(self, config: Augment, resolution: int) -> None:
        super().__init__()
        import kornia.augmentation as K

        steps: list[nn.Module] = []
        jitter = (config.brightness, config.contrast, config.saturation, config.hue)
        if any(jitter):
            steps.append(K.ColorJitter(*jitter, p=1.0))
        if config.crop < 1:
            steps.append(K.RandomResizedCrop((resolution, resolution), scale=(config.crop**2, 1.0), ratio=(1.0, 1.0), p=1.0))
        if config.flip > 0:
            steps.append(K.RandomHorizontalFlip(p=config.flip))
        self.steps = nn.ModuleList(steps)
        self.noise = config.noise

    @torch.no_grad()
    def forward(self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The augmented pairs; both in and out in [-1, 1], the noise on the input may leave it by a little."""
        pair = [(image_BCHW + 1) / 2 for image_BCHW in (input_BCHW, edit_BCHW)]
        step: Any  # kornia's layers have forward_parameters, which nn.ModuleList does not tell
        for step in self.steps:
            draw = step.forward_parameters(pair[0].shape)
            pair = [step(image_BCHW, params=draw) for image_BCHW in pair]
        input_BCHW, edit_BCHW = (image_BCHW.clamp(0, 1) * 2 - 1 for image_BCHW in pair)
        if self.noise > 0:
            deviation_B111 = self.noise * torch.rand(len(input_BCHW), 1, 1, 1, device=input_BCHW.device)
            input_BCHW = input_BCHW + deviation_B111 * torch.randn_like(input_BCHW)
        return input_BCHW, edit_BCHW
