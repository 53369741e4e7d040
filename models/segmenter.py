"""The foreground mask of a noun: segment-anything proposes masks, the CLIP scorer says which show the noun.

Kirillov et al. 2023, "Segment Anything"; its automatic mask generation is described in appendix B.
Shapes: B images, C channels, H W pixels, P points, M proposed masks, N nouns, D feature width.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention, add_decomposed_rel_pos
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid, calculate_stability_score
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops import nms

from configs.errors import UserError
from configs.files import find_file
from configs.schema import Segmenter as Settings
from models.clip_scorer import ClipScorer
from models.published import SAM_FILES, sam_checkpoint
from models.weights import first_line, load_tensors, loaded, refuse_broken_files

# How many go through a network together; the masks are the same whatever these are.
# Through the image encoder, where a published one sees 1024 x 1024 pixels: on a CPU pictures together gain
# nothing.
IMAGES_TOGETHER = {"cuda": 8, "cpu": 1}
# Through the mask decoder: 1 GB of GPU memory with a published one; in a CPU's float32, 256 take 8 GB.
POINTS_TOGETHER = {"cuda": 256, "cpu": 32}
MASKS_TOGETHER = {"cuda": 64, "cpu": 16}  # enlarged to 1024 x 1024 pixels: 4 MB each

# SamAutomaticMaskGenerator's own choices.
STABILITY_OFFSET = 1.0  # stability: IoU of the masks cut off so much above and below the threshold
SAME_BOX_IOU = 0.7  # of masks whose boxes overlap more, that with the highest predicted IoU stays

# How the scorer looks at a proposed mask.
MIN_AREA = 0.002  # share of the picture: smaller masks hardly move an overlap, and are not looked at
CROP_MARGIN = 0.1  # around the mask's box on each side, as a share of its longer side
OUTSIDE = 0.3  # how much of the picture outside the mask remains: 0 grey, 1 untouched
MIN_NOUN_PROBABILITY = 0.5  # the noun is likelier than all other nouns together
GREY = 128.0  # what the picture around a mask is faded to


class NounSegmenter(Protocol):
    """What the overlap score needs of a segmenter."""

    def segment(self, images: Sequence[np.ndarray], noun: str) -> list[np.ndarray]:
        """Bool H x W mask of the noun in each RGB uint8 image H x W x 3; all False where there is none."""


def open_segmenter(
    settings: Settings, scorer: ClipScorer, device: torch.device | str = "cpu"
) -> NounSegmenter:
    """The configured segmenter: a text-prompted one where a detector is named, else segment-anything.

    UserError where its weights cannot be found.
    """
    if settings.detector:
        from models.segmenter_text import TextSegmenter

        return TextSegmenter(settings, device)
    return Segmenter(settings, scorer, device)


@dataclass
class Proposals:
    """The masks that segment-anything proposes for one picture, by falling predicted IoU."""

    mask_MHW: Tensor  # bool
    box_M4: Tensor  # left, top, right and bottom pixel of each mask, both ends included


class Segmenter:
    """Noun -> mask.

    sam: a model to use in the place of the configured one, whose weights are then not needed. UserError where
    the configured model or its weights cannot be found.
    """

    def __init__(
        self,
        settings: Settings,
        scorer: ClipScorer,
        device: torch.device | str = "cpu",
        sam: Sam | None = None,
    ):
        self.settings = settings
        self.scorer = scorer
        self.sam = (sam or load_sam(settings)).to(device).eval().requires_grad_(False)
        if self.sam.device.type == "cpu":
            _attend_head_by_head(self.sam.image_encoder)
        self.transform = ResizeLongestSide(self.sam.image_encoder.img_size)
        self.grid_P2 = build_point_grid(settings.points_per_side)  # x and y of each point, 0 to 1

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], noun: str) -> list[np.ndarray]:
        """Bool H x W mask of the noun in each RGB uint8 image H x W x 3; all False where there is none.

        It is the union of the proposed masks that show the noun.
        """
        rivals = [other for other in self.settings.other_nouns if other != noun]
        texts_ND = self.scorer.text_features([noun, *rivals])
        masks = []
        for image, proposals in zip(images, self.propose(images), strict=True):
            masks.append(self._union_of_noun(image, proposals, texts_ND))
        return masks

    def _union_of_noun(self, image: np.ndarray, proposals: Proposals, texts_ND: Tensor) -> np.ndarray:
        """Bool H x W: the union of the masks of which the scorer says the first of the texts."""
        high, wide, _ = image.shape
        area_M = proposals.mask_MHW.sum((1, 2))  # pixels
        large_M = area_M >= max(1, MIN_AREA * high * wide)
        mask_MHW = proposals.mask_MHW[large_M]
        box_M4 = proposals.box_M4[large_M]
        if not len(mask_MHW):
            return np.zeros((high, wide), dtype=bool)

        levels_HWC = torch.tensor(image, device=mask_MHW.device)
        image_CHW = levels_HWC.permute(2, 0, 1).float()  # 0 to 255
        crops = []
        for mask_HW, box in zip(mask_MHW, box_M4.tolist(), strict=True):
            crops.append(masked_crop(image_CHW, mask_HW, box, CROP_MARGIN, OUTSIDE) / 255)
        logits_MN = self.scorer.logit_scale * self.scorer.image_features(crops) @ texts_ND.T
        shows_noun_M = logits_MN.softmax(dim=-1)[:, 0] >= MIN_NOUN_PROBABILITY
        return mask_MHW[shows_noun_M].any(dim=0).cpu().numpy()

    @torch.inference_mode()
    def propose(self, images: Sequence[np.ndarray]) -> Iterator[Proposals]:
        """The masks of each image, those that segment-anything's SamAutomaticMaskGenerator makes.

        The library enlarges all three masks of every point before any is judged, and run-length
        encodes what is left one by one on the CPU. Here the predicted IoU decides before anything
        is enlarged, masks stay bits on the device, and pictures share a pass of the image encoder.
        """
        together = IMAGES_TOGETHER.get(self.sam.device.type, 1)
        for start in range(0, len(images), together):
            batch = images[start : start + together]
            shrunk = []  # uint8 C x H x W, the longer side as the encoder wants it
            padded = []  # the same, normalised and padded to the encoder's square
            for image in batch:
                small_CHW = torch.as_tensor(self.transform.apply_image(image)).permute(2, 0, 1)
                shrunk.append(small_CHW)
                padded.append(self.sam.preprocess(small_CHW.to(self.sam.device)))
            features_BCHW = self.sam.image_encoder(torch.stack(padded))
            for image, small_CHW, features_CHW in zip(batch, shrunk, features_BCHW, strict=True):
                yield self._masks_of(features_CHW[None], image.shape[:2], tuple(small_CHW.shape[-2:]))

    def _masks_of(
        self, features_1CHW: Tensor, size_HW: tuple[int, ...], shrunk_HW: tuple[int, ...]
    ) -> Proposals:
        """The confident and stable masks of a grid of points, of those with the same box only the best.

        size_HW: of the picture. shrunk_HW: of what the encoder saw of it, without the padding. In pixels.
        """
        high, wide = size_HW
        points_P2 = self.transform.apply_coords(self.grid_P2 * np.array([wide, high]), (high, wide))
        points_P2 = torch.as_tensor(points_P2, device=self.sam.device, dtype=torch.float32)
        threshold = self.sam.mask_threshold
        masks = []
        boxes = []
        ious = []
        device = self.sam.device.type
        for chunk_P2 in points_P2.split(POINTS_TOGETHER.get(device, 32)):
            low_M1HW, iou_M = self._decode(features_1CHW, chunk_P2)
            confident = torch.nonzero(iou_M > self.settings.min_predicted_iou).flatten()
            for places in confident.split(MASKS_TOGETHER.get(device, 16)):  # of none it is one empty part
                logits_M1HW = self.sam.postprocess_masks(low_M1HW[places], shrunk_HW, (high, wide))
                logits_MHW = logits_M1HW[:, 0]
                stability_M = calculate_stability_score(logits_MHW, threshold, STABILITY_OFFSET)
                stable_M = stability_M >= self.settings.min_stability
                mask_MHW = logits_MHW[stable_M] > threshold
                masks.append(mask_MHW)
                boxes.append(batched_mask_to_box(mask_MHW))
                ious.append(iou_M[places][stable_M])
        box_M4 = torch.cat(boxes).long()  # of no masks the library gives floats
        kept = nms(box_M4.float(), torch.cat(ious), SAME_BOX_IOU)  # places, highest IoU first
        return Proposals(torch.cat(masks)[kept], box_M4[kept])

    def _decode(self, features_1CHW: Tensor, points_P2: Tensor) -> tuple[Tensor, Tensor]:
        """Low-resolution logits M x 1 x H x W and predicted IoU M of each point's three masks."""
        foreground = 1
        labels_P1 = torch.full((len(points_P2), 1), foreground, dtype=torch.int, device=points_P2.device)
        sparse_P2D, dense_PDHW = self.sam.prompt_encoder(
            points=(points_P2[:, None], labels_P1), boxes=None, masks=None
        )
        low_P3HW, iou_P3 = self.sam.mask_decoder(
            image_embeddings=features_1CHW,
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse_P2D,
            dense_prompt_embeddings=dense_PDHW,
            multimask_output=True,
        )
        return low_P3HW.flatten(0, 1)[:, None].float(), iou_P3.flatten().float()


