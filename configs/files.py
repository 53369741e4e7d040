"""Files: written whole or not at all, found, hashed and locked."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any

from configs.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_BYTES = 1 << 20  # read at either end of a model's file
BLOCK_BYTES = 1 << 20  # hashed at a time


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream of bytes that become the file at `path` when the block ends without an error.

    Whoever reads the path sees the old file or the new one, never a part of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as stream:
        stream.write(json.dumps(content, indent=1, sort_keys=True).encode())


def fingerprint(path: Path) -> dict[str, Any]:
    """The size ('bytes') and the hash ('sha256') of a file."""
    hasher = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(partial(stream.read, BLOCK_BYTES), b""):  # hashlib.file_digest is Python 3.11's
            hasher.update(block)
    return {"bytes": path.stat().st_size, "sha256": hasher.hexdigest()}


@contextlib.contextmanager
def exclusive(folder: Path, name: str) -> Iterator[None]:
    """Hold the folder's writer lock `name` inside the block. UserError where another process holds it.

    The operating system frees it when the process ends, however it ends. A folder that is new, and in
    which a block that fails has written nothing, goes again.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / f".{name}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(lock, "w")  # noqa: SIM115 - the block below closes it
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error}): choose another runs_dir=") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder}: another process writes here; "
                "wait for it, or choose another runs_dir= (or generate.out=, for pairs alone)"
            ) from error
        try:
            yield
        except BaseException:
            if new:
                lock.unlink(missing_ok=True)
            for path in new:  # from the innermost
                with contextlib.suppress(OSError):  # something is in it
                    path.rmdir()
            raise


def find_file(path: str) -> str:
    """Where a path of the configuration lies: seen from here, else seen from the project's root.

    What is in neither place comes back as it is: it may be a hub name, and if not, who opens it says so.
    """
    below_root = ROOT / path
    if not Path(path).exists() and below_root.exists():
        return str(below_root)
    return path


def digest(*parts: Any) -> str:
    """A hash (16 hex digits) of dataclasses or JSON values: equal exactly when their contents are."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=asdict).encode()).hexdigest()[:16]


def model_files(path: str) -> dict[str, str]:
    """Relative name -> hash of every file of a local model, which is a folder or a file; {} for a hub name.

    It tells a model that was trained anew under its old name. Only the two ends of a large file are read:
    all of a ViT-H would take seconds.
    """
    if not path:
        return {}
    root = Path(find_file(path))
    folder = root if root.is_dir() else root.parent
    candidates = sorted(root.rglob("*")) if root.is_dir() else [root]
    hashes = {}
    for file in candidates:
        if file.is_file():
            hashes[file.relative_to(folder).as_posix()] = _ends_hash(file)
    return hashes


def _ends_hash(path: Path) -> str:
    """16 hex digits of the size, the first and the last SAMPLE_BYTES of a file."""
    size = path.stat().st_size
    hasher = hashlib.sha256(f"{size} ".encode())
    with open(path, "rb") as stream:
        hasher.update(stream.read(SAMPLE_BYTES))
        stream.seek(max(size - SAMPLE_BYTES, 0))
        hasher.update(stream.read())
    return hasher.hexdigest()[:16]
