"""Stable Diffusion folders with random weights: the published configurations, at any width.

Class names, tensor names, shapes and files are those of the published folders in diffusers' layout, so
that what loads these loads those.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.pipeline import DTYPES

GROUPS = 32  # of the networks' group norms; fewer at a reduced width
REDUCED_GROUPS = 8
VOCABULARY = 49408  # of CLIP's tokenizer, of which 256 are bytes and as many bytes at a word's end
TOKENS = 77


@dataclass(frozen=True)
class Model:
    """A published model: its side in pixels, and what its parts' configurations say.

    heads: of the UNet's attention by level. text_width, text_layers, text_heads: of the text encoder.
    pad: the tokenizer's padding token.
    """

    side: int
    vae_side: int
    heads: tuple[int, ...]
    text_width: int
    text_layers: int
    text_heads: int
    text_activation: str
    pad: str
    has_checker: bool
    unet: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)


_VERSION_1 = Model(
    side=512,
    vae_side=512,
    heads=(8, 8, 8, 8),
    text_width=768,
    text_layers=12,
    text_heads=12,
    text_activation="quick_gelu",
    pad="<|endoftext|>",
    has_checker=True,
    scheduler={"_class_name": "PNDMScheduler", "skip_prk_steps": True, "trained_betas": None},
)
_VERSION_2: dict[str, Any] = {
    "vae_side": 768,
    "heads": (5, 10, 20, 20),
    "text_width": 1024,
    "text_layers": 23,
    "text_heads": 16,
    "text_activation": "gelu",
    "pad": "!",
    "has_checker": False,
}
MODELS = {
    "sd14": _VERSION_1,
    "sd15": _VERSION_1,
    "sd21-base": Model(
        side=512,
        unet={"use_linear_projection": True},
        scheduler={"_class_name": "PNDMScheduler", "skip_prk_steps": True, "prediction_type": "epsilon"},
        **_VERSION_2,
    ),
    "sd21": Model(
        side=768,
        unet={"use_linear_projection": True, "upcast_attention": True},
        scheduler={"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        **_VERSION_2,
    ),
}
SCHEDULER = {  # of all of them
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def write_stable_diffusion(
    folder: Path, name: str, width: float = 1.0, dtype: str = "float32", checker: bool = True
) -> Path:
    """Write the folder of one of MODELS, a part at a time, so that the largest decides the memory.

    width: factor on all widths, and on the text encoder's layers; 1 is the published size. dtype: of
    the files. checker: with a safety checker, where the model has one. Returns the folder.
    """
    model = MODELS[name]
    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer", model.pad)
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER | model.scheduler)
    writers = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    has_checker = checker and model.has_checker
    if has_checker:
        writers["safety_checker"] = safety_checker
        _write_json(folder / "feature_extractor" / "preprocessor_config.json", PREPROCESSOR)
    for part, make in writers.items():
        network = make(model, width)
        torch.nn.Module.to(network, DTYPES[dtype])  # the networks' own .to() warns of float16
        network.save_pretrained(folder / part)
        del network
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"] if has_checker else [None, None],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]
        if has_checker
        else [None, None],
        "scheduler": ["diffusers", model.scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "requires_safety_checker": has_checker,
    }
    _write_json(folder / "model_index.json", index)
    return folder


# ---- the parts ----

PREPROCESSOR = {  # of the safety checker's pictures
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}


def unet(model: Model, width: float = 1.0) -> Any:
    """The UNet: 859.5 M parameters in version 1."""
    from diffusers import UNet2DConditionModel

    heads = model.heads if width == 1 else tuple(max(1, round(count * width)) for count in model.heads)
    return UNet2DConditionModel(
        sample_size=model.side // 8,
        block_out_channels=tuple(_scaled(channels, width) for channels in (320, 640, 1280, 1280)),
        layers_per_block=2,
        attention_head_dim=heads,
        cross_attention_dim=_scaled(model.text_width, width),
        norm_num_groups=GROUPS if width == 1 else REDUCED_GROUPS,
        **model.unet,
    )


def vae(model: Model, width: float = 1.0) -> Any:
    """The VAE: 83.7 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=model.vae_side,
        block_out_channels=tuple(_scaled(channels, width) for channels in (128, 256, 512, 512)),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=GROUPS if width == 1 else REDUCED_GROUPS,
    )


def text_encoder(model: Model, width: float = 1.0) -> Any:
    """CLIP's text encoder: 123 M parameters in version 1, 340 M in version 2."""
    from transformers import CLIPTextConfig, CLIPTextModel

    wide = _scaled(model.text_width, width)
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=wide,
        intermediate_size=4 * wide,
        num_hidden_layers=max(1, round(model.text_layers * width)),
        num_attention_heads=model.text_heads if width == 1 else 2,
        max_position_embeddings=TOKENS,
        hidden_act=model.text_activation,
        projection_dim=_scaled(model.text_width, width),
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def safety_checker(model: Model, width: float = 1.0) -> Any:
    """The safety checker, a CLIP ViT-L/14: 304 M parameters. It flags nothing with these weights."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    wide = _scaled(1024, width)
    vision = {
        "hidden_size": wide,
        "intermediate_size": 4 * wide,
        "num_hidden_layers": max(1, round(24 * width)),
        "num_attention_heads": 16 if width == 1 else 2,
        "patch_size": 14,
        "image_size": 224,
    }
    return StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision, projection_dim=_scaled(model.text_width, width))
    )


def write_tokenizer(folder: Path, pad: str) -> None:
    """CLIP's tokenizer as transformers has it, made from open_clip's file of merges."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe

    with gzip.open(default_bpe()) as stream:
        lines = stream.read().decode().split("\n")
    symbols = list(bytes_to_unicode().values())
    merges = lines[1 : VOCABULARY - 2 * len(symbols) - 2 + 1]  # the first line is a header
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    words += [merge.replace(" ", "") for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    _write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", settings | special)


def _scaled(channels: int, width: float) -> int:
    """A width as published, or reduced to a multiple of 16, so that heads and groups divide it."""
    return channels if width == 1 else max(16, round(channels * width / 16) * 16)


def _write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1))
