"""A Stable Diffusion folder turned into the other layouts that people meet, in place."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SAFE = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
BIN = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}
CHECKER = "safety_checker"
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def weights_of(folder: Path, part: str) -> Path:
    return folder / part / f"{SAFE.get(part, 'model')}.safetensors"


def to_bin(folder: Path) -> None:
    """PyTorch's own files."""
    for part, stem in BIN.items():
        file = weights_of(folder, part)
        torch.save(load_file(file), folder / part / f"{stem}.bin")
        file.unlink()


def to_variant(folder: Path) -> None:
    """Files of float16 alone, which a variant names."""
    for part, stem in SAFE.items():
        file = weights_of(folder, part)
        tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(tensors, folder / part / f"{stem}.fp16.safetensors", {"format": "pt"})
        file.unlink()


def to_shards(folder: Path) -> None:
    """Two files a network, with an index."""
    for part, stem in SAFE.items():
        file = weights_of(folder, part)
        tensors = load_file(file)
        names = sorted(tensors)
        weight_map = {}
        for number in (1, 2):
            shard = f"{stem}-{number:05d}-of-00002.safetensors"
            own = names[number - 1 :: 2]
            save_file({name: tensors[name] for name in own}, folder / part / shard, {"format": "pt"})
            weight_map |= dict.fromkeys(own, shard)
        index = {"metadata": {"total_size": file.stat().st_size}, "weight_map": weight_map}
        file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
        file.unlink()


def to_old_attention(folder: Path) -> None:
    """The VAE's attention under the names that it had in 2022."""
    tensors = {}
    for name, tensor in load_file(weights_of(folder, "vae")).items():
        if ".attentions." in name:
            for new, old in OLD_ATTENTION.items():
                name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor
    save_file(tensors, weights_of(folder, "vae"), {"format": "pt"})


def to_pointer(file: Path) -> None:
    """What a Git repository has in the place of a large file."""
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 492265168\n")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def rename(file: Path, old: str, new: str) -> None:
    """Rename tensors whose name contains `old`."""
    tensors = {name.replace(old, new): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def change_json(file: Path, **values: object) -> None:
    """Set values of a configuration; None removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# ---- the original layout (ldm) ----

_UNET = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.",
    "conv_shortcut.": "skip_connection.",
}
_VAE_ATTENTION = {
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
}


def _unet_blocks() -> dict[str, str]:
    """diffusers' beginnings of names -> the original ones; four levels, two layers each."""
    names = dict(_UNET)
    for level in range(4):
        for layer in range(2):
            place = 3 * level + layer + 1
            names[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{place}.0."
            names[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{place}.1."
        for layer in range(3):
            place = 3 * level + layer
            names[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{place}.0."
            names[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{place}.1."
        names[f"down_blocks.{level}.downsamplers.0.conv."] = f"input_blocks.{3 * level + 3}.0.op."
        attention_before = 0 if level == 0 else 1
        names[f"up_blocks.{level}.upsamplers.0."] = f"output_blocks.{3 * level + 2}.{1 + attention_before}."
    return names


def _vae_blocks() -> dict[str, str]:
    names = {"conv_norm_out.": "norm_out.", "mid_block.attentions.0.": "mid.attn_1."}
    for layer in range(2):
        names[f"mid_block.resnets.{layer}."] = f"mid.block_{layer + 1}."
    for level in range(4):
        for layer in range(3):
            names[f"down_blocks.{level}.resnets.{layer}."] = f"down.{level}.block.{layer}."
            names[f"up_blocks.{level}.resnets.{layer}."] = f"up.{3 - level}.block.{layer}."
        names[f"down_blocks.{level}.downsamplers.0."] = f"down.{level}.downsample."
        names[f"up_blocks.{level}.upsamplers.0."] = f"up.{3 - level}.upsample."
    return names


def _replaced(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        name = name.replace(new, old)
    return name


def write_single_file(folder: Path, file: Path) -> None:
    """The folder's networks as one file of the original layout."""
    tensors = {}
    blocks = _unet_blocks()
    for name, tensor in load_file(weights_of(folder, "unet")).items():
        start = next(new for new in blocks if name.startswith(new))
        rest = name.removeprefix(start)
        if ".resnets." in start:
            rest = _replaced(rest, _RESNET)
        tensors[f"model.diffusion_model.{blocks[start]}{rest}"] = tensor
    blocks = _vae_blocks()
    for name, tensor in load_file(weights_of(folder, "vae")).items():
        old = _replaced(name, blocks)
        if "mid.attn_1" in old:
            old = _replaced(old, _VAE_ATTENTION)
            if tensor.dim() == 2:
                tensor = tensor[:, :, None, None]  # it was a convolution of 1 x 1
        old = old.replace("conv_shortcut.", "nin_shortcut.")
        tensors[f"first_stage_model.{old}"] = tensor.clone()
    texts = {}
    for name, tensor in load_file(weights_of(folder, "text_encoder")).items():
        texts[name.removeprefix("text_model.")] = tensor
    if json.loads((folder / "text_encoder" / "config.json").read_text())["hidden_act"] == "gelu":
        tensors |= {f"cond_stage_model.model.{name}": tensor for name, tensor in _open_clip(texts).items()}
    else:
        for name, tensor in texts.items():
            tensors[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    save_file(tensors, file)


_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "self_attn.out_proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}


def _open_clip(texts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text encoder of version 2 as open_clip has it: one tensor for queries, keys and values, and a
    last layer that Stable Diffusion leaves out.
    """
    tensors = {}
    for name, tensor in texts.items():
        if "_proj." not in name or "out_proj" in name:
            tensors[_replaced(name, _OPEN_CLIP)] = tensor
    layers = 1 + max(int(name.split(".")[2]) for name in texts if name.startswith("encoder.layers."))
    for layer in range(layers):
        for kind in ("weight", "bias"):
            parts = [texts[f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    for name in list(tensors):
        if name.startswith(f"transformer.resblocks.{layers - 1}."):
            left_out = name.replace(f".{layers - 1}.", f".{layers}.", 1)
            tensors[left_out] = torch.full_like(tensors[name], 9.0)
    width = tensors["ln_final.weight"].numel()
    return tensors | {"text_projection": torch.eye(width), "logit_scale": torch.tensor(4.6)}
