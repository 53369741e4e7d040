"""distill.resolution: a generator of another side than the pairs', from training to its edits."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.loader import load
from distill import export, train
from distill.pairs import open_pairs
from models.pictures import edit_of
from models.translator import Translator
from tests.helpers import make_selected_pairs, tiny_training


@pytest.fixture
def run(tmp_path):
    """Pairs of 32 x 32, and the arguments that name them."""
    folder = tmp_path / "runs" / "tree2winter" / "miniature"
    made = make_selected_pairs(folder, side=32)
    return folder, made


def arguments(folder, *more):
    sizes = ["teacher.resolution=32", "distill.images=8", "distill.save_every_images=8", "export.formats=[]"]
    return [*tiny_training(folder), *sizes, *more]


def test_pairs_are_pillows_at_the_generators_side(run):
    folder, made = run
    pairs, held_out = open_pairs(load(arguments(folder, "distill.resolution=16")))
    images = {pair.key: pair.images for pair in made}
    for dataset in (pairs, held_out):
        for place, location in enumerate(dataset.locations):
            for tensor_CHW, name in zip(dataset[place], ("input", "edit"), strict=True):
                small = Image.fromarray(images[location.key][name]).resize((16, 16), Image.Resampling.LANCZOS)
                assert np.array_equal(tensor_CHW.permute(1, 2, 0).numpy(), np.asarray(small))


def test_a_generator_of_half_the_side_is_trained_and_exported(run, capsys):
    folder, _ = run
    small = arguments(folder, "distill.resolution=16")
    assert train.main(small) == 0
    assert export.main(small) == 0
    assert json.loads((folder / "export" / "config.json").read_text())["resolution"] == 16
    assert Translator(folder / "export" / "generator.onnx").side == 16
    capsys.readouterr()
    assert train.main(arguments(folder)) == 2  # going on at another side would be another training
    assert "distill.resolution: 16 -> 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("side", "message"), [("64", "the pairs have 32 pixels a side"), ("24", "made for 16, 32, 64,")]
)
def test_sides_that_no_generator_has(run, capsys, side, message):
    folder, _ = run
    assert train.main(arguments(folder, f"distill.resolution={side}")) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_picture_of_another_side_is_shrunk_and_its_edit_enlarged():
    class Negative:
        side = 16

        def __call__(self, image_HWC):
            assert image_HWC.shape == (16, 16, 3)
            return 255 - image_HWC

    image_HWC = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    small = Image.fromarray(image_HWC).resize((16, 16), Image.Resampling.LANCZOS)
    expected = Image.fromarray(255 - np.asarray(small)).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(edit_of(Negative(), image_HWC), np.asarray(expected))
