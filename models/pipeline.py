"""The parts of a Stable Diffusion 1.x or 2.x model from its files, each whole or refused.

A folder in diffusers' layout, or a single file in the original layout (ldm) with a folder that brings
the configurations. diffusers' own pipeline loads the same parts, but fills what is missing with
random numbers.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.errors import UserError
from configs.schema import Teacher as TeacherConfig
from models.devices import free_memory
from models.hub import local_model
from models.weights import first_line, loaded, refuse_broken_files, refuse_gaps

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# model.safetensors, model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, and their index
_STEM = r"(diffusion_pytorch_model|pytorch_model|model)"
_SHARD = r"(-\d+-of-\d+)?"
_FORMAT = r"\.(?P<format>safetensors|bin)"
WEIGHT_NAME = re.compile(rf"{_STEM}{_SHARD}(\.(?P<variant>\w+))?{_SHARD}{_FORMAT}")
INDEX_NAME = re.compile(rf"{_STEM}{_FORMAT}\.index(\.(?P<variant>\w+))?\.json")
NO_LENGTH = 1_000_000  # a tokenizer without model_max_length says 1e30
IMAGE_UNETS = {8: "InstructPix2Pix", 9: "inpainting"}  # channels that a UNet takes -> what it is made for
CONVERT = (
    "diffusers' scripts/convert_original_stable_diffusion_to_diffusers.py makes a folder of it "
    "where there is a network"
)


@dataclass
class Parts:
    """What a teacher is made of, as diffusers and transformers have it."""

    scheduler: Any
    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any
    feature_extractor: Any = None  # of the safety checker
    safety_checker: Any = None


def load_parts(config: TeacherConfig, dtype: str = "float32", checker: bool = False) -> Parts:
    """The parts of the model at teacher.path, a folder, a single file or a hub name.

    dtype: one of DTYPES. checker: load the safety checker too, where the folder names one.
    UserError where a part is missing, lacks a tensor, or is no Stable Diffusion 1.x or 2.x's.
    """
    path = local_model(config.path, "teacher.path")
    with _quiet():
        if path.is_file():
            parts = _from_single_file(path, config, dtype)
        elif config.config:
            raise UserError(
                f"teacher.config={config.config} is for a single file, and teacher.path={config.path} is a "
                "folder, which has its own configurations: leave it out"
            )
        else:
            parts = _Folder(path, f"teacher.path={config.path}", DTYPES[dtype]).parts(checker)
    _refuse_other_models(parts, f"teacher.path={config.path}")
    return parts


def load_pixel_unet(path: str, key: str, advice: str) -> tuple[Any, Any]:
    """The UNet2DModel and the scheduler of an unconditional model of pixels, a folder or a hub name.

    The UNet lies in unet/ with the scheduler in scheduler/, or both at the top, as in google's first
    repositories. key: of the configuration, which has the path. advice: what the key takes.
    UserError where a part is missing or lacks a tensor, and for a model of anything but pixels.
    """
    from diffusers import UNet2DModel

    origin = f"{key}={path}"
    whole = local_model(path, key, advice)
    with _quiet():
        top = "" if (whole / "unet").is_dir() else "."
        unet_config = _read_json(whole / (top or "unet") / "config.json", f"{origin}: {advice}")
        if unet_config.get("_class_name") != "UNet2DModel":
            raise UserError(f"{origin}: its UNet is a {unet_config.get('_class_name')}: {advice}")
        folder = _Folder(whole, origin, torch.float32)
        unet = folder._network(top or "unet", UNet2DModel, advice)
        scheduler = folder._scheduler(top or "scheduler")
    settings = unet.config
    if (settings.in_channels, settings.out_channels) != (3, 3):
        raise UserError(
            f"{origin}: its UNet takes {settings.in_channels} channels and gives {settings.out_channels}; "
            "one that takes and gives the 3 of a picture is needed"
        )
    _refuse_other_predictions(scheduler, origin)
    return unet, scheduler


def load_networks(folder: Path, key: str, index: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Every network of a diffusers pipeline of any kind, by the name of its part, each whole.

    key: of the configuration, with its value. index: what model_index.json names, part -> [library, class].
    Parts without weights (tokenizers, schedulers) are not among them. UserError where one lacks a tensor,
    and where all are larger than the memory that is free.
    """
    classes = {}
    for part, entry in index.items():
        has_weights = (folder / part).is_dir() and weight_files(folder / part)[0]
        if has_weights and isinstance(entry, list) and len(entry) == 2 and entry[0]:
            classes[part] = _part_class(*entry)
    whole = _Folder(folder, key, DTYPES[dtype])
    whole._refuse_too_large(tuple(classes))
    with _quiet():
        return {part: whole._network(part, found) for part, found in classes.items() if found is not None}


