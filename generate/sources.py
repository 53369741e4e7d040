"""Where the inputs come from: photographs, webdataset tars, prompts alone, rendered scenes, ready pairs.

A source lists the same inputs in the same order every time. A new kind of source is a function with
the arguments of open_photos, an entry in OPENERS and a word in kind_of; its key stands in
configs/schema.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
from braceexpand import braceexpand
from PIL import Image, ImageOps, UnidentifiedImageError

from configs.errors import UserError
from configs.schema import Source, Task
from generate.banks import read_sentences
from generate.captions import choose_caption
from generate.shards import Member, open_image, read_member, tar_members
from models.miniature.captions import caption as scene_caption
from models.miniature.plants import SPECIES
from models.miniature.scenes import SEASONS, STYLES, Look, render, scene
from models.miniature.words import HOLDS
from models.published import download_folder
from models.translator import upright_rgb

FORMATS = ["PNG", "JPEG", "WEBP"]  # that Pillow may take a file for, whatever its name
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")  # of the files and tar members that are taken for pictures
# What Pillow raises for a damaged file, and for one of too many pixels.
PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
KEY_LENGTH = 48  # characters of a name that a key keeps: enough to know it again


class Unreadable(Exception):
    """An image that cannot be used; it is counted and left out."""


@dataclass(frozen=True)
class InputImage:
    """One input of the teacher.

    key: its name in a shard, `[a-z0-9_-]+`. image: RGB uint8 side x side x 3; 0 x 0 x 3 where the
    teacher makes it from the caption. caption_from: where the caption is from. source: what the
    pair's record says of the source. edit: the edited image, of the same form, where it is there
    already.
    """

    key: str
    image: np.ndarray
    caption: str
    caption_from: str
    source: dict[str, Any]
    edit: np.ndarray | None = None


def no_metadata(index: int) -> dict[str, Any]:
    """The metadata of a source that has none."""
    return {}


@dataclass(frozen=True)
class InputSource:
    """A list of inputs that can be read in any order, by any thread or process.

    names: what a message calls them. load: reads the input at an index; raises Unreadable.
    metadata: what else is known of the input at an index.
    """

    names: Sequence[str]
    load: Callable[[int], InputImage]
    metadata: Callable[[int], dict[str, Any]] = no_metadata


def open_source(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """The source that the configuration names, cut after `limit` inputs.

    resolution: side of the images in pixels. UserError where it names two sources, or one that holds
    nothing.
    """
    sources = {
        "source.images": config.images,
        "source.prompts": config.prompts,
        "source.pairs": config.pairs,
    }
    named = {key: value for key, value in sources.items() if value}
    if len(named) > 1:
        raise UserError(f"{' and '.join(list(named)[:2])} are two sources: name one")
    for key, value in named.items():
        if value.startswith("pipe:"):
            raise UserError(f"{key}={value}: a pipe: runs a command and is refused; name files or an address")
    return OPENERS[kind_of(config)](config, task, resolution, limit)


def kind_of(config: Source) -> str:
    """Which of OPENERS the configuration asks for."""
    if config.pairs:
        return "pairs"
    if config.prompts:
        return "prompts"
    if not config.images:
        return "scenes"
    if config.images.endswith(".tar") or "://" in config.images:
        return "tars"
    return "photos"


def _look(fields: Mapping[str, str], key: str) -> Look:
    """A look of its fields. UserError, which names those that there are, for any other."""
    try:
        return Look(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{key}={dict(fields)}: {error}. It takes season ({', '.join(SEASONS)} or any), species "
            f"({', '.join(SPECIES)}) and style ({', '.join(STYLES)})"
        ) from error


def open_scenes(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """Scenes that models/miniature renders in the task's input look, from source.first_seed on.

    UserError where the teacher knows no such scenes, or the task names no look that there is.
    """
    if not (config.scenes and task.scene_input):
        world = f" Its own world holds {HOLDS}: '{task.source}' to '{task.target}' is no change in it."
        raise UserError(
            f"no scenes are rendered for task={task.name} with this teacher: name the images to edit with "
            "source.images=FOLDER, or prompts to make them from with source.prompts=FILE."
            + (world if config.scenes else "")
        )
    look = _look(task.scene_input, "task.scene_input")
    if task.scene_truth:
        _look(task.scene_truth, "task.scene_truth")  # refused now, and not when the pairs are there
    names = [f"scene-{config.first_seed + index}" for index in range(limit)]

    def load(index: int) -> InputImage:
        seed = config.first_seed + index
        picture = render(scene(seed), look).resize((resolution, resolution), Image.Resampling.LANCZOS)
        own = {"scene": scene_caption(scene(seed), look, name_season=True)}
        caption, caption_from = choose_caption(config, task, own)
        record = {"id": names[index], "scene_seed": seed}
        return InputImage(names[index], np.asarray(picture), caption, caption_from, record)

    return InputSource(names, load)


def open_prompts(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """Inputs that the teacher makes itself: the prompts of a bank in turn, `limit` of them.

    The noise of an input is drawn from its key, so a prompt that comes again gives another picture.
    There is nothing to invert. UserError where there is no such file or no prompt in it.
    """
    prompts = read_sentences(config.prompts, "source.prompts")
    if not prompts:
        raise UserError(f"source.prompts={config.prompts}: no prompt in it; write one a line")
    bank_name = Path(config.prompts).name
    names = [f"prompt-{index:06d}" for index in range(limit)]
    no_image = np.empty((0, 0, 3), np.uint8)

    def load(index: int) -> InputImage:
        prompt = prompts[index % len(prompts)]
        return InputImage(names[index], no_image, prompt, bank_name, {"id": names[index]})

    return InputSource(names, load)


def open_pairs(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """Pairs that exist, generate/ready_pairs.py."""
    from generate.ready_pairs import open_ready_pairs  # which takes the rest from here

    return open_ready_pairs(config, task, resolution, limit)


@dataclass(frozen=True)
class PhotoFile:
    """A photograph, with its caption in NAME.txt beside it and what else is known in NAME.json."""

    name: str
    path: Path

    def open(self) -> Path:
        """The encoded picture, as read_square takes it."""
        return self.path

    def captions(self) -> dict[str, str]:
        """Where from -> text, empty where there is none."""
        file = self.path.with_suffix(".txt")
        return {file.name: _text(self._beside(".txt"))}

    def metadata(self) -> dict[str, Any]:
        """The content of NAME.json."""
        return _json_object(self._beside(".json"))

    def _beside(self, suffix: str) -> bytes:
        file = self.path.with_suffix(suffix)
        return file.read_bytes() if file.is_file() else b""


def open_photos(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """A folder of images (searched through), one image file, or a .txt that lists them, a path a line.

    A name is the path below the folder of the images or of the list. UserError where there is none.
    """
    root = Path(config.images)
    if not root.exists():
        raise UserError(f"source.images={config.images}: no such folder or image")
    folder = root if root.is_dir() else root.parent
    photos = []
    for path in _photo_paths(root)[:limit]:
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        photos.append(PhotoFile(name, path))
    return _pictures(photos, config, task, resolution)


def _photo_paths(root: Path) -> list[Path]:
    """The image files that a folder, an image or a list of images names."""
    if root.suffix == ".txt":
        lines = [line.strip() for line in root.read_text().splitlines()]
        return [root.parent / line for line in lines if line]
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


@dataclass(frozen=True)
class TarSample:
    """A picture in a webdataset tar, with KEY.txt and KEY.json where there are such members."""

    name: str
    tar: Path
    members: Mapping[str, Member]  # by suffix, without the dot

    def open(self) -> IO[bytes]:
        """The encoded picture, as read_square takes it."""
        return io.BytesIO(self._content(picture_suffix(self.members)))

    def captions(self) -> dict[str, str]:
        """Where from -> text, empty where there is none: KEY.txt, and the 'caption' of KEY.json."""
        return {
            "txt": _text(self._content("txt")),
            "json": str(self.metadata().get("caption") or "").strip(),
        }

    def metadata(self) -> dict[str, Any]:
        """The content of KEY.json."""
        return _json_object(self._content("json"))

    def _content(self, suffix: str) -> bytes:
        return read_member(self.tar, self.members[suffix]) if suffix in self.members else b""


def open_tars(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """Webdataset tars as img2dataset writes them: one, or several by {0..9} or a glob.

    They are local or at an address that fsspec knows. A name is TAR/KEY. UserError for what cannot
    be read as such tars, or holds no picture.
    """
    samples: list[TarSample] = []
    try:
        for pattern in braceexpand(config.images):
            samples.extend(_tar_samples(pattern))
    except (OSError, ValueError, ImportError, tarfile.TarError) as error:
        raise UserError(
            f"source.images={config.images} cannot be read as webdataset tars: {error}"
        ) from error
    return _pictures(samples[:limit], config, task, resolution)


def _tar_samples(pattern: str) -> Iterator[TarSample]:
    """The samples with a picture in the tars that one path, address or glob names."""
    for sample in all_tar_samples(pattern):
        if picture_suffix(sample.members):
            yield sample


def all_tar_samples(pattern: str) -> Iterator[TarSample]:
    """The samples in those tars, whatever they hold."""
    for path in local_files(pattern):
        # What is fetched from an address has a name of the cache's: the address knows a better one.
        tar_name = path.name if "*" in pattern else Path(pattern).name
        for key, members in tar_members(path).items():
            yield TarSample(f"{tar_name}/{key}", path, members)


def picture_suffix(members: Mapping[str, Member]) -> str:
    """Which of a sample's members is its picture, 'jpg' for KEY.jpg; empty where it has none."""
    for suffix in SUFFIXES:
        if suffix[1:] in members:
            return suffix[1:]
    return ""


