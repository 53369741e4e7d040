"""Held-out images: scenes that no stage sees, their true edits, and what a generator has seen."""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from PIL import Image

from configs.runs import pairs_dir
from configs.schema import Config, Source
from generate.shards import is_finished, read_manifest
from models.miniature.scenes import Look, render, scene

# The names of the two sets of images that every set of edits is compared with.
INPUT = "input unchanged"
TRUTH = "true edit"


def true_edit(config: Config, source: Mapping[str, Any], side: int) -> np.ndarray:
    """The true edit of a rendered scene, RGB uint8 side x side x 3.

    source: what the record of its pair says of the source.
    """
    picture = render(scene(source["scene_seed"]), Look(**config.task.scene_truth))
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))


def held_out_scenes(config: Config) -> Source:
    """The source of the scenes that edits are measured on: rendered, from evaluate.first_seed on."""
    return Source(
        scenes=config.source.scenes,
        caption=config.source.caption,
        first_seed=config.evaluate.first_seed,
    )


def trained_on(config: Config, keys: Set[str]) -> bool:
    """Whether any of the images, named by their keys, is an input of the run's pairs."""
    for shard in pairs_dir(config).glob("[0-9]*.tar"):
        if is_finished(shard) and not keys.isdisjoint(read_manifest(shard)["keys"]):
            return True
    return False
