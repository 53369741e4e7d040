"""distill/pairs.py and losses.py: what the training loop is fed, and the loss it lowers."""

import json
from collections import Counter
from dataclasses import replace

import kornia
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from configs.errors import UserError
from configs.runs import selected_keys
from configs.schema import Augment, Distill
from distill import pairs
from distill.graphs import Picture
from distill.losses import DistillationLoss, window_starts
from distill.pairs import PairAugment
from tests.helpers import make_selected_pairs

STILL = Augment(flip=0, crop=1, colour=0, noise=0)


def test_random_access_gives_the_written_pictures(tmp_path):
    made = make_selected_pairs(tmp_path)
    keys = selected_keys(tmp_path)[::-1]
    dataset = pairs.PairDataset(pairs.find_pairs(tmp_path / "pairs", keys), 16)
    input_CHW, edit_CHW = dataset[0]
    assert (len(dataset), dataset.locations[0].key) == (12, "k011")
    assert np.array_equal(input_CHW.numpy(), made[11].images["input"].transpose(2, 0, 1))
    assert torch.equal(edit_CHW, 255 - input_CHW)


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_a_second_epoch_reads_no_file_and_gives_the_same_bits(tmp_path, workers, context):
    """Whoever decoded them: the second epoch's pairs are dealt to the workers in another order."""
    made = make_selected_pairs(tmp_path)
    locations = pairs.find_pairs(tmp_path / "pairs", [pair.key for pair in made])
    dataset = pairs.PairDataset(locations, 16, cache_gb=12 * 2 * 3 * 16 * 16 / 1e9)

    def epoch(order):
        loader = DataLoader(dataset, 3, sampler=order, num_workers=workers, multiprocessing_context=context)
        loaded = []
        for inputs, edits in loader:
            loaded.extend(zip(inputs, edits, strict=True))
        return dict(zip(order, loaded, strict=True))

    first = epoch(range(12))
    for shard in (tmp_path / "pairs").iterdir():
        shard.unlink()
    second = epoch([3, 4, 5, 0, 1, 2, 11, 10, 9, 6, 8, 7])
    for place, pair in enumerate(made):
        for input_CHW, edit_CHW in (first[place], second[place]):
            assert np.array_equal(input_CHW.numpy(), pair.images["input"].transpose(2, 0, 1))
            assert np.array_equal(edit_CHW.numpy(), pair.images["edit"].transpose(2, 0, 1))


def test_what_is_above_the_limit_is_decoded_each_time(tmp_path):
    make_selected_pairs(tmp_path)
    locations = pairs.find_pairs(tmp_path / "pairs", ["k000"])
    dataset = pairs.PairDataset(locations, 16, cache_gb=(2 * 3 * 16 * 16 - 1) / 1e9)
    assert len(dataset[0]) == 2
    (tmp_path / "pairs" / "000000.tar").unlink()
    with pytest.raises(UserError, match="000000.tar: pair k000 cannot be read"):
        _ = dataset[0]


def test_missing_or_wrong_selection_names_the_next_action(tmp_path):
    with pytest.raises(UserError, match="zero2gan filter"):
        selected_keys(tmp_path)
    (tmp_path / "selection.json").write_text("{")
    with pytest.raises(UserError, match="zero2gan filter"):
        selected_keys(tmp_path)
    (tmp_path / "selection.json").write_text(json.dumps({"kept": []}))
    with pytest.raises(UserError, match="clip_gain"):
        selected_keys(tmp_path)


def test_selected_keys_without_pairs_and_wrong_sizes_are_refused(tmp_path):
    make_selected_pairs(tmp_path)
    with pytest.raises(UserError, match="lacks 1 of the 2"):
        pairs.find_pairs(tmp_path / "pairs", ["k000", "gone"])
    with pytest.raises(UserError, match=r"k000.input.png is \(16, 16, 3\), teacher.resolution=32"):
        _ = pairs.PairDataset(pairs.find_pairs(tmp_path / "pairs", ["k000"]), 32)[0]


def test_split_is_by_source_and_stable():
    sources = [f"photo-{number // 3}" for number in range(3000)]
    training, held_out = pairs.split(sources, 0.1, seed=0)
    assert sorted(training + held_out) == list(range(3000))
    assert not {sources[place] for place in training} & {sources[place] for place in held_out}
    assert len(held_out) / 3000 == pytest.approx(0.1, abs=0.03)
    assert pairs.split(sources, 0.1, seed=0) == (training, held_out)
    assert pairs.split(sources, 0.1, seed=1) != (training, held_out)
    fewer = pairs.split(sources[:1500], 0.1, seed=0)[1]
    assert fewer == [place for place in held_out if place < 1500]


