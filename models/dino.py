"""Keys of DINO ViT-B/8's last layer (Caron et al. 2021), by which the paper measures how much of a picture's structure an edit keeps."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import normalize

from configs.errors import UserError

ARCHITECTURE = "vit_base_patch8_224.dino"  # timm's name
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures in [0, 1]
WHERE = "https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth"


def load_dino(weights: str, device: torch.device | str = "cpu") -> nn.Module:
    """DINO ViT-B/8 from a .pth or .safetensors file, or for 'hub' from timm's; UserError where it is not there."""
    import timm
    from safetensors.torch import load_file

    try:
        vit = timm.create_model(ARCHITECTURE, pretrained=weights == "hub", num_classes=0)
        if weights != "hub":
            plain = (
                Path(weights).suffix == ".safetensors"
            )  # a plain unpickler would run code from the other kind
            vit.load_state_dict(
                load_file(weights) if plain else torch.load(weights, map_location="cpu", weights_only=True)
            )
    except Exception as error:  # noqa: BLE001 - the hub's client, torch's unpickler and safetensors raise a dozen kinds
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"evaluate.dino={weights}: no weights of DINO ViT-B/8 ({reason[:120]}): download {WHERE} and set evaluate.dino=FILE, "
            "or evaluate.dino= to let VGG16 stand in"
        ) from error
    return vit.to(device).eval().requires_grad_(False)


def dino_keys(vit: nn.Module, image_BCHW: Tensor) -> Tensor:
    """The last layer's keys of images in [-1, 1] of any size, which are resized to the network's own (224 x 224): batch x tokens (the class
    token, then one a patch) x width, heads side by side.
    """
    found: list[Tensor] = []
    image_BCHW = interpolate(
        image_BCHW.float(), vit.patch_embed.img_size, mode="bicubic", antialias=True
    ).clamp(-1, 1)  # type: ignore[arg-type,union-attr]
    hook = vit.blocks[-1].attn.qkv.register_forward_hook(
        lambda _module, _inputs, out_BTD3: found.append(out_BTD3)
    )  # type: ignore[index,union-attr]
    try:
        vit(normalize((image_BCHW + 1) / 2, MEAN, DEVIATION))
    finally:
        hook.remove()
    return found[0].chunk(3, dim=-1)[1]
