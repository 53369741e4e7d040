"""What `scripts/benchmark.py train` times: a plain eager float32 loop and our training step, from shards of random pairs to the update.

B batch, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections import deque
from collections.abc import Generator
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from configs.files import write_json
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from distill import pairs
from distill.state import TrainingState
from distill.train import PRECISIONS, train_step
from generate.shards import Pair, write_shard
from models.comodgan import CoModGenerator
from models.perceptual import perceptual_loss
from scripts.measure.timing import Found, measure, product_rate

PAIRS = 64  # in the shards, read again and again
Seconds = Generator[float, None, None]  # what each step's data took


def benchmark_train(config: Config) -> Found:
    """Stage 3, a pair being one image shown: the plain loop against ours, each after as many steps that are not timed."""
    side, steps = config.benchmark.side or config.teacher.resolution, config.benchmark.steps
    shown = steps * config.distill.batch
    settings = replace(config.distill, images=2 * shown, init="", adapter_rank=0, labels="", cache_gb=0.0)
    config = replace(
        config,
        teacher=replace(config.teacher, resolution=side),
        distill=settings,
        generate=replace(config.generate, out=""),
    )
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=PRECISIONS[settings.dtype])
    device = accelerator.device

    def timed(loop: Seconds, dtype: torch.dtype) -> dict[str, float]:
        waits: deque[float] = deque(maxlen=steps)  # of the steps that count: the last

        def run() -> None:
            waits.extend(islice(loop, steps))

        row = measure(run, shown, device, run)
        loop.close()  # frees its weights, ends its decoding processes
        rates = {
            "images_per_s": 1 / row["seconds"],
            "rate": work / row["seconds"] / product_rate(device, dtype),
        }
        return row | rates | {"operations": work, "data_wait_share": sum(waits) / (row["seconds"] * shown)}

    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, runs_dir=folder)
        _write_random_pairs(config)
        plain = _plain_loop(config, 2 * steps + 1, device)
        with FlopCounterMode(display=False) as counter:
            next(plain)
        work = counter.get_total_flops() / settings.batch
        ours = f"ours, {settings.dtype}{', compiled' * settings.compile}"
        rows = {"plain loop, float32": timed(plain, torch.float32)}
        (run_dir(config) / "train").mkdir()
        state = TrainingState(config, accelerator, run_dir(config) / "train")
        rows[ours] = timed(_our_loop(state), getattr(torch, settings.dtype))
    return Found(
        f"{side} x {side}, batches of {settings.batch}, {settings.workers} decoding processes",
        device,
        rows,
        ours,
    )


def _write_random_pairs(config: Config) -> None:
    """Noise, which decodes at its slowest; two pairs of each input, all selected."""
    side = config.teacher.resolution
    noise_N2HWC = np.random.default_rng(0).integers(0, 256, (PAIRS, 2, side, side, 3), dtype=np.uint8)
    made = [
        Pair(f"p{number:04d}", {"input": image, "edit": edit}, {"source": {"id": f"noise-{number // 2}"}})
        for number, (image, edit) in enumerate(noise_N2HWC)
    ]
    pairs_dir(config).mkdir(parents=True)
    write_shard(pairs_dir(config), 0, made, {})
    write_json(run_dir(config) / "selection.json", {"kept": [pair.key for pair in made]})


def _our_loop(state: TrainingState) -> Seconds:
    for images in state.batches():
        train_step(state, *images)
        yield state.waited_s
        state.waited_s = 0.0


def _plain_loop(config: Config, steps: int, device: torch.device) -> Seconds:
    """The same training as one writes it first: eager, float32, decoding in turn."""
    side, settings = config.teacher.resolution, config.distill
    dataset = pairs.PairDataset(
        pairs.find_pairs(pairs_dir(config), pairs.selected_keys(run_dir(config))), side
    )
    order = [pairs.step_positions(step, settings.batch, len(dataset), config.seed) for step in range(steps)]
    generator = CoModGenerator(side, **asdict(config.generator)).to(device)
    average, perceptual, crop = copy.deepcopy(generator), perceptual_loss(device), settings.lpips_crop or side
    augment = pairs.PairAugment(config.augment, side)
    optimizer = torch.optim.Adam(
        generator.parameters(), lr=settings.lr, betas=(settings.beta1, settings.beta2), foreach=False
    )
    began = time.perf_counter()
    for images in DataLoader(dataset, batch_sampler=order):
        input_BCHW, edit_BCHW = (image.to(device).float() / 127.5 - 1 for image in images)
        waited_s = time.perf_counter() - began
        input_BCHW, edit_BCHW = augment(input_BCHW, edit_BCHW)
        fake_BCHW = generator(input_BCHW)
        distance_B = perceptual(
            fake_BCHW[..., :crop, :crop], edit_BCHW[..., :crop, :crop]
        )  # a window as large as ours
        loss = (fake_BCHW - edit_BCHW).abs().mean() + distance_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(parameter, 0.001)
        yield waited_s
        began = time.perf_counter()
