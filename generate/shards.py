"""Pair shards: the one home of the format that generate writes and filter and distill read.

    pairs/000000.tar    KEY.input.png KEY.edit.png KEY.json [KEY.reconstruction.png KEY.*_latent.npy], one sample after the other
    pairs/000000.json   the manifest: keys, byte count and SHA-256 of the tar, what was left out; written last

A tar without its manifest is unfinished and is never read. Bytes are deterministic (no times, no users), so an interrupted run that is
taken up again ends with the same files as one that was not. What is torn, changed or unfinished is a UserError that says how to mend it.
"""

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
from typing import IO, Any

import numpy as np
from PIL import Image

from configs.errors import UserError
from configs.files import fingerprint, whole_file, write_json

FORMAT = 1
KEY = re.compile(r"[a-z0-9_-]+")
IMAGES = ("input", "edit", "reconstruction")


@dataclass
class Pair:
    """One sample: a key `[a-z0-9_-]+`, RGB uint8 images H x W x 3 by name (input, edit, ...), its record, float arrays by name."""

    key: str
    images: dict[str, np.ndarray]
    record: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PairLocation:
    """Where a finished pair lies: the shard and, by member name ('input.png', 'json', ...), offset and size in bytes."""

    key: str
    shard: Path
    members: dict[str, tuple[int, int]]


def write_shard(folder: Path, index: int, pairs: Iterable[Pair], about: dict[str, Any]) -> Path:
    """Write shard `index` atomically and its manifest after it; returns the tar's path.

    about: further JSON content of the manifest (left-out images, configuration hash). UserError for a bad or repeated key.
    """
    import webdataset

    path = folder / f"{index:06d}.tar"
    keys: list[str] = []
    with (
        whole_file(path) as stream,
        webdataset.TarWriter(stream, encoder=False, mtime=0, user="zero2gan", group="zero2gan") as writer,
        ThreadPoolExecutor(
            1
        ) as pool,  # encoding goes on beside the making of the next batch; one thread keeps the order
    ):
        writes = []
        for pair in pairs:
            if not KEY.fullmatch(pair.key) or pair.key in keys:
                raise UserError(f"{path}: key '{pair.key}' is repeated or not of [a-z0-9_-]+")
            keys.append(pair.key)
            writes.append(pool.submit(lambda pair: writer.write(_encode(pair)), pair))
        for write in writes:
            write.result()
    write_json(manifest_path(path), {"format": FORMAT, "keys": keys, **fingerprint(path), **about})
    return path


def _encode(pair: Pair) -> dict[str, Any]:
    sample: dict[str, Any] = {"__key__": pair.key}
    for name, image in pair.images.items():
        Image.fromarray(image).save(stream := io.BytesIO(), "PNG", compress_level=4)
        sample[f"{name}.png"] = stream.getvalue()
    for name, array in pair.arrays.items():
        np.save(stream := io.BytesIO(), array, allow_pickle=False)
        sample[f"{name}.npy"] = stream.getvalue()
    return sample | {"json": json.dumps(pair.record, sort_keys=True).encode()}


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
    """Whether the tar and its manifest are there and the tar has the size that the manifest says."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return shard.stat().st_size == json.loads(manifest_path(shard).read_text())["bytes"]
    return False


def finished_shards(folder: Path) -> list[Path]:
    """The finished tars of a folder, sorted. UserError where there is none, and where a tar's size is not its manifest's."""
    shards = [shard for shard in sorted(folder.glob("[0-9]*.tar")) if manifest_path(shard).exists()]
    for shard in shards:
        if not is_finished(shard):
            raise UserError(
                f"{shard} is not the size its manifest says: delete both and run generate/run.py again to make it anew"
            )
    if not shards:
        raise UserError(f"{folder}: no finished pair shards; make them with generate/run.py")
    return shards


def verify(shard: Path) -> None:
    """UserError unless the tar's SHA-256 is the manifest's."""
    if not fingerprint(shard).items() <= read_manifest(shard).items():
        raise UserError(
            f"{shard} differs from its manifest (a flipped bit, a cut file?): delete both and run generate/run.py again"
        )


def locate(shard: Path) -> list[PairLocation]:
    """Where each pair of a finished shard lies, in order. UserError where keys differ from the manifest's."""
    try:
        members = tar_members(shard)
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"{shard} cannot be read ({error}): delete it and its manifest and run generate/run.py again"
        ) from error
    if list(members) != read_manifest(shard)["keys"]:
        raise UserError(
            f"{shard} does not hold the keys of its manifest: delete both and run generate/run.py again"
        )
    return [PairLocation(key, shard, found) for key, found in members.items()]


def read_pair(location: PairLocation, names: Iterable[str] = IMAGES) -> Pair:
    """Read one pair: its record and those of the named images and arrays that it has. UserError where one cannot be read."""
    try:
        pair = Pair(location.key, {}, json.loads(read_member(location.shard, location.members["json"])))
        for name in names:
            if place := location.members.get(f"{name}.png"):
                with open_image(io.BytesIO(read_member(location.shard, place)), ["PNG"]) as image:
                    pair.images[name] = np.asarray(image.convert("RGB"))
            elif place := location.members.get(f"{name}.npy"):
                pair.arrays[name] = np.load(
                    io.BytesIO(read_member(location.shard, place)), allow_pickle=False
                )
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        raise UserError(
            f"{location.shard}: pair {location.key} cannot be read ({error!r}): "
            "delete the shard and run generate/run.py again, which makes it anew"
        ) from error
    return pair


def read_pairs(folder: Path, names: Iterable[str] = IMAGES) -> Iterator[Pair]:
    """Every finished pair of a folder, in order."""
    for shard in finished_shards(folder):
        for location in locate(shard):
            yield read_pair(location, names)


def tar_members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Key -> extension ('input.png', 'json') -> offset and size in bytes of each file of a webdataset tar; reads headers only."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path, "r:") as archive:
        for item in archive:
            folder, slash, base = item.name.rpartition("/")
            stem, _, extension = base.partition(".")
            if item.isfile():
                members.setdefault(folder + slash + stem, {})[extension.lower()] = (
                    item.offset_data,
                    item.size,
                )
    return members


def read_member(path: Path, place: tuple[int, int]) -> bytes:
    """The file of a tar at this offset, of this size."""
    with open(path, "rb") as stream:
        stream.seek(place[0])
        return stream.read(place[1])


@contextlib.contextmanager
def open_image(file: Path | IO[bytes], formats: list[str]) -> Iterator[Image.Image]:
    """An image of one of these formats, not yet decoded; one that PIL takes for a decompression bomb is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=formats) as image:
            yield image
