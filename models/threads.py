"""The threads of a CPU: how they wait for each other, and how many there are."""

from __future__ import annotations

import os
from functools import cache

# libgomp's, which PyTorch computes with, and what other libraries of OpenMP understand of it. They read it
# when they are loaded.
PASSIVELY = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def wait_passively() -> None:
    """Let a thread that has nothing to do leave its core to others; to be called before PyTorch is loaded.

    By default it spins. Where other work runs, the thread that it waits for is then kept from the core, and
    two threads may be many times slower than one (docs/distill.md has figures). What the user chose stays.
    """
    if not PASSIVELY.keys() & os.environ.keys():
        os.environ.update(PASSIVELY)


@cache  # once is enough, and a later torch.set_num_threads is to hold
def take_the_cores() -> None:
    """Let PyTorch use all cores where `accelerate launch` allowed its process fewer.

    On a CPU it starts one process, whatever --num_processes says, and sets OMP_NUM_THREADS=1 for it. A number
    that the user chose stays.
    """
    import torch

    if launched_alone() and not threads_are_chosen():
        torch.set_num_threads(max(torch.get_num_threads(), usable_cores()))


def launched_alone() -> bool:
    """Whether `accelerate launch` started this process, and no other beside it."""
    return "ACCELERATE_USE_CPU" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) == 1


def threads_are_chosen() -> bool:
    """Whether the user chose a number of threads for `accelerate launch`, by an option or OMP_NUM_THREADS.

    This process cannot tell by its own environment, as accelerate sets the variable in any case; so the
    launching process is asked. True where it cannot be: nothing is taken that may not be wanted.
    """
    import psutil

    try:
        launcher = psutil.Process().parent()
        if launcher is None:
            return True
        options = [option.partition("=")[0].replace("-", "_") for option in launcher.cmdline()]
        return "OMP_NUM_THREADS" in launcher.environ() or "__num_cpu_threads_per_process" in options
    except (psutil.Error, OSError):
        return True


def usable_cores() -> int:
    """Cores that the system lets this process run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
