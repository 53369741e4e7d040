"""Edit pictures with an exported generator. Needs numpy, Pillow and onnxruntime, nothing else; this file can be copied out of the clone.

  python distill/translate.py RUN_OR_ONNX INPUT OUTPUT [--overwrite] [--threads N] [--batch N]

RUN_OR_ONNX: a generator.onnx, or a folder that holds one (as it is, or in export/). INPUT: a PNG, JPEG or WEBP file, or a folder of them.
OUTPUT: a folder; NAME.png is written for each picture. A picture that is not of the model's size is cut to its centre square and resized
(Lanczos) to it: the generator knows one size only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 100_000_000  # a larger picture is refused before it is decoded


class TranslateError(Exception):
    """Something the user can mend; the message says how."""


class Translator:
    """An exported generator as a function on pictures. Loaded once, safe to call from several threads."""

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        """path: generator.onnx or a folder with it. threads: 0 lets ONNX Runtime choose. TranslateError where there is no such model."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.path = find_model(Path(path))
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=onnxruntime.get_available_providers())
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common base but this
            raise TranslateError(f"{self.path} is no model that ONNX Runtime can load ({str(error).splitlines()[0]})") from error
        shape, kind = self.session.get_inputs()[0].shape, self.session.get_inputs()[0].type
        if kind != "tensor(uint8)" or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise TranslateError(f"{self.path} takes {kind} {shape}, not uint8 pictures: export it with distill/export.py")
        self.side = int(shape[1])
        self.about: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    def __call__(self, picture: Any) -> Any:
        """The edit, of the kind that was given: a PIL image (any size, see fit), or uint8 side x side x 3, or B x side x side x 3."""
        import numpy as np
        from PIL import Image

        if isinstance(picture, Image.Image):
            return Image.fromarray(self(np.asarray(fit(picture, self.side))))
        array = np.asarray(picture)
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-3:] != (self.side, self.side, 3):
            raise TranslateError(f"got {array.dtype} {array.shape}; give uint8 [batch,] {self.side} x {self.side} x 3, or a PIL image")
        edit_BHWC = self.session.run(None, {"image": array if array.ndim == 4 else array[None]})[0]
        return edit_BHWC if array.ndim == 4 else edit_BHWC[0]


def find_model(path: Path) -> Path:
    """generator.onnx itself, in the folder, or in its export/."""
    for candidate in (path, path / "generator.onnx", path / "export" / "generator.onnx"):
        if candidate.is_file():
            return candidate
    raise TranslateError(f"{path}: no generator.onnx there; make one with distill/export.py")


def fit(image: Any, side: int) -> Any:
    """A PIL image turned upright by its EXIF orientation, its centre square, side x side, RGB; transparency on white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("RGB")
    return image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def open_picture(path: Path, side: int) -> Any:
    """The file as fit() makes it. OSError, or Pillow's bomb warning as an error, for what is no PNG, JPEG or WEBP, or too large."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise OSError(f"{image.width} x {image.height} is more than {MAX_PIXELS} pixels")
            return fit(image, side)


def translate_files(translator: Translator, source: Path, target: Path, overwrite: bool, batch: int) -> list[float]:
    """Write NAME.png into `target` for every picture of `source`; returns ms a picture of each call of the model.

    TranslateError before anything is written where there is no picture, two share a name, or an output exists and may not be replaced;
    after the rest is done where some could not be read, with their count and names.
    """
    import numpy as np
    from PIL import Image

    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES) if source.is_dir() else [source]
    if not paths or not all(path.is_file() for path in paths):
        raise TranslateError(f"{source}: no such picture, or a folder without PNG, JPEG or WEBP files")
    outputs = {path: target / f"{path.stem}.png" for path in paths}
    if len(set(outputs.values())) < len(paths):
        raise TranslateError(f"{source}: two pictures differ in their ending only and would be written to one PNG; rename one")
    existing = [output for output in outputs.values() if output.exists()]
    if existing and not overwrite:
        raise TranslateError(f"{existing[0]} exists ({len(existing)} such): name another folder or say --overwrite")
    target.mkdir(parents=True, exist_ok=True)
    unreadable: list[str] = []
    times_ms: list[float] = []
    for start in range(0, len(paths), batch):
        images: dict[Path, Any] = {}
        for path in paths[start : start + batch]:
            try:
                images[path] = np.asarray(open_picture(path, translator.side))
            except (OSError, ValueError, Warning) as error:
                unreadable.append(f"{path.name} ({error})")
        if not images:
            continue
        began = time.perf_counter()
        edits_BHWC = translator(np.stack(list(images.values())))
        times_ms.append((time.perf_counter() - began) * 1000 / len(images))
        for path, edit_HWC in zip(images, edits_BHWC):  # noqa: B905 - runs on Python 3.9 too
            temporary = outputs[path].with_suffix(".png.tmp")
            Image.fromarray(edit_HWC).save(temporary, "PNG")
            temporary.replace(outputs[path])
    if unreadable:
        raise TranslateError(f"{len(unreadable)} of {len(paths)} files are no pictures and were left out: {'; '.join(unreadable[:5])}")
    return times_ms


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 with one line about what to mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="RUN_OR_ONNX")
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are already in OUTPUT")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: ONNX Runtime chooses")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    arguments = parser.parse_args(argv)
    try:
        if arguments.batch < 1 or arguments.threads < 0:
            raise TranslateError("--batch is 1 or more, --threads 0 or more")
        translator = Translator(arguments.model, arguments.threads)
        times_ms = translate_files(translator, arguments.input, arguments.output, arguments.overwrite, arguments.batch)
    except (TranslateError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    median = statistics.median(times_ms)
    print(f"{len(times_ms)} call(s) of batch {arguments.batch}, {median:.1f} ms a picture (model alone, median): {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
