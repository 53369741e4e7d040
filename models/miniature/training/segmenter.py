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
from models.miniature.training.data import rendered, varied_look
from models.miniature.training.loop import SHIPPED, Options, autocast, fit, log, write_weights
from models.segmenter import build_sam

SMALLEST_OBJECT = 24  # px
TREE = 128  # added to the label of a tree
TREE_SHARE = 0.7  # of the prompts; the rest is spread over everything else
POINTS, BOXES = 3, 1  # prompts of each kind per picture
BOX_JITTER = 0.06  # of the box's side


def _example(seed):
    """(uint8 picture (128, 128, 3), uint8 labels (128, 128)); TREE is added to the label of a tree, 0 is too small to ask for."""
    this, look = scene(seed), varied_look(seed)
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for index, (noun, area) in enumerate(instances(this, look), 1):
        if area.sum() >= SMALLEST_OBJECT:
            labels[area] = index + (TREE if noun == "tree" else 0)
    return np.asarray(render(this, look)), labels


def _prompt(rng, labels):
    """(x, y) of a pixel, the box (x0, y0, x1, y1) of its object and the object's bool mask."""
    present = [value for value in np.unique(labels) if value]
    trees = [value for value in present if value >= TREE]
    others = [value for value in present if value < TREE]
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


def _decode(decoder, embedding_BDHW, place, sparse_BPTD, dense_NDHW):
    """MaskDecoder.predict_masks for several images (its own takes one): masks N x M x H x W, their predicted quality N x M."""
    batch, prompts = sparse_BPTD.shape[:2]
    outputs_TD = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens_NTD = torch.cat([outputs_TD.expand(batch * prompts, -1, -1), sparse_BPTD.flatten(0, 1)], 1)
    source_NDHW = embedding_BDHW.repeat_interleave(prompts, 0) + dense_NDHW
    found_NTD, source_NLD = decoder.transformer(source_NDHW, place.expand_as(source_NDHW), tokens_NTD)
    upscaled_NDHW = decoder.output_upscaling(source_NLD.transpose(1, 2).reshape(source_NDHW.shape))
    weights = [mlp(found_NTD[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    masks_NMHW = torch.einsum("nmd,ndhw->nmhw", torch.stack(weights, 1), upscaled_NDHW)
    return masks_NMHW, decoder.iou_prediction_head(found_NTD[:, 0])


def train_segmenter(options: Options) -> None:
    """Train the segmenter in `out`/segmenter."""
    device, folder = pick_device("auto"), Path(options.out) / "segmenter"
    pictures, labels = rendered(options, ("labelled", "labels"), _example)
    torch.manual_seed(3)
    config = (SHIPPED / "segmenter" / "config.json").read_text()
    sam = build_sam(json.loads(config)).to(device).train()
    log(f"segmenter: {sum(weight.numel() for weight in sam.parameters()):,} parameters")

    def loss_of_step(step):
        rng = random.Random(step * 61 + 5)
        rows = torch.randint(len(pictures), (options.batch,)).numpy()
        images, masks = pictures[rows], labels[rows]
        if rng.random() < 0.5:
            images, masks = images[:, :, ::-1], masks[:, :, ::-1]
        prompts = [_prompt(rng, mask) for mask in masks for _ in range(POINTS + BOXES)]
        points, boxes, areas = (torch.from_numpy(np.array(part)).to(device) for part in zip(*prompts, strict=True))
        image_BCHW = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()
        image_BCHW = image_BCHW * (1 + 0.08 * torch.randn(len(images), 1, 1, 1, device=device))
        shape = (len(images), POINTS + BOXES)
        with autocast(device):
            embedding_BDHW = sam.image_encoder(sam.preprocess(image_BCHW))
            point_ones = torch.ones(len(points), 1, device=device)
            by_point, dense = sam.prompt_encoder((points[:, None].float(), point_ones), None, None)
            by_box, _ = sam.prompt_encoder(None, boxes, None)
            # a point comes with a padding token, so both kinds of prompt are two tokens long and share one decoder call
            sparse = torch.cat([by_point.unflatten(0, shape)[:, :POINTS], by_box.unflatten(0, shape)[:, POINTS:]], 1)
            place = sam.prompt_encoder.get_dense_pe()
            masks, quality = _decode(sam.mask_decoder, embedding_BDHW, place, sparse, dense)
        masks_BPMHW, quality_BPM = masks.unflatten(0, shape), quality.unflatten(0, shape)
        area_BPHW = areas.unflatten(0, shape)
        several, one = slice(1, None), slice(0, 1)  # SAM's first mask is for unambiguous prompts
        by_point = (masks_BPMHW[:, :POINTS, several], quality_BPM[:, :POINTS, several], area_BPHW[:, :POINTS])
        by_box = (masks_BPMHW[:, POINTS:, one], quality_BPM[:, POINTS:, one], area_BPHW[:, POINTS:])
        return sum(_loss(*(part.flatten(0, 1) for part in parts)) for parts in (by_point, by_box))

    fit("segmenter", sam, loss_of_step, options)
    write_weights(sam, folder / "model.safetensors")
    (folder / "config.json").write_text(config)
