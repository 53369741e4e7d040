"""The segmenter: a small segment-anything model, trained on points in and boxes around the objects of the scenes.

B images, P prompts of an image, M proposed masks, N = B x P prompts, H W pixels.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from models.devices import pick_device
from models.miniature.scenes import SIZE, instances, render, scene
from models.segmenter import build_sam
from scripts.miniature.data import rendered, varied_look
from scripts.miniature.loop import SHIPPED, Options, autocast, fit, log, write_weights

SMALLEST_OBJECT = 24  # px
TREE = 128  # added to the label of a tree
TREE_SHARE = 0.7  # of the prompts; the rest is spread over everything else
POINTS, BOXES = 3, 1  # prompts of each kind per picture
BOX_JITTER = 0.06  # of the box's side
EXAMPLE = np.dtype([("picture", np.uint8, (SIZE, SIZE, 3)), ("labels", np.uint8, (SIZE, SIZE))])


def _example(seed):
    """A picture and the label of each pixel's object, as EXAMPLE says; TREE is added to the label of a tree, 0 is too small to ask for."""
    this, look = scene(seed), varied_look(seed)
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for index, (noun, area) in enumerate(instances(this, look), 1):
        if area.sum() >= SMALLEST_OBJECT:
            labels[area] = index + (TREE if noun == "tree" else 0)
    return np.array((np.asarray(render(this, look)), labels), EXAMPLE)


def _prompt(rng, labels):
    """(x, y) of a pixel, the box (x0, y0, x1, y1) of its object and the object's bool mask."""
    present = np.unique(labels)
    trees, others = present[present >= TREE].tolist(), present[(present > 0) & (present < TREE)].tolist()
    pool = trees if trees and (not others or rng.random() < TREE_SHARE) else others
    area = labels == rng.choice(pool)
    rows, columns = np.nonzero(area)
    pick = rng.randrange(len(rows))
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
    spread = BOX_JITTER * max(box[2] - box[0], box[3] - box[1])
    box += np.array([rng.gauss(0, spread) for _ in range(4)], np.float32)
    return (columns[pick] + 0.5, rows[pick] + 0.5), box.clip(0, SIZE), area


def _loss(masks_NMHW, quality_NM, target_NHW):
    """Only the best of the masks is trained, the predicted quality of each (Kirillov et al. 2023, appendix A)."""
    logits = F.interpolate(masks_NMHW.float(), (SIZE, SIZE), mode="bilinear", align_corners=False)
    truth = target_NHW[:, None].expand_as(logits)
    target, soft, hard = truth.float(), logits.sigmoid(), logits > 0
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    dice = 1 - (2 * (soft * target).sum((2, 3)) + 1) / (soft.sum((2, 3)) + target.sum((2, 3)) + 1)
    iou_NM = (hard & truth).sum((2, 3)) / (hard | truth).sum((2, 3)).clamp(min=1)
    return (5 * entropy + dice).min(1).values.mean() + F.mse_loss(quality_NM.float(), iou_NM)


def train_segmenter(options: Options) -> None:
    """Train the segmenter in `out`/segmenter."""
    device, folder = pick_device("auto"), Path(options.out) / "segmenter"
    examples = rendered(options, "labelled", _example)
    torch.manual_seed(3)
    config = (SHIPPED / "segmenter" / "config.json").read_text()
    sam = build_sam(json.loads(config)).to(device).train()
    log(f"segmenter: {sum(weight.numel() for weight in sam.parameters()):,} parameters")

    def loss_of_step(step):
        rng = random.Random(step * 61 + 5)
        chosen = examples[torch.randint(len(examples), (options.batch,)).numpy()]
        if rng.random() < 0.5:
            chosen = {name: chosen[name][:, :, ::-1] for name in EXAMPLE.names}
        prompts = [_prompt(rng, labels) for labels in chosen["labels"] for _ in range(POINTS + BOXES)]
        points, boxes, areas = (
            torch.from_numpy(np.array(part)).to(device) for part in zip(*prompts, strict=True)
        )
        image_BCHW = torch.from_numpy(chosen["picture"].copy()).to(device).permute(0, 3, 1, 2).float()
        image_BCHW = image_BCHW * (1 + 0.08 * torch.randn(len(image_BCHW), 1, 1, 1, device=device))
        shape = (len(image_BCHW), POINTS + BOXES)
        with autocast(device):
            embedding_BDHW = sam.image_encoder(sam.preprocess(image_BCHW))
            by_point, dense = sam.prompt_encoder(
                (points[:, None].float(), torch.ones(len(points), 1, device=device)), None, None
            )
            by_box, _ = sam.prompt_encoder(None, boxes, None)
            # a point comes with a padding token, so both kinds of prompt are two tokens long and share one decoder call
            sparse = torch.cat(
                [by_point.unflatten(0, shape)[:, :POINTS], by_box.unflatten(0, shape)[:, POINTS:]], 1
            )
            # the decoder repeats one picture's embedding for every prompt and adds the dense part: give it the embeddings as that part
            dense = embedding_BDHW.repeat_interleave(POINTS + BOXES, 0) + dense
            nothing = torch.zeros_like(embedding_BDHW[:1])
            masks, quality = sam.mask_decoder.predict_masks(
                nothing, sam.prompt_encoder.get_dense_pe(), sparse.flatten(0, 1), dense
            )
        found = [part.unflatten(0, shape) for part in (masks, quality)]
        area_BPHW = areas.unflatten(0, shape)
        several, one = slice(1, None), slice(0, 1)  # SAM's first mask is for unambiguous prompts
        by_point = (*(part[:, :POINTS, several] for part in found), area_BPHW[:, :POINTS])
        by_box = (*(part[:, POINTS:, one] for part in found), area_BPHW[:, POINTS:])
        return sum(_loss(*(part.flatten(0, 1) for part in parts)) for parts in (by_point, by_box))

    fit("segmenter", sam, loss_of_step, options)
    write_weights(sam, folder / "model.safetensors")
    (folder / "config.json").write_text(config)
