"""An exported generator as a function on pictures.

This file stands alone: it can be copied out of the clone and needs numpy, Pillow and onnxruntime (or PyTorch, for a .pt2).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 100_000_000  # a larger picture is refused before it is decoded, or enlarged
OVERLAP = 0.25  # least share of a square that its neighbour sees too


class TranslateError(Exception):
    """Something the user can mend; the message says how."""


class Translator:
    """An exported generator as a function on pictures. Loaded once; `side` is that of its squares."""

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        """path: a .onnx or .pt2, or a folder with them. threads: of the CPU, 0 lets the runtime choose. TranslateError without a model."""
        self.path = find_model(Path(path))
        load = _load_torch if self.path.suffix == ".pt2" else _load_onnx
        self.side, self._run = load(self.path, threads)
        self.seconds, self.pictures = 0.0, 0  # spent in the model, and pictures or frames edited

    def __call__(self, picture: Any) -> Any:
        """The edit, of the kind that was given: a PIL image (any size, see fit), or uint8 side x side x 3, or B x side x side x 3.

        A .pt2 on a GPU takes and gives PyTorch tensors there as well.
        """
        if isinstance(picture, Image.Image):
            return Image.fromarray(self.edit([np.asarray(fit(picture, self.side))])[0])
        on_gpu = self.path.suffix == ".pt2" and getattr(picture, "is_cuda", False)
        array = picture if on_gpu else np.ascontiguousarray(picture)
        if (
            str(array.dtype).removeprefix("torch.") != "uint8"
            or array.ndim not in (3, 4)
            or array.shape[-3:] != (self.side, self.side, 3)
        ):
            raise TranslateError(
                f"got {array.dtype} {array.shape}; give uint8 [batch,] {self.side} x {self.side} x 3, or a PIL image"
            )
        edit_BHWC = self._run(array if array.ndim == 4 else array[None])
        return edit_BHWC if array.ndim == 4 else edit_BHWC[0]

    def edit(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The edits of uint8 H x W x 3 arrays whose shorter side is `side` (see fit), all their squares in one call of the model."""
        corners = [
            [(y, x) for y in starts(image.shape[0], self.side) for x in starts(image.shape[1], self.side)]
            for image in images
        ]
        together = list(zip(images, corners, strict=True))
        tiles_BHWC = np.stack(
            [image[y : y + self.side, x : x + self.side] for image, places in together for y, x in places]
        )
        began = time.perf_counter()
        edits = iter(self(tiles_BHWC))
        self.seconds, self.pictures = self.seconds + time.perf_counter() - began, self.pictures + len(images)
        return [blend([next(edits) for _ in places], places, image.shape) for image, places in together]


