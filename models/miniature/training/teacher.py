"""The Stable Diffusion folder: the text encoder with its tokenizer, and the UNet. B batch, C channels, H W pixels, T tokens, D width."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.devices import pick_device
from models.miniature.scenes import STYLES, Look
from models.miniature.training import data
from models.miniature.training.data import CAPTIONS, VALIDATION_SEED
from models.miniature.training.loop import SHIPPED, Options, autocast, fit, log, untrained, write_whole

TOKENS = 32
VOCABULARY = 1200  # at most; the captions have fewer pairs to merge
WIDTH, LAYERS, HEADS = 256, 4, 4  # of the text encoder
VISION_LAYERS, PATCH = 6, 16  # of the vision tower that it is trained with, thrown away afterwards
CAPTION_DROPOUT = 0.1  # share of training without a caption, for classifier-free guidance
VALIDATION_PICTURES = 64  # of each style


def encode(tokenizer, texts: list[str]) -> torch.Tensor:
    """int32 token ids (N, TOKENS), padded and cut to the text encoder's length."""
    return tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids.int()


def make_tokenizer(texts: list[str], folder: Path):
    """Train CLIP's kind of byte-pair tokenizer on the captions and save it; returns the CLIPTokenizer."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    merges = [tuple(pair) for pair in json.loads(data.byte_pairs(texts, VOCABULARY).to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # all 256 bytes
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip(vocabulary):
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS, "projection_dim": WIDTH}
    text = {"vocab_size": vocabulary, "num_hidden_layers": LAYERS, "max_position_embeddings": TOKENS}
    text |= {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    vision = {"num_hidden_layers": VISION_LAYERS, "image_size": 128, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=WIDTH))


def train_text(options: Options) -> None:
    """Train tokenizer and text encoder of `out`/teacher contrastively on pictures and captions."""
    from transformers import CLIPTextModel

    device, folder = pick_device("auto"), Path(options.out) / "teacher"
    pictures = data.training_pictures(options)
    texts = data.training_sentences(options)
    tokenizer = make_tokenizer(texts, folder / "tokenizer")
    tokens = encode(tokenizer, texts).view(-1, CAPTIONS, TOKENS)
    log(f"text: vocabulary of {len(tokenizer)}")
    torch.manual_seed(1)
    clip = _clip(len(tokenizer)).to(device).train()

    def loss_of_step(step):
        rows = torch.randint(len(pictures), (options.batch,))
        image_BCHW = data.flipped(data.to_tensor(pictures[rows.numpy()], device))
        token_BT = tokens[rows, torch.randint(CAPTIONS, (options.batch,))].to(device)
        with autocast(device):
            # no attention mask, as the diffusion pipeline gives none: padding is part of the sentence
            logits_BB = clip(input_ids=token_BT, pixel_values=image_BCHW, attention_mask=torch.ones_like(token_BT)).logits_per_image
        return data.contrastive(logits_BB.float())

    fit("text", clip, loss_of_step, options)
    encoder = CLIPTextModel(clip.config.text_config)
    state = clip.text_model.state_dict()
    names = encoder.state_dict().keys()  # releases of transformers differ in whether these carry a prefix
    prefix = "text_model." if next(iter(names)).startswith("text_model.") else ""
    encoder.load_state_dict({prefix + name: tensor for name, tensor in state.items() if prefix + name in names})
    encoder.half().save_pretrained(folder / "text_encoder")


@torch.no_grad()
def _latents(vae, pictures, device):
    """Scaled latent modes, float16 (N, 4, 32, 32)."""
    found = []
    for start in range(0, len(pictures), 64):
        with autocast(device):
            mode = vae.encode(data.to_tensor(pictures[start : start + 64], device)).latent_dist.mode()
        found.append((mode.float() * vae.config.scaling_factor).half().cpu())
    return torch.cat(found).numpy()


def _training_latents(vae, options, device):
    """_latents of the training pictures, kept on disk."""
    path = data.cache_path(options, "latents", data.training_seeds(options), options.sketch_share, vae.config.scaling_factor)
    if not path.exists():
        log(f"making {path}")
        write_whole(path, partial(np.save, arr=_latents(vae, data.training_pictures(options), device)))
    return np.load(path, mmap_mode="r")


def _validation(errors, vae, encode, device):
    """A function that measures the loss on held-out photos and sketches, always with the same noise and time steps."""
    generator, sets = torch.Generator().manual_seed(5), {}
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + VALIDATION_PICTURES)
    for style in STYLES:
        look = Look("any", style=style)
        latents = torch.from_numpy(_latents(vae, data.pictures(seeds, look), device)).float()
        times = torch.linspace(5, 985, VALIDATION_PICTURES).long()[torch.randperm(len(latents), generator=generator)]
        noise = torch.randn(latents.shape, generator=generator)
        sets[style] = (latents, noise, times, encode([data.sentences(seed, look, 1)[0] for seed in seeds]))

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def measure():
        losses = []
        for style, tensors in sets.items():
            parts = zip(*(tensor.split(32) for tensor in tensors), strict=True)
            found = torch.cat([errors(*(part.to(device) for part in batch)) for batch in parts])
            losses.append(f"{style} {float(found.mean()):.4f}")
        return "validation loss: " + ", ".join(losses)

    return measure


def train_unet(options: Options) -> None:
    """Train the UNet on latents of the autoencoder and sentences of the text encoder that are in `out`/teacher."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    device, folder = pick_device("auto"), Path(options.out) / "teacher"
    for part, stage in (("vae", "vae"), ("tokenizer", "text"), ("text_encoder", "text")):
        if not (folder / part).is_dir():
            raise SystemExit(f"{folder / part} is not there: run the stage {stage} first, with the same out")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float().to(device).eval().requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(folder / "vae").float().to(device).eval().requires_grad_(False)
    scheduler = DDIMScheduler.from_pretrained(SHIPPED / "teacher" / "scheduler")  # Stable Diffusion's
    unet = untrained(UNet2DConditionModel, "teacher/unet", options.init)
    unet.to(device, memory_format=torch.channels_last).train()

    latents = _training_latents(vae, options, device)
    tokens = encode(tokenizer, data.training_sentences(options)).view(len(latents), CAPTIONS, TOKENS)
    empty = encode(tokenizer, [""])

    def errors(latent_BCHW, noise_BCHW, time_B, token_BT):
        """The objective of a latent diffusion model: the mean squared error of the predicted noise of each sample (B,)."""
        noisy_BCHW = scheduler.add_noise(latent_BCHW, noise_BCHW, time_B)
        with autocast(device):
            with torch.no_grad():  # the attention mask is all ones, as the pipeline passes none
                caption_BTD = text_encoder(input_ids=token_BT.to(device)).last_hidden_state
            predicted_BCHW = unet(noisy_BCHW, time_B, caption_BTD).sample
        return (predicted_BCHW.float() - noise_BCHW).square().mean((1, 2, 3))

    if options.compile:
        unet.compile()
    measure = _validation(errors, vae, partial(encode, tokenizer), device)
    log(f"unet: {measure()}")

    def loss_of_step(step):
        rows = torch.randint(len(latents), (options.batch,))
        token_BT = tokens[rows, torch.randint(CAPTIONS, (options.batch,))]
        token_BT = torch.where(torch.rand(options.batch, 1) < CAPTION_DROPOUT, empty, token_BT)
        latent_BCHW = torch.from_numpy(latents[rows.numpy()]).to(device).float()
        time_B = torch.randint(1000, (options.batch,), device=device)
        return errors(latent_BCHW, torch.randn_like(latent_BCHW), time_B, token_BT).mean()

    fit("unet", unet, loss_of_step, options, measure)
    log(f"unet: {measure()}")
    unet.half().save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False)
    pipe.save_config(folder)
