"""scripts/benchmark.py end to end at a tiny scale; how fast anything is, is no matter for a test."""

import json

import pytest

from distill import formats
from models.comodgan import CoModGenerator
from scripts import benchmark


def test_generate_prints_and_writes_the_same_table(tiny_run, tmp_path, capsys):
    arguments = [
        "generate",
        *tiny_run,
        "benchmark.pairs=2",
        "generate.batch=2",
        f"json={tmp_path}/found.json",
    ]
    assert benchmark.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    printed = capsys.readouterr().out
    assert found["rows"]["plain loop, one at a time"]["ratio"] == 1 and found["ratio"] > 0
    for name, row in found["rows"].items():
        assert f"| {name} | {row['seconds']:.4g} |" in printed
        assert row["seconds"] > 0 and row["memory"] > 0


def test_the_fast_preset_has_no_official_row(tiny_run, tmp_path, capsys):
    arguments = ["generate", *tiny_run, "preset=fast", "benchmark.pairs=2", f"json={tmp_path}/found.json"]
    assert benchmark.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (
        sorted(name.split(",")[0] for name in found["rows"]) == ["ours", "plain loop"]
        and "official" not in capsys.readouterr().out
    )


def test_infer_times_the_teacher_and_each_file(tiny_run, tmp_path, capsys):
    network = CoModGenerator(
        32, channel_base=64, channel_max=8, z_dim=4, w_dim=4, code_dim=8, mapping_layers=1
    ).eval()
    named = dict.fromkeys(("task", "source", "target", "teacher", "git_revision"), "x")
    formats.write(
        tmp_path, network, named | {"resolution": 32, "z": None, "config": network.config}, (), None
    )
    small = [
        *tiny_run,
        "benchmark.pairs=1",
        "benchmark.calls=2",
        "benchmark.images_at_once=2",
        f"json={tmp_path}/found.json",
    ]
    assert (
        benchmark.main(["infer", *small, "distill.init="]) == 2
        and "run distill/export.py" in capsys.readouterr().err
    )
    assert benchmark.main(["infer", *small, f"distill.init={tmp_path}/generator.safetensors"]) == 0
    found, printed = json.loads((tmp_path / "found.json").read_text()), capsys.readouterr().out
    eager, files = "PyTorch, eager, float32", [name for name in found["rows"] if "generator" in name]
    (teacher,) = found["rows"].keys() - {eager, *files}
    assert len(files) >= 3 and all(f"| {name} |" in printed for name in found["rows"])
    for name in files:
        row = found["rows"][name]
        assert row["ratio"] == pytest.approx(found["rows"][teacher]["seconds"] / row["seconds"])
        assert row["to_eager"] == pytest.approx(found["rows"][eager]["seconds"] / row["seconds"])
    assert found["ratio"] in [found["rows"][name]["ratio"] for name in files]


def test_train_writes_what_each_loop_took(tmp_path):
    sizes = ["channel_base=64", "channel_max=8", "z_dim=8", "w_dim=8", "code_dim=16", "mapping_layers=2"]
    settings = [
        "benchmark.side=16",
        "benchmark.steps=1",
        "distill.batch=4",
        "distill.lpips_crop=0",
        *(f"generator.{size}" for size in sizes),
    ]
    assert benchmark.main(["train", *settings, f"json={tmp_path}/found.json"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    plain, ours = (found["rows"][name] for name in sorted(found["rows"], reverse=True))
    assert found["ratio"] == ours["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert ours["images_per_s"] == pytest.approx(1 / ours["seconds"]) and 0 <= ours["data_wait_share"] <= 1
    assert found["settings"].startswith("16 x 16, batches of 4")


@pytest.mark.parametrize(
    ("name", "known"), [("generate", "sd14"), ("infer", "sd14"), ("filter", "vit_h"), ("train", "")]
)
def test_an_unknown_benchmark_or_architecture(name, known, capsys):
    assert benchmark.main(["nothing"]) == 2 and "There are: generate" in capsys.readouterr().err
    assert benchmark.main([name, "benchmark.architecture=sd9"]) == 2
    assert f"benchmark.architecture=sd9: {name} takes '{known}'" in capsys.readouterr().err
    assert benchmark.main(["--help"]) == 0


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("generate", "pairs=0"),
        ("filter", "plain_pairs=0"),
        ("infer", "pairs=-1"),
        ("infer", "calls=0"),
        ("train", "steps=0"),
    ],
)
def test_nothing_to_time_is_refused(name, setting, capsys):
    assert (
        benchmark.main([name, f"benchmark.{setting}"]) == 2
        and f"benchmark.{setting}: {name} takes" in capsys.readouterr().err
    )


@pytest.mark.parametrize("architecture", ["", "sd14"])
def test_an_unknown_precision_says_so(architecture, capsys):
    assert (
        benchmark.main(["generate", f"benchmark.architecture={architecture}", "generate.dtype=float8"]) == 2
    )
    assert "generate.dtype=float8: there are float32" in capsys.readouterr().err
