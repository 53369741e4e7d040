"""Where the inputs come from: rendered scenes, photographs, webdataset tars, or prompts alone. Same ids in the same order, every time."""

import contextlib
import glob
import hashlib
import io
import json
import re
import tarfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
from braceexpand import braceexpand
from PIL import Image, ImageOps

from configs.errors import UserError
from configs.schema import Source, Task
from generate.shards import read_member, tar_members
from models.miniature.captions import caption
from models.miniature.scenes import Look, render, scene

FORMATS = ["PNG", "JPEG", "WEBP"]
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
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


@dataclass(frozen=True)
class InputSource:
    """A list of inputs that can be read in any order, by any thread or process.

    names: what a message calls each. load: reads the input at an index; raises Unreadable. metadata: what else is known of it.
    """

    names: Sequence[str]
    load: Callable[[int], InputImage]
    metadata: Callable[[int], dict[str, Any]] = lambda index: {}


def open_source(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """The source that the configuration names, at most `limit` images of it. UserError where it holds none."""
    if config.prompts and config.images:
        raise UserError("source.images and source.prompts are two sources: name one")
    if config.prompts:
        return _prompts(config, limit)
    if not config.images:
        return _scenes(config, task, resolution, limit)
    if config.images.startswith("pipe:"):
        raise UserError(f"source.images={config.images}: a pipe: runs a command and is refused; name files or an address")
    in_tars = config.images.endswith(".tar") or "://" in config.images
    source = (_tars if in_tars else _photos)(config, task, resolution, limit)
    if not source.names:
        raise UserError(f"source.images={config.images}: no {', '.join(SUFFIXES)} {'member' if in_tars else 'file'} in it")
    return source


def _scenes(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """Scenes rendered by models/miniature, one a seed, in the task's input look."""
    if not task.scene_input:
        raise UserError(f"task={task.name} renders no scenes: name the images to edit with source.images=FOLDER")
    look = Look(**task.scene_input)
    names = [f"scene-{config.first_seed + index}" for index in range(limit)]

    def load(index: int) -> InputImage:
        seed = config.first_seed + index
        picture = render(scene(seed), look).resize((resolution, resolution), Image.Resampling.LANCZOS)
        text = config.caption or caption(scene(seed), look, name_season=True)
        origin = "source.caption" if config.caption else "scene"
        return InputImage(names[index], np.asarray(picture), text, origin, {"id": names[index], "scene_seed": seed})

    return InputSource(names, load)


def _prompts(config: Source, limit: int) -> InputSource:
    """Inputs that the teacher makes itself: the prompts of a bank in turn, each time from another seed, so no inversion is needed."""
    from generate.directions import read_bank

    prompts, bank = read_bank(config.prompts, "source.prompts"), Path(config.prompts).name
    names = [f"prompt-{index:06d}" for index in range(limit)]  # the seed derives from it

    def load(index: int) -> InputImage:
        nothing = np.empty((0, 0, 3), np.uint8)
        return InputImage(names[index], nothing, prompts[index % len(prompts)], bank, {"id": names[index]})

    return InputSource(names, load)


def _photos(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """A folder of images (searched through), one image file, or a .txt that lists them, a path a line.

    A caption is in NAME.txt beside the photograph, what else is known of it in NAME.json. A name is the path below the folder.
    """
    root = Path(config.images)
    if not root.exists():
        raise UserError(f"source.images={config.images}: no such folder or image")
    if root.suffix == ".txt":
        found = [root.parent / line.strip() for line in root.read_text().splitlines() if line.strip()]
        root = root.parent
    elif root.is_file():
        found = [root]
    else:
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    paths = found[:limit]
    names = [path.relative_to(root).as_posix() if path != root and path.is_relative_to(root) else path.name for path in paths]

    def load(index: int) -> InputImage:
        image = read_square(paths[index], resolution, config.max_pixels)
        beside = paths[index].with_suffix(".txt")
        own = (beside.read_text(errors="replace"), beside.name) if beside.is_file() else ("", "")
        return _photo(config, task, names[index], image, *own)

    def metadata(index: int) -> dict[str, Any]:
        beside = paths[index].with_suffix(".json")
        return _json_object(beside.read_bytes()) if beside.is_file() else {}

    return InputSource(names, load, metadata)


def _tars(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """Webdataset tars as img2dataset writes them: one, or several by a glob or {0..9}; local, or at an address that fsspec knows.

    A caption is in KEY.txt, else in KEY.json's 'caption', and what else is known in KEY.json. A name is TAR/KEY.
    """
    entries: list[tuple[str, str, dict[str, tuple[int, int]]]] = []  # name, local tar, offset and size by extension
    try:
        for pattern in braceexpand(config.images):
            for path in local_files(pattern):
                shown = Path(path if "*" in pattern else pattern).name
                entries += [(f"{shown}/{key}", path, parts) for key, parts in tar_members(Path(path)).items() if _image_part(parts)]
    except (OSError, ValueError, ImportError, tarfile.TarError) as error:
        raise UserError(f"source.images={config.images} cannot be read as webdataset tars: {error}") from error
    entries = entries[:limit]

    def member(index: int, extension: str) -> bytes:
        _, path, parts = entries[index]
        return read_member(Path(path), parts[extension]) if extension in parts else b""

    def load(index: int) -> InputImage:
        name, _, parts = entries[index]
        image = read_square(io.BytesIO(member(index, _image_part(parts))), resolution, config.max_pixels)
        own = member(index, "txt").decode(errors="replace"), "txt"
        if not own[0].strip():
            own = str(metadata(index).get("caption") or ""), "json"
        return _photo(config, task, name, image, *own)

    def metadata(index: int) -> dict[str, Any]:
        return _json_object(member(index, "json"))

    return InputSource([name for name, _, _ in entries], load, metadata)


def _image_part(parts: dict[str, tuple[int, int]]) -> str:
    return next((suffix[1:] for suffix in SUFFIXES if suffix[1:] in parts), "")


def local_files(pattern: str) -> list[str]:
    """The files that a path or glob names, sorted; those behind an address are fetched into ~/.cache/zero2gan first."""
    if "://" not in pattern:
        return sorted(glob.glob(pattern)) or [pattern]
    found = fsspec.open_local(f"filecache::{pattern}", filecache={"cache_storage": str(Path.home() / ".cache" / "zero2gan")})
    return [found] if isinstance(found, str) else sorted(found)


def _json_object(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(data)
        return found if isinstance(found, dict) else {}
    return {}


def _photo(config: Source, task: Task, name: str, image: np.ndarray, own: str, origin: str) -> InputImage:
    """The caption: source.caption, else the image's own, from `origin`, else the task's template."""
    text = config.caption or own.strip() or task.caption.format(source=task.source)
    origin = "source.caption" if config.caption else origin if own.strip() else "task.caption"
    return InputImage(photo_key(name), image, text, origin, {"id": name})


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
