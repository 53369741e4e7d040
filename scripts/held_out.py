"""What scripts/demo.py edited, compared and timed, kept in <run>/demo: every later report has it too.

demo/results.json       distances, timings, seconds, and the rows with the names of their pictures; last
demo/000-input.png      the pictures of the rows
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.errors import UserError
from configs.files import write_json

RESULTS = "demo/results.json"  # in <run>
EXPORTED = "export/config.json"


@dataclass
class HeldOut:
    """rows: held-out scenes {'title': str, 'images': {name: RGB uint8 H x W x 3}}. distances: what was
    compared, its PSNR in dB and its LPIPS. timings: seconds of each stage. *_seconds: of one image;
    0 where it was not timed. images_seen: by the generator that edited them; None where it is not known.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    distances: Sequence[tuple[str, float, float]] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    teacher_seconds: float = 0.0
    generator_seconds: float = 0.0
    images_seen: int | None = None


def images_seen(run: Path) -> int | None:
    """How many training images the run's exported generator has seen; None where there is none."""
    path = run / EXPORTED
    return json.loads(path.read_text()).get("images_seen") if path.exists() else None


def keep(run: Path, results: HeldOut) -> None:
    """Write them to the run, in place of those from before."""
    path = run / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    for picture in path.parent.glob("*.png"):
        picture.unlink()
    rows = []
    for number, row in enumerate(results.rows):
        names = {}
        for name, image_HWC in row["images"].items():
            names[name] = f"{number:03d}-{name}.png"
            Image.fromarray(image_HWC).save(path.parent / names[name])
        rows.append({"title": row["title"], "images": names})
    write_json(path, {**vars(results), "timings": list(results.timings.items()), "rows": rows})


def kept(run: Path) -> HeldOut:
    """Those of the run, empty where there are none. UserError where they cannot be read."""
    path = run / RESULTS
    if not path.exists():
        return HeldOut()
    try:
        content = json.loads(path.read_text())
        for row in content["rows"]:
            for name, file in row["images"].items():
                with Image.open(path.parent / file, formats=["PNG"]) as image:
                    row["images"][name] = np.asarray(image.convert("RGB"))
        return HeldOut(**content | {"timings": dict(content["timings"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete {path.parent}, or run scripts/demo.py again"
        ) from error
