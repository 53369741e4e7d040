"""The unconditional model: a diffusers UNet2DModel that knows scenes in summer, in pixels, and no text.

B batch, C channels, H W pixels, N scenes.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.devices import pick_device
from models.miniature.scenes import Look, render, scene
from models.pictures import batch_of
from scripts.miniature import data
from scripts.miniature.loop import SHIPPED, fit, untrained
from scripts.miniature.options import Options

PART = "unconditional"
SIDE = 64  # px, as its configuration has it
LOOK = Look("summer")  # the one kind of picture that it knows


def train_unconditional(options: Options) -> None:
    """Train the UNet of `out`/unconditional, and write it as a DDIMPipeline."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    device = pick_device("auto")
    unet = untrained(UNet2DModel, f"{PART}/unet", options.init)
    unet.to(device, memory_format=torch.channels_last).train()
    if options.compile:
        unet.compile()
    scheduler = DDIMScheduler.from_pretrained(SHIPPED / PART / "scheduler")
    images = data.rendered(options, "summer", small_picture)

    def loss_of_step(step: int) -> torch.Tensor:
        chosen_B = torch.randint(len(images), (options.batch,)).numpy()
        image_BCHW = data.flipped(batch_of(images[chosen_B], device))
        time_B = torch.randint(scheduler.config.num_train_timesteps, (options.batch,), device=device)
        return noise_error(unet, scheduler, image_BCHW, time_B)

    fit(PART, unet, loss_of_step, options)
    pipeline = DDIMPipeline(unet.half().eval(), scheduler)
    pipeline.save_pretrained(Path(options.out) / PART)


def small_picture(seed: int) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3) of the scene in summer."""
    return np.asarray(render(scene(seed), LOOK).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def noise_error(unet, scheduler, image_BCHW: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
    """The mean squared error of the predicted noise (Ho et al. 2020, equation 14).

    In bfloat16 on a CPU too, where the other parts train in float32: a third faster where the CPU
    multiplies it, and 64 x 64 pixels through every layer are what takes the time.
    """
    noise_BCHW = torch.randn_like(image_BCHW)
    noisy_BCHW = scheduler.add_noise(image_BCHW, noise_BCHW, time_B)
    noisy_BCHW = noisy_BCHW.contiguous(memory_format=torch.channels_last)
    with torch.autocast(image_BCHW.device.type, torch.bfloat16):
        predicted_BCHW = unet(noisy_BCHW, time_B).sample
    return (predicted_BCHW.float() - noise_BCHW).square().mean()
