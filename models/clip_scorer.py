"""The CLIP model that judges edits: unit image and text features from open_clip.

Shapes: B images, C channels, H W pixels, N texts, D feature width. A dot product of what leaves is a cosine.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from configs.errors import UserError
from configs.loader import find_file
from configs.schema import Scorer

LOCAL = "local-dir:"
WEIGHTS = "*.safetensors", "*.bin", "*.pth"  # what open_clip itself looks for in a local-dir


class ClipScorer:
    """Features of images, preprocessed as the model was trained, and of texts. loaded: an open_clip model and its tokenizer to use.
    UserError where the model is unknown or its weights cannot be found.
    """

    def __init__(self, scorer: Scorer, device: torch.device | str = "cpu", loaded: tuple[Any, Any] | None = None):
        self.device = torch.device(device)
        self.templates = list(scorer.templates)
        if not self.templates or not all("{}" in template for template in self.templates):
            raise UserError(f"scorer.templates={self.templates}: give at least one, each with {{}} where the text goes")
        self.model, self.tokenizer = loaded or _load(scorer, self.device)
        preprocess = self.model.visual.preprocess_cfg
        size = preprocess["size"]
        self.size_HW = (size, size) if isinstance(size, int) else tuple(size)
        self.interpolation, self.resize_mode = preprocess["interpolation"], preprocess["resize_mode"]
        if self.interpolation not in ("bicubic", "bilinear") or self.resize_mode not in ("shortest", "squash"):
            raise UserError(f"scorer.model={scorer.model}: resizing '{self.interpolation}, {self.resize_mode}' is not supported")
        self.mean_C11 = torch.tensor(preprocess["mean"], device=self.device).view(3, 1, 1)
        self.std_C11 = torch.tensor(preprocess["std"], device=self.device).view(3, 1, 1)

    @property
    def logit_scale(self) -> float:
        """The model's own inverse temperature: cosines times this are the logits of its softmax."""
        return float(self.model.logit_scale.detach().exp())

    @torch.inference_mode()
    def image_features(self, images: Tensor | Sequence[np.ndarray | Tensor]) -> Tensor:
        """Unit features B x D of tensors 3 x H x W in [0, 1], or of RGB uint8 H x W x 3; of one size or, in a list, of any."""
        if isinstance(images, Tensor):
            pixels_BCHW = self._fit(images.to(self.device, torch.float32))
        elif len({image.shape for image in images}) == 1:
            pixels_BCHW = self._fit(self._pixels(images))
        else:
            pixels_BCHW = torch.cat([self._fit(self._pixels([image])) for image in images])
        features_BD = self.model.encode_image((pixels_BCHW - self.mean_C11) / self.std_C11)
        return functional.normalize(features_BD.float(), dim=-1)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features N x D: each text in every template, averaged and made a unit again (Radford et al. 2021, 3.1.4)."""
        sentences = [template.replace("{}", text) for text in texts for template in self.templates]
        features_MD = functional.normalize(self.model.encode_text(self.tokenizer(sentences).to(self.device)).float(), dim=-1)
        return functional.normalize(features_MD.unflatten(0, (len(texts), len(self.templates))).mean(dim=1), dim=-1)

    def _pixels(self, images: Sequence[Any]) -> Tensor:
        if isinstance(images[0], Tensor):
            return torch.stack(list(images)).to(self.device, torch.float32)
        return torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float() / 255

    def _fit(self, images_BCHW: Tensor) -> Tensor:
        """Resize (antialiased, as Pillow does) and crop the centre to the model's own size."""
        (high, wide), (source_high, source_wide) = self.size_HW, images_BCHW.shape[-2:]
        target = self.size_HW
        if self.resize_mode == "shortest":
            scale = max(high / source_high, wide / source_wide)
            target = (max(high, int(source_high * scale)), max(wide, int(source_wide * scale)))
        if target != (source_high, source_wide):
            images_BCHW = functional.interpolate(images_BCHW, target, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = round((target[0] - high) / 2), round((target[1] - wide) / 2)  # as torchvision's CenterCrop
        return images_BCHW[..., top : top + high, left : left + wide]


def _load(scorer: Scorer, device: torch.device) -> tuple[open_clip.CLIP | open_clip.CustomTextCLIP, open_clip.SimpleTokenizer]:
    name, folder = scorer.model, None
    if name.startswith(LOCAL):
        folder = Path(find_file(name.removeprefix(LOCAL)))
        if not (folder / "open_clip_config.json").is_file() or not any(f for kind in WEIGHTS for f in folder.glob(kind)):
            raise UserError(
                f"scorer.model={name}: no open_clip model in {folder} (open_clip_config.json and weights are needed); "
                "scripts/train_miniature.py makes the miniature's, or set scorer.model=ViT-L-14 scorer.pretrained=openai"
            )
        name = f"{LOCAL}{folder}"
    elif name not in open_clip.list_models():
        raise UserError(f"scorer.model={name}: open_clip has no such model; its open_clip.list_models() names those it has")
    elif not scorer.pretrained:
        raise UserError(f"scorer.pretrained is empty: a randomly initialised {name} judges nothing; set a tag or a checkpoint file")
    # Some tags (OpenAI's among them) were trained with QuickGELU; where the name does not say so, open_clip only warns.
    tag = {} if folder else open_clip.get_pretrained_cfg(name, scorer.pretrained) or {}
    chatter = logging.root.manager.disable
    logging.disable(logging.ERROR)  # open_clip reports through the root logger what the UserError below says
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            pretrained, quick_gelu = None if folder else scorer.pretrained, bool(tag.get("quick_gelu"))
            model = open_clip.create_model(name, pretrained, device=device, force_quick_gelu=quick_gelu, require_pretrained=True)
            tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"scorer weights '{scorer.model}' '{scorer.pretrained}' cannot be loaded ({reason}): open_clip fetches known tags "
            "from the Hugging Face hub once; without a network, download the checkpoint elsewhere and set scorer.pretrained=FILE"
        ) from error
    finally:
        logging.disable(chatter)
    return model.eval().requires_grad_(False), tokenizer
