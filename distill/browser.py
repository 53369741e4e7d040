"""The export as a static page: the generator runs in the visitor's browser, by onnxruntime-web.

Its two binaries (41 MB) are taken from the npm package of one known version, which is fetched once and kept in the user's cache.
"""

from __future__ import annotations

import base64
import hashlib
import io
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

    with tarfile.open(fileobj=io.BytesIO(_package(config.onnxruntime_web))) as tar:
        for name in FILES:
            member = tar.extractfile(f"package/dist/{name}")
            assert member is not None  # the package is the one we know
            (folder / name).write_bytes(member.read())
    shutil.copy(Path(__file__).with_name("browser.html"), folder / "index.html")
    Image.fromarray(example_HWC).save(folder / "example.png")


def _package(path: str) -> bytes:
    """The npm package from `path`, else from the user's cache, else from the registry."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "zero2gan" / ADDRESS.rpartition("/")[2]
    archive = Path(path) if path else cache
    fetch = not path and not cache.exists()
    try:
        if fetch:
            print(f"export: fetching {ADDRESS}", flush=True)
            with urllib.request.urlopen(ADDRESS, timeout=TIMEOUT_S) as reply:
                data = reply.read()
        else:
            data = archive.read_bytes()
    except OSError as error:
        raise UserError(
            f"{ADDRESS if fetch else archive} cannot be read ({error}): set export.onnxruntime_web= to that package's .tgz "
            f"(`npm pack onnxruntime-web@{VERSION}`), or leave page out of export.formats"
        ) from error
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != INTEGRITY:
        raise UserError(
            f"{ADDRESS if fetch else archive} is not onnxruntime-web {VERSION} as npm publishes it ({found}): remove it, "
            f"or set export.onnxruntime_web= to what `npm pack onnxruntime-web@{VERSION}` gets"
        )
    if fetch:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(data)
        temporary.replace(cache)
    return data
