"""edit.method=pipeline: any pipeline of diffusers that takes a picture and a text makes the edits.

InstructPix2Pix (Brooks et al. 2023), image to image of Stable Diffusion, SDXL or FLUX, and what comes after
them. It is loaded by itself: no teacher, no direction. docs/editors.md says what it takes.

Shapes: B images, H W pixels.
"""

import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from configs.errors import UserError
from configs.files import find_file
from configs.loader import nearest
from configs.schema import Config
from generate.editors import Edited, PictureEditor, swap_words
from models import hub
from models.pictures import images_of
from models.pipeline import load_networks
from models.weights import first_line

KEY = "edit.pipeline"
ADVICE = "name a folder with a model_index.json, as diffusers' save_pretrained writes it, or a hub name"
# Arguments of a pipeline's call that are given here.
GIVEN = ("prompt", "image", "generator", "output_type", "return_dict", "num_images_per_prompt")
# Whose call takes a list of pictures with a list of texts for a batch of edits. To some other pipelines a
# list is several pictures of one edit: those get one picture a call.
BATCHED = (
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLImg2ImgPipeline",
)


class PipelineEditor(PictureEditor):
    """Edits pictures with the pipeline at edit.pipeline. UserError where it does not load."""

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self.origin = f"{KEY}={config.edit.pipeline}"
        folder = hub.local_model(config.edit.pipeline, KEY, ADVICE)
        self.pipeline = load_pipeline(folder, config)
        self.pipeline.to(device)
        first = os.environ.get("RANK", "0") == "0"
        self.pipeline.set_progress_bar_config(disable=not (first and sys.stderr.isatty()), leave=False)
        self.in_batches = type(self.pipeline).__name__ in BATCHED
        if not self.in_batches or device.type == "cpu":
            self.batch = 1  # a CPU is kept busy by one picture, and has memory for few
        # Pictures a call; fewer once the memory was too small.
        self.together = config.generate.batch or self.batch if self.in_batches else 1

    @classmethod
    def check(cls, config: Config) -> None:
        """UserError for a pipeline that is not here or takes no picture, and for arguments it has not.

        What the hub has and this machine has not is looked at when it is loaded.
        """
        name = config.edit.pipeline
        if not name:
            raise UserError(f"edit.method=pipeline: {KEY}= is empty: {ADVICE}")
        path = Path(find_file(name)).expanduser()
        if path.exists():
            pipeline_class(path, config)
        elif not hub.NAME.fullmatch(name):
            raise UserError(f"{KEY}={name}: there is no such folder: {ADVICE}")
        elif folder := hub.cached(name):
            pipeline_class(folder, config)
        elif not hub.hub_is_reached():
            raise UserError(hub.not_reached(name, KEY))

    @property
    def report(self) -> str:
        """What is printed of it before the first pair."""
        text = f"'{self.config.edit.instruction}'" if self.config.edit.instruction else "the swapped captions"
        return f"edited by {self.config.edit.pipeline} ({type(self.pipeline).__name__}) with {text}"

    @property
    def made_by(self) -> dict[str, Any]:
        """What the record of every pair says of it."""
        settings = self.config.edit
        return {
            "method": settings.method,
            "pipeline": settings.pipeline,
            "instruction": settings.instruction,
            "arguments": dict(settings.arguments),
        }

    def edit(
        self, image_BCHW: Tensor, captions: Sequence[str], generators: Sequence[torch.Generator]
    ) -> Edited:
        """As PictureEditor.edit has it. A batch that the GPU's memory does not hold is halved from then on.

        UserError where the pipeline refuses its arguments.
        """
        images = [Image.fromarray(image_HWC) for image_HWC in images_of(image_BCHW)]
        swapped = [swap_words(caption, self.config.task) for caption in captions]
        texts = [self.config.edit.instruction or text for text in swapped]
        states = [generator.get_state() for generator in generators]
        parts: list[Tensor] = []
        flagged: list[bool] = []
        while len(flagged) < len(images):
            rows = slice(len(flagged), len(flagged) + self.together)
            try:
                part_BCHW, flags = self._called(images[rows], texts[rows], generators[rows])
            except torch.OutOfMemoryError:
                tried = len(images[rows])
                if tried == 1:
                    raise
                self.together = tried // 2
                torch.cuda.empty_cache()
                for generator, state in zip(generators[rows], states[rows], strict=True):
                    generator.set_state(state)  # what the call that failed has drawn
                continue
            parts.append(part_BCHW)
            flagged += flags
        return Edited({"edit": self._of_side(torch.cat(parts), image_BCHW.shape[-1])}, flagged=flagged)

    def _called(
        self, images: list[Image.Image], texts: list[str], generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, list[bool]]:
        """The pipeline's pictures B x 3 x H x W in [-1, 1], and which of them its safety checker flags."""
        given: dict[str, Any] = {"image": images, "prompt": texts, "generator": list(generators)}
        if not self.in_batches:
            given = {name: values[0] for name, values in given.items()}
        try:
            output = self.pipeline(**given, output_type="np", **self.config.edit.arguments)
            picture_BHWC = np.stack([np.asarray(picture, np.float32) for picture in output.images])
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.origin} makes no edit of these edit.arguments= and pictures of "
                f"{images[0].width} pixels a side: {first_line(error)}"
            ) from error
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(images)
        if picture_BHWC.shape[0] != len(images) or picture_BHWC.shape[-1] != 3:
            raise UserError(f"{self.origin} gives {picture_BHWC.shape} for {len(images)} pictures")
        return torch.from_numpy(picture_BHWC).permute(0, 3, 1, 2) * 2 - 1, [bool(flag) for flag in flags]

    def _of_side(self, picture_BCHW: Tensor, side: int) -> Tensor:
        """The pictures at the inputs' side; some pipelines have sizes of their own. UserError for oblongs."""
        high, wide = picture_BCHW.shape[-2:]
        if high != wide:
            raise UserError(
                f"{self.origin} gives {wide} x {high} pixels for square pictures: set both in "
                "edit.arguments={height: N, width: N}"
            )
        if high == side:
            return picture_BCHW
        return interpolate(picture_BCHW, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


def load_pipeline(folder: Path, config: Config) -> Any:
    """The pipeline in a folder, every network whole. UserError where it is none, or takes no picture."""
    found, index = pipeline_class(folder, config)
    origin = f"{KEY}={config.edit.pipeline}"
    settings = config.generate
    if not settings.safety_checker and "safety_checker" in index:
        index = {**index, "safety_checker": None}
    parts = load_networks(folder, origin, index, settings.dtype)
    if index.get("safety_checker", True) is None:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    dtype = getattr(torch, settings.dtype)
    try:
        return found.from_pretrained(folder, **parts, dtype=dtype, local_files_only=True)
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{origin} does not load: {first_line(error)}") from error


def pipeline_class(folder: Path, config: Config) -> tuple[Any, dict[str, Any]]:
    """The class that edits pictures with the networks in a folder, and what its model_index.json names.

    It is the class that the folder names or, of a pipeline that makes pictures of texts alone, diffusers'
    image-to-image pipeline of the same family. UserError for a folder that is no pipeline or has none that
    takes a picture and a text, and for edit.arguments= that its call does not take.
    """
    import diffusers
    from diffusers.pipelines.auto_pipeline import AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, _get_task_class

    origin = f"{KEY}={config.edit.pipeline}"
    try:
        index = json.loads((folder / "model_index.json").read_text())
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{origin} is no pipeline ({first_line(error)}): {ADVICE}") from error
    found = getattr(diffusers, str(name), None)
    if found is None:
        raise UserError(
            f"{origin}: diffusers {diffusers.__version__} has no pipeline {name}: a newer one may"
        )
    if "image" not in _call_arguments(found):  # AutoPipelineForImage2Image's own choice
        found = _get_task_class(AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, name, throw_error_if_not_exist=False)
    arguments = _call_arguments(found)
    if not {"image", "prompt"} <= arguments.keys() or "mask_image" in arguments:
        raise UserError(
            f"{origin}: a {name} makes no picture of a picture and a text alone: name one that does"
        )
    _refuse_arguments(config.edit.arguments, arguments, found.__name__)
    return found, index


def _call_arguments(found: Any) -> Mapping[str, inspect.Parameter]:
    """The named arguments of a pipeline's call; none where there is no pipeline."""
    return {} if found is None else inspect.signature(found.__call__).parameters


def _refuse_arguments(given: Mapping[str, Any], known: Mapping[str, Any], name: str) -> None:
    """UserError for the first argument that a pipeline's call has not, or that is given here."""
    free = [argument for argument in known if argument not in ("self", "kwargs", *GIVEN)]
    for argument in given:
        if argument in GIVEN:
            raise UserError(
                f"edit.arguments: {argument} is not free: the text is edit.instruction=, seed= the seed"
            )
        if argument not in free:
            raise UserError(f"edit.arguments: {name} takes no '{argument}'{nearest(argument, free)}")
