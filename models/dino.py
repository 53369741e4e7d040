"""Keys of DINO ViT-B/8's last layer (Caron et al. 2021), the paper's measure of a picture's structure.

B images, C channels, H W pixels, T tokens, D width.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import normalize

from configs.errors import UserError
from models.hub import cache_alone_where_not_reached, what_the_hub_says
from models.weights import first_line, load_tensors, loaded, refuse_broken_files

ARCHITECTURE = "vit_base_patch8_224.dino"  # timm's name
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pictures in [0, 1], by channel
DEVIATION = (0.229, 0.224, 0.225)
WHERE = "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth"


def load_dino(weights: str, device: torch.device | str = "cpu") -> nn.Module:
    """DINO ViT-B/8 from a .pth or .safetensors file, or for 'hub' from timm's; UserError where it
    is not there, or lacks a tensor.
    """
    import timm

    origin = f"evaluate.dino={weights}"
    advice = f"download {WHERE} and set evaluate.dino=FILE, or evaluate.dino= to let VGG16 stand in"

    def load() -> nn.Module:
        vit = timm.create_model(ARCHITECTURE, pretrained=weights == "hub", num_classes=0)
        if weights != "hub":
            refuse_broken_files(Path(weights), origin)
            load_tensors(vit, _read_weights(weights), origin)
        return vit

    try:
        with cache_alone_where_not_reached():
            vit = loaded("DINO", load)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub's client, torch and safetensors raise a dozen kinds
        reason = what_the_hub_says(ARCHITECTURE, error) if weights == "hub" else first_line(error)
        raise UserError(f"{origin}: no weights of DINO ViT-B/8 ({reason}): {advice}") from error
    return vit.to(device).eval().requires_grad_(False)


def _read_weights(file: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if Path(file).suffix == ".safetensors":
        return load_file(file)
    # weights_only: a plain unpickler would run code from the file
    return torch.load(file, map_location="cpu", weights_only=True)


def dino_keys(vit: nn.Module, image_BCHW: Tensor) -> Tensor:
    """The last layer's keys, B x T x D, of images in [-1, 1], resized to the network's 224 x 224 pixels.

    T: the class token, then one token a patch. D: the heads side by side.
    """
    projections = []

    def keep(_module: nn.Module, _inputs: object, qkv_BT3D: Tensor) -> None:
        projections.append(qkv_BT3D)

    size_HW: Any = vit.patch_embed.img_size  # type: ignore[union-attr]
    resized_BCHW = interpolate(image_BCHW.float(), size_HW, mode="bicubic", antialias=True)
    unit_range_BCHW = (resized_BCHW.clamp(-1, 1) + 1) / 2
    hook = vit.blocks[-1].attn.qkv.register_forward_hook(keep)  # type: ignore[index,union-attr]
    try:
        vit(normalize(unit_range_BCHW, MEAN, DEVIATION))
    finally:
        hook.remove()
    _queries, keys_BTD, _values = projections[0].chunk(3, dim=-1)
    return keys_BTD
