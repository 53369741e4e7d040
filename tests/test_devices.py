"""Which device there is, whatever PyTorch calls it; how many threads a CPU has, and how they wait."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs.errors import UserError
from configs.loader import load
from distill.train import check
from generate import batch_size
from generate.run import for_this_device
from models.devices import gpu_kind, pick_device
from models.threads import PASSIVELY, usable_cores, wait_passively

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def gpus(monkeypatch):
    """Call it with a kind and a number: PyTorch then says that there are such GPUs."""

    def have(kind: str | None, count: int = 1) -> None:
        accelerator = torch.device(kind) if kind else None
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: bool(kind))
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: accelerator)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count if kind else 0)

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return have


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_auto_takes_the_gpu_there_is(gpus, kind):
    gpus(kind)
    assert gpu_kind() == kind
    assert pick_device("auto") == pick_device(kind) == torch.device(kind, 0)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("kind", [None, "mtia"])  # none, and one that nobody tried
def test_auto_is_the_cpu_where_no_known_gpu_is(gpus, kind):
    gpus(kind)
    assert gpu_kind() == "" and pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps", "xpu:0"):
        with pytest.raises(UserError, match=f"device '{name}': PyTorch sees no GPU here; use auto or cpu"):
            pick_device(name)


def test_a_gpu_of_another_make_is_not_taken_for_the_one_that_is_named(gpus):
    gpus("mps")
    with pytest.raises(
        UserError, match="the GPU that PyTorch sees here is mps; .* a build of PyTorch for xpu"
    ):
        pick_device("xpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "mps:0", "xpu:-1", "", "CPU"])
def test_no_device_names_those_that_there_are(name):
    with pytest.raises(UserError, match="it is auto, cpu, cuda or cuda:N, mps, xpu or xpu:N"):
        pick_device(name)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_processes_share_the_gpus(gpus, monkeypatch, kind):
    gpus(kind, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == pick_device(kind) == pick_device(f"{kind}:1") == torch.device(kind, 1)
    assert pick_device(f"{kind}:0") == torch.device(kind, 0)
    monkeypatch.setenv("LOCAL_RANK", "5")  # six processes on two GPUs
    assert pick_device("auto") == torch.device(kind, 1)
    with pytest.raises(UserError, match=f"GPU 2 is not there; PyTorch sees 2 .{kind}:0 to {kind}:1"):
        pick_device(f"{kind}:2")
    with pytest.raises(UserError, match=f"device={kind}:1 is one GPU for 2 processes"):
        check(load([f"device={kind}:1"]), 2)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("cuda", "float16"), ("xpu", "float16"), ("mps", "float32"), (None, "float32")]
)
def test_half_precision_where_all_operators_have_it(gpus, kind, dtype):
    gpus(kind)
    assert for_this_device(load(["generate.dtype=float16"])).generate.dtype == dtype
    assert for_this_device(load(["generate.dtype=bfloat16"])).generate.dtype == "bfloat16"  # as asked


class Edits:
    """An editor on a device, each of whose pairs takes some bytes of `taken`."""

    def __init__(self, kind: str, bytes_a_pair: int) -> None:
        self.teacher = SimpleNamespace(device=torch.device(kind), resolution=8)
        self.guidance = SimpleNamespace(maps="reference")
        self.bytes_a_pair = bytes_a_pair
        self.taken = 0

    def shortened(self, steps):
        return self

    def __call__(self, images, *_):
        self.taken = max(self.taken, len(images) * self.bytes_a_pair)
        return SimpleNamespace(pictures={"edit": images})

    def forget(self, *_):
        self.taken = 0


@pytest.mark.parametrize(("free", "expected"), [(1000, 64), (10, 9), (0.5, 1)])  # of what a pair takes
def test_apples_gpu_takes_as_many_pairs_as_one_tells(monkeypatch, free, expected):
    a_pair = 1 << 21
    editor = Edits("mps", a_pair)
    monkeypatch.setattr(torch.mps, "empty_cache", editor.forget)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: editor.taken)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: int(free * a_pair))
    assert batch_size.largest_batch(editor, 1000) == expected
    assert batch_size.largest_batch(editor, 1) == 1 and editor.taken == 0


def test_intels_gpu_is_tried_as_nvidias(monkeypatch):
    editor = Edits("xpu", 10)
    memory = SimpleNamespace(total_memory=100)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: memory)
    monkeypatch.setattr(torch.xpu, "max_memory_reserved", lambda device: editor.taken)
    monkeypatch.setattr(torch.xpu, "reset_peak_memory_stats", editor.forget)
    monkeypatch.setattr(torch.xpu, "empty_cache", editor.forget)
    assert batch_size.largest_batch(editor, 1000) == 8  # 80 of 100 bytes; 16 would take 160


# ---- threads ----


def launched(tmp_path: Path, launcher: list[str], code: str, **environment: str) -> str:
    """What a script prints that a launcher starts, which has no OMP_NUM_THREADS but in `environment`."""
    script = tmp_path / "script.py"
    script.write_text(code)
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    own |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(script)]
    done = subprocess.run(command, env=own | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stderr
    return done.stdout.strip()


def test_accelerate_launch_leaves_no_core_idle(tmp_path):
    code = "import torch\nfrom models.devices import pick_device\n"
    code += "pick_device('cpu')\nprint(torch.get_num_threads())"
    launcher = ["-m", "accelerate.commands.launch"]
    assert launched(tmp_path, launcher, code) == str(usable_cores())


LIKE_ACCELERATE = """
import os, subprocess, sys
threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "ACCELERATE_USE_CPU": "False"}
sys.exit(subprocess.run([sys.executable, sys.argv[-1]], env=os.environ | threads).returncode)
"""


@pytest.mark.parametrize(
    ("options", "environment", "chosen"),
    [
        ([], {}, False),
        ([], {"OMP_NUM_THREADS": "1"}, True),
        (["--num_cpu_threads_per_process", "1"], {}, True),
        (["--num-cpu-threads-per-process=1"], {}, True),
    ],
)
def test_a_number_of_threads_that_was_chosen_stays(tmp_path, options, environment, chosen):
    (tmp_path / "launcher.py").write_text(LIKE_ACCELERATE)
    code = "from models import threads\nprint(threads.launched_alone(), threads.threads_are_chosen())"
    launcher = [str(tmp_path / "launcher.py"), *options]
    assert launched(tmp_path, launcher, code, **environment) == f"True {chosen}"


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_wait_passively_unless_the_user_says_otherwise(monkeypatch, own):
    for name in PASSIVELY:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    wait_passively()
    assert {name: os.environ[name] for name in os.environ if name in PASSIVELY} == (own or PASSIVELY)
    for name in PASSIVELY:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.mark.parametrize("stage", ["generate/run.py", "filter/run.py", "distill/train.py"])
def test_they_are_told_so_before_pytorch_is_loaded(tmp_path, stage):
    """Libgomp reads it once, when it is loaded."""
    probe = (
        "import os, runpy, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"sys.argv = ['x', 'runs_dir={tmp_path}', 'device=cuda']\n"  # which is looked for
        f"runpy.run_path({str(ROOT / stage)!r}, run_name='__main__')\n"
        "print('never loaded')"
    )
    own = {name: value for name, value in os.environ.items() if name not in PASSIVELY}
    done = subprocess.run(
        [sys.executable, "-uc", probe], cwd=ROOT, env=own, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["passive 0"], done.stdout + done.stderr
