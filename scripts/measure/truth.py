"""The true edit of a rendered scene."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from configs.schema import Config
from models.miniature.scenes import Look, render, scene


def true_edit(config: Config, source: Mapping[str, Any], side: int) -> np.ndarray:
    """The true edit of a rendered scene (`source`: what its pair's record says under 'source'), RGB uint8 side x side x 3."""
    picture = render(scene(source["scene_seed"]), Look(**config.task.scene_truth))
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))
