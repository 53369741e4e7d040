"""Where the inputs come from: rendered scenes, photographs, webdataset tars, or prompts alone. Same ids in the same order, every time."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
from braceexpand import braceexpand
from PIL import Image, ImageOps, UnidentifiedImageError

from configs.errors import UserError
from configs.schema import Source, Task
from generate.banks import read_bank
from generate.shards import open_image, read_member, tar_members
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
    source: dict[str, Any]


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
        raise UserError(
            f"source.images={config.images}: a pipe: runs a command and is refused; name files or an address"
        )
    in_tars = config.images.endswith(".tar") or "://" in config.images
    source = (_tars if in_tars else _photos)(config, task, resolution, limit)
    if not source.names:
        raise UserError(
            f"source.images={config.images}: no {', '.join(SUFFIXES)} {'member' if in_tars else 'file'} in it"
        )
    return source


def _scenes(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """Scenes rendered by models/miniature, one a seed, in the task's input look."""
    if not (config.scenes and task.scene_input):
        raise UserError(
            f"no scenes are rendered for task={task.name} with this teacher: name the images to edit with source.images=FOLDER, "
            "or prompts to make them from with source.prompts=FILE"
        )
    look = Look(**task.scene_input)
    names = [f"scene-{config.first_seed + index}" for index in range(limit)]

    def load(index: int) -> InputImage:
        seed = config.first_seed + index
        picture = render(scene(seed), look).resize((resolution, resolution), Image.Resampling.LANCZOS)
        text = config.caption or caption(scene(seed), look, name_season=True)
        origin = "source.caption" if config.caption else "scene"
        return InputImage(
            names[index], np.asarray(picture), text, origin, {"id": names[index], "scene_seed": seed}
        )

    return InputSource(names, load)


def _prompts(config: Source, limit: int) -> InputSource:
    """Inputs that the teacher makes itself: the prompts of a bank in turn, each time from another seed, so no inversion is needed."""
    prompts, bank = read_bank(config.prompts, "source.prompts"), Path(config.prompts).name
    names = [f"prompt-{index:06d}" for index in range(limit)]  # the seed derives from it
    nothing = np.empty((0, 0, 3), np.uint8)
    return InputSource(
        names,
        lambda index: InputImage(
            names[index], nothing, prompts[index % len(prompts)], bank, {"id": names[index]}
        ),
    )


def _photos(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """A folder of images (searched through), one image file, or a .txt that lists them, a path a line.

    A caption is in NAME.txt beside the photograph, what else is known of it in NAME.json. A name is the path below the folder.
    """
    root = Path(config.images)
    if not root.exists():
        raise UserError(f"source.images={config.images}: no such folder or image")
    if root.suffix == ".txt":
        found = [root.parent / line.strip() for line in root.read_text().splitlines() if line.strip()]
    elif root.is_file():
        found = [root]
    else:
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    paths, folder = found[:limit], root if root.is_dir() else root.parent

    def beside(index: int, suffix: str) -> tuple[bytes, str]:
        path = paths[index].with_suffix(suffix)
        return (path.read_bytes() if path.is_file() else b""), path.name

    names = [
        path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name for path in paths
    ]
    return _pictures(config, task, resolution, names, paths.__getitem__, beside)


def _tars(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """Webdataset tars as img2dataset writes them: one, or several by a glob or {0..9}; local, or at an address that fsspec knows.

    A caption is in KEY.txt, else in KEY.json's 'caption', and what else is known in KEY.json. A name is TAR/KEY.
    """
    names: list[str] = []
    members: list[tuple[Path, dict[str, tuple[int, int]]]] = []  # the local tar; offset and size by extension
    try:
        for pattern in braceexpand(config.images):
            for path in local_files(pattern):
                pictured = {key: parts for key, parts in tar_members(path).items() if _image_suffix(parts)}
                shown = path.name if "*" in pattern else Path(pattern).name
                names += [f"{shown}/{key}" for key in pictured]
                members += [(path, parts) for parts in pictured.values()]
    except (OSError, ValueError, ImportError, tarfile.TarError) as error:
        raise UserError(
            f"source.images={config.images} cannot be read as webdataset tars: {error}"
        ) from error

    def beside(index: int, suffix: str) -> tuple[bytes, str]:
        path, parts = members[index]
        return (read_member(path, parts[suffix[1:]]) if suffix[1:] in parts else b""), suffix[1:]

    def image(index: int) -> IO[bytes]:
        return io.BytesIO(beside(index, _image_suffix(members[index][1]))[0])

    return _pictures(config, task, resolution, names[:limit], image, beside, captions_in_json=True)


def _image_suffix(parts: dict[str, tuple[int, int]]) -> str:
    return next((suffix for suffix in SUFFIXES if suffix[1:] in parts), "")


def local_files(pattern: str) -> list[Path]:
    """The files that a path or glob names, sorted; those behind an address are fetched into ~/.cache/zero2gan first."""
    cache = {"cache_storage": str(Path.home() / ".cache" / "zero2gan")}
    found = (
        fsspec.open_local(f"filecache::{pattern}", filecache=cache)
        if "://" in pattern
        else fsspec.open_local(pattern)
    )
    return [Path(found)] if isinstance(found, str) else sorted(map(Path, found))


def _pictures(
    config: Source,
    task: Task,
    resolution: int,
    names: Sequence[str],
    image: Callable[[int], Path | IO[bytes]],
    beside: Callable[[int, str], tuple[bytes, str]],
    captions_in_json: bool = False,
) -> InputSource:
    """Images with what lies beside them: beside(index, suffix) is its content, empty where there is none, and what a record calls it.

    The caption is source.caption, else the image's own, else the task's template.
    """

    def metadata(index: int) -> dict[str, Any]:
        try:
            found = json.loads(beside(index, ".json")[0])
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def load(index: int) -> InputImage:
        picture = read_square(image(index), resolution, config.max_pixels)
        content, name = beside(index, ".txt")
        captions = {"source.caption": config.caption, name: content.decode(errors="replace").strip()}
        if captions_in_json:
            captions["json"] = str(metadata(index).get("caption") or "").strip()
        template = "task.caption", task.caption.format(source=task.source)
        origin, text = next(((origin, text) for origin, text in captions.items() if text), template)
        return InputImage(photo_key(names[index]), picture, text, origin, {"id": names[index]})

    return InputSource(names, load, metadata)


def photo_key(name: str) -> str:
    """A readable key of a relative path, made unique by a hash of the whole path."""
    readable = re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:KEY_LENGTH]
    return f"{readable or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def read_square(file: Path | IO[bytes], side: int, max_pixels: int) -> np.ndarray:
    """The image upright, as RGB uint8 side x side x 3: centre square, Lanczos; transparency over white, 16 bit scaled to 8.

    Raises Unreadable for anything but a PNG, JPEG or WebP of at most max_pixels.
    """
    try:
        with open_image(file, FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Unreadable(f"{image.width} x {image.height} is above source.max_pixels={max_pixels}")
            image.draft("RGB", (side, side))
            upright = _to_rgb(ImageOps.exif_transpose(image))
    except (
        UnidentifiedImageError
    ) as error:  # its own text names an address in memory: no two runs would say the same
        raise Unreadable("no PNG, JPEG or WebP image") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise Unreadable(str(error)) from error
    return np.asarray(ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray((values / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(
            "RGB"
        )
    return image.convert("RGB")
