"""The Stable Diffusion folder: autoencoder, text encoder with its tokenizer, and UNet.

The autoencoder has four latent channels at a quarter of the resolution. B batch, C channels, H W
pixels, T tokens, D width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.devices import pick_device
from models.perceptual import Perceptual, perceptual_loss
from models.pictures import batch_of
from scripts.miniature import data
from scripts.miniature.data import CAPTIONS
from scripts.miniature.loop import SHIPPED, autocast, fit, log, untrained
from scripts.miniature.options import Options

L1_WEIGHT = 3.0
L2_WEIGHT = 20.0
KL_WEIGHT = 2e-3
PERCEPTUAL_CROP = 64  # px; VGG on a crop costs a quarter of VGG on the picture
SCALED_BY = 512  # pictures whose latents give the factor that makes their standard deviation 1
ENCODED_AT_ONCE = 64  # pictures
TOKENS = 32
VOCABULARY = 1200  # at most; the captions have fewer pairs to merge
WIDTH = 256  # of the text encoder, as LAYERS and HEADS
LAYERS = 4
HEADS = 4
VISION_LAYERS = 6  # of the vision tower that the text encoder is trained with, thrown away afterwards
PATCH = 16  # px, of the vision tower
CAPTION_DROPOUT = 0.1  # share of training without a caption, for classifier-free guidance
TRAINING_TIMES = 1000  # of the diffusion process


def train_vae(options: Options) -> None:
    """Train the autoencoder of `out`/teacher."""
    from diffusers import AutoencoderKL

    device = pick_device("auto")
    vae = untrained(AutoencoderKL, "teacher/vae", options.init)
    vae.to(device, memory_format=torch.channels_last).train()
    perceptual = perceptual_loss(device)
    if options.compile:
        for module in (vae.encoder, vae.decoder, perceptual.lpips.net):
            module.compile()
    images = data.training_pictures(options)

    def loss_of_step(step: int) -> torch.Tensor:
        chosen_B = torch.randint(len(images), (options.batch,)).numpy()
        truth_BCHW = data.flipped(batch_of(images[chosen_B], device))
        return autoencoder_loss(vae, perceptual, truth_BCHW)

    fit("vae", vae, loss_of_step, options)
    with torch.compiler.set_stance("force_eager"):  # another shape than training's: not worth compiling for
        spread = latents(vae, images[:SCALED_BY]).std()
    vae.register_to_config(scaling_factor=1 / float(spread))
    vae.half().save_pretrained(Path(options.out) / "teacher" / "vae")


def autoencoder_loss(vae, perceptual: Perceptual, truth_BCHW: torch.Tensor) -> torch.Tensor:
    """L1, L2 and a random crop's LPIPS of the reconstruction, and the latents' divergence from a Gaussian."""
    with autocast(truth_BCHW.device):
        posterior = vae.encode(truth_BCHW).latent_dist
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        decoded_BCHW = vae.decode(posterior.sample()).sample.float()
    error_BCHW = decoded_BCHW - truth_BCHW
    top, left = torch.randint(truth_BCHW.shape[-1] - PERCEPTUAL_CROP + 1, (2,)).tolist()
    crop = (..., slice(top, top + PERCEPTUAL_CROP), slice(left, left + PERCEPTUAL_CROP))
    distance = perceptual(decoded_BCHW[crop], truth_BCHW[crop]).mean()
    l1 = L1_WEIGHT * error_BCHW.abs().mean()
    l2 = L2_WEIGHT * error_BCHW.square().mean()
    return l1 + l2 + KL_WEIGHT * divergence + distance


@torch.no_grad()
def latents(vae, pictures: np.ndarray) -> torch.Tensor:
    """Latent modes (N, 4, 32, 32) of uint8 pictures, float32 on the CPU, not scaled."""
    parts = []
    for start in range(0, len(pictures), ENCODED_AT_ONCE):
        image_BCHW = batch_of(pictures[start : start + ENCODED_AT_ONCE], vae.device)
        parts.append(vae.encode(image_BCHW).latent_dist.mode().float().cpu())
    return torch.cat(parts)


def train_text(options: Options) -> None:
    """Train tokenizer and text encoder of `out`/teacher contrastively on pictures and captions."""
    device = pick_device("auto")
    folder = Path(options.out) / "teacher"
    pictures = data.training_pictures(options)
    texts = data.training_sentences(options)
    tokenizer = make_tokenizer(texts, folder / "tokenizer")
    tokens_NVT = encode(tokenizer, texts).view(-1, CAPTIONS, TOKENS)  # V wordings of each of the N pictures
    log(f"text: vocabulary of {len(tokenizer)}")
    torch.manual_seed(1)
    clip = untrained_clip(len(tokenizer)).to(device).train()

    def loss_of_step(step: int) -> torch.Tensor:
        chosen_B = torch.randint(len(pictures), (options.batch,))
        image_BCHW = data.flipped(batch_of(pictures[chosen_B.numpy()], device))
        wording_B = torch.randint(CAPTIONS, (options.batch,))
        token_BT = tokens_NVT[chosen_B, wording_B].to(device)
        # No token is masked, as the diffusion pipeline masks none: padding is part of the sentence.
        every_token_BT = torch.ones_like(token_BT)
        with autocast(device):
            output = clip(input_ids=token_BT, pixel_values=image_BCHW, attention_mask=every_token_BT)
        return data.contrastive(output.logits_per_image.float())

    fit("text", clip, loss_of_step, options)
    text_encoder_of(clip).half().save_pretrained(folder / "text_encoder")


def make_tokenizer(texts: list[str], folder: Path):
    """Train CLIP's kind of byte-pair tokenizer on the captions and save it; returns the CLIPTokenizer."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    _, merges = data.byte_pairs(texts, VOCABULARY)
    entries = sorted(pre_tokenizers.ByteLevel.alphabet())  # all 256 bytes
    entries += [letter + "</w>" for letter in entries]
    entries += [first + second for first, second in merges]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    without_repeats = dict.fromkeys(entries)
    vocabulary = {entry: index for index, entry in enumerate(without_repeats)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def encode(tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """int32 token ids (N, TOKENS), padded and cut to the text encoder's length."""
    encoded = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return encoded.input_ids.int()


def untrained_clip(vocabulary: int):
    """A CLIPModel of random weights; the last two entries of its vocabulary begin and end a sentence."""
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    text = shared | {
        "vocab_size": vocabulary,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": TOKENS,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = shared | {"num_hidden_layers": VISION_LAYERS, "image_size": 128, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def text_encoder_of(clip):
    """The CLIPTextModel with the weights of the CLIPModel's text tower."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(clip.config.text_config)
    names = encoder.state_dict().keys()
    # Releases of transformers differ in whether the names carry a prefix.
    prefix = "text_model." if next(iter(names)).startswith("text_model.") else ""
    state = {}
    for name, tensor in clip.text_model.state_dict().items():
        if prefix + name in names:
            state[prefix + name] = tensor
    encoder.load_state_dict(state)
    return encoder


def train_unet(options: Options) -> None:
    """Train the UNet of `out`/teacher with the autoencoder and the text encoder that are there."""
    folder = Path(options.out) / "teacher"
    device = pick_device("auto")
    pipe = pipeline_to_train(folder, options.init).to(device)
    if options.compile:
        pipe.unet.compile()
    scale = pipe.vae.config.scaling_factor

    def training_latents() -> np.ndarray:
        with autocast(device):
            latent_NCHW = latents(pipe.vae, data.training_pictures(options)) * scale
        return latent_NCHW.half().numpy()

    codes = data.kept(options, "latents", training_latents, options.sketch_share, scale)
    texts = data.training_sentences(options)
    tokens_NVT = encode(pipe.tokenizer, texts).view(len(codes), CAPTIONS, TOKENS)
    no_caption_1T = encode(pipe.tokenizer, [""])

    def loss_of_step(step: int) -> torch.Tensor:
        chosen_B = torch.randint(len(codes), (options.batch,))
        wording_B = torch.randint(CAPTIONS, (options.batch,))
        dropped_B1 = torch.rand(options.batch, 1) < CAPTION_DROPOUT
        token_BT = torch.where(dropped_B1, no_caption_1T, tokens_NVT[chosen_B, wording_B])
        latent_BCHW = torch.from_numpy(codes[chosen_B.numpy()]).to(device).float()
        time_B = torch.randint(TRAINING_TIMES, (options.batch,), device=device)
        noise_BCHW = torch.randn_like(latent_BCHW)
        return noise_errors(pipe, latent_BCHW, noise_BCHW, time_B, token_BT.to(device)).mean()

    fit("unet", pipe.unet, loss_of_step, options)
    pipe.unet.half().save_pretrained(folder / "unet")
    pipe.scheduler.save_pretrained(folder / "scheduler")
    pipe.save_config(folder)


def pipeline_to_train(folder: Path, init: str):
    """A StableDiffusionPipeline of a UNet to train and frozen parts of `folder`; SystemExit without them."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    for part, stage in (("vae", "vae"), ("tokenizer", "text"), ("text_encoder", "text")):
        if not (folder / part).is_dir():
            raise SystemExit(f"{folder / part} is not there: run the stage {stage} first, with the same out")
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    unet = untrained(UNet2DConditionModel, "teacher/unet", init)
    return StableDiffusionPipeline(
        vae=vae.float().eval().requires_grad_(False),
        text_encoder=text_encoder.float().eval().requires_grad_(False),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet.to(memory_format=torch.channels_last).train(),
        scheduler=DDIMScheduler.from_pretrained(SHIPPED / "teacher" / "scheduler"),  # Stable Diffusion's
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def noise_errors(
    pipe, latent_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, time_B: torch.Tensor, token_BT: torch.Tensor
) -> torch.Tensor:
    """The mean squared error of the noise predicted for each sample, shape B.

    Its mean is the objective of a latent diffusion model (Rombach et al. 2022, equation 2).
    """
    noisy_BCHW = pipe.scheduler.add_noise(latent_BCHW, noise_BCHW, time_B)
    with autocast(latent_BCHW.device):
        with torch.no_grad():  # the attention mask is all ones, as the pipeline passes none
            caption_BTD = pipe.text_encoder(input_ids=token_BT).last_hidden_state
        predicted_BCHW = pipe.unet(noisy_BCHW, time_B, caption_BTD).sample
    return (predicted_BCHW.float() - noise_BCHW).square().mean((1, 2, 3))
