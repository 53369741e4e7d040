"""distill/growth.py: a grown generator begins as the smaller one."""

import pytest
import torch

from configs.errors import UserError
from distill.formats import write_weights
from distill.growth import can_grow, grow
from distill.networks import begin
from models.comodgan import CoModGenerator
from tests.helpers import TINY


def generator(seed, **changes):
    torch.manual_seed(seed)
    return CoModGenerator(32, **{**TINY, **changes}).eval()


def trained(**changes):
    """With biases and noise that are not zero, as training leaves them."""
    small = generator(0, **changes)
    with torch.no_grad():
        for parameter in small.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return small


@pytest.mark.parametrize("separable", [False, True])
def test_a_wider_one_gives_the_same_edits(separable):
    small = trained(separable=separable)
    sizes = small.config
    large = generator(1, separable=separable, channel_base=2 * sizes["channel_base"], channel_max=24)
    image_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    grow(small, large)
    assert sum(p.numel() for p in large.parameters()) > 1.5 * sum(p.numel() for p in small.parameters())
    torch.testing.assert_close(large(image_BCHW), small(image_BCHW), rtol=1e-4, atol=1e-5)
    large(image_BCHW).square().sum().backward()
    for name, parameter in large.named_parameters():  # what is new learns too
        if "noise" not in name and "mapping" not in name:
            assert parameter.grad.abs().sum() > 0, name


def test_with_patches_the_finest_image_left_is_repeated_over_them():
    small = trained()
    large = generator(1, patch=2)
    grow(small, large)
    features_BCHW = torch.randn(2, len(large.layers[2].bias), 16, 16)
    scale_BI = torch.randn(2, features_BCHW.shape[1])
    of_small_BCHW = small.to_rgb[2](features_BCHW, scale_BI)
    expected_BCHW = of_small_BCHW.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(large.to_rgb[2](features_BCHW, scale_BI), expected_BCHW)
    assert torch.equal(large.ups[1].bias, small.ups[1].bias)


def test_what_cannot_begin_as_the_other_is_refused(tmp_path):
    small = generator(0)
    for changes in ({"code_dim": 8}, {"channel_max": 4}, {"separable": True}):
        assert not can_grow(small, generator(1, **changes))
    assert not can_grow(generator(0, patch=2), small)
    path = tmp_path / "small.safetensors"
    write_weights(path, small, {"config": small.config})
    with pytest.raises(UserError, match="set generator.\\* to match"):
        begin(generator(1, code_dim=8), str(path))
