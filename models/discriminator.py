"""The conditional discriminator of the adversarial loss: StyleGAN2's (Karras et al. 2020), on input and edit together.

Written from the paper's facts, not from its code. B batch, C channels, H W pixels, G group of the minibatch deviation.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import nn
from torch.nn import functional as F

from models.comodgan import EPSILON, Blur, Conv, Dense, EqualizedWeight, channel_widths

GROUP = 4  # images whose deviation is compared


class Discriminator(nn.Module):
    """Inputs and edits in [-1, 1], of `resolution` pixels (a power of two from 8) -> logits, B, high for the teacher's edits."""

    def __init__(self, resolution: int, channel_base: int = 16_384, channel_max: int = 512) -> None:
        super().__init__()
        sides = [2**power for power in range(2, resolution.bit_length())]
        widths = channel_widths(sides, channel_base, channel_max)
        self.from_rgb = Conv(6, widths[-1], kernel=1)
        self.blocks = nn.Sequential(
            *(_Block(wide, narrow) for narrow, wide in zip(widths[-2::-1], widths[:0:-1], strict=True))
        )
        self.last = Conv(widths[0] + 1, widths[0])
        self.dense = Dense(widths[0] * sides[0] ** 2, widths[0])
        self.logit = Dense(widths[0], 1, linear=True)

    def forward(self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = self.blocks(self.from_rgb(torch.cat([input_BCHW, edit_BCHW], dim=1)))
        x_BCHW = self.last(torch.cat([x_BCHW, minibatch_deviation(x_BCHW)], dim=1))
        return self.logit(self.dense(x_BCHW.flatten(1)))[:, 0]


class _Block(nn.Module):
    """Two convolutions, the second to half the sides, and a linear way around them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(Conv(inputs, inputs), Conv(inputs, outputs, down=True))
        self.blur = Blur(stride=2)
        self.around = EqualizedWeight(outputs, inputs, 1, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return (self.convs(x_BCHW) + F.conv2d(self.blur(x_BCHW), self.around())) / sqrt(
            2
        )  # the variance of one


def minibatch_deviation(x_BCHW: torch.Tensor) -> torch.Tensor:
    """One map, B x 1 x H x W: the mean deviation of all features over the group of images (Karras et al. 2018, section 3).

    Image b is in group b mod (B / GROUP); a batch that GROUP does not divide has the largest groups below that do.
    """
    group = next(size for size in range(GROUP, 0, -1) if len(x_BCHW) % size == 0)
    deviation_M = (x_BCHW.unflatten(0, (group, -1)).var(0, unbiased=False) + EPSILON).sqrt().mean((1, 2, 3))
    return deviation_M.repeat(group)[:, None, None, None].expand(-1, 1, *x_BCHW.shape[2:])
