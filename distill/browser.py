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

import numpy as np
from PIL import Image

from configs.errors import UserError
from configs.files import whole_file
from configs.schema import Export

VERSION = "1.30.0"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # as npm publishes it
FILES = (  # with WebGPU, and the smaller one without
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
)
TIMEOUT_S = 60


def write_page(folder: Path, config: Export, example_HWC: np.ndarray) -> None:
    """Write index.html, an example to start with (uint8) and onnxruntime-web's files; generator.onnx and config.json belong beside them.

    UserError where the package cannot be had or is not the one that was published.
    """
    with tarfile.open(fileobj=io.BytesIO(_package(config.onnxruntime_web))) as tar:
        for name in FILES:
            member = tar.extractfile(f"package/dist/{name}")
            assert member is not None  # the package is the one we know
            (folder / name).write_bytes(member.read())
    shutil.copy(Path(__file__).with_name("browser.html"), folder / "index.html")
    Image.fromarray(example_HWC).save(folder / "example.png")


def _package(path: str) -> bytes:
    """The npm package from `path`, else from the user's cache, else from the registry."""
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        / "zero2gan"
        / ADDRESS.rpartition("/")[2]
    )
    fetch = not path and not cache.exists()
    origin = ADDRESS if fetch else path or str(cache)
    advice = f"set export.onnxruntime_web= to what `npm pack onnxruntime-web@{VERSION}` gets, or leave page out of export.formats"
    try:
        if fetch:
            print(f"export: fetching {ADDRESS}", flush=True)
        with urllib.request.urlopen(ADDRESS, timeout=TIMEOUT_S) if fetch else open(origin, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise UserError(f"{origin} cannot be read ({error}): {advice}") from error
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != INTEGRITY:
        raise UserError(
            f"{origin} is not onnxruntime-web {VERSION} as npm publishes it ({found}): remove it, {advice}"
        )
    if fetch:
        with whole_file(cache) as stream:
            stream.write(data)
    return data
