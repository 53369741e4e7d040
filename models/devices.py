"""Which device a process works on, which of several processes it is, and how much memory it has."""

from __future__ import annotations

import os
import re
import sys
import threading
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import UserError

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

CONTROL_GROUP_FILES = (  # limit and use, in versions 2 and 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def pick_device(name: str) -> torch.device:
    """The torch device called 'auto' (a GPU where there is one), 'cpu', 'cuda' or 'cuda:N'.

    With `accelerate launch`, 'auto' and 'cuda' are the process's own GPU, shared where there are
    more processes than GPUs. UserError for another name or a GPU that is not there.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device '{name}': it is auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        _tell_of_idle_cores()
        return torch.device("cpu")
    if not count:
        advice = "use auto or cpu, or install a CUDA build of PyTorch"
        raise UserError(f"device '{name}': PyTorch sees no GPU here; {advice}")
    _, _, number = name.partition(":")
    index = int(number or int(os.environ.get("LOCAL_RANK", 0)) % count)
    if index >= count:
        present = f"PyTorch sees {count} (cuda:0 to cuda:{count - 1})"
        raise UserError(f"device '{name}': GPU {index} is not there; {present}")
    return torch.device("cuda", index)


@cache  # told once
def _tell_of_idle_cores() -> None:
    """Tell on standard error where `accelerate launch` leaves CPU cores idle.

    On a CPU it starts one process, whatever --num_processes says, and allows it one thread unless
    told otherwise.
    """
    import torch

    cores = os.cpu_count() or 1
    threads = torch.get_num_threads()
    launched_alone = "ACCELERATE_USE_CPU" in os.environ and _process_count() == 1
    if launched_alone and threads < cores:
        note = f"note: accelerate launch lets this process use {threads} of {cores} CPU cores"
        launch = f"`accelerate launch --num_cpu_threads_per_process {cores}`"
        print(f"{note}; {launch}, or python in its place, uses them all", file=sys.stderr)


def process_group() -> PartialState:
    """This process's place among those that `accelerate launch` or torchrun started.

    They only wait for each other, over gloo and on the CPU, so that two may share a GPU.
    """
    import torch
    from accelerate import PartialState

    several = _process_count() > 1
    # Shards take unlike times: the processes done first wait longer than the default's minutes.
    state = PartialState(cpu=several or not torch.cuda.is_available(), timeout=timedelta(days=1))
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
