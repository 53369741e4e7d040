"""Clocks: seconds and memory of what a benchmark runs, the machine's rate, a generator's seconds."""

from __future__ import annotations

import resource
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # PyTorch takes seconds to import, and --help none
    import torch

STARTED = time.perf_counter()
# Of the square matrices whose product gives the machine's rate
PRODUCT_SIDE = 8192
CPU_PRODUCT_SIDE = 2048
PEAKS = ("cuda", "xpu")  # GPUs of which PyTorch counts the peak memory
PRODUCTS = 6  # the fastest counts
ROUNDS = 5  # of calls of each runtime, after one that does not count
GENERATOR_CALLS = 50  # the middle one counts


def measure(
    run: Callable[[], object], pairs: int, device: torch.device, first: Callable[[], object]
) -> dict[str, float]:
    """'seconds' a pair of `run`, which takes `pairs`, and 'memory', see peak_memory.

    `first` runs before the clock does: kernels are loaded, chosen and compiled there.
    """
    first()
    reset_peak_memory(device)
    began = time.perf_counter()
    run()
    wait_for(device)
    seconds = (time.perf_counter() - began) / pairs
    return {"seconds": seconds, "memory": peak_memory(device)}


def medians(runs: Mapping[str, Callable[[], object]], calls: int) -> dict[str, float]:
    """Seconds of the middle one of about `calls` calls of each.

    They are called in turns, so that other work on the machine disturbs a few calls of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    calls_a_round = -(-calls // ROUNDS)
    for round_ in range(1 + ROUNDS):
        for name, run in runs.items():
            timed = timeit.repeat(run, number=1, repeat=calls_a_round)
            if round_ > 0:  # the first compiles, chooses kernels and records CUDA graphs
                seconds[name] += timed
    return {name: statistics.median(values) for name, values in seconds.items()}


def generator_seconds(translator: Callable[[Any], Any], image: Any) -> float:
    """Median seconds of one edit by an exported generator, one image at a time."""
    seconds = timeit.repeat(partial(translator, image), number=1, repeat=GENERATOR_CALLS)
    return statistics.median(seconds)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large matrix product on this machine, at its best."""
    import torch

    side = CPU_PRODUCT_SIDE if device.type == "cpu" else PRODUCT_SIDE
    operations = 2 * side**3
    matrix = torch.randn(side, side, device=device, dtype=dtype)

    def multiply() -> torch.Tensor:
        return matrix @ matrix

    rates = []
    for _ in range(PRODUCTS):
        row = measure(multiply, 1, device, first=multiply)
        rates.append(operations / row["seconds"])
    return max(rates)


def wait_for(device: torch.device) -> None:
    """Return once the GPU has done what it was given; at once on a CPU."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew to count the GPU's peak memory, once it has done what it was given."""
    import torch

    if device.type in PEAKS:
        wait_for(device)
        torch.get_device_module(device).reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """Bytes: PyTorch's most on the GPU since reset_peak_memory, or the process's so far on a CPU and on
    Apple's GPUs, which share its memory.
    """
    import torch

    if device.type in PEAKS:
        return torch.get_device_module(device).max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024


def progress(step: str) -> None:
    """Print what begins, with the seconds since the start; to stderr, as stdout is for the table."""
    print(f"[{time.perf_counter() - STARTED:.0f} s] {step}", file=sys.stderr, flush=True)
