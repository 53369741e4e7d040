"""Which device a process works on, which of several processes it is, and how much memory it has."""

from __future__ import annotations

import os
import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import UserError
from models.threads import take_the_cores

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

# The GPUs that are known, by PyTorch's names: NVIDIA's and AMD's; Apple's; Intel's.
GPUS = ("cuda", "mps", "xpu")
NAMES = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")
KNOWN = "auto, cpu, cuda or cuda:N, mps, xpu or xpu:N"

CONTROL_GROUP_FILES = (  # limit and use, in versions 2 and 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def pick_device(name: str) -> torch.device:
    """The torch device called 'auto' (a GPU where PyTorch has one), 'cpu', or as NAMES has it.

    With `accelerate launch`, 'auto' and a name without a number are the process's own GPU, shared where
    there are more processes than GPUs. UserError for another name or a GPU that is not there.
    """
    import torch

    if not NAMES.fullmatch(name):
        raise UserError(f"device '{name}': it is {KNOWN}")
    kind = gpu_kind()
    if name == "cpu" or (name == "auto" and not kind):
        take_the_cores()
        return torch.device("cpu")
    wanted, _, number = name.partition(":")
    if wanted not in ("auto", kind):
        present = f"the GPU that PyTorch sees here is {kind}" if kind else "PyTorch sees no GPU here"
        advice = f"use auto or cpu, or install a build of PyTorch for {wanted}"
        raise UserError(f"device '{name}': {present}; {advice}")
    count = torch.accelerator.device_count()
    index = int(number or int(os.environ.get("LOCAL_RANK", 0)) % count)
    if index >= count:
        present = f"PyTorch sees {count} ({kind}:0 to {kind}:{count - 1})"
        raise UserError(f"device '{name}': GPU {index} is not there; {present}")
    return torch.device(kind, index)


def gpu_kind() -> str:
    """Which of GPUS PyTorch has here; '' where it has none, or one that nobody tried."""
    import torch

    if not torch.accelerator.is_available():
        return ""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None and accelerator.type in GPUS else ""


def has_half(device: torch.device) -> bool:
    """Whether all that an edit takes has float16 there: not on a CPU, and on Apple's GPUs not for certain."""
    return device.type in ("cuda", "xpu")


def process_group() -> PartialState:
    """This process's place among those that `accelerate launch` or torchrun started.

    They only wait for each other, over gloo and on the CPU, so that two may share a GPU.
    """
    import torch
    from accelerate import PartialState

    several = _process_count() > 1
    # Shards take unlike times: the processes done first wait longer than the default's minutes.
    state = PartialState(cpu=several or not gpu_kind(), timeout=timedelta(days=1))
    if several:
        # Accelerate's own asks for a GPU of each process's number.
        state.wait_for_everyone = torch.distributed.barrier
    return state


def _process_count() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def free_memory() -> int:
    """Bytes of the computer's memory that this process may still take.

    What the system has available, or what its control group is allowed, if that is less: a container
    is killed above it.
    """
    import psutil

    free = psutil.virtual_memory().available
    for limit_file, used_file in CONTROL_GROUP_FILES:
        try:
            free = min(free, int(limit_file.read_text()) - int(used_file.read_text()))
        except (OSError, ValueError):  # of another version of control groups; 'max' is no number
            continue
    return max(free, 0)


class PeakMemory:
    """Inside the `with`, watches how large this process gets; afterwards `bytes` is by how much it grew."""

    EVERY_S = 0.005

    def __enter__(self) -> PeakMemory:
        import psutil

        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._peak = self._before
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()
        self.bytes = self._peak - self._before

    def _watch(self) -> None:
        while not self._ended.wait(self.EVERY_S):
            self._peak = max(self._peak, self._process.memory_info().rss)
