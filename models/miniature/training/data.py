"""Training pictures and sentences: rendered by several processes, kept on disk."""

import hashlib
import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import torch

from models.miniature.captions import caption
from models.miniature.scenes import SIZE, Look, render, scene
from models.miniature.training.loop import Options, log, write_atomically

VALIDATION_SEED, TEST_SEED = 2_000_000, 3_000_000
SEASON_NAMED_SHARE = 0.88  # of the captions; the others must leave the season open
CAPTIONS = 4  # wordings per training picture


def training_look(seed: int, sketch_share: float) -> Look:
    """The look in which training shows the scene of that seed: any season, sometimes a sketch."""
    return Look("any", style="sketch" if random.Random(seed * 23 + 9).random() < sketch_share else "photo")


def varied_look(seed: int) -> Look:
    """The look in which the judges (scorer, segmenter) see a scene: any season, often another species, sometimes a
    sketch.
    """
    rng = random.Random(seed * 37 + 2)
    species = rng.choice((None, None, None, None, "oak", "birch", "pine", "pine"))
    return Look("any", species, "sketch" if rng.random() < 0.3 else "photo")


def sentences(seed: int, look: Look, count: int = CAPTIONS) -> list[str]:
    """`count` captions, the season named in most of them."""
    rng = random.Random(seed * 29 + 1)
    return [caption(scene(seed), look, variant, rng.random() < SEASON_NAMED_SHARE) for variant in range(count)]


def _pixels(job):
    seed, look = job
    return np.asarray(render(scene(seed), look))


def render_all(jobs: list[tuple[int, Look]], workers: int) -> np.ndarray:
    """uint8 pictures (N, 128, 128, 3) of (seed, look) jobs."""
    processes = workers or os.cpu_count()
    if processes == 1 or len(jobs) < 256:  # processes take a second to start
        return np.stack([_pixels(job) for job in jobs])
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pictures = np.empty((len(jobs), SIZE, SIZE, 3), np.uint8)
        for index, picture in enumerate(pool.imap(_pixels, jobs, chunksize=64)):
            pictures[index] = picture
    return pictures


def training_jobs(options: Options) -> list[tuple[int, Look]]:
    """The (seed, look) of every training picture."""
    if options.first_seed + options.images > 1_000_000:
        raise SystemExit("first_seed + images passes 1,000,000: seeds from there on are kept for validation and tests")
    seeds = range(options.first_seed, options.first_seed + options.images)
    return [(seed, training_look(seed, options.sketch_share)) for seed in seeds]


def cache_path(options: Options, name: str, key: object) -> Path:
    """The file of an array named after `name` and a hash of `key`."""
    return Path(options.work) / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.npy"


def write_array(path: Path, array: np.ndarray) -> None:
    """Save an array atomically."""

    def write(temporary):
        with open(temporary, "wb") as file:  # given a name, numpy would append .npy to it
            np.save(file, array)

    write_atomically(path, write)


def cached(options: Options, name: str, key: object, make) -> np.ndarray:
    """The array `make()` gives, memory-mapped from a file named after `name` and `key`."""
    path = cache_path(options, name, key)
    if not path.exists():
        log(f"making {path}")
        write_array(path, make())
    return np.load(path, mmap_mode="r")


def parallel(options: Options, name: str, make_one, seeds: range, *key) -> list[np.ndarray]:
    """The arrays that `make_one(seed)` returns, each stacked over the seeds and kept on disk; `key` says what else
    they depend on.
    """
    key = (seeds, *key)
    count = len(make_one(seeds[0]))
    paths = [cache_path(options, f"{name}{index}", key) for index in range(count)]
    if not all(path.exists() for path in paths):
        log(f"making {name} of {len(seeds)} scenes")
        with multiprocessing.get_context("spawn").Pool(options.workers or os.cpu_count()) as pool:
            columns = zip(*pool.imap(make_one, seeds, chunksize=32), strict=True)
        for path, column in zip(paths, columns, strict=True):
            write_array(path, np.stack(column))
    return [np.load(path, mmap_mode="r") for path in paths]


def training_pictures(options: Options) -> np.ndarray:
    """uint8 (N, 128, 128, 3) of the training jobs."""
    jobs = training_jobs(options)
    return cached(options, "pictures", (options.first_seed, options.images, options.sketch_share),
                  lambda: render_all(jobs, options.workers))  # fmt: skip


def to_tensor(pictures: np.ndarray, device="cpu") -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
