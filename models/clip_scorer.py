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
from torchvision.transforms.functional import InterpolationMode, center_crop, normalize, resize

from configs.errors import UserError
from configs.files import find_file
from configs.schema import Scorer

LOCAL = "local-dir:"
WEIGHTS = ".safetensors", ".bin", ".pth"  # what open_clip itself looks for in a local-dir


class ClipScorer:
    """Features of images, preprocessed as the model was trained, and of texts. loaded: an open_clip model and its tokenizer to use.
    UserError where the model is unknown or its weights cannot be found.
    """

    def __init__(
        self, scorer: Scorer, device: torch.device | str = "cpu", loaded: tuple[Any, Any] | None = None
    ):
        self.device = torch.device(device)
        self.templates = list(scorer.templates)
        if not self.templates or not all("{}" in template for template in self.templates):
            raise UserError(
                f"scorer.templates={self.templates}: give at least one, each with {{}} where the text goes"
            )
        self.model, self.tokenizer = loaded or _load(scorer, self.device)
        self.preprocess = self.model.visual.preprocess_cfg
        size, how = (
            self.preprocess["size"],
            (self.preprocess["interpolation"], self.preprocess["resize_mode"]),
        )
        self.size_HW = (size, size) if isinstance(size, int) else tuple(size)
        known = how[0] in ("bicubic", "bilinear") and how[1] in ("shortest", "squash")
        if not known or (how[1] == "shortest" and self.size_HW[0] != self.size_HW[1]):
            raise UserError(
                f"scorer.model={scorer.model}: resizing '{', '.join(how)}' to {size} is not supported"
            )

    @property
    def logit_scale(self) -> float:
        """The model's own inverse temperature: cosines times this are the logits of its softmax."""
        return float(self.model.logit_scale.detach().exp())

    @torch.inference_mode()
    def image_features(self, images: Tensor | Sequence[np.ndarray | Tensor]) -> Tensor:
        """Unit features B x D of tensors 3 x H x W in [0, 1], or of RGB uint8 H x W x 3; of one size or, in a list, of any."""
        of_one_size = len({image.shape for image in images}) == 1
        pixels_BCHW = torch.cat(
            [self._fit(group) for group in ([images] if of_one_size else [[image] for image in images])]
        )
        features_BD = self.model.encode_image(
            normalize(pixels_BCHW, self.preprocess["mean"], self.preprocess["std"])
        )
        return functional.normalize(features_BD.float(), dim=-1)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features N x D: each text in every template, averaged and made a unit again (Radford et al. 2021, 3.1.4)."""
        sentences = [template.replace("{}", text) for text in texts for template in self.templates]
        features_MD = functional.normalize(
            self.model.encode_text(self.tokenizer(sentences).to(self.device)).float(), dim=-1
        )
        return functional.normalize(
            features_MD.unflatten(0, (len(texts), len(self.templates))).mean(dim=1), dim=-1
        )

    def _fit(self, images: Any) -> Tensor:
        """The images, all of one size, as float32 in [0, 1] resized and cropped to the model's own size as open_clip does it."""
        if isinstance(images[0], Tensor):
            images_BCHW = (images if isinstance(images, Tensor) else torch.stack(images)).to(
                self.device, torch.float32
            )
        else:
            images_BCHW = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float() / 255
        size = (
            list(self.size_HW) if self.preprocess["resize_mode"] == "squash" else [self.size_HW[0]]
        )  # one: of the shorter side
        resized_BCHW = resize(
            images_BCHW, size, InterpolationMode(self.preprocess["interpolation"]), antialias=True
        )
        return center_crop(resized_BCHW.clamp(0, 1), list(self.size_HW))


def _load(
    scorer: Scorer, device: torch.device
) -> tuple[open_clip.CLIP | open_clip.CustomTextCLIP, open_clip.SimpleTokenizer]:
    name, folder = scorer.model, None
    if name.startswith(LOCAL):
        folder = Path(find_file(name.removeprefix(LOCAL)))
        if not (folder / "open_clip_config.json").is_file() or not any(
            file.suffix in WEIGHTS for file in folder.iterdir()
        ):
            raise UserError(
                f"scorer.model={name}: no open_clip model in {folder} (open_clip_config.json and weights are needed); "
                "scripts/train_miniature.py makes the miniature's, or set scorer.model=ViT-L-14 scorer.pretrained=openai"
            )
        name = f"{LOCAL}{folder}"
    elif name not in open_clip.list_models():
        raise UserError(
            f"scorer.model={name}: open_clip has no such model; its open_clip.list_models() names those it has"
        )
    elif not scorer.pretrained:
        raise UserError(
            f"scorer.pretrained is empty: a randomly initialised {name} judges nothing; set a tag or a checkpoint file"
        )
    # Some tags (OpenAI's among them) were trained with QuickGELU; where the name does not say so, open_clip only warns.
    tag = {} if folder else open_clip.get_pretrained_cfg(name, scorer.pretrained) or {}
    chatter = logging.root.manager.disable
    logging.disable(logging.ERROR)  # open_clip reports through the root logger what the UserError below says
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            pretrained, quick_gelu = None if folder else scorer.pretrained, bool(tag.get("quick_gelu"))
            model = open_clip.create_model(
                name, pretrained, device=device, force_quick_gelu=quick_gelu, require_pretrained=True
            )
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
