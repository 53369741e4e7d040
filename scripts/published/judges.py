"""CLIP, segment-anything, BLIP and DINO with random weights, in the files that are published.

Names, shapes and layouts are those of the published files, so that what loads these loads those.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

BLIP_WORDS = 30524  # of BERT's vocabulary and BLIP's two own


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
