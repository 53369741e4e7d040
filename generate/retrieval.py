"""Retrieval (Parmar et al. 2023, section 4): the images nearest to the source words by CLIP.

N images, D channels of CLIP's common space.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.files import digest, whole_file, write_json
from configs.runs import scorer_files
from configs.schema import Config
from generate.sources import InputImage, InputSource, Unreadable
from models.clip_scorer import ClipScorer
from models.devices import pick_device

CHUNK = 1024  # images whose features go into one file: what an interruption can cost
BATCH = 64  # images that the scorer looks at together
WORKERS = 4  # threads that read images
# Where LAION's and other data sets' metadata hold the score
AESTHETICS = (
    "aesthetic",
    "aesthetics",
    "aesthetic_score",
    "aesthetics_score",
    "AESTHETIC_SCORE",
    "similarity_aesthetic",
)


def nearest(source: InputSource, config: Config) -> InputSource:
    """Of a large source the source.retrieve.k images nearest to the task's source words, nearest first.

    The record of an image has its similarity to the words. Left out are images that cannot be read,
    and those whose metadata have an aesthetics score below source.retrieve.aesthetics. Features are
    kept below <runs_dir>/retrieval for this source and this scorer. UserError where none is left.
    """
    folder = _features_folder(source, config)
    similarity_N = _similarity(source, config, folder)
    kept = _select(source, config, similarity_N)
    rows = []
    for index in kept:
        rows.append({"id": source.names[index], "similarity": round(float(similarity_N[index]), 4)})
    listing = {"text": config.task.source, "nearest": rows}
    write_json(folder / f"nearest-{digest(config.task.source)}.json", listing)

    def load(place: int) -> InputImage:
        item = source.load(kept[place])
        return replace(item, source=item.source | {"similarity": rows[place]["similarity"]})

    return InputSource([source.names[index] for index in kept], load)


def _features_folder(source: InputSource, config: Config) -> Path:
    """Where the features of this source by this scorer are kept."""
    made_of = digest(config.source.images, source.names, config.scorer, scorer_files(config.scorer))
    return Path(config.runs_dir) / "retrieval" / made_of


def _select(source: InputSource, config: Config, similarity_N: np.ndarray) -> list[int]:
    """Indices of the images to keep, the most similar first."""
    retrieve = config.source.retrieve
    readable = int(np.count_nonzero(np.isfinite(similarity_N)))
    unreadable = len(similarity_N) - readable
    if unreadable:
        print(
            f"retrieval: {unreadable} of {len(similarity_N)} images could not be read and were passed over",
            flush=True,
        )
    nearest_first = np.argsort(-similarity_N, kind="stable")[:readable].tolist()  # NaN are sorted to the end
    if retrieve.aesthetics:  # a look into the metadata of every image
        candidates = nearest_first
        nearest_first = []
        for index in candidates:
            if _aesthetics(source.metadata(index)) >= retrieve.aesthetics:
                nearest_first.append(index)
    if not nearest_first:
        raise UserError(
            f"source.images={config.source.images}: "
            f"no readable image of aesthetics {retrieve.aesthetics:g} or more in it"
        )
    return nearest_first[: min(retrieve.k, config.generate.pairs)]


def _aesthetics(metadata: dict[str, Any]) -> float:
    """The aesthetics score that an image's metadata hold; infinite where they hold none."""
    for key in AESTHETICS:
        if isinstance(metadata.get(key), int | float):
            return float(metadata[key])
    return math.inf


def _similarity(source: InputSource, config: Config, folder: Path) -> np.ndarray:
    """Cosine of every image and the task's source words, N; NaN where an image cannot be read.

    Features lie in `folder`, a file for every CHUNK of images; those that are not there are made.
    """
    scorer = ClipScorer(config.scorer, pick_device(config.device))
    text_D = scorer.text_features([config.task.source])[0].cpu().numpy()
    count = len(source.names)
    chunks = []
    for start in range(0, count, CHUNK):
        path = folder / f"{start // CHUNK:06d}.npy"
        if not path.exists():
            stop = min(start + CHUNK, count)
            with whole_file(path) as stream:
                np.save(stream, _features(source, range(start, stop), scorer, len(text_D)))
            print(f"retrieval: {stop} of {count} images looked at", flush=True)
        chunks.append(np.load(path, allow_pickle=False))
    return np.concatenate(chunks) @ text_D


def _features(source: InputSource, ids: range, scorer: ClipScorer, width: int) -> np.ndarray:
    """Unit features N x width of the images with these indices; NaN where one cannot be read."""

    def read(index: int) -> np.ndarray | None:
        try:
            return source.load(index).image
        except Unreadable:
            return None

    features_ND = np.full((len(ids), width), np.nan, np.float32)
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(ids), BATCH):
            rows = []
            images = []
            for row, image in enumerate(pool.map(read, ids[start : start + BATCH]), start):
                if image is not None:
                    rows.append(row)
                    images.append(image)
            if images:
                features_ND[rows] = scorer.image_features(images).cpu().numpy()
    return features_ND
