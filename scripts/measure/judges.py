"""The networks that measure edits, loaded once, and the columns of a table that they give.

Images are RGB uint8, N x H x W x 3. N images, H W pixels.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from configs.files import digest, whole_file
from configs.runs import scorer_files
from configs.schema import Config
from generate.banks import task_banks
from models.clip_scorer import TEMPLATES, ClipScorer
from models.dino import dino_keys, load_dino
from models.miniature.scenes import Look, mask, scene
from models.perceptual import perceptual_loss
from models.published import segmenter_files
from models.segmenter import open_segmenter
from scripts.measure import metrics
from scripts.measure.truth import INPUT, TRUTH

SCENE_NOUN = "tree"  # every rendered scene has one: the foreground where the task names none
STAND_IN = "VGG16's relu4_3 in place of "

Records = Sequence[Mapping[str, Any]]


class Judges:
    """Scorer, LPIPS, structure distance and, with `masks`, the segmenter.

    UserError where weights are missing.
    """

    def __init__(self, config: Config, device: torch.device, masks: bool) -> None:
        self.config = config
        task = config.task
        settings = config.evaluate
        perceptual = perceptual_loss(device)
        scorer = ClipScorer(config.scorer, device)
        source, target = task_banks(task, config.direction)
        keys = partial(dino_keys, load_dino(settings.dino, device)) if settings.dino else None
        key = digest(config.scorer, scorer_files(config.scorer), TEMPLATES, source, target)
        texts = Path(config.runs_dir) / "texts" / f"{key}.safetensors"
        target_check = metrics.TargetCheck(scorer, source, target, texts)
        self.networks = metrics.Networks(perceptual, keys, target_check)
        self.set_network = metrics.set_network(settings.inception, perceptual)
        self.input_noun = task.source_noun or SCENE_NOUN
        self.edit_noun = task.target_noun if task.source_noun else SCENE_NOUN
        self.segmenter = None
        if masks and (task.source_noun or not config.source.images):
            self.segmenter = open_segmenter(config.segmenter, scorer, device)
        self.measured_by = {
            "CLIP-Acc": f"{config.scorer.model} {config.scorer.pretrained}".strip(),
            "Structure-Dist": f"{'' if settings.dino else STAND_IN}DINO ViT-B/8",
        }
        if self.segmenter:
            self.measured_by["masks"] = f"{config.segmenter.model}, '{self.edit_noun}'"

    def columns(
        self, images: Mapping[str, np.ndarray], records: Records, cache: Path
    ) -> dict[str, dict[str, np.ndarray]]:
        """For each named set of images N values of each of metrics.METRICS that applies.

        images: INPUT is among them and, where there is one, TRUTH. records: what the pairs' records
        say of their source. cache: folder where masks are kept, as they take longer than all else.
        """
        inputs = images[INPUT]
        truth = images.get(TRUTH)
        masks = self._masks(images, records, cache)
        return metrics.measure_edits(self.networks, images, inputs, truth, masks)

    def against_teacher(
        self, edits: np.ndarray, teacher: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """What compares a generator's edits with its teacher's: columns of N values, values of the sets."""
        distances = metrics.image_distances(self.networks.perceptual, edits, teacher)
        columns = {f"{name}_teacher": values for name, values in distances.items()}
        sharpness = metrics.levels_sharpness
        columns["sharpness_teacher"] = sharpness(edits) / sharpness(teacher).mean()
        self.measured_by["FID, KID"] = self.set_network.name
        return columns, self.set_network.distances(edits, teacher)

    def _masks(self, images: Mapping[str, np.ndarray], records: Records, cache: Path) -> metrics.Masks:
        """Where the foreground is in each set of images; nowhere known without a segmenter.

        Of rendered scenes the renderer tells, of edits and of photographs the segmenter.
        """
        if self.segmenter is None:
            return metrics.Masks()
        task = self.config.task
        side = images[INPUT].shape[1]
        edits = {name: self._segmented(cache, stack, self.edit_noun) for name, stack in images.items()}
        inputs = None
        if task.source_noun and TRUTH in images:
            inputs = scene_masks(records, task.scene_input, side, self.input_noun)
        elif task.source_noun:
            inputs = self._segmented(cache, images[INPUT], self.input_noun)
        truth = None
        if TRUTH in images:
            truth = scene_masks(records, task.scene_truth, side, self.edit_noun)
        return metrics.Masks(edits, inputs, truth)

    def _segmented(self, cache: Path, images: np.ndarray, noun: str) -> np.ndarray:
        """Bool N x H x W: where the segmenter sees the noun; from the cache where it looked before."""
        assert self.segmenter
        scorer = self.config.scorer
        settings = self.config.segmenter
        weights = segmenter_files(settings)
        content = hashlib.sha256(images.tobytes()).hexdigest()
        name = digest(settings, scorer, weights, scorer_files(scorer), noun, content)
        path = cache / f"masks-{name}.npz"
        if not path.exists():
            masks = np.stack(self.segmenter.segment(list(images), noun))
            with whole_file(path) as stream:
                np.savez_compressed(stream, masks=masks)
        with np.load(path, allow_pickle=False) as stored:
            return stored["masks"]


def scene_masks(records: Records, look: Mapping[str, str], side: int, noun: str) -> np.ndarray:
    """Bool N x side x side: where the noun is in the rendered scenes of the records, in that look."""
    masks = []
    for record in records:
        rendered = Image.fromarray(mask(scene(record["scene_seed"]), Look(**look), noun))
        masks.append(np.asarray(rendered.resize((side, side), Image.Resampling.NEAREST)))
    return np.stack(masks)
