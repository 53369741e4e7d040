"""scripts/compare.py: a table end to end on rendered scenes, and what it reads out of a training's
log.
"""

import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from configs.files import write_json
from configs.loader import load
from configs.runs import run_dir, selected_keys
from distill import checkpoints
from distill.pairs import split
from generate.shards import Pair, write_shard
from generate.sources import open_source
from scripts import compare
from scripts.measure import metrics
from scripts.measure.truth import true_edit
from tests.helpers import TINY_TRAINING, laplacian_variance, mean, printed_tables

SHIPPED = "models/miniature/generator/generator.safetensors"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The arguments of a run of 12 scenes whose 'teacher' paints the true edit."""
    monkeypatch.chdir(tmp_path)
    arguments = [
        "task=tree2winter",
        "runs_dir=runs",
        "teacher.resolution=16",
        *TINY_TRAINING,
        "distill.images=8",
        "distill.validation_share=0.3",
        "evaluate.scenes=3",
    ]
    config = load(arguments)
    scenes = [open_source(config.source, config.task, 16, 12).load(place) for place in range(12)]
    pairs = [
        Pair(
            one.key,
            {"input": one.image, "edit": true_edit(config, one.source, 16)},
            {"source": one.source},
        )
        for one in scenes
    ]
    run = tmp_path / "runs/tree2winter/miniature"
    (run / "pairs").mkdir(parents=True)
    write_shard(run / "pairs", 0, pairs, {})
    write_json(run / "selection.json", {"kept": [pair.key for pair in pairs]})
    return arguments


def edits_of(config, inputs):
    checkpoint = checkpoints.newest(run_dir(config) / "train" / "checkpoints")
    return compare.edit(checkpoint, inputs, 4, torch.device("cpu"))


def test_the_losses_table_end_to_end(asked, tmp_path, capsys, monkeypatch):
    rows = {
        row: compare.TABLES["losses"][row] for row in ("L1", "L1 + LPIPS + critic .5")
    }  # of six: each is a process of its own
    monkeypatch.setitem(compare.TABLES, "losses", rows)
    assert compare.main(["losses", *asked, "compare.jobs=2", "distill.save_every_images=4"]) == 0
    on_the_way, table = printed_tables(capsys.readouterr().out)
    assert list(table) == list(on_the_way) == list(rows)
    folder = tmp_path / "runs/tree2winter/miniature/compare/losses"
    result = json.loads((folder / "table.json").read_text())
    assert result["images"] == 3
    assert result["sets"]["L1"] == ["distill.lpips=0", "distill.style=0"]

    trained = folder / "l1-lpips-critic-5/tree2winter/miniature/train"
    assert (
        "adversarial: 0.5\n" in (trained / "config.yaml").read_text()
        and "lr: 0.001\n" in (trained / "config.yaml").read_text()
    )
    last = [
        json.loads(line)
        for line in (trained / "metrics.jsonl").read_text().splitlines()
        if "validation" in line
    ][-1]
    checks = [
        json.loads(line)
        for line in (trained / "metrics.jsonl").read_text().splitlines()
        if "validation" in line
    ]
    assert [line["images"] for line in checks] == [4, 8] and checks[-1] == last and result["not_ended"] == []
    assert on_the_way["L1 + LPIPS + critic .5"] == {
        str(line["images"]): f"{line['lpips']:.3f}" for line in checks
    }
    row = result["rows"]["L1 + LPIPS + critic .5"]
    assert row["lpips_teacher"]["mean"] == last["lpips"] and row["images"]["mean"] == 8
    assert "reached" not in row
    with Image.open(folder / "grid.png") as grid:  # input, two rows, truth
        assert grid.width == 4 * 96

    config = load([*asked, f"runs_dir={folder}/l1", "source.first_seed=3000000"])
    loaded = [open_source(config.source, config.task, 16, 3).load(place) for place in range(3)]
    edits = edits_of(config, np.stack([one.image for one in loaded]))
    truth = np.stack([true_edit(config, one.source, 16) for one in loaded])
    assert mean(table["L1"]["PSNR to truth, dB"]) == pytest.approx(
        metrics.psnr(edits, truth).mean(), abs=0.006
    )
    sharp = [np.mean([laplacian_variance(image) for image in images]) for images in (edits, truth)]
    assert mean(table["L1"]["sharpness / truth's"]) == pytest.approx(sharp[0] / sharp[1], abs=0.006)

    del rows["L1 + LPIPS + critic .5"]
    assert (
        compare.main(["losses", *asked, "distill.save_every_images=4"]) == 0
    )  # goes on from the end: nothing is trained again
    assert "train: going on from" in (folder / "l1/log.txt").read_text()
    assert json.loads((folder / "table.json").read_text())["rows"] == {"L1": result["rows"]["L1"]}


def test_edits_and_counts_are_those_of_the_export(asked):
    from distill.export import export
    from distill.train import train
    from models.translator import Translator

    config = load([*compare.BASE, *asked, "export.formats=[]"])
    train(config)
    inputs = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    edits = edits_of(config, inputs)
    exported = export(config)
    difference = Translator(exported / "generator.onnx")(inputs).astype(int) - edits
    assert np.abs(difference).max() <= 1
    counts = compare.counts(checkpoints.newest(run_dir(config) / "train" / "checkpoints"))
    weights = load_file(exported / "generator.safetensors")
    parameters = sum(tensor.numel() for tensor in weights.values())
    assert counts == {"images": 8, "parameters": pytest.approx(parameters / 1e6)}


def test_few_pairs_are_the_first_and_what_is_held_out_stays(asked, tmp_path):
    config, variant = load(asked), load([*asked, f"runs_dir={tmp_path}/few"])
    keys = selected_keys(tmp_path / "runs/tree2winter/miniature")
    training, held_out = split(keys, 0.3, 0)  # a scene's id is its pair's key
    compare.select_pairs(config, variant, 2)
    few = selected_keys(tmp_path / "few/tree2winter/miniature")
    of_few = split(few, 0.3, 0)
    assert len(training) > 2
    assert [few[place] for place in of_few[0]] == [keys[place] for place in training[:2]]
    assert [few[place] for place in of_few[1]] == [keys[place] for place in held_out]
    compare.select_pairs(config, variant, 0)
    assert selected_keys(tmp_path / "few/tree2winter/miniature") == keys


def log_of(*checks):
    lines = [
        {"images": images, "kind": "validation", "lpips": lpips, "psnr": 20.0} for images, lpips in checks
    ]
    return [{"images": 50, "kind": "train", "images_per_s": rate} for rate in (1.0, 9.0, 5.0)] + lines


def test_shares_of_the_training_from_scratch_by_hand():
    scratch = log_of((100, 0.9), (200, 0.29), (300, 0.32), (400, 0.30))
    found = compare.training_columns(scratch, scratch)
    assert found == {
        "lpips_teacher": 0.30,
        "psnr_teacher": 20.0,
        "images_per_s": 5.0,
        "reached": 0.5,
        "reached_near": 0.5,
    }
    assert (
        compare.training_columns(log_of((50, 0.308), (100, 0.30), (150, 0.5)), scratch).items()
        > {"reached_near": 0.125, "reached": 0.25}.items()
    )
    assert "reached" not in compare.training_columns(log_of((100, 0.305)), scratch)
    assert not {"reached", "reached_near"} & {*compare.training_columns(log_of((100, 0.32)), scratch)}
    assert not {"reached", "reached_near"} & {*compare.training_columns(scratch)}


def test_a_training_that_fails_is_named_and_the_others_end(asked, tmp_path, capsys, monkeypatch):
    rows = {"wrong": "distill.init=nowhere.safetensors", "L1": "distill.lpips=0"}
    monkeypatch.setitem(compare.TABLES, "losses", rows)
    assert compare.main(["losses", *asked, "evaluate.scenes=2"]) == 2
    out, err = capsys.readouterr()
    assert (
        err.startswith("error: wrong: nowhere.safetensors is not")
        and "compare/losses/wrong/log.txt" in err
        and err.count("\n") == 1
    )
    on_the_way, table = printed_tables(out)
    assert list(on_the_way) == list(table) == ["L1"] and "not trained to the end: wrong." in out


def test_stopped_it_shows_what_there_is(asked, tmp_path, capsys, monkeypatch):
    """Ctrl-C while one row still trains; then SIGTERM before anything is trained again."""
    rows = {"L1": "distill.lpips=0", "endless": "distill.images=1000000", "waiting": ""}
    monkeypatch.setitem(compare.TABLES, "losses", rows)
    arguments = ["losses", *asked, "compare.jobs=2", "evaluate.scenes=2", "distill.save_every_images=4"]
    folder, started, popen = (
        tmp_path / "runs/tree2winter/miniature/compare/losses",
        [],
        compare.subprocess.Popen,
    )
    trained = {row: folder / row.lower() / "tree2winter/miniature/train" for row in rows}
    monkeypatch.setattr(
        compare.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )

    def interrupt(_):
        if (trained["L1"] / "checkpoints/000000008/state.json").exists() and list(
            trained["endless"].glob("checkpoints/0*")
        ):
            raise KeyboardInterrupt
        time.sleep(0.05)

    monkeypatch.setattr(compare, "time", SimpleNamespace(sleep=interrupt))
    assert compare.main(arguments) == 130
    found = check_stopped(capsys.readouterr().out, folder)
    assert all(process.poll() is not None for process in started)

    (folder / "table.json").unlink()
    monkeypatch.setattr(
        compare, "time", SimpleNamespace(sleep=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    )
    with pytest.raises(SystemExit, match="143"):
        compare.main(arguments)
    assert check_stopped(capsys.readouterr().out, folder)["rows"] == found["rows"]
    assert all(process.poll() is not None for process in started)


def check_stopped(out, folder):
    """L1 has ended, endless was on the way, waiting never began."""
    on_the_way, table = printed_tables(out)
    assert (
        list(on_the_way) == ["L1", "endless"]
        and list(table) == ["L1"]
        and "not trained to the end: endless; waiting." in out
    )
    found = json.loads((folder / "table.json").read_text())
    assert (
        found["not_ended"] == ["endless", "waiting"]
        and list(found["rows"]) == ["L1"]
        and (folder / "grid.png").is_file()
    )
    assert found["validation"]["L1"].keys() == {"4", "8"}
    return found


def test_what_is_refused_or_only_told(asked, tmp_path, capsys):
    assert (
        compare.main(["loss", *asked]) == 2
        and "losses, augment, batches, sizes, transfer" in capsys.readouterr().err
    )
    assert compare.main(asked) == 2 and "no table ''" in capsys.readouterr().err
    assert (
        compare.main(["losses", *asked, "task.scene_truth=null"]) == 2
        and "task.scene_truth" in capsys.readouterr().err
    )
    assert (
        compare.main(["losses", *asked, "evaluate.first_seed=1000011"]) == 2
        and "first_seed=1000011" in capsys.readouterr().err
    )
    assert compare.main(["transfer", *asked, "--dry-run"]) == 0
    assert f"whole weights: distill.init={SHIPPED}" in capsys.readouterr().out
    assert not (tmp_path / "runs/tree2winter/miniature/compare").exists()


@pytest.mark.parametrize("table", compare.TABLES)
def test_every_row_is_a_configuration_of_its_own(table):
    asked = ["distill.beta1=0.5", "generator.width=0.5"]
    made = {
        row: load([*compare.BASE, *asked, *overrides.split()])
        for row, overrides in compare.TABLES[table].items()
    }
    assert len({str(one) for one in made.values()}) == len(made)
    for row, one in made.items():
        assert one.distill.beta1 == 0.5 and one.distill.lr == 0.001  # the user's, the base's
        assert one.generator.width == (0.25 if "quarter" in row else 0.5)
        assert bool(one.distill.init) == (table == "transfer" and row != compare.SCRATCH)
