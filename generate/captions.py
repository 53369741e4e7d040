"""Captions of the inputs: which one an image gets, and BLIP for images that bring none.

In this order: source.caption for every image; the image's own (a text beside it, a tar's txt or
json member, the description of a rendered scene); the captioner's, where source.captioner names
one; the task's template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from configs.schema import Source, Task

if TYPE_CHECKING:
    import torch

    from generate.sources import InputImage

# What a record calls a caption's origin, beside the names that the sources give to an image's own.
FROM_KEY = "source.caption"
FROM_CAPTIONER = "source.captioner"
FROM_TEMPLATE = "task.caption"

MAX_TOKENS = 40  # BLIP's captions have about ten

# RGB uint8 images H x W x 3 -> a caption for every image
Captioner = Callable[[Sequence[np.ndarray]], list[str]]


def choose_caption(config: Source, task: Task, own: Mapping[str, str]) -> tuple[str, str]:
    """The caption of an image and where it is from, before a captioner has looked at the image.

    own: the texts that the image brings itself, origin -> text, the preferred one first; empty
    texts are passed over.
    """
    if config.caption:
        return config.caption, FROM_KEY
    for origin, text in own.items():
        if text:
            return text, origin
    return task.caption.format(source=task.source), FROM_TEMPLATE


def caption_the_rest(inputs: Sequence[InputImage], captioner: Captioner | None) -> list[InputImage]:
    """The inputs, with the captioner's words for those that have no more than the task's template.

    The template stays where there is no captioner, or where it has nothing to say about an image.
    """
    captioned = list(inputs)
    rows = [row for row, item in enumerate(inputs) if item.caption_from == FROM_TEMPLATE]
    if captioner is None or not rows:
        return captioned
    captions = captioner([inputs[row].image for row in rows])
    for row, caption in zip(rows, captions, strict=True):
        if caption:
            captioned[row] = replace(inputs[row], caption=caption, caption_from=FROM_CAPTIONER)
    return captioned


def blip_captioner(path: str, device: torch.device) -> Captioner:
    """A BLIP model (Li et al. 2022) as a captioner, which says the same every time it sees an image.

    path: a hub name or a folder. UserError where it does not load, or lacks a tensor, as a BLIP that
    was made for retrieval does.
    """
    from transformers import BlipForConditionalGeneration, BlipProcessor

    from models.weights import from_transformers

    advice = "Salesforce/blip-image-captioning-base is a BLIP that writes captions"
    model, processor = from_transformers(
        BlipForConditionalGeneration, BlipProcessor, "source.captioner", path, advice
    )
    model.to(device).eval()

    def caption(images: Sequence[np.ndarray]) -> list[str]:
        copies = [image.copy() for image in images]  # PyTorch warns of arrays that may not be written to
        pixels_BCHW = processor(images=copies, return_tensors="pt").pixel_values.to(device)
        # One beam, no sampling: the most probable word, then the most probable one after it, ...
        tokens_BT = model.generate(
            pixel_values=pixels_BCHW, max_new_tokens=MAX_TOKENS, num_beams=1, do_sample=False
        )
        texts = processor.batch_decode(tokens_BT, skip_special_tokens=True)
        return [text.strip() for text in texts]

    return caption
