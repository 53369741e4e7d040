"""source.pairs: before/after pairs that exist become pair shards as they are, without any editor.

A folder with input/NAME.png and edit/NAME.png (any kind of picture that the project reads, folders within
too, a caption in input/NAME.txt), or webdataset tars with KEY.input.png and KEY.edit.png (KEY.txt, KEY.json).
source.pair_names= gives the two other names. Both pictures are cut and resized by the one rule of
generate/sources.py; a pair whose pictures differ in size would be cut to different views, and is left out.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO

import numpy as np
from braceexpand import braceexpand
from PIL import Image

from configs.errors import UserError
from configs.schema import Config, Source, Task
from generate.captions import choose_caption
from generate.editors import PictureEditor
from generate.shards import open_image, read_member
from generate.sources import (
    FORMATS,
    PILLOW_ERRORS,
    SUFFIXES,
    InputImage,
    InputSource,
    PhotoFile,
    TarSample,
    Unreadable,
    all_tar_samples,
    photo_key,
    read_square,
)

NAMED = 5  # pairs without a partner that a message names
ORIENTATION = 0x0112  # of EXIF; from 5 on the picture lies on its side
ON_ITS_SIDE = 5


class ReadyPairs(PictureEditor):
    """edit.method=pairs: the edits come with the inputs."""

    batch = 64  # nothing is edited: a batch is what is in memory

    @classmethod
    def check(cls, config: Config) -> None:
        """UserError where no pairs are named."""
        if not config.source.pairs:
            raise UserError("edit.method=pairs: name the folder or the tars of the pairs with source.pairs=")

    @property
    def report(self) -> str:
        """What is printed of it before the first pair."""
        return f"pairs of {self.config.source.pairs}, as they are"


@dataclass(frozen=True)
class ReadyPair:
    """A pair that exists, or the half of one.

    name: of its source. pictures: role ('input', 'edit') -> a call that gives what read_square takes.
    captions: as choose_caption takes them, read when they are asked for.
    """

    name: str
    pictures: Mapping[str, Callable[[], Path | IO[bytes]]]
    captions: Callable[[], Mapping[str, str]]


def open_ready_pairs(config: Source, task: Task, resolution: int, limit: int) -> InputSource:
    """The pairs of a folder or of tars, sorted by name, cut after `limit`.

    A pair without its partner, with an unreadable picture, or with pictures of two sizes raises Unreadable
    when it is loaded. UserError where there are no pairs, and where more than source.max_unreadable_share
    of them have no partner.
    """
    if len(config.pair_names) != 2 or len(set(config.pair_names)) != 2:
        raise UserError(f"source.pair_names={config.pair_names}: two names, [input,edit]")
    roles = {"input": config.pair_names[0], "edit": config.pair_names[1]}
    root = Path(config.pairs).expanduser()
    if root.is_dir() and not any(root.glob("*.tar")):
        pairs = _pairs_of_folder(root, roles)[:limit]
    else:
        pairs = _pairs_of_tars(str(root / "*.tar") if root.is_dir() else config.pairs, roles)[:limit]
    _refuse_many_halves(config, roles, pairs)
    _tell_of_enlarging(pairs[0], resolution)

    def load(index: int) -> InputImage:
        pair = pairs[index]
        half = _missing(pair)
        if half:
            raise Unreadable(f"it has no {roles[half]}")
        before, after = (_size(pair, role) for role in roles)
        if before != after:
            raise Unreadable(f"{_text(before)} pixels before and {_text(after)} after: give both one size")
        image, edit = (_square(pair, role, resolution) for role in roles)
        caption, caption_from = choose_caption(config, task, pair.captions())
        record = {"id": pair.name}
        return InputImage(photo_key(pair.name), image, caption, caption_from, record, edit)

    return InputSource([pair.name for pair in pairs], load)


def _pairs_of_folder(root: Path, roles: Mapping[str, str]) -> list[ReadyPair]:
    """The pairs of a folder, by their path below its two folders without the suffix.

    UserError where it has no such folders, and for two pictures of one name.
    """
    pictures: dict[str, dict[str, Path]] = {}
    for role, name in roles.items():
        folder = root / name
        if not folder.is_dir():
            raise UserError(
                f"source.pairs={root}: it has no folder {name}, as pairs {roles['input']}/NAME.png with "
                f"{roles['edit']}/NAME.png would have, and no tars; source.pair_names= gives other names"
            )
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                stem = path.relative_to(folder).with_suffix("").as_posix()
                found = pictures.setdefault(stem, {})
                if role in found:
                    raise UserError(f"source.pairs: {found[role]} and {path} are two of one name: keep one")
                found[role] = path
    pairs = []
    for name, found in sorted(pictures.items()):
        captioned = PhotoFile(name, root / roles["input"] / f"{name}.png")  # NAME.txt is beside it
        files = {role: partial(Path, path) for role, path in found.items()}
        pairs.append(ReadyPair(name, files, captioned.captions))
    return pairs


def _pairs_of_tars(pattern: str, roles: Mapping[str, str]) -> list[ReadyPair]:
    """The pairs of webdataset tars, in their order. UserError for what cannot be read as such."""
    samples: list[TarSample] = []
    try:
        for one in braceexpand(pattern):
            samples.extend(all_tar_samples(one))
    except (OSError, ValueError, ImportError, tarfile.TarError) as error:
        raise UserError(
            f"source.pairs={pattern} is no folder and cannot be read as webdataset tars: {error}"
        ) from error
    pairs = []
    for sample in samples:
        found = {}
        for role, name in roles.items():
            members = (name, *(f"{name}{suffix}" for suffix in SUFFIXES))
            member = next((member for member in members if member in sample.members), None)
            if member:
                found[role] = partial(_content, sample, member)
        if found:
            pairs.append(ReadyPair(sample.name, found, sample.captions))
    return pairs


def _content(sample: TarSample, member: str) -> IO[bytes]:
    return io.BytesIO(read_member(sample.tar, sample.members[member]))


def _missing(pair: ReadyPair) -> str:
    """The role that a pair has no picture for; '' where it has both."""
    return next((role for role in ("input", "edit") if role not in pair.pictures), "")


def _refuse_many_halves(config: Source, roles: Mapping[str, str], pairs: Sequence[ReadyPair]) -> None:
    """UserError where there are no pairs, or too many have no partner; known before any is read."""
    before, after = roles.values()
    if not pairs:
        raise UserError(
            f"source.pairs={config.pairs}: no pictures {before} and {after} in it ({', '.join(SUFFIXES)}); "
            "source.pair_names= gives the two other names"
        )
    halves = [f"{pair.name} (no {roles[_missing(pair)]})" for pair in pairs if _missing(pair)]
    if len(halves) > config.max_unreadable_share * len(pairs):
        raise UserError(
            f"source.pairs={config.pairs}: {len(halves)} of {len(pairs)} have no partner: "
            f"{', '.join(halves[:NAMED])}. Mend or remove them, or raise source.max_unreadable_share"
        )


def _tell_of_enlarging(pair: ReadyPair, resolution: int) -> None:
    """Print where the first pair's input is smaller than it will be."""
    with contextlib.suppress(Unreadable, KeyError):
        side = min(_size(pair, "input"))
        if side < resolution:
            _tell(
                f"pictures of {side} pixels are enlarged to {resolution}: teacher.resolution= sets the side"
            )


@cache  # told once
def _tell(text: str) -> None:
    print(text, flush=True)


def _size(pair: ReadyPair, role: str) -> tuple[int, int]:
    """Width and height of an upright picture, from its header. Unreadable where it is none."""
    try:
        with open_image(pair.pictures[role](), FORMATS) as image:
            wide, high = image.size
            lies = image.getexif().get(ORIENTATION, 1) >= ON_ITS_SIDE
    except Image.UnidentifiedImageError as error:
        raise Unreadable(f"its {role} is no PNG, JPEG or WebP image") from error
    except PILLOW_ERRORS as error:
        raise Unreadable(f"its {role}: {error}") from error
    return (high, wide) if lies else (wide, high)


def _square(pair: ReadyPair, role: str, side: int) -> np.ndarray:
    """A picture as read_square reads it."""
    try:
        return read_square(pair.pictures[role](), side)
    except Unreadable as error:
        raise Unreadable(f"its {role}: {error}") from error


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
