"""What training minimises.

The distillation loss of Parmar et al. (2023), section 3.4: L1 + LPIPS between the generator's picture and
the teacher's edit. Both average what the teacher does differently from pair to pair, which is soft. The style
loss asks for as much texture as the teacher's edit has, wherever it lies, which keeps pictures crisp where
places cannot be foretold (Sajjadi et al. 2017; Reda et al. 2022). An adversary (models/critic.py) asks for an
edit that could be the teacher's. Both see the features that LPIPS computes anyway.

Images are in [-1, 1]. B batch, C channels, H W pixels or places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from configs.schema import Distill
from models.critic import Critic
from models.perceptual import Perceptual

BALANCE_EVERY = 10  # steps from one measurement of the two gradients to the next
BALANCE_KEPT = 0.9  # of the balance, at a measurement

Features = Sequence[torch.Tensor]  # VGG16's, by level, each B x C x H x W


@dataclass
class Views:
    """VGG16's features of one window of the generator's pictures, the teacher's edits, and the inputs.

    Gradients flow to the generator's alone. Empty where no loss asks for them.
    """

    fake: Features
    edit: Features
    input: Features


class DistillationLoss:
    """L1 + distill.lpips * LPIPS + distill.style * style, with an adversary + its balanced loss.

    A further loss is a term here and a weight in Distill.
    """

    def __init__(self, settings: Distill, perceptual: Perceptual, adversary: Adversary | None) -> None:
        self.settings = settings
        self.perceptual = perceptual
        self.adversary = adversary

    def look(self, input_BCHW: torch.Tensor, fake_BCHW: torch.Tensor, edit_BCHW: torch.Tensor) -> Views:
        """The features of one random window of distill.lpips_crop pixels, the same in all."""
        if self.settings.lpips == 0 and self.settings.style == 0 and self.adversary is None:
            return Views((), (), ())
        images = (fake_BCHW.float(), edit_BCHW, input_BCHW)
        fake_BCHW, edit_BCHW, input_BCHW = same_window(images, self.settings.lpips_crop)
        fake = self.perceptual.features(fake_BCHW)
        with torch.no_grad():
            edit = self.perceptual.features(edit_BCHW)
            condition = self.perceptual.features(input_BCHW) if self.adversary else ()
        return Views(fake, edit, condition)

    def __call__(
        self, fake_BCHW: torch.Tensor, edit_BCHW: torch.Tensor, views: Views, step: int
    ) -> dict[str, torch.Tensor]:
        """Scalars 'l1', 'lpips' (0 where its weight is 0), and 'loss', the weighted sum of all.

        With a weight also 'style', with an adversary 'adversarial'.
        fake_BCHW: the generator's edits; edit_BCHW: the teacher's; views: of these.
        """
        weight = self.settings.lpips
        losses = {"l1": (fake_BCHW.float() - edit_BCHW).abs().mean(), "lpips": fake_BCHW.new_zeros(())}
        if weight > 0:
            losses["lpips"] = self.perceptual.distance(views.fake, views.edit).mean()
        loss = losses["l1"] + weight * losses["lpips"]
        if self.settings.style > 0:
            losses["style"] = self.perceptual.style(views.fake, views.edit).mean()
            loss = loss + self.settings.style * losses["style"]
        if self.adversary is not None:
            losses["adversarial"] = self.adversary.generator_loss(views)
            if step % BALANCE_EVERY == 0:
                self.adversary.measure_balance(loss, losses["adversarial"], fake_BCHW)
            share = self.settings.adversarial * self.adversary.critic.balance
            loss = loss + share * losses["adversarial"]
        losses["loss"] = loss
        return losses


def same_window(images: Sequence[torch.Tensor], crop: int) -> Sequence[torch.Tensor]:
    """All batches cut to one random window of crop x crop pixels; unchanged where crop is 0.

    VGG16 of it costs (crop / side)^2 of that of the whole image.
    """
    side = images[0].shape[-1]
    if crop == 0 or crop >= side:
        return images
    top, left = window_starts(side, crop)
    return [image_BCHW[..., top : top + crop, left : left + crop] for image_BCHW in images]


def window_starts(side: int, crop: int) -> list[int]:
    """Top and left of a random window; it shows each row and column at least half as often as any.

    Starts drawn evenly would show the outermost pixels in one window of side - crop + 1, and the
    generator would not learn its rim.
    """
    return torch.randint(1 - crop, side, (2,)).clamp(0, side - crop).tolist()


class Adversary:
    """Hinge losses (Lim and Ye 2017) of the generator and of a critic of its features.

    The critic's balance is the ratio of two norms, of the gradients of all other losses and of the
    adversarial one by the generator's pictures: times it, the second pulls as hard as the first.

    autocast: makes the context in which the logits are computed. mean: averages a number over the
    processes.
    """

    def __init__(
        self,
        critic: Critic,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        mean: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach,
    ) -> None:
        self.critic = critic
        self.autocast = autocast
        self.mean = mean

    def generator_loss(self, views: Views) -> torch.Tensor:
        """-D(fake), mean over places, levels and the batch. No gradient reaches the critic."""
        self.critic.requires_grad_(False)
        logits = self._logits(views.fake, views.input)
        self.critic.requires_grad_(True)
        return -torch.stack([level_B1HW.mean() for level_B1HW in logits]).mean()

    def critic_loss(self, views: Views) -> torch.Tensor:
        """max(0, 1 - D(edit)) + max(0, 1 + D(fake)), mean likewise. No gradient reaches the generator."""
        fake = [level_BCHW.detach() for level_BCHW in views.fake]
        losses = []
        for real_B1HW, fake_B1HW in zip(
            self._logits(views.edit, views.input), self._logits(fake, views.input), strict=True
        ):
            losses.append(F.relu(1 - real_B1HW).mean() + F.relu(1 + fake_B1HW).mean())
        return torch.stack(losses).mean()

    def measure_balance(
        self, reconstruction: torch.Tensor, adversarial: torch.Tensor, fake_BCHW: torch.Tensor
    ) -> None:
        """Move the critic's balance towards what these losses say; the first measurement is taken as is."""
        squares = []
        for loss in (reconstruction, adversarial):
            (gradient_BCHW,) = torch.autograd.grad(loss, fake_BCHW, retain_graph=True)
            squares.append(gradient_BCHW.float().square().sum())
        pull, push = self.mean(torch.stack(squares)).sqrt()
        if push == 0:
            return
        balance = self.critic.balance
        kept = BALANCE_KEPT if balance > 0 else 0.0
        balance.copy_(kept * balance + (1 - kept) * pull / push)

    def _logits(self, picture: Features, condition: Features) -> list[torch.Tensor]:
        """Of each level B x 1 x H x W, high where the critic takes the picture for the teacher's edit."""
        with self.autocast():
            return [level_B1HW.float() for level_B1HW in self.critic(picture, condition)]
