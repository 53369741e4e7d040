"""The conditional discriminator of the adversarial loss: StyleGAN2's, on input and edit together.

Karras et al. (2020), figure 7c, and Co-Mod-GAN (Zhao et al. 2021). Written from the papers, not
from code.

B batch, C channels, H W pixels, G images in a group, M = B / G groups.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import nn
from torch.nn import functional as F

from models.layers import EPSILON, Blur, Conv, Dense, EqualizedWeight, channel_widths

GROUP = 4  # images that the minibatch deviation compares, as StyleGAN2 does


class Discriminator(nn.Module):
    """Inputs and edits, both B x 3 x H x W in [-1, 1], to logits, B: high for the teacher's edits.

    resolution: H and W, a power of two from 8. channel_base, channel_max: as of the generator.
    """

    def __init__(self, resolution: int, channel_base: int = 16_384, channel_max: int = 512) -> None:
        super().__init__()
        sides = [2**power for power in range(2, resolution.bit_length())]  # 4 ... resolution
        widths = channel_widths(sides, channel_base, channel_max)
        self.from_rgb = Conv(6, widths[-1], kernel=1)
        self.blocks = nn.Sequential()
        for level in range(len(sides) - 1, 0, -1):
            self.blocks.append(ResidualBlock(widths[level], widths[level - 1]))
        self.last = Conv(widths[0] + 1, widths[0])
        self.dense = Dense(widths[0] * sides[0] ** 2, widths[0])
        self.logit = Dense(widths[0], 1, linear=True)

    def forward(self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = torch.cat([input_BCHW, edit_BCHW], dim=1)  # B x 6 x H x W
        x_BCHW = self.from_rgb(x_BCHW)  # B x C x H x W
        x_BCHW = self.blocks(x_BCHW)  # B x C x 4 x 4
        x_BCHW = torch.cat([x_BCHW, minibatch_deviation(x_BCHW)], dim=1)  # B x (C + 1) x 4 x 4
        x_BCHW = self.last(x_BCHW)  # B x C x 4 x 4
        x_BC = self.dense(x_BCHW.flatten(1))  # from B x 16 C
        logit_B1 = self.logit(x_BC)
        return logit_B1[:, 0]


class ResidualBlock(nn.Module):
    """Two convolutions, the second to half the sides, and a linear skip connection around them.

    B x inputs x H x W to B x outputs x H/2 x W/2.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(Conv(inputs, inputs), Conv(inputs, outputs, down=True))
        self.blur = Blur(stride=2)
        self.skip = EqualizedWeight(outputs, inputs, 1, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        residual_BCHW = self.convs(x_BCHW)  # B x outputs x H/2 x W/2
        skipped_BCHW = F.conv2d(self.blur(x_BCHW), self.skip())  # B x outputs x H/2 x W/2
        return (residual_BCHW + skipped_BCHW) / sqrt(2)  # the sum's variance is that of one of them


def minibatch_deviation(x_BCHW: torch.Tensor) -> torch.Tensor:
    """One map, B x 1 x H x W: the features' deviation within the group of images, mean over all.

    It tells fakes that are too alike (Karras et al. 2018, section 3). Groups have GROUP images;
    where that does not divide B, as many as the next smaller number that does. Image b is in group
    b mod M.
    """
    group = GROUP
    while len(x_BCHW) % group:
        group -= 1
    x_GMCHW = x_BCHW.unflatten(0, (group, -1))
    variance_MCHW = x_GMCHW.var(0, unbiased=False)
    deviation_M = (variance_MCHW + EPSILON).sqrt().mean((1, 2, 3))
    deviation_B = deviation_M.repeat(group)
    return deviation_B[:, None, None, None].expand(-1, 1, *x_BCHW.shape[2:])
