"""Pair shards: the one home of the format that generate writes and filter and distill read.

    pairs/000000.tar    one sample after the other: KEY.input.png KEY.edit.png KEY.json
                        and, where they are asked for, KEY.reconstruction.png KEY.*_latent.npy
    pairs/000000.json   the manifest: keys, bytes and SHA-256 of the tar, what was left out; last

A tar without its manifest is unfinished and is never read. Bytes are deterministic (no times, no
users), so an interrupted run that is taken up again ends with the same files as one that was not.
What is torn, changed or unfinished is a UserError that says how to mend it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from configs.errors import UserError
from configs.files import fingerprint, whole_file, write_json

FORMAT = 1  # of the manifest and of what lies in the tar; another number is refused
KEY = re.compile(r"[a-z0-9_-]+")
IMAGES = ("input", "edit", "reconstruction")
PNG_COMPRESSION = 4  # zlib's level: 6 is half a percent smaller and takes half as long again


@dataclass
class Pair:
    """One sample of a shard.

    key: `[a-z0-9_-]+`. images: RGB uint8 H x W x 3 by name (input, edit, ...). record: what is
    known of how it was made, as JSON. arrays: further float arrays by name.
    """

    key: str
    images: dict[str, np.ndarray]
    record: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Member(NamedTuple):
    """A file within a tar: where its bytes begin, and how many they are."""

    offset: int
    size: int


@dataclass(frozen=True)
class PairLocation:
    """Where a finished pair lies: the shard, and by extension ('input.png', 'json') its members."""

    key: str
    shard: Path
    members: dict[str, Member]


# Writing


def write_shard(folder: Path, index: int, pairs: Iterable[Pair], extra: dict[str, Any]) -> Path:
    """Write shard `index`, whole or not at all, and its manifest after it; returns the tar's path.

    extra: further JSON content of the manifest (left-out images, configuration hash); it may grow
    until the last pair is there. UserError for a bad or repeated key.
    """
    import webdataset

    path = folder / f"{index:06d}.tar"
    keys: list[str] = []
    with (
        whole_file(path) as stream,
        webdataset.TarWriter(stream, encoder=False, mtime=0, user="zero2gan", group="zero2gan") as writer,
        ThreadPoolExecutor(
            1
        ) as pool,  # encodes beside the making of the next batch; one thread keeps the order
    ):
        writes = []
        for pair in pairs:
            if not KEY.fullmatch(pair.key) or pair.key in keys:
                raise UserError(f"{path}: key '{pair.key}' is repeated or not of [a-z0-9_-]+")
            keys.append(pair.key)
            writes.append(pool.submit(_write_pair, writer, pair))
        for write in writes:
            write.result()  # raises what the thread raised
    write_json(manifest_path(path), {"format": FORMAT, "keys": keys, **fingerprint(path), **extra})
    return path


def _write_pair(writer: Any, pair: Pair) -> None:
    """Append the pair's images, arrays and record to a webdataset.TarWriter."""
    sample: dict[str, Any] = {"__key__": pair.key}
    for name, image in pair.images.items():
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG", compress_level=PNG_COMPRESSION)
        sample[f"{name}.png"] = png.getvalue()
    for name, array in pair.arrays.items():
        npy = io.BytesIO()
        np.save(npy, array, allow_pickle=False)
        sample[f"{name}.npy"] = npy.getvalue()
    sample["json"] = json.dumps(pair.record, sort_keys=True).encode()
    writer.write(sample)


# Manifests


def manifest_path(shard: Path) -> Path:
    """The manifest beside a tar."""
    return shard.with_suffix(".json")


def read_manifest(shard: Path) -> dict[str, Any]:
    """The manifest of a tar; UserError where it is missing or of another format."""
    try:
        manifest = json.loads(manifest_path(shard).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{shard} has no readable manifest (interrupted?): run the same command again to finish it"
        ) from error
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{shard}: format {manifest.get('format')}, this version reads {FORMAT}: make the pairs again"
        )
    return manifest


