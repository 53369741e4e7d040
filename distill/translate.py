"""Edit pictures and videos with an exported generator.

  zero2gan translate RUN_OR_MODEL INPUT OUTPUT [--overwrite] [--threads N] [--batch N]

RUN_OR_MODEL: a .onnx (ONNX Runtime), a .pt2 (PyTorch, compiled where there is a GPU), or a folder
with them (as it is, or in export/): then PyTorch where it has a GPU and there is a
generator-fp16.pt2, else ONNX Runtime.
INPUT: a picture (PNG, JPEG, WEBP), a video (needs `pip install av`), a folder of these, or the
number of a camera: 0.
OUTPUT: a folder, for NAME.png or NAME.mp4 (no sound); or, for one input, such a file.

The generator knows squares of one side only. A picture is resized (Lanczos) so that its shorter
side is that; along the longer one, squares that overlap by a quarter or more are edited and blended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from distill.video import VIDEOS, is_camera, show_progress, translate_video
from models.translator import PICTURES, TranslateError, Translator, open_picture

NAMED_FILES = 5  # so many files that were left out are named


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 with one line about what to mend."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.batch < 1 or arguments.threads < 0:
            raise TranslateError("--batch is 1 or more, --threads 0 or more")
        translator = Translator(arguments.model, arguments.threads)
        outputs = plan_files(arguments.input, arguments.output, arguments.overwrite)
        left_out = translate_files(translator, outputs, arguments.batch)
        if left_out:
            reasons = "; ".join(left_out[:NAMED_FILES])
            raise TranslateError(f"{len(left_out)} of {len(outputs)} files were left out: {reasons}")
    except (TranslateError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    milliseconds = translator.seconds / max(translator.pictures, 1) * 1000
    print(f"{translator.pictures} pictures, {milliseconds:.1f} ms each (model alone): {arguments.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("model", type=Path, metavar="RUN_OR_MODEL")
    parser.add_argument("input", metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are already there")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: the runtime chooses")
    parser.add_argument("--batch", type=int, default=1, help="pictures or frames at once")
    return parser


def plan_files(source: str, target: Path, overwrite: bool) -> dict[str, Path]:
    """Each input with its output.

    TranslateError where there is no input, where two share an output, and where an output exists
    and may not be replaced.
    """
    outputs: dict[str, Path] = {}
    for name in find_inputs(source):
        outputs[name] = target / output_name(name)
    names_file = target.suffix.lower() in (*PICTURES, *VIDEOS) and not target.is_dir()
    if names_file and Path(source).is_dir():
        raise TranslateError(
            f"{target} is the name of a file, and {source} a folder: name a folder for its edits"
        )
    if names_file:
        ending = outputs[source].suffix
        if target.suffix != ending:
            raise TranslateError(f"{target}: name a folder, or a {ending} file")
        outputs = {source: target}
    if len(set(outputs.values())) < len(outputs):
        raise TranslateError(
            f"{source}: two inputs differ in their ending only and would be written to one file; rename one"
        )
    existing = [output for output in outputs.values() if output.exists()]
    if existing and not overwrite:
        raise TranslateError(
            f"{existing[0]} exists ({len(existing)} such): name another folder or say --overwrite"
        )
    return outputs


def find_inputs(source: str) -> list[str]:
    """The pictures and videos of a folder, sorted; or the one file or camera that is named.

    TranslateError where there is none.
    """
    if is_camera(source):
        return [source]
    path = Path(source)
    inputs = [path]
    if path.is_dir():
        inputs = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES + VIDEOS)
    if not inputs or not all(file.is_file() for file in inputs):
        raise TranslateError(f"{path}: no such picture or video, or a folder without any")
    return [str(file) for file in inputs] if path.is_dir() else [source]


def output_name(source: str) -> str:
    """NAME.mp4 for a video or a camera, else NAME.png."""
    if is_camera(source):
        return f"camera-{source}.mp4"
    path = Path(source)
    return path.stem + (".mp4" if path.suffix.lower() in VIDEOS else ".png")


def translate_files(translator: Translator, outputs: dict[str, Path], batch: int) -> list[str]:
    """Write the edit of each input; returns the unreadable ones' names, each with its error."""
    pictures: dict[str, Path] = {}
    videos: dict[str, Path] = {}
    for source, output in outputs.items():
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".png":
            pictures[source] = output
        else:
            videos[source] = output
    unreadable = translate_pictures(translator, pictures, batch)
    for source, output in videos.items():
        try:
            translate_video(translator, source, output, batch)
        except TranslateError as error:
            unreadable.append(str(error))
    return unreadable


def translate_pictures(translator: Translator, outputs: dict[str, Path], batch: int) -> list[str]:
    """Write each picture's edit as PNG; returns the unreadable ones' names, each with its error.

    outputs: what to write, by the picture's path. batch: pictures edited at once.
    """
    unreadable: list[str] = []
    paths = list(outputs)
    for start in range(0, len(paths), batch):
        images: dict[str, np.ndarray] = {}
        for path in paths[start : start + batch]:
            try:
                images[path] = np.asarray(open_picture(Path(path), translator.side))
            except TranslateError as error:
                unreadable.append(str(error))
        edits = translator.edit(list(images.values())) if images else []
        for path, edit_HWC in zip(images, edits, strict=True):
            temporary = outputs[path].with_suffix(".png.tmp")
            Image.fromarray(edit_HWC).save(temporary, "PNG")
            temporary.replace(outputs[path])
        show_progress(min(start + batch, len(paths)), len(paths), "pictures")
    return unreadable


if __name__ == "__main__":
    sys.exit(main())
