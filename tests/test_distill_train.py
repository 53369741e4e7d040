"""distill/train.py on synthetic pairs: exact resume, what stops it, what it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from configs.loader import load
from distill import checkpoints
from distill.train import main, train
from tests.test_distill_pairs import make_pairs

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "teacher.resolution=16", "generator.channel_base=64", "generator.channel_max=8", "generator.z_dim=8", "generator.w_dim=8",
    "generator.code_dim=16", "generator.mapping_layers=2", "distill.batch=4", "distill.workers=0", "distill.validation_share=0.1",
    "distill.warmup_images=8", "distill.ema_half_life_images=16", "distill.lpips_crop=0",
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    make_pairs(tmp_path / "tree2winter" / "miniature")
    return tmp_path / "tree2winter" / "miniature"


def arguments(run: Path, *more: str) -> list[str]:
    return [f"runs_dir={run.parents[1]}", "distill.init=", "distill.lr=0.001", *TINY, *more]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {f"{name}/{key}": value for name in checkpoints.FILES for key, value in load_file(checkpoint / f"{name}.safetensors").items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


@pytest.mark.parametrize("latent", ["fixed", "sampled"])
def test_half_and_resume_equal_the_whole_bit_for_bit(tmp_path, latent):
    results = []
    for name, lengths in (("whole", [32]), ("halves", [16, 32])):
        run = tmp_path / name / "tree2winter" / "miniature"
        make_pairs(run)
        for images in lengths:
            path = train(load(arguments(run, f"distill.images={images}", "distill.lpips_crop=16", f"distill.latent={latent}")))
        results.append(weights(path))
        assert path.name == "000000032"
        logged = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
        assert [line["images"] for line in logged if line["kind"] == "validation"] == lengths
    assert_same(*results)


def test_it_learns_and_shows_what(run):
    simple = ["distill.lr=0.01", "distill.lpips=0", "augment.crop=1", "augment.flip=0"]
    assert main(arguments(run, *simple, "distill.images=160", "distill.save_every_images=80")) == 0
    logged = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    first, last = (line for line in logged if line["kind"] == "validation")
    assert last["l1"] < first["l1"] and last["psnr"] > first["psnr"]
    with Image.open(run / "train" / "samples" / "000000160.png") as sheet:
        assert sheet.width == 3 * 16
    assert "channel_base: 64" in (run / "train" / "config.yaml").read_text()
    assert [path.name for path in checkpoints.saved(run / "train" / "checkpoints")] == ["000000080", "000000160"]


def test_the_average_follows_the_weights(run):
    """One step: the half-life is a twentieth of the 4 images seen, so 2^-20 of the first weights is left."""
    path = train(load(arguments(run, "distill.images=4")))
    ema, generator = (load_file(path / f"{name}.safetensors") for name in ("ema", "generator"))
    for name, value in generator.items():
        torch.testing.assert_close(ema[name], value, rtol=1e-4, atol=1e-5)


def test_not_finite_stops_before_the_update(run, capsys):
    path = train(load(arguments(run, "distill.images=8")))
    before = weights(path)
    assert main(arguments(run, "distill.images=16", "distill.l1=.inf", "force=true")) == 2
    assert "step 2: the loss or its gradient is not finite" in capsys.readouterr().err
    assert_same(weights(checkpoints.newest(path.parent).path), before)
    found = json.loads((run / "train" / "nonfinite.json").read_text())
    assert found["step"] == 2 and found["images"] == 8 and len(found["keys"]) == 4 and all(key.startswith("k") for key in found["keys"])


def test_a_changed_configuration_is_refused_unless_forced(run, capsys):
    assert main(arguments(run, "distill.images=4")) == 0
    assert main(arguments(run, "distill.images=8", "distill.lr=0.5")) == 2
    assert "distill.lr: 0.001 -> 0.5" in capsys.readouterr().err
    assert main(arguments(run, "distill.images=8", "distill.lr=0.5", "force=true")) == 0
    assert "distill.lr: 0.001 -> 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("distill.dtype=float16", "float32 or bfloat16"),
        ("distill.latent=random", "fixed or sampled"),
        ("distill.batch=0", "1 or more"),
        ("teacher.resolution=32", "teacher.resolution=32"),
        ("distill.init=nothing.safetensors", "nothing.safetensors"),
        ("distill.learning_rate=1", "no key"),
    ],
)
def test_wrong_values_say_so(run, capsys, wrong, said):
    assert main(arguments(run, "distill.images=4", wrong)) == 2
    assert said in capsys.readouterr().err


def test_dry_run_tells_the_plan_and_writes_nothing(run, capsys):
    assert main([*arguments(run), "--dry-run"]) == 0
    assert "pairs selected: 12" in capsys.readouterr().out
    assert not (run / "train").exists()


def test_two_processes_equal_one(tmp_path):
    """The same updates, up to the order of summation, where nothing is drawn by the process."""
    still = [f"augment.{key}=0" for key in ("flip", "brightness", "contrast", "saturation", "hue", "noise")]
    common = [*still, "augment.crop=1", "generator.dropout=0", "distill.lpips=0", "distill.images=12"]
    results = []
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])):
        run = tmp_path / name / "tree2winter" / "miniature"
        make_pairs(run)
        command = [sys.executable, *launcher, str(ROOT / "distill" / "train.py"), *arguments(run, *common)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        results.append(weights(run / "train" / "checkpoints" / "000000012"))
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        if key.startswith("generator/"):
            torch.testing.assert_close(results[1][key], value, rtol=1e-3, atol=2e-4)


def test_sigterm_leaves_nothing_torn(run):
    command = [sys.executable, str(ROOT / "distill" / "train.py"), *arguments(run, "distill.images=100000", "distill.save_every_images=4")]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    validations = 0
    for line in process.stdout:
        validations += "held-out" in line
        if validations == 2:  # the second checkpoint is about to be written
            break
    process.terminate()
    assert process.wait(timeout=60) == 143
    folder = run / "train" / "checkpoints"
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    for path in checkpoints.saved(folder):
        assert checkpoints._read(path).state["images"] == int(path.name)
