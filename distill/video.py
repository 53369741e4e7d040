"""Edit videos and cameras with an exported generator, for distill/translate.py. Needs PyAV.

Shapes: H W pixels, C the three colours.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from models.translator import TranslateError, Translator, fit

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
CAMERAS = {  # by sys.platform: FFmpeg's name of a camera and its input format
    "linux": ("/dev/video{}", "v4l2"),
    "darwin": ("{}", "avfoundation"),
}
DEFAULT_RATE = 25  # frames a second, for an input that does not say
QUALITY = {"crf": "18"}  # no loss that can be seen
PIXEL_FORMAT = "yuv420p"  # the one that every player knows


def is_camera(source: str) -> bool:
    """Whether this input is the number of a camera: '0', and no such file is there."""
    return source.isdecimal() and not Path(source).exists()


def translate_video(translator: Translator, source: str, output: Path, batch: int) -> None:
    """Write the edit of every frame as H.264 without sound, each at its own time.

    source: a file, or the number of a camera, which is recorded until Ctrl-C. batch: frames edited
    at once. TranslateError without PyAV, for what it cannot open, and on Windows for a camera.
    """
    try:
        import av
    except ImportError as error:
        raise TranslateError(f"{source}: videos and cameras need PyAV: pip install av") from error
    name, input_format = _address(source)
    temporary = output.with_suffix(".tmp.mp4")
    try:
        with av.open(name, format=input_format) as reader, av.open(str(temporary), "w") as writer:
            stream = _open_stream(writer, reader.streams.video[0])
            try:
                _edit_frames(translator, reader, writer, stream, batch)
            except KeyboardInterrupt:
                if not is_camera(source):
                    raise
            writer.mux(stream.encode())  # the frames that the encoder still holds
        temporary.replace(output)
    except (av.FFmpegError, IndexError) as error:
        raise TranslateError(f"{source}: no video that can be read ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _address(source: str) -> tuple[str, str | None]:
    """FFmpeg's name of the input, and its format; None where FFmpeg is to find that out."""
    if not is_camera(source):
        return source, None
    if sys.platform not in CAMERAS:
        raise TranslateError(f"camera {source}: only on Linux and macOS; use the export's index.html")
    name, input_format = CAMERAS[sys.platform]
    return name.format(source), input_format


def _open_stream(writer: Any, incoming: Any) -> Any:
    """The video stream to write, with the times of the one that is read."""
    stream = writer.add_stream("libx264", rate=incoming.average_rate or DEFAULT_RATE, options=QUALITY)
    stream.pix_fmt = PIXEL_FORMAT
    stream.codec_context.time_base = incoming.time_base
    return stream


def _edit_frames(translator: Translator, reader: Any, writer: Any, stream: Any, batch: int) -> None:
    """Write the edit of every frame of the reader's first video stream."""
    import av

    incoming = reader.streams.video[0]
    incoming.thread_type = "AUTO"  # decode with several threads
    decoded = reader.decode(incoming)
    done = 0
    while True:
        frames = list(itertools.islice(decoded, batch))
        if not frames:
            return
        images = []
        for frame in frames:
            upright = frame.to_image().rotate(frame.rotation, expand=True)
            images.append(np.asarray(fit(upright, translator.side)))
        if done == 0:
            stream.height, stream.width = images[0].shape[:2]
        for frame, edit_HWC in zip(frames, translator.edit(images), strict=True):
            edited = av.VideoFrame.from_ndarray(np.ascontiguousarray(edit_HWC), format="rgb24")
            edited.pts = frame.pts
            edited.time_base = frame.time_base
            writer.mux(stream.encode(edited))
        done += len(frames)
        show_progress(done, incoming.frames, "frames")


def show_progress(done: int, total: int, what: str) -> None:
    """Write '3 of 12 frames' over the line before, on a terminal. total: 0 if it is not known."""
    if sys.stderr.isatty():
        share = f"{done} of {total}" if total else str(done)
        end = "\n" if done == total else ""
        print(f"\r{share} {what}", end=end, file=sys.stderr, flush=True)
