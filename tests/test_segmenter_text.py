"""models/segmenter_text.py with tiny random Grounding DINO and SAM 2 models, directly and through
filter/run.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import filter.run as stage
from configs.errors import UserError
from configs.loader import load
from configs.runs import run_dir
from configs.schema import Segmenter as Settings
from filter.score_table import read_scores
from models import segmenter_text
from models.segmenter_text import TextSegmenter
from scripts.published.judges import write_grounding_dino, write_sam2
from tests.helpers import make_pairs, make_scorer_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """detector/ and drawer/ with random weights, as they are published: SAM 2.1 as a video model."""
    folder = tmp_path_factory.mktemp("text")
    write_grounding_dino(folder / "detector", small=True)
    write_sam2(folder / "drawer", small=True)
    assert json.loads((folder / "drawer" / "config.json").read_text())["model_type"] == "sam2_video"
    return folder


def settings(folder: Path) -> Settings:
    return Settings(model=str(folder / "drawer"), detector=str(folder / "detector"))


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    sizes = ((48, 80, 3), (64, 64, 3), (80, 48, 3))
    return [generator.integers(0, 256, size, dtype=np.uint8) for size in sizes]


def test_a_batch_is_its_pictures_one_by_one_with_the_library(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes of unlike number are drawn together.

    Each mask is the union of those that SAM 2 draws for the picture's own boxes.
    """
    images = pictures()
    segmenter = TextSegmenter(settings(folder), "cpu")
    inputs = segmenter.detector_processor(images=images, text=["tree."] * 3, return_tensors="pt")
    with torch.no_grad():
        scores_BQ = segmenter.detector(**inputs).logits.sigmoid().amax(-1)
    limit = float(scores_BQ.flatten().sort().values[6]) + 1e-5  # 8 of the 15 boxes
    monkeypatch.setattr(segmenter_text, "MIN_BOX_SCORE", limit)
    boxes_by_image = segmenter.find(images, "tree")
    counts = [len(boxes) for boxes in boxes_by_image]
    assert counts == (scores_BQ > limit).sum(1).tolist()
    assert sum(counts) == 8 and len(set(counts)) > 1
    masks = segmenter.segment(images, "Tree.")  # the noun as a user may write it
    for image, mask, boxes in zip(images, masks, boxes_by_image, strict=True):
        wanted = np.zeros(image.shape[:2], bool)
        for box in boxes:
            inputs = segmenter.drawer_processor(images=image, input_boxes=[[box]], return_tensors="pt")
            with torch.no_grad():
                drawn = segmenter.drawer(**inputs, multimask_output=False).pred_masks
            shown = segmenter.drawer_processor.post_process_masks(drawn, inputs["original_sizes"])
            wanted |= shown[0][0, 0].numpy()
        assert mask.dtype == bool and mask.shape == image.shape[:2]
        assert (mask != wanted).mean() < 0.01


def test_nothing_found_is_an_empty_mask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter_text, "MIN_BOX_SCORE", 1.1)
    masks = TextSegmenter(settings(folder), "cpu").segment(pictures(), "tree")
    assert [mask.shape for mask in masks] == [(48, 80), (64, 64), (80, 48)]
    assert not any(mask.any() for mask in masks)


def test_through_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        f"runs_dir={tmp_path}",
        f"scorer.model=local-dir:{make_scorer_folder(tmp_path / 'scorer')}",
        f"segmenter.model={folder / 'drawer'}",
        f"segmenter.detector={folder / 'detector'}",
        "task.source_noun=tree",
        "task.target_noun=snowy tree",
        "task.overlap=0.5",
        "task.clip_gain=null",
    ]
    config = load(arguments)
    make_pairs(run_dir(config) / "pairs", (3,))
    monkeypatch.setattr(segmenter_text, "MIN_BOX_SCORE", 0.0)
    assert stage.main(arguments) == 0
    for row in read_scores(config):
        assert 0 < row["area_input"] <= 1 and 0 <= row["overlap_iou"] <= 1
        assert row["flags"] == []
    capsys.readouterr()
    monkeypatch.setattr(segmenter_text, "MIN_BOX_SCORE", 1.1)
    resaved = tmp_path / "detector"
    shutil.copytree(folder / "detector", resaved)
    arguments.append(f"segmenter.detector={resaved}")
    assert stage.main(arguments) == 0  # scored again: another segmenter
    assert "3 no_foreground_input, 3 no_foreground_edit" in capsys.readouterr().out
    assert {(row["area_input"], row["overlap_iou"]) for row in read_scores(config)} == {(0.0, None)}
    selection = json.loads((run_dir(config) / "selection.json").read_text())
    assert set(selection["dropped"].values()) == {"no foreground"}
    assert stage.main([*arguments, "segmenter.detector=/no/such/folder"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "segmenter.detector=/no/such/folder: there is no such folder" in error
    assert "it is a Grounding DINO, as IDEA-Research/grounding-dino-base" in error


def test_weights_that_are_not_all_there_are_refused(folder: Path, tmp_path: Path) -> None:
    """transformers itself would fill them with random numbers and go on."""
    for file in (folder / "drawer").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 of .* mask_decoder.iou_token.weight"):
        TextSegmenter(Settings(model=str(tmp_path), detector=str(folder / "detector")), "cpu")
    with pytest.raises(
        UserError, match="segmenter.model=/nowhere: there is no such folder .*facebook/sam2.1-hiera-large"
    ):
        TextSegmenter(Settings(model="/nowhere", detector=str(folder / "detector")), "cpu")