def local_files(pattern: str) -> list[Path]:
    """The files that a path or glob names, sorted; from an address they are fetched first."""
    if "://" in pattern:
        cache = {"cache_storage": str(download_folder())}
        paths = fsspec.open_local(f"filecache::{pattern}", filecache=cache)
    else:
        paths = fsspec.open_local(pattern)
    return [Path(paths)] if isinstance(paths, str) else sorted(map(Path, paths))


def _pictures(
    samples: Sequence[PhotoFile] | Sequence[TarSample], config: Source, task: Task, resolution: int
) -> InputSource:
    """The source of these pictures. UserError where there are none."""
    if not samples:
        raise UserError(f"source.images={config.images}: no {', '.join(SUFFIXES)} in it")

    def load(index: int) -> InputImage:
        sample = samples[index]
        image = read_square(sample.open(), resolution)
        caption, caption_from = choose_caption(config, task, sample.captions())
        return InputImage(photo_key(sample.name), image, caption, caption_from, {"id": sample.name})

    def metadata(index: int) -> dict[str, Any]:
        return samples[index].metadata()

    return InputSource([sample.name for sample in samples], load, metadata)


def _text(content: bytes) -> str:
    """UTF-8 text without white space at its ends; what is no UTF-8 becomes a replacement character."""
    return content.decode(errors="replace").strip()


