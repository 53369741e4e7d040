"""Captions by BLIP (Li et al. 2022) for images that bring none."""

from collections.abc import Sequence

import numpy as np
import torch

from configs.errors import UserError
from configs.loader import find_file

MAX_TOKENS = 40  # BLIP's captions have about ten


class Captioner:
    """A BLIP captioning model of transformers, from a hub name or a folder. UserError where it does not load."""

    def __init__(self, path: str, device: torch.device) -> None:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        try:
            self.processor = BlipProcessor.from_pretrained(find_file(path))
            self.model = BlipForConditionalGeneration.from_pretrained(find_file(path)).to(device).eval()
        except (OSError, ValueError) as error:
            message = f"source.captioner={path} does not load as a BLIP model: {str(error).splitlines()[0][:200]}"
            advice = "Salesforce/blip-image-captioning-base is one; name a folder where the hub is not reached"
            raise UserError(f"{message}. {advice}") from error

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[str]:
        """One caption for each RGB uint8 image: the most probable words (greedy), the same every time."""
        pixels = self.processor(images=[image.copy() for image in images], return_tensors="pt").pixel_values.to(self.model.device)
        words = self.model.generate(pixel_values=pixels, max_new_tokens=MAX_TOKENS, num_beams=1, do_sample=False)
        return [text.strip() for text in self.processor.batch_decode(words, skip_special_tokens=True)]
