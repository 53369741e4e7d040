"""distill/export.py and translate.py: a checkpoint becomes a file that edits pictures by itself."""

import copy
import itertools
import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors import safe_open
from torch.utils.data import DataLoader

from configs.loader import load
from distill import export as export_module
from distill import formats, translate
from distill.export import main as export_main
from distill.state import TrainingState
from distill.train import main as train_main
from distill.train import train
from models.comodgan import CoModGenerator
from models.translator import TranslateError, Translator
from tests.helpers import make_selected_pairs, tiny_training

SHORT = ("distill.images=8", "distill.lpips=0")
NONE_ELSE = "export.formats=[]"
EXACT = {"generator.safetensors", "generator.onnx", "generator-float.onnx", "generator.pt2"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("export") / "tree2winter" / "miniature"
    make_selected_pairs(run)
    train(load(tiny_training(run, *SHORT)))
    assert export_main(tiny_training(run, *SHORT)) == 0
    return run


@pytest.fixture(scope="module", params=["generator.onnx", "generator.pt2"])
def translator(run, request):
    return Translator(run / "export" / request.param, threads=1)


@pytest.fixture
def unchanged(run, monkeypatch):
    """A translator whose model gives back what it is given."""
    translator = Translator(run)
    monkeypatch.setattr(translator, "_run", lambda tiles: tiles)
    return translator


def test_every_format_agrees_with_pytorch(run):
    formats = json.loads((run / "export" / "check.json").read_text())["formats"]
    assert set(formats) == EXACT | {"generator-fp16.onnx", "generator-fp16.pt2", "generator-int8.onnx"}
    assert {path.name for path in (run / "export").glob("generator*")} == set(formats)
    assert all(formats[name]["max_levels"] <= 1 for name in EXACT)
    assert all(formats[name]["allowed_levels"] <= 8 for name in formats if "int8" not in name)
    assert formats["generator.safetensors"]["max_levels"] == 0
    assert (
        formats["generator-fp16.onnx"]["max_levels"] <= 2 and formats["generator-fp16.pt2"]["max_levels"] <= 2
    )
    assert 0 < formats["generator-int8.onnx"]["mean_levels"] < 5


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("z", [None, [0.5, -1.0, 2.0, 0.1]])
def test_folding_computes_all_that_weights_alone_decide(z, separable):
    torch.manual_seed(0)
    sizes = {"channel_base": 64, "channel_max": 8, "z_dim": 4, "w_dim": 4, "code_dim": 8, "mapping_layers": 2}
    network = CoModGenerator(16, separable=separable, **sizes).eval()
    edit = formats.folded(formats.Edit(network, z), torch.zeros(2, 3, 16, 16))
    images_BCHW = torch.randn(3, 3, 16, 16)
    for batch_BCHW in (images_BCHW, images_BCHW[:1]):
        with torch.no_grad():
            expected_BCHW = network(batch_BCHW, torch.tensor([z]) if z else None)
            torch.testing.assert_close(edit(batch_BCHW), expected_BCHW, rtol=1e-5, atol=1e-5)
            found_BCHW = copy.deepcopy(edit).half()(
                batch_BCHW.half()
            )  # no cast of float32 may be left in the graph
            torch.testing.assert_close(found_BCHW, expected_BCHW.half(), rtol=0.02, atol=0.02)
    calls = [node for node in edit.graph.nodes if node.op == "call_function"]
    assert calls and all(any(source.op != "get_attr" for source in node.all_input_nodes) for node in calls)
    assert (4, 4) not in [
        tuple(constant.shape) for constant in edit.buffers()
    ]  # the mapping network's weights


def test_eight_bit_ranges_come_from_the_calibration_pictures(run, tmp_path):
    pictures = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    expected = Translator(run / "export" / "generator.onnx")(pictures).astype(int)
    losses = {}
    for name, calibration in (("alike", pictures), ("black", np.zeros_like(pictures))):
        formats.write_int8(tmp_path / f"{name}.onnx", run / "export" / "generator.onnx", calibration)
        losses[name] = np.abs(Translator(tmp_path / f"{name}.onnx")(pictures) - expected).mean()
    assert losses["alike"] < 0.5 * losses["black"]


def test_programs_name_no_device(run):
    """What checks that its input is on the CPU, as torch.export adds it, fails on a GPU."""
    for path in (run / "export").glob("*.pt2"):
        program = torch.export.load(path)
        assert not [
            node for node in program.graph.nodes if "assert" in str(node.target) or node.kwargs.get("device")
        ]


def test_files_say_what_they_are(run):
    about = json.loads((run / "export" / "config.json").read_text())
    assert (about["task"], about["resolution"], about["images_seen"], about["pairs"]) == (
        "tree2winter",
        16,
        8,
        12,
    )
    assert len(about["pairs_sha256"]) == 2 and about["config"]["channel_base"] == 64
    with safe_open(run / "export" / "generator.safetensors", "np") as stream:
        assert {key: json.loads(value) for key, value in stream.metadata().items()} == about
    model = onnx.load(run / "export" / "generator.onnx")
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties["task"] == "tree2winter" and json.loads(properties["config"]) == about["config"]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert oct((run / "export" / "generator.safetensors").stat().st_mode)[-3:] == "644"


def test_the_latent_is_the_training_s_whatever_export_is_told(tmp_path):
    """The one that validation used, drawn from the seed of the training."""
    other = tmp_path / "tree2winter" / "miniature"
    make_selected_pairs(other)
    train(load(tiny_training(other, *SHORT, "distill.latent=sampled", "seed=5")))
    assert export_main(tiny_training(other, NONE_ELSE)) == 0
    z_1D = torch.randn(1, 8, generator=torch.Generator().manual_seed(5))
    assert json.loads((other / "export" / "config.json").read_text())["z"] == z_1D[0].tolist()


def test_training_starts_from_an_exported_generator(run, tmp_path, capsys):
    other = tmp_path / "tree2winter" / "miniature"
    make_selected_pairs(other)
    init = f"distill.init={run / 'export' / 'generator.safetensors'}"
    path = train(load(tiny_training(other, "distill.images=4", "distill.lpips=0", "distill.lr=0", init)))
    with (
        safe_open(path / "generator.safetensors", "np") as now,
        safe_open(run / "export" / "generator.safetensors", "np") as before,
    ):
        assert all(np.array_equal(now.get_tensor(name), before.get_tensor(name)) for name in before.keys())  # noqa: SIM118


def test_a_network_learns_from_an_exported_one(run, tmp_path, capsys):
    """distill.labels: its edits stand in the place of the pairs' own, in every decoding process; held-out pairs keep theirs."""
    learner, onnx_file = tmp_path / "tree2winter" / "miniature", run / "export" / "generator.onnx"
    images = {pair.key: pair.images for pair in make_selected_pairs(learner)}
    config = load(tiny_training(learner, *SHORT, f"distill.labels={onnx_file}"))
    state, translator = (
        TrainingState(config, Accelerator(cpu=True), tmp_path),
        Translator(onnx_file, threads=1),
    )
    for dataset, workers in ((state.training, 2), (state.held_out, 0)):
        found = [
            pair
            for batches in DataLoader(dataset, 3, num_workers=workers)
            for pair in zip(*batches, strict=True)
        ]
        for location, pair in zip(dataset.locations, found, strict=True):
            own = images[location.key]
            edit_HWC = translator(own["input"]) if dataset is state.training else own["edit"]
            for found_CHW, expected_HWC in zip(pair, (own["input"], edit_HWC), strict=True):
                assert np.array_equal(found_CHW.permute(1, 2, 0).numpy(), expected_HWC)
    for file, workers in (("missing.onnx", 0), (str(learner / "selection.json"), 2)):
        assert (
            train_main(tiny_training(learner, *SHORT, f"distill.labels={file}", f"distill.workers={workers}"))
            == 2
        )
        said = capsys.readouterr().err.strip()
        assert Path(file).name in said and "error: " in said.splitlines()[-1]


def test_a_format_that_differs_is_not_kept(run, monkeypatch, capsys):
    before = (run / "export" / "generator.onnx").read_bytes()
    monkeypatch.setattr(Translator, "__call__", lambda self, images: 255 - images)
    assert export_main(tiny_training(run, *SHORT, NONE_ELSE)) == 2
    assert "generator.onnx differs from PyTorch" in capsys.readouterr().err
    assert (run / "export" / "generator.onnx").read_bytes() == before
    assert not list(run.rglob(".making.*"))


def test_formats_not_asked_for_go_and_unknown_ones_are_refused(run, tmp_path, capsys):
    other = tmp_path / "tree2winter" / "miniature"
    shutil.copytree(run, other)
    (other / "export" / ".making.killed").mkdir()
    assert export_main(tiny_training(other, *SHORT, NONE_ELSE)) == 0
    assert not (other / "export" / ".making.killed").exists()
    assert {path.name for path in (other / "export").glob("generator*")} == {
        "generator.safetensors",
        "generator.onnx",
    }
    assert export_main(tiny_training(other, *SHORT, "export.formats=[int4]")) == 2
    assert "no 'int4'. There are: float, fp16, int8, pt2, page" in capsys.readouterr().err


def test_without_a_checkpoint_it_says_so(tmp_path, capsys):
    run = tmp_path / "tree2winter" / "miniature"
    make_selected_pairs(run)
    assert export_main(tiny_training(run)) == 2
    assert "run distill/train.py" in capsys.readouterr().err
    assert export_module.plan(load(tiny_training(run)))["checkpoint"].startswith("none yet")


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
    upright = translate.fit(photo, 16)
    assert (
        upright.size == (16, 32)
        and upright.getpixel((8, 2)) == (0, 0, 255)
        and upright.getpixel((8, 24)) == (255, 0, 0)
    )
    deep = translate.fit(Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)), 16)
    np.testing.assert_array_equal(
        np.asarray(deep)[..., 1].ravel(), np.linspace(0, 65535, 256).astype(np.uint16) // 257
    )
    clear = translate.fit(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), 16)
    assert clear.getpixel((0, 0)) == (255, 255, 255)