def _part_class(library: str, name: str) -> Any:
    """A class that a model_index.json names; None where this library has none of that name."""
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


@dataclass
class _Folder:
    """A folder in diffusers' layout. key: the configuration's, with its value, for messages."""

    path: Path
    key: str
    dtype: torch.dtype

    def parts(self, checker: bool) -> Parts:
        """All of them, the safety checker where it is asked for and named."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        if (self.path / "text_encoder_2").exists() or (self.path / "transformer").exists():
            raise UserError(
                f"{self.key} is a model of another family: Stable Diffusion 1.x and 2.x are known"
            )
        self._refuse_too_large()
        scheduler = self._scheduler()
        tokenizer = self._tokenizer()
        parts = Parts(
            scheduler=scheduler,
            tokenizer=tokenizer,
            text_encoder=self._network("text_encoder", CLIPTextModel),
            vae=self._network("vae", AutoencoderKL),
            unet=self._network("unet", UNet2DConditionModel),
        )
        if checker and self._names_checker():
            parts.safety_checker, parts.feature_extractor = self._checker()
        return parts

    def _refuse_too_large(self, parts: Sequence[str] = ("text_encoder", "vae", "unet")) -> None:
        """UserError where the networks alone take more memory than is free: the process would be killed."""
        size = 0
        for name in parts:
            if (self.path / name).is_dir():
                size += sum(file.stat().st_size for file in weight_files(self.path / name)[0])
        free = free_memory()
        if size > free:
            raise UserError(
                f"{self.key}: its weights are {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
            )

    def _network(self, name: str, network_class: Any, advice: str = "") -> Any:
        """One network, with every tensor from its files. advice: what to do where it is not whole."""
        folder = self.path / name
        origin = f"{self.key}: {name}"
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{self.key} has no {name}/config.json: {advice or 'it is no whole Stable Diffusion folder'}"
            )
        weights, variant = weight_files(folder)
        if not weights:
            raise UserError(f"{origin} has no file of weights in {folder}: {advice or 'fetch it'}")
        for file in weights:
            refuse_broken_files(file, origin)

        def load() -> Any:
            network, report = network_class.from_pretrained(
                folder,
                variant=variant,
                dtype=self.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused in one line
                local_files_only=True,
            )
            refuse_gaps(report, origin, advice)
            return network

        try:
            return loaded(name, load)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise UserError(f"{origin} does not load: {first_line(error)}") from error

    def _scheduler(self, part: str = "scheduler") -> Any:
        """Of the class that its configuration names: the betas' defaults are the class's."""
        import diffusers

        folder = self.path / part
        name = _read_json(folder / "scheduler_config.json", self.key).get("_class_name", "")
        scheduler_class = getattr(diffusers, name, None)
        if not name.endswith("Scheduler") or scheduler_class is None:
            raise UserError(f"{self.key}: diffusers has no scheduler '{name}' ({folder})")
        return scheduler_class.from_pretrained(folder)

    def _tokenizer(self) -> Any:
        """The tokenizer; one that says no length gets the text encoder's."""
        from transformers import CLIPTokenizer

        folder = self.path / "tokenizer"
        _refuse_missing_vocabulary(folder, self.key)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.key}: tokenizer does not load: {first_line(error)}") from error
        if tokenizer.model_max_length > NO_LENGTH:
            text = _read_json(self.path / "text_encoder" / "config.json", self.key)
            tokenizer.model_max_length = int(text.get("max_position_embeddings", 77))  # transformers' default
        return tokenizer

    def _names_checker(self) -> bool:
        """Whether model_index.json says that there is a safety checker; without one, whether there is."""
        index = self.path / "model_index.json"
        if not index.is_file():
            return (self.path / "safety_checker").is_dir()
        named = _read_json(index, self.key).get("safety_checker")
        return bool(named and named[0])

    def _checker(self) -> tuple[Any, Any]:
        """The safety checker and what prepares its pictures."""
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        advice = "fetch it, or leave it out with generate.safety_checker=false"
        network = self._network("safety_checker", StableDiffusionSafetyChecker, advice)
        try:
            extractor = CLIPImageProcessor.from_pretrained(self.path / "feature_extractor")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.key} has a safety checker and no feature_extractor: {advice}") from error
        return network, extractor


def _refuse_missing_vocabulary(folder: Path, key: str) -> None:
    """UserError for a tokenizer without its words: transformers would make one of a few entries."""
    names = {file.name for file in folder.glob("*")}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        raise UserError(
            f"{key}: tokenizer does not load: {folder} has neither vocab.json and merges.txt nor "
            "tokenizer.json: fetch them"
        )


