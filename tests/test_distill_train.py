"""distill/train.py on synthetic pairs: exact resume, what stops it, what it writes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.files import write_json
from configs.loader import load
from distill import checkpoints, losses
from distill import train as train_module
from distill.ema import EMA
from distill.pairs import open_pairs
from distill.runlog import read_metrics
from distill.train import check, main, parameter_groups, prepare, seed_step, set_learning_rate, train
from distill.validation import MAX_PAIRS, validate
from models.comodgan import CoModGenerator
from tests.helpers import TINY, laplacian_variance, make_selected_pairs, tiny_training

ROOT = Path(__file__).resolve().parents[1]
HASH = re.compile("[0-9a-f]{16}")
ON_CPU = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
ADVERSARY = ["distill.adversarial=0.5"]


@pytest.fixture
def run(tmp_path):
    make_selected_pairs(tmp_path / "tree2winter" / "miniature")
    return tmp_path / "tree2winter" / "miniature"


@pytest.fixture(autouse=True)
def frequent_balance(monkeypatch):
    """Trainings here have a few steps; the balance is to be measured in some of them and not in others."""
    monkeypatch.setattr(losses, "BALANCE_EVERY", 3)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by 'file/name'."""
    tensors = {}
    for file in checkpoint.glob("*.safetensors"):
        for key, value in load_file(file).items():
            tensors[f"{file.stem}/{key}"] = value
    return tensors


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def metrics_of(run: Path) -> list[dict]:
    return read_metrics(run / "train" / "metrics.jsonl")


def on_cpu(run: Path, *more: str) -> list[str]:
    """The command of a tiny training in a process of its own."""
    return [sys.executable, str(ROOT / "distill" / "train.py"), *tiny_training(run, *more)]


@pytest.mark.parametrize("options", [[], ADVERSARY])
def test_half_and_resume_equal_the_whole_bit_for_bit(tmp_path, options):
    results = []
    for name, lengths in (("whole", [32]), ("halves", [16, 32])):
        run = tmp_path / name / "tree2winter" / "miniature"
        make_selected_pairs(run)
        for images in lengths:
            arguments = [f"distill.images={images}", "distill.lpips_crop=16", *options]
            path = train(load(tiny_training(run, *arguments)))
        results.append(weights(path))
        assert any(key.startswith("critic/") for key in results[-1]) == (options is ADVERSARY)
        assert path.name == "000000032"
        validations = [line["images"] for line in metrics_of(run) if line["kind"] == "validation"]
        assert validations == lengths
    assert_same(results[0], results[1])


@pytest.mark.parametrize(
    "more", [[], ["distill.adversarial=0.1"], ["generator=comodgan_lite", "generator.width=1"]]
)
def test_it_learns_and_shows_what(run, more):
    simple = ["distill.lr=0.01", "distill.lpips=0", "augment.crop=1", "augment.flip=0", *more]
    assert main(tiny_training(run, *simple, "distill.images=160", "distill.save_every_images=80")) == 0
    first, last = (line for line in metrics_of(run) if line["kind"] == "validation")
    assert last["l1"] < first["l1"]
    assert last["psnr"] > first["psnr"]
    progress = [line for line in metrics_of(run) if line["kind"] == "train"][-1]
    assert 0 <= progress["data_wait_share"] <= 1
    for name in ("critic", "adversarial"):
        assert (name in progress) == ("distill.adversarial=0.1" in more)
    with Image.open(run / "train" / "samples" / "000000160.png") as sheet:
        assert sheet.width == 3 * 16
    assert "channel_base: 128" in (run / "train" / "config.yaml").read_text()
    names = [path.name for path in checkpoints.saved(run / "train" / "checkpoints")]
    assert names == ["000000080", "000000160"]


