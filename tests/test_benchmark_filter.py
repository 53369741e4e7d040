"""scripts/benchmark.py filter: the plain use of the libraries gives the scores that the batches
give, so their times can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import segment_anything

from configs.loader import load
from filter.scores import PairScorer
from models.clip_scorer import ClipScorer
from models.perceptual import perceptual_loss
from models.segmenter import Proposals, Segmenter
from scripts import benchmark
from scripts.measure import case_filter
from scripts.measure.case_filter import scene_pairs
from scripts.measure.plain_scorer import PlainScorer
from tests.helpers import make_scorer_folder, tiny_sam

SMALL = ["segmenter.points_per_side=5", "benchmark.pairs=2", "filter.batch=2", "device=cpu"]


def test_the_plain_scores_are_the_filters() -> None:
    """The library's preprocessing, automatic masks, crops in numpy and lpips, one picture at a
    time, with the miniature's weights.
    """
    config = load(["task=oak2pine", *SMALL])
    scorer, perceptual = ClipScorer(config.scorer), perceptual_loss()
    pairs = scene_pairs(3, 128)
    segmenter = Segmenter(config.segmenter, scorer)
    ours, plain = (
        PairScorer(config, scorer.device)(pairs),
        PlainScorer(config, scorer, segmenter, perceptual),
    )
    generate = (
        plain.generator.generate
    )  # the library gives boxes as floats where some of the points have no mask
    plain.generator.generate = lambda image: [
        found | {"bbox": [float(side) for side in found["bbox"]]} for found in generate(image)
    ]
    for row, pair in enumerate(pairs):
        found = plain(pair)
        assert found.pop("overlap_iou") == pytest.approx(ours["overlap_iou"][row], abs=0.02)
        assert ours["clip_gain"][row] == pytest.approx(
            found.pop("clip_gain"), abs=0.01
        )  # Pillow rounds to whole levels on the way
        assert {name: ours[name][row] for name in found} == pytest.approx(found, rel=1e-3)
    assert any(ours["overlap_iou"])


def test_the_table_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["filter", *SMALL, f"json={tmp_path}/found.json"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    printed = capsys.readouterr().out
    assert (
        found["benchmark"] == "filter" and "masks a picture" in found["settings"] and len(found["rows"]) == 2
    )
    assert (
        found["ratio"] == found["rows"]["ours, batches of 2"]["ratio"] > 0
        and "| plain, one picture at a time |" in printed
    )


@pytest.mark.parametrize("reduced", [False, True])
def test_the_real_size_needs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reduced: bool
) -> None:
    """With small stand-ins for the two networks: both ways are timed on the same number of masks, also
    where ours is computed in bfloat16, as on a GPU.
    """
    name = f"local-dir:{make_scorer_folder(tmp_path)}"
    model, tokenizer = open_clip.create_model(name), open_clip.get_tokenizer(name)
    asked = []
    monkeypatch.setattr(
        open_clip, "create_model", lambda kind, pretrained, **_: asked.append((kind, pretrained)) or model
    )
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda kind: tokenizer)
    monkeypatch.setattr(case_filter, "SIDE", 96)
    monkeypatch.setattr(case_filter, "BLOCKS", 4)
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_h", tiny_sam)
    found = []
    propose = Segmenter.propose

    def counted(self: Segmenter, images: Sequence[np.ndarray]) -> Iterator[Proposals]:
        for proposals in propose(self, images):
            found.append(len(proposals.mask_MHW))
            yield proposals

    monkeypatch.setattr(Segmenter, "propose", counted)
    initialise = PairScorer.__init__

    def reducing(self: PairScorer, *given: Any) -> None:
        initialise(self, *given)
        self.reduced = reduced

    monkeypatch.setattr(PairScorer, "__init__", reducing)
    assert benchmark.main(["filter", "benchmark.architecture=vit_h", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert asked == [("ViT-L-14", None)] and "SAM ViT-H, CLIP ViT-L-14, random weights, 96 x 96" in printed
    assert "16 masks a picture" in printed and set(found) == {16}