def test_a_line_of_pixels_is_refused_before_it_is_enlarged(tmp_path):
    Image.new("RGB", (200_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(TranslateError, match="line.png .200000 x 1: more than"):
        translate.open_picture(tmp_path / "line.png", 128)
    Image.new("RGB", (16, 16)).save(tmp_path / "other.png", "TIFF")  # none of the formats that are asked for
    with pytest.raises(TranslateError, match="other.png .cannot identify"):
        translate.open_picture(tmp_path / "other.png", 16)


def test_whatever_is_wrong_with_some_files_the_others_are_edited(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("av")
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    for name, size in (
        ("bomb.png", (64, 64)),
        ("large.png", (25, 25)),
        ("torn.png", (16, 16)),
        ("z.png", (16, 16)),
    ):
        Image.new("RGB", size, "green").save(folder / name)
    data = (folder / "torn.png").read_bytes()
    (folder / "torn.png").write_bytes(data[:30] + b"\0\0" + data[32:])
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"no video")
    assert translate.main([str(run), str(folder), str(out)]) == 2
    said = capsys.readouterr().err
    assert "5 of 6 files were left out: bomb.png (" in said and all(
        name in said for name in ("large.png", "torn.png", "a.mp4", "b.mp4")
    )
    assert [path.name for path in out.iterdir()] == ["z.png"]


@pytest.mark.parametrize("length", [16, 18, 28, 30, 100])
def test_squares_cover_a_picture_and_overlap(length):
    found = translate.starts(length, 16)
    assert found[0] == 0 and found[-1] == length - 16
    assert all(0 < after - before <= 12 for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 50, 3), (37, 16, 3)])
