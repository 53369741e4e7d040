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
import transformers
from safetensors.torch import load_file, save_file

import filter.run as stage
from configs.errors import UserError
from configs.loader import load
from configs.runs import run_dir
from configs.schema import Segmenter as Settings
from filter.score_table import read_scores
from models import segmenter_text
from models.segmenter_text import TextSegmenter
from tests.helpers import make_pairs, make_scorer_folder

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "tree", "snowy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """detector/ and drawer/ as save_pretrained writes them, with random weights."""
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_indices=[2, 3, 4],
    )
    words = transformers.BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    layers = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {"ffn_dim": 16, "attention_heads": 2}.items()
    }
    dino = transformers.GroundingDinoConfig(
        backbone_config=swin,
        text_config=words,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        d_model=32,
        max_text_len=16,
        **layers,
    )
    transformers.GroundingDinoForObjectDetection(dino).save_pretrained(folder / "detector")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    shrink = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    transformers.GroundingDinoProcessor(shrink, tokenizer).save_pretrained(folder / "detector")
    hiera = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    sides = [[16, 16], [8, 8], [4, 4]]
    vision = transformers.Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=sides,
        fpn_hidden_size=16,
    )
    prompts = transformers.Sam2PromptEncoderConfig(
        hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4
    )
    decoder = transformers.Sam2MaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16
    )
    whole = transformers.Sam2Config(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    transformers.Sam2Model(whole).save_pretrained(folder / "drawer")
    resize = transformers.Sam2ImageProcessorFast(
        size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16}
    )
    transformers.Sam2Processor(resize).save_pretrained(folder / "drawer")
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
