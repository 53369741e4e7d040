"""What several test files use: pairs, tiny networks, arguments of tiny runs, readers of tables and pages."""

import contextlib
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam

from configs.files import write_json
from distill.formats import write_formats
from generate.shards import Pair, write_shard
from models.comodgan import CoModGenerator
from models.segmenter import build_sam

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "channel_base": 128,
    "channel_max": 8,
    "z_dim": 8,
    "w_dim": 8,
    "code_dim": 16,
    "mapping_layers": 2,
}  # a CoModGenerator
TINY_TRAINING = [
    *(f"generator.{name}={value}" for name, value in TINY.items() if name != "z_dim"),
    "generator.separable=false",
    "generator.patch=1",
    "distill.style=0",
    "distill.init=",
    "distill.lr=0.001",
    "distill.batch=4",
    "distill.workers=0",
    "distill.validation_share=0.1",
    "distill.warmup_images=8",
    "distill.ema_half_life_images=16",
    "distill.lpips_crop=0",
]
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_SAM = {
    "image_size": 64,
    "patch_size": 16,
    "prompt_embed_dim": 16,
    "mask_in_chans": 4,
    "encoder": {"embed_dim": 32, "depth": 1, "num_heads": 2, "use_rel_pos": True, "window_size": 0},
    "decoder": {
        "num_multimask_outputs": 3,
        "iou_head_hidden_dim": 16,
        "transformer": {"depth": 1, "num_heads": 2, "mlp_dim": 32},
    },
}


