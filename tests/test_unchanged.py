"""generate/unchanged.py: a changed square, and what lies around it."""

import torch

from generate.unchanged import keep_unchanged

SQUARE = (..., slice(40, 88), slice(40, 88))
INSIDE = (..., slice(48, 80), slice(48, 80))  # farther from the square's rim than the blur reaches


def square_edit() -> tuple[torch.Tensor, torch.Tensor]:
    """Two inputs, and edits that shift every pixel a little and a square by far more."""
    generator = torch.Generator().manual_seed(0)
    input_BCHW = torch.rand(2, 3, 128, 128, generator=generator) - 0.5
    edit_BCHW = input_BCHW + 0.03 * torch.randn(2, 3, 128, 128, generator=generator)
    edit_BCHW[SQUARE] += 0.6
    return input_BCHW, edit_BCHW


def test_the_edit_stays_where_it_changed_much_and_the_input_elsewhere():
    input_BCHW, edit_BCHW = square_edit()
    kept_BCHW = keep_unchanged(input_BCHW, edit_BCHW, 0.8)
    torch.testing.assert_close(kept_BCHW[INSIDE], edit_BCHW[INSIDE])
    around = torch.ones(128, 128, dtype=torch.bool)
    around[32:96, 32:96] = False
    assert torch.equal(kept_BCHW[..., around], input_BCHW[..., around])


def test_each_picture_has_its_own_threshold():
    """Half the change of one picture is as much of its own threshold: the same places are kept."""
    input_BCHW, edit_BCHW = square_edit()
    weak_BCHW = input_BCHW + torch.tensor([1.0, 0.5])[:, None, None, None] * (edit_BCHW - input_BCHW)
    alone_BCHW = keep_unchanged(input_BCHW[1:], weak_BCHW[1:], 0.8)
    torch.testing.assert_close(keep_unchanged(input_BCHW, weak_BCHW, 0.8)[1:], alone_BCHW)
    share_BCHW = (alone_BCHW - input_BCHW[1:]) / (weak_BCHW[1:] - input_BCHW[1:])
    strong_BCHW = keep_unchanged(input_BCHW[1:], edit_BCHW[1:], 0.8)
    expected_BCHW = (strong_BCHW - input_BCHW[1:]) / (edit_BCHW[1:] - input_BCHW[1:])
    torch.testing.assert_close(share_BCHW[INSIDE], expected_BCHW[INSIDE], rtol=1e-3, atol=1e-3)


def test_more_is_kept_for_a_larger_share_and_nothing_for_0():
    input_BCHW, edit_BCHW = square_edit()
    changed = []
    for keep in (0.2, 0.8, 2.0):
        changed.append((keep_unchanged(input_BCHW, edit_BCHW, keep) - input_BCHW).abs().mean().item())
    assert changed == sorted(changed, reverse=True)
    assert keep_unchanged(input_BCHW, edit_BCHW, 0.0) is edit_BCHW


def test_an_edit_that_changes_nothing_is_the_input():
    input_BCHW, _ = square_edit()
    assert torch.equal(keep_unchanged(input_BCHW, input_BCHW.clone(), 0.8), input_BCHW)
