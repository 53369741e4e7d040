"""Cross-attention guidance (Parmar et al. 2023, section 3.3, eq. 5): the edit keeps the attention maps of the reconstruction.

The two trajectories go in lockstep: the maps of one time step are all that is held; those of Stable Diffusion 1.4's 50 steps are 6.6 GB.
At the end the baseline that takes the probabilities over as they are: prompt-to-prompt word swap (Hertz et al. 2022).

Shapes: B images, C H W latent channels and cells, T text tokens, D text width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import partial

import torch
from torch import Tensor

from configs.schema import Guidance, PromptToPrompt
from generate.inversion import Solver
from models.teacher import AttentionControl, Step, Teacher

GRADIENT_SCALE = 1024.0  # a power of two: float16 loses gradients below 6e-8, and these are small


@dataclass(frozen=True)
class Texts:
    """Embeddings, B x T x D each: of the input, of the edit, and what classifier-free guidance leads away from."""

    caption: Tensor
    edited: Tensor
    negative: Tensor


@dataclass(frozen=True)
class Lockstep:
    """How the two trajectories go.

    reference: whether to follow the reconstruction to its end, where no map needs it too; without it the first latent is unfinished.
    guided_reference: with classifier-free guidance; with the caption as the negative text that would be a no-op, and one row is enough.
    official: the reference code's form, else the paper's: one x_t, one gradient.
    maps: reference maps by timestep that are there already; where all guided steps but the first have them, no reference is followed.
    """

    reference: bool = True
    guided_reference: bool = False
    official: bool = False
    solver: str = "ddim"
    maps: Mapping[int, list[Tensor]] = field(default_factory=dict)


@torch.no_grad()
def edit_in_lockstep(
    teacher: Teacher,
    schedule: Sequence[Step],
    noise_BCHW: Tensor,
    texts: Texts,
    guidance: Guidance,
    way: Lockstep,
) -> tuple[Tensor, Tensor]:
    """Latents (reconstruction, edit), each B x C x H x W, of inverted noise.

    guidance: `amount` is the step size on x_t down the gradient of the attention distance, 0 for none, in the first `until` of the steps;
    `scale` the classifier-free guidance of the edit.
    """
    reference_BCHW = edit_BCHW = noise_BCHW
    both_BTD = torch.cat([texts.negative, texts.edited])
    to_reference, to_edit = Solver(way.solver), Solver(way.solver)
    guided_steps = guided(len(schedule), guidance)
    follow_until = len(schedule) if way.reference else 1 if way.maps and guided_steps else guided_steps
    for index, (timestep, alpha, alpha_next) in enumerate(schedule):
        guide, maps = index < guided_steps, way.maps.get(timestep, [])
        if index < follow_until:
            if way.guided_reference:
                texts_BTD = torch.cat([texts.negative, texts.caption])
                noise, maps = teacher.noise_and_maps(reference_BCHW.repeat(2, 1, 1, 1), timestep, texts_BTD)
                noise = classifier_free(noise, guidance.scale)
            elif guide and not maps:
                noise, maps = teacher.noise_and_maps(reference_BCHW, timestep, texts.caption)
            else:
                noise = teacher.noise(reference_BCHW, timestep, texts.caption)
            reference_BCHW = to_reference.step(reference_BCHW, noise, alpha, alpha_next)
        if guide and not way.official:
            conditional = [layer.chunk(2)[1] for layer in maps] if way.guided_reference else maps
            edit_BCHW = edit_BCHW - guidance.amount * attention_gradient(
                teacher, edit_BCHW, timestep, texts.edited, conditional
            )
        rows_BCHW = edit_BCHW.repeat(2, 1, 1, 1)
        if guide and way.official:
            # Each row of classifier-free guidance has a latent of its own, which goes down its own gradient of a distance averaged over the
            # heads of both; the unconditional row's latent is kept.
            maps = maps if way.guided_reference else [torch.cat([layer, layer]) for layer in maps]
            rows_BCHW = rows_BCHW - guidance.amount / 2 * attention_gradient(
                teacher, rows_BCHW, timestep, both_BTD, maps
            )
        noise = classifier_free(teacher.noise(rows_BCHW, timestep, both_BTD), guidance.scale)
        edit_BCHW = to_edit.step(rows_BCHW.chunk(2)[0], noise, alpha, alpha_next)
    return reference_BCHW, edit_BCHW


def guided(steps: int, guidance: Guidance) -> int:
    """How many of the steps, from the noise on, attention guides."""
    return share_of(guidance.until, steps) if guidance.amount else 0


def share_of(share: float, steps: int) -> int:
    """A share of the steps, rounded up, but not for the sake of a rounding error (0.55 x 20 is above 11)."""
    return math.ceil(round(share * steps, 6))


def classifier_free(both_BCHW: Tensor, scale: float) -> Tensor:
    """Ho and Salimans (2022): away from the first half of the rows, towards the second."""
    negative, positive = both_BCHW.chunk(2)
    return negative + scale * (positive - negative)


def attention_gradient(
    teacher: Teacher, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor, reference_maps: list[Tensor]
) -> Tensor:
    """Gradient with respect to the latent of the attention distance, B x C x H x W; weights get none."""
    with torch.enable_grad():
        latent_BCHW = latent_BCHW.detach().requires_grad_()
        maps = teacher.maps(latent_BCHW, timestep, text_BTD)
        (gradient,) = torch.autograd.grad(
            attention_distance(maps, reference_maps) * GRADIENT_SCALE, latent_BCHW
        )
    return gradient / GRADIENT_SCALE


def attention_distance(maps: list[Tensor], reference_maps: list[Tensor]) -> Tensor:
    """Sum over images and layers of the squared map difference: summed over pixels and tokens, averaged over heads."""
    pairs = zip(maps, reference_maps, strict=True)
    return torch.stack([(a.float() - b.float()).square().sum((2, 3)).mean(1).sum() for a, b in pairs]).sum()


def edit_by_replacing(
    teacher: Teacher,
    schedule: Sequence[Step],
    noise_BCHW: Tensor,
    texts: Texts,
    scale: float,
    alignment: tuple[Tensor, Tensor],
    config: PromptToPrompt,
    solver: str = "ddim",
) -> tuple[Tensor, Tensor]:
    """Latents (reconstruction, edit), each B x C x H x W: in one call a step, rows of the reference, the negative text and the edit.

    scale: classifier-free guidance of the edit; the reference is reconstructed at scale 1. alignment: as align_tokens gives it.
    """
    reference_BCHW = edit_BCHW = noise_BCHW
    all_BTD = torch.cat([texts.caption, texts.negative, texts.edited])
    to_reference, to_edit = Solver(solver), Solver(solver)
    cross_steps, self_steps = (
        share_of(config.cross_replace, len(schedule)),
        share_of(config.self_replace, len(schedule)),
    )
    for index, (timestep, alpha, alpha_next) in enumerate(schedule):
        most_pixels = config.self_side**2 if index < self_steps else 0
        with teacher.controlled(replacement(alignment, index < cross_steps, most_pixels)):
            noise = teacher.noise(torch.cat([reference_BCHW, edit_BCHW, edit_BCHW]), timestep, all_BTD)
        reference_BCHW = to_reference.step(reference_BCHW, noise[: len(noise_BCHW)], alpha, alpha_next)
        edit_BCHW = to_edit.step(
            edit_BCHW, classifier_free(noise[len(noise_BCHW) :], scale), alpha, alpha_next
        )
    return reference_BCHW, edit_BCHW


def replacement(alignment: tuple[Tensor, Tensor], cross: bool, most_pixels: int) -> AttentionControl:
    """Of rows that are thirds (reference, negative, edit) the edit's probabilities become the reference's: with `cross` those of the words,
    in self-attention those of layers of at most so many pixels.
    """
    moved_BTT, own_BT = alignment

    def replaced(is_cross: bool, probabilities: Tensor) -> Tensor:
        reference, negative, edit = probabilities.chunk(3)
        words = (
            reference @ moved_BTT[:, None].to(edit) + edit * own_BT[:, None, None].to(edit)
            if is_cross
            else reference
        )
        return torch.cat([reference, negative, words])

    return lambda is_cross, pixels: (
        partial(replaced, is_cross) if (cross if is_cross else pixels <= most_pixels) else None
    )


def align_tokens(teacher: Teacher, captions: Sequence[str], swapped: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which of the swapped text's tokens takes which of the caption's maps: B x T x T, and 1 where a token keeps its own, B x T.

    Equal tokens take each other's; a swapped word's tokens share those of the word they replace (the mean map over the tokens of the
    caption's word, times as many); new words keep their own (the paper's word swap and refinement).
    """
    length = teacher.tokenizer.model_max_length
    moved, own = torch.zeros(len(captions), length, length), torch.zeros(len(captions), length)
    for row, pair in enumerate(zip(captions, swapped, strict=True)):
        old, new = teacher.tokenizer(
            list(pair), padding="max_length", max_length=length, truncation=True
        ).input_ids
        for kind, i0, i1, j0, j1 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if kind == "equal":
                moved[row, range(i0, i1), range(j0, j1)] = 1.0
            elif kind == "replace":
                moved[row, i0:i1, j0:j1] = 1.0 / (j1 - j0)
            elif kind == "insert":
                own[row, j0:j1] = 1.0
    return moved.to(teacher.device), own.to(teacher.device)
