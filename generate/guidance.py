"""Cross-attention guidance (Parmar et al. 2023, section 3.3, eq. 5): the edit keeps the attention maps of the reconstruction.

The reference and the edit trajectory go in lockstep, so the maps of one time step are all that is ever held. Reference code stores those of
all steps: 6.6 GB an image at 50 steps of Stable Diffusion 1.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.schema import Guidance
from generate.inversion import ddim_step
from models.teacher import Schedule, Teacher


def edit_in_lockstep(
    teacher: Teacher,
    schedule: Schedule,
    noise_BCHW: Tensor,
    caption_BTD: Tensor,
    edited_BTD: Tensor,
    negative_BTD: Tensor,
    guidance: Guidance,
    reference: bool = True,
    official: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """Latents (reconstruction, edit), each B x C x H x W, of inverted noise.

    guidance: `amount` is the step size on x_t down the gradient of the attention distance, 0 for none; `scale` the classifier-free guidance
    of the edit, away from the negative text. With its caption as its own negative, guidance is a no-op in the reference pass and one row is
    enough. reference: whether to follow the reconstruction where no map needs it (amount = 0); without it the first latent is None.
    official: the reference code's form (guide_rows), else the paper's: one x_t, one gradient.
    """
    reference_BCHW = edit_BCHW = noise_BCHW
    both_BTD = torch.cat([negative_BTD, edited_BTD])
    follow = bool(guidance.amount) or reference
    own_negative = guidance.negative == "caption" or not official
    for timestep, alpha, alpha_next in zip(schedule.timesteps, schedule.alpha, schedule.alpha_next, strict=True):
        if follow:
            with torch.no_grad(), teacher.recorded_maps() as reference_maps:
                if own_negative:
                    noise = teacher.noise(reference_BCHW, timestep, caption_BTD)
                else:
                    noise = _two_rows(teacher, reference_BCHW, timestep, torch.cat([negative_BTD, caption_BTD]), guidance.scale)
            reference_BCHW = ddim_step(reference_BCHW, noise, alpha, alpha_next)
        if guidance.amount and official:
            maps = [torch.cat([layer, layer]) for layer in reference_maps] if own_negative else reference_maps
            edit_BCHW, noise = guide_rows(teacher, edit_BCHW, timestep, both_BTD, maps, guidance)
        else:
            if guidance.amount:
                edit_BCHW = edit_BCHW - guidance.amount * attention_gradient(teacher, edit_BCHW, timestep, edited_BTD, reference_maps)
            with torch.no_grad():
                noise = _two_rows(teacher, edit_BCHW, timestep, both_BTD, guidance.scale)
        edit_BCHW = ddim_step(edit_BCHW, noise, alpha, alpha_next)
    return (reference_BCHW if follow else None), edit_BCHW


def guide_rows(
    teacher: Teacher, edit_BCHW: Tensor, timestep: int, both_BTD: Tensor, maps: list[Tensor], guidance: Guidance
) -> tuple[Tensor, Tensor]:
    """The reference code's guidance: each row of classifier-free guidance has a latent of its own, which goes down its own gradient of a
    distance averaged over the heads of both; the noise is predicted from both, and the unconditional row's latent is kept.

    Returns that latent and the guided noise, each B x C x H x W.
    """
    rows_BCHW = edit_BCHW.repeat(2, 1, 1, 1)
    rows_BCHW = rows_BCHW - guidance.amount / 2 * attention_gradient(teacher, rows_BCHW, timestep, both_BTD, maps)
    with torch.no_grad():
        noise = _classifier_free(teacher.noise(rows_BCHW, timestep, both_BTD), guidance.scale)
    return rows_BCHW.chunk(2)[0], noise


def _two_rows(teacher: Teacher, latent_BCHW: Tensor, timestep: int, texts_BTD: Tensor, scale: float) -> Tensor:
    return _classifier_free(teacher.noise(latent_BCHW.repeat(2, 1, 1, 1), timestep, texts_BTD), scale)


def _classifier_free(both_BCHW: Tensor, scale: float) -> Tensor:
    """Ho and Salimans (2022): away from the first half of the rows, towards the second."""
    negative, positive = both_BCHW.chunk(2)
    return negative + scale * (positive - negative)


def attention_gradient(teacher: Teacher, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor, reference_maps: list[Tensor]) -> Tensor:
    """Gradient with respect to the latent of the attention distance, B x C x H x W; weights get none."""
    with torch.enable_grad():
        latent_BCHW = latent_BCHW.detach().requires_grad_()
        maps = teacher.maps(latent_BCHW, timestep, text_BTD)
        (gradient,) = torch.autograd.grad(attention_distance(maps, reference_maps), latent_BCHW)
    return gradient


def attention_distance(maps: list[Tensor], reference_maps: list[Tensor]) -> Tensor:
    """Sum over images and layers of the squared map difference: summed over pixels and tokens, averaged over heads."""
    return torch.stack(
        [(a.float() - b.float()).square().sum((2, 3)).mean(1).sum() for a, b in zip(maps, reference_maps, strict=True)]
    ).sum()
