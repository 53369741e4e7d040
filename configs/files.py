"""Files: written whole or not at all, found, hashed and locked."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from configs.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_BYTES = 1 << 20  # read at either end of a model's file


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream of bytes that are the file at `path` once the block has ended without an error: whole, or not at all."""
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
    """Write JSON, whole or not at all."""
    with whole_file(path) as stream:
        stream.write(json.dumps(content, indent=1, sort_keys=True).encode())


def fingerprint(path: Path) -> dict[str, Any]:
    """'bytes' and 'sha256' of a file."""
    hasher = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):  # hashlib.file_digest is Python 3.11's
            hasher.update(block)
    return {"bytes": path.stat().st_size, "sha256": hasher.hexdigest()}


@contextlib.contextmanager
def exclusive(folder: Path, name: str) -> Iterator[None]:
    """Hold the folder's writer lock `name`; UserError where another process has it. The system frees it when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder}: another process writes here; wait for it, or choose another generate.out= or runs_dir="
            ) from error
        yield


def find_file(path: str) -> str:
    """A path as given if it is there, else below the project's root if it is there, else as given (a hub name, or an error to come)."""
    below_root = ROOT / path
    return str(below_root) if not Path(path).exists() and below_root.exists() else path


def digest(*parts: Any) -> str:
    """A hash (16 hex digits) of dataclasses or JSON values: equal exactly when their contents are."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=asdict).encode()).hexdigest()[:16]


def model_files(path: str) -> dict[str, str]:
    """Relative name -> hash of every file of a local model (a folder or a file), {} for a hub name: a model trained anew under its old
    name is another model. Only the two ends of a large file are read: a whole ViT-H would take seconds.
    """
    if not path:
        return {}
    root = Path(find_file(path))
    folder, files = (root, sorted(root.rglob("*"))) if root.is_dir() else (root.parent, [root])
    return {file.relative_to(folder).as_posix(): _ends_hash(file) for file in files if file.is_file()}


def _ends_hash(path: Path) -> str:
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(SAMPLE_BYTES)
        stream.seek(max(size - SAMPLE_BYTES, 0))
        return hashlib.sha256(f"{size} ".encode() + start + stream.read()).hexdigest()[:16]
