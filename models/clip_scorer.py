"""The CLIP model that judges edits (Radford et al. 2021), from open_clip: unit features of images and texts.

The dot product of two features is their cosine, -1 to 1.
Shapes: B images, C channels, H W pixels, N texts, T templates, D feature width.
"""

import contextlib
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor
from torch.nn.functional import normalize as unit
from torchvision.transforms.functional import InterpolationMode, center_crop, normalize, resize

from configs.errors import UserError
from configs.files import find_file
from configs.schema import Scorer
from models.hub import cache_alone_where_not_reached, is_reached
from models.weights import first_line, load_tensors, loaded, refuse_broken_files

# A text is put into each, and the features are averaged: CLIP was trained on captions of pictures, and an
# average over wordings classifies better than one of them (Radford et al. 2021, section 3.1.4).
TEMPLATES = ("a photo of {}", "a picture of {}", "{}")
TEXTS_TOGETHER = 256  # through the text encoder
IMAGES_TOGETHER = 64  # through the image encoder: the crops of a picture's masks are hundreds
LOCAL = "local-dir:"  # open_clip's prefix of a model's folder
CONFIG = "open_clip_config.json"
WEIGHTS = (".safetensors", ".bin", ".pth")  # what open_clip itself looks for in such a folder
READ_ERRORS = (
    RuntimeError,
    OSError,
    ValueError,
    UnpicklingError,
    KeyError,
    AttributeError,
    StopIteration,
    ImportError,
)
OPENAI_ENTRIES = {"input_resolution", "context_length", "vocab_size"}  # that no other file has
QUICK = "-quickgelu"  # how open_clip's names of architectures with QuickGELU end
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
SCALARS = ("logit_scale", "logit_bias")  # have one axis or none


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
        parts = []
        for start in range(0, len(images), IMAGES_TOGETHER):
            parts.append(self._encoded(self._pixels(images[start : start + IMAGES_TOGETHER])))
        return torch.cat(parts)

    def differentiable_features(self, image_BCHW: Tensor) -> Tensor:
        """Unit features of images in [0, 1], B x 3 x H x W, through which their gradient flows; B x D."""
        return self._encoded(self._preprocess(image_BCHW))

    def _encoded(self, pixels_BCHW: Tensor) -> Tensor:
        """Unit features of what the network takes, B x D float32."""
        return unit(self.model.encode_image(pixels_BCHW).float(), dim=-1)

    def _pixels(self, images: Tensor | Sequence[np.ndarray | Tensor]) -> Tensor:
        """What the network takes of images that may be of several sizes, B x 3 x H x W."""
        sizes = {image.shape for image in images}
        if len(sizes) == 1:
            return self._preprocess(images)
        return torch.cat([self._preprocess([image]) for image in images])

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features of N texts, N x D float32: the mean over the templates, made a unit again."""
        sentences = []
        for text in texts:
            for template in self.templates:
                sentences.append(template.replace("{}", text))
        tokens_ML = self.tokenizer(sentences)  # M = N T sentences of L tokens
        parts = []
        for part_ML in tokens_ML.split(TEXTS_TOGETHER):
            parts.append(unit(self.model.encode_text(part_ML.to(self.device)).float(), dim=-1))
        features_MD = torch.cat(parts)
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
    """The open_clip model, whole, frozen and in evaluation mode, and its tokenizer.

    UserError where the model or its weights are not there, where a tensor is missing, and where
    nothing says which activation the weights were trained with.
    """
    origin = f"scorer.model={settings.model} scorer.pretrained={settings.pretrained}"
    with _quiet():
        try:
            checkpoint = find_checkpoint(settings)
            with _network_for_texts(checkpoint.model):
                model = loaded("CLIP", partial(_build, checkpoint, origin))
                tokenizer = open_clip.get_tokenizer(checkpoint.model)
        except READ_ERRORS as error:
            raise UserError(f"{origin} cannot be loaded: {first_line(error)}") from error
    return model.to(device).eval().requires_grad_(False), tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A file of CLIP weights, and what open_clip is to build for it.

    model: open_clip's name. quick_gelu: x sigmoid(1.702 x) in the place of GELU, as OpenAI's weights
    were trained with, and some others; False: as the name says. preprocessing: of PREPROCESSING what
    is not open_clip's usual, which is OpenAI's.
    """

    file: Path
    model: str
    quick_gelu: bool = False
    preprocessing: dict[str, Any] = field(default_factory=dict)


