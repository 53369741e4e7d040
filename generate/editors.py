"""An editor: images and captions in, edited images out, by pix2pix-zero or a method it is compared with.

A method is an entry of METHODS. Editor.__call__ shows what happens for one that has a Stable Diffusion
teacher; any other is a PictureEditor in a file of its own (docs/editors.md).

Shapes: B images, H W pixels, C h w latent channels and cells, T text tokens, D text width.
"""

import hashlib
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from configs.errors import UserError
from configs.methods import METHODS, needs_teacher
from configs.schema import Config, Task
from generate.directions import EditDirection
from generate.guidance import Texts, count_guided, edit_in_lockstep
from generate.inversion import Inverted, invert, steps_upwards
from generate.official import edit_as_published, official_steps_upwards
from generate.prompt_to_prompt import align_tokens, edit_by_replacing
from generate.unchanged import keep_unchanged
from models.teacher import Teacher


@dataclass(frozen=True)
class Edited:
    """What an edit gives, each by name.

    - pictures, B x 3 x H x W in [-1, 1]: 'edit'; 'reconstruction' where it was asked for; 'input'
      where the captions made it.
    - latents, B x C x h x w: those of the pictures; 'input' of images that were given; 'inverted',
      the noise that the trajectories start from.
    - noises, B x C x h x w: 'inverted' again; of an inversion also 'predicted' and 'regularised',
      the noise of its last step before and after the regularisation.

    flagged: which of the B its own safety checker objects to; empty where it has none.
    """

    pictures: dict[str, Tensor]
    latents: dict[str, Tensor] = field(default_factory=dict)
    noises: dict[str, Tensor] = field(default_factory=dict)
    flagged: Sequence[bool] = ()


