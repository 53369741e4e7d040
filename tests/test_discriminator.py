"""models/discriminator.py and the adversarial loss against closed forms, finite differences and the published size."""

from math import log

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from configs.schema import Distill
from distill.losses import Adversary, distillation_loss, gradient_penalty
from models.discriminator import Discriminator, _Block, minibatch_deviation


@pytest.mark.parametrize("resolution", [256, 512])
def test_size_is_the_published_one(resolution):
    with torch.device("meta"):
        network = Discriminator(resolution)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(
        28.9, rel=0.005
    )


def test_it_judges_edit_and_input_together_and_every_parameter_learns():
    torch.manual_seed(0)
    network = Discriminator(16, 64, 8)
    input_BCHW, edit_BCHW = torch.rand(2, 4, 3, 16, 16) * 2 - 1
    logits_B = network(input_BCHW, edit_BCHW)
    assert logits_B.shape == (4,)
    assert not torch.allclose(network(input_BCHW.flip(0), edit_BCHW), logits_B)
    logits_B.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_the_way_around_a_block_is_the_blurred_image():
    """With the convolutions silent, a block is its skip alone: filter [1, 3, 3, 1], every second place, 1 x 1."""
    torch.manual_seed(0)
    block, x_BCHW = _Block(2, 3), torch.randn(1, 2, 8, 8)
    nn.init.zeros_(block.convs[1].weight.raw)
    line_K = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    blurred = torch.stack(
        [
            conv2d(plane[None, None], (line_K[:, None] * line_K)[None, None], padding=1)[0, 0]
            for plane in x_BCHW[0]
        ]
    )
    expected = torch.einsum("oi,ihw->ohw", block.around()[:, :, 0, 0], blurred[:, ::2, ::2]) / 2**0.5
    torch.testing.assert_close(block(x_BCHW)[0], expected)


def test_deviation_is_that_of_the_group():
    """Images 0 and 2 are one group, 1 and 3 the other: +-1 deviates by 1, equal images by nothing."""
    x_BCHW = torch.zeros(8, 2, 4, 4)
    x_BCHW[[0, 4]], x_BCHW[[2, 6]] = 1.0, -1.0  # of 8, groups are 0 2 4 6 and 1 3 5 7
    found = minibatch_deviation(x_BCHW)
    assert found.shape == (8, 1, 4, 4)
    torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([1.0, 0.0] * 4), rtol=0, atol=2e-3)
    assert minibatch_deviation(x_BCHW[:6]).shape == (6, 1, 4, 4)  # groups of 3
    assert minibatch_deviation(x_BCHW[:1]).max() < 2e-3


class Quadratic(nn.Module):
    """logit = sum(a edit^2) / 2 + sum(b input edit): its gradient by the edit is a edit + b input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (
            nn.Parameter(torch.tensor(0.7, dtype=torch.float64)),
            nn.Parameter(torch.tensor(-0.3, dtype=torch.float64)),
        )

    def forward(self, input_BCHW, edit_BCHW):
        return (self.a * edit_BCHW.square() / 2 + self.b * input_BCHW * edit_BCHW).sum((1, 2, 3))


def test_r1_and_its_own_gradient_are_the_closed_forms():
    torch.manual_seed(0)
    network = Quadratic()
    input_BCHW, edit_BCHW = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    penalty = gradient_penalty(network, input_BCHW, edit_BCHW)
    by_edit = 0.7 * edit_BCHW - 0.3 * input_BCHW
    torch.testing.assert_close(penalty.detach(), by_edit.square().sum() / 5)
    penalty.backward()
    torch.testing.assert_close(network.a.grad, 2 * (by_edit * edit_BCHW).sum() / 5)
    torch.testing.assert_close(network.b.grad, 2 * (by_edit * input_BCHW).sum() / 5)


def test_r1_of_the_real_network_is_that_of_finite_differences():
    torch.manual_seed(0)
    network = Discriminator(8, 8, 4).double()
    input_BCHW, edit_BCHW = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    norm, tiny = 0.0, 1e-6
    with torch.no_grad():
        for place in range(edit_BCHW.numel()):
            step = torch.zeros_like(edit_BCHW).flatten()
            step[place] = tiny
            step = step.view_as(edit_BCHW)
            norm += (
                (network(input_BCHW, edit_BCHW + step) - network(input_BCHW, edit_BCHW - step)).sum()
                / (2 * tiny)
            ).square()
    torch.testing.assert_close(
        gradient_penalty(network, input_BCHW, edit_BCHW).detach(), norm / 2, rtol=1e-5, atol=0
    )


class Fixed(nn.Module):
    """The logit is the edit's first value times a parameter of 1."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, input_BCHW, edit_BCHW):
        return self.one * edit_BCHW[:, 0, 0, 0]


def test_the_losses_are_the_logistic_ones_and_r1_comes_lazily():
    """log(1 + e^-x) at x = log 3 is log(4/3), log(1 + e^x) is log 4; the squared gradient by the edit is 1."""
    high, low = torch.full((2, 3, 4, 4), log(3.0)), torch.full((2, 3, 4, 4), -log(3.0))
    adversary = Adversary(Fixed(), Distill(r1=10.0, r1_every=16))
    assert adversary.fooled(low, high).item() == pytest.approx(log(4 / 3))
    for step, r1 in ((0, 80.0), (1, 0.0), (15, 0.0), (16, 80.0)):
        assert adversary.loss(low, high, low, step).item() == pytest.approx(2 * log(4 / 3) + r1, rel=1e-6)
        assert adversary.loss(low, low, high, step).item() == pytest.approx(2 * log(4) + r1, rel=1e-6)


def test_each_side_trains_itself_alone():
    network = Fixed()
    adversary = Adversary(network, Distill())
    input_BCHW, fake_BCHW = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    adversary.fooled(input_BCHW, fake_BCHW).backward()
    assert network.one.grad is None and fake_BCHW.grad.abs().sum() > 0
    fake_BCHW.grad = None
    adversary.loss(input_BCHW, input_BCHW, fake_BCHW, 1).backward()
    assert network.one.grad is not None and fake_BCHW.grad is None


def test_the_generators_loss_has_the_adversary_at_its_weight():
    class Alike(nn.Module):
        def forward(self, x_BCHW, y_BCHW):
            return torch.zeros(len(x_BCHW))

    config = Distill(l1=2.0, adversarial=0.5)
    zero = torch.zeros(2, 3, 4, 4)
    parts = distillation_loss(config, Alike(), Adversary(Fixed(), config), zero, zero, zero + 0.25)
    assert parts["loss"].item() == pytest.approx(2 * 0.25 + 0.5 * log(2.0)) and parts[
        "adversarial"
    ].item() == pytest.approx(log(2.0))


def test_a_block_adds_its_two_ways_at_unit_variance():
    """With the way around silent: two convolutions with their leaky ReLU, the second blurred and halved."""
    torch.manual_seed(0)
    block, x_BCHW = _Block(2, 3), torch.randn(1, 2, 8, 8)
    nn.init.zeros_(block.around.raw)
    torch.testing.assert_close(block(x_BCHW), block.convs[1](block.convs[0](x_BCHW)) / 2**0.5)
    network, features_BD = Discriminator(16, 64, 8), -torch.ones(1, 128)
    nn.init.ones_(network.dense.weight.raw)
    torch.testing.assert_close(network.dense(features_BD), torch.full((1, 8), -0.2 * (2 * 128) ** 0.5))
