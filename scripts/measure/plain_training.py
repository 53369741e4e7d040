"""The training as one writes it first, the baseline of `scripts/benchmark.py train`: eager,
float32, decoding in turn.

B batch, C channels, H W pixels.
"""

import copy
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from configs.runs import pairs_dir, run_dir, selected_keys
from configs.schema import Config
from distill import pairs
from distill.train import BETA2
from models.comodgan import make_generator
from models.perceptual import perceptual_loss
from models.pictures import to_signed

AVERAGE_SHARE = 0.001  # of the new weights in their moving average, a step; a usual value


def plain_training(config: Config, steps: int, device: torch.device) -> Iterator[float]:
    """Train for so many steps on the run's selected pairs.

    After each step it gives the seconds that the step's data took.
    """
    side = config.teacher.resolution
    settings = config.distill
    locations = pairs.find_pairs(pairs_dir(config), selected_keys(run_dir(config)))
    dataset = pairs.PairDataset(locations, side)
    count = len(dataset)
    order = [pairs.step_positions(step, settings.batch, count, config.seed) for step in range(steps)]
    generator = make_generator(side, config.generator).to(device)
    average = copy.deepcopy(generator)
    perceptual = perceptual_loss(device)
    augment = pairs.PairAugment(config.augment, side)
    crop = settings.lpips_crop or side  # LPIPS looks at a window as large as ours
    betas = (settings.beta1, BETA2)
    optimizer = torch.optim.Adam(generator.parameters(), lr=settings.lr, betas=betas, foreach=False)
    began = time.perf_counter()
    for images in DataLoader(dataset, batch_sampler=order):
        input_BCHW, edit_BCHW = (to_signed(image.to(device)) for image in images)
        waited_s = time.perf_counter() - began

        input_BCHW, edit_BCHW = augment(input_BCHW, edit_BCHW)
        fake_BCHW = generator(input_BCHW)
        distance_B = perceptual(fake_BCHW[..., :crop, :crop], edit_BCHW[..., :crop, :crop])
        loss = (fake_BCHW - edit_BCHW).abs().mean() + distance_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(parameter, AVERAGE_SHARE)

        yield waited_s
        began = time.perf_counter()
