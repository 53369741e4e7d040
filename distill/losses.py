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


class Adversary:
    """Non-saturating logistic loss (Goodfellow et al. 2014), the discriminator kept smooth by R1 (Mescheder et al. 2018).

    autocast: makes the context in which the logits are computed; R1 is float32 always.
    """

    def __init__(self, discriminator: nn.Module, config: Distill, autocast: Callable[[], AbstractContextManager] = nullcontext) -> None:
        self.discriminator, self.autocast = discriminator, autocast
        self.r1, self.r1_every = config.r1, config.r1_every

    def fooled(self, input_BCHW: torch.Tensor, fake_BCHW: torch.Tensor) -> torch.Tensor:
        """The generator's loss: -log sigmoid(D(fake)), mean; no gradient for the discriminator."""
        self.discriminator.requires_grad_(False)
        loss = F.softplus(-self._logits_B(input_BCHW, fake_BCHW)).mean()
        self.discriminator.requires_grad_(True)
        return loss

    def loss(self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor, fake_BCHW: torch.Tensor, step: int) -> torch.Tensor:
        """The discriminator's loss, mean: -log sigmoid(D(edit)) - log(1 - sigmoid(D(fake))), and each r1_every steps that many times R1."""
        real_B, fake_B = self._logits_B(input_BCHW, edit_BCHW), self._logits_B(input_BCHW, fake_BCHW.detach())
        loss = (F.softplus(-real_B) + F.softplus(fake_B)).mean()
        if self.r1 > 0 and step % self.r1_every == 0:
            loss = loss + self.r1 / 2 * self.r1_every * gradient_penalty(self.discriminator, input_BCHW, edit_BCHW)
        return loss

    def _logits_B(self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            return self.discriminator(input_BCHW, edit_BCHW).float()


def gradient_penalty(discriminator: nn.Module, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor) -> torch.Tensor:
    """Squared norm of the logits' gradient by the edit, mean over the batch; can itself be differentiated."""
    edit_BCHW = edit_BCHW.detach().requires_grad_(True)
    logits_B = discriminator.forward(input_BCHW, edit_BCHW)  # past torch.compile, which cannot differentiate twice
    (gradient_BCHW,) = torch.autograd.grad(logits_B.sum(), edit_BCHW, create_graph=True)
    return gradient_BCHW.square().sum((1, 2, 3)).mean()


def window_starts(side: int, crop: int) -> list[int]:
    """Top and left of a random window that shows any row, and any column, at least half as often as any other.

    Starts drawn evenly would show the outermost pixels in one window of side - crop + 1, and the generator would not learn its rim.
    """
    return torch.randint(1 - crop, side, (2,)).clamp(0, side - crop).tolist()


class DistillationLoss(nn.Module):
    """l1 * L1 + lpips * LPIPS + adversarial * the adversary's.

    LPIPS is on one random window of `lpips_crop` pixels, which costs (crop / side)^2 of the whole.
    """

    def __init__(self, config: Distill, perceptual: nn.Module, adversary: Adversary | None = None) -> None:
        super().__init__()
        self.perceptual, self.adversary = perceptual, adversary
        self.l1, self.lpips, self.crop, self.adversarial = config.l1, config.lpips, config.lpips_crop, config.adversarial

    def forward(self, input_BCHW: torch.Tensor, fake_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scalars 'l1' (images in [-1, 1]), 'lpips', 'adversarial' where there is one, and their weighted sum 'loss'.

        The window is the same for the whole batch.
        """
        fake_BCHW = fake_BCHW.float()
        parts = {"l1": (fake_BCHW - target_BCHW).abs().mean(), "lpips": fake_BCHW.new_zeros(())}
        loss = self.l1 * parts["l1"]
        if self.adversary is not None:
            parts["adversarial"] = self.adversary.fooled(input_BCHW, fake_BCHW)
            loss = loss + self.adversarial * parts["adversarial"]
        if self.lpips > 0:
            side = fake_BCHW.shape[-1]
            if 0 < self.crop < side:
                top, left = window_starts(side, self.crop)
                window = (..., slice(top, top + self.crop), slice(left, left + self.crop))
                fake_BCHW, target_BCHW = fake_BCHW[window], target_BCHW[window]
            parts["lpips"] = self.perceptual(fake_BCHW, target_BCHW).mean()
        return {**parts, "loss": loss + self.lpips * parts["lpips"]}
