"""edit.mode=official: pix2pix-zero value by value as the published code computes it.

It differs from the paper's text, and so from generate/inversion.py and generate/guidance.py, in
what is numbered here and beside the lines:

  (1) The inverse schedule leaves out the first and the last timestep, and reads alpha_bar one
      training step early.
  (2) The two rows of classifier-free guidance, negative and positive, are two latents. They are
      equal before the gradient step; then each goes down the gradient of its own row's distance. The
      DDIM step goes on from the negative row's.
  (3) The distance of the maps is averaged over the heads of both rows together, which halves the
      gradient.
  (4) The reference pass is guided too, in two rows with the edit's negative text. Where that is the
      caption, both rows are equal, and one is computed.

Shapes: B images, C H W latent channels and cells, T text tokens, D text width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from configs.schema import Guidance
from generate.guidance import Texts, attention_gradient, classifier_free, count_guided, reference_noise
from generate.inversion import ddim_step
from generate.progress import tell_prediction, told
from models.teacher import Step, Teacher


def official_steps_upwards(teacher: Teacher, steps: int) -> list[Step]:
    """The inversion's steps from image to noise of a schedule of so many steps: two fewer (1)."""
    alphas = teacher.scheduler.alphas_cumprod.tolist()
    stride = teacher.scheduler.config.num_train_timesteps // steps
    upwards = []
    for step in teacher.schedule(steps)[-2:0:-1]:
        timestep = step.timestep
        upwards.append(Step(timestep, alphas[timestep - 1], alphas[timestep + stride - 1]))
    return upwards


@torch.no_grad()
def edit_as_published(
    teacher: Teacher,
    schedule: Sequence[Step],
    noise_BCHW: Tensor,
    texts: Texts,
    guidance: Guidance,
    follow_reference: bool = True,
) -> tuple[Tensor, Tensor]:
    """Latents (reference, edit), each B x C x H x W, of the noise that both start from.

    The published code goes through all of the reference pass first and keeps its maps; in lockstep
    the numbers are the same. guidance: `amount` is the step size down the gradient, in the first
    `until` of the steps; `scale` is that of classifier-free guidance. follow_reference: take the
    reference to its end; without it, it goes only as far as its maps are needed, and its latent is
    unfinished.
    """
    reference_BCHW = noise_BCHW
    edit_BCHW = noise_BCHW
    scale = guidance.scale
    both_BTD = torch.cat([texts.negative, texts.edited])  # 2B x T x D
    guided_steps = count_guided(len(schedule), guidance)
    for index, step in enumerate(told("edit", schedule)):
        timestep = step.timestep
        guide = index < guided_steps
        if guide or follow_reference:
            noise_BCHW, maps = reference_noise(teacher, reference_BCHW, timestep, texts, scale, record=guide)
            reference_BCHW = ddim_step(reference_BCHW, noise_BCHW, step.alpha, step.alpha_next)
        rows_BCHW = edit_BCHW.repeat(2, 1, 1, 1)  # 2B: negative, positive (2)
        if guide:
            if texts.reference_negative is None:
                maps = [torch.cat([layer, layer]) for layer in maps]  # 2B of B rows (4)
            gradient_BCHW = attention_gradient(teacher, rows_BCHW, timestep, both_BTD, maps)  # 2B
            rows_BCHW = rows_BCHW - guidance.amount / 2 * gradient_BCHW  # a half (3)
        noise_BCHW = classifier_free(teacher.noise(rows_BCHW, timestep, both_BTD), scale)
        negative_BCHW, _ = rows_BCHW.chunk(2)
        tell_prediction(negative_BCHW, noise_BCHW, step.alpha)
        edit_BCHW = ddim_step(negative_BCHW, noise_BCHW, step.alpha, step.alpha_next)  # (2)
    return reference_BCHW, edit_BCHW
