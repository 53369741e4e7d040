"""An unconditional diffusion model of pixels: a diffusers folder of a UNet2DModel and a scheduler.

It offers the calls of a teacher that an inversion needs, with pictures in the place of latents.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.pipeline import load_pixel_unet
from models.teacher import Step, ddim_schedule

ADVICE = "it takes the folder or the hub name of a DDPMPipeline or DDIMPipeline, as google/ddpm-bedroom-256"


class Unconditional:
    """The UNet of a DDPM (Ho et al. 2020), frozen, and its scheduler.

    path: a folder, or a name on the hub. key: of the configuration, which has the path. UserError
    where the model does not load, and where its UNet predicts anything but the noise or the velocity
    of pixels.
    """

    def __init__(self, path: str, key: str, device: torch.device) -> None:
        self.unet, self.scheduler = load_pixel_unet(path, key, ADVICE)
        self.unet = self.unet.to(device).eval().requires_grad_(False)
        self.device = device
        self.predicts_v = self.scheduler.config.get("prediction_type") == "v_prediction"
        self._alphas = self.scheduler.alphas_cumprod.float().to(device)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C x H x W of its pictures."""
        side = self.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return self.unet.config.in_channels, height, width

    def schedule(self, steps: int) -> list[Step]:
        """DDIM's steps from noise to image; see ddim_schedule."""
        return ddim_schedule(self.scheduler, steps)

    def no_text(self, count: int) -> Tensor:
        """What stands for the embeddings of `count` texts, B x 0 x 0."""
        return torch.empty(count, 0, 0, device=self.device)

    def noise(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor | None = None) -> Tensor:
        """The predicted noise (epsilon) at a timestep, B x C x H x W; there is no text that counts.

        Differentiable in the pictures and in the UNet's weights.
        """
        predicted_BCHW = self.unet(latent_BCHW, timestep, return_dict=False)[0].float()
        if not self.predicts_v:
            return predicted_BCHW
        alpha = self._alphas[timestep]  # Salimans and Ho 2022, appendix D
        return alpha.sqrt() * predicted_BCHW + (1 - alpha).sqrt() * latent_BCHW

    def noise_and_maps(
        self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The predicted noise, and no maps: there is no text to attend to."""
        return self.noise(latent_BCHW, timestep), []
