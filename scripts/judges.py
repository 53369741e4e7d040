"""The networks that measure edits, loaded once, and the columns of a table that they give. Images are RGB uint8, N x H x W x 3."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.loader import digest, model_files, scorer_files
from configs.schema import Config
from scripts import metrics

if TYPE_CHECKING:
    import torch

SCENE_NOUN = "tree"  # every rendered scene has one: whose mask is compared where the task names no foreground


class Judges:
    """Scorer, LPIPS, structure and, with masks, the segmenter. UserError where weights are missing."""

    def __init__(self, config: Config, device: torch.device, masks: bool) -> None:
        from generate.directions import task_banks
        from models.clip_scorer import ClipScorer
        from models.dino import dino_keys, load_dino
        from models.perceptual import perceptual_loss
        from models.segmenter import open_segmenter

        self.config, asked, task = config, config.evaluate, config.task
        self.perceptual, self.scorer = perceptual_loss(device), ClipScorer(config.scorer, device)
        self.banks = task_banks(task, config.direction, Path(config.runs_dir) / "banks")
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
        masks = {name: self._masks(cache, edit, self.nouns[1]) for name, edit in images.items()} if self.segmenter else {}
        side, background, of_truth = inputs.shape[1], None, None
        if masks and truth is not None:
            of_truth = scene_masks(records, task.scene_truth, side, self.nouns[1])
        if masks and task.source_noun:
            rendered = truth is not None
            of_input = (
                scene_masks(records, task.scene_input, side, self.nouns[0]) if rendered else self._masks(cache, inputs, self.nouns[0])
            )
            background = {name: ~(mask | of_input) for name, mask in masks.items()}
        found = metrics.perceptual_columns(self.perceptual, images, inputs, truth, background, self.keys)
        for name, edit in images.items():
            found[name]["accuracy"] = metrics.nearer_to_target(self.scorer, edit, *self.banks)
            if truth is not None:
                found[name]["psnr_true"] = metrics.psnr(edit, truth)
            if of_truth is not None:
                found[name]["mask_found"] = masks[name].mean((1, 2)) > 0
                found[name]["iou_true"] = metrics.mask_iou(masks[name], of_truth)
        return found

    def against_teacher(self, edits: np.ndarray, teacher: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, float]]:
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
        scorer = self.config.scorer
        models = [
            model_files(path) for path in (self.config.segmenter.model, self.config.segmenter.checkpoint, self.config.segmenter.detector)
        ]
        models.append(scorer_files(scorer))
        content = hashlib.sha256(images.tobytes()).hexdigest()
        path = cache / f"masks-{digest(self.config.segmenter, scorer, models, noun, content)}.npz"
        if not path.exists():
            masks = np.stack(self.segmenter.segment(list(images), noun))
            cache.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
            np.savez_compressed(temporary, masks=masks)
            temporary.replace(path)
        with np.load(path, allow_pickle=False) as stored:
            return stored["masks"]


def scene_masks(records: Sequence[Mapping[str, Any]], look: Mapping[str, str], side: int, noun: str) -> np.ndarray:
    """Bool N x side x side: where the noun is in the rendered scenes of the records, in that look."""
    from PIL import Image

    from models.miniature.scenes import Look, mask, scene

    masks = (mask(scene(record["scene_seed"]), Look(**look), noun) for record in records)
    return np.stack([np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST)) for mask in masks])
