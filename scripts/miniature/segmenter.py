"""The segmenter: a small segment-anything model, trained on points in objects and boxes around them.

B images, P prompts of an image, N = B x P prompts, M proposed masks of a prompt, C channels, H W
pixels, D width.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam

from models.devices import pick_device
from models.miniature.scenes import SIZE, instances, render, scene
from models.segmenter import build_sam
from scripts.miniature.data import rendered, varied_look
from scripts.miniature.loop import SHIPPED, autocast, fit, log, write_weights
from scripts.miniature.options import Options

SMALLEST_OBJECT = 24  # px of a mask that is worth asking for
TREE = 128  # added to the label of a tree
TREE_SHARE = 0.7  # of the prompts; the rest is spread over everything else
POINTS = 3  # prompts per picture that are a point
BOXES = 1  # prompts per picture that are a box
PROMPTS = POINTS + BOXES
BOX_JITTER = 0.06  # of the box's side
BRIGHTNESS_JITTER = 0.08
ENTROPY_WEIGHT = 5
EXAMPLE = np.dtype([("picture", np.uint8, (SIZE, SIZE, 3)), ("labels", np.uint8, (SIZE, SIZE))])


def train_segmenter(options: Options) -> None:
    """Train the segmenter in `out`/segmenter."""
    device = pick_device("auto")
    folder = Path(options.out) / "segmenter"
    examples = rendered(options, "labelled", make_example)
    torch.manual_seed(3)
    config = (SHIPPED / "segmenter" / "config.json").read_text()
    sam = build_sam(json.loads(config)).to(device).train()
    log(f"segmenter: {sum(weight.numel() for weight in sam.parameters()):,} parameters")

    def loss_of_step(step: int) -> torch.Tensor:
        batch = sample_batch(examples, step, options.batch, device)
        masks_NMHW, quality_NM = propose(sam, batch)
        return proposal_loss(masks_NMHW, quality_NM, batch.area_NHW)

    fit("segmenter", sam, loss_of_step, options)
    write_weights(sam, folder / "model.safetensors")
    (folder / "config.json").write_text(config)


def make_example(seed: int) -> np.ndarray:
    """A picture and the label of the object that each pixel shows, as an EXAMPLE.

    TREE is added to the label of a tree; label 0 is an object too small to ask for.
    """
    the_scene = scene(seed)
    look = varied_look(seed)
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for index, (noun, area) in enumerate(instances(the_scene, look), 1):
        if area.sum() >= SMALLEST_OBJECT:
            labels[area] = index + (TREE if noun == "tree" else 0)
    return np.array((np.asarray(render(the_scene, look)), labels), EXAMPLE)


@dataclass(frozen=True)
class Prompt:
    """A point (x, y) inside an object, the box (left, top, right, bottom) around it, and its mask, H x W."""

    point: tuple[float, float]
    box: np.ndarray
    area: np.ndarray


def make_prompt(rng: random.Random, labels: np.ndarray) -> Prompt:
    """A prompt for one of the objects, most often a tree, with a box that is a little wrong."""
    present = np.unique(labels)
    trees = present[present >= TREE].tolist()
    others = present[(present > 0) & (present < TREE)].tolist()
    ask_for_tree = trees and (not others or rng.random() < TREE_SHARE)
    area = labels == rng.choice(trees if ask_for_tree else others)
    rows, columns = np.nonzero(area)
    pick = rng.randrange(len(rows))
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
    spread = BOX_JITTER * max(box[2] - box[0], box[3] - box[1])
    box += np.array([rng.gauss(0, spread) for _ in range(4)], np.float32)
    return Prompt((columns[pick] + 0.5, rows[pick] + 0.5), box.clip(0, SIZE), area)


@dataclass(frozen=True)
class Batch:
    """B pictures of levels 0 to 255, and the point, the box and the true mask of each of N prompts."""

    image_BCHW: torch.Tensor
    point_N2: torch.Tensor
    box_N4: torch.Tensor
    area_NHW: torch.Tensor


def sample_batch(examples: np.ndarray, step: int, size: int, device: torch.device) -> Batch:
    """The batch of a step: examples drawn by torch, mirrored or not, of random brightness."""
    rng = random.Random(step * 61 + 5)
    chosen = examples[torch.randint(len(examples), (size,)).numpy()]
    pictures_BHWC = chosen["picture"]
    labels_BHW = chosen["labels"]
    if rng.random() < 0.5:
        pictures_BHWC = pictures_BHWC[:, :, ::-1]
        labels_BHW = labels_BHW[:, :, ::-1]
    prompts = []
    for labels_HW in labels_BHW:
        for _ in range(PROMPTS):
            prompts.append(make_prompt(rng, labels_HW))
    image_BCHW = torch.from_numpy(pictures_BHWC.copy()).to(device).permute(0, 3, 1, 2).float()
    brightness_B111 = 1 + BRIGHTNESS_JITTER * torch.randn(size, 1, 1, 1, device=device)
    points_N2 = np.array([prompt.point for prompt in prompts], np.float32)
    boxes_N4 = np.stack([prompt.box for prompt in prompts])
    areas_NHW = np.stack([prompt.area for prompt in prompts])
    return Batch(
        image_BCHW=image_BCHW * brightness_B111,
        point_N2=torch.from_numpy(points_N2).to(device),
        box_N4=torch.from_numpy(boxes_N4).to(device),
        area_NHW=torch.from_numpy(areas_NHW).to(device),
    )


def propose(sam: Sam, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask logits N x M x h x w, the quality N x M that the model expects of them) of a batch's prompts.

    The first POINTS of a picture's PROMPTS are asked for by their point, the others by their box.
    """
    size = len(batch.image_BCHW)
    with autocast(batch.image_BCHW.device):
        embedding_BDHW = sam.image_encoder(sam.preprocess(batch.image_BCHW))
        # A point comes with a padding token: both kinds of prompt are two tokens long and share a call.
        inside_N1 = torch.ones(len(batch.point_N2), 1, device=batch.point_N2.device)
        of_points_N2D, dense_NDHW = sam.prompt_encoder((batch.point_N2[:, None], inside_N1), None, None)
        of_boxes_N2D, _ = sam.prompt_encoder(None, batch.box_N4, None)
        of_points_BP2D = of_points_N2D.unflatten(0, (size, PROMPTS))
        of_boxes_BP2D = of_boxes_N2D.unflatten(0, (size, PROMPTS))
        sparse_BP2D = torch.cat([of_points_BP2D[:, :POINTS], of_boxes_BP2D[:, POINTS:]], 1)
        # The decoder repeats one picture's embedding for every prompt and adds the dense part. With the
        # embeddings in the dense part and zeros to repeat, one call serves many pictures.
        dense_NDHW = embedding_BDHW.repeat_interleave(PROMPTS, 0) + dense_NDHW
        nothing_1DHW = torch.zeros_like(embedding_BDHW[:1])
        return sam.mask_decoder.predict_masks(
            nothing_1DHW, sam.prompt_encoder.get_dense_pe(), sparse_BP2D.flatten(0, 1), dense_NDHW
        )