class Editor:
    """One method with one teacher and one direction. UserError where keys do not go together."""

    def __init__(self, teacher: Teacher, direction: EditDirection, config: Config) -> None:
        if not needs_teacher(config.edit.method):
            raise UserError(
                f"edit.method={config.edit.method} edits without a Stable Diffusion: its pairs are made by "
                "generate/run.py, and this command needs a method that has one"
            )
        self.teacher = teacher
        self.direction = direction
        self.config = config
        self.method = METHODS[config.edit.method]
        self.official = config.edit.mode == "official"
        self.guidance = config.guidance
        if not self.method.guided:
            self.guidance = replace(config.guidance, amount=0.0, self_attention=0.0)
        self.inversion = config.inversion
        if self.method.noise != "regularised":
            self.inversion = replace(config.inversion, lambda_ac=0.0, lambda_kl=0.0)
        in_full = replace(config.guidance, maps="reference", every=1, scale_until=1.0)
        if self.official and config.guidance != in_full:
            raise UserError(
                "guidance.maps=inversion, guidance.every= and guidance.scale_until= need edit.mode=paper: "
                "official has a reference pass, and guides every step as published"
            )
        self.schedule = teacher.schedule(config.edit.steps)
        if self.official:
            self.inversion_steps = official_steps_upwards(teacher, config.edit.steps)
        else:
            self.inversion_steps = steps_upwards(self.schedule)
        if self.method.noise == "partial":
            steps = max(1, round(config.edit.strength * config.edit.steps))
            self.schedule = self.schedule[-steps:]

    @property
    def device(self) -> torch.device:
        """Where its networks run."""
        return self.teacher.device

    @property
    def report(self) -> str:
        """What is printed of it before the first pair."""
        return self.direction.report

    @property
    def made_by(self) -> dict[str, Any]:
        """What the record of every pair says of it."""
        return {"direction": self.direction.hash}

    def read_of(self, caption: str) -> str | None:
        """What is read of a caption that is too long; None where all of it is."""
        return self.teacher.read_of(caption)

    def flagged(self, image_BCHW: Tensor) -> list[bool]:
        """Which images in [-1, 1] the teacher's safety checker objects to."""
        return self.teacher.flagged(image_BCHW)

    def shortened(self, steps: int) -> "Editor":
        """The same with the noisiest `steps` steps of each pass: as much memory, a share of the work."""
        short = copy(self)
        short.schedule = self.schedule[:steps]
        short.inversion_steps = self.inversion_steps[-steps:]
        return short

    @torch.no_grad()
    def __call__(
        self, image_BCHW: Tensor | None, captions: Sequence[str], keys: Sequence[str], reconstruct: bool
    ) -> Edited:
        """Edit images B x 3 x H x W in [-1, 1], or with None images that the captions make.

        keys: an image's draws derive from the run's seed and its key, not from the batch around it.
        reconstruct: give the reconstruction too; of images that captions make it is always there.
        """
        synthetic = image_BCHW is None
        follow_reference = reconstruct or synthetic

        # 1. Texts: of the input, of the edit, and what classifier-free guidance leads away from.
        swapped = [swap_words(caption, self.config.task) for caption in captions]
        texts = self._texts(captions, swapped, synthetic)

        # 2. Noise to start from: the image's, inverted or noised; without an image drawn.
        input_BChw = None if image_BCHW is None else self.teacher.encode(image_BCHW)
        generators = [torch.Generator().manual_seed(sample_seed(self.config.seed, key)) for key in keys]
        if input_BChw is not None and self.method.noise in ("ddim", "regularised"):
            start = self._invert(input_BChw, texts.caption, generators)
        else:
            start = self._draw(input_BChw, generators)

        # 3. Two trajectories from there: the reference, which reconstructs the input, and the edit.
        noise_BChw = start.inverted_BCHW
        if self.method.replaced:
            alignment = align_tokens(self.teacher, captions, swapped)
            reference_BChw, edit_BChw = edit_by_replacing(
                self.teacher, self.schedule, noise_BChw, texts, self.guidance.scale, alignment
            )
        elif self.official:
            reference_BChw, edit_BChw = edit_as_published(
                self.teacher, self.schedule, noise_BChw, texts, self.guidance, follow_reference
            )
        else:
            reference_BChw, edit_BChw = edit_in_lockstep(
                self.teacher, self.schedule, noise_BChw, texts, self.guidance, follow_reference, start.maps
            )

        # 4. Pictures of the latents; the input where the edit leaves it alone.
        made = {"edit": edit_BChw}
        if follow_reference:
            made["input" if synthetic else "reconstruction"] = reference_BChw
        pictures = {name: self.teacher.decode(latent_BChw) for name, latent_BChw in made.items()}
        before_BCHW = pictures["input"] if image_BCHW is None else image_BCHW.to(pictures["edit"].device)
        pictures["edit"] = keep_unchanged(before_BCHW, pictures["edit"], self.config.edit.keep)
        latents = {} if input_BChw is None else {"input": input_BChw}
        return Edited(pictures, latents | {"inverted": noise_BChw} | made, start.noises())

    def _texts(self, captions: Sequence[str], swapped: Sequence[str], synthetic: bool) -> Texts:
        """The text embeddings of an edit. synthetic: the captions make the images."""
        caption_BTD = self.teacher.embed(captions)
        if self.method.text == "direction":
            edited_BTD = caption_BTD + self.direction.value_1TD
        else:
            edited_BTD = self.teacher.embed(swapped)
        negative = self.guidance.negative
        if negative == "auto":
            negative = "empty" if synthetic else "caption"
        if negative == "caption":
            return Texts(caption_BTD, edited_BTD, caption_BTD)
        empty_BTD = self.teacher.embed([""] * len(captions))
        if synthetic or self.official:
            return Texts(caption_BTD, edited_BTD, empty_BTD, reference_negative=empty_BTD)
        # An image's reference undoes an inversion, which is unguided: it follows the caption alone.
        return Texts(caption_BTD, edited_BTD, empty_BTD)

    def _invert(
        self, input_BChw: Tensor, caption_BTD: Tensor, generators: Sequence[torch.Generator]
    ) -> Inverted:
        """The noise of latents by inversion, with guidance.maps=inversion also maps to guide by.

        Those of all guided steps but the first: the inversion ends at its level, and predicts its
        last noise one level below.
        """
        map_steps = 0
        if self.guidance.maps == "inversion":
            map_steps = max(count_guided(len(self.schedule), self.guidance) - 1, 0)
        steps = self.inversion_steps
        return invert(self.teacher, steps, input_BChw, caption_BTD, generators, self.inversion, map_steps)

    def _draw(self, input_BChw: Tensor | None, generators: Sequence[torch.Generator]) -> Inverted:
        """White noise, drawn for each image; or with latents these, noised to the first step's level.

        Noised as by Ho et al. 2020 (DDPM), eq. 4.
        """
        draws = [torch.randn(self.teacher.latent_shape, generator=generator) for generator in generators]
        white_BChw = torch.stack(draws).to(self.teacher.device)
        if input_BChw is None:
            return Inverted(white_BChw)
        alpha = self.schedule[0].alpha
        return Inverted(alpha**0.5 * input_BChw + (1 - alpha) ** 0.5 * white_BChw)


