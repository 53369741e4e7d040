"""What `scripts/benchmark.py train` times: a plain eager float32 loop and our training step, from shards of random pairs to the update.

B batch, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, replace
from typing import Any

from configs.loader import pairs_dir, run_dir
from configs.schema import Config

PAIRS = 64  # in the shards, read again and again


def benchmark_train(config: Config) -> dict[str, Any]:
    """Stage 3, a pair being one image shown: the plain loop against ours, each after as many steps that are not timed."""
    import torch
    from accelerate import Accelerator
    from torch.utils.flop_counter import FlopCounterMode

    from distill.state import TrainingState
    from distill.train import PRECISIONS, train_step
    from scripts.timing import measure, product_rate

    side, batch, steps = config.benchmark.side or config.teacher.resolution, config.distill.batch, config.benchmark.steps
    settings = replace(config.distill, images=2 * steps * batch, init="", adapter_rank=0, labels="", cache_gb=0.0)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, runs_dir=folder, teacher=replace(config.teacher, resolution=side), distill=settings)
        config = replace(config, generate=replace(config.generate, out=""))
        _random_pairs(config)
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=PRECISIONS[settings.dtype])
        device = accelerator.device
        plain = _plain_steps(config, 2 * steps + 1, device)
        with FlopCounterMode(display=False) as counter:
            next(plain)
        waits: list[float] = []

        def run_plain() -> None:
            waits.append(sum(next(plain) for _ in range(steps)))

        rows = {"plain loop, float32": measure(run_plain, steps * batch, device, warm=True)}
        plain.close()  # frees its weights
        train_folder = run_dir(config) / "train"
        train_folder.mkdir()
        state = TrainingState(config, accelerator, train_folder)
        batches = state.batches()

        def run_ours() -> None:
            state.waited_s = 0.0
            for _ in range(steps):
                train_step(state, *next(batches))
            waits.append(state.waited_s)

        name = f"ours, {settings.dtype}{', compiled' * settings.compile}"
        rows[name] = measure(run_ours, steps * batch, device, warm=True)
        batches.close()  # ends the decoding processes
    work = counter.get_total_flops() / batch
    baseline = rows["plain loop, float32"]["seconds"]
    for row, waited_s, dtype in zip(rows.values(), waits[1::2], (torch.float32, getattr(torch, settings.dtype)), strict=True):
        row |= {"ratio": baseline / row["seconds"], "images_per_s": 1 / row["seconds"], "operations": work}
        row |= {
            "rate": work / row["seconds"] / product_rate(device, dtype),
            "data_wait_share": waited_s / (row["seconds"] * steps * batch),
        }
    return {
        "benchmark": "train",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "settings": f"{side} x {side}, batches of {batch}, {settings.workers} decoding processes",
        "ratio": rows[name]["ratio"],
        "rows": rows,
    }


def _random_pairs(config: Config) -> None:
    """Noise, which decodes at its slowest; two pairs of each input, all selected."""
    import numpy as np

    from generate.shards import Pair, write_json, write_shard

    rng, side = np.random.default_rng(0), config.teacher.resolution
    pairs = []
    for number in range(PAIRS):
        images = {name: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in ("input", "edit")}
        pairs.append(Pair(f"p{number:04d}", images, {"source": {"id": f"noise-{number // 2}"}}))
    pairs_dir(config).mkdir(parents=True)
    write_shard(pairs_dir(config), 0, pairs, {})
    write_json(run_dir(config) / "selection.json", {"kept": [pair.key for pair in pairs]})


def _plain_steps(config: Config, steps: int, device: Any) -> Generator[float, None, None]:
    """The same training as one writes it first: eager, float32, decoding in turn. Each step gives the seconds that its data took."""
    import torch
    from torch.utils.data import DataLoader

    from distill import pairs
    from models.comodgan import CoModGenerator
    from models.perceptual import perceptual_loss

    side, settings = config.teacher.resolution, config.distill
    dataset = pairs.PairDataset(pairs.find_pairs(pairs_dir(config), pairs.selected_keys(run_dir(config))), side)
    order = [pairs.step_positions(step, settings.batch, len(dataset), config.seed) for step in range(steps)]
    generator = CoModGenerator(side, **asdict(config.generator)).to(device)
    average, perceptual = copy.deepcopy(generator), perceptual_loss(device)
    augment = pairs.PairAugment(config.augment, side)
    optimizer = torch.optim.Adam(generator.parameters(), lr=settings.lr, betas=(settings.beta1, settings.beta2), foreach=False)
    began = time.perf_counter()
    for input_BCHW, edit_BCHW in DataLoader(dataset, batch_sampler=order):
        input_BCHW, edit_BCHW = (image.to(device).float() / 127.5 - 1 for image in (input_BCHW, edit_BCHW))
        waited_s = time.perf_counter() - began
        input_BCHW, edit_BCHW = augment(input_BCHW, edit_BCHW)
        fake_BCHW = generator(input_BCHW)
        window = (..., slice(0, settings.lpips_crop or side), slice(0, settings.lpips_crop or side))  # as large as ours
        loss = (fake_BCHW - edit_BCHW).abs().mean() + perceptual(fake_BCHW[window], edit_BCHW[window]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(parameter, 0.001)
        yield waited_s
        began = time.perf_counter()
