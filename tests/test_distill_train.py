"""distill/train.py on synthetic pairs: exact resume, what stops it, what it writes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from configs.loader import load
from distill import checkpoints
from distill import train as train_module
from distill.runlog import read_metrics
from distill.state import TrainingState
from distill.train import main, train
from tests.helpers import make_selected_pairs, tiny_training

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path):
    make_selected_pairs(tmp_path / "tree2winter" / "miniature")
    return tmp_path / "tree2winter" / "miniature"


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.stem}/{key}": value
        for file in checkpoint.glob("*.safetensors")
        for key, value in load_file(file).items()
    }


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


ADVERSARY = ["distill.adversarial=0.1", "distill.r1_every=3"]


@pytest.mark.parametrize("options", [["distill.latent=fixed"], ["distill.latent=sampled"], ADVERSARY])
def test_half_and_resume_equal_the_whole_bit_for_bit(tmp_path, options):
    results = []
    for name, lengths in (("whole", [32]), ("halves", [16, 32])):
        run = tmp_path / name / "tree2winter" / "miniature"
        make_selected_pairs(run)
        for images in lengths:
            path = train(
                load(tiny_training(run, f"distill.images={images}", "distill.lpips_crop=16", *options))
            )
        results.append(weights(path))
        assert any(key.startswith("discriminator/") for key in results[-1]) == (options is ADVERSARY)
        assert path.name == "000000032"
        logged = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
        assert [line["images"] for line in logged if line["kind"] == "validation"] == lengths
    assert_same(*results)


@pytest.mark.parametrize(
    "more", [[], [*ADVERSARY, "distill.adversarial=0.01"], ["generator=comodgan_lite", "generator.width=1"]]
)
def test_it_learns_and_shows_what(run, more):
    simple = ["distill.lr=0.01", "distill.lpips=0", "augment.crop=1", "augment.flip=0", *more]
    assert main(tiny_training(run, *simple, "distill.images=160", "distill.save_every_images=80")) == 0
    logged = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    first, last = (line for line in logged if line["kind"] == "validation")
    assert last["l1"] < first["l1"] and last["psnr"] > first["psnr"]
    progress = [line for line in logged if line["kind"] == "train"][-1]
    assert 0 <= progress["data_wait_share"] <= 1 and ("discriminator" in progress) == (
        "adversarial" in progress
    ) == (ADVERSARY[1] in more)
    with Image.open(run / "train" / "samples" / "000000160.png") as sheet:
        assert sheet.width == 3 * 16
    assert "channel_base: 128" in (run / "train" / "config.yaml").read_text()
    assert [path.name for path in checkpoints.saved(run / "train" / "checkpoints")] == [
        "000000080",
        "000000160",
    ]


def test_the_average_follows_the_weights(run):
    """One step: the half-life is a twentieth of the 4 images seen, so 2^-20 of the first weights is left."""
    path = train(load(tiny_training(run, "distill.images=4")))
    ema, generator = (load_file(path / f"{name}.safetensors") for name in ("ema", "generator"))
    for name, value in generator.items():
        torch.testing.assert_close(ema[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["distill.l1=.inf", "distill.r1=.inf"])
def test_not_finite_stops_before_the_update(run, capsys, wrong):
    """Wherever it comes from: the generator's loss, or the discriminator's alone."""
    options = [*ADVERSARY, "distill.r1_every=2"]
    path = train(load(tiny_training(run, "distill.images=8", *options)))
    before = weights(path)
    assert main(tiny_training(run, "distill.images=16", *options, wrong, "force=true")) == 2
    assert "step 2: the loss or its gradient is not finite" in capsys.readouterr().err
    assert_same(weights(checkpoints.newest(path.parent).path), before)
    found = json.loads((run / "train" / "nonfinite.json").read_text())
    assert (
        found["step"] == 2
        and found["images"] == 8
        and len(found["keys"]) == 4
        and all(key.startswith("k") for key in found["keys"])
    )


def test_other_pictures_under_the_same_keys_are_another_selection(run, capsys):
    assert main(tiny_training(run, "distill.images=4", "distill.lpips=0")) == 0
    shutil.rmtree(run / "pairs")
    make_selected_pairs(run, seed=1)
    assert main(tiny_training(run, "distill.images=4", "distill.lpips=0")) == 2
    assert "with other settings: pairs: " in capsys.readouterr().err


def test_a_damaged_picture_is_named(run, capsys):
    shard = run / "pairs" / "000001.tar"
    data = bytearray(shard.read_bytes())
    at = data.find(b"IDAT") + 20
    data[at] ^= 255
    shard.write_bytes(data)
    assert main(tiny_training(run, "distill.images=12", "distill.lpips=0")) == 2
    said = capsys.readouterr().err
    assert (
        f"error: {shard}: pair k006 cannot be read" in said
        and "delete the shard" in said
        and said.count("\n") == 1
    )


def test_a_changed_configuration_is_refused_unless_forced(run, capsys):
    assert main(tiny_training(run, "distill.images=4")) == 0
    assert main(tiny_training(run, "distill.images=8", "distill.lr=0.5")) == 2
    assert "distill.lr: 0.001 -> 0.5" in capsys.readouterr().err
    assert main(tiny_training(run, "distill.images=8", "distill.lr=0.5", "force=true")) == 0
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
        ("distill.adapter_rank=2", "distill.init="),
        ("distill.lr=-1", "0 or more"),
        ("distill.beta2=1", "below 1"),
        ("distill.workers=-1", "0 or more"),
        ("distill.lpips_crop=8", "16 or more"),
        ("generator.dropout=1", "below 1"),
        ("augment.crop=0", "above 0, to 1"),
        ("augment.hue=0.7", "to 0.5"),
        ("augment.flip=2", "from 0 to 1"),
        ("distill.tracker=nothing", "distill.tracker=nothing: accelerate finds"),
    ],
)
def test_wrong_values_say_so(run, capsys, wrong, said):
    assert main(tiny_training(run, "distill.images=4", wrong)) == 2
    assert said in capsys.readouterr().err


def test_dry_run_tells_the_plan_and_writes_nothing(run, capsys):
    sizes = []
    for options in ([], ADVERSARY):
        assert (
            main(
                [
                    *tiny_training(run),
                    *options,
                    "generator.channel_base=16384",
                    "generator.channel_max=512",
                    "--dry-run",
                ]
            )
            == 0
        )
        told = capsys.readouterr().out
        assert "pairs selected: 12" in told and "arithmetic of one edit (GFLOP)" in told
        sizes.append(float(told.split("checkpoints (GB): ")[1]))
    assert 0 < sizes[0] < sizes[1]  # the discriminator's is there too
    assert not (run / "train").exists()


def test_two_processes_equal_one(tmp_path):
    """The same updates and losses, up to the order of summation, where nothing is drawn by the process or compared within its batch."""
    still = [f"augment.{key}=0" for key in ("flip", "brightness", "contrast", "saturation", "hue", "noise")]
    common = [
        *still,
        "augment.crop=1",
        "generator.dropout=0",
        "distill.lpips=0",
        "distill.images=12",
        "distill.save_every_images=4",
    ]
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nimport models.discriminator\nfrom distill.train import main\nmodels.discriminator.GROUP = 1\nsys.exit(main())\n"
    )
    results, curves = [], []
    for name, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        run = tmp_path / name / "tree2winter" / "miniature"
        make_selected_pairs(run)
        command = [sys.executable, *launcher, str(script), *tiny_training(run, *common, *ADVERSARY)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        results.append(weights(run / "train" / "checkpoints" / "000000012"))
        logged = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
        curves.append(
            [
                [line[key] for key in ("images", "l1", "adversarial", "discriminator") if key in line]
                for line in logged
            ]
        )
    assert sorted(len(line) for line in curves[0]) == [
        2,
        2,
        2,
        4,
        4,
        4,
    ]  # at each checkpoint the losses since the last, and a validation
    for one, two in zip(*curves, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        if key.startswith(("generator/", "discriminator/")):
            torch.testing.assert_close(results[1][key], value, rtol=1e-3, atol=2e-4)


def test_a_tracker_is_told_what_metrics_jsonl_is(run, monkeypatch):
    from accelerate.tracking import GeneralTracker

    class Recorder(GeneralTracker):
        name, requires_logging_directory, tracker = "recorder", False, None

        def __init__(self):
            super().__init__()
            self.seen = []

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **_):
            self.seen.append((step, values))

    recorder = Recorder()
    monkeypatch.setattr(train_module, "_trackers", lambda name: [recorder])
    train(load(tiny_training(run, "distill.images=8", "distill.lpips=0")))
    logged = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert len(recorder.seen) == len(logged) == 2
    for (step, values), line in zip(recorder.seen, logged, strict=True):
        assert step == line["images"] and values[f"{line['kind']}/l1"] == line["l1"]


def test_a_log_torn_by_a_kill_is_taken_up(run):
    train(load(tiny_training(run, "distill.images=4", "distill.lpips=0")))
    file = run / "train" / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"images": 8, "kind": "tr')
    assert read_metrics(file) == [json.loads(line) for line in whole.splitlines()]
    train(load(tiny_training(run, "distill.images=8", "distill.lpips=0")))
    assert file.read_text().startswith(whole)
    logged = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["images"], line["kind"]) for line in logged] == [
        (at, kind) for at in (4, 8) for kind in ("train", "validation")
    ]


def test_sigterm_leaves_nothing_torn(run):
    command = [
        sys.executable,
        str(ROOT / "distill" / "train.py"),
        *tiny_training(run, "distill.images=100000", "distill.save_every_images=4"),
    ]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
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


@pytest.fixture
def state(run):
    def make(*more: str) -> TrainingState:
        (run / "train").mkdir(exist_ok=True)
        return TrainingState(load(tiny_training(run, *more)), Accelerator(cpu=True), run / "train")

    return make


def test_the_rate_warms_up_and_the_average_has_its_half_life(state):
    """Each step sets all weights to the step's number; half-lives are a twentieth of the images seen, at most 1: 0.2, 0.4, ... 1, 1."""
    made = state(
        "distill.warmup_images=8",
        "distill.lr=0.004",
        "distill.ema_half_life_images=1",
        "distill.beta1=0.5",
        "distill.beta2=0.8",
    )
    assert made.optimizer.defaults["betas"] == (0.5, 0.8)
    name, parameter = next(iter(made.generator.named_parameters()))
    expected, rates = parameter.detach().clone(), []
    for step in range(1, 8):
        made.update()
        rates.append(made.optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            parameter.fill_(step)
        half_life = min(1.0, 0.05 * 4 * step)
        expected = (
            expected
            if step == 1
            else expected * 0.5 ** (4 / half_life) + (step - 1) * (1 - 0.5 ** (4 / half_life))
        )
    assert rates == pytest.approx([0.002] + [0.004] * 6)
    torch.testing.assert_close(dict(made.ema.named_parameters())[name], expected)


def test_validation_measures_the_averaged_weights(state):
    made = state("distill.latent=sampled")
    with torch.no_grad():
        made.generator.to_rgb[-1].bias.fill_(9.0)  # the averaged weights know nothing of it
        latent_1D = torch.tensor([checkpoints.fixed_latent(made.made_with)])
        images = [made.held_out[place] for place in range(len(made.held_out))]
        inputs, edits = (np.stack([pair[side].numpy() for pair in images]) / 127.5 - 1 for side in (0, 1))
        found = made.ema(torch.from_numpy(inputs).float(), latent_1D).clamp(-1, 1)
        lpips = made.perceptual(found, torch.from_numpy(edits).float()).mean().item()
    error = found.numpy().astype(np.float64) - edits
    made.validate()
    line = read_metrics(made.folder / "metrics.jsonl")[-1]
    psnr = np.mean([20 * np.log10(2 / np.sqrt(np.square(each).mean())) for each in error])  # of a range of 2
    assert line == {"images": 0, "kind": "validation"} | {
        "l1": pytest.approx(np.abs(error).mean(), rel=1e-5),
        "psnr": pytest.approx(psnr, rel=1e-5),
        "lpips": pytest.approx(lpips, rel=1e-4),
    }
    assert made.latent(3).shape == (3, 8) and state("distill.latent=fixed").latent(3) is None


def test_every_step_and_process_draws_anew_and_again_the_same(state):
    made, drawn = state(), []
    for step, process in ((0, 0), (1, 0), (0, 1), (0, 0)):
        made.step = step
        made.accelerator = SimpleNamespace(process_index=process)
        made.seed_step()
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[3] and len(set(drawn)) == 3


def test_losses_are_averaged_from_one_checkpoint_to_the_next(run):
    train(load(tiny_training(run, "distill.images=24", "distill.save_every_images=8", "distill.lpips=0")))
    logged = read_metrics(run / "train" / "metrics.jsonl")
    assert [line["images"] for line in logged if line["kind"] == "train"] == [8, 16, 24]


def test_bfloat16_trains_and_is_not_float32(run, tmp_path):
    """In a process of its own: accelerate keeps one precision a process."""
    found = []
    for dtype in ("float32", "bfloat16"):
        made = tmp_path / dtype / "tree2winter" / "miniature"
        shutil.copytree(run, made)
        command = [
            sys.executable,
            str(ROOT / "distill" / "train.py"),
            *tiny_training(made, "distill.images=8", f"distill.dtype={dtype}"),
        ]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
        }
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        found.append(weights(made / "train" / "checkpoints" / "000000008"))
    assert found[0].keys() == found[1].keys() and all(
        value.dtype == torch.float32 for value in found[1].values()
    )
    assert not torch.equal(found[0]["generator/start.weight.raw"], found[1]["generator/start.weight.raw"])
    torch.testing.assert_close(
        found[1]["generator/start.weight.raw"], found[0]["generator/start.weight.raw"], rtol=0, atol=0.01
    )
