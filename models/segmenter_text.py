"""The foreground mask of a noun from transformers: Grounding DINO finds its boxes, SAM 2 draws their masks.

Liu et al. 2023, "Grounding DINO"; Ravi et al. 2024, "SAM 2". Not SAM 3, which does both at once: the weights
of these two are free to fetch (Apache licence), SAM 3's must be applied for.
Shapes: H W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
import transformers

from configs.schema import Segmenter as Settings
from models.weights import from_transformers

MIN_BOX_SCORE = 0.3  # of the boxes that count; Grounding DINO's own choice is 0.25 to 0.35
ADVICE = {
    "detector": "it is a Grounding DINO, as IDEA-Research/grounding-dino-base, or the folder of one",
    "model": "with segmenter.detector it is a SAM 2, as facebook/sam2.1-hiera-large, or the folder of one",
}
Box = list[float]  # left, top, right and bottom in pixels


class TextSegmenter:
    """Noun -> mask. UserError where a model or its weights cannot be found."""

    def __init__(self, settings: Settings, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.detector, self.detector_processor = from_transformers(
            transformers.GroundingDinoForObjectDetection,
            transformers.GroundingDinoProcessor,
            "segmenter.detector",
            settings.detector,
            ADVICE["detector"],
        )
        self.drawer, self.drawer_processor = from_transformers(
            transformers.Sam2Model,
            transformers.Sam2Processor,
            "segmenter.model",
            settings.model,
            ADVICE["model"],
        )
        for model in (self.detector, self.drawer):
            model.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], noun: str) -> list[np.ndarray]:
        """Bool H x W mask of the noun in each RGB uint8 image H x W x 3; all False where there is none.

        It is the union of the masks that are drawn in all its boxes.
        """
        boxes = self.find(images, noun)
        with_boxes = [place for place, image_boxes in enumerate(boxes) if image_boxes]
        masks = [np.zeros(image.shape[:2], dtype=bool) for image in images]
        if with_boxes:
            shown = [images[place] for place in with_boxes]
            drawn = self.draw(shown, [boxes[place] for place in with_boxes])
            for place, mask in zip(with_boxes, drawn, strict=True):
                masks[place] = mask
        return masks

    def find(self, images: Sequence[np.ndarray], noun: str) -> list[list[Box]]:
        """The boxes that show the noun, image by image, by Grounding DINO."""
        text = f"{noun.lower().strip('. ')}."  # the form that Grounding DINO was trained on
        pictures = [np.array(image) for image in images]
        texts = [text] * len(images)
        inputs = self.detector_processor(images=pictures, text=texts, return_tensors="pt")
        inputs = inputs.to(self.device)
        detections = self.detector_processor.post_process_grounded_object_detection(
            self.detector(**inputs),
            inputs["input_ids"],
            MIN_BOX_SCORE,
            target_sizes=[image.shape[:2] for image in images],
        )
        return [detection["boxes"].tolist() for detection in detections]

    def draw(self, images: Sequence[np.ndarray], boxes: Sequence[list[Box]]) -> list[np.ndarray]:
        """Bool H x W for each image: the union of the masks that SAM 2 draws in its boxes, one or more."""
        most = max(len(image_boxes) for image_boxes in boxes)
        filled = []  # every image needs as many: its first box is repeated, which changes no union
        for image_boxes in boxes:
            filled.append(image_boxes + image_boxes[:1] * (most - len(image_boxes)))
        pictures = [np.array(image) for image in images]
        inputs = self.drawer_processor(images=pictures, input_boxes=filled, return_tensors="pt")
        inputs = inputs.to(self.device)
        logits = self.drawer(**inputs, multimask_output=False).pred_masks.float()
        masks = []
        for drawn in self.drawer_processor.post_process_masks(logits, inputs["original_sizes"]):
            masks.append(drawn.flatten(0, -3).any(dim=0).cpu().numpy())  # over the boxes
        return masks
