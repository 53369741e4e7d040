"""models/translator.py, distill/translate.py and distill/video.py: an exported generator edits pictures."""

import io
import itertools
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageCms

from distill import translate, video
from models.translator import (
    OnnxModel,
    TranslateError,
    Translator,
    blend,
    fit,
    open_picture,
    starts,
    upright_rgb,
)
from tests.helpers import colour_profile, export_tiny, p3_as_srgb

NO_PYAV = "PyAV is not installed: pip install -e .[video]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an export of a generator of random weights, 16 x 16."""
    run = tmp_path_factory.mktemp("run")
    export_tiny(run / "export", ["float", "pt2"])
    return run


@pytest.fixture(scope="module", params=["generator.onnx", "generator.pt2"])
def translator(run, request):
    return Translator(run / "export" / request.param, threads=1)


@pytest.fixture
def unchanged(run, monkeypatch):
    """A translator whose model gives back what it is given."""
    monkeypatch.setattr(OnnxModel, "__call__", lambda self, tiles: tiles)
    return Translator(run / "export" / "generator.onnx")


# ---- Translator ----


def test_the_kind_that_goes_in_comes_out(translator):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    edits = translator(pictures)
    assert edits.shape == pictures.shape and edits.dtype == np.uint8
    assert np.abs(translator(pictures[1]).astype(int) - edits[1]).max() <= 1
    assert isinstance(translator(Image.fromarray(pictures[1])), Image.Image)
    assert translator(Image.new("L", (60, 30))).size == (32, 16)
    for wrong in (pictures.astype(np.float32), pictures[:, :8], pictures[0, 0]):
        with pytest.raises(TranslateError, match="16 x 16 x 3"):
            translator(wrong)


def test_a_photo_is_turned_upright_and_keeps_its_shape():
    photo = Image.new("RGB", (40, 20), "red")
    photo.paste("blue", (0, 0, 10, 20))
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    photo.info["exif"] = exif.tobytes()
    upright = fit(photo, 16)
    assert upright.size == (16, 32)
    assert upright.getpixel((8, 2)) == (0, 0, 255) and upright.getpixel((8, 24)) == (255, 0, 0)


def test_16_bits_are_scaled_and_transparency_is_laid_over_white():
    levels = np.linspace(0, 65535, 256).astype(np.uint16)
    deep = fit(Image.fromarray(levels.reshape(16, 16)), 16)
    np.testing.assert_array_equal(np.asarray(deep)[..., 1].ravel(), levels // 257)
    clear = fit(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), 16)
    assert clear.getpixel((0, 0)) == (255, 255, 255)


def with_profile(image, profile, kind="PNG", **options):
    """The image as a file of this kind that embeds the profile gives it."""
    stream = io.BytesIO()
    image.save(stream, kind, icc_profile=profile, **options)
    return Image.open(stream)


def far(image, levels):
    """The largest difference between an image and levels H x W x 3."""
    assert image.mode == "RGB"
    return np.abs(np.asarray(image) - np.asarray(levels, np.float64)).max()


COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_a_display_p3_picture_becomes_srgb():
    image = Image.fromarray(COLOURS)
    expected = p3_as_srgb(COLOURS)
    assert np.abs(expected - COLOURS).max() > 50
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        picture = with_profile(image, colour_profile(), kind, **options)
        once = upright_rgb(picture)
        assert far(once, expected) <= 1
        assert far(upright_rgb(once), np.asarray(once)) == 0  # not followed twice
        assert picture.info["icc_profile"] == colour_profile()  # the caller's image is as it was
    jpeg = with_profile(image, colour_profile(), "JPEG")
    assert far(upright_rgb(jpeg), p3_as_srgb(np.asarray(jpeg))) <= 1

    alpha = np.random.default_rng(1).integers(0, 256, (8, 8, 1))
    see_through = Image.fromarray(np.dstack([COLOURS, alpha.astype(np.uint8)]))
    over_white = alpha / 255 * expected + 255 - alpha
    assert far(upright_rgb(with_profile(see_through, colour_profile())), over_white) <= 2
    palette = image.quantize(16)
    expected = p3_as_srgb(np.asarray(palette.convert("RGB")))
    assert far(upright_rgb(with_profile(palette, colour_profile())), expected) <= 1


