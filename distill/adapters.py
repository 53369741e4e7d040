"""Low-rank adapters: a new edit direction from an old generator by training a small share of its weights (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import nn
from torch.nn.utils import parametrize

from models.comodgan import CoModGenerator, EqualizedWeight


class LowRank(nn.Module):
    """weight -> weight + up @ down, a change of at most `rank`; none at first, as `up` starts at zero."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight[0].numel(), device=weight.device))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def adapt(generator: CoModGenerator, rank: int) -> None:
    """From here on only low-rank changes of the weights train, and whole what is smaller than such a change: biases, ToRGB.

    The mapping network stays as it is: what a latent means is not the edit's.
    """
    generator.mapping.requires_grad_(False)
    for name, module in list(generator.named_modules()):
        if isinstance(module, EqualizedWeight) and not name.startswith("mapping"):
            weight = module.raw
            if rank * (len(weight) + weight[0].numel()) < weight.numel():
                weight.requires_grad_(False)
                parametrize.register_parametrization(module, "raw", LowRank(weight, rank))


def merged(generator: nn.Module, names: Iterable[str]) -> list[torch.Tensor]:
    """The parameters of these names as the network without adapters would have them."""
    return [attrgetter(name)(generator) for name in names]
