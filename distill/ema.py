"""The exponential moving average (EMA) of the generator's weights, for validation and export."""

from __future__ import annotations

import copy

import torch
from torch import nn

# The half-life is at most this share of the images seen, so that the random start is soon forgotten
# (StyleGAN2's "EMA ramp-up": Karras et al. 2020).
RAMP_UP = 0.05
SHORTEST_HALF_LIFE = 1e-8  # images; instead of dividing by 0


class EMA:
    """`network`, in evaluation mode: first a copy of the generator, then its moving average.

    half_life_images: after so many images, weights count half as much as the newest. batch: images
    a step.
    """

    def __init__(self, generator: nn.Module, half_life_images: float, batch: int) -> None:
        self.network = copy.deepcopy(generator).eval().requires_grad_(False)
        self.half_life_images = half_life_images
        self.batch = batch

    @torch.no_grad()
    def update(self, generator: nn.Module, images_seen: int) -> None:
        """average <- average + (1 - beta) (weights - average), after a step of `batch` images.

        images_seen: with those of this step.
        """
        half_life = max(SHORTEST_HALF_LIFE, min(self.half_life_images, RAMP_UP * images_seen))
        beta = 0.5 ** (self.batch / half_life)
        averages: list[torch.Tensor] = list(self.network.parameters())
        weights: list[torch.Tensor] = list(generator.parameters())
        # one call for all parameters: on a GPU few kernels instead of one a parameter
        torch._foreach_lerp_(averages, weights, 1 - beta)