def test_split_holds_out_one_source_at_least_and_leaves_one():
    assert sorted(len(part) for part in pairs.split(["a", "b"], 0.001, 0)) == [1, 1]
    with pytest.raises(UserError, match="nothing to train on"):
        pairs.split(["a", "a"], 0.5, 0)
    with pytest.raises(UserError, match="validation_share"):
        pairs.split(["a", "b"], 0.0, 0)


def test_order_shows_every_pair_once_an_epoch_and_needs_no_state():
    shown = np.concatenate([pairs.step_positions(step, 4, 10, seed=3) for step in range(5)])
    assert Counter(shown[:10]) == Counter(range(10)) == Counter(shown[10:])
    assert list(shown[:10]) != list(shown[10:])
    assert list(pairs.step_positions(3, 4, 10, seed=3)) == list(shown[12:16])


def test_both_pictures_get_the_same_draw():
    image_BCHW = torch.rand(8, 3, 32, 32) * 2 - 1
    augment = PairAugment(Augment(noise=0), 32)
    torch.manual_seed(0)
    input_BCHW, edit_BCHW = augment(image_BCHW, image_BCHW.clone())
    assert torch.equal(input_BCHW, edit_BCHW)
    assert not torch.allclose(input_BCHW, image_BCHW, atol=0.01)
    assert input_BCHW.min() >= -1 and input_BCHW.max() <= 1 and input_BCHW.shape == image_BCHW.shape
    torch.manual_seed(0)
    assert torch.equal(augment(image_BCHW, image_BCHW)[0], input_BCHW)


def test_colours_that_the_edit_keeps_stay_the_same_in_both():
    """Also under contrast, which is about the mean grey: each picture's own would move what they share."""
    input_BCHW = 0.4 * torch.rand(8, 3, 32, 32) - 0.6
    edit_BCHW = input_BCHW.clone()
    edit_BCHW[:, :, :16] = 0.2
    input_BCHW, edit_BCHW = PairAugment(replace(STILL, colour=0.3), 32)(input_BCHW, edit_BCHW)
    torch.testing.assert_close(edit_BCHW[:, :, 16:], input_BCHW[:, :, 16:], rtol=0, atol=1e-6)
    assert ((edit_BCHW - input_BCHW)[:, :, :16].mean((1, 2, 3)) > 0.2).all()  # what it changes stays too


def test_geometry_keeps_the_pair_aligned():
    """Where colours stay and the edit is the input's negative, it is so after crop and flip."""
    image_BCHW = torch.rand(8, 3, 32, 32) * 2 - 1
    geometry = replace(STILL, flip=0.5, crop=0.5)
    input_BCHW, edit_BCHW = PairAugment(geometry, 32)(image_BCHW, -image_BCHW)
    torch.testing.assert_close(edit_BCHW, -input_BCHW, rtol=0, atol=1e-5)
    flipped = PairAugment(replace(STILL, flip=1.0), 32)(image_BCHW, image_BCHW)[1]
    torch.testing.assert_close(flipped, image_BCHW.flip(-1), rtol=0, atol=1e-6)


def test_the_smallest_crop_is_the_share_of_the_side_that_was_asked_for():
    """Of a ramp, a crop has the share of the slope that it has of the side."""
    ramp_BCHW = torch.linspace(-1, 1, 32).expand(400, 3, 32, 32)
    torch.manual_seed(0)
    cropped_BCHW = PairAugment(replace(STILL, crop=0.5), 32)(ramp_BCHW, ramp_BCHW)[1]
    slope_B = cropped_BCHW[:, 0, 16, 24] - cropped_BCHW[:, 0, 16, 8]
    share_B = slope_B / (ramp_BCHW[0, 0, 16, 24] - ramp_BCHW[0, 0, 16, 8])
    assert 0.45 < share_B.min() < 0.55 and 0.95 < share_B.max() < 1.01


def test_colour_jitters_brightness_by_itself_and_hue_by_a_fifth():
    """Of flat pictures, only brightness moves grey and only hue the hue: the others mix grey in."""
    augment = PairAugment(replace(STILL, colour=0.5), 8)
    grey_BCHW = torch.full((400, 3, 8, 8), -0.2)  # 0.4 of 1
    orange_BCHW = torch.tensor([0.2, 0.0, -0.2])[None, :, None, None].expand(400, 3, 8, 8).contiguous()
    torch.manual_seed(0)
    brightness_B = (augment(grey_BCHW, grey_BCHW)[0][:, 0, 0, 0] + 1) / 2 / 0.4
    assert 0.5 <= brightness_B.min() < 0.55
    assert 1.45 < brightness_B.max() <= 1.5
    unit_BCHW = (augment(orange_BCHW, orange_BCHW)[1] + 1) / 2
    turns_B = (kornia.color.rgb_to_hsv(unit_BCHW)[:, 0, 0, 0] / (2 * np.pi) - 1 / 12 + 0.5) % 1 - 0.5
    assert -0.101 < turns_B.min() < -0.09
    assert 0.09 < turns_B.max() < 0.101


