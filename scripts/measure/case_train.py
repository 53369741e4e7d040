"""What `scripts/benchmark.py train` times: distill/train.py beside a plain eager float32 loop.

Both read shards of random pairs, and a pair is one image shown. Ours is timed by its own log: it
saves and validates halfway, so that the lines of metrics.jsonl up to there are of the warm-up, and
those after it of the steps that count.

N pairs, H W pixels, C channels.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.files import write_json
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from distill.runlog import read_metrics
from distill.train import train
from generate.shards import Pair, write_shard
from models.devices import pick_device
from scripts.measure.benchmark import Result
from scripts.measure.plain_training import plain_training
from scripts.measure.timing import measure, peak_memory, product_rate, progress, reset_peak_memory

STEPS = 20  # that count, after as many that do not
CPU_STEPS = 4
PAIRS = 64  # in the shards, read and decoded again and again, as those of a large set are

Row = dict[str, float]


def run(config: Config) -> Result:
    """Stage 3: the plain loop, then ours, each at the same batch, side and network."""
    device = pick_device(config.device)
    steps = CPU_STEPS if device.type == "cpu" else STEPS
    shown = steps * config.distill.batch
    dtype = getattr(torch, config.distill.dtype)
    with tempfile.TemporaryDirectory() as folder:
        config = settings_to_time(config, folder, shown)
        write_random_pairs(config)

        progress("plain loop")
        loop = plain_training(config, 1 + 2 * steps, device)
        with FlopCounterMode(display=False) as counter:
            next(loop)
        operations = counter.get_total_flops() / config.distill.batch
        plain = plain_row(loop, steps, config.distill.batch, device)

        progress("ours")
        ours = our_row(config, shown, device)
    name = f"ours, {config.distill.dtype}{', compiled' if config.distill.compile else ''}"
    rows = {
        "plain loop, float32": with_rates(plain, operations, product_rate(device, torch.float32)),
        name: with_rates(ours, operations, product_rate(device, dtype)),
    }
    side = config.teacher.resolution
    timed = f"{side} x {side}, batches of {config.distill.batch}, {config.distill.workers} decoding processes"
    return Result(timed, device, rows, name)


def settings_to_time(config: Config, folder: str, shown: int) -> Config:
    """A training from scratch in the folder, of twice `shown` images, that saves halfway."""
    side = config.benchmark.side or config.teacher.resolution
    distill = replace(
        config.distill, images=2 * shown, save_every_images=shown, init="", labels="", tracker=""
    )
    return replace(
        config,
        runs_dir=folder,
        teacher=replace(config.teacher, resolution=side),
        generate=replace(config.generate, out=""),
        distill=distill,
    )


def write_random_pairs(config: Config) -> None:
    """Noise, which decodes at its slowest; two pairs of each input image, all selected."""
    side = config.teacher.resolution
    noise_N2HWC = np.random.default_rng(0).integers(0, 256, (PAIRS, 2, side, side, 3), dtype=np.uint8)
    made = []
    for number, (input_HWC, edit_HWC) in enumerate(noise_N2HWC):
        record = {"source": {"id": f"noise-{number // 2}"}}
        made.append(Pair(f"p{number:04d}", {"input": input_HWC, "edit": edit_HWC}, record))
    pairs_dir(config).mkdir(parents=True)
    write_shard(pairs_dir(config), 0, made, {})
    write_json(run_dir(config) / "selection.json", {"kept": [pair.key for pair in made]})


def plain_row(loop: Iterator[float], steps: int, batch: int, device: torch.device) -> Row:
    """Seconds an image, memory and share of waiting for data, of the second `steps` steps."""
    waits: list[float] = []

    def run_steps() -> None:
        waits.extend(islice(loop, steps))

    row = measure(run_steps, steps * batch, device, run_steps)
    waited_s = sum(waits[steps:])
    return row | {"data_wait_share": waited_s / (row["seconds"] * steps * batch)}


def our_row(config: Config, shown: int, device: torch.device) -> Row:
    """Seconds an image, share of waiting for data and memory of distill/train.py.

    The times are those of the second `shown` images; the memory is the whole training's.
    """
    reset_peak_memory(device)
    with contextlib.redirect_stdout(sys.stderr), patch("distill.pairs.CACHE_GB", 0.0):
        train(config)  # its lines are no part of the table; decoded pictures of a large set are not kept
    row = timed_half(read_metrics(run_dir(config) / "train" / "metrics.jsonl"), shown)
    return row | {"memory": peak_memory(device)}


def with_rates(row: Row, operations: float, product_rate: float) -> Row:
    """The row with images a second, operations an image, and their share of the machine's rate."""
    seconds = row["seconds"]
    rate = operations / seconds / product_rate
    return row | {"images_per_s": 1 / seconds, "operations": operations, "rate": rate}


def timed_half(lines: Sequence[Mapping[str, Any]], warm_images: int) -> Row:
    """'seconds' an image and 'data_wait_share' after the first `warm_images` images.

    lines: of metrics.jsonl. Each tells of the images since the line before, and one ends at
    `warm_images`, as a checkpoint is written there.
    """
    images = 0
    images_before = 0
    seconds = 0.0
    waited_s = 0.0
    for line in lines:
        if line["kind"] != "train":
            continue
        count = line["images"] - images_before
        images_before = line["images"]
        if line["images"] > warm_images:
            took = count / line["images_per_s"]
            images += count
            seconds += took
            waited_s += took * line["data_wait_share"]
    return {"seconds": seconds / images, "data_wait_share": waited_s / seconds}
