"""Cross-attention guidance (Parmar et al. 2023, section 3.3): the edit keeps the reference's layout.

The reference is the trajectory that reconstructs the input. At each step the edit's latent goes
down the gradient of the distance between the attention maps of both. They go in lockstep, so that
only the maps of one step are held: those of Stable Diffusion 1.4's 50 steps would be 6.6 GB.

Shapes: B images, C H W latent channels and cells, T text tokens, D text width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema import Guidance
from generate.inversion import ddim_step
from generate.progress import tell_prediction, told
from models.attention import AttentionControl
from models.teacher import Step, Teacher

# Float16 loses gradients below 6e-8, and these are small; a power of two changes no other digit.
GRADIENT_SCALE = 1024.0
NO_MAPS: Mapping[int, list[Tensor]] = {}


@dataclass(frozen=True)
class Texts:
    """Text embeddings, B x T x D each.

    caption: what the input shows. edited: what the edit shows. negative: what classifier-free
    guidance leads the edit away from. reference_negative: what it leads the reference away from;
    None where the reference follows its caption alone, at scale 1.
    """

    caption: Tensor
    edited: Tensor
    negative: Tensor
    reference_negative: Tensor | None = None


@torch.no_grad()
def edit_in_lockstep(
    teacher: Teacher,
    schedule: Sequence[Step],
    noise_BCHW: Tensor,
    texts: Texts,
    guidance: Guidance,
    follow_reference: bool = True,
    ready_maps: Mapping[int, list[Tensor]] = NO_MAPS,
) -> tuple[Tensor, Tensor]:
    """Latents (reference, edit), each B x C x H x W, of the noise that both start from.

    guidance: `amount` is the step size on x_t down the gradient of the attention distance, in the
    first `until` of the steps, or `every` times it in each `every`-th of them; `scale` is that of
    classifier-free guidance in the first `scale_until` of the steps (Kynkaanniemi et al. 2024 limit
    it to an interval), and 1 after them. follow_reference: take the reference to its end; without it,
    it goes only as far as its maps are needed, and its latent is unfinished. ready_maps: reference
    maps by timestep that the inversion kept, of all guided steps but the first; no others are
    recorded where there are some.
    """
    reference_BCHW = noise_BCHW
    edit_BCHW = noise_BCHW
    scale = guidance.scale
    guided_steps = count_guided(len(schedule), guidance)
    scaled_steps = share_of(guidance.scale_until, len(schedule))
    attending_steps = share_of(guidance.self_attention, len(schedule))
    for index, step in enumerate(told("edit", schedule)):
        may_guide = index < guided_steps
        guide = may_guide and index % guidance.every == 0
        maps = ready_maps.get(step.timestep, [])
        record = guide and not maps
        layout = SelfAttention(len(noise_BCHW)) if index < attending_steps else None
        if record or layout or follow_reference or (may_guide and not ready_maps):
            with controlled(teacher, layout.recorded if layout else None):
                reference_BCHW, recorded = reference_step(teacher, reference_BCHW, step, texts, scale, record)
            maps = recorded or maps
        if guide:  # eq. 5
            gradient_BCHW = attention_gradient(teacher, edit_BCHW, step.timestep, texts.edited, maps)
            edit_BCHW = edit_BCHW - guidance.every * guidance.amount * gradient_BCHW
        with controlled(teacher, layout.taken if layout else None):
            edit_BCHW = edit_step(teacher, edit_BCHW, step, texts, scale if index < scaled_steps else 1.0)
    return reference_BCHW, edit_BCHW


class SelfAttention:
    """The self-attention of one step of B images, B x heads x pixels x pixels a layer: the edit takes the
    reference's, so that what belongs together in the input does so in the edit (Tumanyan et al. 2023).

    images: B.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.layers: list[Tensor] = []

    def recorded(self, is_cross: bool, pixels: int) -> Callable[[Tensor], Tensor] | None:
        """The control of the reference's pass: it keeps each layer's."""
        return None if is_cross else self._keep

    def taken(self, is_cross: bool, pixels: int) -> Callable[[Tensor], Tensor] | None:
        """The control of the edit's pass, of B rows or more: each layer takes what was kept of it."""
        return None if is_cross else self._take

    def _keep(self, probabilities: Tensor) -> Tensor:
        self.layers.append(probabilities[-self.images :])  # of 2B rows the last B are the caption's
        return probabilities

    def _take(self, probabilities: Tensor) -> Tensor:
        reference = self.layers.pop(0)
        return reference.repeat(len(probabilities) // self.images, 1, 1, 1)


def controlled(teacher: Teacher, control: AttentionControl | None) -> AbstractContextManager:
    """teacher.controlled, or nothing without a control."""
    return teacher.controlled(control) if control else nullcontext()


def reference_step(
    teacher: Teacher, reference_BCHW: Tensor, step: Step, texts: Texts, scale: float, record: bool
) -> tuple[Tensor, list[Tensor]]:
    """One DDIM step of the reference: its next latent, and with `record` its caption's maps.

    The latent is B x C x H x W; maps are (B, heads, pixels, T), one a cross-attention layer.
    """
    noise_BCHW, maps = reference_noise(teacher, reference_BCHW, step.timestep, texts, scale, record)
    next_BCHW = ddim_step(reference_BCHW, noise_BCHW, step.alpha, step.alpha_next)
    if not record:
        return next_BCHW, []
    return next_BCHW, [layer[-len(reference_BCHW) :] for layer in maps]  # of 2B rows the last B


def reference_noise(
    teacher: Teacher, reference_BCHW: Tensor, timestep: int, texts: Texts, scale: float, record: bool
) -> tuple[Tensor, list[Tensor]]:
    """The noise predicted for the reference, and the maps of all the rows that predict it.

    Where the reference has a negative text, classifier-free guidance takes 2B rows, first those of
    the negative text, and their maps are there anyway. Else the caption's B rows do: guidance away
    from the caption itself, as the paper has it, changes nothing. Then maps are there with `record`
    only.
    """
    if texts.reference_negative is not None:
        rows_BCHW = reference_BCHW.repeat(2, 1, 1, 1)  # 2B
        both_BTD = torch.cat([texts.reference_negative, texts.caption])  # 2B x T x D
        both_BCHW, maps = teacher.noise_and_maps(rows_BCHW, timestep, both_BTD)
        return classifier_free(both_BCHW, scale), maps
    if record:
        return teacher.noise_and_maps(reference_BCHW, timestep, texts.caption)
    return teacher.noise(reference_BCHW, timestep, texts.caption), []


def edit_step(teacher: Teacher, edit_BCHW: Tensor, step: Step, texts: Texts, scale: float) -> Tensor:
    """One DDIM step of the edit with classifier-free guidance: its next latent, B x C x H x W.

    At scale 1 that is the noise of the edit's own text, and no other row is asked for.
    """
    if scale == 1:
        noise_BCHW = teacher.noise(edit_BCHW, step.timestep, texts.edited)
        tell_prediction(edit_BCHW, noise_BCHW, step.alpha)
        return ddim_step(edit_BCHW, noise_BCHW, step.alpha, step.alpha_next)
    rows_BCHW = edit_BCHW.repeat(2, 1, 1, 1)  # 2B
    both_BTD = torch.cat([texts.negative, texts.edited])  # 2B x T x D
    noise_BCHW = classifier_free(teacher.noise(rows_BCHW, step.timestep, both_BTD), scale)
    tell_prediction(edit_BCHW, noise_BCHW, step.alpha)
    # The first B rows are the edit again, but contiguous whatever its memory layout was: for another
    # layout the autoencoder rounds differently.
    return ddim_step(rows_BCHW[: len(edit_BCHW)], noise_BCHW, step.alpha, step.alpha_next)


def attention_gradient(
    teacher: Teacher, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor, reference_maps: list[Tensor]
) -> Tensor:
    """Gradient of the attention distance with respect to the latent, B x C x H x W (in eq. 5)."""
    with torch.enable_grad():
        latent_BCHW = latent_BCHW.detach().requires_grad_()
        maps = teacher.maps(latent_BCHW, timestep, text_BTD)
        distance = attention_distance(maps, reference_maps)
        (gradient_BCHW,) = torch.autograd.grad(distance * GRADIENT_SCALE, latent_BCHW)
    return gradient_BCHW / GRADIENT_SCALE


def attention_distance(maps: list[Tensor], reference_maps: list[Tensor]) -> Tensor:
    """The squared difference of the maps, a scalar (in eq. 5: the squared norm of M_edit - M_ref).

    Summed over images, layers, pixels and tokens, averaged over heads.
    """
    of_layers = []
    for edit, reference in zip(maps, reference_maps, strict=True):  # (B, heads, pixels, T) each
        squares = (edit.float() - reference.float()).square()
        of_layers.append(squares.sum((2, 3)).mean(1).sum())
    return torch.stack(of_layers).sum()


def classifier_free(both_BCHW: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): B x C x H x W of the noise of 2B rows.

    It leads away from the first B rows, those of the negative text, towards the last.
    """
    negative_BCHW, positive_BCHW = both_BCHW.chunk(2)
    return negative_BCHW + scale * (positive_BCHW - negative_BCHW)


def count_guided(steps: int, guidance: Guidance) -> int:
    """How many of the steps, from the noise on, attention guides."""
    return share_of(guidance.until, steps) if guidance.amount else 0


def share_of(share: float, steps: int) -> int:
    """A share of the steps, rounded up, but not by a rounding error: 0.55 x 20 is above 11."""
    return math.ceil(round(share * steps, 6))