def _json_object(content: bytes) -> dict[str, Any]:
    """The JSON object that the bytes hold; {} where they hold none."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def photo_key(name: str) -> str:
    """A readable key of a relative path, made unique by a hash of the whole path."""
    readable = re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:KEY_LENGTH]
    return f"{readable or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def read_square(file: Path | IO[bytes], side: int) -> np.ndarray:
    """The centre square of an image, upright, as RGB uint8 side x side x 3 (Lanczos).

    Transparency lies over white, 16 bit are scaled to 8. Raises Unreadable for anything but a PNG,
    JPEG or WebP, and before it is decoded for one of more than Pillow's 89 million pixels.
    """
    try:
        with open_image(file, FORMATS) as image:
            # A JPEG is decoded at a half, a quarter or an eighth of its size, where that is enough.
            image.draft("RGB", (side, side))
            upright = upright_rgb(image)
    except UnidentifiedImageError as error:
        # Its own text names an address in memory: the manifest would be another one in every run.
        raise Unreadable("no PNG, JPEG or WebP image") from error
    except PILLOW_ERRORS as error:
        raise Unreadable(str(error)) from error
    return np.asarray(ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS))


OPENERS: dict[str, Callable[[Source, Task, int, int], InputSource]] = {
    "scenes": open_scenes,
    "prompts": open_prompts,
    "photos": open_photos,
    "tars": open_tars,
    "pairs": open_pairs,
}
