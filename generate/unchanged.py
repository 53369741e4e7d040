"""What an edit leaves alone is taken from the input itself.

The autoencoder blurs what the edit never meant to touch, and the way through noise moves a sky's colours.
Blended diffusion (Avrahami et al. 2022) and DiffEdit (Couairon et al. 2022) keep the input outside a mask;
theirs is given, or found by the difference of noise predictions. The finished picture tells better what the
edit changed (docs/journal.md, "Keeping what the edit leaves alone").

B batch, H W pixels.
"""

import torch
from kornia.filters import gaussian_blur2d, otsu_threshold
from torch import Tensor

SIGMA = 0.012  # of the blur, as a share of the side: 1.5 pixels of 128
RAMP = 0.4  # width of the way from the input to the edit, as a share of the threshold


def keep_unchanged(input_B3HW: Tensor, edit_B3HW: Tensor, keep: float) -> Tensor:
    """The edit where it differs from the input by `keep` times a threshold or more, below it the input.

    The difference at a pixel is the root mean square over the colours, blurred; the threshold is each
    picture's own, by Otsu (1979), which parts its differences into small ones and large ones.
    Images are in [-1, 1], B x 3 x H x W, as the result is. keep: 0 gives the edit as it is.
    """
    if keep == 0:
        return edit_B3HW
    side = input_B3HW.shape[-1]
    sigma = SIGMA * side
    kernel = 2 * round(3 * sigma) + 1
    difference_B1HW = (edit_B3HW - input_B3HW).square().mean(1, keepdim=True).sqrt()
    difference_B1HW = gaussian_blur2d(difference_B1HW, (kernel, kernel), (sigma, sigma))
    _, threshold_B = otsu_threshold(difference_B1HW)
    relative_B1HW = difference_B1HW / threshold_B[:, None, None, None].clamp(min=1e-6)
    changed_B1HW = ((relative_B1HW - keep) / RAMP + 0.5).clamp(0, 1)
    return torch.lerp(input_B3HW, edit_B3HW, changed_B1HW)
