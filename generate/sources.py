"""Where the input images come from: rendered scenes, or a folder of photographs. Same ids in the same order, every time."""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from configs.errors import UserError
from configs.schema import Source, Task

FORMATS = ["PNG", "JPEG", "WEBP"]
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
KEY_LENGTH = 48


class Unreadable(Exception):
    """One image that cannot be used; it is counted and left out."""


@dataclass(frozen=True)
class InputImage:
    """An input: key `[a-z0-9_-]+`, RGB uint8 side x side x 3, its caption, where that came from, and what the record says of the source."""

    key: str
    image: np.ndarray
    caption: str
    caption_from: str
    about: dict[str, Any]


class InputSource(Protocol):
    """A list of inputs that can be read in any order, by any process."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a message calls the input."""

    def load(self, index: int) -> InputImage:
        """Read one; raises Unreadable."""


def open_source(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """The source that the configuration names, at most `limit` images of it. UserError where it holds none."""
    if config.images:
        return PhotoSource(config, task, resolution, limit)
    return SceneSource(config, task, resolution, limit)


class SceneSource:
    """Scenes rendered by models/miniature, one a seed, in the task's input look."""

    def __init__(self, config: Source, task: Task, resolution: int, limit: int) -> None:
        from models.miniature.scenes import Look

        if not task.scene_input:
            raise UserError(f"task={task.name} renders no scenes: name the images to edit with source.images=FOLDER")
        self.look, self.first_seed, self.count, self.resolution = Look(**task.scene_input), config.first_seed, limit, resolution
        self.caption = config.caption

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """scene-SEED."""
        return f"scene-{self.first_seed + index}"

    def load(self, index: int) -> InputImage:
        """The scene in the input look, with a caption in varied words."""
        from models.miniature.captions import caption
        from models.miniature.scenes import render, scene

        seed = self.first_seed + index
        picture = render(scene(seed), self.look).resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        text = self.caption or caption(scene(seed), self.look, name_season=True)
        origin = "source.caption" if self.caption else "scene"
        return InputImage(self.name(index), np.asarray(picture), text, origin, {"id": self.name(index), "scene_seed": seed})


class PhotoSource:
    """A folder of PNG, JPEG and WebP images (searched through), or one image file."""

    def __init__(self, config: Source, task: Task, resolution: int, limit: int) -> None:
        self.config, self.task, self.resolution = config, task, resolution
        self.root = Path(config.images)
        if not self.root.exists():
            raise UserError(f"source.images={config.images}: no such folder or image")
        found = [self.root] if self.root.is_file() else [p for p in self.root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        self.paths = sorted(found)[:limit]
        if not self.paths:
            raise UserError(f"source.images={config.images}: no {', '.join(sorted(SUFFIXES))} file in it")

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's path below the folder."""
        path = self.paths[index]
        return path.name if path == self.root else path.relative_to(self.root).as_posix()

    def load(self, index: int) -> InputImage:
        """The centre square of the photograph; its caption from NAME.txt beside it, else from the task's template."""
        path, name = self.paths[index], self.name(index)
        image = read_square(path, self.resolution, self.config.max_pixels)
        beside = path.with_suffix(".txt")
        template = self.task.caption.format(source=self.task.source)
        if self.config.caption:
            text, origin = self.config.caption, "source.caption"
        elif beside.is_file():
            text, origin = beside.read_text(errors="replace").strip() or template, beside.name
        else:
            text, origin = template, "task.caption"
        return InputImage(photo_key(name), image, text, origin, {"id": name})


def photo_key(name: str) -> str:
    """A readable key of a relative path, made unique by a hash of the whole path."""
    readable = re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:KEY_LENGTH]
    return f"{readable or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def read_square(path: Path, side: int, max_pixels: int) -> np.ndarray:
    """The image upright, as RGB uint8 side x side x 3: centre square, Lanczos; transparency over white, 16 bit scaled to 8.

    Raises Unreadable for anything but a PNG, JPEG or WebP of at most max_pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise Unreadable(f"{image.width} x {image.height} is above source.max_pixels={max_pixels}")
                image.draft("RGB", (side, side))
                upright = _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(str(error)) from error
    return np.asarray(ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray((values / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