def weight_files(folder: Path) -> tuple[list[Path], str | None]:
    """The files that hold a network's weights in a folder, and their variant ('fp16'), if they have one.

    Of several copies the one that the libraries take: the plain name before a variant's, .safetensors
    before .bin. The index of a sharded copy is among its files.
    """
    copies: dict[tuple[str, str], list[Path]] = {}  # (variant, format) -> files
    for file in sorted(folder.iterdir()):
        match = WEIGHT_NAME.fullmatch(file.name) or INDEX_NAME.fullmatch(file.name)
        if match:
            copies.setdefault((match["variant"] or "", match["format"]), []).append(file)
    if not copies:
        return [], None
    variants = {variant for variant, _ in copies}
    variant = next((name for name in ("", "fp16") if name in variants), min(variants))
    files = copies.get((variant, "safetensors")) or copies[variant, "bin"]
    return files, variant or None


def _from_single_file(path: Path, config: TeacherConfig, dtype: str) -> Parts:
    """The parts in a file of the original layout, by diffusers' conversion, without a network."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    key = f"teacher.path={config.path}"
    if not config.config:
        raise UserError(
            f"{key} is a single file: set teacher.config= to a diffusers folder of the same family, whose "
            f"configurations, scheduler and tokenizer it takes (no weights are needed there); or {CONVERT}"
        )
    refuse_broken_files(path, key)
    family = local_model(config.config, "teacher.config")
    _refuse_missing_vocabulary(family / "tokenizer", f"teacher.config={config.config}")
    options = {"config": str(family), "local_files_only": True}
    no_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    networks = {}
    part = "text_encoder"
    try:
        for part, network_class in classes.items():
            networks[part] = network_class.from_single_file(str(path), subfolder=part, **options)
        part = "text_encoder"
        pipeline = StableDiffusionPipeline.from_single_file(str(path), **networks, **options, **no_checker)
        gaps = [name for name, tensor in pipeline.text_encoder.named_parameters() if tensor.is_meta]
    except NotImplementedError:  # of moving a tensor that nothing filled
        gaps = _gaps(classes[part], path, part, options)
    except Exception as error:  # noqa: BLE001 - its conversions fail in a dozen ways on a file they do not know
        raise UserError(
            f"{key} with teacher.config={config.config}: {part} does not load ({first_line(error)}): "
            f"{CONVERT}"
        ) from error
    advice = f"fetch it again, or set teacher.config= to a folder of its family (not {config.config})"
    report = {"missing_keys": gaps, "unexpected_keys": [], "mismatched_keys": []}
    refuse_gaps(report, f"{key}: {part}, by diffusers' names,", advice)
    parts = Parts(pipeline.scheduler, pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, pipeline.unet)
    for network in (parts.text_encoder, parts.vae, parts.unet):
        nn.Module.to(network, DTYPES[dtype])  # the networks' own .to() warns of float16
    return parts


def _gaps(network_class: Any, path: Path, part: str, options: dict[str, Any]) -> list[str]:
    """The tensors of a network that a single file does not fill. diffusers knows them and does not tell."""
    missing: list[str] = []

    class Listening(network_class):
        """Notes what the converted file has, before random numbers stand for the rest."""

        def load_state_dict(self, tensors: Any, strict: bool = True, assign: bool = False) -> Any:
            missing.extend(self.state_dict().keys() - tensors.keys())
            return super().load_state_dict(tensors, strict, assign)

    Listening.from_single_file(str(path), subfolder=part, low_cpu_mem_usage=False, **options)
    return missing


def _refuse_other_models(parts: Parts, key: str) -> None:
    """UserError for networks that no edit here can use."""
    unet = parts.unet.config
    channels = parts.vae.config.latent_channels
    if unet.in_channels != channels:
        made_for = IMAGE_UNETS.get(unet.in_channels, "something else")
        raise UserError(
            f"{key}: its UNet takes {unet.in_channels} channels, as one for {made_for} does; one that takes "
            f"the {channels} of a latent alone is needed"
        )
    width = parts.text_encoder.config.hidden_size
    if getattr(unet, "addition_embed_type", None) or unet.cross_attention_dim != width:
        raise UserError(
            f"{key}: its UNet and its text encoder are no Stable Diffusion 1.x's or 2.x's "
            f"(cross-attention to {unet.cross_attention_dim} channels, texts of {width})"
        )
    _refuse_other_predictions(parts.scheduler, key)


def _refuse_other_predictions(scheduler: Any, key: str) -> None:
    """UserError for a model that predicts neither the noise nor the velocity."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(f"{key}: prediction_type {kind}; epsilon and v_prediction are known")


def _read_json(file: Path, key: str) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {file} is not there or cannot be read ({first_line(error)})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence both libraries, whose warnings this module raises as errors."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