def _attend_head_by_head(encoder: ImageEncoderViT) -> None:
    """Let the layers that see the whole picture attend with one head after another.

    The values, but for rounding, and the time are the same; the maps of 4096 x 4096 places, of which the
    library holds several for each head of a published encoder, take a tenth of the memory.
    """

    def attend(layer: Attention, x_BHWC: Tensor) -> Tensor:
        batch, high, wide, _ = x_BHWC.shape
        places = high * wide
        qkv_BPKNC = layer.qkv(x_BHWC).reshape(batch, places, 3, layer.num_heads, -1)
        query_MPC, key_MPC, value_MPC = qkv_BPKNC.permute(2, 0, 3, 1, 4).flatten(1, 2)  # M = B N heads
        seen_MPC = torch.empty_like(value_MPC)
        for m in range(len(query_MPC)):
            query_1PC = query_MPC[m : m + 1]
            map_1PP = (query_1PC * layer.scale) @ key_MPC[m : m + 1].transpose(-2, -1)
            if layer.use_rel_pos:
                size_HW = (high, wide)
                position = (layer.rel_pos_h, layer.rel_pos_w, size_HW, size_HW)
                map_1PP = add_decomposed_rel_pos(map_1PP, query_1PC, *position)
            seen_MPC[m] = (map_1PP.softmax(dim=-1) @ value_MPC[m : m + 1])[0]
        seen_BNHWC = seen_MPC.reshape(batch, layer.num_heads, high, wide, -1)
        return layer.proj(seen_BNHWC.permute(0, 2, 3, 1, 4).flatten(3))

    for block in encoder.blocks:
        if block.window_size == 0:
            block.attn.forward = partial(attend, block.attn)


