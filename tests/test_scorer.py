"""models/clip_scorer.py against open_clip's own preprocessing and encoders, with a tiny randomly
initialised model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from configs.schema import Scorer
from models import clip_scorer, hub
from models.clip_scorer import ClipScorer
from tests.helpers import make_scorer_folder


@pytest.fixture
def settings(tmp_path: Path) -> Scorer:
    return Scorer(model=f"local-dir:{make_scorer_folder(tmp_path / 'scorer')}", pretrained="")


def smooth_images(count: int, high: int, wide: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    coarse = [Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8)) for _ in range(count)]
    return [np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC)) for image in coarse]


@pytest.mark.parametrize(
    "high, wide, resize_mode", [(96, 96, "shortest"), (50, 80, "shortest"), (20, 24, "squash")]
)
def test_image_features_are_open_clips(tmp_path: Path, high: int, wide: int, resize_mode: str) -> None:
    name = f"local-dir:{make_scorer_folder(tmp_path / 'scorer', resize_mode=resize_mode)}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    images = smooth_images(3, high, wide)
    with torch.no_grad():
        pixels_BCHW = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        expected_BD = model.eval().encode_image(pixels_BCHW)
    expected_BD = expected_BD / expected_BD.norm(dim=1, keepdim=True)
    features_BD = ClipScorer(Scorer(model=name, pretrained=""), "cpu").image_features(images)
    assert features_BD.norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)
    # Pillow rounds to whole grey levels, the tensor resize does not.
    assert (features_BD * expected_BD).sum(dim=1).min() > 0.9999


def test_tensors_arrays_and_mixed_sizes_agree(settings: Scorer) -> None:
    scorer = ClipScorer(settings)
    images = smooth_images(2, 48, 48)
    images_BCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    features_BD = scorer.image_features(images)
    torch.testing.assert_close(scorer.image_features(images_BCHW), features_BD)
    mixed_BD = scorer.image_features([images[0], smooth_images(1, 40, 64)[0], images[1]])
    torch.testing.assert_close(mixed_BD[[0, 2]], features_BD, rtol=1e-5, atol=1e-5)


def test_many_pictures_go_through_in_parts(settings: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = ClipScorer(settings)
    images = smooth_images(5, 48, 48)
    expected_BD = scorer.image_features(images)
    sizes = []
    encode = scorer.model.encode_image
    monkeypatch.setattr(clip_scorer, "IMAGES_TOGETHER", 2)
    monkeypatch.setattr(
        scorer.model,
        "encode_image",
        lambda pixels_BCHW: sizes.append(len(pixels_BCHW)) or encode(pixels_BCHW),
    )
    torch.testing.assert_close(scorer.image_features(images), expected_BD, rtol=1e-5, atol=1e-5)
    assert sizes == [2, 2, 1]


def test_text_features_average_the_templates(settings: Scorer) -> None:
    scorer = ClipScorer(settings, templates=["a photo of {}", "{}"])
    with torch.no_grad():
        sentence_TD = scorer.model.encode_text(scorer.tokenizer(["a photo of a tree {}", "a tree {}"]))
    sentence_TD = sentence_TD / sentence_TD.norm(dim=1, keepdim=True)
    mean_D = sentence_TD.mean(dim=0)
    features_ND = scorer.text_features(["a house", "a tree {}"])  # braces in a text stay as they are
    assert features_ND.shape == (2, 16)
    torch.testing.assert_close(features_ND[1], mean_D / mean_D.norm())
    assert scorer.logit_scale == pytest.approx(1 / 0.07)


def test_openai_weights_get_their_own_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's ViT-L-14 was trained with QuickGELU; open_clip builds it with GELU unless told."""
    monkeypatch.setattr(clip_scorer, "_fetched", lambda settings, tag: Path("clip.safetensors"))
    assert clip_scorer.find_checkpoint(Scorer()).quick_gelu is True
    laion = Scorer(model="ViT-B-32", pretrained="laion2b_s34b_b79k")
    assert clip_scorer.find_checkpoint(laion).quick_gelu is False


def test_without_a_network_one_line_says_how_to_fetch_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_scorer, "is_reached", lambda url: False)
    monkeypatch.setattr(hub, "is_reached", lambda url: False)
    with pytest.raises(UserError, match=r"hf download \S+ --local-dir clip; .*local-dir:clip") as caught:
        ClipScorer(Scorer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        (Scorer(model="local-dir:no/such/folder", pretrained=""), "open_clip_config.json"),
        (Scorer(model="ViT-Z-99"), "no such model"),
        (Scorer(model="ViT-B-32", pretrained=""), "randomly initialised"),
        (Scorer(model="ViT-B-32", pretrained="no_such_file.pt"), "scorer.pretrained=FILE"),
    ],
)
def test_what_is_missing_is_named(settings: Scorer, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClipScorer(settings)


class Code:
    """What runs code where an unpickler is let to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_carries_code_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save({"weight": Code(tmp_path / "ran")}, tmp_path / "clip.pt")
    with pytest.raises(UserError, match="cannot be loaded"):
        ClipScorer(Scorer(model="ViT-B-32", pretrained=str(tmp_path / "clip.pt")))
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_is_refused(settings: Scorer) -> None:
    (Path(settings.model.removeprefix("local-dir:")) / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="weights are needed"):
        ClipScorer(settings)
