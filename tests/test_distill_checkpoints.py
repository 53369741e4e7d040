"""distill/checkpoints.py: whole or not there."""

import shutil
from collections import namedtuple

import pytest
import torch

from configs.errors import UserError
from distill import checkpoints
from distill.validation import best_of

TENSORS = {name: {"w": torch.arange(6.0).view(2, 3)} for name in ("generator", "ema", "adam")}
STATE = {"step": 1, "made_with": {}}


def save(folder, images):
    return checkpoints.save(folder, images, STATE, TENSORS)


def test_written_read_and_rotated(tmp_path):
    for images in (4, 8, 12):
        state = {"step": images // 4, "made_with": {}}
        assert checkpoints.save(tmp_path, images, state, TENSORS) == checkpoints.path_of(tmp_path, images)
    assert [path.name for path in checkpoints.saved(tmp_path)] == ["000000008", "000000012"]
    checkpoint = checkpoints.newest(tmp_path)
    assert checkpoint.state["images"] == 12
    assert checkpoint.state["step"] == 3
    assert torch.equal(checkpoint.tensors["ema"]["w"], TENSORS["ema"]["w"])
    assert checkpoints.newest(tmp_path / "none") is None


def test_damaged_newest_falls_back_and_all_damaged_is_an_error(tmp_path, capsys):
    for images in (4, 8):
        path = save(tmp_path, images)
    data = bytearray((path / "ema.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "ema.safetensors").write_bytes(data)
    assert checkpoints.newest(tmp_path).state["images"] == 4
    assert "000000008 is damaged (ema.safetensors" in capsys.readouterr().err
    (tmp_path / "000000004" / "adam.safetensors").unlink()
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        checkpoints.newest(tmp_path)


def test_what_training_went_back_from_goes_and_never_what_was_just_written(tmp_path, monkeypatch):
    """It went on from before a damaged checkpoint, or of fewer images with another batch size."""
    monkeypatch.setattr(checkpoints, "KEEP", 1)
    for images in (8, 16, 12):
        written = save(tmp_path, images)
    assert checkpoints.saved(tmp_path) == [written]
    assert checkpoints.newest(tmp_path).state["images"] == 12


def test_a_full_disk_leaves_the_earlier_one_and_names_the_bytes(tmp_path, monkeypatch):
    first = save(tmp_path, 4)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 10))
    with pytest.raises(UserError, match=r"10 bytes are free.*needs 72 bytes"):
        save(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name]
    assert checkpoints.newest(tmp_path).state["images"] == 4


def test_what_a_killed_process_left_is_swept(tmp_path):
    (tmp_path / ".000000004.1.tmp").mkdir()
    (tmp_path / "000000099").mkdir()  # without state.json
    save(tmp_path, 4)
    assert not list(tmp_path.glob(".*"))
    assert checkpoints.newest(tmp_path).state["images"] == 4


def validations(**measured):
    """Lines of metrics.jsonl: _IMAGES=(LPIPS, sharpness)."""
    lines = [{"images": 4, "kind": "train", "loss": 1.0}]
    for images, (lpips, sharpness) in measured.items():
        lines.append(
            {"images": int(images[1:]), "kind": "validation", "lpips": lpips, "sharpness": sharpness}
        )
    return lines


@pytest.mark.parametrize(
    "measured, best",
    [
        ({"_4": (0.30, 0.1), "_8": (0.30, 0.2), "_12": (0.31, 0.9)}, 8),  # .31 is above .309
        ({"_4": (0.308, 0.3), "_8": (0.30, 0.1)}, 4),  # the sharper of two that are near enough
        ({"_4": (0.308, 1.5), "_8": (0.30, 1.2)}, 8),  # both as sharp as the teacher: the nearer one
        ({"_4": (0.25, 0.5), "_8": (0.50, 3.0), "_12": (0.60, 4.0)}, 4),  # what came later has collapsed
    ],
)
def test_the_best_is_the_sharpest_of_the_nearest(measured, best):
    lines = validations(**measured)
    assert best_of(lines, {4, 8, 12}) == best
    assert best_of(lines, {99}) is None and best_of([], {4}) is None


def test_of_those_that_are_left_the_nearest_where_none_is_near_enough():
    lines = validations(_4=(0.2, 0.1), _8=(0.5, 0.9), _12=(0.4, 0.3))
    assert best_of(lines, {8, 12}) == 12


def test_the_best_is_kept_beside_the_newest(tmp_path):
    for images in (4, 8, 12, 16):
        checkpoints.save(tmp_path, images, STATE, TENSORS, choose_best=lambda candidates: 4)
    assert [path.name for path in checkpoints.saved(tmp_path)] == ["000000004", "000000012", "000000016"]
