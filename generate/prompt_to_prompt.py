"""The baseline edit.method=prompt-to-prompt (Hertz et al. 2022): attention maps are taken over.

Where cross-attention guidance pulls the edit's maps towards the reference's, here those are put in
their place: the words' maps in the first steps, and self-attention in fewer steps and coarse
layers. The reference is the trajectory that reconstructs the input.

Shapes: B images, C H W latent channels and cells, T text tokens, D text width; an attention map is
(rows, heads, pixels, keys), where keys are tokens, in self-attention pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from torch import Tensor

from generate.guidance import Texts, classifier_free, share_of
from generate.inversion import ddim_step
from generate.progress import tell_prediction, told
from models.attention import AttentionControl
from models.teacher import Step, Teacher

# All three are those of the authors' notebook for Stable Diffusion, prompt-to-prompt_stable.
CROSS_REPLACE = 0.8  # share of the steps, from the noise on, in which the words' maps are taken over
SELF_REPLACE = 0.4  # share of the steps in which self-attention is
SELF_SIDE = 16  # in layers of at most so many cells a side: they hold the layout, finer ones texture


@dataclass(frozen=True)
class Alignment:
    """Which of the caption's maps each token of the swapped text takes.

    weights_BTT: token j of the swapped text takes the sum, over the caption's tokens i, of the map
    of i times weights[i, j]. own_BT: 1 where it keeps its own map, else 0.
    """

    weights_BTT: Tensor
    own_BT: Tensor


@torch.no_grad()
def edit_by_replacing(
    teacher: Teacher,
    schedule: Sequence[Step],
    noise_BCHW: Tensor,
    texts: Texts,
    scale: float,
    alignment: Alignment,
) -> tuple[Tensor, Tensor]:
    """Latents (reference, edit), each B x C x H x W, of the noise that both start from.

    In each step the network is called once, with three rows an image: the reference, the edit under
    the negative text, and the edit under its own. scale: classifier-free guidance of the edit; the
    reference follows the caption alone.
    """
    reference_BCHW = noise_BCHW
    edit_BCHW = noise_BCHW
    texts_BTD = torch.cat([texts.caption, texts.negative, texts.edited])  # 3B x T x D
    cross_steps = share_of(CROSS_REPLACE, len(schedule))
    self_steps = share_of(SELF_REPLACE, len(schedule))
    for index, step in enumerate(told("edit", schedule)):
        most_pixels = SELF_SIDE**2 if index < self_steps else 0
        rows_BCHW = torch.cat([reference_BCHW, edit_BCHW, edit_BCHW])  # 3B
        with teacher.controlled(replacement(alignment, index < cross_steps, most_pixels)):
            predicted_BCHW = teacher.noise(rows_BCHW, step.timestep, texts_BTD)  # 3B
        reference_noise_BCHW = predicted_BCHW[: len(noise_BCHW)]
        edit_noise_BCHW = classifier_free(predicted_BCHW[len(noise_BCHW) :], scale)
        tell_prediction(edit_BCHW, edit_noise_BCHW, step.alpha)
        reference_BCHW = ddim_step(reference_BCHW, reference_noise_BCHW, step.alpha, step.alpha_next)
        edit_BCHW = ddim_step(edit_BCHW, edit_noise_BCHW, step.alpha, step.alpha_next)
    return reference_BCHW, edit_BCHW


def replacement(alignment: Alignment, replace_cross: bool, most_pixels: int) -> AttentionControl:
    """The control by which the edit takes the reference's attention probabilities.

    Rows are thirds: the reference, the edit under the negative text, and the edit, which changes.
    replace_cross: whether in cross-attention, token by token as the texts align. most_pixels: in
    self-attention, in layers of at most so many pixels.
    """

    def replace_words(probabilities: Tensor) -> Tensor:
        reference, negative, edit = probabilities.chunk(3)
        weights = alignment.weights_BTT[:, None].to(edit)  # B x 1 x T x T
        own = alignment.own_BT[:, None, None].to(edit)  # B x 1 x 1 x T
        return torch.cat([reference, negative, reference @ weights + edit * own])

    def replace_all(probabilities: Tensor) -> Tensor:
        reference, negative, _ = probabilities.chunk(3)
        return torch.cat([reference, negative, reference])

    def control(is_cross: bool, pixels: int) -> Callable[[Tensor], Tensor] | None:
        if is_cross:
            return replace_words if replace_cross else None
        return replace_all if pixels <= most_pixels else None

    return control


def align_tokens(teacher: Teacher, captions: Sequence[str], swapped: Sequence[str]) -> Alignment:
    """Align the tokens of the swapped texts with those of the captions: word swap and refinement.

    A token that both have takes its old map. The tokens of a word that replaces another share the
    maps of that: each takes their sum over the number of new tokens. Added words keep their own.
    """
    length = teacher.tokenizer.model_max_length
    weights_BTT = torch.zeros(len(captions), length, length)
    own_BT = torch.zeros(len(captions), length)
    for row, texts in enumerate(zip(captions, swapped, strict=True)):
        tokens = teacher.tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)
        old, new = tokens.input_ids
        for kind, i0, i1, j0, j1 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if kind == "equal":
                weights_BTT[row, range(i0, i1), range(j0, j1)] = 1.0
            elif kind == "replace":
                weights_BTT[row, i0:i1, j0:j1] = 1.0 / (j1 - j0)
            elif kind == "insert":
                own_BT[row, j0:j1] = 1.0
    return Alignment(weights_BTT.to(teacher.device), own_BT.to(teacher.device))
