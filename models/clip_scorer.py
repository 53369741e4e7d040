"""The CLIP model that judges edits (Radford et al. 2021), from open_clip: unit features of images and texts.

The dot product of two features is their cosine, -1 to 1.
Shapes: B images, C channels, H W pixels, N texts, T templates, D feature width.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.functional import normalize as unit
from torchvision.transforms.functional import InterpolationMode, center_crop, normalize, resize

from configs.errors import UserError
from configs.files import find_file
from configs.schema import Scorer

# A text is put into each, and the features are averaged: CLIP was trained on captions of pictures, and an
# average over wordings classifies better than one of them (Radford et al. 2021, section 3.1.4).
TEMPLATES = ("a photo of {}", "a picture of {}", "{}")
LOCAL = "local-dir:"  # open_clip's prefix of a model's folder
WEIGHTS = (".safetensors", ".bin", ".pth")  # what open_clip itself looks for in such a folder


class ClipScorer:
    """Features of images and of texts.

    loaded: an open_clip model and its tokenizer, to be used in the place of the configured ones.
    templates: each with {} where the text goes. UserError where the model is unknown, its weights
    cannot be found, or its preprocessing is not supported.
    """

    def __init__(
        self,
        settings: Scorer,
        device: torch.device | str = "cpu",
        loaded: tuple[Any, Any] | None = None,
        templates: Sequence[str] = TEMPLATES,
    ):
        self.device = torch.device(device)
        self.templates = templates
        self.model, self.tokenizer = loaded or load_clip(settings, self.device)

        preprocessing = self.model.visual.preprocess_cfg
        self.mean = preprocessing["mean"]
        self.std = preprocessing["std"]
        self.interpolation = preprocessing["interpolation"]
        self.resize_mode = preprocessing["resize_mode"]
        size = preprocessing["size"]
        self.size_HW = [size, size] if isinstance(size, int) else list(size)
        self._check_preprocessing(settings.model)

    def _check_preprocessing(self, name: str) -> None:
        """UserError where `_preprocess` does not know the model's own way of resizing."""
        square = self.size_HW[0] == self.size_HW[1]
        known_mode = self.resize_mode == "squash" or (self.resize_mode == "shortest" and square)
        if self.interpolation not in ("bicubic", "bilinear") or not known_mode:
            how = f"'{self.interpolation}, {self.resize_mode}' to {self.size_HW}"
            raise UserError(f"scorer.model={name}: resizing {how} is not supported")

    @property
    def logit_scale(self) -> float:
        """The model's own inverse temperature: cosines times this are the logits of its softmax."""
        return float(self.model.logit_scale.detach().exp())

    @torch.inference_mode()
    def image_features(self, images: Tensor | Sequence[np.ndarray | Tensor]) -> Tensor:
        """Unit features of B images, B x D float32.

        images: tensors 3 x H x W in [0, 1], or RGB uint8 arrays H x W x 3; those of a list may be of several
        sizes.
        """
        sizes = {image.shape for image in images}
        if len(sizes) == 1:
            pixels_BCHW = self._preprocess(images)
        else:
            pixels_BCHW = torch.cat([self._preprocess([image]) for image in images])
        features_BD = self.model.encode_image(pixels_BCHW)
        return unit(features_BD.float(), dim=-1)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features of N texts, N x D float32: the mean over the templates, made a unit again."""
        sentences = []
        for text in texts:
            for template in self.templates:
                sentences.append(template.replace("{}", text))
        tokens_ML = self.tokenizer(sentences).to(self.device)  # M = N T sentences of L tokens
        features_MD = unit(self.model.encode_text(tokens_ML).float(), dim=-1)
        features_NTD = features_MD.unflatten(0, (len(texts), len(self.templates)))
        return unit(features_NTD.mean(dim=1), dim=-1)

    def _preprocess(self, images: Any) -> Tensor:
        """B x 3 x H x W as the model was trained on: resized, cropped, normalised as open_clip does it.

        images: tensors in [0, 1] or uint8 arrays, all of one size.
        """
        images_BCHW = self._in_0_1(images)
        # "shortest": one number is the length of the shorter side
        size = self.size_HW if self.resize_mode == "squash" else self.size_HW[:1]
        interpolation = InterpolationMode(self.interpolation)
        resized_BCHW = resize(images_BCHW, size, interpolation, antialias=True)
        cropped_BCHW = center_crop(resized_BCHW.clamp(0, 1), self.size_HW)  # bicubic overshoots
        return normalize(cropped_BCHW, self.mean, self.std)

    def _in_0_1(self, images: Any) -> Tensor:
        """The same images as B x 3 x H x W float32 in [0, 1] on the device."""
        if isinstance(images, Tensor):
            return images.to(self.device, torch.float32)
        if isinstance(images[0], Tensor):
            return torch.stack(images).to(self.device, torch.float32)
        levels_BHWC = torch.from_numpy(np.stack(images)).to(self.device)
        return levels_BHWC.permute(0, 3, 1, 2).float() / 255


def load_clip(settings: Scorer, device: torch.device) -> tuple[Any, open_clip.SimpleTokenizer]:
    """The open_clip model, frozen and in evaluation mode, and its tokenizer. UserError without the
    model or its weights.
    """
    if settings.model.startswith(LOCAL):
        name = LOCAL + str(_local_folder(settings.model))
        pretrained = None
        quick_gelu = False
    else:
        _check_registered(settings)
        name = settings.model
        pretrained = settings.pretrained
        # OpenAI's weights, and some others, were trained with QuickGELU; where the model's name
        # does not say so,
        # open_clip would only warn.
        tag = open_clip.get_pretrained_cfg(name, pretrained) or {}
        quick_gelu = bool(tag.get("quick_gelu"))
    try:
        with _quiet():
            model = open_clip.create_model(
                name,
                pretrained,
                device=device,
                force_quick_gelu=quick_gelu,
                require_pretrained=True,
            )
            tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError, UnpicklingError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"scorer weights '{settings.model}' '{settings.pretrained}' cannot be loaded ({reason}):"
            " open_clip fetches known tags from the Hugging Face hub once; without a network, download"
            " the checkpoint elsewhere and set scorer.pretrained=FILE"
        ) from error
    return model.eval().requires_grad_(False), tokenizer


def _local_folder(model: str) -> Path:
    """The folder that 'local-dir:FOLDER' names; UserError where it holds no open_clip model with
    weights.
    """
    folder = Path(find_file(model.removeprefix(LOCAL)))
    has_config = (folder / "open_clip_config.json").is_file()
    if not has_config or not any(file.suffix in WEIGHTS for file in folder.iterdir()):
        raise UserError(
            f"scorer.model={model}: no open_clip model in {folder} (open_clip_config.json and weights"
            " are needed); scripts/train_miniature.py makes the miniature's, or set"
            " scorer.model=ViT-L-14 scorer.pretrained=openai"
        )
    return folder


def _check_registered(settings: Scorer) -> None:
    """UserError where open_clip does not know the model's name, or no weights are named."""
    name = settings.model
    if name not in open_clip.list_models():
        raise UserError(
            f"scorer.model={name}: open_clip has no such model; its open_clip.list_models() names"
            " those it has"
        )
    if not settings.pretrained:
        raise UserError(
            f"scorer.pretrained is empty: a randomly initialised {name} judges nothing; "
            "set a tag or a checkpoint file"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what open_clip logs through the root logger and warns of: the UserError of
    load_clip says it in one line.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            yield
    finally:
        logging.disable(before)
