"""models/comodgan.py and layers.py against the per-sample modulation, the published sizes, and themselves."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from configs.errors import UserError
from configs.loader import load
from distill.formats import edit_in_pytorch, read_generator
from models.comodgan import CoModGenerator, ModulatedConv, SynthesisLayer, ToRGB, make_generator
from models.layers import EPSILON, Blur, Conv, Dense, FromRGB, Upsample
from models.miniature.scenes import Look, render, scene
from models.translator import Translator
from tests.helpers import TINY

ROOT = Path(__file__).resolve().parents[1]

LITE = {**TINY, "separable": True, "width": 0.5}


def grouped_modulation(layer: ModulatedConv, x_BIHW: torch.Tensor, style_BS: torch.Tensor) -> torch.Tensor:
    """Karras et al. 2020, equations 1 and 3: one weight a sample, grouped convolution."""
    scale_BI = F.linear(style_BS, layer.affine.weight(), layer.affine.bias)
    weight_OIKK = layer.weight()
    if layer.depthwise is not None:
        weight_OIKK = weight_OIKK * layer.depthwise.weight()[None, :, 0]
    weight_BOIKK = weight_OIKK[None] * scale_BI[:, None, :, None, None]
    weight_BOIKK = weight_BOIKK / (weight_BOIKK.square().sum((2, 3, 4), keepdim=True) + 1e-6).sqrt()
    batch, outputs, inputs, side, _ = weight_BOIKK.shape
    x_1BHW = x_BIHW.reshape(1, batch * inputs, *x_BIHW.shape[2:])
    weight = weight_BOIKK.reshape(batch * outputs, inputs, side, side)
    y_1BHW = F.conv2d(x_1BHW, weight, padding=side // 2, groups=batch)
    return y_1BHW.reshape(batch, outputs, *x_BIHW.shape[2:])


@pytest.mark.parametrize("separable", [False, True])
def test_modulated_convolution_equals_the_grouped_form(separable):
    torch.manual_seed(0)
    layer = ModulatedConv(5, 7, style=6, separable=separable).double()
    x_BIHW = torch.randn(3, 5, 9, 9, dtype=torch.float64)
    style_BS = torch.randn(3, 6, dtype=torch.float64)
    scale_BI = layer.affine(style_BS)
    factor_BO = torch.rsqrt(scale_BI.square() @ layer.power() + EPSILON)
    expected = grouped_modulation(layer, x_BIHW, style_BS)
    torch.testing.assert_close(layer(x_BIHW, scale_BI, factor_BO), expected, rtol=1e-12, atol=1e-12)


def test_demodulated_layer_keeps_unit_variance():
    torch.manual_seed(0)
    layer, style_BS = ModulatedConv(64, 64, style=16), torch.randn(8, 16)
    scale_BI = layer.affine(style_BS)
    factor_BO = torch.rsqrt(scale_BI.square() @ layer.power() + EPSILON)
    y_BCHW = layer(torch.randn(8, 64, 16, 16), scale_BI, factor_BO)
    assert y_BCHW[..., 2:-2, 2:-2].std().item() == pytest.approx(1.0, abs=0.1)


def test_upsampling_is_bilinear_inside():
    """[1, 3, 3, 1] between zeros is linear interpolation at half-pixel centres, zero outside."""
    image_BCHW = torch.rand(2, 3, 8, 8)
    found = Upsample()(image_BCHW)
    expected = F.interpolate(image_BCHW, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    kernel = Blur(gain=4.0).kernel_11KK.expand(3, -1, -1, -1)
    torch.testing.assert_close(found, F.conv_transpose2d(image_BCHW, kernel, stride=2, padding=1, groups=3))


@pytest.mark.parametrize("separable", [False, True])
def test_up_layer_doubles_the_sides_and_commutes_with_shifts(separable):
    torch.manual_seed(0)
    layer = SynthesisLayer(4, 4, style=3, up=True, separable=separable).double()
    x_BCHW = torch.zeros(1, 4, 16, 16, dtype=torch.float64)
    modulation = torch.randn(2, 1, 4, dtype=torch.float64)
    x_BCHW[..., 4:10, 4:10] = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    y_BCHW = layer(x_BCHW, *modulation, noise=False)
    assert y_BCHW.shape == (1, 4, 32, 32)
    shifted = layer(x_BCHW.roll((1, 2), (2, 3)), *modulation, noise=False)
    torch.testing.assert_close(shifted, y_BCHW.roll((2, 4), (2, 3)))


# the last: 3 channels at the finest side, as of an image
@pytest.mark.parametrize("options", [TINY, LITE, {**TINY, "channel_base": 48}])
@pytest.mark.parametrize("latents", [None, 1, 3])
def test_the_whole_network_equals_its_layers_one_by_one(options, latents):
    """All styles computed at once, against each layer with its own style and its own weights a sample.

    And the same network written as sums.
    """
    torch.manual_seed(0)
    generator = CoModGenerator(32, **options).double().eval()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter)
    image_BCHW = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    z_BD = None if latents is None else torch.randn(latents, options["z_dim"], dtype=torch.float64)
    expected = layer_by_layer(generator, image_BCHW, z_BD)
    torch.testing.assert_close(generator(image_BCHW, z_BD), expected)
    torch.testing.assert_close(generator.write_as_sums()(image_BCHW, z_BD), expected)


def layer_by_layer(
    generator: CoModGenerator, image_BCHW: torch.Tensor, z_BD: torch.Tensor | None
) -> torch.Tensor:
    z_BD = torch.zeros(1, generator.config["z_dim"], dtype=torch.float64) if z_BD is None else z_BD
    z_BD = z_BD / (z_BD.square().mean(1, keepdim=True) + EPSILON).sqrt()
    w_BD = generator.mapping(z_BD).expand(len(image_BCHW), -1)
    features, code_BD = generator.encoder(image_BCHW)
    style_BS = torch.cat([w_BD, code_BD], 1)

    def modulated(conv: ModulatedConv, x_BCHW: torch.Tensor, demodulate: bool) -> torch.Tensor:
        scale_BI = conv.affine(style_BS)
        power_BO = scale_BI.square() @ conv.power() + EPSILON if demodulate else torch.ones(len(x_BCHW), 3)
        x_BCHW = x_BCHW * scale_BI[:, :, None, None]
        if conv.depthwise:
            x_BCHW = conv.depthwise(x_BCHW)
        weight_OIKK = conv.weight()
        if conv.up and weight_OIKK.shape[2] == 3:
            x_BCHW = F.conv_transpose2d(x_BCHW, weight_OIKK.transpose(0, 1), stride=2)
        else:
            x_BCHW = F.conv2d(x_BCHW, weight_OIKK, padding=weight_OIKK.shape[2] // 2)
        x_BCHW = conv.blur(x_BCHW)
        return x_BCHW / power_BO.sqrt()[:, :, None, None]

    def synthesis(layer: SynthesisLayer, x_BCHW: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(modulated(layer.conv, x_BCHW, True) + layer.bias[:, None, None], 0.2) * 2**0.5

    x_BCHW = generator.start(code_BD).view_as(features[0]) + features[0]
    rgb_BCHW = 0
    for level, (layer, to_rgb) in enumerate(zip(generator.layers, generator.to_rgb, strict=True)):
        if level:
            x_BCHW = synthesis(generator.ups[level - 1], x_BCHW) + features[level]
            rgb_BCHW = F.interpolate(F.pad(rgb_BCHW, [1] * 4), scale_factor=2, mode="bilinear")
            rgb_BCHW = rgb_BCHW[..., 2:-2, 2:-2]
        x_BCHW = synthesis(layer, x_BCHW)
        rgb_BCHW = rgb_BCHW + modulated(to_rgb.conv, x_BCHW, False) + to_rgb.bias[:, None, None]
    return rgb_BCHW


@pytest.mark.parametrize(("resolution", "millions"), [(256, 79.2), (512, 79.8)])
def test_parameter_count_is_the_published_one(resolution, millions):
    with torch.device("meta"):
        generator = CoModGenerator(resolution)
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("resolution", [128, 256, 512, 1024])
def test_lite_has_less_than_a_tenth_of_the_arithmetic(resolution):
    lite = asdict(load(["generator=comodgan_lite", "preset=paper"]).generator)
    assert flops(resolution, **lite) < flops(resolution) / 10


def flops(resolution: int, **options) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        CoModGenerator(resolution, **options).eval()(torch.zeros(1, 3, resolution, resolution))
    return counter.get_total_flops()


def test_arithmetic_is_the_published_one():
    assert flops(256) / 1e9 == pytest.approx(180, rel=0.01)
    assert flops(512) / 1e9 == pytest.approx(239, rel=0.01)


@pytest.mark.parametrize("options", [TINY, LITE])
@pytest.mark.parametrize("resolution", [16, 64, 128, 256])
def test_shapes(resolution, options):
    image_BCHW = torch.rand(2, 3, resolution, resolution) * 2 - 1
    assert CoModGenerator(resolution, **options).eval()(image_BCHW).shape == image_BCHW.shape


def test_a_width_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="generator.width"):
        CoModGenerator(16, **TINY, width=0.01)


@pytest.mark.parametrize("resolution", [8, 100, 0])
def test_other_sizes_are_refused(resolution):
    with pytest.raises(UserError, match="resolution"):
        CoModGenerator(resolution)


def test_evaluation_is_deterministic_and_per_image():
    torch.manual_seed(0)
    generator = CoModGenerator(32, **TINY).eval()
    image_BCHW = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        together = generator(image_BCHW)
        assert torch.equal(together, generator(image_BCHW))
        torch.testing.assert_close(together[2:3], generator(image_BCHW[2:3]), rtol=1e-4, atol=1e-4)


def test_latent_and_noise_only_act_where_given():
    torch.manual_seed(0)
    generator = CoModGenerator(16, **TINY, dropout=0.0)
    image_BCHW = torch.rand(2, 3, 16, 16)
    z_BD = torch.randn(2, 8)
    assert torch.equal(generator(image_BCHW), generator(image_BCHW))
    assert not torch.allclose(generator(image_BCHW), generator(image_BCHW, z_BD))
    with torch.no_grad():
        generator.layers[-1].noise_strength.fill_(1.0)
    assert torch.equal(generator(image_BCHW), generator(image_BCHW))
    assert not torch.allclose(generator(image_BCHW, z_BD), generator(image_BCHW, z_BD))
    generator.eval()
    assert torch.equal(generator(image_BCHW, z_BD), generator(image_BCHW, z_BD))


@pytest.mark.parametrize("options", [TINY, LITE])
def test_every_parameter_learns(options):
    torch.manual_seed(0)
    generator = CoModGenerator(16, **options)
    generator(torch.rand(4, 3, 16, 16), torch.randn(4, 8)).abs().mean().backward()
    for parameter in generator.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_config_makes_the_same_network():
    generator = CoModGenerator(16, **TINY)
    again = CoModGenerator(**generator.config)
    again.load_state_dict(generator.state_dict())
    assert again.config == generator.config


def test_the_configuration_makes_a_network_whose_latent_is_as_wide_as_w():
    sizes = load(["preset=miniature"]).generator
    config = make_generator(16, sizes).config
    assert config == {"resolution": 16, "z_dim": sizes.w_dim, **asdict(sizes)}


def test_the_shipped_weights_and_the_shipped_graph_are_one_network():
    """This code alone decides what the weights mean; the graph was written when they were trained."""
    folder = ROOT / "models" / "miniature" / "generator"
    pictures = [np.asarray(render(scene(3_000_000 + seed), Look("summer"))) for seed in range(4)]
    pictures_BHWC = np.stack(pictures)
    generator, _ = read_generator(folder / "generator.safetensors")
    expected = edit_in_pytorch(generator, pictures_BHWC).astype(int)
    edits = Translator(folder / "generator.onnx", threads=1)(pictures_BHWC).astype(int)
    assert np.abs(edits - expected).max() <= 2 and np.abs(expected - pictures_BHWC).mean() > 20


@pytest.mark.parametrize("activated", [True, False])
def test_dense_is_the_closed_form(activated):
    """N(0, 1) / sqrt(fan-in), He's gain, and a slower layer's weight kept divided by its multiplier.

    Karras et al. 2018, section 4.1, and 2020, appendix B.
    """
    torch.manual_seed(0)
    layer = Dense(6, 4, linear=not activated, bias=0.5, lr_multiplier=0.01).double()
    x_BD = torch.randn(3, 6, dtype=torch.float64)
    gain = 2**0.5 if activated else 1.0
    assert layer.weight.raw.std() > 50  # so that Adam's steps are that much smaller beside it
    expected = x_BD @ (layer.weight.raw * 0.01 * gain / 6**0.5).T + gain * 0.5
    if activated:
        expected = torch.where(expected > 0, expected, 0.2 * expected)
    torch.testing.assert_close(layer(x_BD), expected)


@pytest.mark.parametrize("down", [False, True])
def test_conv_is_the_closed_form(down):
    torch.manual_seed(0)
    layer = Conv(2, 3, down=down).double()
    x_BCHW = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    torch.nn.init.normal_(layer.bias)
    weight_OIKK = layer.weight.raw * 2**0.5 / 18**0.5
    line_K = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    blur_2144 = (line_K[:, None] * line_K).expand(2, 1, 4, 4)
    blurred_BCHW = F.conv2d(x_BCHW, blur_2144, padding=2, groups=2) if down else F.pad(x_BCHW, [1] * 4)
    expected = F.conv2d(blurred_BCHW, weight_OIKK, stride=2 if down else 1)
    expected = expected + 2**0.5 * layer.bias[:, None, None]
    torch.testing.assert_close(layer(x_BCHW), torch.where(expected > 0, expected, 0.2 * expected))


def test_what_is_random_while_training_and_how_slowly_the_mapping_learns():
    torch.manual_seed(0)
    generator = CoModGenerator(16, **TINY, dropout=0.5).train()
    image_BCHW = torch.randn(2, 3, 16, 16)
    assert not torch.equal(generator(image_BCHW), generator(image_BCHW))
    generator.config["dropout"] = 0.0
    assert torch.equal(generator(image_BCHW), generator(image_BCHW))
    assert all(layer.weight.scale == pytest.approx(0.01 * 2**0.5 / 8**0.5) for layer in generator.mapping)
    affines = [module.affine for module in generator.modules() if isinstance(module, ModulatedConv)]
    assert affines
    for affine in affines:  # at first a style scales nothing
        assert (affine(torch.zeros(1, 8 + 16)) == 1).all()


def test_patches_are_read_and_written_as_blocks_of_pixels():
    """FromRGB is a 1 x 1 convolution of space to depth; ToRGB gives depth to space."""
    torch.manual_seed(0)
    image_BCHW = torch.randn(2, 3, 16, 16)
    from_rgb = FromRGB(5, patch=2)
    weight_OI = from_rgb.weight().flatten(1)[..., None, None]
    expected_BCHW = F.leaky_relu(F.conv2d(F.pixel_unshuffle(image_BCHW, 2), weight_OI), 0.2)
    torch.testing.assert_close(from_rgb(image_BCHW), expected_BCHW)

    to_rgb = ToRGB(5, style=4, patch=2)
    scale_BI = torch.ones(2, 5)
    y_BCHW = to_rgb(expected_BCHW, scale_BI)
    weight_OI = to_rgb.conv.weight()[..., 0, 0]
    place = torch.einsum("oi,bi->bo", weight_OI, expected_BCHW[:, :, 3, 6])  # colour by colour, row by row
    torch.testing.assert_close(y_BCHW[:, :, 6:8, 12:14], place.view(2, 3, 2, 2))


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_a_generator_of_patches_has_fewer_levels_and_the_same_side(patch):
    generator = CoModGenerator(32, **TINY, patch=patch).eval()
    assert generator(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    assert len(generator.layers) == {1: 4, 2: 3, 4: 2}[patch]


@pytest.mark.parametrize("patch", [3, 8])
def test_patches_that_leave_no_network_are_refused(patch):
    with pytest.raises(UserError, match="generator.patch"):
        CoModGenerator(32, **TINY, patch=patch)
