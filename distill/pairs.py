"""What training is fed: the pairs that the filter kept, their split, their order, and augmentation.

B batch, C channels, H W pixels, N pairs.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kornia.augmentation as K
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from configs.errors import UserError
from configs.files import digest, find_file
from configs.runs import command, pairs_dir, run_dir, selected_keys, training_side
from configs.schema import Augment, Config
from generate.shards import PairLocation, finished_shards, locate, read_manifest, read_pair
from models.pictures import resized, to_signed
from models.translator import TranslateError, Translator

if TYPE_CHECKING:
    from accelerate import Accelerator

# Decoded training pairs stay in memory where all of them take at most so many GB a process, so that
# only the first epoch decodes. 4 GB are 10,000 pairs of 256 x 256; most machines that train have
# that to spare.
CACHE_GB = 4.0
HUE_SHARE = 5  # hue is jittered by a fifth of augment.colour: a tenth of a turn is another colour


class PairDataset(Dataset):
    """Pairs by position: (input, edit), uint8 3 x H x W; read from the shards in place.

    resolution: the side that all images must have. side: that they are given, 0: the same.
    cache_gb: where all pairs, decoded, are at most so large, each is decoded once, into memory that
    worker processes share. What is returned are then views of it: do not write to them. labels: a
    generator.onnx whose edits replace the pairs' own; empty: none.
    """

    def __init__(
        self,
        locations: Sequence[PairLocation],
        resolution: int,
        cache_gb: float = 0.0,
        labels: str = "",
        side: int = 0,
    ) -> None:
        if labels and not Path(labels).is_file():
            raise UserError(
                f"distill.labels={labels}: there is no such file; "
                "give the generator.onnx of distill/export.py"
            )
        self.locations = locations
        self.resolution = resolution
        self.side = side or resolution
        self.labels = labels
        self.cache_N2CHW: torch.Tensor | None = None
        shape = (len(locations), 2, 3, self.side, self.side)
        if math.prod(shape) <= cache_gb * 1e9:
            try:
                self.cached_N = torch.zeros(len(locations), dtype=torch.bool).share_memory_()
                self.cache_N2CHW = torch.empty(shape, dtype=torch.uint8).share_memory_()
            except RuntimeError as error:  # a container may allow little shared memory
                reason = str(error).splitlines()[0]
                print(f"warning: decoded pictures are not kept ({reason})", file=sys.stderr)

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.cache_N2CHW is None:
            pair_2CHW = self._decode(position)
        else:
            if not self.cached_N[position]:
                self.cache_N2CHW[position] = self._decode(position)
                self.cached_N[position] = True  # only now: another process may look
            pair_2CHW = self.cache_N2CHW[position]
        return pair_2CHW[0], pair_2CHW[1]

    def _decode(self, position: int) -> torch.Tensor:
        """Input and edit, uint8 2 x 3 x H x W; UserError if one has another size or cannot be read."""
        location = self.locations[position]
        pair = read_pair(location, ("input", "edit"))
        shape = (self.resolution, self.resolution, 3)
        for name, image_HWC in pair.images.items():
            if image_HWC.shape != shape:
                raise UserError(
                    f"{location.shard}: {pair.key}.{name}.png is {image_HWC.shape}, "
                    f"teacher.resolution={self.resolution} asks for {shape}"
                )
        input_HWC = resized(pair.images["input"], self.side)
        edit_HWC = resized(pair.images["edit"], self.side)
        if self.labels:
            try:
                edit_HWC = _labeller(self.labels)(input_HWC)
            except TranslateError as error:
                raise UserError(f"distill.labels: {error}") from error
        pair_2HWC = torch.from_numpy(np.stack([input_HWC, edit_HWC]))
        return pair_2HWC.permute(0, 3, 1, 2).contiguous()


@lru_cache(maxsize=1)
def _labeller(path: str) -> Translator:
    """Opened by the process that uses it: ONNX Runtime's threads do not survive a fork."""
    return Translator(path, threads=1)


