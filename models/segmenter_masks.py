"""segment-anything's automatic masks, as its SamAutomaticMaskGenerator makes them, without what makes that slow.

The library enlarges all three masks of every point before any is judged, and run-length encodes what is left one by one on the CPU. Here
the predicted IoU decides before anything is enlarged, masks stay bits on the device, and pictures share a pass of the image encoder.

Shapes: B images, C channels, H W pixels, P points, M masks.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid, calculate_stability_score
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops import nms

from configs.schema import Segmenter as Settings

STABILITY_OFFSET, SAME_BOX_IOU = 1.0, 0.7  # SamAutomaticMaskGenerator's defaults
ENLARGED_TOGETHER = 64  # masks: at 1024 x 1024 a quarter of a gigabyte


class MaskProposer:
    """Pictures -> proposed masks. sam: in evaluation mode, on its device."""

    def __init__(self, sam: Sam, settings: Settings):
        self.sam, self.settings = sam, settings
        self.side = sam.image_encoder.img_size
        self.transform = ResizeLongestSide(self.side)
        self.grid_P2 = build_point_grid(settings.points_per_side)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each RGB uint8 H x W x 3 image bool masks M x H x W, best first, and their boxes M x 4 (left, top, right, bottom pixel)."""
        for start in range(0, len(images), self.settings.batch):
            part = images[start : start + self.settings.batch]
            shrunk = [torch.as_tensor(self.transform.apply_image(image)).permute(2, 0, 1) for image in part]
            padded_BCHW = torch.stack([self.sam.preprocess(image.to(self.sam.device)) for image in shrunk])
            features_BCHW = self.sam.image_encoder(padded_BCHW)
            for image, small, features_CHW in zip(part, shrunk, features_BCHW, strict=True):
                yield self._masks(features_CHW[None], image.shape[:2], small.shape[-2:])

    def _masks(self, features_1CHW: Tensor, size_HW: tuple[int, ...], shrunk_HW: Sequence[int]) -> tuple[Tensor, Tensor]:
        limit = self.settings.min_predicted_iou
        masks, boxes, ious = [], [], []
        points_P2 = self.transform.apply_coords(self.grid_P2 * np.array(size_HW)[::-1], size_HW)
        for points in torch.as_tensor(points_P2, device=self.sam.device, dtype=torch.float32).split(self.settings.points_per_batch):
            low_M1HW, iou_M = self._decode(features_1CHW, points)
            sure = iou_M > limit
            for low, iou in zip(low_M1HW[sure].split(ENLARGED_TOGETHER), iou_M[sure].split(ENLARGED_TOGETHER), strict=True):
                logits_MHW = self.sam.postprocess_masks(low, tuple(shrunk_HW), tuple(size_HW))[:, 0]
                stability = calculate_stability_score(logits_MHW, self.sam.mask_threshold, STABILITY_OFFSET)
                mask_MHW = logits_MHW[stability >= self.settings.min_stability] > self.sam.mask_threshold
                masks.append(mask_MHW)
                boxes.append(batched_mask_to_box(mask_MHW))
                ious.append(iou[stability >= self.settings.min_stability])
        if not masks:
            return torch.zeros((0, *size_HW), dtype=torch.bool), torch.zeros((0, 4), dtype=torch.long)
        all_boxes = torch.cat(boxes).long()  # the library gives none as floats
        kept = nms(all_boxes.float(), torch.cat(ious), SAME_BOX_IOU)
        return torch.cat(masks)[kept], all_boxes[kept]

    def _decode(self, features_1CHW: Tensor, points_P2: Tensor) -> tuple[Tensor, Tensor]:
        """Low-resolution logits M x 1 x H x W and predicted IoU M of the three masks of each point."""
        labels_P1 = torch.ones(len(points_P2), 1, dtype=torch.int, device=points_P2.device)
        sparse, dense = self.sam.prompt_encoder(points=(points_P2[:, None], labels_P1), boxes=None, masks=None)
        low, iou = self.sam.mask_decoder(
            image_embeddings=features_1CHW,
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return low.flatten(0, 1)[:, None].float(), iou.flatten().float()
