"""What a run takes on a CPU: the batch by free memory, the hours by arithmetic, known before they pass."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.loader import load
from configs.schema import Guidance
from generate import batch_size, progress, run
from generate.batch_size import largest_batch, slow_on_cpu, unet_operations, unet_rows_a_step
from generate.editors import Edited
from generate.progress import told
from generate.shards import read_pairs
from models import devices
from scripts.published.stable_diffusion import MODELS, unet, vae

GIGABYTE = 10**9


class CpuEditor:
    """One whose pairs need no memory of their own."""

    teacher = SimpleNamespace(device=torch.device("cpu"), resolution=8)
    guidance = Guidance()

    def shortened(self, steps):
        return self

    def __call__(self, images, captions, keys, reconstruct):
        return Edited({"edit": images}, {}, {})


class Peak:
    """Says that a pair took 6 GB."""

    bytes = 6 * GIGABYTE

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    ("free", "most", "expected"), [(20, 64, 3), (200, 64, 16), (200, 5, 5), (3, 64, 1), (20, 1, 1)]
)
def test_a_cpu_s_batch_is_what_its_free_memory_holds(monkeypatch, capsys, free, most, expected):
    """Of 6 GB a pair in nine tenths of what is free."""
    monkeypatch.setattr(batch_size, "free_memory", lambda: free * GIGABYTE)
    monkeypatch.setattr(batch_size, "PeakMemory", Peak)
    assert largest_batch(CpuEditor(), most) == expected
    assert ("warning: a pair takes 6.0 GB, and 2.7 GB were free" in capsys.readouterr().out) == (free == 3)


def test_the_peak_of_a_block_is_what_it_held():
    with devices.PeakMemory() as peak:
        held = np.ones(30_000_000)  # 240 MB
        del held
    assert 200e6 < peak.bytes < 300e6


def test_a_container_s_limit_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    used = tmp_path / "memory.current"
    monkeypatch.setattr(devices, "CONTROL_GROUP_FILES", ((limit, used),))
    unlimited = devices.free_memory()
    used.write_text("4000\n")
    limit.write_text("max\n")
    assert abs(devices.free_memory() - unlimited) < GIGABYTE
    limit.write_text("10000\n")
    assert devices.free_memory() == 6000


def test_the_arithmetic_of_stable_diffusions_unet():
    """401.6 G multiply-adds at 64 x 64 latents, as published counts have it."""
    config = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    assert unet_operations(config, 64) == pytest.approx(2 * 401.6e9, rel=0.001)


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        # inversion, reference, two of the edit; a forward pass for the maps and a backward one, which is two
        ([], 1 + 1 + 2 + 3),
        # and a fifth of the reference, whose self-attention the edit takes so long
        (["guidance.maps=inversion"], 1 + 0.2 + 2 + 3),
        (["edit.method=D"], 1 + 2),
        (["guidance.until=0.5", "guidance.every=2", "guidance.scale_until=0.25"], 1 + 1 + 1.25 + 0.75),
        (["edit.method=A"], 2),
    ],
)
def test_what_a_step_sends_through_the_unet(arguments, rows):
    config = load(["generate.save_reconstruction=false", *arguments])
    assert unet_rows_a_step(config) == pytest.approx(rows)


@pytest.fixture
def described(tmp_path):
    """A folder with Stable Diffusion 1.4's configurations and no weights; arguments that name it."""
    with torch.device("meta"):
        for name, network in {"unet": unet(MODELS["sd14"]), "vae": vae(MODELS["sd14"])}.items():
            network.save_config(tmp_path / "sd14" / name)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.png").touch()
    return [
        "task=cat2dog",
        "preset=paper",
        "teacher=diffusers",
        "device=cpu",
        f"teacher.path={tmp_path / 'sd14'}",
        f"source.images={photos}",
        f"runs_dir={tmp_path / 'runs'}",
    ]


def test_a_cpu_is_told_the_hours_before_anything_is_loaded(described, monkeypatch, capsys):
    monkeypatch.setattr(batch_size, "operations_a_second", lambda: 100e9)
    run._tell_of_float32.cache_clear()
    # 100 steps of 7 rows of .8 TFLOP at 30 GFLOP a second
    hours = 100 * 7 * 803.27 / 30 / 3600
    assert f"about {hours:.1f} hours a pair on this CPU, {2 * hours:.0f} hours for 2" in slow_on_cpu(
        load(described), 2
    )
    assert run.main([*described, "--dry-run", "--time"]) == 0
    printed = capsys.readouterr().out
    assert f"about {hours:.1f} hours a pair" in printed and "take a GPU" in printed
    assert "this CPU computes in float32" in printed
    assert run.made_with(run.for_this_device(load(described)))["generate.dtype"] == "float32"


def test_the_miniature_is_not_slow():
    assert slow_on_cpu(load([]), 48) == ""


def test_a_side_that_the_vae_has_not_is_refused_at_once(described, capsys):
    for more in ([], ["--dry-run"]):
        assert run.main([*described, "teacher.resolution=100", *more]) == 2
        assert "teacher.resolution=100: this teacher's images have a multiple of 8" in capsys.readouterr().err


@pytest.mark.parametrize(("side", "expected"), [(512, 512), (768, 512), (130, 128)])
def test_the_generator_trains_at_a_power_of_two(side, expected):
    from configs.runs import training_side

    assert training_side(load([f"teacher.resolution={side}"])) == expected
    assert training_side(load([f"teacher.resolution={side}", "distill.resolution=64"])) == 64


def test_a_caption_that_is_cut_is_counted_and_kept_with_what_was_read(tiny_run, tiny_teacher, capsys):
    caption = "a photo of a tree in summer " * 40
    assert run.main([*tiny_run, f"source.caption={caption}", "generate.pairs=3"]) == 0
    assert f"3 of 3 captions have more than {tiny_teacher.most_tokens} tokens" in capsys.readouterr().out
    folder = run.pairs_dir(load(tiny_run))
    for pair in read_pairs(folder):
        read = pair.record["caption_read"]
        assert pair.record["caption"] == caption and caption.startswith(read) and len(read) < len(caption)
        assert torch.equal(tiny_teacher.embed([read]), tiny_teacher.embed([caption]))


def test_a_long_pass_tells_its_steps(monkeypatch, capsys):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    for _ in told("inversion", range(100)):
        clock.now += 6
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "    inversion: step 2 of 100, 6.0 s a step, 9.8 min left of it"
    assert len(lines) == 50
    for _ in told("edit", range(100)):
        clock.now += 0.05
    assert capsys.readouterr().out == ""
