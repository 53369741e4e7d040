"""The Stable Diffusion folder: the autoencoder (four latent channels at a quarter of the resolution), the text encoder with its tokenizer,
and the UNet. B batch, C channels, H W pixels, T tokens, D width.
"""

from pathlib import Path

import torch

from models.devices import pick_device
from models.perceptual import perceptual_loss
from scripts.miniature import data
from scripts.miniature.data import CAPTIONS
from scripts.miniature.loop import SHIPPED, Options, autocast, fit, log, untrained

L1_WEIGHT, L2_WEIGHT, KL_WEIGHT = 3.0, 20.0, 2e-3
PERCEPTUAL_CROP = 64  # px; VGG on a crop costs a quarter of VGG on the picture
TOKENS = 32
VOCABULARY = 1200  # at most; the captions have fewer pairs to merge
WIDTH, LAYERS, HEADS = 256, 4, 4  # of the text encoder
VISION_LAYERS, PATCH = 6, 16  # of the vision tower that it is trained with, thrown away afterwards
CAPTION_DROPOUT = 0.1  # share of training without a caption, for classifier-free guidance


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

    def loss_of_step(step):
        truth_BCHW = data.flipped(
            data.to_tensor(images[torch.randint(len(images), (options.batch,)).numpy()], device)
        )
        with autocast(device):
            posterior = vae.encode(truth_BCHW).latent_dist
            divergence = posterior.kl().mean() / posterior.mean[0].numel()
            decoded_BCHW = vae.decode(posterior.sample()).sample.float()
        error = decoded_BCHW - truth_BCHW
        top, left = torch.randint(truth_BCHW.shape[-1] - PERCEPTUAL_CROP + 1, (2,)).tolist()
        crop = (..., slice(top, top + PERCEPTUAL_CROP), slice(left, left + PERCEPTUAL_CROP))
        distance = perceptual(decoded_BCHW[crop], truth_BCHW[crop]).mean()
        return (
            L1_WEIGHT * error.abs().mean()
            + L2_WEIGHT * error.square().mean()
            + KL_WEIGHT * divergence
            + distance
        )

    fit("vae", vae, loss_of_step, options)
    with torch.compiler.set_stance("force_eager"):  # another shape than training's: not worth compiling for
        spread = latents(vae, images[:512]).std()
    vae.register_to_config(scaling_factor=1 / float(spread))
    vae.half().save_pretrained(Path(options.out) / "teacher" / "vae")


@torch.no_grad()
def latents(vae, pictures) -> torch.Tensor:
    """Latent modes (N, 4, 32, 32) of uint8 pictures, float32 on the CPU, not scaled."""
    parts = (
        data.to_tensor(pictures[start : start + 64], vae.device) for start in range(0, len(pictures), 64)
    )
    return torch.cat([vae.encode(part).latent_dist.mode().float().cpu() for part in parts])


def encode(tokenizer, texts: list[str]) -> torch.Tensor:
    """int32 token ids (N, TOKENS), padded and cut to the text encoder's length."""
    return tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids.int()


def make_tokenizer(texts: list[str], folder: Path):
    """Train CLIP's kind of byte-pair tokenizer on the captions and save it; returns the CLIPTokenizer."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    _, merges = data.byte_pairs(texts, VOCABULARY)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # all 256 bytes
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip(vocabulary):
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    text = {"vocab_size": vocabulary, "num_hidden_layers": LAYERS, "max_position_embeddings": TOKENS}
    text |= {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    vision = {"num_hidden_layers": VISION_LAYERS, "image_size": 128, "patch_size": PATCH}
    return CLIPModel(
        CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=WIDTH)
    )


def train_text(options: Options) -> None:
    """Train tokenizer and text encoder of `out`/teacher contrastively on pictures and captions."""
    from transformers import CLIPTextModel

    device, folder = pick_device("auto"), Path(options.out) / "teacher"
    pictures, texts = data.training_pictures(options), data.training_sentences(options)
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
            logits_BB = clip(
                input_ids=token_BT, pixel_values=image_BCHW, attention_mask=torch.ones_like(token_BT)
            ).logits_per_image
        return data.contrastive(logits_BB.float())

    fit("text", clip, loss_of_step, options)
    encoder = CLIPTextModel(clip.config.text_config)
    names = encoder.state_dict().keys()  # releases of transformers differ in whether these carry a prefix
    prefix = "text_model." if next(iter(names)).startswith("text_model.") else ""
    state = {prefix + name: tensor for name, tensor in clip.text_model.state_dict().items()}
    encoder.load_state_dict({name: tensor for name, tensor in state.items() if name in names})
    encoder.half().save_pretrained(folder / "text_encoder")


def noise_errors(pipe, latent_BCHW, noise_BCHW, time_B, token_BT) -> torch.Tensor:
    """The objective of a latent diffusion model: the mean squared error of the predicted noise of each sample (B,)."""
    noisy_BCHW = pipe.scheduler.add_noise(latent_BCHW, noise_BCHW, time_B)
    with autocast(latent_BCHW.device):
        with torch.no_grad():  # the attention mask is all ones, as the pipeline passes none
            caption_BTD = pipe.text_encoder(input_ids=token_BT).last_hidden_state
        predicted_BCHW = pipe.unet(noisy_BCHW, time_B, caption_BTD).sample
    return (predicted_BCHW.float() - noise_BCHW).square().mean((1, 2, 3))


def train_unet(options: Options) -> None:
    """Train the UNet on latents of the autoencoder and sentences of the text encoder that are in `out`/teacher."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    device, folder = pick_device("auto"), Path(options.out) / "teacher"
    for part, stage in (("vae", "vae"), ("tokenizer", "text"), ("text_encoder", "text")):
        if not (folder / part).is_dir():
            raise SystemExit(f"{folder / part} is not there: run the stage {stage} first, with the same out")
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae").float().eval().requires_grad_(False),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder")
        .float()
        .eval()
        .requires_grad_(False),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=untrained(UNet2DConditionModel, "teacher/unet", options.init)
        .to(memory_format=torch.channels_last)
        .train(),
        scheduler=DDIMScheduler.from_pretrained(SHIPPED / "teacher" / "scheduler"),  # Stable Diffusion's
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(device)
    if options.compile:
        pipe.unet.compile()

    scale = pipe.vae.config.scaling_factor

    def training_latents():
        with autocast(device):
            return (latents(pipe.vae, data.training_pictures(options)) * scale).half().numpy()

    codes = data.kept(options, "latents", training_latents, options.sketch_share, scale)
    tokens = encode(pipe.tokenizer, data.training_sentences(options)).view(len(codes), CAPTIONS, TOKENS)
    empty = encode(pipe.tokenizer, [""])

    def loss_of_step(step):
        rows = torch.randint(len(codes), (options.batch,))
        token_BT = tokens[rows, torch.randint(CAPTIONS, (options.batch,))]
        token_BT = torch.where(torch.rand(options.batch, 1) < CAPTION_DROPOUT, empty, token_BT)
        latent_BCHW = torch.from_numpy(codes[rows.numpy()]).to(device).float()
        time_B = torch.randint(1000, (options.batch,), device=device)
        return noise_errors(
            pipe, latent_BCHW, torch.randn_like(latent_BCHW), time_B, token_BT.to(device)
        ).mean()

    fit("unet", pipe.unet, loss_of_step, options)
    pipe.unet.half().save_pretrained(folder / "unet")
    pipe.scheduler.save_pretrained(folder / "scheduler")
    pipe.save_config(folder)