def masked_crop(
    image_CHW: Tensor, mask_HW: Tensor, box: Sequence[int], margin: float, outside: float
) -> Tensor:
    """The square crop around a mask that the scorer looks at, 3 x S x S, whole levels 0 to 255.

    box: the mask's left, top, right and bottom pixel. margin: added on each side of the box, as a
    share of its longer side. outside: how much of the picture beyond the mask remains, 0 (grey) to
    1 (untouched): some context tells a crown from a bush. What lies beyond the picture's edge is
    grey.
    """
    left, top, right, bottom = box
    longer = max(bottom - top, right - left) + 1
    side = round(longer * (1 + 2 * margin))
    crop_top = (top + bottom + 1 - side) // 2
    crop_left = (left + right + 1 - side) // 2

    high, wide = mask_HW.shape
    rows = slice(max(crop_top, 0), min(crop_top + side, high))
    columns = slice(max(crop_left, 0), min(crop_left + side, wide))
    inside_CHW = image_CHW[:, rows, columns]
    faded_CHW = outside * inside_CHW + (1 - outside) * GREY
    crop_CHW = torch.where(mask_HW[rows, columns], inside_CHW, faded_CHW)

    beyond_left = columns.start - crop_left
    beyond_right = crop_left + side - columns.stop
    beyond_top = rows.start - crop_top
    beyond_bottom = crop_top + side - rows.stop
    beyond = (beyond_left, beyond_right, beyond_top, beyond_bottom)
    return torch.nn.functional.pad(crop_CHW, beyond, value=GREY).round()


