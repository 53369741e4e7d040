"""StyleGAN2's layers (Karras et al. 2020) that are not modulated, for the generator's encoder and mapping.

Written from the papers and their published facts, not from the reference code.

Shapes: B batch, C channels (I input, O output), H W pixels, D width of a vector, K kernel side.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2  # of the leaky ReLU
GAIN = sqrt(2.0)  # keeps the variance through the leaky ReLU; part of the weights: no pass of its own
EPSILON = 1e-6  # the ONNX exporter drops an addition of 1e-8 as if it were one of 0


def channel_widths(sides: list[int], base: int, most: int) -> list[int]:
    """Channels at each side (Zhao et al. 2021): 2 base / side, at most `most` and at least 1."""
    return [max(1, min(most, 2 * base // side)) for side in sides]


def cast_like(value: Tensor, image: Tensor) -> Tensor:
    """The value in the image's dtype: autocast leaves float32 beside the image's bfloat16.

    Where they are equal there is no call, as an exported graph would keep it as a cast.
    """
    if value.dtype == image.dtype:
        return value
    return value.to(image.dtype)


class EqualizedWeight(nn.Module):
    """A weight from N(0, 1), scaled at run time by gain / sqrt(fan-in): Adam moves all layers
    alike.

    Karras et al. 2018, section 4.1. shape: outputs first; the rest is the fan-in. lr_multiplier:
    the weight is kept divided by it and used times it. A step of Adam is as long for a large weight
    as for a small one, so with 0.01 it moves the weight in use a hundred times less.
    """

    def __init__(self, *shape: int, gain: float = 1.0, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(shape) / lr_multiplier)
        fan_in = self.raw[0].numel()
        self.scale = gain * lr_multiplier / sqrt(fan_in)

    def forward(self) -> Tensor:
        """The weight to use, of the shape given."""
        return self.raw * self.scale


class Dense(nn.Module):
    """Fully connected layer, B x I -> B x O, with leaky ReLU unless `linear`. bias: where it
    starts.
    """

    def __init__(
        self, inputs: int, outputs: int, linear: bool = False, bias: float = 0.0, lr_multiplier: float = 1.0
    ) -> None:
        super().__init__()
        gain = 1.0 if linear else GAIN
        self.weight = EqualizedWeight(outputs, inputs, gain=gain, lr_multiplier=lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.bias_scale = gain * lr_multiplier
        self.activated = not linear

    def forward(self, x_BI: Tensor) -> Tensor:
        y_BO = F.linear(x_BI, self.weight(), self.bias * self.bias_scale)
        return F.leaky_relu(y_BO, SLOPE) if self.activated else y_BO


class Blur(nn.Module):
    """The binomial filter [1, 3, 3, 1] in both directions, against aliasing (Zhang 2019).

    Sides grow by 2 padding - 3 and are then divided by the stride. gain: 4 where zeros were put in
    between. One two-dimensional depthwise convolution is 2 to 10 times faster on CPUs than two of
    one dimension.
    """

    kernel_11KK: Tensor
    taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)

    def __init__(self, padding: int = 1, gain: float = 1.0, stride: int = 1) -> None:
        super().__init__()
        line_K = torch.tensor(self.taps) / sum(self.taps)
        kernel_KK = gain * line_K[:, None] * line_K
        self.register_buffer("kernel_11KK", kernel_KK[None, None], persistent=False)
        self.padding = padding
        self.gain = gain
        self.stride = stride
        self.as_sums = False  # see CoModGenerator.write_as_sums

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.as_sums:
            return self._sums(x_BCHW)
        channels = x_BCHW.shape[1]
        kernel_C1KK = self.kernel_11KK.expand(channels, -1, -1, -1)
        return F.conv2d(x_BCHW, kernel_C1KK, None, self.stride, self.padding, groups=channels)

    def _sums(self, x_BCHW: Tensor) -> Tensor:
        """The same filter of square images: a sum over shifted rows, then one over shifted columns."""
        padded_BCHW = F.pad(x_BCHW, [self.padding] * 4)
        reach = padded_BCHW.shape[2] - len(self.taps) + 1  # places of the filter along one side
        zero = x_BCHW.new_zeros(())
        down_BCHW = zero
        for start, tap in enumerate(self.taps):
            down_BCHW = down_BCHW + tap * padded_BCHW[:, :, start : start + reach : self.stride]
        both_BCHW = zero
        for start, tap in enumerate(self.taps):
            both_BCHW = both_BCHW + tap * down_BCHW[..., start : start + reach : self.stride]
        return self.gain / sum(self.taps) ** 2 * both_BCHW


class Upsample(Blur):
    """Twice the sides: what zeros in between and then Blur (gain 4) make.

    Each value four times, then [1, 2, 1], is the same and much faster in ONNX Runtime on a CPU than
    a transposed convolution.
    """

    taps = (1.0, 2.0, 1.0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        repeated_BCHW = F.interpolate(x_BCHW, scale_factor=2.0)  # B x C x 2H x 2W, nearest neighbour
        return super().forward(repeated_BCHW)  # with padding 1 the sides stay


class Depthwise(nn.Module):
    """3 x 3 convolution of each channel by itself.

    With a 1 x 1 convolution after it, it is a separable convolution (Howard et al. 2017).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = EqualizedWeight(channels, 1, 3, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.conv2d(x_BCHW, self.weight(), padding=1, groups=x_BCHW.shape[1])


class FromRGB(nn.Module):
    """A picture cut into patches of P x P pixels, each projected to the channels of one place.

    A convolution of kernel and stride P, with bias and leaky ReLU; with P 1 it is StyleGAN2's.
    """

    def __init__(self, outputs: int, patch: int) -> None:
        super().__init__()
        self.weight = EqualizedWeight(outputs, 3, patch, patch, gain=GAIN)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.patch = patch
        self.as_sums = False  # see CoModGenerator.write_as_sums

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """B x O x H/P x W/P."""
        weight_O3PP = self.weight()
        bias_O = self.bias * GAIN
        if self.as_sums and self.patch == 1:
            y_BOHW = _sum_over_colours(image_B3HW, weight_O3PP, bias_O)
        else:
            y_BOHW = F.conv2d(image_B3HW, weight_O3PP, bias_O, self.patch)
        return F.leaky_relu(y_BOHW, SLOPE)


class Conv(nn.Module):
    """Plain 3 x 3 convolution with bias and leaky ReLU; `down` blurs and halves the sides.

    `separable`: 3 x 3 depthwise and then 1 x 1; with `down` 1 x 1 alone, after a blur that halves
    the sides itself.
    """

    def __init__(self, inputs: int, outputs: int, down: bool = False, separable: bool = False) -> None:
        super().__init__()
        kernel = 1 if separable else 3
        self.weight = EqualizedWeight(outputs, inputs, kernel, kernel, gain=GAIN)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.depthwise = Depthwise(inputs) if separable and not down else nn.Identity()
        self.blur = Blur(padding=1 + kernel // 2, stride=2 if separable else 1) if down else nn.Identity()
        self.stride = 2 if down and not separable else 1
        self.padding = 0 if down else kernel // 2

    def forward(self, x_BIHW: Tensor) -> Tensor:
        x_BIHW = self.blur(x_BIHW)  # with down: sides H + 1, or H / 2 where separable
        x_BIHW = self.depthwise(x_BIHW)  # the shape stays
        y_BOHW = F.conv2d(x_BIHW, self.weight(), self.bias * GAIN, self.stride, self.padding)
        return F.leaky_relu(y_BOHW, SLOPE)  # B x O x H x W, with down B x O x H/2 x W/2


def _sum_over_colours(x_BIHW: Tensor, weight_OIKK: Tensor, bias_O: Tensor) -> Tensor:
    """The 1 x 1 convolution of an RGB image as a sum of three products, B x O x H x W."""
    weight_OI11 = weight_OIKK[..., 0:1, 0:1]
    y_BOHW = bias_O[:, None, None]
    for colour in range(3):
        y_BOHW = y_BOHW + x_BIHW[:, colour : colour + 1] * weight_OI11[:, colour]
    return y_BOHW
