"""An editor: images and captions in, edited images out, by pix2pix-zero or one of the configurations of the paper's Table 2."""

import hashlib
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor

from configs.errors import UserError
from configs.schema import Config, Task
from generate.directions import EditDirection
from generate.guidance import Lockstep, Texts, align_tokens, edit_by_replacing, edit_in_lockstep, guided
from generate.inversion import ddim_step, invert, official_steps_upwards, steps_upwards
from models.teacher import Teacher


@dataclass(frozen=True)
class Method:
    """What a method is made of: how the image becomes noise, how the text changes, what attention does to the edit."""

    noise: str  # stochastic, partial (stochastic, edit.strength of the way), ddim or regularised
    text: str  # swap or direction
    guided: bool = False  # by the reference's attention maps
    replaced: bool = False  # attention, by the reference's


METHODS = {
    "sdedit": Method("partial", "swap"),
    "prompt-to-prompt": Method("ddim", "swap", replaced=True),
    "A": Method("stochastic", "swap"),
    "B": Method("ddim", "swap"),
    "C": Method("regularised", "swap"),
    "D": Method("regularised", "direction"),
    "pix2pix-zero": Method("regularised", "direction", guided=True),
}
CHOICES = {
    "edit.method": tuple(METHODS),
    "edit.mode": ("paper", "official"),
    "edit.solver": ("ddim", "multistep"),
    "guidance.negative": ("auto", "caption", "empty"),
    "guidance.maps": ("reference", "inversion"),
}


@dataclass(frozen=True)
class Edited:
    """Pictures, B x 3 x H x W in [-1, 1]: 'edit' and, where asked for, 'reconstruction', which of a prompt alone is the 'input'; latents,
    B x C x h x w, of these, of the 'input' and of 'inverted', the noise they start from; noises as invert gives them.
    """

    pictures: dict[str, Tensor]
    latents: dict[str, Tensor]
    noises: dict[str, Tensor]


class Editor:
    """One method with one teacher and one direction. UserError for a method, mode or solver that there is not."""

    def __init__(self, teacher: Teacher, direction: EditDirection, config: Config) -> None:
        for key, known in CHOICES.items():
            if (value := attrgetter(key)(config)) not in known:
                raise UserError(f"{key}={value}: there are {', '.join(known)}")
        edit, steps = config.edit, config.inversion.steps or config.edit.steps
        self.teacher, self.direction, self.config, self.method = (
            teacher,
            direction,
            config,
            METHODS[edit.method],
        )
        self.guidance = config.guidance if self.method.guided else replace(config.guidance, amount=0.0)
        plain = replace(config.inversion, lambda_ac=0.0, lambda_kl=0.0)
        self.inversion = config.inversion if self.method.noise == "regularised" else plain
        self.official = edit.mode == "official"
        self.inversion_steps = (
            official_steps_upwards(teacher, steps)
            if self.official
            else steps_upwards(teacher.schedule(steps))
        )
        self.schedule = teacher.schedule(edit.steps)
        if self.official and edit.solver != "ddim":
            raise UserError(f"edit.solver={edit.solver}: edit.mode=official is DDIM's")
        if not 0 <= self.guidance.until <= 1:
            raise UserError(f"guidance.until={self.guidance.until}: a share of the steps, 0 to 1")
        if self.guidance.maps == "inversion" and (self.official or steps != edit.steps):
            raise UserError(
                "guidance.maps=inversion: needs edit.mode=paper, and inversion.steps equal to edit.steps"
            )
        if self.method.noise == "partial":
            if not 0 < edit.strength <= 1:
                raise UserError(f"edit.strength={edit.strength}: above 0, at most 1")
            self.schedule = self.schedule[-max(1, round(edit.strength * edit.steps)) :]

    def shortened(self, steps: int) -> "Editor":
        """The same with the noisiest `steps` steps of each pass alone: as much memory, and a share of the work."""
        short = copy(self)
        short.schedule, short.inversion_steps = self.schedule[:steps], self.inversion_steps[-steps:]
        return short

    @torch.no_grad()
    def __call__(
        self, image_BCHW: Tensor | None, captions: Sequence[str], keys: Sequence[str], reconstruct: bool
    ) -> Edited:
        """Edit images in [-1, 1], or with None the images that the captions themselves give. Every draw derives from the seed and a
        sample's key, so a result does not depend on its batch.
        """
        generators = [torch.Generator().manual_seed(sample_seed(self.config.seed, key)) for key in keys]
        synthetic, caption_BTD = image_BCHW is None, self.teacher.embed(captions)
        swapped = [swap_words(caption, self.config.task) for caption in captions]
        empty = self.guidance.negative == "empty" or (self.guidance.negative == "auto" and synthetic)
        texts = Texts(
            caption_BTD,
            caption_BTD + self.direction.value_1TD
            if self.method.text == "direction"
            else self.teacher.embed(swapped),
            self.teacher.embed([""] * len(captions)) if empty else caption_BTD,
        )
        latents = {} if image_BCHW is None else {"input": self.teacher.encode(image_BCHW)}
        noises, maps = self._start(latents.get("input"), caption_BTD, generators)
        common, solver, follow = (
            (self.teacher, self.schedule, noises["inverted"], texts),
            self.config.edit.solver,
            reconstruct or synthetic,
        )
        if self.method.replaced:
            way = (
                self.guidance.scale,
                align_tokens(self.teacher, captions, swapped),
                self.config.prompt_to_prompt,
                solver,
            )
            reference_BCHW, edit_BCHW = edit_by_replacing(*common, *way)
        else:
            lockstep = Lockstep(follow, empty and (self.official or synthetic), self.official, solver, maps)
            reference_BCHW, edit_BCHW = edit_in_lockstep(*common, self.guidance, lockstep)
        made = {"edit": edit_BCHW} | (
            {"input" if synthetic else "reconstruction": reference_BCHW} if follow else {}
        )
        pictures = {name: self.teacher.decode(latent) for name, latent in made.items()}
        return Edited(pictures, latents | {"inverted": noises["inverted"]} | made, noises)

    def _start(
        self, input_BCHW: Tensor | None, caption_BTD: Tensor, generators: list[torch.Generator]
    ) -> tuple[dict, dict]:
        """As invert gives them: the noise that the trajectories leave from, drawn or the input's, and maps."""
        if input_BCHW is not None and self.method.noise in ("ddim", "regularised"):
            kept = guided(len(self.schedule), self.guidance) - 1 if self.guidance.maps == "inversion" else 0
            way = generators, self.inversion, self.config.edit.solver, max(kept, 0)
            return invert(self.teacher, self.inversion_steps, input_BCHW, caption_BTD, *way)
        drawn = [torch.randn(self.teacher.latent_shape, generator=generator) for generator in generators]
        drawn_BCHW = torch.stack(drawn).to(self.teacher.device)
        return {
            "inverted": drawn_BCHW
            if input_BCHW is None
            else ddim_step(input_BCHW, drawn_BCHW, 1.0, self.schedule[0].alpha)
        }, {}


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
