"""Retrieval (Parmar et al. 2023, section 4): of a large source, the images nearest to the source word by CLIP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.loader import digest, scorer_files
from configs.schema import Config
from generate.shards import write_json
from generate.sources import InputImage, InputSource, Unreadable

CHUNK = 1024  # images whose features go into one file: what an interruption can cost
AESTHETICS = ("aesthetic", "aesthetics", "aesthetic_score", "aesthetics_score", "AESTHETIC_SCORE", "similarity_aesthetic")


class Nearest:
    """The k images of a source that are nearest to the task's source words, nearest first; an InputSource.

    Features are kept below <runs_dir>/retrieval, a file for each CHUNK of images, for this source and this scorer. Images whose metadata
    has an aesthetics score below source.retrieve.aesthetics are left out, and those that cannot be read.
    """

    def __init__(self, source: InputSource, config: Config) -> None:
        asked = config.source.retrieve
        self.source = source
        names = [source.name(index) for index in range(len(source))]
        folder = Path(config.runs_dir) / "retrieval" / digest(config.source.images, names, config.scorer, scorer_files(config.scorer))
        features_ND, text_D = _features(source, config, folder)
        similarity = features_ND @ text_D
        readable = np.isfinite(similarity)
        if not readable.all():
            print(f"retrieval: {np.count_nonzero(~readable)} of {len(source)} images could not be read and were passed over", flush=True)
        fit = np.flatnonzero(readable)
        if asked.aesthetics:  # a look into each image's metadata
            scores = [aesthetics_of(source.metadata(index)) for index in fit.tolist()]
            fit = fit[[score is None or score >= asked.aesthetics for score in scores]]
        if not len(fit):
            raise UserError(f"source.images={config.source.images}: no readable image of aesthetics {asked.aesthetics:g} or more in it")
        self.kept = fit[np.argsort(-similarity[fit], kind="stable")][: min(asked.k, config.generate.pairs)]
        self.similarity = similarity
        rows = [{"id": self.source.name(index), "similarity": round(float(similarity[index]), 4)} for index in self.kept]
        write_json(folder / f"nearest-{digest(config.task.source)}.json", {"text": config.task.source, "nearest": rows})

    def __len__(self) -> int:
        return len(self.kept)

    def name(self, index: int) -> str:
        """As the source calls it."""
        return self.source.name(self.kept[index])

    def metadata(self, index: int) -> dict[str, Any]:
        """What the source knows of it."""
        return self.source.metadata(self.kept[index])

    def load(self, index: int) -> InputImage:
        """Read one; the record has its similarity to the text."""
        item = self.source.load(self.kept[index])
        item.about["similarity"] = round(float(self.similarity[self.kept[index]]), 4)
        return item


def aesthetics_of(metadata: dict[str, Any]) -> float | None:
    """The aesthetics score of an image's metadata, None where it has none."""
    return next((float(metadata[key]) for key in AESTHETICS if isinstance(metadata.get(key), int | float)), None)


def _features(source: InputSource, config: Config, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Unit features N x D of every image (NaN where it cannot be read), and of the source words, D."""
    from models.clip_scorer import ClipScorer
    from models.devices import pick_device

    scorer = ClipScorer(config.scorer, pick_device(config.generate.device))
    text_D = scorer.text_features([config.task.source])[0].cpu().numpy()
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(source), CHUNK):
        path = folder / f"{start // CHUNK:06d}.npy"
        if not path.exists():
            found = [_embed(scorer, batch, len(text_D)) for batch in _batches(source, range(start, min(start + CHUNK, len(source))))]
            temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
            np.save(temporary, np.concatenate(found))
            temporary.replace(path)
            print(f"retrieval: {min(start + CHUNK, len(source))} of {len(source)} images looked at", flush=True)
        parts.append(np.load(path, allow_pickle=False))
    return np.concatenate(parts), text_D


def _batches(source: InputSource, ids: range, size: int = 64) -> Iterator[list[np.ndarray | None]]:
    def read(index: int) -> np.ndarray | None:
        try:
            return source.load(index).image
        except Unreadable:
            return None

    with ThreadPoolExecutor(4) as pool:
        for start in range(ids.start, ids.stop, size):
            yield list(pool.map(read, range(start, min(start + size, ids.stop))))


def _embed(scorer: Any, images: list[np.ndarray | None], width: int) -> np.ndarray:
    features = np.full((len(images), width), np.nan, np.float32)
    readable = [row for row, image in enumerate(images) if image is not None]
    if readable:
        features[readable] = scorer.image_features([image for image in images if image is not None]).cpu().numpy()
    return features
