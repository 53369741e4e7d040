"""The two forms of a picture: levels (uint8, 0 to 255), and the signed values that networks take and give.

Signed values are float, from -1 (black) to 1 (white). Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

HALF_RANGE = 127.5  # levels from the middle to either end


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