# Which pairs.


def open_pairs(config: Config) -> tuple[PairDataset, PairDataset]:
    """The run's selected pairs: to train on, with the edits of distill.labels, and held out."""
    settings = config.distill
    training, held_out = split_pairs(config, settings.validation_share, config.seed)
    resolution = config.teacher.resolution
    labels = find_file(settings.labels)
    side = training_side(config)
    return (
        PairDataset(training, resolution, CACHE_GB, labels, side),
        PairDataset(held_out, resolution, side=side),
    )


def find_pairs(folder: Path, keys: Sequence[str]) -> list[PairLocation]:
    """Where the pairs with these keys are, in the order of the keys.

    UserError where one is in no finished shard.
    """
    locations = {}
    for shard in finished_shards(folder):
        for location in locate(shard):
            locations[location.key] = location
    missing = [key for key in keys if key not in locations]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(keys)} selected pairs ({missing[0]}, ...): "
            "run `zero2gan generate` and `zero2gan filter` again"
        )
    return [locations[key] for key in keys]


def content(locations: Sequence[PairLocation]) -> str:
    """A hash of the pairs' keys, in this order, and of the content of their shards."""
    keys = [location.key for location in locations]
    shards = sorted({location.shard for location in locations})
    return digest(keys, [read_manifest(shard)["sha256"] for shard in shards])


def split_pairs(config: Config, share: float, seed: int) -> tuple[list[PairLocation], list[PairLocation]]:
    """The run's selected pairs for training and for validation, divided by split()."""
    locations = find_pairs(pairs_dir(config), selected_keys(run_dir(config)))
    sources = [str(read_pair(location, ()).record["source"]["id"]) for location in locations]
    try:
        training, held_out = split(sources, share, seed)
    except UserError as error:
        more = command("filter", run_dir(config), "--select", "keep=0.6", "by=clip_directional")
        raise UserError(f"{error}: select more, {more}, or make more (generate.pairs=)") from error
    return [locations[place] for place in training], [locations[place] for place in held_out]


