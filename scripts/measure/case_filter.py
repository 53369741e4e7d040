"""What `scripts/benchmark.py filter` times: our batches beside the plain use of the same libraries.

Both score the same pairs in memory with the same networks: CLIP, segment-anything's masks with
CLIP's look at each, LPIPS, sharpness.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

from configs.schema import Config
from filter.scores import PairScorer
from generate.shards import Pair
from models.clip_scorer import ClipScorer
from models.devices import pick_device
from models.miniature.scenes import Look, render, scene
from models.perceptual import perceptual_loss
from models.segmenter import Segmenter
from scripts.measure.benchmark import Result
from scripts.measure.plain_scorer import PlainScorer
from scripts.measure.timing import measure

SIDE = 512  # of the pictures at the real size
MASKS_WANTED = 100  # a picture, at the real size: about what the real weights propose for a photograph
NOUN = "tree"  # of a task that names none, so that the segmenter is timed too


def run(config: Config) -> Result:
    """Stage 2: the plain scoring of one pair, then ours of benchmark.pairs in batches."""
    if not config.task.source_noun:
        config = replace(config, task=replace(config.task, source_noun=NOUN, target_noun=NOUN))
    device = pick_device(config.device)
    count = config.benchmark.pairs
    real_size = bool(config.benchmark.architecture)
    pairs = scene_pairs(count, SIDE if real_size else config.teacher.resolution)

    clip = None
    sam = None
    if real_size:
        torch.manual_seed(0)
        clip = random_clip(device)
        sam = sam_model_registry["vit_h"](checkpoint=None).to(device).eval().requires_grad_(False)
        config = with_masks_let_through(config, sam, pairs[0].images["input"])
    scorer = ClipScorer(config.scorer, device, clip)
    segmenter = Segmenter(config.segmenter, scorer, device, sam)

    plain = PlainScorer(config, scorer, segmenter, perceptual_loss(device))
    ours = PairScorer(config, device, scorer, segmenter)
    size = config.filter.batch
    batches = [pairs[start : start + size] for start in range(0, count, size)]
    name = f"ours, batches of {len(batches[0])}"
    plain_call = partial(_score_all, plain, pairs[:1])
    first_batch = partial(_score_all, ours, batches[:1])
    rows = {
        "plain, one picture at a time": measure(plain_call, 1, device, plain_call),
        name: measure(partial(_score_all, ours, batches), count, device, first_batch),
    }

    models = f"{config.segmenter.model}, {config.scorer.model}"
    if real_size:
        models = "SAM ViT-H, CLIP ViT-L-14, random weights"
    height, width, _ = pairs[0].images["input"].shape
    points = config.segmenter.points_per_side
    dtype = config.filter.dtype if device.type == "cuda" else "float32"
    timed = (
        f"{models}, {height} x {width}, {points} x {points} points, "
        f"{np.mean(plain.masks_proposed):.0f} masks a picture, {dtype}"
    )
    return Result(timed, device, rows, name)


def random_clip(device: torch.device) -> tuple[Any, Any]:
    """CLIP ViT-L-14 with random weights, and its tokenizer."""
    network = open_clip.create_model("ViT-L-14", pretrained=None, device=device, force_quick_gelu=True)
    return network.eval().requires_grad_(False), open_clip.get_tokenizer("ViT-L-14")


def with_masks_let_through(config: Config, sam: Any, image_HWC: np.ndarray) -> Config:
    """The configuration with limits that let the best MASKS_WANTED masks of this picture through.

    Random weights would pass no limit that is meant for trained ones. What they predict of their masks
    is nearly one number, within the rounding of bfloat16, so that no limit would hold there: the
    layer that predicts is scaled, in place, until the masks of this picture deviate by 1 from a mean of 10.
    """
    points = config.segmenter.points_per_side
    unlimited = SamAutomaticMaskGenerator(sam, points, pred_iou_thresh=-1e9, stability_score_thresh=-1.0)
    ious_M = np.array([proposal["predicted_iou"] for proposal in unlimited.generate(image_HWC)])
    mean = ious_M.mean()
    deviation = max(ious_M.std(), 1e-9)
    last = sam.mask_decoder.iou_prediction_head.layers[-1]
    last.weight /= deviation
    last.bias.copy_((last.bias - mean) / deviation + 10)
    lowest = np.sort((ious_M - mean) / deviation + 10)[-MASKS_WANTED:][0]
    segmenter = replace(config.segmenter, min_predicted_iou=lowest - 1e-3, min_stability=-1.0)
    return replace(config, segmenter=segmenter)


def scene_pairs(count: int, side: int) -> list[Pair]:
    """Rendered scenes in summer and winter, side x side."""
    pairs = []
    for seed in range(count):
        images = {"input": _picture(seed, "summer", side), "edit": _picture(seed, "winter", side)}
        pairs.append(Pair(str(seed), images, {}))
    return pairs


def _picture(seed: int, season: str, side: int) -> np.ndarray:
    picture = render(scene(seed), Look(season=season))
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))


def _score_all(score: Callable[[Any], object], batches: Sequence[Any]) -> None:
    for batch in batches:
        score(batch)