def find_checkpoint(settings: Scorer) -> Checkpoint:
    """The file that scorer.model and scorer.pretrained name: in a folder, by path, or by open_clip's tag.

    UserError where it is not there, and where a lone file does not say what it was trained with.
    """
    if settings.model.startswith(LOCAL):
        return _in_folder(_local_folder(settings.model))
    _check_registered(settings)
    file = Path(find_file(settings.pretrained)).expanduser()
    if file.is_file():
        refuse_broken_files(file, f"scorer.pretrained={settings.pretrained}")
        return Checkpoint(file, settings.model, *_training_of(settings.model, file))
    tag = open_clip.get_pretrained_cfg(settings.model, settings.pretrained)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(settings.model))
        raise UserError(
            f"scorer.pretrained={settings.pretrained}: there is no such file, and no such tag of "
            f"{settings.model}: set scorer.pretrained=FILE, or one of {tags}"
        )
    return Checkpoint(_fetched(settings, tag), settings.model, *_training_of_tag(tag))


def _in_folder(folder: Path) -> Checkpoint:
    """open_clip's model in a folder; its own configuration says the activation."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS]
    # A repository of timm's has the picture's half beside the whole, as model.safetensors.
    files.sort(key=lambda file: (not file.name.startswith("open_clip"), WEIGHTS.index(file.suffix)))
    return Checkpoint(files[0], f"{LOCAL}{folder}")


def _fetched(settings: Scorer, tag: Mapping[str, Any]) -> Path:
    """The file of one of open_clip's tags, from the cache or the hub."""
    repository, _, name = tag.get("hf_hub", "").rpartition("/")
    try:
        if not repository and not is_reached(tag["url"]):
            raise OSError(f"{tag['url']} is not reached")
        with cache_alone_where_not_reached():
            return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # the hub's client and urllib raise a dozen kinds
        source = (
            f"hf download {repository} {name}".strip() + " --local-dir clip" if repository else tag["url"]
        )
        key = "scorer.model=local-dir:clip scorer.pretrained=" if repository else "scorer.pretrained=FILE"
        raise UserError(
            f"scorer.model={settings.model} scorer.pretrained={settings.pretrained}: the weights are not in "
            f"the cache, and the hub is not reached. Where there is a network: {source}; then bring it, and "
            f"set {key}"
        ) from error


def _training_of(model: str, file: Path) -> tuple[bool, dict[str, Any]]:
    """Whether the weights in a file were trained with QuickGELU, and how pictures were preprocessed.

    Tensors tell neither: those of both activations have the same names and shapes. The first that
    speaks is taken: entries that OpenAI's files alone have; the configuration beside the file, as the
    hub has it; all of open_clip's tags of the architecture, where they agree, as those of a name
    that ends in -quickgelu mostly do. UserError where they do not.
    """
    if _is_openai_s(file):
        return True, {}
    if (file.parent / CONFIG).is_file():
        return _training_beside(model, file.parent / CONFIG)
    trainings = []
    for tag in open_clip.list_pretrained_tags_by_model(model):
        training = _training_of_tag(open_clip.get_pretrained_cfg(model, tag))
        if training not in trainings:
            trainings.append(training)
    if len(trainings) > 1:
        choice = ""
        if model + QUICK in open_clip.list_models():
            choice = f"set scorer.model={model}{QUICK} for QuickGELU (OpenAI's weights, DFN's), or "
        raise UserError(
            f"scorer.pretrained={file} does not say which activation it was trained with, nor how pictures"
            f" were normalised: {choice}put the model's {CONFIG} beside the file (the hub has it)"
        )
    return trainings[0] if trainings else (False, {})


