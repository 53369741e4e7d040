"""The raw scores of pairs: filter/score_table.py names them, this file computes them.

To add a score, add its name and meaning to SCORES there and raise FORMAT, so that the pairs are scored again,
and add its value to `clip_scores`, `overlap_scores`, `picture_scores` or `generator_scores` here.
Shapes: B pairs, C channels, H W pixels, D feature width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from configs.errors import UserError
from configs.files import find_file
from configs.schema import Config
from generate.shards import Pair
from models.clip_scorer import ClipScorer
from models.perceptual import Perceptual, perceptual_loss
from models.pictures import batch_of, edit_of, sharpness, to_signed
from models.segmenter import NounSegmenter, open_segmenter
from models.translator import TranslateError, Translator

Scores = dict[str, list[float | None]]  # name -> a value a pair, None or NaN where it has none


class PairScorer:
    """Gives the raw scores of pairs; loads the networks, but for a scorer and a segmenter that are given.

    On a GPU and with filter.dtype=bfloat16 CLIP and the segmenter compute in bfloat16 (autocast);
    LPIPS is computed in float32 always. UserError without a model's weights, and where filter.generator
    is no exported generator.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        scorer: ClipScorer | None = None,
        segmenter: NounSegmenter | None = None,
    ) -> None:
        self.task = config.task
        self.device = device
        self.reduced = device.type == "cuda" and config.filter.dtype == "bfloat16"
        self.scorer = scorer or ClipScorer(config.scorer, device)
        self.perceptual = perceptual_loss(device)
        self.segmenter = segmenter
        if self.task.source_noun and segmenter is None:
            self.segmenter = open_segmenter(config.segmenter, self.scorer, device)
        self.generator = open_generator(config.filter.generator) if config.filter.generator else None

    def __call__(self, pairs: Sequence[Pair]) -> Scores:
        """The scores of SCORES; those of the overlap only where the task names a foreground, that of a
        generator only where there is one.
        """
        inputs = [pair.images["input"] for pair in pairs]
        edits = [pair.images["edit"] for pair in pairs]
        scores: Scores = {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            scores |= self._clip_scores(inputs, edits)
            if self.segmenter:
                scores |= self._overlap_scores(self.segmenter, inputs, edits)
        if self.generator:
            scores |= generator_scores(self.perceptual, self.generator, inputs, edits)
        return scores | picture_scores(self.perceptual, inputs, edits)

    def _clip_scores(self, inputs: Sequence[np.ndarray], edits: Sequence[np.ndarray]) -> Scores:
        input_BD = _float64(self.scorer.image_features(inputs))
        edit_BD = _float64(self.scorer.image_features(edits))
        texts = [self.task.source, self.task.target]
        source_D, target_D = _float64(self.scorer.text_features(texts))
        scores = clip_scores(input_BD, edit_BD, source_D, target_D)
        return {name: values_B.tolist() for name, values_B in scores.items()}

    def _overlap_scores(
        self, segmenter: NounSegmenter, inputs: Sequence[np.ndarray], edits: Sequence[np.ndarray]
    ) -> Scores:
        input_masks = segmenter.segment(inputs, self.task.source_noun)
        edit_masks = segmenter.segment(edits, self.task.target_noun)
        scores: Scores = {}
        for input_mask, edit_mask in zip(input_masks, edit_masks, strict=True):
            for name, value in overlap_scores(input_mask, edit_mask).items():
                scores.setdefault(name, []).append(value)
        return scores


def _float64(features: torch.Tensor) -> np.ndarray:
    return features.cpu().double().numpy()


def clip_scores(
    input_BD: np.ndarray, edit_BD: np.ndarray, source_D: np.ndarray, target_D: np.ndarray
) -> dict[str, np.ndarray]:
    """B values a score, from unit features of B inputs, B edits and the two texts.

    Cosines are in [-1, 1], differences of two in [-2, 2]. clip_directional is NaN where the picture
    did not change.
    """
    # Parmar et al. 2023, section 3.4: the target text must fit the edit better than it fits the input.
    clip_gain_B = edit_BD @ target_D - input_BD @ target_D

    # Brooks et al. 2023 (InstructPix2Pix), section 3.1.2: what changed in the picture must agree with
    # what changes in the text.
    change_BD = edit_BD - input_BD
    wanted_D = target_D - source_D
    lengths_B = np.linalg.norm(change_BD, axis=1) * np.linalg.norm(wanted_D)
    clip_directional_B = (change_BD @ wanted_D) / np.where(lengths_B > 0, lengths_B, np.nan)

    return {
        "sim_input_source": input_BD @ source_D,
        "sim_input_target": input_BD @ target_D,
        "sim_edit_source": edit_BD @ source_D,
        "sim_edit_target": edit_BD @ target_D,
        "clip_gain": clip_gain_B,
        "clip_directional": clip_directional_B,
        "image_image": (input_BD * edit_BD).sum(axis=1),
    }


def overlap_scores(input_mask: np.ndarray, edit_mask: np.ndarray) -> dict[str, float | None]:
    """A value a score, in [0, 1], from two bool H x W masks; IoU and Dice are None where one is empty.

    Parmar et al. 2023, section 3.4: the foreground of a good edit is where that of the input was.
    """
    both = np.count_nonzero(input_mask & edit_mask)  # pixels
    of_input = np.count_nonzero(input_mask)
    of_edit = np.count_nonzero(edit_mask)
    scores: dict[str, float | None] = {
        "overlap_iou": None,
        "overlap_dice": None,
        "area_input": of_input / input_mask.size,
        "area_edit": of_edit / edit_mask.size,
    }
    if of_input > 0 and of_edit > 0:
        scores["overlap_iou"] = both / (of_input + of_edit - both)  # |A and B| / |A or B|
        scores["overlap_dice"] = 2 * both / (of_input + of_edit)  # 2 |A and B| / (|A| + |B|)
    return scores


def open_generator(path: str) -> Translator:
    """The exported generator of filter.generator; UserError where it is none."""
    try:
        return Translator(find_file(path), threads=torch.get_num_threads())
    except TranslateError as error:
        raise UserError(f"filter.generator: {error}") from error


@torch.inference_mode()
def generator_scores(
    perceptual: Perceptual,
    generator: Translator,
    inputs: Sequence[np.ndarray],
    edits: Sequence[np.ndarray],
) -> Scores:
    """A value a pair: LPIPS between the edit and the generator's edit of the input.

    A generator that learned from many pairs averages out the slips of each: what lies far from it slipped.
    """
    device = next(perceptual.parameters()).device
    distances = []
    for input_HWC, edit_HWC in zip(inputs, edits, strict=True):
        both_2CHW = batch_of([edit_HWC, edit_of(generator, input_HWC)], device)
        distances.append(perceptual(both_2CHW[:1], both_2CHW[1:]).item())
    return {"lpips_generator": distances}


def picture_scores(
    perceptual: Perceptual, inputs: Sequence[np.ndarray], edits: Sequence[np.ndarray]
) -> Scores:
    """A value a pair of RGB uint8 images H x W x 3, sides of 16 pixels or more.

    Input and edit of a pair are of one size; the pairs may be of several. sharpness_ratio is None
    for an input of one colour.
    """
    of_one_size = len({image.shape for image in inputs}) == 1
    together = len(inputs) if of_one_size else 1
    scores: Scores = {}
    for start in range(0, len(inputs), together):
        stop = start + together
        batch = _picture_scores(perceptual, inputs[start:stop], edits[start:stop])
        for name, values in batch.items():
            scores.setdefault(name, []).extend(values)
    return scores


@torch.inference_mode()
def _picture_scores(
    perceptual: Perceptual, inputs: Sequence[np.ndarray], edits: Sequence[np.ndarray]
) -> Mapping[str, Sequence[float | None]]:
    """The same of pairs that are all of one size."""
    device = next(perceptual.parameters()).device
    input_BCHW = _levels(inputs, device)
    edit_BCHW = _levels(edits, device)
    lpips_B = perceptual(to_signed(input_BCHW), to_signed(edit_BCHW))  # Zhang et al. 2018
    of_input = sharpness(input_BCHW).tolist()
    of_edit = sharpness(edit_BCHW).tolist()
    ratios = []
    for before, after in zip(of_input, of_edit, strict=True):
        ratios.append(after / before if before > 0 else None)
    return {
        "lpips_input_edit": lpips_B.tolist(),
        "sharpness_input": of_input,
        "sharpness_edit": of_edit,
        "sharpness_ratio": ratios,
    }


def _levels(images: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """B x 3 x H x W float32, levels 0 to 255."""
    levels_BHWC = torch.from_numpy(np.stack(images)).to(device)
    return levels_BHWC.permute(0, 3, 1, 2).float()
