"""Inputs to pairs: the largest batch, the time estimate, the safety checker, what is not finite, the log."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.loader import load
from configs.runs import pairs_dir
from configs.schema import Generate, Guidance
from generate import batch_size, run
from generate.batch_size import largest_batch, seconds_a_pair
from generate.directions import EditDirection
from generate.editors import Edited, Editor
from generate.pairs import PairMaker
from generate.shards import finished_shards, read_manifest, read_pairs
from generate.sources import InputImage


class GpuEditor:
    """An editor on a GPU that holds `most` pairs and fills a hundredth of its memory with each."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.tried = []
        self.teacher = SimpleNamespace(device=torch.device("cuda"), resolution=8)
        self.guidance = Guidance()

    def shortened(self, steps):
        return self

    def __call__(self, images, captions, keys, reconstruct):
        self.tried.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        return Edited({"edit": images}, {}, {})


@pytest.mark.parametrize(
    ("most", "limit", "expected"), [(20, 1000, 16), (1000, 1000, 64), (5, 3, 3), (12, 12, 12), (0, 8, 1)]
)
def test_the_largest_batch_is_found_by_trying(monkeypatch, most, limit, expected):
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: editor.tried[-1])
    editor = GpuEditor(most)
    assert largest_batch(editor, limit) == expected


def test_memory_that_is_nearly_full_is_too_full(monkeypatch):
    test_the_largest_batch_is_found_by_trying(monkeypatch, 1000, 1000, 64)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 95 if editor.tried[-1] > 4 else 10)
    editor = GpuEditor(1000)
    assert largest_batch(editor, 1000) == 4


def test_the_estimate_extends_a_few_steps_to_all(monkeypatch):
    """Steps of 2 s after 3 s that every batch takes: (3 + 10 x 2) / 4."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(batch_size.time, "perf_counter", lambda: clock.now)

    class Timed(GpuEditor):
        steps = 0

        def shortened(self, steps):
            self.steps = steps
            return self

        def __call__(self, *inputs):
            clock.now += 3 + 2 * self.steps
            return super().__call__(*inputs)

    assert seconds_a_pair(Timed(100), 4, 10) == pytest.approx((3 + 10 * 2) / 4)


def test_dry_run_says_how_long(tiny_run, capsys):
    assert run.main([*tiny_run, "--dry-run", "--time"]) == 0
    assert "time for the rest, about:" in capsys.readouterr().out
    assert run.main([*tiny_run, "--dry-run", "--time", "teacher.path=nowhere"]) == 0
    assert "unknown (teacher.path=nowhere" in capsys.readouterr().out


def image(key):
    return InputImage(key, np.zeros((32, 32, 3), np.uint8), "a tree", "task.caption", {"id": key})


def test_an_edit_that_is_not_finite_is_an_error(tiny_teacher):
    editor = Editor(
        tiny_teacher, EditDirection(torch.full((1, 32, 32), torch.nan), "", ""), load(["edit.steps=2"])
    )
    maker = PairMaker(editor, Generate(batch=2), None, {})
    source = SimpleNamespace(load=lambda index: image(f"tree-{index}"), names=range(2))
    with pytest.raises(
        UserError, match="tree-0: the edit is not finite in generate.dtype=float16; take bfloat16 or float32"
    ):
        list(maker.pairs(source, range(2), [], lambda count: None))


def safe_teacher(folder, threshold):
    """The tiny teacher with a safety checker that flags all above a cosine: -2 everything, 2 nothing."""
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**small, "image_size": 32, "patch_size": 16, "projection_dim": 8},
        text_config=small,
        projection_dim=8,
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(2.0)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.register_modules(safety_checker=checker, feature_extractor=processor)
    return pipeline


@pytest.mark.parametrize(
    ("threshold", "checked", "kept"), [(-2.0, "true", 0), (2.0, "true", 5), (-2.0, "false", 5)]
)
def test_what_the_safety_checker_flags_is_left_out_and_counted(
    tiny_run, tiny_teacher_folder, tmp_path, capsys, threshold, checked, kept
):
    safe_teacher(tiny_teacher_folder, threshold).save_pretrained(tmp_path / "safe")
    arguments = [*tiny_run, f"teacher.path={tmp_path}/safe", f"generate.safety_checker={checked}"]
    assert run.main(arguments) == 0  # a flagged edit is no unreadable image: it is never an error
    printed = capsys.readouterr().out
    assert ("5 of 5 edits were flagged by the safety checker and were left out" in printed) == (kept == 0)
    pairs = list(read_pairs(pairs_dir(load(arguments))))
    assert len(pairs) == kept and all(pair.images["edit"].any() for pair in pairs)
    left_out = []
    for shard in finished_shards(pairs_dir(load(arguments))):
        left_out += read_manifest(shard)["left_out"]
    assert [item["why"] for item in left_out] == ["flagged"] * (5 - kept)


def test_a_line_a_shard_in_the_log(tiny_run):
    assert run.main(tiny_run) == 0
    lines = (pairs_dir(load(tiny_run)) / "log.txt").read_text().splitlines()
    assert [line.split()[2:5] for line in lines] == [
        ["000000.tar:", "2", "pairs,"],
        ["000001.tar:", "2", "pairs,"],
        ["000002.tar:", "1", "pairs,"],
    ]
