"""Random access to the pairs that the filter kept, their split, and an order of training that needs no state.

B batch, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from configs.errors import UserError
from distill.translate import TranslateError, Translator
from generate.shards import PairLocation, finished_shards, locate, read_pair


class PairDataset(Dataset):
    """Pairs by position: (position, input, edit), the images uint8 3 x H x W; read from the shards in place.

    Where all of them, decoded, are at most cache_gb, each is decoded once: the worker processes fill and read one memory. What they get
    are views of it, not to be written to. labels: an exported generator.onnx whose edits stand in the place of the pairs' own.
    """

    def __init__(self, locations: Sequence[PairLocation], resolution: int, cache_gb: float = 0.0, labels: str = "") -> None:
        self.locations = list(locations)
        self.resolution, self.labels = resolution, labels
        if labels and not Path(labels).is_file():
            raise UserError(f"distill.labels={labels}: there is no such file; give the generator.onnx of distill/export.py")
        self.cache_N2CHW: torch.Tensor | None = None
        size = (len(self.locations), 2, 3, resolution, resolution)
        if math.prod(size) <= cache_gb * 1e9:
            try:
                self.cache_N2CHW = torch.empty(size, dtype=torch.uint8).share_memory_()
                self.cached_N = torch.zeros(len(self.locations), dtype=torch.bool).share_memory_()
            except RuntimeError as error:  # a container may have little: then as without
                self.cache_N2CHW = None
                print(f"warning: decoded pictures are not kept ({str(error).splitlines()[0]})", file=sys.stderr)

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, position: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        if self.cache_N2CHW is None:
            return position, *self._decode(position)
        if not self.cached_N[position]:
            for place, image_CHW in zip(self.cache_N2CHW[position], self._decode(position), strict=True):
                place.copy_(image_CHW)
            self.cached_N[position] = True  # only now: another process may look
        return position, *self.cache_N2CHW[position]

    def _decode(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = read_pair(self.locations[position], ("input", "edit"))
        side = self.resolution
        for name in ("input", "edit"):
            if pair.images[name].shape != (side, side, 3):
                raise UserError(
                    f"{self.locations[position].shard}: {pair.key}.{name}.png is {pair.images[name].shape}, "
                    f"teacher.resolution={side} asks for {(side, side, 3)}"
                )
        if self.labels:
            try:
                pair.images["edit"] = _labeller(self.labels)(pair.images["input"])
            except TranslateError as error:
                raise UserError(f"distill.labels: {error}") from error
        input_CHW, edit_CHW = (torch.from_numpy(pair.images[name].transpose(2, 0, 1).copy()) for name in ("input", "edit"))
        return input_CHW, edit_CHW


@lru_cache(maxsize=1)
def _labeller(path: str) -> Translator:
    """Opened by the process that uses it: ONNX Runtime's threads do not survive a fork."""
    return Translator(path, threads=1)


def selected_keys(run: Path) -> list[str]:
    """The keys that filter/run.py kept, from <run>/selection.json. UserError where it is missing, unreadable or empty."""
    path = run / "selection.json"
    try:
        keys = json.loads(path.read_text())["kept"]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run filter/run.py with the same task= and teacher= first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): run filter/run.py again") from error
    if not keys:
        raise UserError(f"{path} keeps no pair: lower task.clip_gain or task.overlap and run filter/run.py again")
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


def source_ids(locations: Sequence[PairLocation]) -> list[str]:
    """The source image of each pair, from its record."""
    return [str(read_pair(location, ()).record["source"]["id"]) for location in locations]


def split(sources: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions for training and for validation, such that no source image is in both.

    A source is held out by its own hash, so that more pairs do not move the old ones; at least one is. UserError for a share outside
    (0, 1) and where nothing is left to train on.
    """
    if not 0 < share < 1:
        raise UserError(f"distill.validation_share={share}: give a share between 0 and 1")
    place = {source: _unit_hash(f"{seed}:{source}") for source in set(sources)}
    held_out = {source for source, value in place.items() if value < share} or {min(place, key=place.__getitem__)}
    training = [position for position, source in enumerate(sources) if source not in held_out]
    if not training:
        raise UserError(f"{len(place)} source image(s) leave nothing to train on beside the held-out ones: make more pairs")
    return training, [position for position, source in enumerate(sources) if source in held_out]


def step_positions(step: int, batch: int, count: int, seed: int) -> np.ndarray:
    """Which of `count` training pairs step `step` (from 0) shows: one permutation an epoch, a function of its arguments alone."""
    places = np.arange(step * batch, (step + 1) * batch)
    return np.array([_permutation(count, seed, int(place // count))[place % count] for place in places])


def step_batches(first: int, last: int, batch: int, count: int, seed: int, rank: int, processes: int) -> Iterator[list[int]]:
    """Batches of one process: its part of steps first .. last - 1."""
    for step in range(first, last):
        yield step_positions(step, batch, count, seed)[rank::processes].tolist()


def to_unit(image_uint8_BCHW: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1], channels last."""
    return (image_uint8_BCHW.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def _unit_hash(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