def test_squares_are_put_together_where_they_were_cut(unchanged, shape):
    pictures = [np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8) for seed in range(2)]
    for picture, edit in zip(pictures, unchanged.edit(pictures), strict=True):
        assert np.array_equal(edit, picture)


def test_squares_that_disagree_are_blended_without_a_seam():
    dark, bright = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 240, np.uint8)
    row = translate.blend([dark, bright], [(0, 0), (0, 12)], (16, 28, 3))[8, :, 0].astype(int)
    assert (row[:12] == 0).all() and (row[16:] == 240).all()
    assert (np.diff(row[11:17]) > 0).all() and row[12] < 60 and row[15] > 180


def test_a_folder_end_to_end(run, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, size in (("a.png", (16, 16)), ("b.jpg", (30, 50)), ("c.webp", (64, 16))):
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
    (tmp_path / "v1.0").mkdir()
    assert translate.main([str(run), str(folder / "c.webp"), str(tmp_path / "v1.0")]) == 0
    assert Image.open(tmp_path / "v1.0" / "c.png").size == (64, 16)
    assert translate.main([str(run), str(folder / "c.webp"), str(tmp_path / "one.png")]) == 0
    assert Image.open(tmp_path / "one.png").size == (64, 16)
    assert translate.main([str(run), str(folder / "c.webp"), str(tmp_path / "one.mp4")]) == 2
    assert "a .png file" in capsys.readouterr().err


def test_a_video_keeps_its_frames_and_their_times(unchanged, tmp_path, monkeypatch, capsys):
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install -e .[video]")
    times_ms, greys = (
        [0, 33, 71, 500, 511],
        [20, 60, 100, 140, 180],
    )  # as from a phone: the frames do not come evenly
    with av.open(str(tmp_path / "in.mp4"), "w") as writer:
        stream = writer.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = (
            60,
            40,
            "yuv420p",
            Fraction(1, 1000),
        )
        for time_ms, grey in zip(times_ms, greys, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((40, 60, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
    monkeypatch.setattr(translate, "Translator", lambda *_: unchanged)
    command = ["model", str(tmp_path / "in.mp4"), str(tmp_path / "out"), "--batch", "2"]
    assert translate.main(command) == 0 and "5 pictures" in capsys.readouterr().out
    with av.open(str(tmp_path / "out" / "in.mp4")) as reader:
        frames = list(reader.decode(video=0))
    assert [round(frame.time * 1000) for frame in frames] == times_ms
    assert [(frame.width, frame.height) for frame in frames] == [(24, 16)] * 5
    assert np.abs([frame.to_ndarray(format="rgb24").mean() for frame in frames] - np.array(greys)).max() < 4
    assert translate.main(command) == 2 and "--overwrite" in capsys.readouterr().err
    (tmp_path / "text.mp4").write_text("no video")
    assert translate.main(["model", str(tmp_path / "text.mp4"), str(tmp_path / "out")]) == 2
    assert "no video that can be read" in capsys.readouterr().err
    assert (
        translate.main(["model", "77", str(tmp_path / "out")]) == 2
        and "77: no video" in capsys.readouterr().err
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in.mp4"]
    monkeypatch.setitem(sys.modules, "av", None)
    assert translate.main([*command, "--overwrite"]) == 2 and "pip install av" in capsys.readouterr().err


def test_a_video_from_a_turned_phone_is_upright(unchanged, tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install -e .[video]")
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a turned video")
    right_HWC = np.zeros((32, 64, 3), np.uint8)
    right_HWC[:, 32:] = 255
    with av.open(str(tmp_path / "in.mp4"), "w") as writer:
        stream = writer.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90)  # to be shown turned counter-clockwise: what is right is up
        writer.mux(stream.encode(av.VideoFrame.from_ndarray(right_HWC, format="rgb24")))
        writer.mux(stream.encode())
    translate.translate_video(unchanged, str(tmp_path / "in.mp4"), tmp_path / "out.mp4", 1)
    with av.open(str(tmp_path / "out.mp4")) as reader:
        (shown_HWC,) = (frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0))
    assert shown_HWC.shape == (32, 16, 3) and shown_HWC[:14].min() > 200 and shown_HWC[18:].max() < 60


def test_wrong_paths_and_models_say_so(run, tmp_path, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    for name in ("broken.onnx", "broken.pt2"):
        (tmp_path / name).write_text("no model")
    for model, source, said in (
        (tmp_path / "nowhere", tmp_path / "a.png", "no generator.onnx"),
        (tmp_path / "broken.onnx", tmp_path / "a.png", "no model that ONNX Runtime can load"),
        (tmp_path / "broken.pt2", tmp_path / "a.png", "no program of distill/export.py"),
        (run / "export" / "generator-float.onnx", tmp_path / "a.png", "not uint8 pictures"),
        (run, tmp_path / "missing.png", "no such picture"),
    ):
        assert translate.main([str(model), str(source), str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_runs_outside_the_clone(run, tmp_path):
    shutil.copy(translate.__file__, tmp_path / "translate.py")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    model = Path(run) / "export" / "generator.onnx"
    command = [sys.executable, "translate.py", str(model), "a.png", "out"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60, capture_output=True)
    assert (tmp_path / "out" / "a.png").exists()
