"""The export as a static page: the generator runs in the visitor's browser, by onnxruntime-web.

Its two binaries (41 MB) are taken from the npm package of one known version, which is fetched once and kept in the user's cache.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.schema import Export

VERSION = "1.30.0"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # as npm publishes it
FILES = (  # with WebGPU, and the smaller one without
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
)
TIMEOUT_S = 60


def write_page(folder: Path, config: Export, example_HWC: Any) -> None:
    """Write index.html, an example to start with (uint8) and onnxruntime-web's files; generator.onnx and config.json belong beside them.

    UserError where the package cannot be had or is not the one that was published.
    """
    from PIL import Image

    archive = Path(config.onnxruntime_web) if config.onnxruntime_web else _fetched()
    try:
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    except OSError as error:
        raise UserError(f"export.onnxruntime_web={archive} cannot be read ({error})") from error
    if f"sha512-{found}" != INTEGRITY:
        raise UserError(f"{archive} is not onnxruntime-web {VERSION} as npm publishes it: `npm pack onnxruntime-web@{VERSION}` gets it")
    with tarfile.open(archive) as tar:
        for name in FILES:
            member = tar.extractfile(f"package/dist/{name}")
            assert member is not None  # the archive is the one we know
            with member, open(folder / name, "wb") as out:
                shutil.copyfileobj(member, out)
    shutil.copy(Path(__file__).with_name("browser.html"), folder / "index.html")
    Image.fromarray(example_HWC).save(folder / "example.png")


def _fetched() -> Path:
    """The package in the user's cache; fetched if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "zero2gan"
    path = cache / ADDRESS.rpartition("/")[2]
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        print(f"export: fetching {ADDRESS}", flush=True)
        try:
            with urllib.request.urlopen(ADDRESS, timeout=TIMEOUT_S) as reply, open(temporary, "wb") as out:
                shutil.copyfileobj(reply, out)
            temporary.replace(path)
        except OSError as error:
            raise UserError(
                f"{ADDRESS} cannot be fetched ({error}): set export.onnxruntime_web= to that file (`npm pack onnxruntime-web@{VERSION}`), "
                "or leave page out of export.formats"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
    return path
