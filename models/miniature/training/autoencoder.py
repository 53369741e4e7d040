"""The autoencoder of the teacher: four latent channels at a quarter of the resolution. B batch, C channels, H W
pixels.
"""

from pathlib import Path

import torch

from models.miniature.training.data import VALIDATION_SEED, render_all, to_tensor, training_look, training_pictures
from models.miniature.training.loop import Options, autocast, device_of, fit, log, save_half
from models.perceptual import perceptual_loss

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (48, 96, 128),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 16,
    "sample_size": 128,
    "scaling_factor": 1.0,
    "mid_block_add_attention": False,
}
L1_WEIGHT, L2_WEIGHT, KL_WEIGHT = 3.0, 20.0, 2e-3
PERCEPTUAL_CROP = 64  # px; VGG on a crop costs a quarter of VGG on the picture
VALIDATION_PICTURES = 24


def psnr(decoded: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """dB of each picture (B,), both in [-1, 1]."""
    return 10 * torch.log10(4 / (decoded.clamp(-1, 1) - truth).square().mean((1, 2, 3)))


@torch.no_grad()
def reconstruct(vae, picture_BCHW: torch.Tensor) -> torch.Tensor:
    """Pictures through the autoencoder (the latents' mode), in [-1, 1]."""
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in picture_BCHW.split(8)]
    return torch.cat(parts).clamp(-1, 1)


def train_vae(options: Options) -> None:
    """Train the autoencoder of `out`/teacher."""
    from diffusers import AutoencoderKL

    device, folder = device_of(options), Path(options.out) / "teacher" / "vae"
    vae = AutoencoderKL.from_pretrained(options.init).float() if options.init else AutoencoderKL(**VAE)
    vae.to(device, memory_format=torch.channels_last).train()
    perceptual = perceptual_loss(device)
    if options.compile:
        for module in (vae.encoder, vae.decoder, perceptual.lpips.net):
            module.compile()
    pictures = training_pictures(options)
    held_out = {
        style: to_tensor(
            render_all(
                [(seed, training_look(seed, share)) for seed in range(VALIDATION_SEED, VALIDATION_SEED + VALIDATION_PICTURES)],
                1,
            ),
            device,
        )
        for style, share in (("photo", 0.0), ("sketch", 1.0))
    }

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # other shapes than training's: not worth compiling for
    def measure():
        lines = []
        for style, truth in held_out.items():
            decoded = reconstruct(vae, truth)
            distance = torch.cat([perceptual(*pair) for pair in zip(decoded.split(8), truth.split(8), strict=True)])
            lines.append(f"{style} {float(psnr(decoded, truth).mean()):.2f} dB, LPIPS {float(distance.mean()):.4f}")
        return "; ".join(lines)

    log(f"vae: {measure()}")

    def loss_of_step(step):
        truth_BCHW = to_tensor(pictures[torch.randint(len(pictures), (options.batch,)).numpy()], device)
        truth_BCHW = torch.where(torch.rand(options.batch, 1, 1, 1, device=device) < 0.5, truth_BCHW.flip(-1), truth_BCHW)
        with autocast(device):
            posterior = vae.encode(truth_BCHW).latent_dist
            divergence = posterior.kl().mean() / posterior.mean[0].numel()
            decoded_BCHW = vae.decode(posterior.sample()).sample.float()
        error = decoded_BCHW - truth_BCHW
        loss = L1_WEIGHT * error.abs().mean() + L2_WEIGHT * error.square().mean() + KL_WEIGHT * divergence
        if options.perceptual:
            top, left = torch.randint(truth_BCHW.shape[-1] - PERCEPTUAL_CROP + 1, (2,)).tolist()
            crop = (..., slice(top, top + PERCEPTUAL_CROP), slice(left, left + PERCEPTUAL_CROP))
            loss = loss + options.perceptual * perceptual(decoded_BCHW[crop], truth_BCHW[crop]).mean()
        return loss

    fit("vae", vae, loss_of_step, options, measure)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        sample = to_tensor(pictures[:512], device).split(32)
        spread = torch.cat([vae.encode(part).latent_dist.mode() for part in sample]).std()
    vae.register_to_config(scaling_factor=1 / float(spread))
    log(f"vae: {measure()}")
    save_half(vae, folder)
