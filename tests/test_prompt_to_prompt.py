"""Prompt-to-prompt: where it must equal what is known, and whose maps go where."""

import torch

from configs.loader import load
from generate import prompt_to_prompt
from generate.directions import EditDirection
from generate.editors import Editor
from generate.guidance import Texts
from generate.prompt_to_prompt import align_tokens, edit_by_replacing, replacement


def tokens(teacher, text):
    """How many tokens the text has, with those of start and end."""
    return len(teacher.tokenizer(text).input_ids)


def test_a_word_for_a_word_takes_its_place(tiny_teacher):
    """Equal lengths align one to one: the identity, nothing of its own."""
    assert tokens(tiny_teacher, "a tree in summer") == tokens(tiny_teacher, "a tree in winter")
    alignment = align_tokens(tiny_teacher, ["a tree in summer"], ["a tree in winter"])
    length = tiny_teacher.tokenizer.model_max_length
    assert torch.equal(alignment.weights_BTT[0], torch.eye(length))
    assert not alignment.own_BT.any()


def test_appended_words_keep_their_own(tiny_teacher):
    alignment = align_tokens(tiny_teacher, ["a tree"], ["a tree, winter"])
    end_before = tokens(tiny_teacher, "a tree") - 1
    end_after = tokens(tiny_teacher, "a tree, winter") - 1
    assert alignment.own_BT[0].nonzero().flatten().tolist() == list(range(end_before, end_after))
    assert alignment.weights_BTT[0, end_before, end_after] == 1  # the end token has moved
    assert alignment.weights_BTT[0, 0, 0] == 1


def test_a_longer_word_shares_the_maps_of_the_shorter(tiny_teacher):
    alignment = align_tokens(tiny_teacher, ["a summer day"], ["a cold snowy winter day"])
    before = tokens(tiny_teacher, "a summer day")
    after = tokens(tiny_teacher, "a cold snowy winter day")
    new = after - before + 1  # tokens in the place of 'summer', which is one
    assert new >= 3
    assert torch.allclose(alignment.weights_BTT[0, 2, 2 : 2 + new], torch.full((new,), 1 / new))
    assert not alignment.own_BT[0, :after].any()


def test_the_edit_gets_the_references_probabilities(tiny_teacher):
    torch.manual_seed(0)
    cross = torch.rand(3, 2, 5, 32)  # reference, negative, edit; heads, pixels, tokens
    alignment = align_tokens(tiny_teacher, ["a tree"], ["a tree, winter"])
    control = replacement(alignment, True, 16)
    changed = control(True, 5)(cross)
    assert torch.equal(changed[:2], cross[:2])
    new = alignment.own_BT[0].bool()
    assert torch.equal(changed[2][..., new], cross[2][..., new])
    for token in range(32):
        if not new[token]:
            expected = cross[0] @ alignment.weights_BTT[0, :, token]
            torch.testing.assert_close(changed[2, ..., token], expected)
    self_attention = torch.rand(3, 2, 16, 16)
    assert torch.equal(control(False, 16)(self_attention)[2], self_attention[0])
    assert control(False, 17) is None
    assert replacement(alignment, False, 16)(True, 5) is None


def test_all_attention_replaced_leaves_only_the_values(tiny_teacher, monkeypatch):
    """With the caption as the edited text nothing changes; with nothing replaced it is B of Table
    2.
    """
    torch.manual_seed(0)
    latent = torch.randn(2, 4, 8, 8)
    schedule = tiny_teacher.schedule(3)
    captions = ["a tree in summer", "two green trees"]
    caption = tiny_teacher.embed(captions)
    alignment = align_tokens(tiny_teacher, captions, captions)
    texts = Texts(caption, caption, caption)
    reference, same = edit_by_replacing(tiny_teacher, schedule, latent, texts, 5.0, alignment)
    torch.testing.assert_close(reference, same, rtol=1e-4, atol=1e-4)

    image = torch.rand(2, 3, 32, 32) * 2 - 1

    def latents(method, replaced):
        monkeypatch.setattr(prompt_to_prompt, "CROSS_REPLACE", replaced)
        monkeypatch.setattr(prompt_to_prompt, "SELF_REPLACE", replaced)
        config = load([f"edit.method={method}", "edit.steps=4"])
        editor = Editor(tiny_teacher, EditDirection(torch.zeros(1, 32, 32), "", ""), config)
        return editor(image, captions, ["a", "b"], True).latents

    plain = latents("B", 0.8)
    nothing = latents("prompt-to-prompt", 0.0)
    everything = latents("prompt-to-prompt", 1.0)
    for name in ("edit", "reconstruction"):
        torch.testing.assert_close(nothing[name], plain[name], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(everything["reconstruction"], plain["reconstruction"], rtol=1e-3, atol=1e-3)
    assert (everything["edit"] - plain["edit"]).abs().max() > 0.1
