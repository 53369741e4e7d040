"""The distillation loss (Parmar et al. 2023, section 3.4), L1 + LPIPS between the generator's picture and the teacher's edit; optionally
with an adversary, as Co-Mod-GAN itself is trained (Zhao et al. 2021).

B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from configs.schema import Distill


def distillation_loss(
    config: Distill,
    perceptual: nn.Module,
    adversary: Adversary | None,
    input_BCHW: torch.Tensor,
    fake_BCHW: torch.Tensor,
    target_BCHW: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Scalars 'l1' (images in [-1, 1]), 'lpips', 'adversarial' where there is one, and their sum 'loss', weighted by the config.

    LPIPS is on one random window of config.lpips_crop pixels, the same for the whole batch, which costs (crop / side)^2 of the whole.
    """
    fake_BCHW = fake_BCHW.float()
    parts = {"l1": (fake_BCHW - target_BCHW).abs().mean(), "lpips": fake_BCHW.new_zeros(())}
    loss = config.l1 * parts["l1"]
    if adversary is not None:
        parts["adversarial"] = adversary.fooled(input_BCHW, fake_BCHW)
        loss = loss + config.adversarial * parts["adversarial"]
    if config.lpips > 0:
        side, crop = fake_BCHW.shape[-1], config.lpips_crop
        if 0 < crop < side:
            top, left = window_starts(side, crop)
            window = (..., slice(top, top + crop), slice(left, left + crop))
            fake_BCHW, target_BCHW = fake_BCHW[window], target_BCHW[window]
        parts["lpips"] = perceptual(fake_BCHW, target_BCHW).mean()
    return {**parts, "loss": loss + config.lpips * parts["lpips"]}


def window_starts(side: int, crop: int) -> list[int]:
    """Top and left of a random window that shows any row, and any column, at least half as often as any other.

    Starts drawn evenly would show the outermost pixels in one window of side - crop + 1, and the generator would not learn its rim.
    """
    return torch.randint(1 - crop, side, (2,)).clamp(0, side - crop).tolist()


class Adversary:
    """Non-saturating logistic loss (Goodfellow et al. 2014), the discriminator kept smooth by R1 (Mescheder et al. 2018).

    autocast: makes the context in which the logits are computed; R1 is float32 always.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        config: Distill,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.discriminator, self.config, self.autocast = discriminator, config, autocast

    def fooled(self, input_BCHW: torch.Tensor, fake_BCHW: torch.Tensor) -> torch.Tensor:
        """The generator's loss: -log sigmoid(D(fake)), mean; no gradient for the discriminator."""
        self.discriminator.requires_grad_(False)
        loss = F.softplus(-self._logits_B(input_BCHW, fake_BCHW)).mean()
        self.discriminator.requires_grad_(True)
        return loss

    def loss(
        self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor, fake_BCHW: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The discriminator's loss, mean: -log sigmoid(D(edit)) - log(1 - sigmoid(D(fake))), and each r1_every steps that many times R1."""
        real_B, fake_B = self._logits_B(input_BCHW, edit_BCHW), self._logits_B(input_BCHW, fake_BCHW.detach())
        loss = (F.softplus(-real_B) + F.softplus(fake_B)).mean()
        r1, every = self.config.r1, self.config.r1_every
        if r1 > 0 and step % every == 0:
            loss = loss + r1 / 2 * every * gradient_penalty(self.discriminator, input_BCHW, edit_BCHW)
        return loss

    def _logits_B(self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            return self.discriminator(input_BCHW, edit_BCHW).float()


def gradient_penalty(
    discriminator: nn.Module, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor
) -> torch.Tensor:
    """Squared norm of the logits' gradient by the edit, mean over the batch; can itself be differentiated."""
    edit_BCHW = edit_BCHW.detach().requires_grad_(True)
    logits_B = discriminator.forward(
        input_BCHW, edit_BCHW
    )  # past torch.compile, which cannot differentiate twice
    (gradient_BCHW,) = torch.autograd.grad(logits_B.sum(), edit_BCHW, create_graph=True)
    return gradient_BCHW.square().sum((1, 2, 3)).mean()
