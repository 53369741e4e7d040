"""Cross-attention guidance (Parmar et al. 2023, section 3.3, eq. 5): the edit keeps the attention maps of the reconstruction.

The reference and the edit trajectory go in lockstep, so the maps of one time step are all that is ever held. Reference code stores those of
all steps: 6.6 GB an image at 50 steps of Stable Diffusion 1.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from generate.inversion import ddim_step
from models.teacher import Schedule, Teacher


def edit_in_lockstep(
    teacher: Teacher,
    schedule: Schedule,
    noise_BCHW: Tensor,
    caption_BTD: Tensor,
    edited_BTD: Tensor,
    negative_BTD: Tensor,
    amount: float,
    scale: float,
    reference: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Latents (reconstruction, edit), each B x C x H x W, of inverted noise.

    amount: step size on x_t down the gradient of the attention distance, 0 for none. scale: classifier-free guidance of the edit, away from
    the negative text; the reference pass has its caption as its own negative, which makes guidance a no-op and one row enough.
    reference: whether to follow the reconstruction where no map needs it (amount = 0); without it the first latent is None.
    """
    reference_BCHW = edit_BCHW = noise_BCHW
    for timestep, alpha, alpha_next in zip(schedule.timesteps, schedule.alpha, schedule.alpha_next, strict=True):
        if amount or reference:
            with torch.no_grad(), teacher.recorded_maps() as reference_maps:
                noise = teacher.noise(reference_BCHW, timestep, caption_BTD)
            reference_BCHW = ddim_step(reference_BCHW, noise, alpha, alpha_next)
        if amount:
            edit_BCHW = edit_BCHW - amount * attention_gradient(teacher, edit_BCHW, timestep, edited_BTD, reference_maps)
        with torch.no_grad():
            both = teacher.noise(edit_BCHW.repeat(2, 1, 1, 1), timestep, torch.cat([negative_BTD, edited_BTD]))
        negative, positive = both.chunk(2)
        edit_BCHW = ddim_step(edit_BCHW, negative + scale * (positive - negative), alpha, alpha_next)
    return (reference_BCHW if amount or reference else None), edit_BCHW


def attention_gradient(teacher: Teacher, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor, reference_maps: list[Tensor]) -> Tensor:
    """Gradient with respect to the latent of the attention distance, B x C x H x W; weights get none."""
    with torch.enable_grad(), teacher.recorded_maps() as maps:
        latent_BCHW = latent_BCHW.detach().requires_grad_()
        teacher.noise(latent_BCHW, timestep, text_BTD)
        (gradient,) = torch.autograd.grad(attention_distance(maps, reference_maps), latent_BCHW)
    return gradient


def attention_distance(maps: list[Tensor], reference_maps: list[Tensor]) -> Tensor:
    """Sum over images and layers of the squared map difference: summed over pixels and tokens, averaged over heads."""
    return torch.stack(
        [(a.float() - b.float()).square().sum((2, 3)).mean(1).sum() for a, b in zip(maps, reference_maps, strict=True)]
    ).sum()