def _training_beside(model: str, config: Path) -> tuple[bool, dict[str, Any]]:
    """What the configuration beside a file says; UserError where it contradicts the model's name."""
    description = json.loads(config.read_text())
    quick_gelu = bool(description["model_cfg"].get("quick_gelu"))
    if (open_clip.get_model_config(model) or {}).get("quick_gelu") and not quick_gelu:
        raise UserError(
            f"scorer.model={model} has QuickGELU, and {config} says GELU: set"
            f" scorer.model={model.removesuffix(QUICK)}"
        )
    options = description.get("preprocess_cfg") or {}
    return quick_gelu, {option: options[option] for option in PREPROCESSING if option in options}


def _training_of_tag(tag: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """What open_clip knows of a tag's weights."""
    return bool(tag.get("quick_gelu")), {option: tag[option] for option in PREPROCESSING}


def _is_openai_s(file: Path) -> bool:
    """Whether a file is in OpenAI's format: its TorchScript archive, or the tensors of one."""
    return _read(file).keys() >= OPENAI_ENTRIES


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. UserError where reading them would run code of the file.

    torch.jit.load is no pickle: it runs no Python. Of an archive's own code, a language that can
    write files, it runs methods named __setstate__, and nothing else, as none is called here.
    OpenAI's archives have none.
    """
    if not _is_archive(file):
        return open_clip.factory.load_state_dict(str(file))
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if "/code/" in name and b"__setstate__" in archive.read(name):
                raise UserError(
                    f"scorer.pretrained={file} would run code on loading ({name}): fetch OpenAI's file"
                    " again, or take the hub's open_clip_model.safetensors"
                )
    return torch.jit.load(file, map_location="cpu").state_dict()


def _is_archive(file: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with code in it."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _build(checkpoint: Checkpoint, origin: str) -> Any:
    """The model with the file's weights. UserError where it is not whole, or lacks a tensor."""
    refuse_broken_files(checkpoint.file, origin)
    model = open_clip.create_model(
        checkpoint.model,
        load_weights=False,
        pretrained_image=False,
        pretrained_text=False,
        force_quick_gelu=checkpoint.quick_gelu,
        force_preprocess_cfg=checkpoint.preprocessing,
    )
    load_tensors(model, _in_the_models_names(_read(checkpoint.file), model), origin)
    return model


def _in_the_models_names(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The same tensors as this class of open_clip's names them.

    As open_clip.load_checkpoint does it, which however fits position embeddings of another size of
    pictures without a word.
    """
    tensors = convert_state_dict(model, tensors)
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in SCALARS:
        if name in tensors and getattr(model, name, None) is not None:
            tensors[name] = tensors[name].reshape(getattr(model, name).shape)
    return tensors


def _network_for_texts(model: str) -> contextlib.AbstractContextManager[None]:
    """Where open_clip asks the hub for a tokenizer, or for the configuration of a text tower: its cache
    alone, where the hub is not reached.
    """
    texts = open_clip.get_model_config(model)["text_cfg"]
    if "hf_tokenizer_name" in texts or "hf_model_name" in texts:
        return cache_alone_where_not_reached()
    return contextlib.nullcontext()


def _local_folder(model: str) -> Path:
    """The folder that 'local-dir:FOLDER' names; UserError where it holds no open_clip model with
    weights.
    """
    folder = Path(find_file(model.removeprefix(LOCAL)))
    has_config = folder.is_dir() and (folder / CONFIG).is_file()
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
            warnings.filterwarnings("ignore", message=r"`torch.jit.load` is")  # newer torch calls it old
            yield
    finally:
        logging.disable(before)
