"""The two forms of a picture, and the way from one to the other and back."""

import numpy as np
import torch

from models.pictures import batch_of, images_of, to_levels, to_signed


def test_every_level_comes_back():
    levels = torch.arange(256, dtype=torch.uint8)
    signed = to_signed(levels)
    assert signed.dtype == torch.float32
    assert signed[0] == -1 and signed[255] == 1
    assert torch.equal(to_levels(signed), levels)


def test_levels_are_rounded_and_clamped():
    half = 0.5 / 127.5  # a level
    signed = torch.tensor([-7.0, -1 - half, -1 + 0.9 * half, 1 - 0.9 * half, 7.0])
    assert to_levels(signed).tolist() == [0, 0, 0, 255, 255]


def test_a_batch_of_images_comes_back():
    rng = np.random.default_rng(0)
    images_BHWC = rng.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    signed_BCHW = batch_of(images_BHWC)
    assert signed_BCHW.shape == (2, 3, 4, 6)
    assert signed_BCHW[1, 2, 3, 5] == to_signed(torch.from_numpy(images_BHWC))[1, 3, 5, 2]
    np.testing.assert_array_equal(images_of(signed_BCHW), images_BHWC)
    torch.testing.assert_close(batch_of(list(images_BHWC)), signed_BCHW)