def proposal_loss(masks_NMHW: torch.Tensor, quality_NM: torch.Tensor, area_NHW: torch.Tensor) -> torch.Tensor:
    """The loss of points, which may mean several objects, and that of boxes, which are unambiguous.

    SAM's first mask is for unambiguous prompts, the others are for ambiguous ones.
    """
    masks_BPMHW = masks_NMHW.unflatten(0, (-1, PROMPTS))
    quality_BPM = quality_NM.unflatten(0, (-1, PROMPTS))
    area_BPHW = area_NHW.unflatten(0, (-1, PROMPTS))
    of_points = mask_loss(
        masks_BPMHW[:, :POINTS, 1:].flatten(0, 1),
        quality_BPM[:, :POINTS, 1:].flatten(0, 1),
        area_BPHW[:, :POINTS].flatten(0, 1),
    )
    of_boxes = mask_loss(
        masks_BPMHW[:, POINTS:, :1].flatten(0, 1),
        quality_BPM[:, POINTS:, :1].flatten(0, 1),
        area_BPHW[:, POINTS:].flatten(0, 1),
    )
    return of_points + of_boxes


def mask_loss(masks_NMHW: torch.Tensor, quality_NM: torch.Tensor, area_NHW: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and dice loss of each prompt's best mask, and the error of all predicted qualities.

    Kirillov et al. 2023, appendix A.
    """
    logits_NMHW = F.interpolate(masks_NMHW.float(), (SIZE, SIZE), mode="bilinear", align_corners=False)
    truth_NMHW = area_NHW[:, None].expand_as(logits_NMHW)
    target_NMHW = truth_NMHW.float()

    entropy_NMHW = F.binary_cross_entropy_with_logits(logits_NMHW, target_NMHW, reduction="none")
    entropy_NM = entropy_NMHW.mean((2, 3))
    soft_NMHW = logits_NMHW.sigmoid()
    overlap_NM = (soft_NMHW * target_NMHW).sum((2, 3))
    dice_NM = 1 - (2 * overlap_NM + 1) / (soft_NMHW.sum((2, 3)) + target_NMHW.sum((2, 3)) + 1)

    hard_NMHW = logits_NMHW > 0
    union_NM = (hard_NMHW | truth_NMHW).sum((2, 3))
    iou_NM = (hard_NMHW & truth_NMHW).sum((2, 3)) / union_NM.clamp(min=1)
    best = (ENTROPY_WEIGHT * entropy_NM + dice_NM).min(1).values.mean()
    return best + F.mse_loss(quality_NM.float(), iou_NM)
