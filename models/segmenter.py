"""The foreground mask of a noun: segment-anything proposes masks, the CLIP scorer says which of them show the noun.

Shapes: B images, C channels, H W pixels, P points, M proposed masks, N nouns, D feature width.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid, calculate_stability_score
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops import nms

from configs.errors import UserError
from configs.files import find_file
from configs.schema import Segmenter as Settings
from models.clip_scorer import ClipScorer

STABILITY_OFFSET, SAME_BOX_IOU = 1.0, 0.7  # SamAutomaticMaskGenerator's defaults
ENLARGED_TOGETHER = 64  # masks: at 1024 x 1024 a quarter of a gigabyte
GREY = 128.0  # what the picture around a proposed mask is faded to
REGISTERED = ("vit_h", "vit_l", "vit_b")


class NounSegmenter(Protocol):
    """What the overlap score asks of a segmenter."""

    def segment(self, images: Sequence[np.ndarray], noun: str) -> list[np.ndarray]:
        """Bool H x W mask of the noun in each RGB uint8 H x W x 3 image; all False where there is none."""


def open_segmenter(
    segmenter: Settings, scorer: ClipScorer, device: torch.device | str = "cpu"
) -> NounSegmenter:
    """The configured segmenter: text-prompted where a detector is named, else segment-anything. UserError without its weights."""
    if segmenter.detector:
        from models.segmenter_text import TextSegmenter

        return TextSegmenter(segmenter, device)
    return Segmenter(segmenter, scorer, device)


class Segmenter:
    """Noun -> mask. sam: the model to use. UserError where the configured one or its weights cannot be found."""

    def __init__(
        self,
        segmenter: Settings,
        scorer: ClipScorer,
        device: torch.device | str = "cpu",
        sam: Sam | None = None,
    ):
        self.settings, self.scorer = segmenter, scorer
        self.sam = (sam or load_sam(segmenter)).to(device).eval().requires_grad_(False)
        self.transform = ResizeLongestSide(self.sam.image_encoder.img_size)
        self.grid_P2 = build_point_grid(segmenter.points_per_side)

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], noun: str) -> list[np.ndarray]:
        """As NounSegmenter says: the union of the proposed masks that show the noun."""
        nouns = [noun, *(other for other in self.settings.other_nouns if other != noun)]
        texts_ND = self.scorer.text_features(nouns)
        return [
            self._choose(image, *found, texts_ND)
            for image, found in zip(images, self.propose(images), strict=True)
        ]

    def _choose(self, image: np.ndarray, mask_MHW: Tensor, box_M4: Tensor, texts_ND: Tensor) -> np.ndarray:
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

    @torch.inference_mode()
    def propose(self, images: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each image bool masks M x H x W, best first, and their boxes M x 4 (left, top, right, bottom pixel): segment-anything's
        automatic masks, as its SamAutomaticMaskGenerator makes them.

        The library enlarges all three masks of every point before any is judged, and run-length encodes what is left one by one on the
        CPU. Here the predicted IoU decides before anything is enlarged, masks stay bits on the device, and pictures share a pass of the
        image encoder.
        """
        for start in range(0, len(images), self.settings.batch):
            part = images[start : start + self.settings.batch]
            shrunk = [torch.as_tensor(self.transform.apply_image(image)).permute(2, 0, 1) for image in part]
            features_BCHW = self.sam.image_encoder(
                torch.stack([self.sam.preprocess(image.to(self.sam.device)) for image in shrunk])
            )
            for image, small, features_CHW in zip(part, shrunk, features_BCHW, strict=True):
                yield self._masks(features_CHW[None], image.shape[:2], small.shape[-2:])

    def _masks(
        self, features_1CHW: Tensor, size_HW: tuple[int, ...], shrunk_HW: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        masks, boxes, ious = [], [], []
        points_P2 = self.transform.apply_coords(self.grid_P2 * np.array(size_HW)[::-1], size_HW)
        for points in torch.as_tensor(points_P2, device=self.sam.device, dtype=torch.float32).split(
            self.settings.points_per_batch
        ):
            low_M1HW, iou_M = self._decode(features_1CHW, points)
            sure_M = iou_M > self.settings.min_predicted_iou
            for low, iou in zip(
                low_M1HW[sure_M].split(ENLARGED_TOGETHER), iou_M[sure_M].split(ENLARGED_TOGETHER), strict=True
            ):
                logits_MHW = self.sam.postprocess_masks(low, tuple(shrunk_HW), tuple(size_HW))[:, 0]
                stability_M = calculate_stability_score(logits_MHW, self.sam.mask_threshold, STABILITY_OFFSET)
                stable_M = stability_M >= self.settings.min_stability
                masks.append(logits_MHW[stable_M] > self.sam.mask_threshold)
                boxes.append(batched_mask_to_box(masks[-1]))
                ious.append(iou[stable_M])
        box_M4 = torch.cat(boxes).long()  # the library gives none as floats
        kept = nms(box_M4.float(), torch.cat(ious), SAME_BOX_IOU)
        return torch.cat(masks)[kept], box_M4[kept]

    def _decode(self, features_1CHW: Tensor, points_P2: Tensor) -> tuple[Tensor, Tensor]:
        """Low-resolution logits M x 1 x H x W and predicted IoU M of the three masks of each point."""
        labels_P1 = torch.ones(len(points_P2), 1, dtype=torch.int, device=points_P2.device)
        sparse, dense = self.sam.prompt_encoder(
            points=(points_P2[:, None], labels_P1), boxes=None, masks=None
        )
        place = self.sam.prompt_encoder.get_dense_pe()
        low, iou = self.sam.mask_decoder(features_1CHW, place, sparse, dense, multimask_output=True)
        return low.flatten(0, 1)[:, None].float(), iou.flatten().float()


def masked_crop(
    image_CHW: Tensor, mask_HW: Tensor, box: Sequence[int], margin: float, outside: float
) -> Tensor:
    """The square crop around a mask that the scorer looks at, 3 x S x S, whole levels 0 to 255 as the image's.

    box: the mask's left, top, right and bottom pixel. margin: added on each side of the box, as a share of its longer side. outside: how
    much of the picture beyond the mask remains, 0 (grey) to 1 (untouched): some context tells a crown from a bush.
    """
    left, top, right, bottom = box
    side = round((max(bottom - top, right - left) + 1) * (1 + 2 * margin))
    top, left = (top + bottom + 1 - side) // 2, (left + right + 1 - side) // 2
    high, wide = mask_HW.shape
    rows, columns = slice(max(top, 0), min(top + side, high)), slice(max(left, 0), min(left + side, wide))
    inside = image_CHW[:, rows, columns]
    faded = torch.where(mask_HW[rows, columns], inside, outside * inside + (1 - outside) * GREY)
    beyond = (columns.start - left, left + side - columns.stop, rows.start - top, top + side - rows.stop)
    return torch.nn.functional.pad(
        faded, beyond, value=GREY
    ).round()  # beyond the picture's edge: grey as well


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
            weights = torch.load(
                path, map_location="cpu", weights_only=True
            )  # a plain unpickler would run code from the file
        except Exception as error:
            raise UserError(
                f"{path} is not a plain PyTorch checkpoint ({str(error).splitlines()[0][:120]}): download it again"
            ) from error
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
        raise UserError(
            f"{path} does not fit this segmenter ({str(error).splitlines()[0]}): wrong size, or a broken download"
        ) from error
    return sam


def build_sam(config: dict[str, Any]) -> Sam:
    """An untrained Sam of any size, in evaluation mode.

    config: `image_size` and `patch_size` in pixels; `prompt_embed_dim`, the width of prompts and of the image embedding; `encoder`, keyword
    arguments of ImageEncoderViT; `decoder`, those of MaskDecoder, with its `transformer` as a dictionary for TwoWayTransformer.
    """
    size, patch_size, width = config["image_size"], config["patch_size"], config["prompt_embed_dim"]
    decoder = dict(config["decoder"])
    transformer = TwoWayTransformer(embedding_dim=width, **decoder.pop("transformer"))
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    return Sam(
        ImageEncoderViT(
            img_size=size, patch_size=patch_size, out_chans=width, norm_layer=norm, **config["encoder"]
        ),
        PromptEncoder(width, (size // patch_size,) * 2, (size, size), config.get("mask_in_chans", 16)),
        MaskDecoder(transformer=transformer, transformer_dim=width, **decoder),
    ).eval()
