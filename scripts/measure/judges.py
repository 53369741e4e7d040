"""The networks that measure edits, loaded once, and the columns of a table that they give. Images are RGB uint8, N x H x W x 3."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from configs.files import digest, model_files, whole_file
from configs.runs import scorer_files
from configs.schema import Config
from generate.banks import task_banks
from models.clip_scorer import ClipScorer
from models.dino import dino_keys, load_dino
from models.miniature.scenes import Look, mask, scene
from models.perceptual import perceptual_loss
from models.segmenter import open_segmenter
from scripts.measure import metrics

SCENE_NOUN = "tree"  # every rendered scene has one: whose mask is compared where the task names no foreground


class Judges:
    """Scorer, LPIPS, structure and, with masks, the segmenter. UserError where weights are missing."""

    def __init__(self, config: Config, device: torch.device, masks: bool) -> None:
        self.config, asked, task = config, config.evaluate, config.task
        self.perceptual, self.scorer = perceptual_loss(device), ClipScorer(config.scorer, device)
        self.banks = task_banks(task, config.direction)
        self.keys = partial(dino_keys, load_dino(asked.dino, device)) if asked.dino else None
        self.set_network, self.set_network_name = metrics.set_network(asked.inception, self.perceptual)
        self.nouns = (task.source_noun, task.target_noun) if task.source_noun else (SCENE_NOUN, SCENE_NOUN)
        wanted = masks and (task.source_noun or not config.source.images)
        self.segmenter = open_segmenter(config.segmenter, self.scorer, device) if wanted else None
        self.measured_by = {
            "CLIP-Acc": f"{config.scorer.model} {config.scorer.pretrained}".strip(),
            "Structure-Dist": "DINO ViT-B/8" if asked.dino else "VGG16's relu4_3 in place of DINO ViT-B/8",
        }
        if self.segmenter:
            self.measured_by["masks"] = f"{config.segmenter.model}, '{self.nouns[1]}'"

    def columns(
        self, images: Mapping[str, np.ndarray], records: Sequence[Mapping[str, Any]], cache: Path
    ) -> dict[str, dict[str, np.ndarray]]:
        """The columns that compare each set of edits with 'input unchanged' and, where it is among them, 'true edit': N values each.

        records: what the pairs' records say of their source. cache: folder where masks are kept, as they take longer than all else.
        """
        inputs, truth, task = images["input unchanged"], images.get("true edit"), self.config.task
        side, background = inputs.shape[1], None
        masks = (
            {name: self._masks(cache, edit, self.nouns[1]) for name, edit in images.items()}
            if self.segmenter
            else {}
        )
        if masks and task.source_noun:
            if truth is None:
                of_input = self._masks(cache, inputs, self.nouns[0])
            else:
                of_input = scene_masks(records, task.scene_input, side, self.nouns[0])
            background = {name: ~(found | of_input) for name, found in masks.items()}
        columns = metrics.perceptual_columns(self.perceptual, images, inputs, truth, background, self.keys)
        for name, edit in images.items():
            columns[name]["accuracy"] = metrics.nearer_to_target(self.scorer, edit, *self.banks)
            if truth is not None:
                columns[name]["psnr_true"] = metrics.psnr(edit, truth)
        if masks and truth is not None:
            of_truth = scene_masks(records, task.scene_truth, side, self.nouns[1])
            for name, found in masks.items():
                columns[name]["mask_found"] = found.mean((1, 2)) > 0
                columns[name]["iou_true"] = metrics.mask_iou(found, of_truth)
        return columns

    def against_teacher(
        self, edits: np.ndarray, teacher: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Columns of N values, and those of the whole sets, of a generator's edits against its teacher's."""
        of_images = {
            "psnr_teacher": metrics.psnr(edits, teacher),
            "lpips_teacher": metrics.lpips_distance(self.perceptual, edits, teacher),
        }
        self.measured_by["FID, KID"] = self.set_network_name
        features = [metrics.set_features(stack, self.set_network) for stack in (edits, teacher)]
        return of_images, metrics.set_distances(*features) if len(edits) > 1 else {}

    def _masks(self, cache: Path, images: np.ndarray, noun: str) -> np.ndarray:
        """Bool N x H x W: where the segmenter sees the noun; from the cache where the same was asked before."""
        assert self.segmenter
        scorer, settings = self.config.scorer, self.config.segmenter
        weights = [model_files(path) for path in (settings.model, settings.checkpoint, settings.detector)]
        content = hashlib.sha256(images.tobytes()).hexdigest()
        path = (
            cache / f"masks-{digest(settings, scorer, [*weights, scorer_files(scorer)], noun, content)}.npz"
        )
        if not path.exists():
            masks = np.stack(self.segmenter.segment(list(images), noun))
            with whole_file(path) as stream:
                np.savez_compressed(stream, masks=masks)
        with np.load(path, allow_pickle=False) as stored:
            return stored["masks"]


def scene_masks(
    records: Sequence[Mapping[str, Any]], look: Mapping[str, str], side: int, noun: str
) -> np.ndarray:
    """Bool N x side x side: where the noun is in the rendered scenes of the records, in that look."""
    masks = (mask(scene(record["scene_seed"]), Look(**look), noun) for record in records)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.NEAREST)) for each in masks]
    )
