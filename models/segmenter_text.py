"""The foreground mask of a noun from transformers: Grounding DINO finds it by its name, SAM 2 draws the mask of each box.

Not SAM 3, which does both at once: these two's weights are free to fetch (Apache licence), SAM 3's must be applied for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from configs.errors import UserError
from configs.files import find_file
from configs.schema import Segmenter as Settings

EXAMPLES = {"detector": "IDEA-Research/grounding-dino-base", "model": "facebook/sam2.1-hiera-large"}


class TextSegmenter:
    """Noun -> mask. UserError where a model or its weights cannot be found."""

    def __init__(self, segmenter: Settings, device: torch.device | str = "cpu"):
        self.settings, self.device = segmenter, torch.device(device)
        detector_classes = transformers.GroundingDinoForObjectDetection, transformers.GroundingDinoProcessor
        self.detector, self.detector_processor = _load(*detector_classes, "detector", segmenter.detector)
        self.drawer, self.drawer_processor = _load(
            transformers.Sam2Model, transformers.Sam2Processor, "model", segmenter.model
        )
        for model in (self.detector, self.drawer):
            model.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], noun: str) -> list[np.ndarray]:
        """As NounSegmenter says: the union over all boxes of segmenter.min_box_score and more."""
        masks = [np.zeros(image.shape[:2], dtype=bool) for image in images]
        found = {place: boxes for place, boxes in enumerate(self._boxes(images, noun)) if boxes}
        if found:
            most = max(map(len, found.values()))
            filled = [
                boxes + boxes[:1] * (most - len(boxes)) for boxes in found.values()
            ]  # a union does not mind repeats
            pictures = [np.array(images[place]) for place in found]
            shown = self.drawer_processor(images=pictures, input_boxes=filled, return_tensors="pt").to(
                self.device
            )
            logits = self.drawer(**shown, multimask_output=False).pred_masks.float()
            drawn = self.drawer_processor.post_process_masks(logits, shown["original_sizes"])
            for place, mask in zip(found, drawn, strict=True):
                masks[place] = mask.flatten(0, -3).any(dim=0).cpu().numpy()
        return masks

    def _boxes(self, images: Sequence[np.ndarray], noun: str) -> list[list[list[float]]]:
        """Left, top, right, bottom in pixels of each box that shows the noun, image by image."""
        text = f"{noun.lower().strip('. ')}."  # the form that Grounding DINO was trained on
        pictures, sizes = [np.array(image) for image in images], [image.shape[:2] for image in images]
        asked = self.detector_processor(images=pictures, text=[text] * len(images), return_tensors="pt").to(
            self.device
        )
        measure = self.detector_processor.post_process_grounded_object_detection
        found = measure(
            self.detector(**asked), asked["input_ids"], self.settings.min_box_score, target_sizes=sizes
        )
        return [item["boxes"].tolist() for item in found]


def _load(model_class: Any, processor_class: Any, key: str, name: str) -> tuple[Any, Any]:
    """The model and its processor from a folder or the hub. UserError where they are not there or lack weights: never random ones."""
    advice = f"it is a hub name such as {EXAMPLES[key]}, fetched once (without a network: fetch it elsewhere), or the folder of one"
    try:
        model, report = model_class.from_pretrained(
            find_file(name), output_loading_info=True, use_safetensors=True
        )
        processor = processor_class.from_pretrained(find_file(name))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"segmenter.{key}={name} cannot be loaded ({reason}): {advice}") from error
    if report["missing_keys"]:
        raise UserError(
            f"segmenter.{key}={name} lacks weights of {model_class.__name__} ({min(report['missing_keys'])}, ...): {advice}"
        )
    return model, processor
