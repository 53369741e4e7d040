"""scripts/benchmark.py end to end at a tiny scale; how fast anything is, is no matter for a test."""

import json

import pytest

from distill.formats import write_formats
from models.comodgan import CoModGenerator
from scripts import benchmark
from scripts.measure import case_train


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
    write_formats(tmp_path, network, named | {"resolution": 32, "config": network.config}, (), None)
    small = [
        *tiny_run,
        "benchmark.pairs=1",
        "benchmark.calls=2",
        "benchmark.images_at_once=2",
        f"json={tmp_path}/found.json",
    ]
    assert (
        benchmark.main(["infer", *small, "distill.init="]) == 2
        and "run `zero2gan export`" in capsys.readouterr().err
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


def test_train_writes_what_each_loop_took(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(case_train, "CPU_STEPS", 1)
    sizes = ["channel_base=64", "channel_max=8", "w_dim=8", "code_dim=16", "mapping_layers=2"]
    settings = [
        "benchmark.side=16",
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
    printed = capsys.readouterr()
    assert printed.out.startswith("train: 16 x 16") and "images" in printed.err  # the training's own lines


def test_the_steps_that_count_are_those_after_the_warm_up():
    """By hand, with a line in the midst of either half, as a training has one every ten seconds."""

    def line(images, seconds, waited_s, count):
        rates = {"images_per_s": count / seconds, "data_wait_share": waited_s / seconds}
        return {"kind": "train", "images": images, **rates}

    lines = [line(5, 9.0, 8.0, 5), line(8, 1.0, 0.0, 3), {"kind": "validation", "images": 8}]
    lines += [line(10, 4.0, 1.0, 2), line(16, 2.0, 0.5, 6), {"kind": "validation", "images": 16}]
    row = case_train.timed_half(lines, 8)
    assert row == pytest.approx({"seconds": 6.0 / 8, "data_wait_share": 1.5 / 6.0})


@pytest.mark.parametrize(
    ("name", "known"), [("generate", "sd14"), ("infer", "sd14"), ("filter", "vit_h"), ("train", "")]
)
def test_an_unknown_benchmark_or_architecture(name, known, capsys):
    assert benchmark.main(["nothing"]) == 2 and "There are: generate" in capsys.readouterr().err
    assert benchmark.main([name, "benchmark.architecture=sd9"]) == 2
    assert f"benchmark.architecture=sd9: {name} takes '{known}'" in capsys.readouterr().err
    assert benchmark.main(["--help"]) == 0


@pytest.mark.parametrize(
    ("name", "setting", "limit"),
    [
        ("generate", "pairs=0", "generate takes 1 or more"),
        ("filter", "pairs=0", "filter takes 1 or more"),
        ("infer", "pairs=-1", "it is 0 or more"),
        ("infer", "calls=0", "it is 1 or more"),
        ("infer", "images_at_once=0", "it is 1 or more"),
    ],
)
def test_nothing_to_time_is_refused(name, setting, limit, capsys):
    assert benchmark.main([name, f"benchmark.{setting}"]) == 2
    assert f"benchmark.{setting}: {limit}" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["", "sd14"])
def test_an_unknown_precision_says_so(architecture, capsys):
    assert (
        benchmark.main(["generate", f"benchmark.architecture={architecture}", "generate.dtype=float8"]) == 2
    )
    assert "generate.dtype=float8: it is float32, float16 or bfloat16" in capsys.readouterr().err
