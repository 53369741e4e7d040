"""Prompt-to-prompt: where it must equal what is known, and whose maps go where."""

import torch

from configs.loader import load
from configs.schema import PromptToPrompt
from generate.directions import EditDirection
from generate.editors import Editor
from generate.guidance import Texts, align_tokens, edit_by_replacing, replacement


def tokens(teacher, text):
    return teacher.tokenizer(text).input_ids


def test_a_word_for_a_word_takes_its_place(tiny_teacher):
    """Equal lengths align one to one: the identity, nothing of its own."""
    moved, own = align_tokens(tiny_teacher, ["a tree in summer"], ["a tree in winter"])
    assert len(tokens(tiny_teacher, "a tree in summer")) == len(tokens(tiny_teacher, "a tree in winter"))
    assert torch.equal(moved[0], torch.eye(len(own[0]))) and not own.any()


def test_appended_words_keep_their_own(tiny_teacher):
    before, after = "a tree", "a tree, winter"
    moved, own = align_tokens(tiny_teacher, [before], [after])
    first, last = (
        len(tokens(tiny_teacher, before)) - 1,
        len(tokens(tiny_teacher, after)) - 1,
    )  # the end token moves from first to last
    assert own[0].nonzero().flatten().tolist() == list(range(first, last))
    assert moved[0, first, last] == 1 and moved[0, 0, 0] == 1


def test_a_longer_word_shares_the_maps_of_the_shorter(tiny_teacher):
    moved, own = align_tokens(tiny_teacher, ["a summer day"], ["a cold snowy winter day"])
    before, after = (
        len(tokens(tiny_teacher, "a summer day")),
        len(tokens(tiny_teacher, "a cold snowy winter day")),
    )
    new = after - before + 1  # tokens in the place of 'summer', which is one
    assert (
        new >= 3
        and torch.allclose(moved[0, 2, 2 : 2 + new], torch.full((new,), 1 / new))
        and not own[0, :after].any()
    )


def test_the_edit_gets_the_references_probabilities(tiny_teacher):
    torch.manual_seed(0)
    cross = torch.rand(3, 2, 5, 32)  # reference, negative, edit; heads, pixels, tokens
    moved, own = align_tokens(tiny_teacher, ["a tree"], ["a tree, winter"])
    control = replacement((moved, own), True, 16)
    changed = control(True, 5)(cross)
    assert torch.equal(changed[:2], cross[:2])
    new = own[0].bool()
    assert torch.equal(changed[2][..., new], cross[2][..., new])
    for token in range(32):
        if not new[token]:
            torch.testing.assert_close(changed[2, ..., token], cross[0] @ moved[0, :, token])
    self_attention = torch.rand(3, 2, 16, 16)
    assert (
        torch.equal(control(False, 16)(self_attention)[2], self_attention[0]) and control(False, 17) is None
    )


def test_all_attention_replaced_leaves_only_the_values(tiny_teacher):
    """With the caption as the edited text nothing changes; with nothing replaced it is DDIM inversion + word swap (B)."""
    torch.manual_seed(0)
    latent, schedule = torch.randn(2, 4, 8, 8), tiny_teacher.schedule(3)
    captions = ["a tree in summer", "two green trees"]
    caption = tiny_teacher.embed(captions)
    alignment = align_tokens(tiny_teacher, captions, captions)
    same = edit_by_replacing(
        tiny_teacher, schedule, latent, Texts(caption, caption, caption), 5.0, alignment, PromptToPrompt()
    )
    torch.testing.assert_close(same[0], same[1], rtol=1e-4, atol=1e-4)

    image = torch.rand(2, 3, 32, 32) * 2 - 1
    found = {}
    for method, replaced in (("B", 0.8), ("prompt-to-prompt", 0.0), ("prompt-to-prompt", 1.0)):
        shares = [f"prompt_to_prompt.cross_replace={replaced}", f"prompt_to_prompt.self_replace={replaced}"]
        config = load([f"edit.method={method}", "edit.steps=4", *shares])
        editor = Editor(tiny_teacher, EditDirection(torch.zeros(1, 32, 32), "", ""), config)
        found[method, replaced] = editor(image, captions, ["a", "b"], True).latents
    plain, nothing, everything = found.values()
    for name in ("edit", "reconstruction"):
        torch.testing.assert_close(nothing[name], plain[name], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(everything["reconstruction"], plain["reconstruction"], rtol=1e-3, atol=1e-3)
    assert (everything["edit"] - plain["edit"]).abs().max() > 0.1