def split(sources: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions for training and for validation, such that no source image is in both.

    sources: the source image of each pair. About `share` of the images is held out, at least one.
    Whether an image is depends on its own hash, so that more pairs do not move the old ones.
    UserError for a share outside (0, 1), and where nothing is left to train on.
    """
    if not 0 < share < 1:
        raise UserError(f"distill.validation_share={share}: give a share between 0 and 1")
    places = {source: _place(source, seed) for source in sources}
    held_out = {source for source, place in places.items() if place < share}
    if not held_out:
        held_out = {min(places, key=places.__getitem__)}
    training = []
    validation = []
    for position, source in enumerate(sources):
        if source in held_out:
            validation.append(position)
        else:
            training.append(position)
    if not training:
        raise UserError(f"{len(places)} source image(s) leave nothing to train on beside the held-out ones")
    return training, validation


def _place(source: str, seed: int) -> float:
    """A number in [0, 1) that is the source image's own."""
    eight_bytes = hashlib.sha256(f"{seed}:{source}".encode()).digest()[:8]
    return int.from_bytes(eight_bytes, "big") / 2**64


# In which order.


def step_positions(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Which of `count` training pairs a step (from 0) shows: a function of the arguments alone.

    Every pair is shown once an epoch, in the order of a permutation of that epoch's own.
    """
    positions = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, offset = divmod(place, count)
        positions.append(_permutation(count, seed, epoch)[offset])
    return positions


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()


@dataclass
class Batch:
    """One process's part of a training step.

    step: from 0. keys: of the pairs that all processes together show in this step. input_BCHW,
    edit_BCHW: float32 in [-1, 1], channels last, on the device. waited_s: seconds that the process
    waited for them.
    """

    step: int
    keys: list[str]
    input_BCHW: torch.Tensor
    edit_BCHW: torch.Tensor
    waited_s: float


def batches(pairs: PairDataset, steps: range, config: Config, accelerator: Accelerator) -> Iterator[Batch]:
    """This process's part of each of these steps, decoded ahead by distill.workers processes.

    UserError, here in the training process, where a pair cannot be decoded.
    """
    settings = config.distill
    device = accelerator.device

    def all_positions(step: int) -> list[int]:
        return step_positions(step, settings.batch, len(pairs), config.seed)

    def own_positions() -> Iterator[list[int]]:
        for step in steps:
            yield all_positions(step)[accelerator.process_index :: accelerator.num_processes]

    loader: Any = DataLoader(
        pairs,
        batch_sampler=own_positions(),
        num_workers=settings.workers,
        pin_memory=device.type == "cuda",
    )
    started = time.perf_counter()
    try:
        for step, levels in zip(steps, loader, strict=True):
            keys = [pairs.locations[position].key for position in all_positions(step)]
            input_BCHW, edit_BCHW = images_on(device, levels)
            yield Batch(step, keys, input_BCHW, edit_BCHW, time.perf_counter() - started)
            started = time.perf_counter()
    except UserError as error:
        # A decoding process's error arrives with its traceback as text; the message is the last line.
        last_line = str(error).strip().splitlines()[-1]
        raise UserError(last_line.removeprefix("configs.errors.UserError: ")) from error


def images_on(device: torch.device, levels: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and edits on the device: float32 B x 3 x H x W in [-1, 1], channels last.

    levels: the two as a DataLoader takes them from a PairDataset, uint8 B x 3 x H x W.
    """
    images = []
    for levels_BCHW in levels:
        image_BCHW = to_signed(levels_BCHW.to(device, non_blocking=True))
        images.append(image_BCHW.contiguous(memory_format=torch.channels_last))
    return images[0], images[1]


class PairAugment(nn.Module):
    """Augments a batch of pairs of `resolution` pixels on the device they are on.

    Colour jitter and geometry are one change of both images, so that what the edit changes stays
    the only difference between them. Every draw comes from torch's global generator, which is
    seeded at each step.
    """

    def __init__(self, config: Augment, resolution: int) -> None:
        super().__init__()
        self.noise = config.noise
        self.colour = nn.Sequential()
        if config.colour > 0:
            strength = config.colour
            hue = config.colour / HUE_SHARE
            self.colour.append(K.ColorJitter(strength, strength, strength, hue, p=1.0))
        self.geometry = nn.Sequential()
        if config.crop < 1:
            size = (resolution, resolution)
            areas = (config.crop**2, 1.0)  # shares of the area; the key is a share of the side
            self.geometry.append(K.RandomResizedCrop(size, scale=areas, ratio=(1.0, 1.0), p=1.0))
        if config.flip > 0:
            self.geometry.append(K.RandomHorizontalFlip(p=config.flip))

    @torch.no_grad()
    def forward(self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The augmented pairs; images in [-1, 1], which noise on the input may leave by a little."""
        # Contrast is changed about the mean grey: side by side, both images have one.
        both_BCHW = (torch.cat([input_BCHW, edit_BCHW], dim=3) + 1) / 2  # B x 3 x H x 2W, in [0, 1]
        input_BCHW, edit_BCHW = self.colour(both_BCHW).chunk(2, dim=3)
        # As channels of one image, both are cropped and flipped alike.
        both_BCHW = self.geometry(torch.cat([input_BCHW, edit_BCHW], dim=1))  # B x 6 x H x W
        input_BCHW, edit_BCHW = (both_BCHW.clamp(0, 1) * 2 - 1).chunk(2, dim=1)
        input_BCHW = input_BCHW.contiguous(memory_format=torch.channels_last)
        edit_BCHW = edit_BCHW.contiguous(memory_format=torch.channels_last)
        if self.noise > 0:
            uniform_B111 = torch.rand(len(input_BCHW), 1, 1, 1, device=input_BCHW.device)
            deviation_B111 = self.noise * uniform_B111
            input_BCHW = input_BCHW + deviation_B111 * torch.randn_like(input_BCHW)
        return input_BCHW, edit_BCHW
