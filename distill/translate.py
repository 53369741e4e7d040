"""Edit pictures and videos with an exported generator. This file can be copied out of the clone: it needs numpy, Pillow and onnxruntime.

  python distill/translate.py RUN_OR_MODEL INPUT OUTPUT [--overwrite] [--threads N] [--batch N]

RUN_OR_MODEL: a .onnx (ONNX Runtime), a .pt2 (PyTorch, compiled where there is a GPU), or a folder with them (as it is, or in export/): then
PyTorch where it has a GPU and there is a generator-fp16.pt2, else ONNX Runtime.
INPUT: a picture (PNG, JPEG, WEBP), a video (needs `pip install av`), a folder of these, or the number of a camera: 0.
OUTPUT: a folder, for NAME.png or NAME.mp4 (no sound); or, for one input, such a file.

The generator knows squares of one side only. A picture is resized (Lanczos) so that its shorter side is that; along the longer one, squares
that overlap by a quarter or more are edited and blended.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
CAMERAS = {
    "linux": ("/dev/video{}", "v4l2"),
    "darwin": ("{}", "avfoundation"),
}  # by sys.platform: FFmpeg's name and input format
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


def fit(image: Image.Image, side: int) -> Image.Image:
    """The image turned upright by its EXIF orientation, RGB, its shorter side `side` and the other even; transparency on white, 16 bit
    scaled to 8: as generate/sources.py reads what the generator was trained on.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    short = min(image.size)
    width, height = (
        side if length == short else 2 * round(length * (side / short) / 2) for length in image.size
    )  # as video codecs ask
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


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


def plan_files(source: str, target: Path, overwrite: bool) -> dict[str, Path]:
    """Each input with its output. TranslateError where there is no input, two share an output, or one exists and may not be replaced."""
    path = Path(source)
    inputs = (
        sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURES + VIDEOS)
        if path.is_dir()
        else [path]
    )
    if _is_camera(source):
        inputs = [Path(f"camera-{source}.mp4")]
    elif not inputs or not all(each.is_file() for each in inputs):
        raise TranslateError(f"{path}: no such picture or video, or a folder without any")
    endings = [".mp4" if each.suffix.lower() in VIDEOS else ".png" for each in inputs]
    outputs = [target / f"{each.stem}{ending}" for each, ending in zip(inputs, endings, strict=True)]
    if not path.is_dir() and target.suffix and not target.is_dir():
        if target.suffix != endings[0]:
            raise TranslateError(f"{target}: name a folder, or a {endings[0]} file")
        outputs = [target]
    if len(set(outputs)) < len(outputs):
        raise TranslateError(
            f"{path}: two inputs differ in their ending only and would be written to one file; rename one"
        )
    existing = [output for output in outputs if output.exists()]
    if existing and not overwrite:
        raise TranslateError(
            f"{existing[0]} exists ({len(existing)} such): name another folder or say --overwrite"
        )
    return dict(zip(map(str, inputs) if path.is_dir() else [source], outputs, strict=True))


def translate_pictures(translator: Translator, outputs: dict[str, Path], batch: int) -> list[str]:
    """Write each picture's edit; returns the names of those that cannot be read, each with its error."""
    unreadable: list[str] = []
    paths = list(outputs)
    for start in range(0, len(paths), batch):
        images: dict[str, np.ndarray] = {}
        for path in paths[start : start + batch]:
            try:
                images[path] = np.asarray(open_picture(Path(path), translator.side))
            except TranslateError as error:
                unreadable.append(str(error))
        for path, edit_HWC in zip(
            images, translator.edit(list(images.values())) if images else [], strict=True
        ):
            temporary = outputs[path].with_suffix(".png.tmp")
            Image.fromarray(edit_HWC).save(temporary, "PNG")
            temporary.replace(outputs[path])
        _progress(min(start + batch, len(paths)), len(paths), "pictures")
    return unreadable


def translate_video(translator: Translator, source: str, output: Path, batch: int) -> None:
    """Write the edit of every frame as H.264, each at its own time. A camera is recorded until Ctrl-C.

    TranslateError without PyAV, for what it cannot open, and on Windows for a camera.
    """
    try:
        import av
    except ImportError as error:
        raise TranslateError(f"{source}: videos and cameras need PyAV: pip install av") from error
    camera = _is_camera(source)
    if camera and sys.platform not in CAMERAS:
        raise TranslateError(f"camera {source}: only on Linux and macOS; use the export's index.html")
    name, kind = CAMERAS[sys.platform] if camera else ("{}", None)
    temporary = output.with_suffix(".tmp.mp4")
    try:
        with av.open(name.format(source), format=kind) as reader, av.open(str(temporary), "w") as writer:
            incoming = reader.streams.video[0]
            incoming.thread_type = "AUTO"
            stream = writer.add_stream(
                "libx264", rate=incoming.average_rate or 25, options={"crf": "18"}
            )  # no loss to be seen
            stream.pix_fmt = "yuv420p"  # the one that every player knows
            stream.codec_context.time_base = incoming.time_base
            done, decoded = 0, reader.decode(incoming)
            try:
                while frames := list(itertools.islice(decoded, batch)):
                    upright = [frame.to_image().rotate(frame.rotation, expand=True) for frame in frames]
                    images = [np.asarray(fit(image, translator.side)) for image in upright]
                    if not done:
                        stream.height, stream.width = images[0].shape[:2]
                    for frame, edit_HWC in zip(frames, translator.edit(images), strict=True):
                        edited = av.VideoFrame.from_ndarray(np.ascontiguousarray(edit_HWC), format="rgb24")
                        edited.pts, edited.time_base = frame.pts, frame.time_base
                        writer.mux(stream.encode(edited))
                    done += len(frames)
                    _progress(done, incoming.frames, "frames")
            except KeyboardInterrupt:
                if not camera:
                    raise
            writer.mux(stream.encode())
        temporary.replace(output)
    except (av.FFmpegError, IndexError) as error:
        raise TranslateError(f"{source}: no video that can be read ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _is_camera(source: str) -> bool:
    return source.isdecimal() and not Path(source).exists()


def _progress(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{done}{f' of {total}' if total else ''} {what}",
            end="\n" if done == total else "",
            file=sys.stderr,
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 with one line about what to mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="RUN_OR_MODEL")
    parser.add_argument("input", metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are already there")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: the runtime chooses")
    parser.add_argument("--batch", type=int, default=1, help="pictures or frames at once")
    arguments = parser.parse_args(argv)
    try:
        if arguments.batch < 1 or arguments.threads < 0:
            raise TranslateError("--batch is 1 or more, --threads 0 or more")
        translator = Translator(arguments.model, arguments.threads)
        outputs = plan_files(arguments.input, arguments.output, arguments.overwrite)
        for output in outputs.values():
            output.parent.mkdir(parents=True, exist_ok=True)
        pictures = {path: output for path, output in outputs.items() if output.suffix == ".png"}
        unreadable = translate_pictures(translator, pictures, arguments.batch)
        for path in outputs.keys() - pictures.keys():
            try:
                translate_video(translator, path, outputs[path], arguments.batch)
            except TranslateError as error:
                unreadable.append(str(error))
        if unreadable:
            raise TranslateError(
                f"{len(unreadable)} of {len(outputs)} files were left out: {'; '.join(unreadable[:5])}"
            )
    except (TranslateError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    milliseconds = translator.seconds / max(translator.pictures, 1) * 1000
    print(f"{translator.pictures} pictures, {milliseconds:.1f} ms each (model alone): {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