class PictureEditor:
    """A method that edits pictures without a Stable Diffusion teacher; a subclass says how, in `edit`.

    It may use any key of the configuration, and is made again from it in every process. UserError for
    one that it cannot use, in `check` where that is known before anything is loaded.
    """

    batch = 8  # pictures edited together, unless generate.batch= says how many

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device

    @classmethod
    def check(cls, config: Config) -> None:
        """UserError for what is known to be wrong before anything is loaded or written."""

    @property
    def report(self) -> str:
        """What is printed of it before the first pair."""
        return f"edited by {self.config.edit.method}"

    @property
    def made_by(self) -> dict[str, Any]:
        """What the record of every pair says of it, as JSON."""
        return {"method": self.config.edit.method}

    def edit(
        self, image_BCHW: Tensor, captions: Sequence[str], generators: Sequence[torch.Generator]
    ) -> Edited:
        """Edit images B x 3 x H x W in [-1, 1] on the CPU: `Edited({"edit": edit_BCHW})`, of the same shape.

        generators: on the CPU, one an image, from which all its random draws come.
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self, image_BCHW: Tensor | None, captions: Sequence[str], keys: Sequence[str], reconstruct: bool
    ) -> Edited:
        """As Editor.__call__; there is no reconstruction. UserError where captions should make the images."""
        method = self.config.edit.method
        if image_BCHW is None:
            raise UserError(f"edit.method={method} edits pictures: name them with source.images=FOLDER")
        generators = [torch.Generator().manual_seed(sample_seed(self.config.seed, key)) for key in keys]
        edited = self.edit(image_BCHW, captions, generators)
        edit_BCHW = edited.pictures["edit"].float().cpu()
        if edit_BCHW.shape != image_BCHW.shape:
            shapes = f"{tuple(edit_BCHW.shape)} for pictures of {tuple(image_BCHW.shape)}"
            raise UserError(f"edit.method={method} gave {shapes}: an edit has the shape of its input")
        kept_BCHW = keep_unchanged(image_BCHW, edit_BCHW, self.config.edit.keep)
        return replace(edited, pictures={**edited.pictures, "edit": kept_BCHW})

    def read_of(self, caption: str) -> str | None:
        """What is read of a caption that is too long; None where all of it is."""
        return None

    def flagged(self, image_BCHW: Tensor) -> list[bool]:
        """Which images in [-1, 1] it objects to, beside those that Edited.flagged names."""
        return [False] * len(image_BCHW)


def picture_editor(method: str) -> type[PictureEditor]:
    """The class of a method that has no teacher. UserError where its entry names none."""
    module, _, name = METHODS[method].editor.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"edit.method={method}: configs/methods.py names {module}:{name}: {error}") from error


def swap_words(caption: str, task: Task) -> str:
    """The caption with the task's source words replaced by its target words (task.swap).

    Where that changes nothing, the caption with the target appended.
    """
    swapped = caption
    if task.swap:
        words = "|".join(map(re.escape, task.swap))

        targets = {source.lower(): target for source, target in task.swap.items()}

        def target_word(match: re.Match) -> str:
            return targets[match[0].lower()]

        swapped = re.sub(rf"\b({words})\b", target_word, caption, flags=re.IGNORECASE)
    return swapped if swapped != caption else f"{caption}, {task.target}"


def sample_seed(seed: int, key: str) -> int:
    """A 63-bit seed of the run's seed and a sample's key."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") >> 1
