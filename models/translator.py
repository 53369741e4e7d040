"""An exported generator as a function on pictures.

    from translator import Translator
    edit = Translator("generator.onnx")
    winter = edit(Image.open("summer.jpg"))

This file stands alone: it needs numpy, Pillow and onnxruntime (or PyTorch, for a .pt2).
distill/export.py puts a copy of it beside the files that it writes.

The generator knows squares of one side only. A picture is turned upright, its colours are made
sRGB's, and it is resized so that its shorter side is that. Along the longer one, squares that
overlap are edited and blended.

Shapes: B batch, H W pixels, C the three colours.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ["PNG", "JPEG", "WEBP"]  # Pillow's names of what open_picture reads
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a colour profile's space -> its pixels'
MAX_PIXELS = 100_000_000  # a picture that would have more once it is resized is refused
OVERLAP = 0.25  # least share of a square that its neighbour sees too


class TranslateError(Exception):
    """Something the user can mend; the message says how."""


class Translator:
    """An exported generator as a function on pictures, loaded once.

    path: its file. side: of its squares, in pixels. seconds and pictures: what `edit` has spent in
    the model so far, and how many pictures it has edited.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        """path: a .onnx or .pt2, or a folder with them: see find_model. TranslateError without one.

        threads: how many of the CPU; 0 lets the runtime choose.
        """
        self.path = find_model(Path(path))
        model = MODELS.get(self.path.suffix, OnnxModel)
        self.model: OnnxModel | TorchModel = model(self.path, threads)
        self.side = self.model.side
        self.seconds = 0.0
        self.pictures = 0

    def __call__(self, picture: Any) -> Any:
        """The edit, of the kind that was given.

        picture: a PIL image of any size, whose edit is as large as `fit` makes it; or uint8, side x
        side x 3 or B x side x side x 3. A .pt2 on a GPU takes and gives PyTorch tensors there as
        well. TranslateError for another shape or type.
        """
        if isinstance(picture, Image.Image):
            image_HWC = np.asarray(fit(picture, self.side))
            return Image.fromarray(self.edit([image_HWC])[0])
        if not (self.model.takes_gpu_tensors and getattr(picture, "is_cuda", False)):
            picture = np.ascontiguousarray(picture)
        is_uint8 = str(picture.dtype).removeprefix("torch.") == "uint8"
        is_square = picture.ndim in (3, 4) and picture.shape[-3:] == (self.side, self.side, 3)
        if not is_uint8 or not is_square:
            raise TranslateError(
                f"got {picture.dtype} {picture.shape}; "
                f"give uint8 [batch,] {self.side} x {self.side} x 3, or a PIL image"
            )
        if picture.ndim == 3:
            return self.model(picture[None])[0]
        return self.model(picture)

    def edit(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The edits of uint8 H x W x 3 images whose shorter side is `side`, as `fit` makes them.

        All their squares are edited in one call of the model.
        """
        tiles = []
        for image_HWC in images:
            for y, x in corners(image_HWC.shape, self.side):
                tiles.append(image_HWC[y : y + self.side, x : x + self.side])
        tiles_BHWC = np.stack(tiles)

        began = time.perf_counter()
        edits_BHWC = self(tiles_BHWC)
        self.seconds += time.perf_counter() - began
        self.pictures += len(images)

        edits = []
        first = 0
        for image_HWC in images:
            places = corners(image_HWC.shape, self.side)
            tiles = list(edits_BHWC[first : first + len(places)])
            edits.append(blend(tiles, places, image_HWC.shape))
            first += len(places)
        return edits


# ---- models: each is a file, loaded; it has a `side` in pixels and edits uint8 B x side x side x 3 ----


class OnnxModel:
    """A .onnx in ONNX Runtime, on the best device it has. TranslateError if the file is none."""

    takes_gpu_tensors = False

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        providers = onnxruntime.get_available_providers()
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's have no other common base
            reason = str(error).splitlines()[0]
            raise TranslateError(f"{path} is no model that ONNX Runtime can load ({reason})") from error
        shape = self.session.get_inputs()[0].shape
        dtype = self.session.get_inputs()[0].type
        if dtype != "tensor(uint8)" or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise TranslateError(
                f"{path} takes {dtype} {shape}, not uint8 pictures: export it with `zero2gan export`"
            )
        self.side: int = shape[1]

    def __call__(self, tiles_BHWC: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"image": tiles_BHWC})[0]


class TorchModel:
    """A .pt2 in PyTorch, compiled where there is a GPU. TranslateError if the file is none."""

    takes_gpu_tensors = True

    def __init__(self, path: Path, threads: int) -> None:
        import torch
        from torch.export.passes import move_to_device_pass

        extra_files = {"config.json": ""}  # torch.export.load puts the text here
        try:
            program = torch.export.load(path, extra_files=extra_files)
            self.side: int = json.loads(extra_files["config.json"])["resolution"]
        except Exception as error:  # noqa: BLE001 - a damaged archive fails in any of its parts
            raise TranslateError(
                f"{path} is no program of distill/export.py that this PyTorch can load ({error})"
            ) from error
        if threads:
            torch.set_num_threads(threads)
        self.on_gpu = torch.cuda.is_available()
        self.module: Any
        if self.on_gpu:
            torch.backends.cudnn.benchmark = True  # each size comes again and again
            program = move_to_device_pass(program, "cuda")
            # "reduce-overhead": with CUDA graphs
            self.module = torch.compile(program.module(), mode="reduce-overhead", dynamic=False)
        else:
            self.module = program.module()

    def __call__(self, tiles_BHWC: Any) -> Any:
        """Takes and gives arrays, or PyTorch tensors that are on its device."""
        import torch

        is_tensor = isinstance(tiles_BHWC, torch.Tensor)
        image_BHWC = tiles_BHWC
        if not is_tensor:
            image_BHWC = torch.from_numpy(tiles_BHWC).to("cuda" if self.on_gpu else "cpu")
        count = len(image_BHWC)
        if self.on_gpu:  # filled up to a power of two, as each size is compiled by itself
            missing = 2 ** (count - 1).bit_length() - count
            black_BHWC = image_BHWC.new_zeros(missing, *image_BHWC.shape[1:])
            image_BHWC = torch.cat([image_BHWC, black_BHWC])
        with torch.no_grad():
            edit_BHWC = self.module(image_BHWC)[:count]
        if is_tensor:
            return edit_BHWC.clone()  # the next call of a CUDA graph writes where this one did
        return edit_BHWC.cpu().numpy()


MODELS: dict[str, type[OnnxModel] | type[TorchModel]] = {".onnx": OnnxModel, ".pt2": TorchModel}


def find_model(path: Path) -> Path:
    """The file itself; of a folder, or of its export/, the generator that fits this machine.

    That is generator-fp16.pt2 where PyTorch has a GPU, else generator.onnx. TranslateError without.
    """
    for folder in (path, path / "export"):
        program = folder / "generator-fp16.pt2"
        if program.is_file() and _gpu_for_torch():
            return program
        if (folder / "generator.onnx").is_file():
            return folder / "generator.onnx"
    if path.is_file():
        return path
    raise TranslateError(f"{path}: no generator.onnx there; make one with `zero2gan export`")


def _gpu_for_torch() -> bool:
    """Whether PyTorch has a GPU. Where there can be none, it is not imported, which takes seconds."""
    if shutil.which("nvidia-smi") is None or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


# ---- squares ----


def starts(length: int, side: int) -> list[int]:
    """Where squares of `side` start so that they cover `length` evenly.

    Each shares at least OVERLAP of its side with the next.
    """
    longest_step = int(side * (1 - OVERLAP))
    steps = math.ceil((length - side) / longest_step)
    if steps == 0:
        return [0]
    return [round(step * (length - side) / steps) for step in range(steps + 1)]


def corners(shape: Sequence[int], side: int) -> list[tuple[int, int]]:
    """The upper left corners (y, x) of the squares of `side` that cover an image H x W x C."""
    places = []
    for y in starts(shape[0], side):
        for x in starts(shape[1], side):
            places.append((y, x))
    return places


def blend(
    tiles: Sequence[np.ndarray], places: Sequence[tuple[int, int]], shape: tuple[int, ...]
) -> np.ndarray:
    """One uint8 image of `shape` (H x W x C) from square tiles, their upper left corners at (y, x).

    Where tiles overlap, it is their mean, in which each counts less towards its rim.
    """
    if len(tiles) == 1:
        return tiles[0]
    side = len(tiles[0])
    rising = np.arange(1, side + 1)
    ramp = np.minimum(rising, rising[::-1]).astype(np.float32)  # 1 at the ends, most in the middle
    weight_HW1 = np.outer(ramp, ramp)[:, :, None]  # of a pixel of a tile
    total_HWC = np.zeros(shape, np.float32)
    weights_HW1 = np.zeros((*shape[:2], 1), np.float32)
    for tile_HWC, (y, x) in zip(tiles, places, strict=True):
        total_HWC[y : y + side, x : x + side] += weight_HW1 * tile_HWC
        weights_HW1[y : y + side, x : x + side] += weight_HW1
    return np.round(total_HWC / weights_HW1).astype(np.uint8)


# ---- pictures ----


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, turned upright by its EXIF orientation, its colours as sRGB has them.

    16 bits are scaled to 8; what is transparent is laid over white. An embedded colour profile is
    followed, as browsers do; a damaged one, or one for other channels, is not.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bit, where 65,535 is white
        levels_HW = np.asarray(image, dtype=np.float64) / 257
        grey = Image.fromarray(levels_HW.clip(0, 255).astype(np.uint8))
        grey.info = image.info
        image = grey
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    rgb = to_srgb(image)
    if alpha is not None:
        rgb.putalpha(alpha)
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    rgb.info.pop("icc_profile", None)  # it was followed: not once more
    return rgb


def to_srgb(image: Image.Image) -> Image.Image:
    """The image as RGB, by its embedded colour profile where that is whole and for its channels."""
    content = image.info.get("icc_profile")
    if content:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
            mode = PROFILE_MODES[profile.profile.xcolor_space.strip()]
            is_grey = image.mode in ("1", "L", "LA")
            if is_grey == (mode == "L") and (image.mode == "CMYK") == (mode == "CMYK"):
                transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
                if mode != "RGB" or changes_colours(transform):
                    return transform.apply(image.convert(mode))
        except (ImageCms.PyCMSError, OSError, KeyError):
            pass  # browsers too show the picture without it
    return image.convert("RGB")


def changes_colours(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether it moves any of 216 colours by more than a level: sRGB's own profile, which most pictures have
    that have one, does not, and would cost most of a second for the 12 megapixels of a phone.
    """
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 6, 3)
    moved = np.asarray(transform.apply(Image.fromarray(cube))).astype(int) - cube
    return bool(np.abs(moved).max() > 1)


def fit(image: Image.Image, side: int) -> Image.Image:
    """The image as upright_rgb gives it, resized (Lanczos) so that its shorter side is `side`.

    The longer one keeps the shape and is even, as video codecs ask.
    """
    image = upright_rgb(image)
    shorter = min(image.size)
    size = [side, side]
    for axis, length in enumerate(image.size):
        if length != shorter:
            size[axis] = 2 * round(length * (side / shorter) / 2)
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def open_picture(path: Path, side: int) -> Image.Image:
    """The file as `fit` makes it.

    TranslateError for what is no PNG, JPEG or WEBP, is damaged, or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _refuse_if_large_once_fitted(image, side)
                return fit(image, side)
    except Exception as error:  # noqa: BLE001 - Pillow raises a dozen kinds for a damaged file
        raise TranslateError(f"{path.name} ({error})") from error


def _refuse_if_large_once_fitted(image: Image.Image, side: int) -> None:
    """ValueError for a line of pixels, which would be enlarged until its shorter side is `side`."""
    if side**2 * max(image.size) > MAX_PIXELS * min(image.size):
        raise ValueError(
            f"{image.width} x {image.height}: more than {MAX_PIXELS} pixels once its shorter side is {side}"
        )
