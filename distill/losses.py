"""What training minimises.

The distillation loss of Parmar et al. (2023), section 3.4: L1 + LPIPS between the generator's
picture and the teacher's edit. Optionally an adversary is added, as Co-Mod-GAN itself is trained
(Zhao et al. 2021).

Images are in [-1, 1]. B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from configs.schema import Distill

R1_GAMMA = 10.0  # weight of R1, as Co-Mod-GAN has it
R1_EVERY = 16  # steps: "lazy regularization" (Karras et al. 2020, section 3.1)


class DistillationLoss:
    """L1 + distill.lpips * LPIPS, with an adversary + distill.adversarial * the adversarial loss.

    perceptual: LPIPS of two batches of images, shape B. A further loss is a term here and a weight
    in Distill.
    """

    def __init__(self, settings: Distill, perceptual: nn.Module, adversary: Adversary | None) -> None:
        self.settings = settings
        self.perceptual = perceptual
        self.adversary = adversary

    def __call__(
        self, input_BCHW: torch.Tensor, fake_BCHW: torch.Tensor, edit_BCHW: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Scalars 'l1', 'lpips' (0 where its weight is 0), 'adversarial', and 'loss', their weighted sum.

        Without an adversary there is no 'adversarial'.
        fake_BCHW: the generator's edits of input_BCHW; edit_BCHW: the teacher's.
        """
        settings = self.settings
        fake_BCHW = fake_BCHW.float()
        losses = {"l1": (fake_BCHW - edit_BCHW).abs().mean(), "lpips": fake_BCHW.new_zeros(())}
        loss = losses["l1"]
        if self.adversary is not None:
            losses["adversarial"] = self.adversary.generator_loss(input_BCHW, fake_BCHW)
            loss = loss + settings.adversarial * losses["adversarial"]
        if settings.lpips > 0:
            fake_window, edit_window = same_window(fake_BCHW, edit_BCHW, settings.lpips_crop)
            losses["lpips"] = self.perceptual(fake_window, edit_window).mean()
        losses["loss"] = loss + settings.lpips * losses["lpips"]
        return losses


def same_window(
    fake_BCHW: torch.Tensor, edit_BCHW: torch.Tensor, crop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both batches cut to one random window of crop x crop pixels; unchanged where crop is 0.

    LPIPS of it costs (crop / side)^2 of that of the whole image.
    """
    side = fake_BCHW.shape[-1]
    if crop == 0 or crop >= side:
        return fake_BCHW, edit_BCHW
    top, left = window_starts(side, crop)
    rows = slice(top, top + crop)
    columns = slice(left, left + crop)
    return fake_BCHW[..., rows, columns], edit_BCHW[..., rows, columns]


def window_starts(side: int, crop: int) -> list[int]:
    """Top and left of a random window; it shows each row and column at least half as often as any.

    Starts drawn evenly would show the outermost pixels in one window of side - crop + 1, and the
    generator would not learn its rim.
    """
    return torch.randint(1 - crop, side, (2,)).clamp(0, side - crop).tolist()


class Adversary:
    """Non-saturating logistic losses (Goodfellow et al. 2014) of generator and discriminator D.

    R1 (Mescheder et al. 2018) keeps the discriminator smooth.
    autocast: makes the context in which the logits are computed; R1 is always float32.
    """

    def __init__(
        self, discriminator: nn.Module, autocast: Callable[[], AbstractContextManager] = nullcontext
    ) -> None:
        self.discriminator = discriminator
        self.autocast = autocast

    def generator_loss(self, input_BCHW: torch.Tensor, fake_BCHW: torch.Tensor) -> torch.Tensor:
        """-log sigmoid(D(fake)), mean over the batch. No gradient reaches the discriminator."""
        self.discriminator.requires_grad_(False)
        loss = F.softplus(-self._logits(input_BCHW, fake_BCHW)).mean()
        self.discriminator.requires_grad_(True)
        return loss

    def discriminator_loss(
        self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor, fake_BCHW: torch.Tensor, step: int
    ) -> torch.Tensor:
        """-log sigmoid(D(edit)) - log(1 - sigmoid(D(fake))), mean over the batch.

        At each R1_EVERY-th step R1 is added with R1_EVERY times its weight, which on average is its
        weight at each step. No gradient reaches the generator.
        """
        real_B = self._logits(input_BCHW, edit_BCHW)
        fake_B = self._logits(input_BCHW, fake_BCHW.detach())
        loss = (F.softplus(-real_B) + F.softplus(fake_B)).mean()
        if step % R1_EVERY == 0:
            penalty = gradient_penalty(self.discriminator, input_BCHW, edit_BCHW)
            loss = loss + R1_GAMMA / 2 * R1_EVERY * penalty
        return loss

    def _logits(self, input_BCHW: torch.Tensor, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Shape B, high where D takes the image for the teacher's edit of the input."""
        with self.autocast():
            return self.discriminator(input_BCHW, image_BCHW).float()


def gradient_penalty(
    discriminator: nn.Module, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor
) -> torch.Tensor:
    """R1 without its weight: squared norm of the logit's gradient by the edit, mean over the batch.

    A scalar that can itself be differentiated by the discriminator's weights.
    """
    edit_BCHW = edit_BCHW.detach().requires_grad_(True)
    # .forward goes past torch.compile, which cannot differentiate twice
    logits_B = discriminator.forward(input_BCHW, edit_BCHW)
    (gradient_BCHW,) = torch.autograd.grad(logits_B.sum(), edit_BCHW, create_graph=True)
    return gradient_BCHW.square().sum((1, 2, 3)).mean()
