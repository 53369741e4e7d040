"""models/segmenter.py: which of the proposed masks make the noun's mask, what the scorer is shown, and how weights
are read.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam

import models.segmenter as module
from configs.errors import UserError
from configs.schema import Segmenter as Settings
from models.segmenter import Segmenter, load_sam, masked_crop
from models.segmenter_build import build_sam

TINY = {
    "image_size": 64,
    "patch_size": 16,
    "prompt_embed_dim": 16,
    "mask_in_chans": 4,
    "encoder": {"embed_dim": 32, "depth": 1, "num_heads": 2, "use_rel_pos": True, "window_size": 0},
    "decoder": {
        "num_multimask_outputs": 3,
        "iou_head_hidden_dim": 16,
        "transformer": {"depth": 1, "num_heads": 2, "mlp_dim": 32},
    },
}
COLOURS = {"red square": (1.0, 0.0, 0.0), "blue square": (0.0, 0.0, 1.0), "grass": (0.0, 1.0, 0.0)}


def tiny_sam(checkpoint: None = None) -> Sam:
    """A Sam with random weights, 64 pixels a side."""
    torch.manual_seed(0)
    return build_sam(TINY)


class ColourScorer:
    """A stand-in for ClipScorer whose features are mean colours."""

    logit_scale = 100.0

    def text_features(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([COLOURS[text] for text in texts])

    def image_features(self, images: list[np.ndarray]) -> torch.Tensor:
        means = [torch.from_numpy(image.reshape(-1, 3).mean(axis=0)).float() for image in images]
        return torch.nn.functional.normalize(torch.stack(means), dim=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A segmenter folder with the tiny Sam."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    state = {name: tensor.contiguous() for name, tensor in tiny_sam().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


def scene() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Grass with two red squares and a blue one, and the mask of each."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 1] = 255
    masks = {}
    for name, top, left, colour in (("red 1", 2, 3, 0), ("red 2", 20, 40, 0), ("blue", 5, 45, 2)):
        mask = np.zeros(image.shape[:2], bool)
        mask[top : top + 10, left : left + 10] = True
        image[mask] = np.eye(3, dtype=np.uint8)[colour] * 255
        masks[name] = mask
    masks["grass"] = ~(masks["red 1"] | masks["red 2"] | masks["blue"])
    return image, masks


def test_masks_that_show_the_noun_are_united(folder: Path) -> None:
    segmenter = Segmenter(Settings(model=str(folder), other_nouns=["grass", "red square", "blue square"], outside=0.0), ColourScorer())  # type: ignore[arg-type]
    image, masks = scene()
    assert len(segmenter.settings.other_nouns) == 3  # a noun among the other nouns is not its own rival
    proposals = [{"segmentation": mask} for mask in masks.values()] + [{"segmentation": np.zeros_like(masks["grass"])}]
    segmenter.proposer = SimpleNamespace(generate=lambda _: proposals)  # type: ignore[assignment]
    red, blue = (segmenter.segment([image], noun)[0] for noun in ("red square", "blue square"))
    np.testing.assert_array_equal(red, masks["red 1"] | masks["red 2"])
    np.testing.assert_array_equal(blue, masks["blue"])


def test_no_mask_shows_the_noun(folder: Path) -> None:
    segmenter = Segmenter(Settings(model=str(folder), other_nouns=["grass"]), ColourScorer())  # type: ignore[arg-type]
    image, masks = scene()
    for proposals in ([{"segmentation": masks["grass"]}], []):
        segmenter.proposer = SimpleNamespace(generate=lambda _, found=proposals: found)  # type: ignore[assignment]
        mask = segmenter.segment([image], "red square")[0]
        assert mask.dtype == bool and mask.shape == image.shape[:2] and not mask.any()


def test_the_real_proposer_runs(folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    every = Settings(model=str(folder), points_per_side=2, other_nouns=["grass"], min_predicted_iou=-1e9, min_stability=0.0)
    none = Settings(model=str(folder), points_per_side=2, other_nouns=["grass"], min_predicted_iou=1e9)
    masks = Segmenter(every, ColourScorer()).proposer.generate(image)  # type: ignore[arg-type]
    assert masks and all(mask["segmentation"].shape == (48, 80) for mask in masks)
    assert not Segmenter(none, ColourScorer()).segment([image], "red square")[0].any()  # type: ignore[arg-type]


def test_the_crop_shows_the_mask_and_fades_the_rest() -> None:
    image, masks = scene()
    crop = masked_crop(image, masks["red 2"], margin=0.1, outside=0.25)
    assert crop.shape == (12, 12, 3)
    assert (crop[1:11, 1:11] == [255, 0, 0]).all()
    assert (crop[0] == np.round(0.25 * np.array([0, 255, 0]) + 0.75 * 128)).all()
    corner = np.zeros((40, 60), bool)
    corner[:4, :8] = True
    beyond = masked_crop(
        image, corner, margin=0.25, outside=1.0
    )  # the box is 8 wide: 12 with its margins, 4 rows of them above the picture
    assert beyond.shape == (12, 12, 3) and (beyond[:4] == 128).all() and (beyond[:, :2] == 128).all()
    np.testing.assert_array_equal(beyond[4:, 2:], image[:8, :10])


def test_registered_model_reads_plain_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sam_model_registry", {"vit_b": tiny_sam})
    weights, bad, trap = tmp_path / "sam.pth", tmp_path / "bad.pth", tmp_path / "trap.pth"
    state = tiny_sam().state_dict()
    torch.save(state, weights)
    loaded = load_sam(Settings(model="vit_b", checkpoint=str(weights))).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    torch.save(dict(list(state.items())[:-1]), bad)
    with pytest.raises(UserError, match="does not fit"):
        load_sam(Settings(model="vit_b", checkpoint=str(bad)))

    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    trap.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="not a plain PyTorch checkpoint"):
        load_sam(Settings(model="vit_b", checkpoint=str(trap)))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        (Settings(model="vit_h"), "sam_vit_h"),
        (Settings(model="no/such/folder"), "vit_h, vit_l, vit_b"),
        (Settings(model="vit_x"), "config.json"),
    ],
)
def test_what_is_missing_is_named(settings: Settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sam(settings)
