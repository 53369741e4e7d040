"""Prompt-to-prompt word swap (Hertz et al. 2022), a baseline: the edit takes over attention probabilities of the reference as they are.

Shapes: B images, H heads, P pixels, T text tokens.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import partial

import torch
from torch import Tensor

from configs.schema import PromptToPrompt
from generate.guidance import Texts, classifier_free, share_of
from generate.inversion import Solver
from models.teacher import AttentionControl, Step, Teacher


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
    cross_steps, self_steps = share_of(config.cross_replace, len(schedule)), share_of(config.self_replace, len(schedule))
    for index, (timestep, alpha, alpha_next) in enumerate(schedule):
        most_pixels = config.self_side**2 if index < self_steps else 0
        with teacher.controlled(replacement(alignment, index < cross_steps, most_pixels)):
            noise = teacher.noise(torch.cat([reference_BCHW, edit_BCHW, edit_BCHW]), timestep, all_BTD)
        reference_BCHW = to_reference.step(reference_BCHW, noise[: len(noise_BCHW)], alpha, alpha_next)
        edit_BCHW = to_edit.step(edit_BCHW, classifier_free(noise[len(noise_BCHW) :], scale), alpha, alpha_next)
    return reference_BCHW, edit_BCHW


def replacement(alignment: tuple[Tensor, Tensor], cross: bool, most_pixels: int) -> AttentionControl:
    """Of rows that are thirds (reference, negative, edit) the edit's probabilities become the reference's: with `cross` those of the words,
    in self-attention those of layers of at most so many pixels.
    """
    moved_BTT, own_BT = alignment

    def replaced(is_cross: bool, probabilities: Tensor) -> Tensor:
        reference, negative, edit = probabilities.chunk(3)
        words = reference @ moved_BTT[:, None].to(edit) + edit * own_BT[:, None, None].to(edit) if is_cross else reference
        return torch.cat([reference, negative, words])

    return lambda is_cross, pixels: partial(replaced, is_cross) if (cross if is_cross else pixels <= most_pixels) else None


def align_tokens(teacher: Teacher, captions: Sequence[str], swapped: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which of the swapped text's tokens takes which of the caption's maps: B x T x T, and 1 where a token keeps its own, B x T.

    Equal tokens take each other's; a swapped word's tokens share those of the word they replace (the mean map over the tokens of the
    caption's word, times as many); new words keep their own (the paper's word swap and refinement).
    """
    length = teacher.tokenizer.model_max_length
    moved, own = torch.zeros(len(captions), length, length), torch.zeros(len(captions), length)
    for row, pair in enumerate(zip(captions, swapped, strict=True)):
        old, new = teacher.tokenizer(list(pair), padding="max_length", max_length=length, truncation=True).input_ids
        for kind, i0, i1, j0, j1 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if kind == "equal":
                moved[row, range(i0, i1), range(j0, j1)] = 1.0
            elif kind == "replace":
                moved[row, i0:i1, j0:j1] = 1.0 / (j1 - j0)
            elif kind == "insert":
                own[row, j0:j1] = 1.0
    return moved.to(teacher.device), own.to(teacher.device)
