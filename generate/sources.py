"""Where the inputs come from: rendered scenes, photographs, webdataset tars, or prompts alone. Same ids in the same order, every time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

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
    """An input: key `[a-z0-9_-]+`, RGB uint8 side x side x 3 (empty: its caption makes it), its caption, where that came from, and what the
    record says of the source.
    """

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

    def metadata(self, index: int) -> dict[str, Any]:
        """What is known of it beside its caption ({}: nothing)."""


def open_source(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """The source that the configuration names, at most `limit` images of it. UserError where it holds none."""
    if config.prompts and config.images:
        raise UserError("source.images and source.prompts are two sources: name one")
    if config.prompts:
        return PromptSource(config, task, limit)
    if config.images.startswith("pipe:"):
        raise UserError(f"source.images={config.images}: a pipe: runs a command and is refused; name files or an address")
    if config.images.endswith(".tar") or "://" in config.images:
        return TarSource(config, task, resolution, limit)
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

    def metadata(self, index: int) -> dict[str, Any]:
        """Nothing."""
        return {}


class PromptSource:
    """Inputs that the teacher makes itself: the prompts of a bank in turn, each time from another seed, so no inversion is needed."""

    def __init__(self, config: Source, task: Task, limit: int) -> None:
        from generate.directions import read_bank

        self.prompts, self.count, self.bank = read_bank(config.prompts, "source.prompts"), limit, Path(config.prompts).name

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """prompt-INDEX, from which the seed derives."""
        return f"prompt-{index:06d}"

    def load(self, index: int) -> InputImage:
        """A prompt and no image."""
        prompt = self.prompts[index % len(self.prompts)]
        return InputImage(self.name(index), np.empty((0, 0, 3), np.uint8), prompt, self.bank, {"id": self.name(index)})

    def metadata(self, index: int) -> dict[str, Any]:
        """Nothing."""
        return {}


class PhotoSource:
    """A folder of PNG, JPEG and WebP images (searched through), one image file, or a .txt that lists them, a path a line."""

    def __init__(self, config: Source, task: Task, resolution: int, limit: int) -> None:
        self.config, self.task, self.resolution = config, task, resolution
        self.root = Path(config.images)
        if not self.root.exists():
            raise UserError(f"source.images={config.images}: no such folder or image")
        if self.root.suffix == ".txt":
            found = [self.root.parent / line.strip() for line in self.root.read_text().splitlines() if line.strip()]
            self.root = self.root.parent
        elif self.root.is_file():
            found = [self.root]
        else:
            found = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        self.paths = found[:limit]
        if not self.paths:
            raise UserError(f"source.images={config.images}: no {', '.join(sorted(SUFFIXES))} file in it")

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's path below the folder."""
        path = self.paths[index]
        return path.relative_to(self.root).as_posix() if path != self.root and path.is_relative_to(self.root) else path.name

    def load(self, index: int) -> InputImage:
        """The centre square of the photograph; its caption from NAME.txt beside it, else from the task's template."""
        path, name = self.paths[index], self.name(index)
        image = read_square(path, self.resolution, self.config.max_pixels)
        beside = path.with_suffix(".txt")
        own = (beside.read_text(errors="replace"), beside.name) if beside.is_file() else ("", "")
        return InputImage(photo_key(name), image, *caption_of(self.config, self.task, *own), {"id": name})

    def metadata(self, index: int) -> dict[str, Any]:
        """What NAME.json beside the photograph says."""
        beside = self.paths[index].with_suffix(".json")
        return _json_object(beside.read_bytes()) if beside.is_file() else {}


class TarSource:
    """Webdataset tars as img2dataset writes them (KEY.jpg, KEY.txt, KEY.json): one, or several by a glob or {0..9}; local, or at an address
    that fsspec knows, fetched once into its cache.
    """

    def __init__(self, config: Source, task: Task, resolution: int, limit: int) -> None:
        from braceexpand import braceexpand

        self.config, self.task, self.resolution = config, task, resolution
        self.entries: list[tuple[str, str, dict[str, tuple[int, int]]]] = []  # name, local tar, offset and size by extension
        try:
            for pattern in braceexpand(config.images):
                for path in local_files(pattern):
                    self._index(path, Path(path if "*" in pattern else pattern).name)
        except (OSError, ValueError, ImportError, tarfile.TarError) as error:
            raise UserError(f"source.images={config.images} cannot be read as webdataset tars: {error}") from error
        self.entries = self.entries[:limit]
        if not self.entries:
            raise UserError(f"source.images={config.images}: no {', '.join(sorted(SUFFIXES))} member in it")

    def _index(self, path: str, shown: str) -> None:
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if member.isfile():
                    samples.setdefault(f"{folder}/{stem}" if folder else stem, {})[extension.lower()] = (member.offset_data, member.size)
        self.entries += [(f"{shown}/{key}", path, parts) for key, parts in samples.items() if _image_part(parts)]

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """TAR/KEY."""
        return self.entries[index][0]

    def load(self, index: int) -> InputImage:
        """The centre square of the image; its caption from KEY.txt, else from KEY.json's 'caption', else from the task's template."""
        name, _, parts = self.entries[index]
        image = read_square(io.BytesIO(self._member(index, _image_part(parts))), self.resolution, self.config.max_pixels)
        own = self._member(index, "txt").decode(errors="replace"), "txt"
        if not own[0].strip():
            own = str(self.metadata(index).get("caption") or ""), "json"
        return InputImage(photo_key(name), image, *caption_of(self.config, self.task, *own), {"id": name})

    def metadata(self, index: int) -> dict[str, Any]:
        """What KEY.json says."""
        return _json_object(self._member(index, "json"))

    def _member(self, index: int, extension: str) -> bytes:
        _, path, parts = self.entries[index]
        if extension not in parts:
            return b""
        with open(path, "rb") as stream:
            stream.seek(parts[extension][0])
            return stream.read(parts[extension][1])


def local_files(pattern: str) -> list[str]:
    """The files that a path or glob names, sorted; those behind an address are fetched into ~/.cache/zero2gan first."""
    import glob

    import fsspec

    if "://" not in pattern:
        return sorted(glob.glob(pattern)) or [pattern]
    found = fsspec.open_local(f"filecache::{pattern}", filecache={"cache_storage": str(Path.home() / ".cache" / "zero2gan")})
    return [found] if isinstance(found, str) else sorted(found)


def _json_object(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(data)
        return found if isinstance(found, dict) else {}
    return {}


def _image_part(parts: Mapping[str, Any]) -> str:
    return next((suffix[1:] for suffix in sorted(SUFFIXES) if suffix[1:] in parts), "")


def caption_of(config: Source, task: Task, own: str, origin: str) -> tuple[str, str]:
    """(caption, where it is from): source.caption, else the image's own, else the task's template."""
    if config.caption:
        return config.caption, "source.caption"
    if own.strip():
        return own.strip(), origin
    return task.caption.format(source=task.source), "task.caption"


def photo_key(name: str) -> str:
    """A readable key of a relative path, made unique by a hash of the whole path."""
    readable = re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:KEY_LENGTH]
    return f"{readable or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def read_square(path: Path | IO[bytes], side: int, max_pixels: int) -> np.ndarray:
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