def test_the_average_follows_the_weights(run):
    """One step: the half-life is a twentieth of the 4 images seen, so 2^-20 of the first weights is left."""
    path = train(load(tiny_training(run, "distill.images=4")))
    average = load_file(path / "ema.safetensors")
    for name, value in load_file(path / "generator.safetensors").items():
        torch.testing.assert_close(average[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["distill.lpips=1e39", "critic"])
def test_not_finite_stops_before_the_update(run, capsys, monkeypatch, wrong):
    """Wherever it comes from: the generator's loss, or the critic's alone."""
    path = train(load(tiny_training(run, "distill.images=8", *ADVERSARY)))
    before = weights(path)
    more = [*ADVERSARY, "distill.images=16", "force=true"]
    if wrong == "critic":
        infinite = torch.tensor(float("inf"))
        original = losses.Adversary.critic_loss
        monkeypatch.setattr(losses.Adversary, "critic_loss", lambda *views: original(*views) * infinite)
    else:
        more.append(wrong)
    assert main(tiny_training(run, *more)) == 2
    assert "step 2: the loss or its gradient is not finite" in capsys.readouterr().err
    assert_same(weights(checkpoints.newest(path.parent).path), before)
    report = json.loads((run / "train" / "nonfinite.json").read_text())
    assert report["step"] == 2
    assert report["images"] == 8
    assert len(report["keys"]) == 4
    assert all(key.startswith("k") for key in report["keys"])


def test_other_pictures_under_the_same_keys_are_another_selection(run, capsys):
    assert main(tiny_training(run, "distill.images=4", "distill.lpips=0")) == 0
    shutil.rmtree(run / "pairs")
    make_selected_pairs(run, seed=1)
    assert main(tiny_training(run, "distill.images=4", "distill.lpips=0")) == 2
    error = capsys.readouterr().err
    assert "with other settings: pairs: as many as then, 12, but other ones or other pictures" in error


@pytest.mark.parametrize("counted", [True, False])  # by an earlier version: not
def test_another_selection_says_how_many_pairs_there_were_and_are(run, capsys, counted):
    assert main(tiny_training(run, "distill.images=4", "distill.lpips=0")) == 0
    (state,) = run.rglob("state.json")
    if not counted:
        content = json.loads(state.read_text())
        del content["pairs"]
        state.write_text(json.dumps(content))
    selection = json.loads((run / "selection.json").read_text())
    write_json(run / "selection.json", selection | {"kept": selection["kept"][:8]})
    assert main(tiny_training(run, "distill.images=4", "distill.lpips=0")) == 2
    error = capsys.readouterr().err
    assert f"with other settings: pairs: {'12' if counted else 'others'} then, 8 now. " in error
    assert not HASH.search(error)


def test_a_shipped_generator_that_does_not_fit_is_passed_over_and_that_is_said(run, capsys):
    """It is the default of every task of the teacher: other sizes than the preset's must train too."""
    shipped = "models/miniature/generator/generator.safetensors"
    assert main(tiny_training(run, f"distill.init={shipped}", "distill.images=4", "distill.lpips=0")) == 0
    assert f"starting from nothing, as {shipped} is of another side" in capsys.readouterr().out


def test_a_folder_is_no_generator_to_start_from(run, capsys):
    assert main(tiny_training(run, f"distill.init={run}", "distill.images=4")) == 2
    assert f"{run} is not an exported generator.safetensors" in capsys.readouterr().err


def test_too_few_sources_say_which_command_keeps_more(run, capsys):
    selection = json.loads((run / "selection.json").read_text())
    write_json(run / "selection.json", selection | {"kept": selection["kept"][:1]})
    assert main(tiny_training(run, "distill.images=4")) == 2
    says = f"zero2gan filter {run} --select keep=0.6 by=clip_directional"
    assert (
        f"leave nothing to train on beside the held-out ones: select more, {says}" in capsys.readouterr().err
    )


def test_a_damaged_picture_is_named(run, capsys):
    shard = run / "pairs" / "000001.tar"
    data = bytearray(shard.read_bytes())
    data[data.find(b"IDAT") + 20] ^= 255
    shard.write_bytes(data)
    assert main(tiny_training(run, "distill.images=12", "distill.lpips=0")) == 2
    error = capsys.readouterr().err
    assert f"error: {shard}: pair k006 cannot be read" in error
    assert "delete the shard" in error
    assert error.count("\n") == 1


def test_a_changed_configuration_is_refused_unless_forced(run, capsys):
    assert main(tiny_training(run, "distill.images=4")) == 0
    assert main(tiny_training(run, "distill.images=8", "distill.lr=0.5")) == 2
    assert "distill.lr: 0.001 -> 0.5" in capsys.readouterr().err
    assert main(tiny_training(run, "distill.images=8", "distill.lr=0.5", "force=true")) == 0
    assert "distill.lr: 0.001 -> 0.5" in capsys.readouterr().err


def test_what_changes_no_weight_may_change(run, tmp_path):
    train(load(tiny_training(run, "distill.images=4", "distill.lpips=0")))
    moved = tmp_path / "moved" / "tree2winter" / "miniature"
    shutil.copytree(run, moved)
    free = [
        "task.clip_gain=0.5",
        "guidance.amount=7",
        "generate.batch=3",
        "filter.batch=1",
        "export.formats=[]",
    ]
    free += ["evaluate.scenes=3", "distill.save_every_images=5", "device=cpu", "json=elsewhere.json"]
    path = train(load(tiny_training(moved, "distill.images=8", "distill.lpips=0", *free)))
    assert path == moved / "train" / "checkpoints" / "000000008"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("distill.dtype=float16", "float32 or bfloat16"),
        ("distill.latent=sampled", "there is no distill.latent= any more"),
        ("distill.adapter_rank=2", "there is no distill.adapter_rank= any more: distill.init="),
        ("distill.beta2=0.9", "there is no distill.beta2= any more"),
        ("augment.hue=0.1", "there is no augment.hue= any more: augment.colour="),
        ("distill.batch=0", "1 or more"),
        ("teacher.resolution=32", "teacher.resolution=32"),
        ("distill.init=nothing.safetensors", "nothing.safetensors"),
        ("distill.learning_rate=1", "no key"),
        ("distill.lr=-1", "0 or more"),
        ("distill.beta1=1", "below 1"),
        ("distill.workers=-1", "0 or more"),
        ("distill.lpips_crop=8", "16 or more"),
        ("generator.dropout=1", "below 1"),
        ("augment.crop=0", "above 0, to 1"),
        ("augment.colour=1.5", "from 0 to 1"),
        ("augment.flip=2", "from 0 to 1"),
        ("distill.tracker=nothing", "distill.tracker=nothing: accelerate finds"),
        ("device=gpu", "auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_values_say_so(run, capsys, wrong, message):
    assert main(tiny_training(run, "distill.images=4", wrong)) == 2
    assert message in capsys.readouterr().err


def test_dry_run_tells_the_plan_and_writes_nothing(run, capsys):
    gigabytes = []
    for options in ([], ADVERSARY):
        large = ["generator.channel_base=16384", "generator.channel_max=512"]
        assert main([*tiny_training(run), *options, *large, "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert "pairs selected: 12" in printed
        assert "arithmetic of one edit (GFLOP)" in printed
        gigabytes.append(float(printed.split("checkpoints (GB): ")[1]))
    assert 0 < gigabytes[0] < gigabytes[1]  # the critic's weights are in it too
    assert not (run / "train").exists()


def test_two_processes_equal_one(tmp_path):
    """The same updates and losses, up to the order of summation.

    Nothing may be drawn by the process or compared within its batch.
    """
    still = ["augment.flip=0", "augment.colour=0", "augment.noise=0", "augment.crop=1", "generator.dropout=0"]
    length = ["distill.lpips=0", "distill.images=12", "distill.save_every_images=4"]
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from distill import losses\n"
        "from distill.train import main\n"
        "losses.BALANCE_EVERY = 3\n"
        "sys.exit(main())\n"
    )
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
    results = {}
    curves = {}
    for name, launcher in launchers.items():
        run = tmp_path / name / "tree2winter" / "miniature"
        make_selected_pairs(run)
        arguments = tiny_training(run, *still, *length, *ADVERSARY)
        command = [sys.executable, *launcher, str(script), *arguments]
        done = subprocess.run(command, env=ON_CPU, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        results[name] = weights(run / "train" / "checkpoints" / "000000012")
        curves[name] = []
        for line in metrics_of(run):
            keys = ("images", "l1", "adversarial", "critic")
            curves[name].append([line[key] for key in keys if key in line])
    # at each checkpoint there is a line of the losses since the last one, and one of a validation
    assert sorted(len(line) for line in curves["one"]) == [2, 2, 2, 4, 4, 4]
    for line_of_one, line_of_two in zip(curves["one"], curves["two"], strict=True):
        assert line_of_two == pytest.approx(line_of_one, rel=1e-4)
    assert results["one"].keys() == results["two"].keys()
    for key, value in results["one"].items():
        if key.startswith(("generator/", "critic/")):
            torch.testing.assert_close(results["two"][key], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("distill.batch=3", "distill.batch=3 cannot be shared by 2 processes"),
        ("device=cuda:1", "device=cuda:1 is one GPU for 2 processes"),
    ],
)
def test_what_two_processes_cannot_use_is_refused(wrong, message):
    config = load([wrong])
    check(config, 1)
    with pytest.raises(UserError, match=message):
        check(config, 2)


def test_a_tracker_is_told_what_metrics_jsonl_is(run, monkeypatch):
    from accelerate.tracking import GeneralTracker

    class Recorder(GeneralTracker):
        name = "recorder"
        requires_logging_directory = False
        tracker = None

        def __init__(self):
            super().__init__()
            self.seen = []

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **_):
            self.seen.append((step, values))

    recorder = Recorder()
    monkeypatch.setattr(train_module, "tracker_names", lambda name: [recorder])
    train(load(tiny_training(run, "distill.images=8", "distill.lpips=0")))
    lines = metrics_of(run)
    assert len(recorder.seen) == len(lines) == 2
    for (step, values), line in zip(recorder.seen, lines, strict=True):
        assert step == line["images"]
        assert values[f"{line['kind']}/l1"] == line["l1"]


def test_a_log_torn_by_a_kill_is_taken_up(run):
    train(load(tiny_training(run, "distill.images=4", "distill.lpips=0")))
    file = run / "train" / "metrics.jsonl"
    text = file.read_text()
    file.write_text(text + '{"images": 8, "kind": "tr')
    assert read_metrics(file) == [json.loads(line) for line in text.splitlines()]
    train(load(tiny_training(run, "distill.images=8", "distill.lpips=0")))
    assert file.read_text().startswith(text)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    expected = [(4, "train"), (4, "validation"), (8, "train"), (8, "validation")]
    assert [(line["images"], line["kind"]) for line in lines] == expected


def test_sigterm_leaves_nothing_torn(run):
    command = on_cpu(run, "distill.images=100000", "distill.save_every_images=4")
    process = subprocess.Popen(command, env=ON_CPU, stdout=subprocess.PIPE, text=True)
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
        assert checkpoints.read_checkpoint(path).state["images"] == int(path.name)


def test_a_start_from_weights_of_another_configuration_is_refused(run, tmp_path, capsys):
    """Dropout may differ, and a file from before a key was there has that key's default."""
    torch.manual_seed(1)
    generator = CoModGenerator(16, **TINY)
    config = dict(generator.config)
    for key in ("separable", "width"):
        del config[key]
    init = tmp_path / "init.safetensors"
    save_file(generator.state_dict(), init, {"config": json.dumps(config | {"dropout": 0.25})})
    still = ["distill.images=4", "distill.lpips=0", "distill.lr=0", f"distill.init={init}"]
    path = train(load(tiny_training(run, *still)))
    assert_same(load_file(path / "generator.safetensors"), generator.state_dict())
    shutil.rmtree(run / "train")
    assert main(tiny_training(run, *still, "generator.code_dim=8")) == 2
    assert "set generator.* to match" in capsys.readouterr().err


def test_the_rate_warms_up_linearly():
    settings = load(["distill.lr=0.004", "distill.warmup_images=8"]).distill
    networks = {"generator": torch.zeros(1), "critic.head": torch.zeros(1)}
    trained = {name: torch.nn.Parameter(tensor) for name, tensor in networks.items()}
    optimizer = torch.optim.Adam(parameter_groups(trained, 0.9))
    rates = []
    for images_seen in (4, 8, 12):
        set_learning_rate(optimizer, settings, images_seen)
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == 2 * rates[-1]  # the critic's
    assert rates == pytest.approx([0.002, 0.004, 0.004])


def test_the_average_has_its_half_life():
    """Step n sets all weights to n; half-lives are .05 of the images seen, at most 1: .2, .4 ... 1, 1."""
    generator = torch.nn.Linear(2, 3)
    ema = EMA(generator, half_life_images=1, batch=4)
    expected = generator.weight.detach().clone()
    for step in range(1, 8):
        with torch.no_grad():
            generator.weight.fill_(step)
        ema.update(generator, 4 * step)
        left = 0.5 ** (4 / min(1.0, 0.05 * 4 * step))
        expected = expected * left + step * (1 - left)
    torch.testing.assert_close(ema.network.weight, expected)
    assert not ema.network.training
    assert not ema.network.weight.requires_grad


def test_adam_has_the_rates_of_decay(run):
    arguments = tiny_training(run, "distill.beta1=0.7", *ADVERSARY)
    training = prepare(load(arguments), Accelerator(cpu=True), run / "train", 12)
    of_generator, of_critic = training.optimizer.param_groups
    assert of_generator["betas"] == (0.7, 0.99) and of_critic["betas"] == (0.5, 0.99)
    assert len(of_critic["params"]) == len(list(training.networks.critic.parameters()))


def sharpness_of(signed_BCHW: np.ndarray) -> float:
    """The mean over pictures of a loop over pixels."""
    levels_BHWC = 127.5 * (signed_BCHW.transpose(0, 2, 3, 1) + 1)
    return float(np.mean([laplacian_variance(levels_HWC) for levels_HWC in levels_BHWC]))


def test_validation_measures_the_averaged_weights(run):
    """All held-out pairs: they are fewer than MAX_PAIRS."""
    config = load(tiny_training(run))
    held_out = open_pairs(config)[1]
    training = prepare(config, Accelerator(cpu=True), run / "train", 12)
    average = training.networks.ema.network
    perceptual = training.criterion.perceptual
    inputs = []
    edits = []
    for place in range(len(held_out)):
        inputs.append(held_out[place][0].numpy() / 127.5 - 1)
        edits.append(held_out[place][1].numpy() / 127.5 - 1)
    with torch.no_grad():
        training.networks.generator.to_rgb[-1].bias.fill_(9.0)  # the averaged weights know nothing of it
        fakes = average(torch.from_numpy(np.stack(inputs)).float()).clamp(-1, 1)
        lpips = perceptual(fakes, torch.from_numpy(np.stack(edits)).float()).mean().item()
    errors = fakes.numpy().astype(np.float64) - np.stack(edits)
    psnr = np.mean(
        [20 * np.log10(2 / np.sqrt(np.square(error).mean())) for error in errors]
    )  # of a range of 2
    validation = validate(average, held_out, perceptual, 4, torch.device("cpu"))
    assert validation.count == len(held_out) < MAX_PAIRS
    assert validation.metrics == {
        "l1": pytest.approx(np.abs(errors).mean(), rel=1e-5),
        "psnr": pytest.approx(psnr, rel=1e-5),
        "lpips": pytest.approx(lpips, rel=1e-4),
        "sharpness": pytest.approx(sharpness_of(fakes.numpy()) / sharpness_of(np.stack(edits)), rel=1e-3),
    }


def test_validation_stops_at_its_most_pairs(run, monkeypatch):
    config = load(tiny_training(run, "distill.validation_share=0.5"))
    held_out = open_pairs(config)[1]
    training = prepare(config, Accelerator(cpu=True), run / "train", 12)
    networks = (training.networks.ema.network, training.criterion.perceptual)
    values = []
    for most in (2, 3):
        monkeypatch.setattr("distill.validation.MAX_PAIRS", most)
        validation = validate(networks[0], held_out, networks[1], 4, torch.device("cpu"))
        assert validation.count == most
        values.append(validation.metrics["l1"])
    assert values[0] != values[1]


def test_every_step_and_process_draws_anew_and_again_the_same():
    drawn = []
    for step, process in ((0, 0), (1, 0), (0, 1), (0, 0)):
        seed_step(0, step, process)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3


def test_losses_are_averaged_from_one_checkpoint_to_the_next(run):
    train(load(tiny_training(run, "distill.images=24", "distill.save_every_images=8", "distill.lpips=0")))
    assert [line["images"] for line in metrics_of(run) if line["kind"] == "train"] == [8, 16, 24]


def test_bfloat16_trains_and_is_not_float32(run, tmp_path):
    """In a process of its own: accelerate keeps one precision a process."""
    results = {}
    for dtype in ("float32", "bfloat16"):
        copy = tmp_path / dtype / "tree2winter" / "miniature"
        shutil.copytree(run, copy)
        command = on_cpu(copy, "distill.images=8", f"distill.dtype={dtype}")
        subprocess.run(command, env=ON_CPU, check=True, capture_output=True, timeout=120)
        results[dtype] = weights(copy / "train" / "checkpoints" / "000000008")
    assert results["float32"].keys() == results["bfloat16"].keys()
    assert all(value.dtype == torch.float32 for value in results["bfloat16"].values())
    exact = results["float32"]["generator/start.weight.raw"]
    rounded = results["bfloat16"]["generator/start.weight.raw"]
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.01)
