"""The export as a static page: the generator runs in the visitor's browser, by onnxruntime-web.

Its two binaries (41 MB) are taken from the npm package of one known version, which is fetched once
and kept in the user's cache.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

from configs.errors import UserError
from configs.files import whole_file

VERSION = "1.30.0"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
INTEGRITY = (  # of this version, as npm publishes it
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
FILES = (
    # with WebGPU
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
    # without, and smaller
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
EXAMPLES = 3  # pictures to try
TIMEOUT_S = 60  # without a byte from the registry


def write_page(folder: Path, examples_BHWC: np.ndarray) -> None:
    """Write index.html, examples to start with (uint8; EXAMPLES of them) and onnxruntime-web's files.

    generator.onnx and config.json belong beside them. UserError where the package cannot be had or
    is not the one that was published.
    """
    with tarfile.open(fileobj=io.BytesIO(npm_package())) as tar:
        for name in FILES:
            member = tar.extractfile(f"package/dist/{name}")
            assert member is not None  # the package is the one we know
            (folder / name).write_bytes(member.read())
    buttons = []
    for number, example_HWC in enumerate(examples_BHWC[:EXAMPLES], 1):
        name = f"example-{number}.png"
        Image.fromarray(example_HWC).save(folder / name)
        buttons.append(
            f'<button disabled aria-pressed="false"><img src="{name}" alt="example {number}"></button>'
        )
    page = Path(__file__).with_name("browser.html").read_text(encoding="utf-8")
    page = page.replace("__EXAMPLES__", "\n      ".join(buttons))
    (folder / "index.html").write_text(page, encoding="utf-8")


def npm_package() -> bytes:
    """The .tgz of onnxruntime-web from the user's cache, else from the registry, which puts it
    there.

    UserError where it cannot be read or is not the one that was published.
    """
    cached = cached_package()
    advice = (
        f"put what `npm pack onnxruntime-web@{VERSION}` gets there as {cached}, or leave page out of "
        "export.formats"
    )
    is_cached = cached.exists()
    origin = str(cached) if is_cached else ADDRESS
    try:
        package = cached.read_bytes() if is_cached else _fetch(ADDRESS)
    except OSError as error:
        raise UserError(f"{origin} cannot be read ({error}): {advice}") from error
    if integrity(package) != INTEGRITY:
        raise UserError(
            f"{origin} is not onnxruntime-web {VERSION} as npm publishes it ({integrity(package)}): {advice}"
        )
    if not is_cached:
        with whole_file(cached) as stream:
            stream.write(package)
    return package


def cached_package() -> Path:
    """Where the package is looked for: $XDG_CACHE_HOME or ~/.cache, under the name that npm gives
    it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "zero2gan" / f"onnxruntime-web-{VERSION}.tgz"


def integrity(package: bytes) -> str:
    """The hash of a package as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()


def _fetch(address: str) -> bytes:
    print(f"export: fetching {address}", flush=True)
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as stream:
        return stream.read()