def test_grey_levels_become_those_of_srgb():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    light = (levels / 255) ** 1.2
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    expected = (255 * curve)[..., None].repeat(3, -1)
    grey = colour_profile(b"GRAY")
    images = [Image.fromarray(levels), Image.fromarray(levels.astype(np.uint16) * 257)]
    images.append(Image.merge("LA", [images[0], Image.new("L", (16, 16), 255)]))
    for image in images:
        assert far(upright_rgb(with_profile(image, grey)), expected) <= 4  # 12.92 levels to a level there


def test_what_is_no_profile_of_a_pictures_channels_is_ignored():
    image = Image.fromarray(COLOURS)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # nothing is to be done
    for profile in (colour_profile()[:200], b"no profile", colour_profile(b"GRAY"), srgb):
        assert far(upright_rgb(with_profile(image, profile)), COLOURS) == 0
    grey = image.convert("L")
    assert far(upright_rgb(with_profile(grey, colour_profile())), np.asarray(grey.convert("RGB"))) == 0


def test_a_line_of_pixels_is_refused_before_it_is_enlarged(tmp_path):
    Image.new("RGB", (200_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(TranslateError, match="line.png .200000 x 1: more than"):
        open_picture(tmp_path / "line.png", 128)
    Image.new("RGB", (16, 16)).save(tmp_path / "other.png", "TIFF")  # none of the formats that are asked for
    with pytest.raises(TranslateError, match="other.png .cannot identify"):
        open_picture(tmp_path / "other.png", 16)


@pytest.mark.parametrize("length", [16, 18, 28, 30, 100])
def test_squares_cover_a_picture_and_overlap(length):
    places = starts(length, 16)
    assert places[0] == 0 and places[-1] == length - 16
    assert all(0 < after - before <= 12 for before, after in itertools.pairwise(places))


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 50, 3), (37, 16, 3)])
def test_squares_are_put_together_where_they_were_cut(unchanged, shape):
    pictures = [np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8) for seed in range(2)]
    for picture, edit in zip(pictures, unchanged.edit(pictures), strict=True):
        assert np.array_equal(edit, picture)


def test_squares_that_disagree_are_blended_without_a_seam():
    dark = np.zeros((16, 16, 3), np.uint8)
    bright = np.full((16, 16, 3), 240, np.uint8)
    row = blend([dark, bright], [(0, 0), (0, 12)], (16, 28, 3))[8, :, 0].astype(int)
    assert (row[:12] == 0).all() and (row[16:] == 240).all()
    assert (np.diff(row[11:17]) > 0).all() and row[12] < 60 and row[15] > 180


# ---- the command line ----


def test_a_folder_end_to_end(run, tmp_path, capsys):
    folder = tmp_path / "in"
    out = tmp_path / "out"
    folder.mkdir()
    for name, size in {"a.png": (16, 16), "b.jpg": (30, 50), "c.webp": (64, 16)}.items():
        Image.new("RGB", size, "green").save(folder / name)
    command = [str(run), str(folder), str(out), "--batch", "2", "--threads", "1"]
    assert translate.main(command) == 0
    assert "3 pictures, " in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png", "c.png"]

    (out / "a.png").write_bytes(b"mine")
    assert translate.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err and (out / "a.png").read_bytes() == b"mine"
    (folder / "d.png").write_text("no picture")
    assert translate.main([*command, "--overwrite"]) == 2
    assert "1 of 4 files were left out: d.png" in capsys.readouterr().err
    assert Image.open(out / "a.png").size == (16, 16) and Image.open(out / "b.png").size == (16, 26)

    Image.new("RGB", (16, 16)).save(folder / "a.jpg")
    assert translate.main([str(run), str(folder), str(tmp_path / "two")]) == 2
    assert "would be written to one file" in capsys.readouterr().err and not (tmp_path / "two").exists()


def test_one_picture_into_a_folder_or_a_file(run, tmp_path, capsys):
    picture = str(tmp_path / "c.webp")
    Image.new("RGB", (64, 16), "green").save(picture)
    (tmp_path / "v1.0").mkdir()
    assert translate.main([str(run), picture, str(tmp_path / "v1.0")]) == 0
    assert Image.open(tmp_path / "v1.0" / "c.png").size == (64, 16)
    assert translate.main([str(run), picture, str(tmp_path / "one.png")]) == 0
    assert Image.open(tmp_path / "one.png").size == (64, 16)
    assert translate.main([str(run), picture, str(tmp_path / "one.mp4")]) == 2
    assert "a .png file" in capsys.readouterr().err


