"""distill/export.py and translate.py: a checkpoint becomes a file that edits pictures by itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors import safe_open

from configs.loader import load
from distill import export as export_module
from distill import translate
from distill.export import main as export_main
from distill.train import train
from distill.translate import TranslateError, Translator
from tests.test_distill_pairs import make_pairs
from tests.test_distill_train import arguments

SHORT = ("distill.images=8", "distill.lpips=0")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("export") / "tree2winter" / "miniature"
    make_pairs(run)
    train(load(arguments(run, *SHORT)))
    assert export_main(arguments(run, *SHORT)) == 0
    return run


@pytest.fixture(scope="module")
def translator(run):
    return Translator(run, threads=1)


def test_every_format_agrees_with_pytorch(run):
    check = json.loads((run / "export" / "check.json").read_text())
    assert set(check["formats"]) == {"generator.safetensors", "generator.onnx"}
    assert all(found["max_levels"] <= 1 for found in check["formats"].values())
    assert check["formats"]["generator.safetensors"]["max_levels"] == 0


def test_files_say_what_they_are(run):
    about = json.loads((run / "export" / "config.json").read_text())
    assert (about["task"], about["resolution"], about["images_seen"], about["pairs"]) == ("tree2winter", 16, 8, 12)
    assert len(about["pairs_sha256"]) == 2 and about["config"]["channel_base"] == 64
    with safe_open(run / "export" / "generator.safetensors", "np") as stream:
        assert {key: json.loads(value) for key, value in stream.metadata().items()} == about
    model = onnx.load(run / "export" / "generator.onnx")
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties["task"] == "tree2winter" and json.loads(properties["config"]) == about["config"]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert oct((run / "export" / "generator.safetensors").stat().st_mode)[-3:] == "644"


def test_training_starts_from_an_exported_generator(run, tmp_path, capsys):
    other = tmp_path / "tree2winter" / "miniature"
    make_pairs(other)
    init = f"distill.init={run / 'export' / 'generator.safetensors'}"
    path = train(load(arguments(other, "distill.images=4", "distill.lpips=0", "distill.lr=0", init)))
    with safe_open(path / "generator.safetensors", "np") as now, safe_open(run / "export" / "generator.safetensors", "np") as before:
        assert all(np.array_equal(now.get_tensor(name), before.get_tensor(name)) for name in before.keys())  # noqa: SIM118


def test_a_format_that_differs_is_not_kept(run, monkeypatch, capsys):
    before = (run / "export" / "generator.onnx").read_bytes()
    monkeypatch.setattr(Translator, "__call__", lambda self, images: 255 - images)
    assert export_main(arguments(run, *SHORT)) == 2
    assert "generator.onnx differs from PyTorch" in capsys.readouterr().err
    assert (run / "export" / "generator.onnx").read_bytes() == before
    assert not list(run.glob(".export.*"))


def test_without_a_checkpoint_it_says_so(tmp_path, capsys):
    run = tmp_path / "tree2winter" / "miniature"
    make_pairs(run)
    assert export_main(arguments(run)) == 2
    assert "run distill/train.py" in capsys.readouterr().err
    assert export_module.plan(load(arguments(run)))["checkpoint"].startswith("none yet")


def test_the_kind_that_goes_in_comes_out(translator):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    edits = translator(pictures)
    assert edits.shape == pictures.shape and edits.dtype == np.uint8
    assert np.abs(translator(pictures[1]).astype(int) - edits[1]).max() <= 1
    assert isinstance(translator(Image.fromarray(pictures[1])), Image.Image)
    assert translator(Image.new("L", (50, 30))).size == (16, 16)
    for wrong in (pictures.astype(np.float32), pictures[:, :8], pictures[0, 0]):
        with pytest.raises(TranslateError, match="16 x 16 x 3"):
            translator(wrong)


def test_a_photo_is_turned_upright_and_cut_to_its_centre():
    photo = Image.new("RGB", (40, 20), "red")
    photo.paste("blue", (0, 0, 10, 20))
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    photo.info["exif"] = exif.tobytes()
    upright = translate.fit(photo, 16)
    assert upright.size == (16, 16) and upright.getpixel((8, 8)) == (255, 0, 0)
    clear = translate.fit(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), 16)
    assert clear.getpixel((0, 0)) == (255, 255, 255)


def test_a_folder_end_to_end(run, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, size in (("a.png", (16, 16)), ("b.jpg", (30, 50)), ("c.webp", (64, 16))):
        Image.new("RGB", size, "green").save(folder / name)
    command = [str(run), str(folder), str(out), "--batch", "2", "--threads", "1"]
    assert translate.main(command) == 0
    assert "ms a picture" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png", "c.png"]
    (out / "a.png").write_bytes(b"mine")
    assert translate.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err and (out / "a.png").read_bytes() == b"mine"
    (folder / "d.png").write_text("no picture")
    assert translate.main([*command, "--overwrite"]) == 2
    assert "1 of 4 files are no pictures" in capsys.readouterr().err
    assert Image.open(out / "a.png").size == (16, 16)


def test_wrong_paths_and_models_say_so(run, tmp_path, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "broken.onnx").write_text("no model")
    for model, source, said in (
        (tmp_path / "nowhere", tmp_path / "a.png", "no generator.onnx"),
        (tmp_path / "broken.onnx", tmp_path / "a.png", "no model that ONNX Runtime can load"),
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
