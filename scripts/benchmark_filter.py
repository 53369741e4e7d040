"""What `scripts/benchmark.py filter` times: our batches beside the plain use of the same libraries, one picture at a time.

Both score the same pairs in memory with the same networks: CLIP, segment-anything's masks with CLIP's look at each, LPIPS, sharpness.
Crops and sharpness are made by the same functions.
B batch, C channels, H W pixels, N texts, D feature width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

from configs.schema import Config
from filter.scores import PairScorer, sharpness
from generate.shards import Pair
from models.clip_scorer import ClipScorer
from models.devices import pick_device
from models.miniature.scenes import Look, render, scene
from models.perceptual import Perceptual, perceptual_loss
from models.segmenter import CROP_MARGIN, MIN_AREA, MIN_NOUN_PROBABILITY, OUTSIDE, Segmenter, masked_crop
from scripts.measure.timing import Found, measure

SIDE = 512  # of the pictures at the real size
MASKS_WANTED = 100  # a picture, at the real size: about what the real weights propose for a photograph
NOUN = "tree"  # of a task that names none, so that the segmenter is timed too


def benchmark_filter(config: Config) -> Found:
    """Stage 2: the plain loop against PairScorer. With benchmark.architecture both have random weights and limits that let about
    MASKS_WANTED masks of the first picture through.
    """
    if not config.task.source_noun:
        config = replace(config, task=replace(config.task, source_noun=NOUN, target_noun=NOUN))
    device, count, of_plain = (
        pick_device(config.device),
        config.benchmark.pairs,
        config.benchmark.plain_pairs,
    )
    real, clip, sam = bool(config.benchmark.architecture), None, None
    pairs = scene_pairs(max(count, of_plain), SIDE if real else config.teacher.resolution)
    if real:
        torch.manual_seed(0)
        network = (
            open_clip.create_model("ViT-L-14", pretrained=None, device=device, force_quick_gelu=True)
            .eval()
            .requires_grad_(False)
        )
        clip = network, open_clip.get_tokenizer("ViT-L-14")
        sam = sam_model_registry["vit_h"](checkpoint=None).to(device).eval().requires_grad_(False)
        every = SamAutomaticMaskGenerator(
            sam, config.segmenter.points_per_side, pred_iou_thresh=-1e9, stability_score_thresh=-1.0
        )
        ious = sorted(
            (found["predicted_iou"] for found in every.generate(pairs[0].images["input"])), reverse=True
        )
        least = ious[:MASKS_WANTED][-1] - 1e-6
        config = replace(
            config, segmenter=replace(config.segmenter, min_predicted_iou=least, min_stability=-1.0)
        )
    scorer = ClipScorer(config.scorer, device, clip)
    segmenter = Segmenter(config.segmenter, scorer, device, sam)
    plain, ours = (
        PlainScorer(config, scorer, segmenter, perceptual_loss(device)),
        PairScorer(config, device, scorer, segmenter),
    )
    batches = [
        pairs[start : min(start + config.filter.batch, count)]
        for start in range(0, count, config.filter.batch)
    ]

    def run_plain(some: list[Pair]) -> None:
        for pair in some:
            plain(pair.images["input"], pair.images["edit"])

    def run_ours(some: list[list[Pair]]) -> None:
        for batch in some:
            ours(batch)

    name = f"ours, batches of {len(batches[0])}"
    rows = {
        "plain, one picture at a time": measure(
            partial(run_plain, pairs[:of_plain]), of_plain, device, partial(run_plain, pairs[:1])
        ),
        name: measure(partial(run_ours, batches), count, device, partial(run_ours, batches[:1])),
    }
    models = (
        "SAM ViT-H, CLIP ViT-L-14, random weights"
        if real
        else f"{config.segmenter.model}, {config.scorer.model}"
    )
    high, wide, _ = pairs[0].images["input"].shape
    points = f"{config.segmenter.points_per_side} x {config.segmenter.points_per_side} points, {np.mean(plain.masks):.0f} masks a picture"
    dtype = config.filter.dtype if device.type == "cuda" else "float32"
    return Found(f"{models}, {high} x {wide}, {points}, {dtype}", device, rows, name)


class PlainScorer:
    """One pair's raw scores as the libraries' own examples compute them, in float32. masks: how many were proposed for each picture."""

    def __init__(
        self, config: Config, scorer: ClipScorer, segmenter: Segmenter, perceptual: Perceptual
    ) -> None:
        self.settings, self.scorer, self.lpips, self.masks = (
            config.segmenter,
            scorer,
            perceptual.lpips,
            list[int](),
        )
        limits = {
            "pred_iou_thresh": self.settings.min_predicted_iou,
            "stability_score_thresh": self.settings.min_stability,
        }
        self.generator = SamAutomaticMaskGenerator(segmenter.sam, self.settings.points_per_side, **limits)
        self.preprocess = image_transform_v2(
            PreprocessCfg(**scorer.model.visual.preprocess_cfg), is_train=False
        )
        self.texts_ND = scorer.text_features((config.task.source, config.task.target))
        nouns, others = (config.task.source_noun, config.task.target_noun), self.settings.other_nouns
        self.nouns_ND = [
            scorer.text_features([noun, *(other for other in others if other != noun)]) for noun in nouns
        ]

    @torch.no_grad()
    def __call__(self, image: np.ndarray, edit: np.ndarray) -> dict[str, Any]:
        """clip_gain, overlap_iou, lpips_input_edit, sharpness_input and sharpness_edit."""
        pictures = image, edit
        before, after = (self._features(picture) @ self.texts_ND.T for picture in pictures)
        first, second = (
            self._mask(picture, nouns_ND) for picture, nouns_ND in zip(pictures, self.nouns_ND, strict=True)
        )
        levels = [
            torch.tensor(picture).permute(2, 0, 1)[None].to(self.scorer.device).float()
            for picture in pictures
        ]
        return {
            "clip_gain": float(after[0, 1] - before[0, 1]),
            "overlap_iou": (first & second).sum() / (first | second).sum()
            if first.any() and second.any()
            else None,
            "lpips_input_edit": float(self.lpips(*(level / 127.5 - 1 for level in levels))),
            "sharpness_input": float(sharpness(levels[0])),
            "sharpness_edit": float(sharpness(levels[1])),
        }

    def _features(self, image: np.ndarray) -> torch.Tensor:
        return self.scorer.model.encode_image(
            self.preprocess(Image.fromarray(image))[None].to(self.scorer.device), normalize=True
        )

    def _mask(self, image: np.ndarray, nouns_ND: torch.Tensor) -> np.ndarray:
        chosen_HW, image_CHW = (
            np.zeros(image.shape[:2], dtype=bool),
            torch.tensor(image).permute(2, 0, 1).float(),
        )
        proposed = self.generator.generate(image)
        self.masks.append(len(proposed))
        for found in (
            found for found in proposed if found["area"] >= max(1, MIN_AREA * chosen_HW.size)
        ):
            (left, top, width, height), mask_HW = (
                map(int, found["bbox"]),
                found["segmentation"],
            )  # floats where points had no mask
            box = left, top, left + width, top + height
            crop_CHW = masked_crop(
                image_CHW, torch.from_numpy(mask_HW), box, CROP_MARGIN, OUTSIDE
            )
            logits = (
                self.scorer.logit_scale
                * self._features(crop_CHW.byte().permute(1, 2, 0).numpy())
                @ nouns_ND.T
            )
            if logits.softmax(-1)[0, 0] >= MIN_NOUN_PROBABILITY:
                chosen_HW |= mask_HW
        return chosen_HW


def scene_pairs(count: int, side: int) -> list[Pair]:
    """Rendered scenes in summer and winter, side x side."""

    def picture(seed: int, season: str) -> np.ndarray:
        return np.asarray(
            render(scene(seed), Look(season=season)).resize((side, side), Image.Resampling.BICUBIC)
        )

    return [
        Pair(str(seed), {"input": picture(seed, "summer"), "edit": picture(seed, "winter")}, {})
        for seed in range(count)
    ]
