"""The adversary: heads on the features of VGG16 that LPIPS computes anyway.

A discriminator that looks through a frozen, trained network learns fast and needs no gradient penalty
(Projected GANs, Sauer et al. 2021; vision-aided training, Kumari et al. 2022). Each head compares a
picture's features with those of the input it is an edit of, and judges every place by itself, so that a
window of the picture is enough.

B batch, C channels, H W places of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from models.perceptual import FEATURE_SCALES

CHANNELS = (64, 128, 256, 512)  # of VGG16's relu1_2, relu2_2, relu3_3 and relu4_3
STRIDES = (2, 2, 1, 1)  # of a head's first convolution: the fine maps have many places
WIDTH = 48
SLOPE = 0.2  # of the leaky rectifiers


class Critic(nn.Module):
    """Features of a picture and of its input -> logits, B x 1 x H x W a level: high for a teacher's edit."""

    balance: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            Head(channels, stride, scale)
            for channels, stride, scale in zip(CHANNELS, STRIDES, FEATURE_SCALES, strict=True)
        )
        # What the adversarial loss is multiplied by; distill/losses.py measures it as training goes on.
        self.register_buffer("balance", torch.zeros(()))

    def forward(
        self, picture: Sequence[torch.Tensor], condition: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """picture, condition: VGG16's relu1_2 to relu4_3 (further ones are not looked at), B x C x H x W."""
        logits = []
        for head, seen_BCHW, input_BCHW in zip(self.heads, picture, condition, strict=False):
            logits.append(head(seen_BCHW, input_BCHW))
        return logits


class Head(nn.Module):
    """One level: both features projected, then three 3 x 3 convolutions. Every layer is spectrally normalised
    (Miyato et al. 2018).
    """

    def __init__(self, channels: int, stride: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.of_picture = spectral_norm(nn.Conv2d(channels, WIDTH, 1))
        self.of_input = spectral_norm(nn.Conv2d(channels, WIDTH, 1))
        self.layers = nn.Sequential(
            nn.LeakyReLU(SLOPE),
            spectral_norm(nn.Conv2d(2 * WIDTH, WIDTH, 3, stride, 1)),
            nn.LeakyReLU(SLOPE),
            spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)),
            nn.LeakyReLU(SLOPE),
            spectral_norm(nn.Conv2d(WIDTH, 1, 3, 1, 1)),
        )

    def forward(self, picture_BCHW: torch.Tensor, input_BCHW: torch.Tensor) -> torch.Tensor:
        picture_BCHW = self.of_picture(picture_BCHW / self.scale)
        input_BCHW = self.of_input(input_BCHW / self.scale)
        return self.layers(torch.cat([picture_BCHW, input_BCHW], dim=1))