def make_selected_pairs(run, count=12, side=16, an_input=2, seed=0):
    """`count` random pairs in two shards, `an_input` pairs a source image, all of them selected.

    An edit is its input's negative.
    """
    (run / "pairs").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        image_HWC = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(side // 4, 0).repeat(side // 4, 1)
        record = {"source": {"id": f"photo-{number // an_input}"}}
        made.append(Pair(f"k{number:03d}", {"input": image_HWC, "edit": 255 - image_HWC}, record))
    write_shard(run / "pairs", 0, made[: count // 2], {})
    write_shard(run / "pairs", 1, made[count // 2 :], {})
    write_json(
        run / "selection.json", {"thresholds": {}, "kept": [pair.key for pair in made], "total": count}
    )
    return made


def tiny_training(run: Path, *more: str) -> list[str]:
    """The arguments of a training of this run (<runs_dir>/tree2winter/miniature) that takes a second."""
    return [f"runs_dir={run.parents[1]}", "teacher.resolution=16", *TINY_TRAINING, *more]


def make_pairs(folder: Path, counts: tuple[int, ...] = (5, 3)) -> None:
    """Random pairs in shards of so many."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index, count in enumerate(counts):
        images = generator.integers(0, 256, (count, 2, 16, 16, 3), dtype=np.uint8)
        pairs = [
            Pair(f"s{index}_{n}", {"input": a, "edit": b}, {"caption": "a tree"})
            for n, (a, b) in enumerate(images)
        ]
        write_shard(folder, index, pairs, {})


def make_scorer_folder(folder: Path, seed: int = 0, resize_mode: str = "shortest") -> Path:
    """An open_clip local-dir with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "interpolation": "bicubic",
        "resize_mode": resize_mode,
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": preprocess})
    )
    torch.manual_seed(seed)
    save_file(
        {name: tensor.contiguous() for name, tensor in open_clip.CLIP(**TINY_CLIP).state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def tiny_sam(checkpoint: None = None) -> Sam:
    """A Sam with random weights, 64 pixels a side."""
    torch.manual_seed(0)
    return build_sam(TINY_SAM)


def laplacian_variance(image: np.ndarray) -> float:
    """By a loop over pixels, float64."""
    grey = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    high, wide = grey.shape
    inner = [(y, x) for y in range(1, high - 1) for x in range(1, wide - 1)]
    values = [
        grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x] for y, x in inner
    ]
    return float(np.mean(np.square(values)) - np.mean(values) ** 2)


def printed_tables(text):
    """The cells of each printed Markdown table, by row name and column title."""
    tables = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if line.startswith("| | "):
            tables.append({})
            titles = cells[1:]
        elif line.startswith("| "):
            tables[-1][cells[0]] = dict(zip(titles, cells[1:], strict=True))
    return tables


def mean(cell):
    """The mean in a cell '0.123 [0.1, 0.2]'."""
    return float(cell.split()[0])


# Display P3's primaries as a profile has them, X Y Z under D50, and the curve that it shares with sRGB.
P3_PRIMARIES = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
SRGB_PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def colour_profile(space: bytes = b"RGB ") -> bytes:
    """The ICC profile of Display P3, or of grey levels (b"GRAY") with a gamma of 1.2."""
    if space == b"RGB ":
        curve = struct.pack(">4s4xHxx5i", b"para", 3, *(round(number * 65536) for number in SRGB_CURVE))
        tags = {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
        for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3_PRIMARIES, strict=True):
            tags[name] = struct.pack(">4s4x3i", b"XYZ ", *(round(number * 65536) for number in primary))
    else:
        tags = {b"kTRC": struct.pack(">4s4xHxxi", b"para", 0, round(1.2 * 65536))}
    tags[b"wtpt"] = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)  # D50
    for name in (b"desc", b"cprt"):
        tags[name] = (
            struct.pack(">4s4x4I", b"mluc", 1, 12, 0x656E5553, 2) + struct.pack(">I", 28) + b"\0x\0\0"
        )
    table = b""
    content = b""
    for name, data in tags.items():
        table += struct.pack(">4s2I", name, 132 + 12 * len(tags) + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    body = struct.pack(">I", len(tags)) + table + content
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"none", 0x04000000, b"mntr", space, b"XYZ ")
    header += struct.pack(">12x4s24x4x3i", b"acsp", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + body


def p3_as_srgb(levels: np.ndarray) -> np.ndarray:
    """The sRGB levels of Display P3's (last axis: colours), in float64 by the curves and primaries."""
    part = levels / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    light = np.clip(linear @ np.array(P3_PRIMARIES) @ np.linalg.inv(SRGB_PRIMARIES), 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")


def browse(path: Path, actions: str = "", *options: str) -> str:
    """The document of a page after its own script and then `actions` ran, in a window 1280 pixels
    wide.

    Fails where anything was written to the console. options: further ones of the browser's. A
    page's policy forbids foreign scripts, so that it is left out where there are actions.
    """
    driven = path.with_name("driven.html")
    page = path.read_text()
    if actions:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        page = page.replace("</body>", f"<script>{actions}</script></body>")
    driven.write_text(page)
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=2000", "--window-size=1280,3600", *options]
    command += [f"--user-data-dir={path.parent}/browser", "--dump-dom", driven.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


@contextlib.contextmanager
def opened_page(*options: str, **context: Any) -> Iterator[Any]:
    """A page of playwright's in a headless Chromium, which is skipped without; errors of its scripts fail.

    options: the browser's. context: of browser.new_context, as a viewport. page.requests_made: the
    addresses of all its requests.
    """
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]"
    )
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", *options])
        page = browser.new_context(**context).new_page()
        errors: list[str] = []
        page.requests_made = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: page.requests_made.append(request.url))
        yield page
        browser.close()
        assert not errors


def export_tiny(folder: Path, formats: Sequence[str] = (), side: int = 16, **named: str) -> None:
    """Write the exported files of a TINY generator with random weights, as distill/export.py does."""
    torch.manual_seed(0)
    generator = CoModGenerator(side, **TINY).eval()
    metadata = dict.fromkeys(("task", "source", "target", "teacher", "git_revision"), "x") | named
    metadata |= {"resolution": side, "config": generator.config}
    folder.mkdir(parents=True, exist_ok=True)
    write_formats(folder, generator, metadata, formats, None)
    write_json(folder / "config.json", metadata)
