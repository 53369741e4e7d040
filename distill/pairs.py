"""What training is fed: the pairs that the filter kept, their split, an order that needs no state, and augmentation.

B batch, C channels, H W pixels, N pairs.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from configs.errors import UserError
from configs.files import digest
from configs.runs import pairs_dir, run_dir
from configs.schema import Augment, Config
from generate.shards import PairLocation, finished_shards, locate, read_manifest, read_pair
from models.translator import TranslateError, Translator


class PairDataset(Dataset):
    """Pairs by position: (input, edit), uint8 3 x H x W; read from the shards in place.

    Where all of them, decoded, are at most cache_gb, each is decoded once: the worker processes fill and read one memory. What they get
    are views of it, not to be written to. labels: an exported generator.onnx whose edits stand in the place of the pairs' own.
    """

    def __init__(
        self, locations: Sequence[PairLocation], resolution: int, cache_gb: float = 0.0, labels: str = ""
    ) -> None:
        self.locations, self.resolution, self.labels = locations, resolution, labels
        if labels and not Path(labels).is_file():
            raise UserError(
                f"distill.labels={labels}: there is no such file; give the generator.onnx of distill/export.py"
            )
        self.cache_N2CHW: torch.Tensor | None = None
        size = (len(locations), 2, 3, resolution, resolution)
        if math.prod(size) <= cache_gb * 1e9:
            try:
                self.cached_N = torch.zeros(len(locations), dtype=torch.bool).share_memory_()
                self.cache_N2CHW = torch.empty(size, dtype=torch.uint8).share_memory_()
            except RuntimeError as error:  # a container may have little: then as without
                print(
                    f"warning: decoded pictures are not kept ({str(error).splitlines()[0]})", file=sys.stderr
                )

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, ...]:
        if self.cache_N2CHW is None:
            return tuple(self._decode_2CHW(position))
        if not self.cached_N[position]:
            self.cache_N2CHW[position] = self._decode_2CHW(position)
            self.cached_N[position] = True  # only now: another process may look
        return tuple(self.cache_N2CHW[position])

    def _decode_2CHW(self, position: int) -> torch.Tensor:
        pair = read_pair(self.locations[position], ("input", "edit"))
        shape = (self.resolution, self.resolution, 3)
        for name, image_HWC in pair.images.items():
            if image_HWC.shape != shape:
                raise UserError(
                    f"{self.locations[position].shard}: {pair.key}.{name}.png is {image_HWC.shape}, "
                    f"teacher.resolution={self.resolution} asks for {shape}"
                )
        if self.labels:
            try:
                pair.images["edit"] = _labeller(self.labels)(pair.images["input"])
            except TranslateError as error:
                raise UserError(f"distill.labels: {error}") from error
        return (
            torch.from_numpy(np.stack([pair.images["input"], pair.images["edit"]]))
            .permute(0, 3, 1, 2)
            .contiguous()
        )


@lru_cache(maxsize=1)
def _labeller(path: str) -> Translator:
    """Opened by the process that uses it: ONNX Runtime's threads do not survive a fork."""
    return Translator(path, threads=1)


def selected_keys(run: Path) -> list[str]:
    """The keys that filter/run.py kept, from <run>/selection.json. UserError where it is missing, unreadable or empty."""
    path = run / "selection.json"
    try:
        keys = json.loads(path.read_text())["kept"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is missing or cannot be read ({error}): run filter/run.py with the same task= and teacher="
        ) from error
    if not keys:
        raise UserError(
            f"{path} keeps no pair: lower task.clip_gain or task.overlap and run filter/run.py again"
        )
    return keys


def find_pairs(folder: Path, keys: Sequence[str]) -> list[PairLocation]:
    """Where the pairs with these keys lie, in the order of the keys. UserError where one is in no finished shard."""
    found = {location.key: location for shard in finished_shards(folder) for location in locate(shard)}
    missing = [key for key in keys if key not in found]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(keys)} selected pairs ({missing[0]}, ...): "
            "run generate/run.py and filter/run.py again"
        )
    return [found[key] for key in keys]


