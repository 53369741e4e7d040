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
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from models.translator import PICTURES, TranslateError, Translator, fit, open_picture

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


CAMERAS = {
    "linux": ("/dev/video{}", "v4l2"),
    "darwin": ("{}", "avfoundation"),
}  # by sys.platform: FFmpeg's name and input format


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


if __name__ == "__main__":
    sys.exit(main())