def is_finished(shard: Path) -> bool:
    """Whether the tar and its manifest are there and the tar has the size that the manifest states."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return shard.stat().st_size == json.loads(manifest_path(shard).read_text())["bytes"]
    return False


def finished_shards(folder: Path) -> list[Path]:
    """The finished tars of a folder, sorted. UserError where there is none, or one has a wrong size."""
    shards = [shard for shard in sorted(folder.glob("[0-9]*.tar")) if manifest_path(shard).exists()]
    for shard in shards:
        if not is_finished(shard):
            raise UserError(
                f"{shard} is not the size its manifest says: "
                "delete both and run `zero2gan generate` again to make it anew"
            )
    if not shards:
        raise UserError(f"{folder}: no finished pair shards; make them with `zero2gan generate`")
    return shards


def verify(shard: Path) -> None:
    """UserError unless the tar has the size and the SHA-256 of its manifest."""
    manifest = read_manifest(shard)
    for name, value in fingerprint(shard).items():
        if manifest.get(name) != value:
            raise UserError(
                f"{shard} differs from its manifest (a flipped bit, a cut file?): "
                "delete both and run `zero2gan generate` again"
            )


# Reading


def read_pairs(folder: Path, names: Iterable[str] = IMAGES) -> Iterator[Pair]:
    """Every finished pair of a folder, in order, each as read_pair reads it."""
    for shard in finished_shards(folder):
        for location in locate(shard):
            yield read_pair(location, names)


def locate(shard: Path) -> list[PairLocation]:
    """Where the pairs of a shard lie, in order. UserError where the keys differ from its manifest's."""
    try:
        samples = tar_members(shard)
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{shard} cannot be read ({error}): delete it and its manifest and run `zero2gan generate` again"
        ) from error
    if list(samples) != read_manifest(shard)["keys"]:
        raise UserError(
            f"{shard} does not hold the keys of its manifest: delete both and run `zero2gan generate` again"
        )
    return [PairLocation(key, shard, members) for key, members in samples.items()]


def read_pair(location: PairLocation, names: Iterable[str] = IMAGES) -> Pair:
    """One pair: its record, and those of the named images and arrays that it has.

    UserError where one of them cannot be read.
    """
    members = location.members
    try:
        pair = Pair(location.key, {}, json.loads(read_member(location.shard, members["json"])))
        for name in names:
            if f"{name}.png" in members:
                pair.images[name] = _decode_png(read_member(location.shard, members[f"{name}.png"]))
            elif f"{name}.npy" in members:
                npy = io.BytesIO(read_member(location.shard, members[f"{name}.npy"]))
                pair.arrays[name] = np.load(npy, allow_pickle=False)
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        raise UserError(
            f"{location.shard}: pair {location.key} cannot be read ({error!r}): "
            "delete the shard and run `zero2gan generate` again, which makes it anew"
        ) from error
    return pair


def _decode_png(content: bytes) -> np.ndarray:
    """RGB uint8 H x W x 3."""
    with open_image(io.BytesIO(content), ["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


# What lies in a webdataset tar, ours or another's (generate/sources.py)


def tar_members(path: Path) -> dict[str, dict[str, Member]]:
    """What a webdataset tar holds: key -> extension ('input.png', 'json') -> member; reads headers only.

    A key is the path up to the first dot of the file's name, the extension, in lower case, is what
    comes after it.
    """
    samples: dict[str, dict[str, Member]] = {}
    with tarfile.open(path, "r:") as archive:
        for item in archive:
            folder, slash, base = item.name.rpartition("/")
            stem, _, extension = base.partition(".")
            if item.isfile():
                members = samples.setdefault(folder + slash + stem, {})
                members[extension.lower()] = Member(item.offset_data, item.size)
    return samples


def read_member(path: Path, member: Member) -> bytes:
    """The content of a file within a tar."""
    with open(path, "rb") as stream:
        stream.seek(member.offset)
        return stream.read(member.size)


@contextlib.contextmanager
def open_image(file: Path | IO[bytes], formats: list[str]) -> Iterator[Image.Image]:
    """An image of one of these formats, not yet decoded; what Pillow takes for a bomb is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=formats) as image:
            yield image