def content(locations: Sequence[PairLocation]) -> str:
    """A hash of which pairs these are, in this order, and of what the shards hold that they lie in."""
    shards = sorted({location.shard for location in locations})
    return digest(
        [location.key for location in locations], [read_manifest(shard)["sha256"] for shard in shards]
    )


def split_pairs(config: Config, share: float, seed: int) -> tuple[list[PairLocation], list[PairLocation]]:
    """The run's selected pairs for training and for validation, see split()."""
    locations = find_pairs(pairs_dir(config), selected_keys(run_dir(config)))
    sources = [str(read_pair(location, ()).record["source"]["id"]) for location in locations]
    training, held_out = split(sources, share, seed)
    return [locations[place] for place in training], [locations[place] for place in held_out]


def split(sources: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions for training and for validation, such that no source image is in both.

    A source is held out by its own hash, so that more pairs do not move the old ones; at least one is. UserError for a share outside
    (0, 1) and where nothing is left to train on.
    """
    if not 0 < share < 1:
        raise UserError(f"distill.validation_share={share}: give a share between 0 and 1")
    hashes = {source: hashlib.sha256(f"{seed}:{source}".encode()).digest()[:8] for source in sources}
    place = {source: int.from_bytes(value, "big") / 2**64 for source, value in hashes.items()}
    held_out = {source for source, value in place.items() if value < share} or {
        min(place, key=place.__getitem__)
    }
    training = [position for position, source in enumerate(sources) if source not in held_out]
    if not training:
        raise UserError(
            f"{len(place)} source image(s) leave nothing to train on beside the held-out ones: make more pairs"
        )
    return training, [position for position, source in enumerate(sources) if source in held_out]


def step_positions(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Which of `count` training pairs step `step` (from 0) shows: one permutation an epoch, a function of its arguments alone."""
    return [
        _permutation(count, seed, place // count)[place % count]
        for place in range(step * batch, (step + 1) * batch)
    ]


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()


def to_unit(image_uint8_BCHW: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1], channels last."""
    return (image_uint8_BCHW.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


class PairAugment(nn.Module):
    """Augments a batch of pairs of `resolution` pixels on the device they lie on.

    Colour jitter and geometry are one change of both images, so that what the edit changes stays the only difference between them. Every
    draw comes from torch's global generator, which the training loop seeds anew for each step.
    """

    def __init__(self, config: Augment, resolution: int) -> None:
        super().__init__()
        import kornia.augmentation as K

        jitter = (config.brightness, config.contrast, config.saturation, config.hue)
        self.colour = K.ColorJitter(*jitter, p=1.0) if any(jitter) else nn.Identity()
        self.geometry = nn.Sequential()
        if config.crop < 1:
            self.geometry.append(
                K.RandomResizedCrop(
                    (resolution, resolution), scale=(config.crop**2, 1.0), ratio=(1.0, 1.0), p=1.0
                )
            )
        if config.flip > 0:
            self.geometry.append(K.RandomHorizontalFlip(p=config.flip))
        self.noise = config.noise

    @torch.no_grad()
    def forward(self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The augmented pairs; both in and out in [-1, 1], the noise on the input may leave it by a little."""
        # Side by side they have one mean grey, which contrast is about; one on the other they move alike.
        side_by_side = self.colour((torch.cat([input_BCHW, edit_BCHW], 3) + 1) / 2)
        stacked = self.geometry(torch.cat(side_by_side.chunk(2, 3), 1))
        pair = (stacked.clamp(0, 1) * 2 - 1).chunk(2, 1)
        input_BCHW, edit_BCHW = (
            image_BCHW.contiguous(memory_format=torch.channels_last) for image_BCHW in pair
        )
        if self.noise > 0:
            deviation_B111 = self.noise * torch.rand(len(input_BCHW), 1, 1, 1, device=input_BCHW.device)
            input_BCHW = input_BCHW + deviation_B111 * torch.randn_like(input_BCHW)
        return input_BCHW, edit_BCHW
