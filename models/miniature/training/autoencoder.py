"""The autoencoder of the teacher: four latent channels at a quarter of the resolution. B batch, C channels, H W pixels."""

from pathlib import Path

import torch

from models.devices import pick_device
from models.miniature.scenes import STYLES, Look
from models.miniature.training.data import VALIDATION_SEED, flipped, pictures, to_tensor, training_pictures
from models.miniature.training.loop import Options, autocast, fit, log, untrained
from models.perceptual import perceptual_loss

L1_WEIGHT, L2_WEIGHT, KL_WEIGHT = 3.0, 20.0, 2e-3
PERCEPTUAL_CROP = 64  # px; VGG on a crop costs a quarter of VGG on the picture
VALIDATION_PICTURES = 24


@torch.no_grad()
def quality(vae, perceptual, truth_BCHW: torch.Tensor) -> tuple[float, float]:
    """Mean PSNR in dB and mean LPIPS of pictures in [-1, 1] that went through the autoencoder (by the latents' mode)."""
    found = []
    for part in truth_BCHW.split(8):
        decoded = vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1)
        decibels = 10 * torch.log10(4 / (decoded - part).square().mean((1, 2, 3)))
        found.append(torch.stack([decibels, perceptual(decoded, part)]))
    decibels, distance = torch.cat(found, 1).mean(1).tolist()
    return decibels, distance


def train_vae(options: Options) -> None:
    """Train the autoencoder of `out`/teacher."""
    from diffusers import AutoencoderKL

    device, folder = pick_device("auto"), Path(options.out) / "teacher" / "vae"
    vae = untrained(AutoencoderKL, "teacher/vae", options.init)
    vae.to(device, memory_format=torch.channels_last).train()
    perceptual = perceptual_loss(device)
    if options.compile:
        for module in (vae.encoder, vae.decoder, perceptual.lpips.net):
            module.compile()
    images = training_pictures(options)
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + VALIDATION_PICTURES)
    held_out = {style: to_tensor(pictures(seeds, Look("any", style=style)), device) for style in STYLES}

    @torch.compiler.set_stance("force_eager")  # other shapes than training's: not worth compiling for
    def measure():
        found = {style: quality(vae, perceptual, truth) for style, truth in held_out.items()}
        return "; ".join(f"{style} {decibels:.2f} dB, LPIPS {distance:.4f}" for style, (decibels, distance) in found.items())

    log(f"vae: {measure()}")

    def loss_of_step(step):
        truth_BCHW = flipped(to_tensor(images[torch.randint(len(images), (options.batch,)).numpy()], device))
        with autocast(device):
            posterior = vae.encode(truth_BCHW).latent_dist
            divergence = posterior.kl().mean() / posterior.mean[0].numel()
            decoded_BCHW = vae.decode(posterior.sample()).sample.float()
        error = decoded_BCHW - truth_BCHW
        top, left = torch.randint(truth_BCHW.shape[-1] - PERCEPTUAL_CROP + 1, (2,)).tolist()
        crop = (..., slice(top, top + PERCEPTUAL_CROP), slice(left, left + PERCEPTUAL_CROP))
        distance = perceptual(decoded_BCHW[crop], truth_BCHW[crop]).mean()
        return L1_WEIGHT * error.abs().mean() + L2_WEIGHT * error.square().mean() + KL_WEIGHT * divergence + distance

    fit("vae", vae, loss_of_step, options, measure)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        sample = to_tensor(images[:512], device).split(32)
        spread = torch.cat([vae.encode(part).latent_dist.mode() for part in sample]).std()
    vae.register_to_config(scaling_factor=1 / float(spread))
    log(f"vae: {measure()}")
    vae.half().save_pretrained(folder)
