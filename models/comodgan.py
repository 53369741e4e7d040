"""The distilled generator: Co-Mod-GAN (Zhao et al. 2021), image in, edited image out, one pass.

    image -> Encoder -> feature maps of every resolution, and one global code  (a place: P x P pixels)
    z -> mapping network -> w
    [w, code] -> a scale for every channel of every layer (co-modulation)
    code -> 4 x 4 pixels -> at every resolution: up, add the feature map, modulated convolution, ToRGB
    the images of ToRGB, upsampled and added -> edited image

It is a StyleGAN2 synthesis network (Karras et al. 2020) whose styles come from the latent *and*
from the encoder. Written from the papers and their published facts, not from the reference code.

Shapes: B batch, C channels (I input, O output), H W pixels, N = H W, S style width, D width of a
vector, K kernel side, L layers of one shape, P patch side.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import UserError
from configs.schema import Generator
from models.layers import (
    EPSILON,
    GAIN,
    SLOPE,
    Blur,
    Conv,
    Dense,
    Depthwise,
    EqualizedWeight,
    FromRGB,
    Upsample,
    cast_like,
    channel_widths,
)

MAPPING_LR = 0.01  # the mapping network learns this much slower (Karras et al. 2019, appendix C)


def make_generator(resolution: int, sizes: Generator) -> CoModGenerator:
    """The generator of these sizes with random weights, for images of `resolution` pixels a side.

    The latent z is as wide as w.
    """
    return CoModGenerator(resolution, z_dim=sizes.w_dim, **asdict(sizes))


# ---- layers ----


class ModulatedConv(nn.Module):
    """Convolution by weights that a style scales, its outputs brought back to unit variance.

    Karras et al. 2020, section 2.2, for input channel i, output channel o and place k of the
    kernel:

        w'_oik = s_i w_oik                                      (equation 1)
        w''_oik = w'_oik / sqrt(sum_ik w'_oik^2 + epsilon)      (equation 3)

    The style s, B x I, and the factor 1 / sqrt(...), B x O, come from outside: CoModGenerator
    computes those of all layers at once.

    3 x 3: the input times s, one convolution by the shared weights w, the output times the factor.
    That equals a convolution by each sample's own w'', batches without grouped convolutions, and
    exports to ONNX. 1 x 1: each sample's own w'' in a matrix product, which saves the two products
    over the image.
    `up` doubles the sides. `separable`: 3 x 3 depthwise and then 1 x 1; with `up` 1 x 1 alone.
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
        self.affine = Dense(style, inputs, linear=True, bias=1.0)  # [w, code] -> s, which starts near 1
        self.depthwise = Depthwise(inputs) if separable and not up else None
        self.blur: nn.Module = nn.Identity()
        if up:
            self.blur = Upsample() if separable else Blur(gain=4.0)
        self.up = up
        self.as_sums = False  # see CoModGenerator.write_as_sums

    def forward(self, x_BIHW: Tensor, scale_BI: Tensor, factor_BO: Tensor | None) -> Tensor:
        """The output, B x O x H x W, or with `up` B x O x 2H x 2W.

        scale_BI: the style s. factor_BO: brings the outputs to unit variance; with None, which is
        for 1 x 1 alone, they stay as they are.
        """
        weight_OIKK = self.weight()
        if weight_OIKK.shape[2] == 1:
            return self._with_sample_weights(x_BIHW, weight_OIKK[..., 0, 0], scale_BI, factor_BO)
        assert factor_BO is not None
        return self._with_shared_weights(x_BIHW, weight_OIKK, scale_BI, factor_BO)

    def _with_shared_weights(
        self, x_BIHW: Tensor, weight_OIKK: Tensor, scale_BI: Tensor, factor_BO: Tensor
    ) -> Tensor:
        x_BIHW = x_BIHW * scale_BI[:, :, None, None]  # equation 1
        if self.up:
            weight_IOKK = weight_OIKK.transpose(0, 1)
            y_BOHW = F.conv_transpose2d(x_BIHW, weight_IOKK, stride=2)  # B x O x (2H + 1) x (2W + 1)
            y_BOHW = self.blur(y_BOHW)  # B x O x 2H x 2W
        else:
            y_BOHW = F.conv2d(x_BIHW, weight_OIKK, padding=1)
        return y_BOHW * cast_like(factor_BO[:, :, None, None], y_BOHW)  # equation 3

    def _with_sample_weights(
        self, x_BIHW: Tensor, weight_OI: Tensor, scale_BI: Tensor, factor_BO: Tensor | None
    ) -> Tensor:
        weight_BOI = weight_OI * scale_BI[:, None]  # equation 1
        if factor_BO is not None:
            weight_BOI = weight_BOI * factor_BO[..., None]  # equation 3
        if self.depthwise is not None:
            x_BIHW = self.depthwise(x_BIHW)
        if self.as_sums:
            return (x_BIHW[:, None] * weight_BOI[..., None, None]).sum(2)  # over B x O x I x H x W
        y_BON = weight_BOI @ x_BIHW.flatten(2)
        y_BOHW = y_BON.unflatten(2, x_BIHW.shape[2:])
        return self.blur(y_BOHW)  # with up: B x O x 2H x 2W

    def power(self) -> Tensor:
        """sum_k w_oik^2, I x O: what input i adds to the variance of output o where s_i is 1."""
        power_OI = self.weight().square().sum((2, 3))
        if self.depthwise is not None:  # w_oik is then the product of a 1 x 1 and a depthwise weight
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

    def forward(self, x_BIHW: Tensor, scale_BI: Tensor, factor_BO: Tensor, noise: bool) -> Tensor:
        """The output, B x O x H x W, or with `up` B x O x 2H x 2W.

        noise: add one random value a pixel, the same for all channels.
        """
        y_BOHW = self.conv(x_BIHW, scale_BI, factor_BO * GAIN)
        offset = self.bias[:, None, None]  # O x 1 x 1
        if noise:
            offset = offset + self.noise_strength * torch.randn_like(y_BOHW[:, :1])  # B x O x H x W
        return F.leaky_relu(y_BOHW + cast_like(offset * GAIN, y_BOHW), SLOPE)


