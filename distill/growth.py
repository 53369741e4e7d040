"""A generator that begins as a smaller one: wider layers, or larger patches, with what the other has learned.

As Net2Net (Chen et al. 2016) a wider network computes at first what the narrow one did: old channels get
nothing from new ones, which begin at random. With larger patches the finest levels are gone, and every
pixel of a patch gets the colour that the image of the level had there; how patches are read is learned anew.

O outputs, I inputs, P patch side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.comodgan import CoModGenerator, ToRGB
from models.layers import EqualizedWeight

GROWS = ("channel_base", "channel_max", "patch", "dropout")  # keys that may differ; dropout has no weights


def can_grow(small: CoModGenerator, large: CoModGenerator) -> bool:
    """Whether `large` may begin as `small`: it has none of its layers narrower, and patches as large."""
    for key, value in small.config.items():
        if key not in GROWS and value != large.config[key]:
            return False
    if large.config["patch"] < small.config["patch"]:
        return False
    of_small = dict(small.named_parameters())
    for name, parameter in large.named_parameters():
        if name.startswith(("encoder.from_rgb", "to_rgb")):
            continue  # they have the widths of other layers
        if any(new < old for new, old in zip(parameter.shape, of_small[name].shape, strict=True)):
            return False
    return True


@torch.no_grad()
def grow(small: CoModGenerator, large: CoModGenerator) -> None:
    """Fill `large`, as random weights have made it, from `small`; can_grow says whether that goes."""
    of_small = dict(small.named_modules())
    sub_pixels = (large.config["patch"] // small.config["patch"]) ** 2
    for name, module in large.named_modules():
        old = of_small.get(name)
        if name.startswith("encoder.from_rgb") and sub_pixels > 1:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            assert old is not None
            value = getattr(old, key).detach()
            if isinstance(module, EqualizedWeight):
                # What counts is raw x scale, and the scale follows the number of inputs.
                value = value * (old.scale / module.scale)
            parent = name.rpartition(".conv.weight")[0] or name
            if isinstance(large.get_submodule(parent), ToRGB) and "affine" not in name:
                value = value.repeat_interleave(sub_pixels, dim=0)
            put(parameter, value)


def put(parameter: Tensor, value: Tensor) -> None:
    """Write the first outputs of a parameter; what further inputs would add to them becomes zero."""
    if value.dim() == 0:
        parameter.copy_(value)
    elif value.dim() == 1:
        parameter[: len(value)] = value
    else:
        outputs, inputs = value.shape[:2]
        parameter[:outputs] = 0
        parameter[:outputs, :inputs] = value
