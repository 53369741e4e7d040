"""models/discriminator.py and the adversarial loss: closed forms, finite differences, the published size."""

from math import log

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from configs.schema import Distill
from distill.losses import Adversary, DistillationLoss, gradient_penalty
from models.discriminator import Discriminator, ResidualBlock, minibatch_deviation


@pytest.mark.parametrize("resolution", [256, 512])
def test_size_is_the_published_one(resolution):
    with torch.device("meta"):
        network = Discriminator(resolution)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert millions == pytest.approx(28.9, rel=0.005)


def test_it_judges_edit_and_input_together_and_every_parameter_learns():
    torch.manual_seed(0)
    network = Discriminator(16, 64, 8)
    input_BCHW, edit_BCHW = torch.rand(2, 4, 3, 16, 16) * 2 - 1
    logits_B = network(input_BCHW, edit_BCHW)
    assert logits_B.shape == (4,)
    assert not torch.allclose(network(input_BCHW.flip(0), edit_BCHW), logits_B)
    logits_B.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_the_skip_of_a_block_is_the_blurred_image():
    """With the convolutions silent, a block is its skip: filter [1, 3, 3, 1], every second place, 1 x 1."""
    torch.manual_seed(0)
    block = ResidualBlock(2, 3)
    x_BCHW = torch.randn(1, 2, 8, 8)
    nn.init.zeros_(block.convs[1].weight.raw)
    line_K = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel_11KK = (line_K[:, None] * line_K)[None, None]
    blurred_CHW = torch.stack(
        [conv2d(plane[None, None], kernel_11KK, padding=1)[0, 0] for plane in x_BCHW[0]]
    )
    halved_CHW = blurred_CHW[:, ::2, ::2]
    expected_CHW = torch.einsum("oi,ihw->ohw", block.skip()[:, :, 0, 0], halved_CHW) / 2**0.5
    torch.testing.assert_close(block(x_BCHW)[0], expected_CHW)


def test_deviation_is_that_of_the_group():
    """Images 0 and 2 are one group, 1 and 3 the other: +-1 deviates by 1, equal images by nothing."""
    x_BCHW = torch.zeros(8, 2, 4, 4)
    x_BCHW[[0, 4]] = 1.0  # of 8, groups are 0 2 4 6 and 1 3 5 7
    x_BCHW[[2, 6]] = -1.0
    deviation = minibatch_deviation(x_BCHW)
    assert deviation.shape == (8, 1, 4, 4)
    torch.testing.assert_close(deviation[:, 0, 0, 0], torch.tensor([1.0, 0.0] * 4), rtol=0, atol=2e-3)
    assert minibatch_deviation(x_BCHW[:6]).shape == (6, 1, 4, 4)  # groups of 3
    assert minibatch_deviation(x_BCHW[:1]).max() < 2e-3


class Quadratic(nn.Module):
    """logit = sum(a edit^2) / 2 + sum(b input edit): its gradient by the edit is a edit + b input."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(-0.3, dtype=torch.float64))

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
    norm = 0.0
    tiny = 1e-6
    with torch.no_grad():
        for place in range(edit_BCHW.numel()):
            step = torch.zeros_like(edit_BCHW)
            step.flatten()[place] = tiny
            above = network(input_BCHW, edit_BCHW + step).sum()
            below = network(input_BCHW, edit_BCHW - step).sum()
            norm += ((above - below) / (2 * tiny)).square()
    penalty = gradient_penalty(network, input_BCHW, edit_BCHW).detach()
    torch.testing.assert_close(penalty, norm / 2, rtol=1e-5, atol=0)


class Fixed(nn.Module):
    """The logit is the edit's first value times a parameter of 1."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, input_BCHW, edit_BCHW):
        return self.one * edit_BCHW[:, 0, 0, 0]


def test_the_losses_are_the_logistic_ones_and_r1_comes_lazily():
    """log(1 + e^-x) at x = log 3 is log(4/3), log(1 + e^x) log 4; the squared gradient by the edit is 1."""
    high = torch.full((2, 3, 4, 4), log(3.0))
    low = torch.full((2, 3, 4, 4), -log(3.0))
    adversary = Adversary(Fixed())
    assert adversary.generator_loss(low, high).item() == pytest.approx(log(4 / 3))
    for step, r1 in ((0, 80.0), (1, 0.0), (15, 0.0), (16, 80.0)):
        right = adversary.discriminator_loss(low, high, low, step)
        assert right.item() == pytest.approx(2 * log(4 / 3) + r1, rel=1e-6)
        wrong = adversary.discriminator_loss(low, low, high, step)
        assert wrong.item() == pytest.approx(2 * log(4) + r1, rel=1e-6)


def test_each_side_trains_itself_alone():
    network = Fixed()
    adversary = Adversary(network)
    input_BCHW = torch.zeros(2, 3, 4, 4)
    fake_BCHW = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    adversary.generator_loss(input_BCHW, fake_BCHW).backward()
    assert network.one.grad is None and fake_BCHW.grad.abs().sum() > 0
    fake_BCHW.grad = None
    adversary.discriminator_loss(input_BCHW, input_BCHW, fake_BCHW, 1).backward()
    assert network.one.grad is not None and fake_BCHW.grad is None


def test_the_generators_loss_has_the_adversary_at_its_weight():
    class Alike(nn.Module):
        def forward(self, x_BCHW, y_BCHW):
            return torch.zeros(len(x_BCHW))

    criterion = DistillationLoss(Distill(adversarial=0.5), Alike(), Adversary(Fixed()))
    zero = torch.zeros(2, 3, 4, 4)
    losses = criterion(zero, zero, zero + 0.25)
    assert losses["loss"].item() == pytest.approx(0.25 + 0.5 * log(2.0))
    assert losses["adversarial"].item() == pytest.approx(log(2.0))


def test_a_block_adds_its_two_paths_at_unit_variance():
    """With the skip silent: two convolutions with their leaky ReLU, the second blurred and halved."""
    torch.manual_seed(0)
    block = ResidualBlock(2, 3)
    x_BCHW = torch.randn(1, 2, 8, 8)
    nn.init.zeros_(block.skip.raw)
    torch.testing.assert_close(block(x_BCHW), block.convs[1](block.convs[0](x_BCHW)) / 2**0.5)
    network = Discriminator(16, 64, 8)
    features_BD = -torch.ones(1, 128)
    nn.init.ones_(network.dense.weight.raw)
    torch.testing.assert_close(network.dense(features_BD), torch.full((1, 8), -0.2 * (2 * 128) ** 0.5))
