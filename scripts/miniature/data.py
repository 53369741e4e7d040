"""Training pictures and sentences: rendered by several processes, kept on disk.

B batch, C channels, H W pixels, N scenes.
"""

import hashlib
import json
import multiprocessing
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from configs.files import whole_file
from models.miniature.captions import caption
from models.miniature.scenes import Look, render, scene
from scripts.miniature.loop import log
from scripts.miniature.options import Options

SEASON_NAMED_SHARE = 0.88  # of the captions; the others must leave the season open
CAPTIONS = 4  # wordings per training picture
FIRST_HELD_OUT_SEED = 1_000_000  # training sees none from there on


def training_look(seed: int, sketch_share: float) -> Look:
    """The look in which the teacher sees a scene: any season, sometimes a sketch."""
    is_sketch = random.Random(seed * 23 + 9).random() < sketch_share
    return Look("any", style="sketch" if is_sketch else "photo")


def varied_look(seed: int) -> Look:
    """The look in which scorer and segmenter see a scene: any season, often another species or a sketch."""
    rng = random.Random(seed * 37 + 2)
    species = rng.choice((None, None, None, None, "oak", "birch", "pine", "pine"))
    return Look("any", species, "sketch" if rng.random() < 0.3 else "photo")


def sentences(seed: int, look: Look, count: int = CAPTIONS) -> list[str]:
    """`count` captions of the scene, the season named in most of them."""
    rng = random.Random(seed * 29 + 1)
    captions = []
    for variant in range(count):
        name_season = rng.random() < SEASON_NAMED_SHARE
        captions.append(caption(scene(seed), look, variant, name_season))
    return captions


def pictures(seeds: range, look: Look) -> np.ndarray:
    """uint8 pictures (N, 128, 128, 3) of the scenes in that look."""
    return np.stack([np.asarray(render(scene(seed), look)) for seed in seeds])


def training_seeds(options: Options) -> range:
    """The seeds of the training scenes; SystemExit where they reach those that are held out."""
    seeds = range(options.first_seed, options.first_seed + options.images)
    if seeds.stop > FIRST_HELD_OUT_SEED:
        raise SystemExit(
            f"first_seed + images passes {FIRST_HELD_OUT_SEED:,}: "
            "seeds from there on are kept for validation and tests"
        )
    return seeds


def training_sentences(options: Options) -> list[str]:
    """CAPTIONS sentences of each training picture, one after the other."""
    texts = []
    for seed in training_seeds(options):
        texts += sentences(seed, training_look(seed, options.sketch_share))
    return texts


def training_pictures(options: Options) -> np.ndarray:
    """uint8 (N, 128, 128, 3) of the training scenes."""
    make_picture = partial(_training_picture, sketch_share=options.sketch_share)
    return rendered(options, "pictures", make_picture, options.sketch_share)


def _training_picture(seed: int, sketch_share: float) -> np.ndarray:
    return np.asarray(render(scene(seed), training_look(seed, sketch_share)))


def rendered(
    options: Options, name: str, make_example: Callable[[int], np.ndarray], *key: object
) -> np.ndarray:
    """The arrays make_example(seed) of the training scenes, stacked: made by several processes, kept on disk.

    `key`: what else they depend on.
    """

    def make() -> np.ndarray:
        processes = options.workers or os.cpu_count()
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            return np.stack(list(pool.imap(make_example, training_seeds(options), chunksize=32)))

    return kept(options, name, make, *key)


def kept(options: Options, name: str, make: Callable[[], np.ndarray], *key: object) -> np.ndarray:
    """The array make() of the training scenes from its file in `work`, made where that is not there.

    `key`: what else than the seeds it depends on.
    """
    seeds = training_seeds(options)
    key_hash = hashlib.sha256(repr((seeds, *key)).encode()).hexdigest()[:12]
    path = Path(options.work) / f"{name}-{key_hash}.npy"
    if not path.exists():
        log(f"making {name} of {len(seeds)} scenes")
        array = make()
        with whole_file(path) as stream:
            np.save(stream, array)
    return np.load(path, mmap_mode="r")


def byte_pairs(texts: list[str], most: int) -> tuple[list[str], list[tuple[str, str]]]:
    """(entries, merges) of a vocabulary of at most `most` entries for the lower-cased texts.

    The entries are sorted, as the library's own order differs from call to call.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=most,
        initial_alphabet=[chr(code) for code in range(33, 127)],  # what ASCII prints
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [(first, second) for first, second in model["merges"]]
    return sorted(model["vocab"]), merges


def flipped(image_BCHW: torch.Tensor) -> torch.Tensor:
    """Half of the pictures, by chance, mirrored."""
    chance_B111 = torch.rand(len(image_BCHW), 1, 1, 1, device=image_BCHW.device)
    return torch.where(chance_B111 < 0.5, image_BCHW.flip(-1), image_BCHW)


def contrastive(logits_BB: torch.Tensor) -> torch.Tensor:
    """CLIP's loss: each picture's own text among all, and each text's own picture."""
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    of_pictures = F.cross_entropy(logits_BB, target_B)
    of_texts = F.cross_entropy(logits_BB.T, target_B)
    return (of_pictures + of_texts) / 2
