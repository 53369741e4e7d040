"""The distilled generator: Co-Mod-GAN (Zhao et al. 2021), image in, edited image out, one pass.

A StyleGAN2 synthesis network whose styles come from the latent *and* from an encoder of the input image (co-modulation), with the encoder's
feature maps added at every resolution. Written from the paper and its published facts, not from the reference code.

B batch, C channels (I in, O out), H W pixels, S style width, D width of a vector, K kernel side.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from configs.errors import UserError

SLOPE = 0.2  # of the leaky ReLU
GAIN = sqrt(
    2.0
)  # keeps the variance through the leaky ReLU; folded into the weights, which saves a pass over the image
MAPPING_LR = 0.01  # the mapping network learns this much slower
EPSILON = 1e-6  # the ONNX exporter drops an addition of 1e-8 as if it were one of 0


def of_dtype(value: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """autocast leaves float32 beside the image's bfloat16; where they are equal, no cast must stand in an exported graph."""
    return value if value.dtype == image.dtype else value.to(image.dtype)


def channel_widths(sides: list[int], base: int, most: int) -> list[int]:
    """Channels at each side (Zhao et al. 2021): the same number of values at all sides, up to `most` channels."""
    return [max(1, min(most, 2 * base // side)) for side in sides]


class EqualizedWeight(nn.Module):
    """A weight from N(0, 1), scaled at run time by gain / sqrt(fan-in), so that Adam moves all layers alike (Karras et al. 2018)."""

    def __init__(self, *shape: int, gain: float = 1.0, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(shape) / lr_multiplier)
        self.scale = gain * lr_multiplier / sqrt(self.raw[0].numel())

    def forward(self) -> torch.Tensor:
        """The weight to use: first dimension out, the rest is the fan-in."""
        return self.raw * self.scale


class Dense(nn.Module):
    """Fully connected layer, B x I -> B x O, with leaky ReLU unless `linear`."""

    def __init__(
        self, inputs: int, outputs: int, linear: bool = False, bias: float = 0.0, lr_multiplier: float = 1.0
    ) -> None:
        super().__init__()
        gain = 1.0 if linear else GAIN
        self.weight = EqualizedWeight(outputs, inputs, gain=gain, lr_multiplier=lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.bias_scale, self.activated = gain * lr_multiplier, not linear

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        y_BD = F.linear(x_BD, self.weight(), self.bias * self.bias_scale)
        return F.leaky_relu(y_BD, SLOPE) if self.activated else y_BD


class Blur(nn.Module):
    """The binomial filter [1, 3, 3, 1] in both directions, against aliasing (Zhang 2019). Sides grow by 2 padding - 3, then shrink by the
    stride. `gain` 4 where zeros were put in between. One depthwise convolution: on CPUs 2 to 10 times faster than two.
    """

    kernel_11KK: torch.Tensor
    taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)

    def __init__(self, padding: int = 1, gain: float = 1.0, stride: int = 1) -> None:
        super().__init__()
        line_K = torch.tensor(self.taps) / sum(self.taps)
        self.register_buffer("kernel_11KK", (gain * line_K[:, None] * line_K)[None, None], persistent=False)
        self.padding, self.gain, self.stride = padding, gain, stride
        self.as_sums = False

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.as_sums:
            channels = x_BCHW.shape[1]
            return F.conv2d(
                x_BCHW,
                self.kernel_11KK.expand(channels, -1, -1, -1),
                None,
                self.stride,
                self.padding,
                groups=channels,
            )
        x_BCHW, zero = F.pad(x_BCHW, [self.padding] * 4), x_BCHW.new_zeros(())
        reach = x_BCHW.shape[2] - len(self.taps) + 1
        places = [(tap, slice(start, start + reach, self.stride)) for start, tap in enumerate(self.taps)]
        x_BCHW = sum((tap * x_BCHW[:, :, place] for tap, place in places), zero)
        return (
            self.gain / sum(self.taps) ** 2 * sum((tap * x_BCHW[..., place] for tap, place in places), zero)
        )


class Upsample(Blur):
    """Twice the sides: what zeros in between and then Blur (gain 4) make.

    Each value four times, then [1, 2, 1], is the same and much faster in ONNX Runtime on a CPU than a transposed convolution.
    """

    taps = (1.0, 2.0, 1.0)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return super().forward(F.interpolate(x_BCHW, scale_factor=2.0))


class Depthwise(nn.Module):
    """3 x 3 convolution of each channel by itself; a 1 x 1 convolution after it makes a separable one (Howard et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = EqualizedWeight(channels, 1, 3, 3)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x_BCHW, self.weight(), padding=1, groups=x_BCHW.shape[1])


class Conv(nn.Module):
    """Plain K x K convolution with bias and leaky ReLU; `down` blurs and halves the sides.

    `separable`: 3 x 3 depthwise and then 1 x 1, or with `down` 1 x 1 alone.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, down: bool = False, separable: bool = False
    ) -> None:
        super().__init__()
        kernel = 1 if separable else kernel
        self.weight = EqualizedWeight(outputs, inputs, kernel, kernel, gain=GAIN)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.depthwise = Depthwise(inputs) if separable and not down else nn.Identity()
        self.blur = Blur(padding=1 + kernel // 2, stride=2 if separable else 1) if down else nn.Identity()
        self.stride = 2 if down and not separable else 1
        self.padding = 0 if down else kernel // 2
        self.as_sums = False

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        weight_OIKK, bias_O = self.weight(), self.bias * GAIN
        if self.as_sums:
            weight_OI11 = weight_OIKK[..., 0:1, 0:1]
            y_BCHW = sum((x_BCHW[:, i : i + 1] * weight_OI11[:, i] for i in range(3)), bias_O[:, None, None])
        else:
            y_BCHW = F.conv2d(
                self.depthwise(self.blur(x_BCHW)), weight_OIKK, bias_O, self.stride, self.padding
            )
        return F.leaky_relu(y_BCHW, SLOPE)


class ModulatedConv(nn.Module):
    """Convolution whose input channels a style scales, its outputs brought back to unit variance (Karras et al. 2020, section 2.2);
    `up` doubles the sides.

    3 x 3: scaling the input, convolving with shared weights and scaling the output equals the per-sample weights of the paper, batches
    without grouped convolutions, and exports to ONNX. 1 x 1: per-sample weights are a matrix product, which saves both scalings of the
    image. `separable` as in Conv. The generator computes all layers' scales and factors at once.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style: int,
        kernel: int = 3,
        up: bool = False,
        separable: bool = False,
    ) -> None:
        super().__init__()
        kernel = 1 if separable else kernel
        self.weight = EqualizedWeight(outputs, inputs, kernel, kernel)
        self.affine = Dense(style, inputs, linear=True, bias=1.0)
        self.depthwise = Depthwise(inputs) if separable and not up else None
        self.blur = nn.Identity() if not up else Upsample() if separable else Blur(gain=4.0)
        self.up, self.as_sums = up, False

    def forward(
        self, x_BIHW: torch.Tensor, scale_BI: torch.Tensor, factor_BO: torch.Tensor | None
    ) -> torch.Tensor:
        """factor_BO: what brings the outputs to unit variance; None, for 1 x 1 alone: as they are."""
        weight_OIKK = self.weight()
        if weight_OIKK.shape[2] == 3:
            assert factor_BO is not None
            x_BIHW = x_BIHW * scale_BI[:, :, None, None]
            if self.up:
                y_BOHW = self.blur(F.conv_transpose2d(x_BIHW, weight_OIKK.transpose(0, 1), stride=2))
            else:
                y_BOHW = F.conv2d(x_BIHW, weight_OIKK, padding=1)
            return y_BOHW * of_dtype(factor_BO[:, :, None, None], y_BOHW)
        weight_BOI = weight_OIKK[..., 0, 0] * scale_BI[:, None]
        weight_BOI = weight_BOI if factor_BO is None else weight_BOI * factor_BO[..., None]
        if self.depthwise is not None:
            x_BIHW = self.depthwise(x_BIHW)
        if self.as_sums:
            return (x_BIHW[:, None] * weight_BOI[..., None, None]).sum(2)
        return self.blur((weight_BOI @ x_BIHW.flatten(2)).unflatten(2, x_BIHW.shape[2:]))

    def power(self) -> torch.Tensor:
        """I x O: what a unit of each input's squared scale adds to each output's variance."""
        power_OI = self.weight().square().sum((2, 3))
        if self.depthwise is not None:
            power_OI = power_OI * self.depthwise.weight().square().sum((1, 2, 3))
        return power_OI.T


class SynthesisLayer(nn.Module):
    """Modulated 3 x 3 convolution, noise of learnt strength, bias, leaky ReLU."""

    def __init__(
        self, inputs: int, outputs: int, style: int, up: bool = False, separable: bool = False
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, style, up=up, separable=separable)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self, x_BCHW: torch.Tensor, scale_BI: torch.Tensor, factor_BO: torch.Tensor, noise: bool
    ) -> torch.Tensor:
        """noise: add one random value a pixel, the same for all channels."""
        y_BCHW = self.conv(x_BCHW, scale_BI, factor_BO * GAIN)
        bias_C11 = self.bias[:, None, None]
        if noise:
            bias_C11 = bias_C11 + self.noise_strength * torch.randn_like(y_BCHW[:, :1])
        return F.leaky_relu(y_BCHW + of_dtype(bias_C11 * GAIN, y_BCHW), SLOPE)


class ToRGB(nn.Module):
    """Modulated 1 x 1 convolution to an image, without demodulation."""

    def __init__(self, inputs: int, style: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, style, kernel=1)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x_BCHW: torch.Tensor, scale_BI: torch.Tensor) -> torch.Tensor:
        return self.conv(x_BCHW, scale_BI, None) + self.bias[:, None, None]


class Encoder(nn.Module):
    """Image -> (feature maps by resolution, 4 pixels first; global code B x D before its dropout)."""

    def __init__(self, sides: list[int], widths: list[int], code_dim: int, separable: bool) -> None:
        super().__init__()
        self.from_rgb = Conv(3, widths[-1], kernel=1)
        self.skips = nn.ModuleList(Conv(width, width, separable=separable) for width in widths)
        between = list(zip(widths[:-1], widths[1:], strict=True))
        self.downs = nn.ModuleList(
            Conv(wide, narrow, down=True, separable=separable) for narrow, wide in between
        )
        self.code = Dense(widths[0] * sides[0] ** 2, code_dim)

    def forward(self, image_BCHW: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        x_BCHW = self.from_rgb(image_BCHW)
        features: list[torch.Tensor] = []
        for level in reversed(range(len(self.skips))):
            x_BCHW = self.skips[level](x_BCHW)
            features.insert(0, x_BCHW)
            if level > 0:
                x_BCHW = self.downs[level - 1](x_BCHW)
        return features, self.code(x_BCHW.flatten(1))


class CoModGenerator(nn.Module):
    """The whole generator, for square images of `resolution` pixels, a power of two from 16; other arguments: configs Generator.

    config: the arguments that make this network again, JSON values.
    """

    def __init__(
        self,
        resolution: int,
        channel_base: int = 16_384,
        channel_max: int = 512,
        z_dim: int = 512,
        w_dim: int = 512,
        code_dim: int = 1024,
        mapping_layers: int = 8,
        dropout: float = 0.5,
        separable: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if resolution < 16 or resolution & (resolution - 1):
            raise UserError(
                f"teacher.resolution={resolution}: the generator is made for 16, 32, 64, 128, 256, 512 or 1024 pixels"
            )
        if min(width * w_dim, width * code_dim) < 1:
            raise UserError(
                f"generator.width={width}: nothing would be left of generator.w_dim={w_dim} and generator.code_dim={code_dim}"
            )
        self.config: dict[str, Any] = {
            key: value for key, value in locals().items() if key not in ("self", "__class__")
        }
        sides = [2**power for power in range(2, resolution.bit_length())]
        w_dim, code_dim = round(width * w_dim), round(width * code_dim)
        widths = channel_widths(sides, round(width * channel_base), round(width * channel_max))
        style = w_dim + code_dim
        self.encoder = Encoder(sides, widths, code_dim, separable)
        self.mapping = nn.Sequential(
            *(
                Dense(z_dim if layer == 0 else w_dim, w_dim, lr_multiplier=MAPPING_LR)
                for layer in range(mapping_layers)
            )
        )
        self.start = Dense(code_dim, widths[0] * sides[0] ** 2)
        between = zip(widths[:-1], widths[1:], strict=True)
        self.ups = nn.ModuleList(
            SynthesisLayer(inputs, outputs, style, True, separable) for inputs, outputs in between
        )
        self.layers = nn.ModuleList(
            SynthesisLayer(channels, channels, style, False, separable) for channels in widths
        )
        self.to_rgb = nn.ModuleList(ToRGB(channels, style) for channels in widths)
        self.rgb_upsample = Upsample()

    def forward(self, image_BCHW: torch.Tensor, z_BD: torch.Tensor | None = None) -> torch.Tensor:
        """The edited image, B x 3 x H x W, about [-1, 1] and not clamped.

        image_BCHW: RGB in [-1, 1]. z_BD: standard normal latents, one for all or one an image; None: zeros, and no noise either,
        which makes one edit of one input.
        Random in training mode only (dropout on the code; noise where a latent is given), drawn from torch's global generator.
        """
        noise = self.training and z_BD is not None
        if z_BD is None:
            z_BD = image_BCHW.new_zeros(1, self.config["z_dim"])
        w_BD = self.mapping(z_BD * torch.rsqrt(z_BD.square().mean(1, keepdim=True) + EPSILON))
        features, code_BD = self.encoder(image_BCHW)
        code_BD = F.dropout(code_BD, self.config["dropout"], self.training)
        scales, factors = self._modulation(w_BD, code_BD)
        x_BCHW = self.start(code_BD).view_as(features[0])
        rgb_BCHW: Any = None
        for up, layer, to_rgb, feature_BCHW in zip(
            [None, *self.ups], self.layers, self.to_rgb, features, strict=True
        ):
            if up is not None:
                x_BCHW = up(x_BCHW, scales[up], factors[up], noise)
            x_BCHW = layer(x_BCHW + feature_BCHW, scales[layer], factors[layer], noise)
            colour_BCHW = to_rgb(x_BCHW, scales[to_rgb])
            rgb_BCHW = colour_BCHW if rgb_BCHW is None else self.rgb_upsample(rgb_BCHW) + colour_BCHW
        return rgb_BCHW

    def _modulation(
        self, w_BD: torch.Tensor, code_BD: torch.Tensor
    ) -> tuple[dict[nn.Module, torch.Tensor], dict[nn.Module, torch.Tensor]]:
        """The scales B x I of every SynthesisLayer and ToRGB, and the factors B x O that demodulate each SynthesisLayer.

        The style is [w, code] (co-modulation: Zhao et al. 2021, equation 3). One product for all scales and one for all layers of a
        shape: a few large kernels in the place of dozens that take a GPU longer to start than to run.
        """
        layers: list[Any] = [*self.ups, *self.layers]
        parts = layers + [*self.to_rgb]
        affines = [part.conv.affine for part in parts]
        weight_ID, bias_I = (
            torch.cat([affine.weight() for affine in affines]),
            torch.cat([affine.bias for affine in affines]),
        )
        of_w_ID, of_code_ID = weight_ID.split([w_BD.shape[1], code_BD.shape[1]], 1)
        scale_BI = F.linear(code_BD, of_code_ID) + F.linear(w_BD, of_w_ID, bias_I)
        scales = dict(zip(parts, scale_BI.split([len(affine.bias) for affine in affines], 1), strict=True))
        factors: dict[nn.Module, torch.Tensor] = {}
        powers = {layer: layer.conv.power() for layer in layers}
        for shape in dict.fromkeys(power_IO.shape for power_IO in powers.values()):
            alike = [layer for layer in layers if powers[layer].shape == shape]
            power_LIO, scale_LBI = (
                torch.stack([powers[layer] for layer in alike]),
                torch.stack([scales[layer] for layer in alike]),
            )
            factors |= dict(zip(alike, torch.rsqrt(scale_LBI.square() @ power_LIO + EPSILON), strict=True))
        return scales, factors

    def write_as_sums(self) -> CoModGenerator:
        """From here on blurs and the layers next to the image are sums, which torch.compile fuses with what is around them; returns self.

        The same function. On an H100 at 512 x 512 the compiled float16 network takes a third of the time so, as cuDNN's depthwise
        convolutions are slow; without a compiler, and in ONNX Runtime, sums are the slower form.
        """
        parts: list[Any] = [self.encoder.from_rgb, *(to_rgb.conv for to_rgb in self.to_rgb)]
        for part in parts + [module for module in self.modules() if isinstance(module, Blur)]:
            part.as_sums = True
        return self
