"""The plain use of the scoring libraries: the baseline of `benchmark.py filter`, a test's truth.

One picture at a time, in float32, as the libraries' own examples do it. Crops and sharpness are made
by the functions that the filter uses: they are not what is timed.

C channels, H W pixels, N texts, D width of a feature.
"""

from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator

from configs.schema import Config
from generate.shards import Pair
from models.clip_scorer import ClipScorer
from models.perceptual import Perceptual
from models.pictures import sharpness, to_signed
from models.segmenter import CROP_MARGIN, MIN_AREA, MIN_NOUN_PROBABILITY, OUTSIDE, Segmenter, masked_crop


class PlainScorer:
    """The raw scores of one pair.

    masks_proposed: how many masks segment-anything gave for each picture so far.
    """

    def __init__(
        self, config: Config, scorer: ClipScorer, segmenter: Segmenter, perceptual: Perceptual
    ) -> None:
        task = config.task
        self.settings = config.segmenter
        self.scorer = scorer
        self.lpips = perceptual.lpips
        self.masks_proposed: list[int] = []
        self.generator = SamAutomaticMaskGenerator(
            segmenter.sam,
            self.settings.points_per_side,
            pred_iou_thresh=self.settings.min_predicted_iou,
            stability_score_thresh=self.settings.min_stability,
        )
        preprocessing = PreprocessCfg(**scorer.model.visual.preprocess_cfg)
        self.preprocess = image_transform_v2(preprocessing, is_train=False)
        self.target_D = scorer.text_features((task.source, task.target))[1]
        self.source_nouns_ND = self._noun_features(task.source_noun)
        self.target_nouns_ND = self._noun_features(task.target_noun)

    @torch.no_grad()
    def __call__(self, pair: Pair) -> dict[str, Any]:
        """clip_gain, overlap_iou, lpips_input_edit, sharpness_input and sharpness_edit."""
        before = pair.images["input"]
        after = pair.images["edit"]
        gain_1 = self._features(after) @ self.target_D - self._features(before) @ self.target_D
        first_HW = self._mask(before, self.source_nouns_ND)
        second_HW = self._mask(after, self.target_nouns_ND)
        overlap = None
        if first_HW.any() and second_HW.any():
            overlap = (first_HW & second_HW).sum() / (first_HW | second_HW).sum()
        before_1CHW = self._levels(before)
        after_1CHW = self._levels(after)
        return {
            "clip_gain": float(gain_1),
            "overlap_iou": overlap,
            "lpips_input_edit": float(self.lpips(to_signed(before_1CHW), to_signed(after_1CHW))),
            "sharpness_input": float(sharpness(before_1CHW)),
            "sharpness_edit": float(sharpness(after_1CHW)),
        }

    def _noun_features(self, noun: str) -> torch.Tensor:
        """Of the noun, then of the other nouns that a mask may show, N x D."""
        others = [other for other in self.settings.other_nouns if other != noun]
        return self.scorer.text_features([noun, *others])

    def _levels(self, image_HWC: np.ndarray) -> torch.Tensor:
        """1 x C x H x W, float, 0 to 255."""
        return torch.tensor(image_HWC).permute(2, 0, 1)[None].to(self.scorer.device).float()

    def _features(self, image_HWC: np.ndarray) -> torch.Tensor:
        """CLIP's unit feature of a picture, 1 x D."""
        pixels_1CHW = self.preprocess(Image.fromarray(image_HWC))[None].to(self.scorer.device)
        return self.scorer.model.encode_image(pixels_1CHW, normalize=True)

    def _mask(self, image_HWC: np.ndarray, nouns_ND: torch.Tensor) -> np.ndarray:
        """Bool H x W: the union of those proposed masks that CLIP takes for the first of the nouns."""
        image_CHW = torch.tensor(image_HWC).permute(2, 0, 1).float()
        chosen_HW = np.zeros(image_HWC.shape[:2], dtype=bool)
        smallest = max(1, MIN_AREA * chosen_HW.size)
        proposals = self.generator.generate(image_HWC)
        self.masks_proposed.append(len(proposals))
        for proposal in proposals:
            if proposal["area"] < smallest:
                continue
            # The library gives floats where some of the points had no mask.
            left, top, width, height = map(int, proposal["bbox"])
            box = (left, top, left + width, top + height)
            mask_HW = torch.from_numpy(proposal["segmentation"])
            crop_CHW = masked_crop(image_CHW, mask_HW, box, CROP_MARGIN, OUTSIDE)
            feature_1D = self._features(crop_CHW.byte().permute(1, 2, 0).numpy())
            logits_1N = self.scorer.logit_scale * feature_1D @ nouns_ND.T
            if logits_1N.softmax(-1)[0, 0] >= MIN_NOUN_PROBABILITY:
                chosen_HW |= proposal["segmentation"]
        return chosen_HW