class ToRGB(nn.Module):
    """Modulated 1 x 1 convolution to an image, without demodulation: P x P pixels of each place."""

    def __init__(self, inputs: int, style: int, patch: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3 * patch**2, style, kernel=1)
        self.bias = nn.Parameter(torch.zeros(3 * patch**2))
        self.patch = patch

    def forward(self, x_BIHW: Tensor, scale_BI: Tensor) -> Tensor:
        """B x 3 x PH x PW."""
        rgb_BCHW = self.conv(x_BIHW, scale_BI, None) + self.bias[:, None, None]
        return rgb_BCHW if self.patch == 1 else F.pixel_shuffle(rgb_BCHW, self.patch)


# ---- networks ----


class Encoder(nn.Module):
    """The input image as feature maps of every resolution and one global code.

    sides: of the feature maps, from 4 places to those of the image's patches. widths: their channels.
    """

    def __init__(
        self, sides: list[int], widths: list[int], code_dim: int, separable: bool, patch: int
    ) -> None:
        super().__init__()
        self.from_rgb = FromRGB(widths[-1], patch)
        self.skips = nn.ModuleList()
        for width in widths:
            self.skips.append(Conv(width, width, separable=separable))
        self.downs = nn.ModuleList()
        for coarse, fine in pairwise(widths):
            self.downs.append(Conv(fine, coarse, down=True, separable=separable))
        self.code = Dense(widths[0] * sides[0] ** 2, code_dim)

    def forward(self, image_BCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """The feature maps, that of 4 x 4 places first, and the code B x D before its dropout.

        The feature map of a level is B x widths[level] x sides[level] x sides[level].
        """
        x_BCHW = self.from_rgb(image_BCHW)  # B x widths[-1] x sides[-1] x sides[-1]
        features = []
        for level in reversed(range(len(self.skips))):
            x_BCHW = self.skips[level](x_BCHW)  # B x widths[level] x sides[level] x sides[level]
            features.append(x_BCHW)
            if level > 0:
                x_BCHW = self.downs[level - 1](x_BCHW)  # B x widths[level - 1] x half the sides each
        features.reverse()
        code_BD = self.code(x_BCHW.flatten(1))  # from B x (widths[0] 4 4)
        return features, code_BD


class CoModGenerator(nn.Module):
    """The generator: a square image and a latent in, the edited image out.

    resolution: side of the images in pixels, a power of two from 16. z_dim: width of the latent.
    Configs' Generator explains the other arguments. UserError for a resolution or width that makes
    no network. Its attribute `config` has the arguments that make this network again, JSON values.
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
        patch: int = 1,
    ) -> None:
        super().__init__()
        _refuse_bad_sizes(resolution, patch, width, w_dim, code_dim)
        self.config: dict[str, Any] = {
            "resolution": resolution,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "z_dim": z_dim,
            "w_dim": w_dim,
            "code_dim": code_dim,
            "mapping_layers": mapping_layers,
            "dropout": dropout,
            "separable": separable,
            "width": width,
            "patch": patch,
        }
        finest = resolution // patch
        sides = [2**power for power in range(2, finest.bit_length())]  # 4, 8, ..., finest
        widths = channel_widths(sides, round(width * channel_base), round(width * channel_max))
        w_dim = round(width * w_dim)
        code_dim = round(width * code_dim)
        style = w_dim + code_dim
        self.encoder = Encoder(sides, widths, code_dim, separable, patch)
        self.mapping = nn.Sequential()
        for layer in range(mapping_layers):
            inputs = z_dim if layer == 0 else w_dim
            self.mapping.append(Dense(inputs, w_dim, lr_multiplier=MAPPING_LR))
        self.start = Dense(code_dim, widths[0] * sides[0] ** 2)
        self.ups = nn.ModuleList()  # ups[level] leads from resolution `level` to the next
        for coarse, fine in pairwise(widths):
            self.ups.append(SynthesisLayer(coarse, fine, style, up=True, separable=separable))
        self.layers = nn.ModuleList()
        for channels in widths:
            self.layers.append(SynthesisLayer(channels, channels, style, separable=separable))
        self.to_rgb = nn.ModuleList([ToRGB(channels, style, patch) for channels in widths])
        self.rgb_upsample = Upsample()

    def forward(self, image_BCHW: Tensor, z_BD: Tensor | None = None) -> Tensor:
        """The edited image, B x 3 x H x W, about [-1, 1] and not clamped.

        image_BCHW: RGB in [-1, 1]. z_BD: standard normal latents, one for all or one an image. None
        is zeros, and no noise either, so that one input has one edit.
        Random in training mode only (dropout on the code; noise where a latent is given), drawn
        from torch's global generator.
        """
        noise = self.training and z_BD is not None
        if z_BD is None:
            z_BD = image_BCHW.new_zeros(1, self.config["z_dim"])  # one for all images
        z_BD = z_BD * torch.rsqrt(z_BD.square().mean(1, keepdim=True) + EPSILON)  # length sqrt(D)
        w_BD = self.mapping(z_BD)  # B x w_dim, or 1 x w_dim for all images
        features, code_BD = self.encoder(image_BCHW)  # maps B x C x 4 x 4 to B x C x H x W; B x code_dim
        code_BD = F.dropout(code_BD, self.config["dropout"], self.training)
        scales = self._scales(w_BD, code_BD)  # by layer, B x I
        factors = self._factors(scales)  # by layer, B x O

        first = self.layers[0]
        to_rgb = self.to_rgb[0]
        x_BCHW = self.start(code_BD).view_as(features[0]) + features[0]  # B x C x 4 x 4
        x_BCHW = first(x_BCHW, scales[first], factors[first], noise)  # the shape stays
        rgb_BCHW = to_rgb(x_BCHW, scales[to_rgb])  # B x 3 x 4P x 4P
        for level in range(1, len(self.layers)):
            up = self.ups[level - 1]
            layer = self.layers[level]
            to_rgb = self.to_rgb[level]
            x_BCHW = up(x_BCHW, scales[up], factors[up], noise)  # B x C x 2H x 2W
            x_BCHW = x_BCHW + features[level]  # the shape stays
            x_BCHW = layer(x_BCHW, scales[layer], factors[layer], noise)  # the shape stays
            colour_BCHW = to_rgb(x_BCHW, scales[to_rgb])  # B x 3 x 2PH x 2PW
            rgb_BCHW = self.rgb_upsample(rgb_BCHW) + colour_BCHW
        return rgb_BCHW

    def _scales(self, w_BD: Tensor, code_BD: Tensor) -> dict[nn.Module, Tensor]:
        """The style s of every SynthesisLayer and ToRGB, B x I, which scales its input channels.

        Co-modulation (Zhao et al. 2021, equation 3): s = A [w, code] + b, each layer by an A and a
        b of its own. The A of all layers are stacked into one: a single large product in the place
        of dozens that take a GPU longer to start than to run. It is split by columns instead, A [w,
        code] = A_w w + A_code code, as one w often serves all images.
        """
        parts: list[Any] = [*self.ups, *self.layers, *self.to_rgb]
        affines = [part.conv.affine for part in parts]
        matrix_IS = torch.cat([affine.weight() for affine in affines])  # I: the inputs of all parts
        bias_I = torch.cat([affine.bias for affine in affines])
        matrix_w_ID, matrix_code_ID = matrix_IS.split([w_BD.shape[1], code_BD.shape[1]], dim=1)
        scale_BI = F.linear(code_BD, matrix_code_ID) + F.linear(w_BD, matrix_w_ID, bias_I)

        scales: dict[nn.Module, Tensor] = {}
        inputs = [len(affine.bias) for affine in affines]
        for part, part_BI in zip(parts, scale_BI.split(inputs, dim=1), strict=True):
            scales[part] = part_BI
        return scales

    def _factors(self, scales: dict[nn.Module, Tensor]) -> dict[nn.Module, Tensor]:
        """What brings the outputs of each SynthesisLayer to unit variance, B x O.

        Karras et al. 2020, section 2.2. The variance of output o, of inputs of unit variance, is

            sum_ik (s_i w_oik)^2 = sum_i s_i^2 (sum_k w_oik^2)      (equation 2, squared)

        which is a matrix product of the squared scales with ModulatedConv.power(). Layers of one
        shape share one product: fewer kernels for a GPU to start.
        """
        layers: list[Any] = [*self.ups, *self.layers]
        powers = {layer: layer.conv.power() for layer in layers}
        layers_of_shape: dict[torch.Size, list[nn.Module]] = {}
        for layer in layers:
            layers_of_shape.setdefault(powers[layer].shape, []).append(layer)

        factors: dict[nn.Module, Tensor] = {}
        for alike in layers_of_shape.values():
            power_LIO = torch.stack([powers[layer] for layer in alike])
            scale_LBI = torch.stack([scales[layer] for layer in alike])
            variance_LBO = scale_LBI.square() @ power_LIO
            factor_LBO = torch.rsqrt(variance_LBO + EPSILON)  # equation 3
            for layer, factor_BO in zip(alike, factor_LBO, strict=True):
                factors[layer] = factor_BO
        return factors

    def write_as_sums(self) -> CoModGenerator:
        """Compute blurs and the layers next to the image as sums from here on; returns self.

        The same function; torch.compile fuses sums with what is around them. On an H100 at 512 x
        512 the compiled float16 network takes a third of the time so, as cuDNN's depthwise
        convolutions are slow. Without a compiler, and in ONNX Runtime, sums are the slower form.
        """
        parts: list[Any] = [self.encoder.from_rgb]
        for to_rgb in self.to_rgb:
            parts.append(to_rgb.conv)
        for module in self.modules():
            if isinstance(module, Blur):
                parts.append(module)
        for part in parts:
            part.as_sums = True
        return self


def _refuse_bad_sizes(resolution: int, patch: int, width: float, w_dim: int, code_dim: int) -> None:
    if resolution < 16 or resolution & (resolution - 1):
        raise UserError(
            f"distill.resolution={resolution}: the generator is made for 16, 32, 64, 128, 256, 512 or 1024 "
            "pixels"
        )
    if patch & (patch - 1) or resolution // patch < 8:
        raise UserError(
            f"generator.patch={patch}: a power of two, at most an eighth of the picture's {resolution} pixels"
        )
    if min(width * w_dim, width * code_dim) < 1:
        raise UserError(
            f"generator.width={width}: nothing would be left of generator.w_dim={w_dim} and "
            f"generator.code_dim={code_dim}"
        )
