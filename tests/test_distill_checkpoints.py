"""distill/checkpoints.py: whole or not there."""

import shutil
from collections import namedtuple

import pytest
import torch

from configs.errors import UserError
from distill import checkpoints

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
