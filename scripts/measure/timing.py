"""What the benchmarks share: the form of what they find, a clock, and the machine's own rate."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

STARTED = time.perf_counter()
PRODUCT_SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices whose product gives the machine's rate


class Found(NamedTuple):
    """A benchmark's rows, of columns of scripts/benchmark.py; ratios are to the first. headline: the row of `ratio`."""

    settings: str
    device: torch.device
    rows: dict[str, dict[str, float]]
    headline: str


def measure(
    run: Callable[[], object], pairs: int, device: torch.device, first: Callable[[], object]
) -> dict[str, float]:
    """Seconds a pair of `run`, and the peak of the memory: the GPU's own, or on a CPU the process's so far.

    `first` runs before the clock does: kernels are loaded, chosen and compiled there.
    """
    on_gpu = device.type == "cuda"
    first()
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - began) / pairs
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "memory": torch.cuda.max_memory_allocated(device) if on_gpu else kilobytes * 1024,
    }


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large square matrix product on this machine, the best of six."""
    side = PRODUCT_SIDE[device.type]
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return max(
        2 * side**3 / measure(lambda: matrix @ matrix, 1, device, lambda: None)["seconds"] for _ in range(6)
    )


def say(what: str) -> None:
    """A line of progress, with the seconds since the start; to stderr, as stdout is for the table."""
    print(f"[{time.perf_counter() - STARTED:.0f} s] {what}", file=sys.stderr, flush=True)
