"""An editor: images and captions in, edited images out, by pix2pix-zero or one of the configurations of the paper's Table 2."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from configs.errors import UserError
from configs.schema import Config, Task
from generate.directions import EditDirection
from generate.guidance import edit_in_lockstep
from generate.inversion import ddim_step, invert, official_steps_upwards, steps_upwards
from models.teacher import Teacher


@dataclass(frozen=True)
class Method:
    """What a method is made of: how the image becomes noise, how the text changes, whether attention guides."""

    noise: str  # stochastic, partial (stochastic, edit.strength of the way), ddim or regularised
    text: str  # swap or direction
    guided: bool


METHODS = {
    "sdedit": Method("partial", "swap", False),
    "A": Method("stochastic", "swap", False),
    "B": Method("ddim", "swap", False),
    "C": Method("regularised", "swap", False),
    "D": Method("regularised", "direction", False),
    "pix2pix-zero": Method("regularised", "direction", True),
}


@dataclass(frozen=True)
class Edited:
    """'edit' and, where asked for, 'reconstruction': pictures, B x 3 x H x W in [-1, 1]; latents, B x C x h x w, of these two, of the
    'input', and 'inverted', the noise they start from.
    """

    pictures: dict[str, Tensor]
    latents: dict[str, Tensor]


class Editor:
    """One method with one teacher and one direction. UserError for an unknown method or negative prompt."""

    def __init__(self, teacher: Teacher, direction: EditDirection, config: Config) -> None:
        if config.edit.method not in METHODS:
            raise UserError(f"edit.method={config.edit.method}: there are {', '.join(METHODS)}")
        if config.guidance.negative not in ("caption", "empty"):
            raise UserError(f"guidance.negative={config.guidance.negative}: there are caption, empty")
        self.method = METHODS[config.edit.method]
        self.teacher, self.direction, self.task, self.guidance, self.seed = teacher, direction, config.task, config.guidance, config.seed
        self.inversion = config.inversion
        if self.method.noise != "regularised":
            self.inversion = replace(config.inversion, lambda_ac=0.0, lambda_kl=0.0)
        if config.edit.mode not in ("paper", "official"):
            raise UserError(f"edit.mode={config.edit.mode}: there are paper, official")
        self.official = config.edit.mode == "official"
        steps = config.inversion.steps or config.edit.steps
        self.inversion_steps = official_steps_upwards(teacher, steps) if self.official else steps_upwards(teacher.schedule(steps))
        self.schedule = teacher.schedule(config.edit.steps)
        if self.method.noise == "partial":
            if not 0 < config.edit.strength <= 1:
                raise UserError(f"edit.strength={config.edit.strength}: above 0, at most 1")
            self.schedule = self.schedule.last(max(1, round(config.edit.strength * config.edit.steps)))

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor, captions: Sequence[str], keys: Sequence[str], reconstruct: bool) -> Edited:
        """Edit images in [-1, 1]. Every draw derives from the seed and an image's key, so a result does not depend on its batch."""
        generators = [torch.Generator().manual_seed(sample_seed(self.seed, key)) for key in keys]
        latent_BCHW = self.teacher.encode(image_BCHW)
        caption_BTD = self.teacher.embed(captions)
        noise_BCHW = self._to_noise(latent_BCHW, caption_BTD, generators)
        reference_BCHW, edit_BCHW = edit_in_lockstep(
            self.teacher,
            self.schedule,
            noise_BCHW,
            caption_BTD,
            self._edited_text(captions, caption_BTD),
            caption_BTD if self.guidance.negative == "caption" else self.teacher.embed([""] * len(captions)),
            self.guidance if self.method.guided else replace(self.guidance, amount=0.0),
            reconstruct,
            self.official,
        )
        latents = {"input": latent_BCHW, "inverted": noise_BCHW, "edit": edit_BCHW}
        pictures = {"edit": self.teacher.decode(edit_BCHW)}
        if reconstruct and reference_BCHW is not None:
            latents["reconstruction"] = reference_BCHW
            pictures["reconstruction"] = self.teacher.decode(reference_BCHW)
        return Edited(pictures, latents)

    def _to_noise(self, latent_BCHW: Tensor, caption_BTD: Tensor, generators: list[torch.Generator]) -> Tensor:
        if self.method.noise in ("stochastic", "partial"):
            drawn = torch.stack([torch.randn(latent_BCHW.shape[1:], generator=g) for g in generators]).to(latent_BCHW)
            return ddim_step(latent_BCHW, drawn, 1.0, self.schedule.alpha[0])
        return invert(self.teacher, self.inversion_steps, latent_BCHW, caption_BTD, generators, self.inversion)

    def _edited_text(self, captions: Sequence[str], caption_BTD: Tensor) -> Tensor:
        if self.method.text == "direction":
            return caption_BTD + self.direction.value_1TD
        return self.teacher.embed([swap_words(caption, self.task) for caption in captions])


def swap_words(caption: str, task: Task) -> str:
    """The caption with the task's source words replaced by its target words; the target is appended where it holds none of them."""
    swapped = caption
    if task.swap:
        words = re.compile(r"\b(" + "|".join(map(re.escape, task.swap)) + r")\b", re.IGNORECASE)
        swapped = words.sub(lambda match: task.swap[match[0].lower()], caption)
    return swapped if swapped != caption else f"{caption}, {task.target}"


def sample_seed(seed: int, key: str) -> int:
    """A 63-bit seed of the run's seed and a sample's key."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") >> 1
