"""Training pictures and sentences: rendered by several processes, kept on disk. B batch, C channels, H W pixels."""

import hashlib
import json
import multiprocessing
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.miniature.captions import caption
from models.miniature.scenes import Look, render, scene
from scripts.miniature.loop import Options, log, write_whole

SEASON_NAMED_SHARE = 0.88  # of the captions; the others must leave the season open
CAPTIONS = 4  # wordings per training picture


def training_look(seed: int, sketch_share: float) -> Look:
    """The look in which the teacher sees a scene: any season, sometimes a sketch."""
    return Look("any", style="sketch" if random.Random(seed * 23 + 9).random() < sketch_share else "photo")


def varied_look(seed: int) -> Look:
    """The look in which the judges (scorer, segmenter) see a scene: any season, often another species, sometimes a sketch."""
    rng = random.Random(seed * 37 + 2)
    species = rng.choice((None, None, None, None, "oak", "birch", "pine", "pine"))
    return Look("any", species, "sketch" if rng.random() < 0.3 else "photo")


def sentences(seed: int, look: Look, count: int = CAPTIONS) -> list[str]:
    """`count` captions, the season named in most of them."""
    rng = random.Random(seed * 29 + 1)
    return [
        caption(scene(seed), look, variant, rng.random() < SEASON_NAMED_SHARE) for variant in range(count)
    ]


def pictures(seeds: range, look: Look) -> np.ndarray:
    """uint8 pictures (N, 128, 128, 3) of the scenes in that look."""
    return np.stack([np.asarray(render(scene(seed), look)) for seed in seeds])


def training_seeds(options: Options) -> range:
    """The seeds of the training scenes."""
    seeds = range(options.first_seed, options.first_seed + options.images)
    if seeds.stop > 1_000_000:
        raise SystemExit(
            "first_seed + images passes 1,000,000: seeds from there on are kept for validation and tests"
        )
    return seeds


def training_sentences(options: Options) -> list[str]:
    """CAPTIONS sentences of each training picture, one after the other."""
    return [
        text
        for seed in training_seeds(options)
        for text in sentences(seed, training_look(seed, options.sketch_share))
    ]


def _training_picture(sketch_share, seed):
    return np.asarray(render(scene(seed), training_look(seed, sketch_share)))


def training_pictures(options: Options) -> np.ndarray:
    """uint8 (N, 128, 128, 3) of the training scenes."""
    return rendered(
        options, "pictures", partial(_training_picture, options.sketch_share), options.sketch_share
    )


def rendered(options: Options, name: str, make_one: Callable[[int], Any], *key: object) -> np.ndarray:
    """The arrays make_one(seed) of the training scenes, stacked and kept on disk; `key`: what else they depend on."""

    def make():
        with multiprocessing.get_context("spawn").Pool(options.workers or os.cpu_count()) as pool:
            return np.stack(list(pool.imap(make_one, training_seeds(options), chunksize=32)))

    return kept(options, name, make, *key)


def kept(options: Options, name: str, make: Callable[[], np.ndarray], *key: object) -> np.ndarray:
    """The array make() of the training scenes from its file in `work`, made where it is not there; `key`: what else it depends on."""
    seeds = training_seeds(options)
    path = Path(options.work) / f"{name}-{hashlib.sha256(repr((seeds, *key)).encode()).hexdigest()[:12]}.npy"
    if not path.exists():
        log(f"making {name} of {len(seeds)} scenes")
        write_whole(path, partial(np.save, arr=make()))
    return np.load(path, mmap_mode="r")


def byte_pairs(texts: list[str], most: int) -> tuple[list[str], list[tuple[str, str]]]:
    """(entries, merges) of so many byte pairs of the lower-cased texts. Sorted: the library's own order differs from call to call."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=most, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"]), [tuple(pair) for pair in model["merges"]]


def to_tensor(images: np.ndarray, device="cpu") -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def flipped(image_BCHW: torch.Tensor) -> torch.Tensor:
    """Half of the pictures, by chance, mirrored."""
    return torch.where(
        torch.rand(len(image_BCHW), 1, 1, 1, device=image_BCHW.device) < 0.5, image_BCHW.flip(-1), image_BCHW
    )


def contrastive(logits_BB: torch.Tensor) -> torch.Tensor:
    """CLIP's loss: each picture's own text among all, and each text's own picture."""
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2
