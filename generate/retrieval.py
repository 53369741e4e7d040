"""Retrieval (Parmar et al. 2023, section 4): of a large source, the images nearest to the source word by CLIP."""

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
BATCH = 64  # of which the scorer looks at so many together
AESTHETICS = (
    "aesthetic",
    "aesthetics",
    "aesthetic_score",
    "aesthetics_score",
    "AESTHETIC_SCORE",
    "similarity_aesthetic",
)


def nearest(source: InputSource, config: Config) -> InputSource:
    """The k images of a source that are nearest to the task's source words, nearest first; a record has its similarity to them.

    Features are kept below <runs_dir>/retrieval, a file for each CHUNK of images, for this source and this scorer. Images whose metadata
    has an aesthetics score below source.retrieve.aesthetics are left out, and those that cannot be read.
    """
    asked = config.source.retrieve
    folder = (
        Path(config.runs_dir)
        / "retrieval"
        / digest(config.source.images, source.names, config.scorer, scorer_files(config.scorer))
    )
    similarity_N = _similarity(source, config, folder)
    readable_N = np.isfinite(similarity_N)
    if not readable_N.all():
        print(
            f"retrieval: {np.count_nonzero(~readable_N)} of {len(readable_N)} images could not be read and were passed over",
            flush=True,
        )
    by_similarity = np.argsort(-similarity_N, kind="stable")[: np.count_nonzero(readable_N)].tolist()
    if asked.aesthetics:  # a look into each image's metadata
        by_similarity = [
            index for index in by_similarity if _aesthetics(source.metadata(index)) >= asked.aesthetics
        ]
    if not by_similarity:
        raise UserError(
            f"source.images={config.source.images}: no readable image of aesthetics {asked.aesthetics:g} or more in it"
        )
    kept = by_similarity[: min(asked.k, config.generate.pairs)]
    rows = [{"id": source.names[index], "similarity": round(float(similarity_N[index]), 4)} for index in kept]
    write_json(
        folder / f"nearest-{digest(config.task.source)}.json", {"text": config.task.source, "nearest": rows}
    )

    def load(place: int) -> InputImage:
        item = source.load(kept[place])
        return replace(item, source=item.source | {"similarity": rows[place]["similarity"]})

    return InputSource([source.names[index] for index in kept], load)


def _aesthetics(metadata: dict[str, Any]) -> float:
    """The score where there is one."""
    return next(
        (float(metadata[key]) for key in AESTHETICS if isinstance(metadata.get(key), int | float)), math.inf
    )


def _similarity(source: InputSource, config: Config, folder: Path) -> np.ndarray:
    """Cosine of every image and the source words, N; NaN where it cannot be read."""
    scorer = ClipScorer(config.scorer, pick_device(config.device))
    text_D = scorer.text_features([config.task.source])[0].cpu().numpy()
    count, parts = len(source.names), []
    for start in range(0, count, CHUNK):
        path = folder / f"{start // CHUNK:06d}.npy"
        if not path.exists():
            stop = min(start + CHUNK, count)
            with whole_file(path) as stream:
                np.save(stream, _features(source, range(start, stop), scorer, len(text_D)))
            print(f"retrieval: {stop} of {count} images looked at", flush=True)
        parts.append(np.load(path, allow_pickle=False))
    return np.concatenate(parts) @ text_D


def _features(source: InputSource, ids: range, scorer: ClipScorer, width: int) -> np.ndarray:
    """Unit features N x D of these images; NaN where one cannot be read."""

    def read(index: int) -> np.ndarray | None:
        try:
            return source.load(index).image
        except Unreadable:
            return None

    features_ND = np.full((len(ids), width), np.nan, np.float32)
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(ids), BATCH):
            images = dict(enumerate(pool.map(read, ids[start : start + BATCH]), start))
            readable = {row: image for row, image in images.items() if image is not None}
            if readable:
                features_ND[list(readable)] = scorer.image_features(list(readable.values())).cpu().numpy()
    return features_ND
