"""distill/export.py: a checkpoint becomes files that edit pictures by themselves."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from configs.errors import UserError
from configs.loader import known_keys, load
from distill import formats
from distill.export import main as export_main
from distill.export import plan
from distill.graphs import Edit, Sources, folded
from distill.pairs import open_pairs
from distill.train import main as train_main
from distill.train import train
from models.comodgan import CoModGenerator
from models.translator import Translator
from tests.helpers import TINY, make_selected_pairs, tiny_training

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


def test_every_format_agrees_with_pytorch(run):
    checks = json.loads((run / "export" / "check.json").read_text())["formats"]
    assert set(checks) == EXACT | {"generator-fp16.onnx", "generator-fp16.pt2", "generator-int8.onnx"}
    assert {path.name for path in (run / "export").glob("generator*")} == set(checks)
    assert all(checks[name]["max_levels"] <= 1 for name in EXACT)
    assert all(checks[name]["allowed_levels"] <= 8 for name in checks if "int8" not in name)
    assert checks["generator.safetensors"]["max_levels"] == 0
    assert checks["generator-fp16.onnx"]["max_levels"] <= 2
    assert checks["generator-fp16.pt2"]["max_levels"] <= 2
    assert 0 < checks["generator-int8.onnx"]["mean_levels"] < 5


def test_a_graph_goes_when_no_file_needs_it_any_more():
    """Each holds the weights anew."""
    sources = Sources(CoModGenerator(resolution=16, **TINY).eval(), 16, None)
    assert sources.network is sources.network and sources.half_picture is sources.half_picture
    edit = sources._edit
    sources.keep({"half_picture"})
    assert {*sources.__dict__} & {"network", "half_picture", "_edit"} == {"half_picture", "_edit"}
    assert sources._edit is edit
    sources.keep({"calibration_BHWC", "half_sums"})
    assert not {*sources.__dict__} & {"network", "half_picture", "_edit"}


def test_the_table_has_every_format_that_can_be_asked_for():
    choices = known_keys()["export.formats"].metadata["limits"].choices
    options = {file.option for file in formats.FILES}
    assert options == {None, *choices} - {"page"}  # which distill/browser.py makes around generator.onnx


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("latent", [[0.0, 0.0, 0.0, 0.0], [0.5, -1.0, 2.0, 0.1]])
def test_folding_computes_all_that_weights_alone_decide(latent, separable):
    torch.manual_seed(0)
    sizes = {"channel_base": 64, "channel_max": 8, "z_dim": 4, "w_dim": 4, "code_dim": 8, "mapping_layers": 2}
    network = CoModGenerator(16, separable=separable, **sizes).eval()
    edit = Edit(network)
    assert torch.equal(edit.z_1D, torch.zeros(1, 4))
    edit.z_1D.copy_(torch.tensor([latent]))
    edit = folded(edit, torch.zeros(2, 3, 16, 16))
    images_BCHW = torch.randn(3, 3, 16, 16)
    for batch_BCHW in (images_BCHW, images_BCHW[:1]):
        with torch.no_grad():
            expected_BCHW = network(batch_BCHW, torch.tensor([latent]))
            torch.testing.assert_close(edit(batch_BCHW), expected_BCHW, rtol=1e-5, atol=1e-5)
            # no cast to float32 may be left in the graph
            half_BCHW = copy.deepcopy(edit).half()(batch_BCHW.half())
            torch.testing.assert_close(half_BCHW, expected_BCHW.half(), rtol=0.02, atol=0.02)
    calls = [node for node in edit.graph.nodes if node.op == "call_function"]
    assert calls and all(any(source.op != "get_attr" for source in node.all_input_nodes) for node in calls)
    assert (4, 4) not in [tuple(constant.shape) for constant in edit.buffers()]  # mapping network's weights


def test_eight_bit_ranges_come_from_the_calibration_pictures(run, tmp_path):
    pictures = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    expected = Translator(run / "export" / "generator.onnx")(pictures).astype(int)
    losses = {}
    for name, calibration in (("alike", pictures), ("black", np.zeros_like(pictures))):
        formats.quantise(run / "export" / "generator.onnx", tmp_path / f"{name}.onnx", calibration)
        losses[name] = np.abs(Translator(tmp_path / f"{name}.onnx")(pictures) - expected).mean()
    assert losses["alike"] < 0.5 * losses["black"]


def test_programs_name_no_device(run):
    """What checks that its input is on the CPU, as torch.export adds it, fails on a GPU."""
    for path in (run / "export").glob("*.pt2"):
        for node in torch.export.load(path).graph.nodes:
            assert "assert" not in str(node.target) and not node.kwargs.get("device")


def test_files_say_what_they_are(run):
    metadata = json.loads((run / "export" / "config.json").read_text())
    expected = {"task": "tree2winter", "resolution": 16, "images_seen": 8, "pairs": 12}
    assert {key: metadata[key] for key in expected} == expected
    assert len(metadata["pairs_hash"]) == 16 and metadata["config"]["channel_base"] == TINY["channel_base"]
    with safe_open(run / "export" / "generator.safetensors", "np") as stream:
        assert {key: json.loads(value) for key, value in stream.metadata().items()} == metadata
    model = onnx.load(run / "export" / "generator.onnx")
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties["task"] == "tree2winter" and json.loads(properties["config"]) == metadata["config"]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert oct((run / "export" / "generator.safetensors").stat().st_mode)[-3:] == "644"


def test_a_generator_of_sampled_latents_is_refused(tmp_path):
    """Files of earlier versions name the latent that was fixed; null, as most have it, is zeros."""
    network = CoModGenerator(16, **TINY)
    for z in ("null", "[0.5, 1.0]"):
        metadata = {"config": json.dumps(network.config), "z": z}
        save_file(network.state_dict(), tmp_path / "generator.safetensors", metadata)
        if z == "null":
            assert formats.read_generator(tmp_path / "generator.safetensors")[0].config == network.config
        else:
            with pytest.raises(UserError, match="sampled latents.*train anew"):
                formats.read_generator(tmp_path / "generator.safetensors")


def test_weights_that_do_not_say_of_what_network_they_are_are_refused(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="is not an exported generator.safetensors .*no config"):
        formats.read_generator(tmp_path / "bare.safetensors")


def test_training_starts_from_an_exported_generator(run, tmp_path, capsys):
    other = tmp_path / "tree2winter" / "miniature"
    make_selected_pairs(other)
    init = f"distill.init={run / 'export' / 'generator.safetensors'}"
    path = train(load(tiny_training(other, "distill.images=4", "distill.lpips=0", "distill.lr=0", init)))
    before = load_file(run / "export" / "generator.safetensors")
    now = load_file(path / "generator.safetensors")
    assert all(torch.equal(now[name], before[name]) for name in before)


def test_a_network_learns_from_an_exported_one(run, tmp_path, capsys):
    """distill.labels: its edits take the place of the training pairs' own, in every decoding process."""
    learner = tmp_path / "tree2winter" / "miniature"
    onnx_file = run / "export" / "generator.onnx"
    images = {pair.key: pair.images for pair in make_selected_pairs(learner)}
    config = load(tiny_training(learner, *SHORT, f"distill.labels={onnx_file}"))
    training, held_out = open_pairs(config)
    translator = Translator(onnx_file, threads=1)
    for dataset, workers in ((training, 2), (held_out, 0)):
        decoded = []
        for inputs_BCHW, edits_BCHW in DataLoader(dataset, 3, num_workers=workers):
            decoded += zip(inputs_BCHW, edits_BCHW, strict=True)
        for location, pair in zip(dataset.locations, decoded, strict=True):
            own = images[location.key]
            edit_HWC = translator(own["input"]) if dataset is training else own["edit"]
            for image_CHW, expected_HWC in zip(pair, (own["input"], edit_HWC), strict=True):
                assert np.array_equal(image_CHW.permute(1, 2, 0).numpy(), expected_HWC)


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_that_are_no_generator_say_so(workers, tmp_path, capsys):
    learner = tmp_path / "tree2winter" / "miniature"
    make_selected_pairs(learner)
    file = "missing.onnx" if workers == 0 else str(learner / "selection.json")
    arguments = tiny_training(learner, *SHORT, f"distill.labels={file}", f"distill.workers={workers}")
    assert train_main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert Path(file).name in message and "error: " in message.splitlines()[-1]


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
    names = {path.name for path in (other / "export").glob("generator*")}
    assert names == {"generator.safetensors", "generator.onnx"}
    assert export_main(tiny_training(other, *SHORT, "export.formats=[int4]")) == 2
    assert "it is float, fp16, int8, pt2 or page" in capsys.readouterr().err


def test_without_a_checkpoint_it_says_so(tmp_path, capsys):
    run = tmp_path / "tree2winter" / "miniature"
    make_selected_pairs(run)
    assert export_main(tiny_training(run)) == 2
    assert "zero2gan train" in capsys.readouterr().err
    assert plan(load(tiny_training(run)))["checkpoint"].startswith("none yet")


def test_it_runs_outside_the_clone(run, tmp_path):
    """From the folder of an export, with nothing else of ours and without PyTorch."""
    for name in ("translator.py", "generator.onnx"):
        shutil.copy(run / "export" / name, tmp_path)
    Image.new("RGB", (24, 16)).save(tmp_path / "a.png")
    (tmp_path / "own.py").write_text(
        "import sys\n"
        "from PIL import Image\n"
        "from translator import Translator\n"
        "Translator('.')(Image.open('a.png')).save('b.png')\n"
        "print(*sys.modules)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "own.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, check=True, timeout=60, capture_output=True, text=True
    )
    assert Image.open(tmp_path / "b.png").size == (24, 16)
    assert not {"torch", "configs", "distill", "models"} & set(done.stdout.split())
