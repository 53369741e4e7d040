"""CLIP, segment-anything, Grounding DINO, SAM 2, BLIP and DINO with random weights, in published layouts.

Names, shapes and layouts are those of the published files, so that what loads these loads those.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BLIP_WORDS = 30524  # of BERT's vocabulary and BLIP's two own

# bert-base-uncased's places of what the networks look for by number: Grounding DINO the ends of its phrases.
BERT_PLACES = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
BERT_SIZE = 30_522
SMALL_BERT_SIZE = 1100
WORDS = ["a", "the", "of", "in", "photo", "tree", "snow", "snowy", "house", "hill", "cat", "dog", "winter"]


def write_clip_archive(file: Path, model: nn.Module) -> Path:
    """An open_clip model's weights as OpenAI publishes its own: a TorchScript archive (ViT-L-14.pt)."""
    tensors = openai_tensors(model)
    root = _Node()
    for name, tensor in tensors.items():
        node: nn.Module = root
        *path, leaf = name.split(".")
        for part in path:
            if part not in node._modules:
                node.add_module(part, _Node())
            node = node._modules[part]  # type: ignore[assignment]
        node.register_buffer(leaf, tensor)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(root).save(str(file))
    return file


class _Node(nn.Module):
    """A place for tensors, since an archive needs a module and a method."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW


def openai_tensors(model: nn.Module) -> Mapping[str, Tensor]:
    """An open_clip model's tensors as OpenAI has them: most in float16, and three entries of sizes."""
    from open_clip.model import convert_weights_to_fp16

    mixed = copy.deepcopy(model)
    convert_weights_to_fp16(mixed)
    tensors = dict(mixed.state_dict())
    sizes = {"input_resolution": model.visual.image_size[0], "context_length": model.context_length}  # type: ignore
    sizes["vocab_size"] = model.vocab_size
    return tensors | {name: torch.tensor(size) for name, size in sizes.items()}


def write_clip(file: Path, name: str) -> Path:
    """OpenAI's archive of a model that open_clip knows by name (ViT-L-14, ViT-B-32)."""
    import open_clip

    torch.manual_seed(0)
    return write_clip_archive(file, open_clip.create_model(name, force_quick_gelu=True))


def write_sam(file: Path, name: str) -> Path:
    """segment-anything's .pth of vit_h, vit_l or vit_b."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(sam_model_registry[name](checkpoint=None).state_dict(), file)
    return file


def write_dino(file: Path) -> Path:
    """DINO ViT-B/8's .pth."""
    import timm

    from models.dino import ARCHITECTURE

    torch.manual_seed(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(timm.create_model(ARCHITECTURE, num_classes=0).state_dict(), file)
    return file


def write_blip(folder: Path) -> Path:
    """The folder of a BLIP-base that writes captions; its vocabulary is made up."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{number}" for number in range(BLIP_WORDS - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words))
    special = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config={**special, "vocab_size": BLIP_WORDS, "encoder_hidden_size": 768},
        vision_config={"image_size": 384},
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    BlipProcessor(BlipImageProcessor(), tokenizer).save_pretrained(folder)
    return folder


def write_vocabulary(folder: Path, size: int = BERT_SIZE, more: tuple[str, ...] = ()) -> Path:
    """A BERT tokenizer's vocab.txt: any text is spelled in letters, but for WORDS. more: after the others."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,-'"
    known = [*letters, *(f"##{letter}" for letter in letters), *(word for word in WORDS if len(word) > 1)]
    words = [f"[unused{place}]" for place in range(size)]
    words[104 : 104 + len(known)] = known
    for place, word in BERT_PLACES.items():
        words[place] = word
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("\n".join([*words, *more]))
    return path


def write_grounding_dino(folder: Path, small: bool = False) -> Path:
    """segmenter.detector: IDEA-Research/grounding-dino-tiny."""
    import transformers

    torch.manual_seed(0)
    swin: dict[str, Any] = {"depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "out_indices": [2, 3, 4]}
    words: dict[str, Any] = {}
    options: dict[str, Any] = {}
    shrink = {"shortest_edge": 800, "longest_edge": 1333}
    if small:
        swin |= {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2]}
        swin["window_size"] = 4
        words = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        words |= {"vocab_size": SMALL_BERT_SIZE, "max_position_embeddings": 64}
        options = {"num_queries": 5, "encoder_layers": 1, "decoder_layers": 2, "d_model": 32}
        options |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_text_len": 16}
        options |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        shrink = {"shortest_edge": 64, "longest_edge": 96}
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(**swin),
        text_config=transformers.BertConfig(**words),
        **options,
    )
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    write_vocabulary(folder, SMALL_BERT_SIZE if small else BERT_SIZE)
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    processor = transformers.GroundingDinoImageProcessor(size=shrink)
    transformers.GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def write_sam2(folder: Path, small: bool = False) -> Path:
    """segmenter.model beside a detector: facebook/sam2.1-hiera-tiny, which is published as a video model."""
    import transformers

    torch.manual_seed(0)
    config = _small_sam2() if small else transformers.Sam2VideoConfig()
    transformers.Sam2VideoModel(config).save_pretrained(folder)
    side = config.image_size
    mask = {"height": side // 4, "width": side // 4}
    size = {"height": side, "width": side}
    images = transformers.Sam2ImageProcessorFast(size=size, mask_size=mask)
    videos = transformers.Sam2VideoVideoProcessor(size=size)
    transformers.Sam2VideoProcessor(images, videos, target_size=side).save_pretrained(folder)
    return folder


def _small_sam2() -> Any:
    """The configuration of a SAM 2.1 of 64 pixels a side."""
    import transformers

    hiera = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    memory = {
        "memory_attention_hidden_size": 16,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 16,
        "memory_attention_rope_feat_sizes": [4, 4],
        "memory_encoder_hidden_size": 16,
        "memory_encoder_output_channels": 8,
        "mask_downsampler_embed_dim": 16,
        "memory_fuser_embed_dim": 16,
        "memory_fuser_intermediate_dim": 16,
    }
    return transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=prompts,
        mask_decoder_config=decoder,
        image_size=64,
        **memory,
    )