def test_whatever_is_wrong_with_some_files_the_others_are_edited(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("av", reason=NO_PYAV)
    folder = tmp_path / "in"
    out = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    for name, side in {"bomb.png": 64, "large.png": 25, "torn.png": 16, "z.png": 16}.items():
        Image.new("RGB", (side, side), "green").save(folder / name)
    data = (folder / "torn.png").read_bytes()
    (folder / "torn.png").write_bytes(data[:30] + b"\0\0" + data[32:])
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"no video")
    assert translate.main([str(run), str(folder), str(out)]) == 2
    error = capsys.readouterr().err
    assert "5 of 6 files were left out: bomb.png (" in error
    assert all(name in error for name in ("large.png", "torn.png", "a.mp4", "b.mp4"))
    assert [path.name for path in out.iterdir()] == ["z.png"]


def test_wrong_paths_and_models_say_so(run, tmp_path, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    for name in ("broken.onnx", "broken.pt2"):
        (tmp_path / name).write_text("no model")
    for model, source, message in (
        (tmp_path / "nowhere", tmp_path / "a.png", "no generator.onnx"),
        (tmp_path / "broken.onnx", tmp_path / "a.png", "no model that ONNX Runtime can load"),
        (tmp_path / "broken.pt2", tmp_path / "a.png", "no program of distill/export.py"),
        (run / "export" / "generator-float.onnx", tmp_path / "a.png", "not uint8 pictures"),
        (run, tmp_path / "missing.png", "no such picture"),
        (run, tmp_path, "is the name of a file"),
    ):
        target = tmp_path / ("out.png" if source == tmp_path else "out")
        assert translate.main([str(model), str(source), str(target)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.png").exists()


# ---- videos ----


def write_video(path, frames, size, times_ms=None, turned=0):
    """A video of these uint8 frames H x W x 3, at these times or ten a second; size: width, height."""
    import av

    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("libx264", rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turned:
            stream.set_display_rotation(turned)
        for index, frame_HWC in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            if times_ms:
                frame.pts = times_ms[index]
                frame.time_base = Fraction(1, 1000)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())


def read_video(path):
    import av

    with av.open(str(path)) as reader:
        return list(reader.decode(video=0))


def test_a_video_keeps_its_frames_and_their_times(unchanged, tmp_path, monkeypatch, capsys):
    pytest.importorskip("av", reason=NO_PYAV)
    times_ms = [0, 33, 71, 500, 511]  # as from a phone: the frames do not come evenly
    greys = [20, 60, 100, 140, 180]
    frames = [np.full((40, 60, 3), grey, np.uint8) for grey in greys]
    write_video(tmp_path / "in.mp4", frames, (60, 40), times_ms)
    monkeypatch.setattr(translate, "Translator", lambda *_: unchanged)
    out = tmp_path / "out"
    command = ["model", str(tmp_path / "in.mp4"), str(out), "--batch", "2"]
    assert translate.main(command) == 0 and "5 pictures" in capsys.readouterr().out
    edits = read_video(out / "in.mp4")
    assert [round(frame.time * 1000) for frame in edits] == times_ms
    assert [(frame.width, frame.height) for frame in edits] == [(24, 16)] * 5
    means = [frame.to_ndarray(format="rgb24").mean() for frame in edits]
    assert np.abs(np.array(means) - np.array(greys)).max() < 4

    assert translate.main(command) == 2 and "--overwrite" in capsys.readouterr().err
    (tmp_path / "text.mp4").write_text("no video")
    assert translate.main(["model", str(tmp_path / "text.mp4"), str(out)]) == 2
    assert "no video that can be read" in capsys.readouterr().err
    assert translate.main(["model", "77", str(out)]) == 2
    assert "77: no video" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["in.mp4"]
    monkeypatch.setitem(sys.modules, "av", None)
    assert translate.main([*command, "--overwrite"]) == 2 and "pip install av" in capsys.readouterr().err


def test_a_video_from_a_turned_phone_is_upright(unchanged, tmp_path):
    av = pytest.importorskip("av", reason=NO_PYAV)
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a turned video")
    right_HWC = np.zeros((32, 64, 3), np.uint8)
    right_HWC[:, 32:] = 255
    write_video(tmp_path / "in.mp4", [right_HWC], (64, 32), turned=90)  # shown with what is right above
    video.translate_video(unchanged, str(tmp_path / "in.mp4"), tmp_path / "out.mp4", 1)
    (frame,) = read_video(tmp_path / "out.mp4")
    shown_HWC = frame.to_ndarray(format="rgb24")
    assert shown_HWC.shape == (32, 16, 3) and shown_HWC[:14].min() > 200 and shown_HWC[18:].max() < 60
