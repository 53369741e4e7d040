"""The Stable Diffusion folder: autoencoder, text encoder, UNet."""

from pathlib import Path

import numpy as np
import torch

from models.miniature.scenes import Look
from models.miniature.training.data import (
    CAPTIONS,
    VALIDATION_SEED,
    cached,
    render_all,
    sentences,
    to_tensor,
    training_jobs,
    training_pictures,
)
from models.miniature.training.loop import Options, autocast, device_of, fit, log, save_half

TOKENS = 32
UNET = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 256,
    "attention_head_dim": (2, 4, 6),
    "norm_num_groups": 32,
}
SCHEDULER = {  # Stable Diffusion's
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
CAPTION_DROPOUT = 0.1  # share of training without a caption, for classifier-free guidance
VALIDATION_PICTURES = 64  # of each style


def encode(tokenizer, texts: list[str]) -> np.ndarray:
    """int32 token ids (N, TOKENS), padded and cut to the text encoder's length."""
    encoded = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="np")
    return encoded.input_ids.astype(np.int32)


@torch.no_grad()
def _latents(vae, pictures, device):
    """Scaled latent modes, float16 (N, 4, 32, 32)."""
    chunks = []
    for start in range(0, len(pictures), 64):
        with autocast(device):
            mode = vae.encode(to_tensor(pictures[start : start + 64], device)).latent_dist.mode()
        chunks.append((mode.float() * vae.config.scaling_factor).half().cpu())
    return torch.cat(chunks).numpy()


class _Denoising:
    """The training objective of a latent diffusion model: the mean squared error of the predicted noise."""

    def __init__(self, unet, text_encoder, scheduler, device):
        self.unet, self.text_encoder, self.device = unet, text_encoder, device
        self.signal = scheduler.alphas_cumprod.to(device)

    def encode(self, tokens):
        """Last hidden states (B, 32, 256); the attention mask is all ones, as the pipeline passes none."""
        with torch.no_grad():
            return self.text_encoder(input_ids=tokens.to(self.device)).last_hidden_state

    def errors(self, latents, noise, times, tokens):
        """Mean squared error of each sample (B,)."""
        share = self.signal[times][:, None, None, None]
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        with autocast(self.device):
            predicted = self.unet(noisy, times, self.encode(tokens)).sample
        return (predicted.float() - noise).square().mean((1, 2, 3))


def _validation(objective, vae, tokenizer, options, device):
    """A function that measures the loss on held-out photos and sketches, always with the same noise and time steps."""
    generator = torch.Generator().manual_seed(5)
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + VALIDATION_PICTURES)
    sets = {}
    for style in ("photo", "sketch"):
        look = Look("any", style=style)
        latents = torch.from_numpy(_latents(vae, render_all([(seed, look) for seed in seeds], 1), device)).float()
        times = torch.linspace(5, 985, VALIDATION_PICTURES).long()[torch.randperm(len(latents), generator=generator)]
        noise = torch.randn(latents.shape, generator=generator)
        tokens = torch.from_numpy(encode(tokenizer, [sentences(seed, look, 1)[0] for seed in seeds]))
        sets[style] = (latents, noise, times, tokens)

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def measure():
        losses = []
        for style, tensors in sets.items():
            parts = zip(*(tensor.split(32) for tensor in tensors), strict=True)
            errors = torch.cat([objective.errors(*(part.to(device) for part in batch)) for batch in parts])
            losses.append(f"{style} {float(errors.mean()):.4f}")
        return "validation loss: " + ", ".join(losses)

    return measure


def train_unet(options: Options) -> None:
    """Train the UNet on latents of the autoencoder and sentences of the text encoder that are in `out`/teacher."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    device, folder = device_of(options), Path(options.out) / "teacher"
    for part, stage in (("vae", "vae"), ("tokenizer", "text"), ("text_encoder", "text")):
        if not (folder / part).is_dir():
            raise SystemExit(f"{folder / part} is not there: run the stage {stage} first, with the same out")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float().to(device).eval().requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(folder / "vae").float().to(device).eval().requires_grad_(False)
    scheduler = DDIMScheduler(**SCHEDULER)
    unet = UNet2DConditionModel.from_pretrained(options.init).float() if options.init else UNet2DConditionModel(**UNET)
    unet.to(device, memory_format=torch.channels_last).train()

    jobs = training_jobs(options)
    key = (options.first_seed, options.images, options.sketch_share, vae.config.scaling_factor)
    latents = cached(options, "latents", key, lambda: _latents(vae, training_pictures(options), device))
    texts = [text for seed, look in jobs for text in sentences(seed, look)]
    tokens = torch.from_numpy(encode(tokenizer, texts)).view(len(jobs), CAPTIONS, TOKENS)
    empty = torch.from_numpy(encode(tokenizer, [""]))

    if options.compile:
        unet.compile()
    objective = _Denoising(unet, text_encoder, scheduler, device)
    measure = _validation(objective, vae, tokenizer, options, device)
    log(f"unet: {measure()}")

    def loss_of_step(step):
        rows = torch.randint(len(latents), (options.batch,))
        caption_BT = tokens[rows, torch.randint(CAPTIONS, (options.batch,))]
        caption_BT = torch.where(torch.rand(options.batch, 1) < CAPTION_DROPOUT, empty, caption_BT)
        latent_BCHW = torch.from_numpy(latents[rows.numpy()]).to(device).float()
        times = torch.randint(1000, (options.batch,), device=device)
        return objective.errors(latent_BCHW, torch.randn_like(latent_BCHW), times, caption_BT).mean()

    fit("unet", unet, loss_of_step, options, measure)
    log(f"unet: {measure()}")
    save_half(unet, folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False)
    pipe.save_config(folder)
