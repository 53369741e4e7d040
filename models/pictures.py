"""The two forms of a picture, its size, and its sharpness.

The forms are levels (uint8, 0 to 255), and the signed values that networks take and give: floats from -1
(black) to 1 (white). Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d

from models.translator import Translator

HALF_RANGE = 127.5  # levels from the middle to either end
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue in grey: Rec. 601, as OpenCV and Pillow do it
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))  # of the four neighbours


def to_signed(levels: Tensor) -> Tensor:
    """float32 in [-1, 1] of levels 0 to 255, whatever the shape."""
    return levels.float() / HALF_RANGE - 1.0


def to_levels(signed: Tensor) -> Tensor:
    """uint8 levels, rounded and clamped, of values in [-1, 1], whatever the shape."""
    return ((signed + 1.0) * HALF_RANGE).round().clamp(0.0, 255.0).to(torch.uint8)


def batch_of(images: Sequence[np.ndarray] | np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """B x 3 x H x W in [-1, 1] on the device, of RGB uint8 images H x W x 3, all of one size."""
    levels_BHWC = torch.from_numpy(np.ascontiguousarray(np.stack(list(images)))).to(device)
    return to_signed(levels_BHWC.permute(0, 3, 1, 2))


def images_of(signed_BCHW: Tensor) -> np.ndarray:
    """RGB uint8 B x H x W x 3 of a batch in [-1, 1]."""
    return to_levels(signed_BCHW).permute(0, 2, 3, 1).cpu().numpy()


def resized(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """An RGB uint8 image as side x side x 3; by Lanczos, as pictures are that translate.py edits."""
    if image_HWC.shape[:2] == (side, side):
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((side, side), Image.Resampling.LANCZOS))


def edit_of(translator: Translator, image_HWC: np.ndarray) -> np.ndarray:
    """The edit of an RGB uint8 image S x S x 3 of any side: shrunk to the generator's, and enlarged again."""
    return resized(translator(resized(image_HWC, translator.side)), image_HWC.shape[0])


def sharpness(levels_BCHW: Tensor) -> Tensor:
    """Variance of the Laplacian of the grey levels (Pech-Pacheco et al. 2000), B, of RGB levels 0 to 255.

    Of the pixels inside the picture's edge. It grows with detail and shrinks when a picture is enlarged.
    """
    luma_C11 = levels_BCHW.new_tensor(LUMA)[:, None, None]
    kernel_1133 = levels_BCHW.new_tensor(LAPLACIAN)[None, None]
    grey_B1HW = (levels_BCHW * luma_C11).sum(1, keepdim=True)
    edges_B1HW = conv2d(grey_B1HW, kernel_1133)
    return edges_B1HW.flatten(1).var(dim=1, correction=0)
