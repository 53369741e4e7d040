"""Builds a segment-anything model of any size from its own classes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def build_sam(config: dict[str, Any]) -> Sam:
    """An untrained Sam in evaluation mode.

    config: `image_size` and `patch_size` in pixels; `prompt_embed_dim`, the width of prompts and of the image
    embedding; `encoder`, keyword arguments of ImageEncoderViT; `decoder`, those of MaskDecoder, with its
    `transformer` as a dictionary for TwoWayTransformer. Raises KeyError where one is missing and TypeError where the
    classes know no such argument.
    """
    image_size, width = config["image_size"], config["prompt_embed_dim"]
    side = image_size // config["patch_size"]
    decoder = dict(config["decoder"])
    transformer = TwoWayTransformer(embedding_dim=width, **decoder.pop("transformer"))
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size,
            patch_size=config["patch_size"],
            out_chans=width,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            **config["encoder"],
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(side, side),
            input_image_size=(image_size, image_size),
            mask_in_chans=config.get("mask_in_chans", 16),
        ),
        mask_decoder=MaskDecoder(transformer=transformer, transformer_dim=width, **decoder),
    ).eval()
