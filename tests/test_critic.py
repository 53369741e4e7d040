"""models/critic.py and the adversarial losses: closed forms, who learns from what, and the balance."""

import pytest
import torch
from torch import nn

from configs.schema import Distill
from distill.losses import BALANCE_KEPT, Adversary, DistillationLoss, Views, same_window
from models.critic import CHANNELS, Critic
from models.perceptual import FEATURE_SCALES, perceptual_loss


def features(seed, batch=2, side=16):
    """Random ones of VGG16's sizes, on the scale of real ones."""
    torch.manual_seed(seed)
    levels = []
    for level, (channels, scale) in enumerate(zip(CHANNELS, FEATURE_SCALES, strict=True)):
        levels.append(scale * torch.rand(batch, channels, side >> level, side >> level))
    return levels


def test_each_level_judges_its_places_and_the_input_counts():
    torch.manual_seed(0)
    critic = Critic()
    picture, condition = features(1), features(2)
    logits = critic(picture, condition)
    assert [level.shape for level in logits] == [(2, 1, 8, 8), (2, 1, 4, 4), (2, 1, 4, 4), (2, 1, 2, 2)]
    for ours, other in zip(logits, critic(picture, features(3)), strict=True):
        assert not torch.allclose(ours, other)
    sum(level.square().sum() for level in logits).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in critic.parameters())


def test_every_layer_has_a_spectral_norm_of_one():
    torch.manual_seed(0)
    critic = Critic()
    picture, condition = features(1), features(2)
    for _ in range(200):  # each call takes a step of the power iteration
        critic(picture, condition)
    layers = [layer for layer in critic.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 4 * 5
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        assert largest.item() == pytest.approx(1.0, abs=1e-2)


def test_the_scales_are_those_of_real_pictures():
    from models.miniature.scenes import Look, render, scene
    from models.pictures import batch_of

    image_BCHW = batch_of([render(scene(seed), Look(season="winter")) for seed in range(4)])
    with torch.no_grad():
        for level_BCHW, scale in zip(perceptual_loss().features(image_BCHW), FEATURE_SCALES, strict=False):
            assert level_BCHW.square().mean().sqrt().item() == pytest.approx(scale, rel=0.3)


class Linear(nn.Module):
    """Two levels; the logit is the features' first channel times a parameter of 1, less the condition's."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.register_buffer("balance", torch.zeros(()))

    def forward(self, picture, condition):
        return [self.one * (a[:, :1] - b[:, :1]) for a, b in zip(picture, condition, strict=True)]


def views(fake, edit):
    """Constant features of two levels; the inputs' are 0."""
    shapes = ((2, 3, 4, 4), (2, 5, 2, 2))
    return Views(
        [torch.full(shape, fake) for shape in shapes],
        [torch.full(shape, edit) for shape in shapes],
        [torch.zeros(shape) for shape in shapes],
    )


@pytest.mark.parametrize(
    ("fake", "edit", "of_generator", "of_critic"),
    [(-2.0, 2.0, 2.0, 0.0), (0.5, 0.25, -0.5, 1.5 + 0.75), (3.0, -3.0, -3.0, 4.0 + 4.0)],
)
def test_the_hinge_losses_by_hand(fake, edit, of_generator, of_critic):
    adversary = Adversary(Linear())
    seen = views(fake, edit)
    assert adversary.generator_loss(seen).item() == pytest.approx(of_generator)
    assert adversary.critic_loss(seen).item() == pytest.approx(of_critic)


def test_each_side_trains_itself_alone():
    critic = Linear()
    adversary = Adversary(critic)
    seen = views(0.5, 0.5)
    seen.fake = [level.requires_grad_(True) for level in seen.fake]
    adversary.generator_loss(seen).backward()
    assert critic.one.grad is None and all(level.grad.abs().sum() > 0 for level in seen.fake)
    for level in seen.fake:
        level.grad = None
    adversary.critic_loss(seen).backward()
    assert critic.one.grad is not None and all(level.grad is None for level in seen.fake)


class Squares(nn.Module):
    """In the place of VGG16: the images squared, and LPIPS as a mean of squared differences."""

    def features(self, image_BCHW):
        return [image_BCHW.square(), image_BCHW]

    def distance(self, first, second):
        return (first[0] - second[0]).square().mean((1, 2, 3))


def test_the_adversary_pulls_as_hard_as_it_is_asked_to():
    """The norm of its gradient by the pictures is distill.adversarial times that of L1 + LPIPS."""
    torch.manual_seed(0)
    input_BCHW, edit_BCHW, fake_BCHW = torch.rand(3, 2, 3, 8, 8)
    fake_BCHW.requires_grad_(True)
    adversary = Adversary(Linear())
    criterion = DistillationLoss(Distill(adversarial=0.25), Squares(), adversary)

    def gradient(loss):
        return torch.autograd.grad(loss, fake_BCHW, retain_graph=True)[0]

    losses = criterion(fake_BCHW, edit_BCHW, criterion.look(input_BCHW, fake_BCHW, edit_BCHW), 0)
    plain = gradient(losses["l1"] + losses["lpips"])
    added = gradient(losses["loss"]) - plain
    assert (added.norm() / plain.norm()).item() == pytest.approx(0.25, rel=1e-5)
    pull = gradient(losses["adversarial"])
    assert adversary.critic.balance.item() == pytest.approx((plain.norm() / pull.norm()).item(), rel=1e-5)

    before = adversary.critic.balance.clone()
    criterion(fake_BCHW, edit_BCHW, criterion.look(input_BCHW, fake_BCHW, edit_BCHW), 1)
    assert torch.equal(adversary.critic.balance, before)  # it is measured every tenth step
    with torch.no_grad():
        adversary.critic.one.mul_(4)  # so the next measurement is a quarter
    criterion(fake_BCHW, edit_BCHW, criterion.look(input_BCHW, fake_BCHW, edit_BCHW), 10)
    moved = BALANCE_KEPT * before + (1 - BALANCE_KEPT) * before / 4
    torch.testing.assert_close(adversary.critic.balance, moved, rtol=1e-5, atol=0)


def test_the_balance_is_that_of_all_processes_pictures():
    """Halves of a batch, their squared norms averaged, give the balance of the whole."""
    torch.manual_seed(0)
    reconstruction = torch.rand(4, 3, 2, 2)
    adversarial = torch.rand(4, 3, 2, 2)

    def balance(rows, mean):
        adversary = Adversary(Linear(), mean=mean)
        fake_BCHW = torch.ones(len(reconstruction[rows]), 3, 2, 2, requires_grad=True)
        losses = (
            (fake_BCHW * weights[rows]).sum((1, 2, 3)).mean() for weights in (reconstruction, adversarial)
        )
        adversary.measure_balance(*losses, fake_BCHW)
        return adversary.critic.balance

    squares = []
    for rows in (slice(0, 2), slice(2, 4)):
        balance(rows, lambda pair: squares.append(pair) or pair)
    whole = balance(slice(0, 4), lambda pair: pair)
    torch.testing.assert_close(balance(slice(0, 2), lambda pair: sum(squares) / 2), whole)


def test_one_window_is_cut_from_all():
    torch.manual_seed(0)
    image_BCHW = torch.arange(2 * 3 * 16 * 16.0).view(2, 3, 16, 16)
    for cut in (same_window((image_BCHW, image_BCHW + 1000), 4) for _ in range(5)):
        assert cut[0].shape == (2, 3, 4, 4) and torch.equal(cut[0] + 1000, cut[1])
    assert same_window((image_BCHW,), 0)[0] is image_BCHW
