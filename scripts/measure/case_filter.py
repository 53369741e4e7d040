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
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor, nn

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
BLOCKS = (
    10  # a side, of random weights' masks: 100 a picture, about what real weights propose for a photograph
)
LOGIT = 20.0  # of a mask inside, and minus it outside: sharp enough to be stable
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
        propose_blocks(sam)
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


def propose_blocks(sam: Sam) -> None:
    """Let a Sam of random weights propose BLOCKS x BLOCKS masks of a square picture, in any arithmetic.

    By themselves all of its masks have the box of the whole picture, of which one stays, and rounding
    decides whether its score passes a limit. Its networks still do all their work; then their answer
    for a point is replaced: the first mask is the block of the picture in which the point lies, and
    the only one with a score that passes.
    """
    points: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: object, named: dict[str, Any]) -> None:
        coordinates_P12, _labels = named["points"]
        points[:] = [coordinates_P12[:, 0]]

    def answer(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        low_P3HW, iou_P3 = output
        block_P2 = (points[0] / sam.image_encoder.img_size * BLOCKS).long()  # across and down
        side = low_P3HW.shape[-1]
        block_S = torch.arange(side, device=low_P3HW.device) * BLOCKS // side  # of a column, and of a row
        inside_PS2 = block_S[None, :, None] == block_P2[:, None]
        mask_PHW = inside_PS2[:, :, None, 1] & inside_PS2[:, None, :, 0]
        low_P3HW = torch.where(mask_PHW[:, None], LOGIT, -LOGIT).expand_as(low_P3HW)
        return low_P3HW, torch.eye(3, device=iou_P3.device)[0].expand_as(iou_P3)

    sam.prompt_encoder.register_forward_pre_hook(remember, with_kwargs=True)
    sam.mask_decoder.register_forward_hook(answer)


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