def _load_onnx(path: Path, threads: int) -> tuple[int, Callable[[Any], Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common base but this
        raise TranslateError(
            f"{path} is no model that ONNX Runtime can load ({str(error).splitlines()[0]})"
        ) from error
    shape, kind = session.get_inputs()[0].shape, session.get_inputs()[0].type
    if kind != "tensor(uint8)" or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
        raise TranslateError(
            f"{path} takes {kind} {shape}, not uint8 pictures: export it with distill/export.py"
        )
    return shape[1], lambda tiles: session.run(None, {"image": tiles})[0]


def _load_torch(path: Path, threads: int) -> tuple[int, Callable[[Any], Any]]:
    import torch
    from torch.export.passes import move_to_device_pass

    about = {"config.json": ""}
    try:
        program = torch.export.load(path, extra_files=about)
        side = json.loads(about["config.json"])["resolution"]
    except Exception as error:  # noqa: BLE001 - a damaged archive fails in any of its parts
        raise TranslateError(
            f"{path} is no program of distill/export.py that this PyTorch can load ({error})"
        ) from error
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module: Any = program.module()
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # each size comes again and again
        module = torch.compile(
            move_to_device_pass(program, device).module(), mode="reduce-overhead", dynamic=False
        )  # with CUDA graphs

    def run(tiles_BHWC: Any) -> Any:
        given = isinstance(tiles_BHWC, torch.Tensor)
        image_BHWC = tiles_BHWC if given else torch.from_numpy(tiles_BHWC).to(device)
        count = len(image_BHWC)
        if device == "cuda":  # filled up to a power of two, as each size is compiled by itself
            missing = 2 ** (count - 1).bit_length() - count
            image_BHWC = torch.cat([image_BHWC, image_BHWC.new_zeros(missing, *image_BHWC.shape[1:])])
        with torch.no_grad():
            edit_BHWC = module(image_BHWC)[:count]
        return (
            edit_BHWC.clone() if given else edit_BHWC.cpu().numpy()
        )  # the next call writes where this one did

    return side, run


def find_model(path: Path) -> Path:
    """The file itself; of a folder or its export/, generator-fp16.pt2 where PyTorch has a GPU, else generator.onnx."""
    for folder in (path, path / "export"):
        program = folder / "generator-fp16.pt2"
        if program.is_file() and _gpu_for_torch():
            return program
        if (folder / "generator.onnx").is_file():
            return folder / "generator.onnx"
    if path.is_file():
        return path
    raise TranslateError(f"{path}: no generator.onnx there; make one with distill/export.py")


def _gpu_for_torch() -> bool:
    if shutil.which("nvidia-smi") is None or importlib.util.find_spec("torch") is None:
        return False  # without the seconds that importing PyTorch takes
    import torch

    return torch.cuda.is_available()


def starts(length: int, side: int) -> list[int]:
    """Where squares of `side` start that cover `length` evenly, each sharing at least OVERLAP with the next."""
    count = 1 if length == side else 1 + -(-(length - side) // int(side * (1 - OVERLAP)))
    return [round(place * (length - side) / max(count - 1, 1)) for place in range(count)]


def blend(
    tiles: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], shape: tuple[int, ...]
) -> np.ndarray:
    """One uint8 picture of `shape` from square tiles at these (y, x); where they overlap, each counts less towards its rim."""
    if len(tiles) == 1:
        return tiles[0]
    side = len(tiles[0])
    ramp = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)).astype(np.float32)
    weight_HW1 = np.outer(ramp, ramp)[:, :, None]
    total_HWC, weights_HW1 = np.zeros(shape, np.float32), np.zeros((*shape[:2], 1), np.float32)
    for tile_HWC, (y, x) in zip(tiles, corners, strict=True):
        total_HWC[y : y + side, x : x + side] += weight_HW1 * tile_HWC
        weights_HW1[y : y + side, x : x + side] += weight_HW1
    return np.round(total_HWC / weights_HW1).astype(np.uint8)


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, turned upright by its EXIF orientation, 16 bit scaled to 8, transparency over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def fit(image: Image.Image, side: int) -> Image.Image:
    """The image as upright_rgb makes it, its shorter side `side` and the other even, as video codecs ask."""
    image = upright_rgb(image)
    short = min(image.size)
    width, height = (
        side if length == short else 2 * round(length * (side / short) / 2) for length in image.size
    )
    return image.resize((width, height), Image.Resampling.LANCZOS)


def open_picture(path: Path, side: int) -> Image.Image:
    """The file as fit() makes it. TranslateError for what is no PNG, JPEG or WEBP, damaged or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
                if side**2 * max(image.size) > MAX_PIXELS * min(
                    image.size
                ):  # a line of pixels, made `side` wide
                    raise ValueError(
                        f"{image.width} x {image.height}: more than {MAX_PIXELS} pixels once its shorter side is {side}"
                    )
                return fit(image, side)
    except (
        Exception
    ) as error:  # Pillow has many for a damaged file: SyntaxError, struct.error, DecompressionBombError, ...
        raise TranslateError(f"{path.name} ({error})") from error