def load_sam(settings: Settings) -> Sam:
    """The Sam of a registered size with its .pth, or that of a folder with config.json and model.safetensors.

    UserError where there are no such weights, or where one of them is missing.
    """
    if settings.model in SAM_FILES:
        path = sam_checkpoint(settings)
        origin = f"segmenter.checkpoint={path}"
        weights = _read_checkpoint(path, settings.model)
        build = partial(sam_model_registry[settings.model], checkpoint=None)
    else:
        folder = _sam_folder(settings.model)
        path = folder / "model.safetensors"
        origin = f"segmenter.model={settings.model}"
        refuse_broken_files(path, origin)
        weights = load_file(path)
        build = partial(build_sam, json.loads((folder / "config.json").read_text()))

    def load() -> Sam:
        sam = build()
        load_tensors(sam, weights, f"{origin}, for segmenter.model={settings.model}:", exact=True)
        return sam

    return loaded(f"segment-anything {settings.model}", load)


def _read_checkpoint(file: Path, model: str) -> dict[str, Tensor]:
    """The weights in a published .pth; UserError where it is not there or holds more than tensors."""
    if not file.is_file():
        published = SAM_FILES[model]
        raise UserError(
            f"segmenter.checkpoint={file}: no such file; zero2gan fetch with the same task and keys "
            f"downloads it ({published.url}, {published.bytes / 1e9:.2f} GB), or set the key to yours"
        )
    refuse_broken_files(file, f"segmenter.checkpoint={file}")
    try:
        # weights_only: a plain unpickler would run code from the file
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{file} is not a plain PyTorch checkpoint ({first_line(error)}): download it again"
        ) from error


def _sam_folder(model: str) -> Path:
    """The folder of a Sam of any size; UserError where its two files are not there, or are a SAM 2's."""
    folder = Path(find_file(model))
    config = folder / "config.json"
    if not config.is_file() or not (folder / "model.safetensors").is_file():
        raise UserError(
            f"segmenter.model={model}: it is {', '.join(SAM_FILES)}, or a folder with config.json and"
            f" model.safetensors (with segmenter.detector: a SAM 2), and {folder} has none;"
            " scripts/train_miniature.py makes the miniature's"
        )
    kind = json.loads(config.read_text()).get("model_type", "")
    if kind:  # a folder of transformers
        raise UserError(
            f"segmenter.model={model} is transformers' {kind}: "
            "a SAM 2 needs segmenter.detector=, a Grounding DINO that finds the noun for it"
        )
    return folder


def build_sam(config: dict[str, Any]) -> Sam:
    """An untrained Sam of any size, in evaluation mode.

    config: `image_size` and `patch_size` in pixels; `prompt_embed_dim`, the width of prompts and
    of the image embedding; `encoder`, keyword arguments of ImageEncoderViT; `decoder`, those of
    MaskDecoder, with its `transformer` as a dictionary for TwoWayTransformer; `mask_in_chans`
    (16), channels with which a mask prompt is encoded.
    """
    size = config["image_size"]
    patch_size = config["patch_size"]
    width = config["prompt_embed_dim"]
    cells = size // patch_size  # of the image embedding, a side
    decoder_options = dict(config["decoder"])
    transformer_options = decoder_options.pop("transformer")

    # Made first: trainings from nothing have always drawn its weights first.
    transformer = TwoWayTransformer(embedding_dim=width, **transformer_options)
    image_encoder = ImageEncoderViT(
        img_size=size,
        patch_size=patch_size,
        out_chans=width,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        **config["encoder"],
    )
    prompt_encoder = PromptEncoder(
        embed_dim=width,
        image_embedding_size=(cells, cells),
        input_image_size=(size, size),
        mask_in_chans=config.get("mask_in_chans", 16),
    )
    mask_decoder = MaskDecoder(transformer=transformer, transformer_dim=width, **decoder_options)
    return Sam(image_encoder, prompt_encoder, mask_decoder).eval()