def test_colour_jitters_contrast_and_saturation():
    """Brightness changes neither the ratio of two greys, nor hue the saturation of a colour."""
    augment = PairAugment(replace(STILL, colour=0.5), 8)
    torch.manual_seed(0)
    halves_BCHW = torch.cat([torch.full((400, 3, 4, 8), -0.3), torch.full((400, 3, 4, 8), 0.1)], 2)
    unit_BCHW = (augment(halves_BCHW, halves_BCHW)[0] + 1) / 2
    contrast_B = (unit_BCHW[:, 0, -1, 0] - unit_BCHW[:, 0, 0, 0]) / unit_BCHW[:, 0, :, 0].mean(1)
    assert (
        contrast_B.max() / contrast_B.min() > 2
    )  # from 0.5 to 1.5 times; of brightness the ratio knows nothing
    orange_BCHW = torch.tensor([0.2, 0.0, -0.2])[None, :, None, None].expand(400, 3, 8, 8).contiguous()
    unit_BCHW = (augment(orange_BCHW, orange_BCHW)[0] + 1) / 2
    saturation_B = kornia.color.rgb_to_hsv(unit_BCHW)[:, 1, 0, 0]
    assert saturation_B.max() / saturation_B.min() > 2


def test_training_and_export_scale_pictures_alike():
    picture_BHWC = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    levels_BCHW = picture_BHWC.permute(0, 3, 1, 2)
    exported = []
    Picture(lambda image_BCHW: exported.append(image_BCHW) or image_BCHW)(picture_BHWC)
    for image_BCHW in pairs.images_on(torch.device("cpu"), [levels_BCHW, levels_BCHW]):
        assert torch.equal(image_BCHW, exported[0])
        assert image_BCHW.min() == -1
        assert image_BCHW.max() == 1


def test_noise_is_on_the_input_alone_and_within_its_bound():
    grey_BCHW = torch.zeros(64, 3, 16, 16)
    input_BCHW, edit_BCHW = PairAugment(replace(STILL, noise=0.1), 16)(grey_BCHW, grey_BCHW)
    assert torch.equal(edit_BCHW, grey_BCHW)
    deviation_B = input_BCHW.flatten(1).std(1)
    assert deviation_B.max() < 0.11
    assert deviation_B.min() < 0.03
    assert deviation_B.mean() == pytest.approx(0.05, abs=0.015)


def test_nothing_asked_for_changes_nothing():
    image_BCHW = torch.rand(2, 3, 16, 16) * 2 - 1
    for out_BCHW in PairAugment(STILL, 16)(image_BCHW, image_BCHW):
        torch.testing.assert_close(out_BCHW, image_BCHW, rtol=0, atol=1e-6)


class MeanDistance(torch.nn.Module):
    """Stands in for LPIPS and remembers what it saw."""

    def features(self, image_BCHW):
        return [image_BCHW]

    def distance(self, first, second):
        self.saw = first[0], second[0]
        return (first[0] - second[0]).abs().mean((1, 2, 3))


def test_loss_is_the_weighted_sum_of_its_parts():
    fake_BCHW = torch.zeros(2, 3, 16, 16)
    edit_BCHW = torch.full((2, 3, 16, 16), 0.5)
    criterion = DistillationLoss(Distill(lpips=2.0), MeanDistance(), None)
    losses = criterion(fake_BCHW, edit_BCHW, criterion.look(edit_BCHW, fake_BCHW, edit_BCHW), 0)
    assert {name: value.item() for name, value in losses.items()} == {"l1": 0.5, "lpips": 0.5, "loss": 1.5}


@pytest.mark.parametrize(("side", "crop"), [(16, 5), (16, 8), (16, 15), (16, 16)])
def test_the_rim_is_seen_half_as_often_as_anything_at_least(side, crop):
    torch.manual_seed(0)
    seen_N = torch.zeros(side)
    for _ in range(4000):
        start = window_starts(side, crop)[1]
        assert 0 <= start <= side - crop
        seen_N[start : start + crop] += 1
    assert seen_N.min() > 0.45 * seen_N.max()


def test_lpips_looks_through_one_window_at_both():
    image_BCHW = torch.rand(2, 3, 16, 16)
    perceptual = MeanDistance()
    criterion = DistillationLoss(Distill(lpips_crop=8), perceptual, None)
    seen = set()
    for _ in range(20):
        criterion(image_BCHW, image_BCHW, criterion.look(image_BCHW, image_BCHW, image_BCHW), 0)
        x_BCHW, y_BCHW = perceptual.saw
        assert x_BCHW.shape == (2, 3, 8, 8) and torch.equal(x_BCHW, y_BCHW)
        seen.add(x_BCHW.sum().item())
    assert len(seen) > 5
