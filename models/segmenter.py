"""The foreground mask of a noun: segment-anything proposes masks, the CLIP scorer says which of them show the noun.

Shapes: B images, H W pixels, M proposed masks, N nouns, D feature width.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from configs.errors import UserError
from configs.loader import find_file
from configs.schema import Segmenter as Settings
from models.clip_scorer import ClipScorer
from models.segmenter_masks import MaskProposer

GREY = 128.0  # what the picture around a proposed mask is faded to
REGISTERED = ("vit_h", "vit_l", "vit_b")


class NounSegmenter(Protocol):
    """What the overlap score asks of a segmenter."""

    def segment(self, images: Sequence[np.ndarray], noun: str) -> list[np.ndarray]:
        """Bool H x W mask of the noun in each RGB uint8 H x W x 3 image; all False where there is none."""


def open_segmenter(segmenter: Settings, scorer: ClipScorer, device: torch.device | str = "cpu") -> NounSegmenter:
    """The configured segmenter: text-prompted where a detector is named, else segment-anything. UserError without its weights."""
    if segmenter.detector:
        from models.segmenter_text import TextSegmenter

        return TextSegmenter(segmenter, device)
    return Segmenter(segmenter, scorer, device)


class Segmenter:
    """Noun -> mask. sam: the model to use. UserError where the configured one or its weights cannot be found."""

    def __init__(self, segmenter: Settings, scorer: ClipScorer, device: torch.device | str = "cpu", sam: Sam | None = None):
        self.settings = segmenter
        self.scorer = scorer
        self.propose = MaskProposer((sam or load_sam(segmenter)).to(device).eval().requires_grad_(False), segmenter)

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], noun: str) -> list[np.ndarray]:
        """As NounSegmenter says: the union of the proposed masks that show the noun."""
        nouns = [noun, *(other for other in self.settings.other_nouns if other != noun)]
        texts_ND = self.scorer.text_features(nouns)
        return [self._choose(image, *found, texts_ND) for image, found in zip(images, self.propose(images), strict=True)]

    def _choose(self, image: np.ndarray, mask_MHW: torch.Tensor, box_M4: torch.Tensor, texts_ND: torch.Tensor) -> np.ndarray:
        settings = self.settings
        large_M = mask_MHW.sum((1, 2)) >= max(1, settings.min_area * image[..., 0].size)
        mask_MHW, box_M4 = mask_MHW[large_M], box_M4[large_M]
        if not len(mask_MHW):
            return np.zeros(image.shape[:2], dtype=bool)
        image_CHW = torch.tensor(image, device=mask_MHW.device).permute(2, 0, 1).float()
        crops = [
            masked_crop(image_CHW, mask_HW, box, settings.crop_margin, settings.outside) / 255
            for mask_HW, box in zip(mask_MHW, box_M4.tolist(), strict=True)
        ]
        logits_MN = self.scorer.logit_scale * self.scorer.image_features(crops) @ texts_ND.T
        shows_noun_M = logits_MN.softmax(dim=-1)[:, 0] >= settings.min_noun_probability
        return mask_MHW[shows_noun_M].any(dim=0).cpu().numpy()


def masked_crop(image_CHW: torch.Tensor, mask_HW: torch.Tensor, box: Sequence[int], margin: float, outside: float) -> torch.Tensor:
    """The square crop around a mask that the scorer looks at, 3 x S x S, whole levels 0 to 255 as the image's.

    box: the mask's left, top, right and bottom pixel. margin: added on each side of the box, as a share of its longer side. outside: how
    much of the picture beyond the mask remains, 0 (grey) to 1 (untouched): some context tells a crown from a bush.
    """
    left, top, right, bottom = box[0], box[1], box[2] + 1, box[3] + 1
    side = max(1, round(max(bottom - top, right - left) * (1 + 2 * margin)))
    top, left = (top + bottom - side) // 2, (left + right - side) // 2
    high, wide = mask_HW.shape
    rows, columns = slice(max(top, 0), min(top + side, high)), slice(max(left, 0), min(left + side, wide))
    inside = image_CHW[:, rows, columns]
    faded = torch.where(mask_HW[rows, columns], inside, outside * inside + (1 - outside) * GREY)
    beyond = (columns.start - left, left + side - columns.stop, rows.start - top, top + side - rows.stop)
    return torch.nn.functional.pad(faded, beyond, value=GREY).round()  # beyond the picture's edge: grey as well


def load_sam(segmenter: Settings) -> Sam:
    """The Sam of a registered size with its .pth, or of a folder with config.json and model.safetensors; else UserError."""
    if segmenter.model in REGISTERED:
        path = Path(segmenter.checkpoint)
        if not path.is_file():
            raise UserError(
                f"segmenter.checkpoint='{segmenter.checkpoint}': no such file; download the {segmenter.model} checkpoint "
                f"(sam_{segmenter.model}_*.pth) that the segment-anything project publishes and give its path"
            )
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)  # a plain unpickler would run code from the file
        except Exception as error:
            raise UserError(f"{path} is not a plain PyTorch checkpoint ({str(error).splitlines()[0][:120]}): download it again") from error
        sam = sam_model_registry[segmenter.model](checkpoint=None)
    else:
        folder = Path(find_file(segmenter.model))
        config, path = folder / "config.json", folder / "model.safetensors"
        if not config.is_file() or not path.is_file():
            raise UserError(
                f"segmenter.model={segmenter.model}: it is {', '.join(REGISTERED)}, or a folder with config.json and model.safetensors "
                f"(with segmenter.detector: a SAM 2), and {folder} has none; scripts/train_miniature.py makes the miniature's"
            )
        sam, weights = build_sam(json.loads(config.read_text())), load_file(path)
    try:
        sam.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this segmenter ({str(error).splitlines()[0]}): wrong size, or a broken download") from error
    return sam


def build_sam(config: dict[str, Any]) -> Sam:
    """An untrained Sam of any size, in evaluation mode.

    config: `image_size` and `patch_size` in pixels; `prompt_embed_dim`, the width of prompts and of the image embedding; `encoder`, keyword
    arguments of ImageEncoderViT; `decoder`, those of MaskDecoder, with its `transformer` as a dictionary for TwoWayTransformer.
    """
    image_size, patch_size, width = config["image_size"], config["patch_size"], config["prompt_embed_dim"]
    side = image_size // patch_size
    decoder = dict(config["decoder"])
    transformer = TwoWayTransformer(embedding_dim=width, **decoder.pop("transformer"))
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    return Sam(
        ImageEncoderViT(img_size=image_size, patch_size=patch_size, out_chans=width, norm_layer=norm, **config["encoder"]),
        PromptEncoder(width, (side, side), (image_size, image_size), config.get("mask_in_chans", 16)),
        MaskDecoder(transformer=transformer, transformer_dim=width, **decoder),
    ).eval()
